# Two commands for people: `make demo` paints a picture, `make test` runs the tests.
# Each makes the environment it needs in .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo test test-long parity lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) -e ".[test]"
	$(PIP) --no-deps k-diffusion spandrel spandrel-extra-arches
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py demo.png

# Two processes share the cores: threads that wait must sleep, not spin.
test: .venv/installed-test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-long: .venv/installed-test
	$(BIN)/python -m pytest -m long

# Writes docs/parity.md anew from a run of the comparisons.
parity: .venv/installed-test
	DANQING_PARITY=write $(BIN)/python -m pytest tests/parity

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
