"""ControlNets and T2I-Adapters from files of every layout, and what is said of files that do not serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints.small import random_model, small_family
from torch import Tensor

from danqing.checkpoints import layouts
from danqing.checkpoints.controls import load_control
from danqing.checkpoints.files import Entry
from danqing.checkpoints.layouts import Depths, Table
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.controlnet import ControlNet, ControlNetConfig
from danqing.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from danqing.models.unet import UNetConfig

State = dict[str, Tensor]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(small_family(request.param))


@pytest.fixture(scope="module")
def sd1() -> Model:
    return random_model(small_family("sd1"))


def filled(network: torch.nn.Module) -> State:
    generator = torch.Generator().manual_seed(5)
    return {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in network.state_dict().items()}


def control_state(config: UNetConfig, **more: int) -> State:
    return filled(ControlNet(ControlNetConfig(config, **more)))


def foreign(table: Table, state: Mapping[str, Tensor]) -> State:
    entries = {key: Entry(tuple(t.shape), t.dtype, lambda t=t: t) for key, t in state.items()}
    found, left = table.to_foreign(entries)
    assert not left
    assert len(found) == len(state)
    return {key: entry.load().contiguous() for key, entry in found.items()}


def table_of(config: UNetConfig) -> Table:
    return layouts.controlnet_table(Depths(config.down_depth, config.mid_depth, ()), 8)


def ldm(config: UNetConfig, state: Mapping[str, Tensor]) -> State:
    return foreign(table_of(config), state)


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    save_file(dict(state), path)
    return path


def check(network: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_its_own_layout(model: Model, prefix: str, tmp_path: Path) -> None:
    config = model.family.denoiser
    state = control_state(config, hint_channels=4)
    told = {f"{prefix}{key}": tensor for key, tensor in ldm(config, state).items()}
    last = sum(len(blocks) + 1 for blocks in config.down_depth) - 1
    for key in (
        *("input_hint_block.0.weight", "input_hint_block.14.bias", "time_embed.2.weight", "middle_block_out.0.weight"),
        *("zero_convs.0.0.weight", f"zero_convs.{last}.0.bias", "input_blocks.3.0.op.weight"),
        *("middle_block.1.transformer_blocks.0.attn2.to_k.weight", "input_blocks.1.0.in_layers.2.weight"),
    ):
        assert f"{prefix}{key}" in told
    if not prefix:
        told["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
        with pytest.raises(DanqingError, match=r"no ControlNet's, such as 'model\.diffusion_model"):
            load_control(write(tmp_path / "surplus.safetensors", told), model)
        del told["model.diffusion_model.input_blocks.0.0.weight"]
    network = load_control(write(tmp_path / "control.safetensors", told), model)
    assert isinstance(network, ControlNet)
    assert network.control == ControlNetConfig(config, hint_channels=4, task_layers=0)
    check(network, state)


def test_its_own_layout_as_diffusers_reads_it(model: Model) -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    config = model.family.denoiser
    state = control_state(config)
    converted = convert_controlnet_checkpoint(ldm(config, state), {"layers_per_block": 2})
    converted = {key: tensor for key, tensor in converted.items() if tensor is not None}
    if "add_embedding.linear_1.weight" not in converted:  # diffusers leaves XL's out
        converted |= {key: tensor for key, tensor in state.items() if key.startswith("add_embedding.")}
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)


def test_half_precision_as_the_model_is(sd1: Model, tmp_path: Path) -> None:
    config = sd1.family.denoiser
    state = {key: tensor.half() for key, tensor in ldm(config, control_state(config)).items()}
    path = write(tmp_path / "control_shuffle.safetensors", state)
    network = load_control(path, sd1)
    assert isinstance(network, ControlNet)
    assert next(network.parameters()).dtype == torch.float32
    assert network.control.pooled
    assert next(load_control(path, sd1, dtype=torch.float16).parameters()).dtype == torch.float16


def test_a_diffusers_folder(sd1: Model, tmp_path: Path) -> None:
    config = replace(sd1.family.denoiser, heads=(4, 4, 8, 8))
    state = control_state(config)
    write(tmp_path / "diffusion_pytorch_model.safetensors", state)
    options = {
        "_class_name": "ControlNetModel", "attention_head_dim": [4, 4, 8, 8], "norm_num_groups": 8,
        "controlnet_conditioning_channel_order": "bgr", "global_pool_conditions": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(options))
    for place in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        network = load_control(place, sd1)
        assert isinstance(network, ControlNet)
        assert network.config.heads == (4, 4, 8, 8)
        assert network.control.bgr
        assert network.control.pooled
        check(network, state)
    (tmp_path / "config.json").write_text(json.dumps(options | {"attention_head_dim": 7}))
    with pytest.raises(DanqingError, match=r"config\.json: .* heads do not suit"):
        load_control(tmp_path, sd1)


def test_a_union(tmp_path: Path) -> None:
    model = random_model(small_family("sdxl"))
    config = model.family.denoiser
    state = control_state(config, tasks=6, task_width=32)
    network = load_control(write(tmp_path / "union.safetensors", state), model)
    assert isinstance(network, ControlNet)
    assert network.control == ControlNetConfig(config, tasks=6, task_width=32)
    check(network, state)


def test_differences_are_added_to_the_model_s_own(model: Model, tmp_path: Path) -> None:
    config = model.family.denoiser
    base, state = model.denoiser.state_dict(), control_state(config)
    told = {f"control_model.{key}": tensor for key, tensor in ldm(config, state).items()}
    network = load_control(write(tmp_path / "d.safetensors", told | {"difference": torch.zeros(1)}), model)
    shared = state.keys() & base.keys()
    assert len(shared) > 100
    check(network, {key: base[key] + tensor if key in base else tensor for key, tensor in state.items()})


def test_a_control_lora_takes_the_rest_from_the_model(model: Model, tmp_path: Path) -> None:
    config = model.family.denoiser
    base = {key: tensor.clone() for key, tensor in model.denoiser.state_dict().items()}
    state = control_state(config)
    wanted = {key: base.get(key, tensor) for key, tensor in state.items()}
    told: State = {key: tensor for key, tensor in state.items() if key not in base}
    generator = torch.Generator().manual_seed(9)
    for key in [key for key in wanted if key in base and key.endswith(".weight") and base[key].dim() > 1]:
        shape = base[key].shape
        up, down = (torch.randn(size, generator=generator) for size in ((shape[0], 2), (2, *shape[1:])))
        told |= {key.replace(".weight", ".up"): up, key.replace(".weight", ".down"): down}
        wanted[key] = base[key] + (up @ down.flatten(1)).view(shape)
    told["conv_in.bias"] = wanted["conv_in.bias"] = torch.randn(config.channels[0])  # whole, as it is
    path = write(tmp_path / "lora.safetensors", ldm(config, told) | {"lora_controlnet": torch.zeros(0)})
    network = load_control(path, model)
    loaded = network.state_dict()
    assert loaded.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, base[key]) for key, tensor in model.denoiser.state_dict().items())
    other = random_model(small_family("sd1" if model.family.name == "sdxl" else "sdxl"))
    with pytest.raises(DanqingError, match="another family"):
        load_control(path, other)


def test_adapters(sd1: Model, tmp_path: Path) -> None:
    channels = sd1.family.denoiser.channels
    for config in (T2IAdapterConfig(channels=channels), T2IAdapterConfig("light", 1, channels, layers=4)):
        state = filled(T2IAdapter(config))
        own = foreign(layouts.t2i_adapter_table(2, config.kind == "light"), state)
        key = "body.0.body.3.block1.weight" if config.kind == "light" else "body.7.block2.bias"
        assert key in own
        both = {f"adapter.{key}": tensor for key, tensor in state.items()}
        for name, told in {"own": own, "diffusers": both, "bare": state}.items():
            network = load_control(write(tmp_path / f"{config.kind}-{name}.safetensors", told), sd1)
            assert isinstance(network, T2IAdapter)
            assert network.config == config
            check(network, state)


def test_an_xl_adapter(sd1: Model, tmp_path: Path) -> None:
    model = random_model(small_family("sdxl"))
    config = T2IAdapterConfig("xl", channels=(32, 64, 64, 64), downscale=16)
    state = filled(T2IAdapter(config))
    network = load_control(write(tmp_path / "xl.safetensors", state), model)
    assert isinstance(network, T2IAdapter)
    assert network.config == config
    check(network, state)


def test_what_does_not_serve_is_said(sd1: Model, tmp_path: Path) -> None:
    config = sd1.family.denoiser
    state = ldm(config, control_state(config))
    missing = {key: tensor for key, tensor in state.items() if key != "zero_convs.3.0.bias"}
    misshaped = state | {"middle_block_out.0.bias": torch.zeros(3)}
    wide = small_family("sdxl").denoiser
    other = ldm(wide, control_state(wide))
    narrow = replace(config, channels=(32, 64, 64, 32))
    adapter = filled(T2IAdapter(T2IAdapterConfig(channels=(16, 32, 32, 32))))
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 2)}
    cases = {
        "missing": (missing, r"not a whole ControlNet: 1 missing: weights\.controlnet_down_blocks\.3\.bias"),
        "misshaped": (misshaped, r"1 mis-shaped: weights\.controlnet_mid_block\.bias \[3\] instead of \[64\]"),
        "family": (other, r"is a ControlNet for text of 32; the model is .*, whose text is 16 wide"),
        "levels": (ldm(narrow, control_state(narrow)), r"for a U-Net of channels \[32, 64, 64, 32\]"),
        "adapter": (adapter, r"is a T2I-Adapter for a U-Net of channels \[16, 32, 32, 32\]"),
        "lora": (lora, "is a LoRA, not a ControlNet or T2I-Adapter"),
        "sd3": ({"controlnet_blocks.0.weight": torch.zeros(2)}, "SD 3 or Flux, which this version does not support"),
        "style": ({"style_embedding": torch.zeros(2)}, "style adapter, which this version does not support"),
        "half": ({"zero_convs.0.0.weight": torch.zeros(2)}, "of a kind that Danqing does not know"),
    }
    for name, (tensors, line) in cases.items():
        path = write(tmp_path / f"{name}.safetensors", tensors)
        with pytest.raises(DanqingError, match=line) as caught:
            load_control(path, sd1)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_unreadable_files(sd1: Model, tmp_path: Path) -> None:
    config = sd1.family.denoiser
    path = write(tmp_path / "cut.safetensors", ldm(config, control_state(config)))
    path.write_bytes(path.read_bytes()[:-1000])
    for place in (path, tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(DanqingError, match=str(place)) as caught:
            load_control(place, sd1)
        assert "\n" not in str(caught.value)
