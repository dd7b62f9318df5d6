"""Which control acts when, how strongly, on which side, and on what part of the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny_model import tiny_model
from torch import Tensor

from danqing.adapters.control import (
    Unit,
    control,
    control_source,
    fitted,
    held_steps,
    holds,
    layer_weights,
    with_controls,
)
from danqing.errors import DanqingError
from danqing.families import At, Model, Process
from danqing.models.conditioning import Conditioning
from danqing.models.controlnet import ControlNet, ControlNetConfig, from_unet
from danqing.models.patches import Patches
from danqing.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from danqing.models.unet import skip_channels
from danqing.sampling.predict import predictor
from danqing.sampling.windows import in_windows

SIZE = (6, 4)
"""The latents' width and height."""


def told(network: torch.nn.Module, seed: int = 3) -> Any:
    """A network that says something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def network(model: Model) -> ControlNet:
    network: ControlNet = told(from_unet(model.denoiser))  # type: ignore[arg-type]
    return network


def hint(seed: int = 0, height: int = 32, width: int = 48, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def branch(seed: int = 1) -> Conditioning:
    return Conditioning(torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(seed)))


def latents(rows: int = 1) -> Tensor:
    return torch.randn(rows, 4, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(2))


def patches(model: Model, *units: Unit, step: float = 0, steps: int = 10) -> Patches | None:
    (acted,) = with_controls([branch()], [control(unit, *SIZE, 8) for unit in units], True)
    with torch.no_grad():
        return control_source(model, steps)(latents(), torch.tensor([400.0]), At(2.0, step), acted)


def predicted(model: Model, sides: tuple[bool, ...], *units: Unit, rows: int = 1) -> list[Tensor]:
    controls = [control(unit, *SIZE, 8) for unit in units]
    branches = [with_controls([branch(i)], controls, side)[0] for i, side in enumerate(sides)]
    predict = predictor(model, patches=control_source(model, 10), pictures_per_call=rows)
    with torch.no_grad():
        return predict(latents(rows), At(2.0, 0), branches)


def test_layer_weights_are_the_published_ones() -> None:
    assert layer_weights("balanced", 13) == [1.0] * 13
    for mode in ("prompt", "control"):
        soft = layer_weights(mode, 13)  # type: ignore[arg-type]
        assert soft[12] == 1.0
        assert soft[0] == pytest.approx(0.825**12)
        assert soft[5] == pytest.approx(0.825**7)
    assert layer_weights("prompt", 10) == layer_weights("prompt", 13)[:10]  # XL: counted as by AUTOMATIC1111
    guess = layer_weights("guess", 13)
    assert guess[0] == pytest.approx(0.1)
    assert guess[6] == pytest.approx(10**-0.5)
    assert guess[12] == pytest.approx(1.0)


def test_a_unit_adds_to_every_skip_and_the_middle(model: Model, network: ControlNet) -> None:
    whole = patches(model, Unit(network, (hint(),)))
    assert whole is not None
    assert list(whole.skips) == list(skip_channels(model.family.denoiser))
    assert list(whole.residuals) == ["mid_block"]
    half = patches(model, Unit(network, (hint(),), weight=-0.5))
    soft = patches(model, Unit(network, (hint(),), weight=2, mode="prompt"))
    assert half is not None
    assert soft is not None
    weights = layer_weights("prompt", len(whole.skips) + 1)
    for number, name in enumerate(whole.skips):
        assert whole.skips[name].abs().max() > 0
        torch.testing.assert_close(half.skips[name], -0.5 * whole.skips[name])
        torch.testing.assert_close(soft.skips[name], 2 * weights[number] * whole.skips[name])
    torch.testing.assert_close(soft.residuals["mid_block"], 2 * weights[-1] * whole.residuals["mid_block"])


def test_several_add_up(model: Model, network: ControlNet) -> None:
    first, second = Unit(network, (hint(),)), Unit(network, (hint(1),), weight=0.3)
    apart = [patches(model, unit) for unit in (first, second)]
    both = patches(model, first, second)
    assert both is not None
    for name in both.skips:
        torch.testing.assert_close(both.skips[name], sum(p.skips[name] for p in apart if p is not None))


def test_no_weight_and_no_time_is_the_plain_graph(model: Model, network: ControlNet) -> None:
    assert patches(model) is None
    assert patches(model, Unit(network, (hint(),), weight=0)) is None
    assert patches(model, Unit(network, (hint(),), start=0.5)) is None
    assert patches(model, Unit(network, (hint(),), start=0.5), step=5) is not None


@pytest.mark.parametrize(
    ("dialect", "start", "end", "expected"),
    [
        ("danqing", 0.2, 0.5, [2, 3, 4, 5]),
        ("a1111", 0.0, 0.0, [0]),
        ("a1111", 0.0, 1.0, list(range(10))),
        ("diffusers", 0.2, 0.5, [2, 3, 4]),
        ("diffusers", 0.0, 1.0, list(range(10))),
    ],
)
def test_when_a_unit_holds(dialect: Any, start: float, end: float, expected: list[int]) -> None:
    def acts(step: float) -> bool:
        return holds(start, end, At(1.0, step), 10, Process(), dialect)

    assert [step for step in range(10) if acts(step)] == expected
    first, last = held_steps(start, end, [1.0] * 11, Process(), dialect)
    assert [step for step in range(10) if first <= step < last] == expected
    # an inner evaluation is part of its step
    assert acts(expected[-1] + 0.5)


def test_comfyui_counts_noise_levels() -> None:
    process = Process()

    def acts(start: float, end: float, t: int) -> bool:
        return holds(start, end, At(process.sigma_at(t), 0), 10, process, "comfyui")

    held = [t for t in range(0, 1000, 10) if acts(0.25, 0.75, t)]
    assert (held[0], held[-1]) == (250, 740)
    assert all(acts(0.0, 1.0, t) for t in (0, 999))


@pytest.mark.parametrize("mode", ["control", "guess"])
def test_modes_of_the_positive_side_alone(mode: Any, model: Model, network: ControlNet) -> None:
    plain = predicted(model, (True, False))
    both = predicted(model, (True, False), Unit(network, (hint(),)))
    one = predicted(model, (True, False), Unit(network, (hint(),), mode=mode))
    torch.testing.assert_close(one[1], plain[1], rtol=1e-4, atol=1e-4)
    assert (one[0] - plain[0]).abs().max() > 1e-2
    assert (both[1] - plain[1]).abs().max() > 1e-2


def test_a_pooled_network_acts_on_the_positive_side_and_everywhere_alike(model: Model, network: ControlNet) -> None:
    pooled = ControlNet(replace(network.control, pooled=True))
    pooled.load_state_dict(network.state_dict())
    unit = Unit(pooled, (hint(),))
    assert unit.positive_only
    given = patches(model, unit)
    assert given is not None
    assert all(tensor.shape[-2:] == (1, 1) for tensor in given.skips.values())
    assert predicted(model, (True,), unit)[0].shape == latents().shape


def test_a_picture_does_not_depend_on_its_batch(model: Model, network: ControlNet) -> None:
    unit = Unit(network, (hint(),))
    many = predicted(model, (True, False), unit, rows=3)
    controls = [control(unit, *SIZE, 8)]
    for row in range(3):
        predict = predictor(model, patches=control_source(model, 10))
        with torch.no_grad():
            (alone,) = predict(latents(3)[row : row + 1], At(2.0, 0), with_controls([branch(0)], controls, True))
        torch.testing.assert_close(many[0][row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_hint_is_embedded_once_a_run(model: Model, network: ControlNet) -> None:
    calls = []
    handle = network.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append(1))
    acted = with_controls([branch()], [control(Unit(network, (hint(),)), *SIZE, 8)], True)
    predict = predictor(model, patches=control_source(model, 10))
    with torch.no_grad():
        for step in range(4):
            predict(latents(), At(2.0, step), acted)
    handle.remove()
    assert len(calls) == 1


def test_windows_are_shown_their_part(model: Model, network: ControlNet) -> None:
    """In tiles, each tile's prediction is what the tile alone would be with its part of the hint."""
    whole = hint(height=32, width=80)
    acted = with_controls([branch()], [control(Unit(network, (whole,)), 10, 4, 8)], True)
    part = with_controls([branch()], [control(Unit(network, (whole[..., 48:],)), 4, 4, 8)], True)
    x = torch.randn(1, 4, 4, 10, generator=torch.Generator().manual_seed(4))

    def fresh() -> Callable[..., list[Tensor]]:
        return predictor(model, patches=control_source(model, 10))

    with torch.no_grad():
        tiled = in_windows(fresh(), (4, 4), 1)(x, At(2.0, 0), acted)[0]
        together = in_windows(fresh(), (4, 4), 1, batch=3)(x, At(2.0, 0), acted)[0]
        alone = fresh()(x[..., 6:], At(2.0, 0), part)[0]
    torch.testing.assert_close(tiled[..., 7:], alone[..., 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, tiled, rtol=1e-4, atol=1e-4)


def test_a_t2i_adapter_adds_where_its_levels_end(model: Model) -> None:
    adapter = told(T2IAdapter(T2IAdapterConfig(hint_channels=1, channels=(32, 64, 64))))
    unit = Unit(adapter, (hint(),))  # a coloured hint for a network of grey ones
    given = patches(model, unit)
    assert given is not None
    assert not given.skips
    assert list(given.residuals) == [f"down_blocks.{i}.resnets.1" for i in range(3)]
    grey = patches(model, replace(unit, pictures=(hint().mean(1, keepdim=True),)))
    soft = patches(model, replace(unit, mode="prompt", weight=0.5))
    assert grey is not None
    assert soft is not None
    for weight, (name, tensor) in zip((0.25, 0.62, 0.825), given.residuals.items()):
        torch.testing.assert_close(grey.residuals[name], tensor)
        torch.testing.assert_close(soft.residuals[name], 0.5 * weight * tensor)


def test_fitting() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    assert fitted(ramp, 8, 4, "crop") is ramp
    assert torch.equal(fitted(ramp, 4, 4, "crop"), ramp[..., 2:6])
    assert fitted(ramp, 4, 4, "stretch")[0, 0, 0, -1] > 5.5
    filled = fitted(ramp, 8, 8, "fill")
    assert torch.equal(filled, ramp[:, :, :1].expand(1, 1, 8, 8))
    assert fitted(torch.rand(1, 3, 7, 5), 16, 24, "fill").shape == (1, 3, 24, 16)
    hidden = torch.rand(1, 3, 9, 9)
    hidden[..., 3:6, 3:6] = -1
    larger = fitted(hidden, 18, 18, "crop")
    assert ((larger == -1) | (larger >= 0)).all()
    assert int((larger == -1).sum()) == 3 * 36


def test_settings_that_make_no_sense_are_said(model: Model, network: ControlNet) -> None:
    union = ControlNet(ControlNetConfig(model.family.denoiser, tasks=6, task_width=32))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"start": 0.6, "end": 0.5}, "the start not after the end"),
        ({"end": 1.5}, "between 0 and 1"),
        ({"weight": float("nan")}, "not a number"),
        ({"tasks": (1,)}, "only a union ControlNet"),
        ({"pictures": (hint(), hint())}, "only a union ControlNet"),
        ({"network": union}, r"each picture's kind, from 0 to 5; got \[\]"),
        ({"network": union, "tasks": (6,)}, r"got \[6\]"),
    ]
    for fields, line in cases:
        with pytest.raises(DanqingError, match=line):
            Unit(**{"network": network, "pictures": (hint(),), **fields})
    with pytest.raises(DanqingError, match="pictures of 3 channels, and this one has 5"):
        patches(model, Unit(network, (hint(channels=5),)))


def test_a_union_takes_several_hints(model: Model) -> None:
    union = told(ControlNet(ControlNetConfig(model.family.denoiser, tasks=6, task_width=32)))
    one, other, both = (
        patches(model, Unit(union, pictures, tasks=tasks))
        for pictures, tasks in (((hint(),), (0,)), ((hint(),), (3,)), ((hint(), hint(1)), (0, 3)))
    )
    assert one is not None
    assert other is not None
    assert both is not None
    assert not torch.equal(one.skips["conv_in"], other.skips["conv_in"])
    assert not torch.equal(one.skips["conv_in"], both.skips["conv_in"])
