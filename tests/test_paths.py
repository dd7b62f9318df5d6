"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing.paths import path_of


def test_a_home_is_put_in_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert (
        path_of("~/models/a.safetensors")
        == path_of(Path("~/models/a.safetensors"))
        == tmp_path / "models/a.safetensors"
    )


@pytest.mark.parametrize("text", ["~nobody-is-called-that/a.png", "pictures/~a.png", "a.png"])
def test_other_names_stay(text: str) -> None:
    assert path_of(text) == Path(text)
