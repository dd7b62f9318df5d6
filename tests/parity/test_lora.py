"""The LoRA family against LyCORIS' modules, PEFT's tuners and diffusers' pipelines, with the files that they write."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from lycoris import modules as lycoris
from safetensors import safe_open
from torch import Tensor, nn

import danqing
from danqing.adapters.apply import Use, apply
from danqing.adapters.lora import read
from danqing.families import Model
from lora_files import CONV, NORM, QUERY, kohya, lora, write
from tests.parity import pipelines
from tests.parity.test_networks import error, reference_unet, share_weights
from tiny_model import TINY, tiny_model

LYCORIS = f"LyCORIS {version('lycoris-lora')}"
PEFT = f"PEFT {peft.__version__}"
BOUND = 1e-5
Parity = Callable[[str, str, float, float], None]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def randomise(parameters: Any, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data += torch.randn(parameter.shape, generator=generator) * size


# --- LyCORIS ----------------------------------------------------------------------------------------------------------

LINEAR, CONVOLUTION = ("linear", QUERY), ("convolution", CONV)
CASES: dict[str, tuple[Any, dict[str, Any], tuple[tuple[str, str], ...]]] = {
    "LoRA, LoCon": (lycoris.LoConModule, {}, (LINEAR, CONVOLUTION)),
    "LoCon, Tucker": (lycoris.LoConModule, {"use_tucker": True}, (CONVOLUTION,)),
    "LoRA, rank-stabilised": (lycoris.LoConModule, {"rs_lora": True}, (LINEAR,)),
    "LoHa": (lycoris.LohaModule, {}, (LINEAR, CONVOLUTION)),
    "LoHa, Tucker": (lycoris.LohaModule, {"use_tucker": True}, (CONVOLUTION,)),
    "LoKr": (lycoris.LokrModule, {"factor": 4}, (LINEAR, CONVOLUTION)),
    "LoKr, both factored": (lycoris.LokrModule, {"decompose_both": True, "lora_dim": 2}, (LINEAR, CONVOLUTION)),
    "LoKr, Tucker": (lycoris.LokrModule, {"factor": 4, "use_tucker": True}, (CONVOLUTION,)),
    "LoKr, full": (lycoris.LokrModule, {"full_matrix": True}, (LINEAR, CONVOLUTION)),
    "GLoRA": (lycoris.GLoRAModule, {}, (LINEAR, CONVOLUTION)),
    "(IA)^3, outputs": (lycoris.IA3Module, {}, (LINEAR, CONVOLUTION)),
    "(IA)^3, inputs": (lycoris.IA3Module, {"train_on_input": True}, (LINEAR, CONVOLUTION)),
    "OFT": (lycoris.DiagOFTModule, {"lora_dim": 8}, (LINEAR, CONVOLUTION)),
    "OFT, constrained": (lycoris.DiagOFTModule, {"lora_dim": 8, "constraint": 1e-2}, (LINEAR,)),
    "OFT, rescaled": (lycoris.DiagOFTModule, {"lora_dim": 8, "rescaled": True}, (LINEAR, CONVOLUTION)),
    "BOFT": (lycoris.ButterflyOFTModule, {"lora_dim": 8}, (LINEAR, CONVOLUTION)),
    "BOFT, rescaled": (lycoris.ButterflyOFTModule, {"lora_dim": 8, "rescaled": True}, (LINEAR,)),
    "DoRA": (lycoris.LoConModule, {"weight_decompose": True}, (LINEAR, CONVOLUTION)),
    "DoRA by columns": (lycoris.LoConModule, {"weight_decompose": True, "wd_on_out": False}, (LINEAR, CONVOLUTION)),
    "LoHa with DoRA": (lycoris.LohaModule, {"weight_decompose": True}, (LINEAR,)),
    "LoKr with DoRA": (lycoris.LokrModule, {"weight_decompose": True, "factor": 4}, (LINEAR,)),
    "full difference": (lycoris.FullModule, {}, (LINEAR, CONVOLUTION)),
    "norm layers": (lycoris.NormModule, {}, (("group norm", NORM),)),
}
HALVES = [name for name in CASES if "DoRA" not in name and "rescaled" not in name]
"""Between 0 and 1 LyCORIS leaves DoRA's sum and OFT's factors in full: there the line to what was trained is ours alone."""


def plain(model: Model, layer: str) -> nn.Module:
    """torch's own layer with the weights of ours."""
    ours = model.denoiser.get_submodule(layer)
    if isinstance(ours, nn.GroupNorm):
        copy: nn.Module = nn.GroupNorm(ours.num_groups, ours.num_channels, ours.eps)
    elif isinstance(ours, nn.Conv2d):
        copy = nn.Conv2d(ours.in_channels, ours.out_channels, 3, padding=1)
    else:
        copy = nn.Linear(ours.weight.shape[1], ours.weight.shape[0], bias=False)
    copy.load_state_dict(ours.state_dict())
    return copy


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_lycoris(name: str, model: Model, tmp_path: Path, parity: Parity) -> None:
    kind, options, layers = CASES[name]
    for what, layer in layers:
        base = plain(model, layer)
        theirs = kind("", base, **({"lora_dim": 6, "alpha": 2.0} | options)).eval()
        randomise(theirs.parameters())
        x = torch.randn(2, base.weight.shape[0 if what == "group norm" else 1], 6, 6)
        x = x.flatten(2).mT if what == "linear" else x
        state = theirs.state_dict()
        if name == "full difference":  # which it reckons from its layer when it has taken its place
            state = {"diff": theirs.weight} | ({} if theirs.bias is None else {"diff_b": theirs.bias})
        path = write(tmp_path / "a.safetensors", {f"{kohya(layer)}.{key}": value for key, value in state.items()})
        adapter = read(path, TINY)
        assert not adapter.notes
        for strength in (1.0, 0.5) if name in HALVES else (1.0,):
            theirs.multiplier = strength
            ours = apply(model, [Use(adapter, unet=strength)]).denoiser.get_submodule(layer)
            got, wanted = ours(x), theirs(x)
            assert (wanted - base(x)).abs().max() > 1e-2 * wanted.abs().max()
            parity(f"adapter {name}, {what}", LYCORIS, error(got, wanted), BOUND)


