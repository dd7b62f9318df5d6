"""The networks against diffusers' and transformers' classes: the same weights, the same answers, the same names."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig as ReferenceCLIPConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from danqing.families import CLIP_BIG_G, CLIP_L, FAMILIES
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.models.clip import CLIPText, CLIPTextConfig
from danqing.models.patches import Patches
from danqing.models.unet import UNet, UNetConfig

DIFFUSERS = f"diffusers {diffusers.__version__}"
TRANSFORMERS = f"transformers {transformers.__version__}"
BOUND = 1e-5
Parity = Callable[[str, str, float, float], None]


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def share_weights(ours: nn.Module, reference: nn.Module, prefix: str = "") -> None:
    """Random weights into both, strictly, in both directions: the names are the same."""
    generator = torch.Generator().manual_seed(1)
    for parameter in reference.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.08
        # norms start at 1: around it, so that a missing weight shows
        parameter.data = noise + 1 if parameter.dim() == 1 and bool((parameter == 1).all()) else noise
    ours.load_state_dict({prefix + name: tensor for name, tensor in reference.state_dict().items()})
    reference.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in ours.state_dict().items()})
    ours.eval()
    reference.eval()


def reference_unet(config: UNetConfig) -> dict[str, Any]:
    """What diffusers calls our configuration."""
    down = [max(depths) for depths in config.down_depth]
    nested = any(len(set(depths)) > 1 for depths in (*config.down_depth, *config.up_depth))
    nested = nested or tuple(max(d) for d in reversed(config.up_depth)) != tuple(down)
    added = config.pooled_width + config.size_ids * config.size_id_width
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.channels,
        "layers_per_block": len(config.down_depth[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in down),
        "up_block_types": tuple("CrossAttnUpBlock2D" if max(d) else "UpBlock2D" for d in config.up_depth),
        "mid_block_type": {None: None, 0: "UNetMidBlock2D"}.get(config.mid_depth, "UNetMidBlock2DCrossAttn"),
        # the middle takes the last level's depth
        "transformer_layers_per_block": (*(d or 1 for d in down[:-1]), config.mid_depth or down[-1] or 1),
        "reverse_transformer_layers_per_block": tuple(tuple(n or 1 for n in d) for d in config.up_depth)
        if nested
        else None,
        "attention_head_dim": config.heads,  # which diffusers takes for their number
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.groups,
        "time_cond_proj_dim": config.guidance_width or None,
        "addition_embed_type": "text_time" if added else None,
        "addition_time_embed_dim": config.size_id_width if added else None,
        "projection_class_embeddings_input_dim": added or None,
    }


SMALL = UNetConfig(
    channels=(32, 64, 64),
    down_depth=((1, 1), (1, 1), (0, 0)),
    up_depth=((0, 0, 0), (1, 1, 1), (1, 1, 1)),
    heads=(2, 4, 4),
    context_width=48,
    groups=8,
)
XL = replace(
    SMALL,
    down_depth=((0, 0), (1, 1), (2, 2)),
    mid_depth=2,
    up_depth=((2, 2, 2), (1, 1, 1), (0, 0, 0)),
    linear_projection=True,
    pooled_width=24,
    size_ids=6,
    size_id_width=16,
)


@dataclass(frozen=True)
class Case:
    name: str
    config: UNetConfig
    size: tuple[int, int] = (16, 24)
    inputs: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("U-Net, SD 1", SMALL),
    Case("U-Net, SD 2", replace(SMALL, linear_projection=True, heads=(1, 2, 2))),
    Case("U-Net, SDXL", XL),
    Case(
        "U-Net, SDXL refiner",
        replace(
            XL,
            channels=(32, 64, 96, 96),
            down_depth=((0, 0), (2, 2), (2, 2), (0, 0)),
            up_depth=((0, 0, 0), (2, 2, 2), (2, 2, 2), (0, 0, 0)),
            heads=(2, 4, 6, 6),
            size_ids=5,
        ),
    ),
    Case("U-Net, LCM", replace(SMALL, guidance_width=32)),
    Case("U-Net, SSD-1B", replace(XL, mid_depth=0, up_depth=((2, 2, 3), (2, 1, 1), (0, 0, 0)))),
    Case("U-Net, KOALA", replace(XL, mid_depth=None, down_depth=((0,), (1,), (2,)), up_depth=((2, 2), (1, 1), (0, 0)))),
    Case("U-Net, inpainting", replace(SMALL, in_channels=9)),
    Case("U-Net, pix2pix", replace(SMALL, in_channels=8)),
    Case("U-Net, SD 1, odd sizes", SMALL, size=(13, 19)),
    Case("U-Net, SDXL, odd sizes", XL, size=(9, 14)),
]


def unet_inputs(config: UNetConfig, size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same inputs for us and for diffusers."""
    torch.manual_seed(2)
    latents = torch.randn(2, config.in_channels, *size)
    timestep, context = torch.tensor([981.0, 3.25]), torch.randn(2, 7, config.context_width)
    ours: dict[str, Any] = {"latents": latents, "timestep": timestep, "context": context}
    theirs: dict[str, Any] = {"sample": latents, "timestep": timestep, "encoder_hidden_states": context}
    if config.size_ids:
        ours["pooled"] = torch.randn(2, config.pooled_width)
        ours["time_ids"] = torch.rand(2, config.size_ids) * 1024
        theirs["added_cond_kwargs"] = {"text_embeds": ours["pooled"], "time_ids": ours["time_ids"]}
    if config.guidance_width:
        ours["guidance"] = torch.tensor([7.5, 1.5])
        embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs["timestep_cond"] = embed(None, ours["guidance"] - 1, config.guidance_width)
    return ours, theirs


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def pair(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    ours, reference = UNet(config), UNet2DConditionModel(**reference_unet(config))
    share_weights(ours, reference)
    return ours, reference


@torch.no_grad()
def test_unet(case: Case, parity: Parity) -> None:
    ours, reference = pair(case.config)
    mine, theirs = unet_inputs(case.config, case.size)
    parity(case.name, f"{DIFFUSERS} UNet2DConditionModel", error(ours(**mine), reference(**theirs).sample), BOUND)


@torch.no_grad()
def test_unet_masked_context(parity: Parity) -> None:
    ours, reference = pair(SMALL)
    mine, theirs = unet_inputs(SMALL, (16, 16))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    wanted = reference(**theirs, encoder_attention_mask=mask).sample
    assert error(ours(**mine), wanted) > 1e-3
    parity("U-Net, masked context", f"{DIFFUSERS} UNet2DConditionModel", error(ours(**mine, mask=mask), wanted), BOUND)


@torch.no_grad()
def test_unet_broadcasts_one_row(parity: Parity) -> None:
    ours, reference = pair(XL)
    mine, theirs = unet_inputs(XL, (16, 16))
    mine = {name: tensor if name == "latents" else tensor[:1] for name, tensor in mine.items()}
    theirs["timestep"], theirs["encoder_hidden_states"] = mine["timestep"], mine["context"].expand(2, -1, -1)
    theirs["added_cond_kwargs"] = {
        "text_embeds": mine["pooled"].expand(2, -1),
        "time_ids": mine["time_ids"].expand(2, -1),
    }
    parity(
        "U-Net, one row for all",
        f"{DIFFUSERS} UNet2DConditionModel",
        error(ours(**mine), reference(**theirs).sample),
        BOUND,
    )


SKIPS = [
    "conv_in",
    *("down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0"),
    *("down_blocks.1.resnets.0", "down_blocks.1.resnets.1", "down_blocks.1.downsamplers.0"),
    *("down_blocks.2.resnets.0", "down_blocks.2.resnets.1"),
]


@torch.no_grad()
def test_controlnet_residuals(parity: Parity) -> None:
    ours, reference = pair(SMALL)
    mine, theirs = unet_inputs(SMALL, (16, 16))
    shapes = [(32, 16)] * 3 + [(32, 8)] + [(64, 8)] * 2 + [(64, 4)] * 3
    down = [torch.randn(2, c, s, s) for c, s in shapes]
    middle = torch.randn(2, 64, 4, 4)
    wanted = reference(
        **theirs, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle
    ).sample
    patches = Patches(skips=dict(zip(SKIPS, down, strict=True)), residuals={"mid_block": middle})
    found = error(ours(**mine, patches=patches), wanted)
    parity("U-Net, ControlNet's residuals", f"{DIFFUSERS} UNet2DConditionModel", found, BOUND)


@torch.no_grad()
def test_adapter_residuals(parity: Parity) -> None:
    ours, reference = pair(SMALL)
    mine, theirs = unet_inputs(SMALL, (16, 16))
    features = [torch.randn(2, c, s, s) for c, s in ((32, 16), (64, 8), (64, 4))]
    wanted = reference(**theirs, down_intrablock_additional_residuals=list(features)).sample
    patches = Patches(residuals={f"down_blocks.{i}.resnets.1": feature for i, feature in enumerate(features)})
    found = error(ours(**mine, patches=patches), wanted)
    parity("U-Net, T2I-Adapter's residuals", f"{DIFFUSERS} UNet2DConditionModel", found, BOUND)


FULL = {
    "sd1": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd1-inpaint": {"in_channels": 9, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd1-pix2pix": {"in_channels": 8, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
FULL["ssd-1b"] = {
    **FULL["sdxl"],
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, 2, 4),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
FULL["vega"] = {
    **FULL["sdxl"],
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, 1, 2),
    "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", FULL)
def test_full_size_unet_names(name: str) -> None:
    with torch.device("meta"):
        assert shapes(UNet(FAMILIES[name].denoiser)) == shapes(UNet2DConditionModel(**FULL[name]))


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd1", 859_520_964), ("sdxl", 2_567_463_684), ("vega", 745_225_604)],  # Vega's card: 745 million
)
def test_unet_parameter_count(name: str, count: int) -> None:
    with torch.device("meta"):
        network = UNet(FAMILIES[name].denoiser)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def reference_autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    levels = len(config.channels)
    return {
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": config.scale,
        "use_quant_conv": config.quant_convolutions,
        "use_post_quant_conv": config.quant_convolutions,
    }


AUTOENCODER = AutoencoderConfig(channels=(16, 32, 32), groups=8)
AUTOENCODERS = [
    ("autoencoder, SD 1", AUTOENCODER, (24, 16)),
    ("autoencoder, odd sizes", AUTOENCODER, (20, 44)),
    (
        "autoencoder, SD 3",
        replace(AUTOENCODER, latent_channels=16, quant_convolutions=False, scale=1.5305, shift=0.0609),
        (16, 16),
    ),
    (
        "autoencoder, Playground 2.5",
        replace(FAMILIES["playground-v2.5"].autoencoder, channels=(16, 32), groups=8),
        (16, 16),
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "config", "size"), AUTOENCODERS, ids=[row[0] for row in AUTOENCODERS])
def test_autoencoder(name: str, config: AutoencoderConfig, size: tuple[int, int], parity: Parity) -> None:
    ours, reference = Autoencoder(config), AutoencoderKL(**reference_autoencoder(config))
    share_weights(ours, reference)
    torch.manual_seed(2)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    theirs = reference.encode(pixels).latent_dist
    mean = torch.tensor(config.mean or (config.shift,)).view(1, -1, 1, 1)
    std = torch.tensor(config.std or (1.0,)).view(1, -1, 1, 1)
    wanted = (theirs.mean - mean) / std * config.scale
    posterior = ours.encode(pixels)
    noise = torch.randn(wanted.shape)
    sample = (theirs.mean + theirs.std * noise - mean) / std * config.scale
    parity(f"{name}, encode", f"{DIFFUSERS} AutoencoderKL", error(posterior.mode(), wanted), BOUND)
    parity(f"{name}, sample", f"{DIFFUSERS} AutoencoderKL", error(posterior.sample(noise), sample), BOUND)
    decoded = reference.decode(wanted / config.scale * std + mean).sample
    parity(f"{name}, decode", f"{DIFFUSERS} AutoencoderKL", error(ours.decode(wanted), decoded), BOUND)


def test_full_size_autoencoder_names() -> None:
    config = FAMILIES["sd1"].autoencoder
    with torch.device("meta"):
        ours, reference = Autoencoder(config), AutoencoderKL(**reference_autoencoder(config))
    assert shapes(ours) == shapes(reference)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863


def reference_clip(config: CLIPTextConfig, end: int) -> ReferenceCLIPConfig:
    return ReferenceCLIPConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.positions,
        hidden_act=config.activation,
        projection_dim=config.projection or 512,
        bos_token_id=1,
        eos_token_id=end,
        pad_token_id=1,
    )


