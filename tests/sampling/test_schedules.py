"""What every schedule promises, for every kind of process and every tool's dialect."""

import pytest
import torch
from scipy import stats

from danqing.errors import DanqingError
from danqing.families import Process
from danqing.sampling.schedules import TIMESTEP_SAMPLERS, beta_quantile, schedule, scheduler_for
from danqing.vocabulary import DIALECTS, SAMPLERS, SCHEDULERS, Dialect, find_sampler

PROCESSES = {
    "epsilon": Process(),
    "zero terminal SNR": Process("v", zero_terminal_snr=True),
    "flow": Process("flow", shift=3.0),
    "edm": Process("edm"),
}
ENDS_ABOVE_ZERO = {("KL Optimal", "danqing"), ("KL Optimal", "a1111"), ("KL Optimal", "diffusers")}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("name", [row.name for row in SCHEDULERS])
def test_falls_to_zero_in_as_many_steps_as_asked(name: str, kind: str, dialect: Dialect) -> None:
    process = PROCESSES[kind]
    if name == "Align Your Steps" and kind in ("flow", "edm"):
        with pytest.raises(DanqingError, match="Align Your Steps"):
            schedule(name, process, 10, dialect=dialect)
        return
    for steps in (1, 2, 3, 10, 50):
        sigmas = schedule(name, process, steps, dialect=dialect, sampler=find_sampler("Euler"))
        assert sigmas.dtype == torch.float32
        assert sigmas.isfinite().all()
        assert (sigmas.diff() < 0).all()
        assert sigmas[0] <= max(process.sigma_max, 14.615) * 1.0001
        assert (sigmas[-1] > 0) == ((name, dialect) in ENDS_ABOVE_ZERO)
        # ComfyUI's Beta drops equal steps, and the training steps' stride need not divide their number.
        exact = not (name == "DDIM" and dialect != "diffusers") and not (name == "Beta" and dialect == "comfyui")
        assert len(sigmas) == steps + 1 if exact else len(sigmas) >= steps * 0.9


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda row: row.name)
@pytest.mark.parametrize("kind", PROCESSES)
def test_every_sampler_has_an_automatic_schedule(sampler, kind: str, dialect: Dialect) -> None:
    for steps in (1, 2, 5, 20):
        sigmas = schedule("Automatic", PROCESSES[kind], steps, dialect=dialect, sampler=sampler)
        assert len(sigmas) >= 2
        assert (sigmas.diff() < 0).all()


def test_bounds_are_kept() -> None:
    for name in ("Karras", "Exponential", "Polyexponential", "KL Optimal", "Beta", "Normal"):
        sigmas = schedule(name, Process(), 12, sigma_min=0.1, sigma_max=10.0)
        positive = sigmas[sigmas > 0]
        assert float(positive[0]) == pytest.approx(10, rel=1e-4)
        assert float(positive[-1]) == pytest.approx(0.1, rel=1e-4)


def test_bounds_hold_in_the_diffusers_dialect_too() -> None:
    sigmas = schedule("Karras", Process(), 8, dialect="diffusers", sampler=find_sampler("Euler"), sigma_max=9.0)
    assert float(sigmas[0]) == pytest.approx(9)


def test_rho_bends() -> None:
    straight = schedule("Karras", Process(), 9, rho=1.0)[:-1]
    assert torch.allclose(straight.diff(), straight.diff()[0].expand(8), rtol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (None, 0.001)])
def test_bounds_out_of_order_are_refused(low: float | None, high: float) -> None:
    with pytest.raises(DanqingError, match="sigma_min"):
        schedule("Karras", Process(), 10, sigma_min=low, sigma_max=high)


def test_no_steps_are_refused() -> None:
    with pytest.raises(DanqingError, match="steps"):
        schedule("Karras", Process(), 0)


def test_unknown_schedule_is_refused_with_the_nearest() -> None:
    with pytest.raises(DanqingError, match="Karras"):
        schedule("Karas", Process(), 10)


def test_too_many_distilled_steps_are_refused() -> None:
    with pytest.raises(DanqingError, match="at most 50"):
        schedule("Automatic", Process(), 51, dialect="diffusers", sampler=find_sampler("LCM"))


def test_penultimate_level_is_dropped_as_the_tool_does() -> None:
    full = schedule("Karras", Process(), 11)
    dropped = torch.cat([full[:-2], full[-1:]])
    for sampler, dialect, expected in [
        ("DPM2", "a1111", True),
        ("DPM2", "comfyui", True),
        ("DPM2", "diffusers", False),
        ("DPM++ 3M SDE", "a1111", True),
        ("DPM++ 3M SDE", "comfyui", False),
        ("UniPC", "comfyui", True),
        ("Euler", "danqing", False),
    ]:
        sigmas = schedule("Karras", Process(), 10, dialect=dialect, sampler=find_sampler(sampler))
        same = len(sigmas) == 11 and torch.equal(sigmas[:-1], dropped[:-1])
        assert same == expected, (sampler, dialect)
    assert torch.equal(schedule("Karras", Process(), 10, discard_penultimate=True), dropped)
    kept = schedule("Karras", Process(), 10, sampler=find_sampler("DPM2"), discard_penultimate=False)
    assert torch.equal(kept, schedule("Karras", Process(), 10))


def test_comfyui_unipc_stops_above_zero() -> None:
    assert float(
        schedule("Karras", Process(), 10, dialect="comfyui", sampler=find_sampler("UniPC"))[-1]
    ) == pytest.approx(0.001)


def test_automatic_is_the_samplers_own() -> None:
    assert scheduler_for("Automatic", find_sampler("DPM++ 2M"), "danqing") == "Karras"
    assert scheduler_for("automatic", find_sampler("Euler"), "a1111") == "Uniform"
    assert scheduler_for("Automatic", find_sampler("DPM++ 2M"), "diffusers") == "Uniform"
    assert scheduler_for("Automatic", None, "danqing") == "Uniform"


@pytest.mark.parametrize("name", sorted(TIMESTEP_SAMPLERS))
def test_a1111_ignores_the_scheduler_of_timestep_samplers(name: str) -> None:
    sampler = find_sampler(name)
    assert scheduler_for("Karras", sampler, "a1111") == "DDIM"
    assert scheduler_for("Karras", sampler, "danqing") == "Karras"
    own = schedule("Karras", Process(), 10, sampler=sampler)
    assert torch.equal(own, schedule("Karras", Process(), 10))


def test_a1111_ddim_runs_one_step_less_where_1000_divides() -> None:
    for steps, run in ((20, 19), (15, 15), (30, 30)):
        assert len(schedule("Automatic", Process(), steps, sampler=find_sampler("DDIM"))) - 1 == run


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 2.0), (3.0, 1.5), (1.0, 1.0), (8.0, 0.3)])
def test_beta_quantile(a: float, b: float) -> None:
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    theirs = torch.from_numpy(stats.beta.ppf(p.numpy(), a, b))
    assert float((beta_quantile(p, a, b) - theirs).abs().max()) < 1e-12


def test_flow_levels_are_the_familys_times() -> None:
    # Uniform in t with the shift, mapped to sigma = t / (1 - t).
    sigmas = schedule("SGM Uniform", PROCESSES["flow"], 4).double()
    t = sigmas / (1 + sigmas)
    plain = t / (3 - 2 * t)
    assert torch.allclose(plain[1:-1], torch.tensor([0.75025, 0.5005, 0.25075], dtype=torch.float64), atol=1e-5)
