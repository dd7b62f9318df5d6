"""ControlNets and T2I-Adapters against diffusers' classes: the same weights, the same answers, the same names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from torch import Tensor

from danqing.families import FAMILIES
from danqing.models.controlnet import ControlNet, ControlNetConfig, from_unet
from danqing.models.patches import Patches
from danqing.models.t2i_adapter import Kind, T2IAdapter, T2IAdapterConfig, places
from danqing.models.unet import UNet, UNetConfig
from tests.parity.test_networks import FULL, SMALL, XL, error, reference_unet, shapes, share_weights, unet_inputs

DIFFUSERS = f"diffusers {diffusers.__version__}"
BOUND = 1e-5
Parity = Callable[[str, str, float, float], None]
UP = ("out_channels", "up_block_types", "reverse_transformer_layers_per_block", "time_cond_proj_dim")


def reference_controlnet(config: ControlNetConfig) -> dict[str, Any]:
    """What diffusers calls our configuration."""
    given = {key: value for key, value in reference_unet(config.unet).items() if key not in UP}
    given |= {
        "conditioning_channels": config.hint_channels,
        "conditioning_embedding_out_channels": config.hint_widths,
        "controlnet_conditioning_channel_order": "bgr" if config.bgr else "rgb",
        "global_pool_conditions": config.pooled,
    }
    if config.tasks:
        given |= {
            "num_control_type": config.tasks,
            "num_trans_channel": config.task_width,
            "num_trans_head": config.task_heads,
            "num_trans_layer": config.task_layers,
            "num_proj_channel": config.unet.channels[0],
        }
        given.pop("mid_block_type")
    return given


UNION = ControlNetConfig(XL, hint_widths=(4, 8), tasks=6, task_width=32, task_heads=4)
CASES = {
    "ControlNet, SD 1": ControlNetConfig(SMALL, hint_widths=(4, 8, 8, 16)),
    "ControlNet, SD 2": ControlNetConfig(replace(SMALL, linear_projection=True, heads=(1, 2, 2)), hint_widths=(4, 8)),
    "ControlNet, SDXL": ControlNetConfig(XL, hint_widths=(4, 8, 8, 16)),
    "ControlNet, BGR, one channel deeper": ControlNetConfig(SMALL, hint_channels=4, hint_widths=(4, 8), bgr=True),
    "ControlNet, pooled": ControlNetConfig(SMALL, hint_widths=(4, 8), pooled=True),
    "ControlNet, SDXL, odd sizes": ControlNetConfig(XL, hint_widths=(4, 8, 8, 16)),
}


def inputs(config: ControlNetConfig, name: str) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    size = (9, 14) if "odd" in name else (8, 12)
    ours, theirs = unet_inputs(config.unet, size)
    hint = torch.rand(2, config.hint_channels, *(side * config.downscale for side in size))
    return ours, theirs, hint


def worst(ours: dict[str, Tensor], theirs: Any) -> float:
    wanted = [*theirs.down_block_res_samples, theirs.mid_block_res_sample]
    assert len(wanted) == len(ours)
    return max(error(mine, reference) for mine, reference in zip(ours.values(), wanted))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_controlnet(name: str, parity: Parity) -> None:
    config = CASES[name]
    ours, reference = ControlNet(config), ControlNetModel(**reference_controlnet(config))
    share_weights(ours, reference)
    mine, theirs, hint = inputs(config, name)
    found, wanted = ours(**mine, hints=[ours.hint(hint)]), reference(**theirs, controlnet_cond=hint)
    parity(name, f"{DIFFUSERS} ControlNetModel", worst(found, wanted), BOUND)


@torch.no_grad()
@pytest.mark.parametrize("tasks", [(3,), (1, 4)])
def test_union(tasks: tuple[int, ...], parity: Parity) -> None:
    ours, reference = ControlNet(UNION), ControlNetUnionModel(**reference_controlnet(UNION))
    share_weights(ours, reference)
    mine, theirs, hint = inputs(UNION, "")
    both = ours(**mine, hints=[ours.hint(hint)] * len(tasks), tasks=tasks)
    # diffusers' attention runs along the batch: what it says of one picture is what we say of it in any company
    mine, hint = {key: tensor[:1] for key, tensor in mine.items()}, hint[:1]
    theirs = {key: value[:1] if isinstance(value, Tensor) else value for key, value in theirs.items()}
    theirs["added_cond_kwargs"] = {key: tensor[:1] for key, tensor in theirs["added_cond_kwargs"].items()}
    alone = ours(**mine, hints=[ours.hint(hint)] * len(tasks), tasks=tasks)
    assert max(error(both[key][:1], alone[key]) for key in alone) < BOUND
    hints = [hint, hint.flip(-1)][: len(tasks)]
    kinds = torch.zeros(1, UNION.tasks)
    kinds[:, list(tasks)] = 1
    wanted = reference(**theirs, controlnet_cond=hints, control_type=kinds, control_type_idx=list(tasks))
    found = ours(**mine, hints=[ours.hint(h) for h in hints], tasks=tasks)
    name = f"ControlNet union, {len(tasks)} {'hint' if len(tasks) == 1 else 'hints'}"
    parity(name, f"{DIFFUSERS} ControlNetUnionModel", worst(found, wanted), BOUND)


@torch.no_grad()
def test_controls_in_a_unet(parity: Parity) -> None:
    """The hint's residuals, put where we put them, act as where diffusers' U-Net puts them."""
    config = CASES["ControlNet, SDXL"]
    ours, reference = ControlNet(config), ControlNetModel(**reference_controlnet(config))
    unet, their_unet = UNet(XL), UNet2DConditionModel(**reference_unet(XL))
    share_weights(ours, reference)
    share_weights(unet, their_unet)
    mine, theirs, hint = inputs(config, "")
    made = ours(**mine, hints=[ours.hint(hint)])
    patches = Patches(residuals={"mid_block": made.pop("mid_block")}, skips=made)
    down, mid = reference(**theirs, controlnet_cond=hint, return_dict=False)
    wanted = their_unet(**theirs, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert error(unet(**mine), wanted) > 1e-3
    parity("U-Net with a ControlNet", DIFFUSERS, error(unet(**mine, patches=patches), wanted), BOUND)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_full_size_names(name: str) -> None:
    family = FAMILIES[name].denoiser
    given = {key: value for key, value in FULL[name].items() if key not in UP}
    with torch.device("meta"):
        assert shapes(ControlNet(ControlNetConfig(family))) == shapes(ControlNetModel(**given))


@torch.no_grad()
def test_fresh_copy(parity: Parity) -> None:
    torch.manual_seed(0)
    unet, reference = UNet(SMALL), UNet2DConditionModel(**reference_unet(SMALL))
    share_weights(unet, reference)
    ours, theirs = from_unet(unet), ControlNetModel.from_unet(reference)
    mine, same = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(same)
    copied = [name for name in mine if name in unet.state_dict()]
    assert len(copied) > 100
    difference = max(float((mine[name] - same[name]).abs().max()) for name in copied)
    parity("ControlNet, fresh from a U-Net", f"{DIFFUSERS} ControlNetModel.from_unet", difference, 0.0)
    assert all(not mine[name].any() for name in mine if name.startswith("controlnet_") and "_blocks." in name)
    given, _ = unet_inputs(SMALL, (8, 8))
    made = ours(**given, hints=[ours.hint(torch.rand(1, 3, 64, 64))])
    assert all(not tensor.any() for tensor in made.values())
    assert all(parameter.requires_grad for parameter in ours.parameters())


ADAPTERS = {
    "T2I-Adapter, full": T2IAdapterConfig(channels=(16, 32, 32, 32), downscale=4),
    "T2I-Adapter, light": T2IAdapterConfig("light", 1, (16, 32, 32, 32), layers=4, downscale=4),
    "T2I-Adapter, XL": T2IAdapterConfig("xl", channels=(16, 32, 48, 48), downscale=8),
}


def reference_adapter(config: T2IAdapterConfig) -> dict[str, Any]:
    light = config.kind == "light"
    return {
        "in_channels": config.hint_channels,
        "channels": config.channels[:-1] if light else config.channels,  # a light one doubles its last
        "num_res_blocks": config.layers,
        "downscale_factor": config.downscale,
        "adapter_type": {"full": "full_adapter", "light": "light_adapter", "xl": "full_adapter_xl"}[config.kind],
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("size", [(48, 64), (40, 72)])
def test_t2i_adapter(name: str, size: tuple[int, int], parity: Parity) -> None:
    config = ADAPTERS[name]
    ours, reference = T2IAdapter(config), diffusers.T2IAdapter(**reference_adapter(config))
    share_weights(ours, reference.adapter)
    hint = torch.rand(2, config.hint_channels, *size)
    found, wanted = ours(hint), reference(hint)
    assert len(found) == len(wanted) == 4
    parity(name, f"{DIFFUSERS} T2IAdapter", max(error(a, b) for a, b in zip(found, wanted)), BOUND)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "config"), [("full", SMALL), ("xl", XL)])
def test_features_in_a_unet(kind: Kind, config: UNetConfig, parity: Parity) -> None:
    unet, reference = UNet(config), UNet2DConditionModel(**reference_unet(config))
    share_weights(unet, reference)
    channels = (*config.channels, config.channels[-1]) if kind == "xl" else config.channels
    adapter = T2IAdapter(T2IAdapterConfig(kind, channels=channels, downscale=4 if kind == "xl" else 2))
    mine, theirs = unet_inputs(config, (8, 12))
    features = adapter(torch.rand(2, 3, 16, 24))
    named = dict(zip(places(adapter.config, config), features))
    wanted = reference(**theirs, down_intrablock_additional_residuals=[f.clone() for f in features]).sample
    assert error(unet(**mine), wanted) > 1e-3
    found = unet(**mine, patches=Patches(residuals=named))
    parity(f"U-Net with a T2I-Adapter, {kind}", DIFFUSERS, error(found, wanted), BOUND)


@pytest.mark.parametrize(
    "config",
    [T2IAdapterConfig(), T2IAdapterConfig("light", layers=4), T2IAdapterConfig("xl", downscale=16)],
    ids=lambda config: config.kind,
)
def test_full_size_adapters(config: T2IAdapterConfig) -> None:
    with torch.device("meta"):
        assert shapes(T2IAdapter(config)) == shapes(diffusers.T2IAdapter(**reference_adapter(config)).adapter)