def prefix_of(reference: nn.Module) -> str:
    """transformers 5 writes a tower alone without the prefix."""
    return "" if any(name.startswith("text_model.") for name in reference.state_dict()) else "text_model."


CLIP = CLIPTextConfig(vocabulary=60, width=32, intermediate=64, layers=3, heads=4, positions=12, end_token=59)


@torch.no_grad()
@pytest.mark.parametrize("end", [59, 2], ids=["end token named", "old configuration"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projection", [None, 24])
def test_clip(projection: int | None, activation: str, end: int, parity: Parity) -> None:
    config = replace(CLIP, activation=activation, projection=projection)
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    reference = kind(reference_clip(config, end))
    ours = CLIPText(config)
    share_weights(ours, reference, prefix_of(reference))
    ids = torch.tensor([[58, 5, 6, 7, 59, 59, 59, 59, 59, 59, 59, 59], [58, 5, 9, 30, 8, 8, 10, 11, 59, 0, 0, 0]])
    theirs = reference(ids, output_hidden_states=True)
    pooled = theirs.text_embeds if projection else theirs.pooler_output
    found = ours(ids)
    subject, name = f"CLIP text, {activation}", f"{TRANSFORMERS} {kind.__name__}"
    parity(f"{subject}, last", name, error(found.last, theirs.last_hidden_state), BOUND)
    parity(f"{subject}, pooled", name, error(found.pooled, pooled), BOUND)
    assert len(found.hidden) == len(theirs.hidden_states)
    for layer, (mine, wanted) in enumerate(zip(found.hidden, theirs.hidden_states)):
        # newer transformers put the last one through the final norm
        mine = found.last if layer == config.layers and error(mine, wanted) > 1e-3 else mine
        parity(f"{subject}, hidden", name, error(mine, wanted), BOUND)


@pytest.mark.parametrize(("config", "count"), [(CLIP_L, 123_060_480), (CLIP_BIG_G, 694_659_840)])
def test_full_size_clip_names(config: CLIPTextConfig, count: int) -> None:
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    with torch.device("meta"):
        ours, reference = CLIPText(config), kind(reference_clip(config, 2))
    prefix = prefix_of(reference)
    assert shapes(ours) == {prefix + name: shape for name, shape in shapes(reference).items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
