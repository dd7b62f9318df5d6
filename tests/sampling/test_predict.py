from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.families import SD1, At, Model, Process
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Patches
from danqing.models.unet import UNet, UNetConfig
from danqing.sampling.predict import predictor, timesteps

CONFIG = UNetConfig(
    channels=(32, 64),
    down_depth=((1, 1), (1, 0)),
    up_depth=((1, 0, 1), (1, 1, 1)),
    heads=(2, 4),
    context_width=24,
    groups=8,
)


def _model(config: UNetConfig = CONFIG, dtype: torch.dtype = torch.float32, **process: Any) -> Model:
    torch.manual_seed(1)
    net = UNet(config).eval().to(dtype, memory_format=torch.channels_last)
    family = replace(SD1, denoiser=config, process=Process(**process))
    return Model(family, net, nn.Identity(), {})


def _branches(count: int, pictures: int = 1, length: int = 7, width: int = 24) -> list[Conditioning]:
    generator = torch.Generator().manual_seed(2)
    return [Conditioning(torch.randn(pictures, length, width, generator=generator)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


class Recorder(nn.Module):
    """A denoiser in closed form that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.calls: list[dict[str, Any]] = []

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, **rest: Any) -> Tensor:
        self.calls.append({"latents": latents, "timestep": timestep, "context": context, **rest})
        return self.weight * latents[:, :4] + context.mean((1, 2))[:, None, None, None]


def _recorded(**process: Any) -> tuple[Model, Recorder]:
    net = Recorder()
    return Model(replace(SD1, process=Process(**process)), net, nn.Identity(), {}), net


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.0])
def test_the_clean_prediction_is_the_processs_arithmetic(prediction: str, sigma: float) -> None:
    model, net = _recorded(prediction=prediction)
    process = model.process
    x, (branch,) = torch.randn(2, 4, 6, 5), _branches(1)
    (clean,) = predictor(model)(x, At(sigma, 0), [branch])
    own = x * process.alpha(sigma) if prediction != "edm" else x / (sigma**2 + 0.25) ** 0.5
    raw = 0.5 * own + branch.context.mean()
    expected = {
        "epsilon": x - sigma * raw,
        # x0 = alpha x_t - sigma_t v (Salimans & Ho 2022)
        "v": own / (1 + sigma**2) ** 0.5 - sigma / (1 + sigma**2) ** 0.5 * raw,
        "flow": own - sigma / (1 + sigma) * raw,
        "edm": 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / (sigma**2 + 0.25) ** 0.5 * raw,
    }[prediction]
    assert torch.allclose(clean, expected, rtol=1e-5, atol=1e-5)
    assert float(net.calls[0]["timestep"]) == pytest.approx(process.timestep(sigma), rel=1e-6)


def test_branches_of_one_shape_are_one_call_per_picture_on_a_cpu() -> None:
    model, net = _recorded()
    predictor(model)(torch.randn(3, 4, 4, 4), At(2.0, 0), _branches(2, 3))
    assert [tuple(call["latents"].shape) for call in net.calls] == [(1, 4, 4, 4)] * 3
    assert [len(call["context"]) for call in net.calls] == [2] * 3
    net.calls.clear()
    predictor(model, pictures_per_call=2)(torch.randn(3, 4, 4, 4), At(2.0, 0), _branches(2))
    assert [len(call["latents"]) for call in net.calls] == [4, 1]  # of one picture only once


def test_contexts_of_other_lengths_are_called_apart_or_padded() -> None:
    model, net = _recorded()
    long, short = _branches(1, length=14)[0], _branches(1, length=7)[0]
    x = torch.randn(1, 4, 4, 4)
    apart = predictor(model)(x, At(2.0, 0), [short, long])
    assert [call["context"].shape[1] for call in net.calls] == [7, 14]
    alone = [predictor(model)(x, At(2.0, 0), [branch])[0] for branch in (short, long)]
    assert all(torch.equal(a, b) for a, b in zip(apart, alone))
    net.calls.clear()
    predictor(model, pad=True)(x, At(2.0, 0), [short, long])
    (call,) = net.calls
    assert call["context"].shape == (2, 14, 24)
    assert torch.equal(call["context"][0], torch.cat([short.context[0], short.context[0, -1:].expand(7, -1)]))


def test_every_input_reaches_its_row() -> None:
    model, net = _recorded()
    base = _branches(2, 2)
    generator = torch.Generator().manual_seed(5)
    branches = [
        replace(
            branch,
            pooled=torch.randn(2, 3, generator=generator),
            extra={"time_ids": torch.tensor([[1023.0 + i, 1001.0]])},
            channels=torch.randn(1, 5, 4, 4, generator=generator),
            mask=torch.ones(1, 7, dtype=torch.bool) if i else None,
        )
        for i, branch in enumerate(base)
    ]
    x = torch.randn(2, 4, 4, 4)
    predictor(model, pictures_per_call=2)(x, At(2.0, 0), branches)
    (call,) = net.calls
    assert torch.equal(call["latents"][:, :4], torch.cat([x, x]) * model.process.scalings(2.0)[2])
    assert torch.equal(call["latents"][:, 4:], torch.cat([b.channels.expand(2, -1, -1, -1) for b in branches]))
    assert torch.equal(call["pooled"], torch.cat([b.pooled for b in branches]))
    assert call["time_ids"].tolist() == [[1023, 1001], [1023, 1001], [1024, 1001], [1024, 1001]]
    assert call["mask"].all()
    assert call["mask"].shape == (4, 7)


def test_sizes_keep_their_precision_in_a_half_precision_model() -> None:
    model, net = _recorded()
    net.to(torch.bfloat16)
    branch = replace(_branches(1)[0], extra={"time_ids": torch.tensor([[1023.0]])})
    (clean,) = predictor(model)(torch.randn(1, 4, 4, 4), At(2.0, 0), [branch])
    assert net.calls[0]["time_ids"].tolist() == [[1023.0]]
    assert net.calls[0]["latents"].dtype == net.calls[0]["context"].dtype == torch.bfloat16
    assert clean.dtype == torch.float32


def test_patches_are_asked_for_each_call() -> None:
    model, net = _recorded()
    asked: list[tuple[int, float, int]] = []

    def patches(latents: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches:
        assert told.shape == (1,)
        asked.append((len(latents), at.step, len(conditioning.context)))
        return Patches()

    predictor(model, patches=patches)(torch.randn(1, 4, 4, 4), At(2.0, 3.5), _branches(2))
    assert asked == [(2, 3.5, 2)]
    assert isinstance(net.calls[0]["patches"], Patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_picture_does_not_depend_on_its_batch(dtype: torch.dtype, prediction: str) -> None:
    model = _model(dtype=dtype, prediction=prediction)
    x, branches = torch.randn(3, 4, 8, 6), _branches(2, 3)
    whole = predictor(model)(x, At(3.0, 0), branches)
    for i in range(3):
        alone = predictor(model)(x[i : i + 1], At(3.0, 0), [branch.picture(i) for branch in branches])
        assert torch.equal(whole[0][i : i + 1], alone[0])
        assert torch.equal(whole[1][i : i + 1], alone[1])


def test_branches_apart_are_calls_of_one_row() -> None:
    model = _model()
    x, branches = torch.randn(2, 4, 8, 6), _branches(3)
    together = predictor(model)(x, At(3.0, 0), branches)
    apart = predictor(model, branches_apart=True)(x, At(3.0, 0), branches)
    for a, b in zip(together, apart):
        assert torch.allclose(a, b, atol=1e-5)  # matrix products of other sizes add up in another order
    recorded, net = _recorded()
    predictor(recorded, branches_apart=True)(x, At(3.0, 0), branches)
    assert [len(call["latents"]) for call in net.calls] == [1] * 6


def test_timesteps_of_each_tool() -> None:
    process = Process()
    level = float(process.sigmas[500]) ** 0.7 * float(process.sigmas[501]) ** 0.3
    assert timesteps(process, "a1111")(level) == pytest.approx(500.3, abs=1e-6)
    assert timesteps(process, "comfyui")(level) == 500
    assert timesteps(process, "diffusers", "Euler", "Karras")(level) == pytest.approx(500.3, abs=1e-6)
    assert timesteps(process, "diffusers", "DPM++ 2M", "Karras")(level) == 500
    assert timesteps(process, "diffusers", "DPM++ 2M", "Exponential")(float(process.sigmas[500]) * 1.003) == 500
    linear = 0.25 * float(process.sigmas[500]) + 0.75 * float(process.sigmas[501])
    assert timesteps(process, "diffusers", "Euler", "Automatic")(linear) == pytest.approx(500.75, abs=1e-6)
    assert timesteps(process, "diffusers", "DDIM", "Automatic")(float(process.sigmas[7].float())) == 7
    flow = Process(prediction="flow")
    assert timesteps(flow, "comfyui")(1.0) == 500


def test_the_module_where_nan_begins_runs_in_float32() -> None:
    model = _model(dtype=torch.float16)
    convolution = model.denoiser.get_submodule("up_blocks.1.resnets.1.conv1")
    # times 1e5 in the weights overflows float16, and the normalisation that follows takes it back
    convolution.weight.mul_(6e4)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    x, branches = torch.randn(1, 4, 8, 8), _branches(2)
    safe = Model(model.family, UNet(CONFIG).eval(), nn.Identity(), {})
    safe.denoiser.load_state_dict(before)
    notes: list[str] = []
    predict = predictor(model, say=notes.append)
    result = predict(x, At(3.0, 7), branches)
    expected = predictor(safe)(x, At(3.0, 7), branches)
    for ours, theirs in zip(result, expected):
        assert ours.isfinite().all()
        assert float((ours - theirs).abs().max()) < 0.05
    predict(x, At(3.0, 8), branches)
    (line,) = notes
    assert line.startswith("NaN in up_blocks.1.resnets.1.conv1 at step 7: up_blocks.1.resnets.1")
    assert line.endswith("ran in float32")
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    assert model.dtype == torch.float16


def test_a_damaged_weight_is_named() -> None:
    model = _model()
    model.denoiser.get_submodule("mid_block.resnets.0.conv1").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(DanqingError, match=r"U-Net: mid_block\.resnets\.0\.conv1 .* weight"):
        predictor(model)(torch.randn(1, 4, 8, 8), At(3.0, 0), _branches(1))


def test_a_picture_is_told_once_for_all_its_prompts_unless_something_changes_the_network() -> None:
    model, net = _recorded()
    latents, at = torch.randn(2, 4, 8, 8), At(1.5, 0)
    found = predictor(model)(latents, at, _branches(2))
    assert [len(call["latents"]) for call in net.calls] == [1, 1]
    assert [len(call["context"]) for call in net.calls] == [2, 2]
    net.calls.clear()
    wanted = predictor(model, patches=lambda scaled, told, at, conditioning: None)(latents, at, _branches(2))
    assert [len(call["latents"]) for call in net.calls] == [2, 2]
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)


def test_prompts_that_the_network_does_not_look_at_have_one_answer() -> None:
    model, net = _recorded()
    net.forward = lambda latents, **rest: latents  # type: ignore[method-assign, assignment]
    first, second = predictor(model)(torch.randn(1, 4, 8, 8), At(1.5, 0), _branches(2))
    assert torch.equal(first, second)