# --- PEFT -------------------------------------------------------------------------------------------------------------

TARGETS = ["to_q", "to_k", "to_out.0", "proj_in", "conv1", "ff.net.2"]
TUNERS: dict[str, Any] = {
    "LoRA": peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS),
    "LoRA, rank-stabilised, patterns": peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, rank_pattern={"to_q": 8}, alpha_pattern={"conv1": 2}, target_modules=TARGETS
    ),
    "DoRA": peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=TARGETS),
    "LoHa": peft.LoHaConfig(r=4, alpha=6, target_modules=TARGETS),
    "LoHa, Tucker": peft.LoHaConfig(r=4, alpha=6, use_effective_conv2d=True, target_modules=TARGETS),
    "LoKr": peft.LoKrConfig(r=4, alpha=6, target_modules=TARGETS),
    "LoKr, both factored, Tucker": peft.LoKrConfig(
        r=2, alpha=6, decompose_both=True, use_effective_conv2d=True, target_modules=TARGETS
    ),
    "(IA)^3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["ff.net.2", "to_k"]),
}


@pytest.mark.parametrize("name", TUNERS)
@torch.no_grad()
def test_peft(name: str, model: Model, tmp_path: Path, parity: Parity) -> None:
    reference = UNet2DConditionModel(**reference_unet(TINY.denoiser))
    own = tiny_model(torch.device("cpu"), torch.float32)
    share_weights(own.denoiser, reference)
    x, step, context = torch.randn(1, 4, 8, 8), torch.tensor([300.0]), torch.randn(1, 7, 64)
    plainly = reference(x, step, context).sample
    tuned = peft.get_peft_model(reference, TUNERS[name])
    randomise(p for n, p in tuned.named_parameters() if any(m in n for m in ("lora_", "hada_", "lokr_", "ia3_")))
    tuned.save_pretrained(tmp_path)
    adapter = read(tmp_path, TINY)
    assert not adapter.notes
    got = apply(own, [Use(adapter)]).denoiser(x, step, context)
    wanted = tuned(x, step, context).sample
    assert (wanted - plainly).abs().max() > 1e-2 * wanted.abs().max()
    parity(f"adapter {name}, a whole U-Net", PEFT, error(got, wanted), BOUND)


# --- diffusers --------------------------------------------------------------------------------------------------------


def kohya_file(path: Path, model: Model, second: bool) -> Path:
    """A LoRA of every attention and of a convolution, as kohya's trainer names them for SD 1.x (or with two texts)."""
    tensors: dict[str, Tensor] = {}
    nets = {"lora_unet_": model.denoiser, "lora_te1_" if second else "lora_te_": model.text_encoders["text_encoder"]}
    if second:
        nets["lora_te2_"] = model.text_encoders["text_encoder_2"]
    for prefix, net in nets.items():
        for i, (name, module) in enumerate(net.named_modules()):
            if name.endswith(("to_q", "to_v", "to_out.0", "q_proj", "out_proj", "fc1", "proj_in", "conv1", "net.2")):
                parts = lora(tuple(module.weight.shape), rank=3, seed=i) | {"alpha": torch.tensor(2.0)}
                tensors |= {f"{prefix}{name.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
    return write(path, tensors, {"ss_output_name": "style"})


def painted(model: Model) -> np.ndarray:
    options: dict[str, Any] = {"steps": 4, "cfg_scale": 5.0, "width": 64, "height": 64, "seed": 3}
    picture = danqing.paint("a red house", model, sampler_name="DDIM", dialect="diffusers", **options)[0]
    return np.asarray(picture.image, dtype=np.float64)


@pytest.mark.parametrize("family", ["SD 1", "SDXL"])
def test_diffusers_pictures(family: str, tmp_path: Path, parity: Parity) -> None:
    (tmp_path / "model").mkdir()
    pipeline = (pipelines.sd1 if family == "SD 1" else pipelines.sdxl)(tmp_path / "model")
    model = danqing.load(tmp_path / "model", device="cpu", dtype="float32")
    path = kohya_file(tmp_path / "style.safetensors", model, family == "SDXL")
    adapter = read(path, model.family)
    assert adapter.matched == adapter.layers

    def reference() -> np.ndarray:
        generator = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 5.0}
        picture = pipeline("a red house", generator=generator, **options).images[0]
        return np.asarray(picture, dtype=np.float64)

    before = painted(model)
    assert np.abs(before - reference()).max() <= 1
    pipeline.load_lora_weights(path)
    wanted, got = reference(), painted(apply(model, [Use(adapter)]))
    assert np.abs(wanted - before).max() > 20
    parity(
        f"whole picture, {family}, kohya's LoRA",
        f"diffusers {diffusers.__version__} load_lora_weights",
        np.abs(got - wanted).max() / 255,
        1 / 255,
    )
    # what diffusers writes of it is the same adapter
    (name,) = pipeline.get_active_adapters()
    pipeline.save_lora_weights(
        tmp_path / "saved",
        unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet, adapter_name=name),
        unet_lora_adapter_metadata=pipeline.unet.peft_config[name].to_dict(),
    )
    with safe_open(tmp_path / "saved" / "pytorch_lora_weights.safetensors", "pt") as saved:
        assert len(list(saved.keys())) == 2 * sum(patch.network == "unet" for patch in adapter.patches)
    again = read(tmp_path / "saved", model.family)
    ours = apply(model, [Use(adapter, te=0)]).denoiser.state_dict()
    theirs = apply(model, [Use(again)]).denoiser.state_dict()
    assert F.mse_loss(*(torch.cat([t.flatten() for t in s.values()]) for s in (ours, theirs))) < 1e-12
    assert np.array_equal(painted(model), before)
