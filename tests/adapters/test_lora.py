"""Files of the LoRA family: every program's names, every algorithm against formulas written out here, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from danqing.adapters.apply import BLOCKS, PRESETS, Use, apply, block_weights
from danqing.adapters.keys import layers_of, split
from danqing.adapters.lora import Adapter, read
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Model
from lora_files import CONV, NORM, OUT, PIXEL, QUERY, TEXT, keyed, kohya, lora, random, write
from tiny_model import TINY, tiny_model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def weight_of(model: Model, layer: str, parameter: str = "weight") -> Tensor:
    net = model.text_encoders["text_encoder"] if layer.startswith("text_model") else model.denoiser
    return net.get_parameter(f"{layer}.{parameter}")


def applied(model: Model, path: Path, te: float = 1.0, unet: float = 1.0) -> Model:
    return apply(model, [Use(read(path, model.family), te, unet)])


def one(model: Model, tmp_path: Path, layer: str, parts: dict[str, Tensor], strength: float = 1.0) -> Tensor:
    """The weight of `layer` after a file with these parts alone."""
    path = write(tmp_path / "a.safetensors", keyed({layer: parts}))
    return weight_of(applied(model, path, strength, strength), layer)


def close(result: Tensor, wanted: Tensor) -> bool:
    return bool((result - wanted).abs().max() <= 1e-6 * wanted.abs().max())


# --- names ------------------------------------------------------------------------------------------------------------

SPELLED = {
    "kohya": (f"{kohya(QUERY)}.lora_down.weight", f"{kohya(TEXT)}.lora_down.weight"),
    "kohya, transformers 5": ("", "lora_te_encoder_layers_1_self_attn_q_proj.lora_down.weight"),
    "kohya's SDXL names": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        f"{kohya(TEXT, 'lora_te1_')}.lora_down.weight",
    ),
    "LyCORIS' wrapper": (f"lycoris_{QUERY.replace('.', '_')}.lora_down.weight", ""),
    "PEFT": (f"base_model.model.{QUERY}.lora_A.weight", f"base_model.model.{TEXT}.lora_A.default.weight"),
    "diffusers": (f"unet.{QUERY}.lora_A.weight", f"text_encoder.{TEXT}.lora_A.weight"),
    "diffusers 0.22": (f"unet.{QUERY}.lora.down.weight", f"text_encoder.{TEXT}.lora_linear_layer.down.weight"),
    "diffusers 0.17": (
        f"unet.{QUERY.replace('.to_q', '.processor.to_q_lora')}.down.weight",
        f"text_encoder.{TEXT.replace('q_proj', 'to_q_lora')}.down.weight",
    ),
    "attention processors alone": (f"{QUERY.replace('.to_q', '.processor.to_q_lora')}.down.weight", ""),
    "OneTrainer": (
        "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
        f"clip_l.{TEXT}.lora_down.weight",
    ),
    "ComfyUI": (
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
        f"text_encoder.transformer.{TEXT}.lora_down.weight",
    ),
}


@pytest.mark.parametrize("program", SPELLED)
def test_every_programs_names_are_found(program: str) -> None:
    table = layers_of(TINY)
    for key, layer in zip(SPELLED[program], (QUERY, TEXT)):
        if key:
            name, part = split(key)
            assert part == "lora_down.weight"
            assert table[name].name == layer


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (f"unet.{OUT.replace('.to_out.0', '.processor.to_out_lora')}.up.weight", "lora_up.weight"),
        (f"unet.{OUT}.lora_magnitude_vector", "magnitude"),
        (f"unet.{OUT}.lora_magnitude_vector.default.weight", "magnitude"),
        (f"unet.{OUT.removesuffix('.0')}.lora_magnitude_vector.weight", "magnitude"),
        (f"base_model.model.{OUT}.hada_w1_a.default", "hada_w1_a"),
        (f"{kohya(OUT)}.alpha", "alpha"),
        (f"{kohya(OUT)}.a1.weight", "a1.weight"),
        (f"{kohya(OUT)}.weight", "weight"),
    ],
)
def test_parts_are_told_from_layers(key: str, part: str) -> None:
    name, found = split(key)
    assert found == part
    assert layers_of(TINY)[name].name == OUT


@pytest.mark.long
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_no_two_layers_share_a_name(name: str) -> None:
    table = layers_of(FAMILIES[name])
    layers = set(table.values())
    for layer in layers:
        prefix = {"unet": "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}[layer.network]
        assert table[f"{prefix}{layer.name}".replace(".", "_")] == layer
    counts = {"sd1": 192, "sd2": 192, "sdxl": 722}
    if name in counts:  # what kohya's LoRA of linear layers and 1x1 convolutions of transformers has
        trained = [layer for layer in layers if ".attentions." in layer.name and "norm" not in layer.name]
        assert len(trained) == counts[name]


def test_blocks_are_counted_as_people_count_them() -> None:
    blocks = {layer.name: layer.block for layer in layers_of(TINY).values()}
    assert blocks["conv_in"] == "IN00"
    assert blocks["down_blocks.0.resnets.1.conv1"] == "IN02"
    assert blocks["down_blocks.0.downsamplers.0.conv"] == "IN03"
    assert blocks[QUERY] == "IN04"
    assert blocks["mid_block.resnets.1.conv2"] == "M00"
    assert blocks["up_blocks.0.upsamplers.0.conv"] == "OUT02"
    assert blocks["up_blocks.2.resnets.2.conv1"] == "OUT08"
    assert {blocks[TEXT], blocks["time_embedding.linear_1"], blocks["conv_out"]} == {"BASE"}


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("layer", [QUERY, OUT, CONV, PIXEL, TEXT])
def test_lora(model: Model, tmp_path: Path, layer: str, alpha: float | None) -> None:
    base = weight_of(model, layer)
    parts = lora(tuple(base.shape), rank=4)
    wanted = torch.einsum("or,r...->o...", parts["lora_up.weight"].flatten(1), parts["lora_down.weight"])
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    result = one(model, tmp_path, layer, parts, 0.7)
    assert close(result, base + 0.7 * (1 if alpha is None else alpha / 4) * wanted)


def test_lora_of_a_flat_file_for_a_pixel_layer(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, PIXEL)
    parts = lora(tuple(base.shape[:2]))
    wanted = (parts["lora_up.weight"] @ parts["lora_down.weight"])[..., None, None]
    assert close(one(model, tmp_path, PIXEL, parts), base + wanted)


def test_locon_with_a_core(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, CONV)
    o, i = base.shape[:2]
    down, mid, up = random(3, i, 1, 1), random(3, 3, 3, 3, seed=1), random(o, 3, 1, 1, seed=2)
    wanted = torch.zeros_like(base)
    for m in range(3):
        for n in range(3):
            wanted += up[:, m, :, :, None].reshape(o, 1, 1, 1) * down[n].reshape(1, i, 1, 1) * mid[m, n]
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    assert close(one(model, tmp_path, CONV, parts), base + 2 * wanted)


@pytest.mark.parametrize("layer", [QUERY, CONV])
def test_loha(model: Model, tmp_path: Path, layer: str) -> None:
    base = weight_of(model, layer)
    o, i = base.shape[0], base[0].numel()
    a1, b1, a2, b2 = random(o, 3), random(3, i, seed=1), random(o, 3, seed=2), random(3, i, seed=3)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
    wanted = ((a1 @ b1) * (a2 @ b2) / 3).reshape(base.shape)
    assert close(one(model, tmp_path, layer, parts), base + wanted)


@pytest.mark.parametrize("layer", [QUERY, CONV])
def test_lokr(model: Model, tmp_path: Path, layer: str) -> None:
    base = weight_of(model, layer)
    o, i, *k = base.shape
    w1 = random(4, 2)
    w2 = random(o // 4, i // 2, *k, seed=1)
    wanted = torch.empty_like(base)
    for row in range(o):
        for column in range(i):
            wanted[row, column] = w1[row // (o // 4), column // (i // 2)] * w2[row % (o // 4), column % (i // 2)]
    parts = {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(100.0)}
    assert close(one(model, tmp_path, layer, parts), base + wanted)  # nothing is factored: alpha has no meaning
    a, b = random(o // 4, 2, seed=2), random(2, w2[0].numel(), seed=3)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
    wanted = torch.kron(w1, (a @ b)).reshape(base.shape) / 2
    assert close(one(model, tmp_path, layer, parts), base + wanted)


def test_glora_in_both_orders(model: Model, tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    base = weight_of(model, layer)
    o, i = base.shape
    a1, a2, b1, b2 = random(i, 3), random(3, i, seed=1), random(o, 3, seed=2), random(3, i, seed=3)
    wanted = base + base @ a1 @ a2 + b1 @ b2
    new = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    old = {"a1.weight": a2, "a2.weight": a1, "b1.weight": b2, "b2.weight": b1}
    assert close(one(model, tmp_path, layer, new), wanted)
    assert close(one(model, tmp_path, layer, old), wanted)


@pytest.mark.parametrize("on_input", [0, 1])
@pytest.mark.parametrize("layer", [QUERY, CONV])
def test_ia3(model: Model, tmp_path: Path, layer: str, on_input: int) -> None:
    base = weight_of(model, layer)
    vector = random(base.shape[on_input])
    shape = (-1, *[1] * (base.dim() - 1 - on_input))
    parts = {"weight": vector, "on_input": torch.tensor(on_input)}
    assert close(one(model, tmp_path, layer, parts, 0.5), base * (1 + 0.5 * vector.reshape(shape)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layer", [QUERY, CONV])
def test_dora_by_rows_and_by_columns(model: Model, tmp_path: Path, layer: str, axis: int) -> None:
    base = weight_of(model, layer)
    parts = lora(tuple(base.shape))
    whole = base + torch.einsum("or,r...->o...", parts["lora_up.weight"].flatten(1), parts["lora_down.weight"])
    magnitude = random(base.shape[axis], size=0.3).abs() + 0.5
    shape = [-1 if i == axis else 1 for i in range(base.dim())]
    norms = torch.stack([part.norm() for part in whole.unbind(axis)])
    wanted = whole * (magnitude / norms).reshape(shape)
    parts["dora_scale"] = magnitude.reshape(shape)
    assert close(one(model, tmp_path, layer, parts), wanted)
    assert close(one(model, tmp_path, layer, parts, 0.25), base + 0.25 * (wanted - base))


def test_oft_turns_and_keeps_lengths(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, QUERY)
    blocks = random(8, 8, 8)
    rows = []
    for block, part in zip(blocks, base.reshape(8, 8, -1)):
        skew = block - block.T
        turn = (torch.eye(8) + skew) @ torch.inverse(torch.eye(8) - skew)
        rows.append(turn.T @ part)
    wanted = torch.cat(rows)
    assert close(one(model, tmp_path, QUERY, {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}), wanted)
    assert torch.allclose(wanted.norm(dim=0), base.norm(dim=0), rtol=1e-5)
    less = one(model, tmp_path, QUERY, {"oft_blocks": blocks, "alpha": torch.tensor(1e-4)})
    assert 0 < (less - base).norm() < 0.1 * (wanted - base).norm()


def test_differences_and_norm_layers(model: Model, tmp_path: Path) -> None:
    weight, bias = weight_of(model, CONV), weight_of(model, CONV, "bias")
    diff, diff_b = random(*weight.shape), random(*bias.shape)
    norm = {"w_norm": random(*weight_of(model, NORM).shape), "b_norm": random(*weight_of(model, NORM).shape, seed=1)}
    path = write(tmp_path / "a.safetensors", keyed({CONV: {"diff": diff, "diff_b": diff_b}, NORM: norm}))
    other = applied(model, path, unet=2.0)
    assert close(weight_of(other, CONV), weight + 2 * diff)
    assert close(weight_of(other, CONV, "bias"), bias + 2 * diff_b)
    assert close(weight_of(other, NORM), weight_of(model, NORM) + 2 * norm["w_norm"])
    assert close(weight_of(other, NORM, "bias"), weight_of(model, NORM, "bias") + 2 * norm["b_norm"])
    assert read(path, TINY).kind == "full difference, bias difference, norm layers"


def test_a_lora_for_four_channels_on_an_inpainting_model(model: Model, tmp_path: Path) -> None:
    family = replace(TINY, denoiser=replace(TINY.denoiser, in_channels=9))
    parts = lora((32, 4, 3, 3))
    adapter = read(write(tmp_path / "a.safetensors", keyed({"conv_in": parts})), family)
    weight = random(32, 9, 3, 3)
    delta = adapter.patches[0].change(weight, 1.0) - weight
    assert not delta[:, 4:].any()
    wanted = torch.einsum("or,r...->o...", parts["lora_up.weight"].flatten(1), parts["lora_down.weight"])
    assert torch.allclose(delta[:, :4], wanted, atol=1e-6)


# --- on a model -------------------------------------------------------------------------------------------------------


def both(tmp_path: Path, model: Model, seed: int = 0) -> Path:
    layers = {name: lora(tuple(weight_of(model, name).shape), seed=seed) for name in (QUERY, CONV, TEXT)}
    return write(tmp_path / f"{seed}.safetensors", keyed(layers))


def test_the_model_is_left_as_it_is_and_all_else_is_shared(model: Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    first = applied(model, both(tmp_path, model))
    again = applied(model, both(tmp_path, model))
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    changed = {n for n, p in first.denoiser.named_parameters() if p is not model.denoiser.get_parameter(n)}
    assert changed == {f"{QUERY}.weight", f"{CONV}.weight"}
    assert all(torch.equal(a, b) for a, b in zip(first.denoiser.parameters(), again.denoiser.parameters()))
    assert first.autoencoder is model.autoencoder


def kinds(model: Model) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Layers and parts of one file for each kind; those of convolutions and norm layers besides."""
    linear, conv, norm = (tuple(weight_of(model, layer).shape) for layer in (QUERY, CONV, NORM))
    o, i = linear
    flat = conv[1] * conv[2] * conv[3]

    def factors(columns: int, seed: int = 0) -> dict[str, Tensor]:
        sizes = {"a": (o, 2), "b": (2, columns)}
        return {f"hada_w{n}_{side}": random(*size, seed=seed + n) for n in (1, 2) for side, size in sizes.items()}

    tucker = {
        "lora_down.weight": random(3, conv[1], 1, 1),
        "lora_mid.weight": random(3, 3, 3, 3, seed=1),
        "lora_up.weight": random(conv[0], 3, 1, 1, seed=2),
    }
    glora = {
        "a1.weight": random(i, 2),
        "a2.weight": random(2, i),
        "b1.weight": random(o, 2),
        "b2.weight": random(2, i),
    }
    return {
        "LoRA": {QUERY: lora(linear), TEXT: lora(tuple(weight_of(model, TEXT).shape), seed=5)},
        "LoCon": {QUERY: lora(linear, seed=7), CONV: lora(conv)},
        "LoCon, Tucker": {CONV: tucker},
        "DoRA": {QUERY: lora(linear) | {"dora_scale": random(o, 1).abs()}},
        "LoHa": {QUERY: factors(i), CONV: factors(flat, 2)},
        "LoKr": {
            QUERY: {"lokr_w1": random(4, 4), "lokr_w2": random(o // 4, i // 4)},
            CONV: {"lokr_w1": random(4, 2), "lokr_w2": random(conv[0] // 4, conv[1] // 2, 3, 3)},
        },
        "GLoRA": {QUERY: glora},
        "(IA)^3": {
            QUERY: {"weight": random(o), "on_input": torch.tensor(0)},
            CONV: {"weight": random(conv[1]), "on_input": torch.tensor(1)},
        },
        "OFT": {QUERY: {"oft_blocks": random(8, 8, 8)}},
        "BOFT": {QUERY: {"oft_blocks": random(2, 8, 8, 8)}},
        "full difference": {CONV: {"diff": random(*conv), "diff_b": random(conv[0])}},
        "norm layers": {NORM: {"w_norm": random(*norm), "b_norm": random(*norm, seed=1)}},
    }


def touched(model: Model) -> list[Tensor]:
    """Every parameter that any of `kinds` changes."""
    named = ((QUERY, "weight"), (CONV, "weight"), (CONV, "bias"), (NORM, "weight"), (NORM, "bias"), (TEXT, "weight"))
    return [weight_of(model, layer, parameter) for layer, parameter in named]


def test_every_pair_of_kinds_is_taken_off_without_a_trace(model: Model, tmp_path: Path) -> None:
    """A on, B on, B off, A off, A on again: the same bits each time, and the base's own never change."""
    before = [tensor.clone() for tensor in touched(model)]
    adapters = {
        name: read(write(tmp_path / f"{number}.safetensors", keyed(layers)), TINY)
        for number, (name, layers) in enumerate(kinds(model).items())
    }
    assert all(adapter.matched == adapter.layers and not adapter.notes for adapter in adapters.values())

    def same(one: Model, tensors: list[Tensor]) -> bool:
        return all(map(torch.equal, touched(one), tensors))

    alone = {name: apply(model, [Use(adapter)]) for name, adapter in adapters.items()}
    bits = {name: [tensor.clone() for tensor in touched(one)] for name, one in alone.items()}
    for first, one_use in adapters.items():
        for other_use in adapters.values():
            over = apply(alone[first], [Use(other_use)])
            assert not same(over, bits[first])
            assert same(alone[first], bits[first])
            # in float32 nothing is rounded between
            assert same(apply(model, [Use(one_use), Use(other_use)]), touched(over))
    for name, adapter in adapters.items():
        assert not same(model, bits[name])
        assert same(apply(model, [Use(adapter)]), bits[name])
    assert same(model, before)


class Watched(TorchDispatchMode):
    """Notes every operation with the shapes, strides and types of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        self.seen.append((str(func), [(each.shape, each.stride(), each.dtype) for each in given]))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_has_the_same_graph_types_and_strides(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model(torch.device("cpu"), dtype)
    base.denoiser.to(memory_format=torch.channels_last)
    uses = [
        Use(read(write(tmp_path / f"{number}.safetensors", keyed(layers)), TINY))
        for number, layers in enumerate(kinds(base).values())
    ]
    merged = apply(base, uses)
    assert [type(module) for module in merged.denoiser.modules()] == [
        type(module) for module in base.denoiser.modules()
    ]
    traces = []
    for net in (base.denoiser, merged.denoiser):
        described = [(name, p.shape, p.stride(), p.dtype, p.requires_grad) for name, p in net.named_parameters()]
        with Watched() as watched:
            net(random(1, 4, 8, 8).to(dtype), torch.tensor([10.0]), random(1, 77, 64).to(dtype))
        traces.append((described, watched.seen))
    assert len(traces[0][1]) > 100
    assert traces[0] == traces[1]


def test_text_encoder_and_unet_have_their_own_strength(model: Model, tmp_path: Path) -> None:
    path = both(tmp_path, model)
    words: list[str] = []
    text = apply(model, [Use(read(path, TINY), 1.0, 0.0)], words.append)
    assert text.denoiser is model.denoiser
    assert not torch.equal(weight_of(text, TEXT), weight_of(model, TEXT))
    assert words[0].startswith("0: 3 of 3 layers, rank 4, effect ")
    assert words[0].endswith("% of the weights' norm")


def test_the_effect_is_that_of_the_weights(model: Model, tmp_path: Path) -> None:
    diff = weight_of(model, QUERY) * 0.01
    words: list[str] = []
    path = write(tmp_path / "a.safetensors", keyed({QUERY: {"diff": diff}}))
    apply(model, [Use(read(path, TINY))], words.append)
    assert words == ["a: 1 of 1 layers, effect 1% of the weights' norm"]


@pytest.mark.parametrize("layer", [QUERY, CONV, PIXEL])
def test_a_products_norm_is_known_without_making_it(layer: str, model: Model, tmp_path: Path) -> None:
    weight = weight_of(model, layer)
    path = write(tmp_path / "a.safetensors", keyed({layer: lora(tuple(weight.shape)) | {"alpha": torch.tensor(3.0)}}))
    (patch,) = read(path, TINY).patches
    assert patch.norm is not None
    torch.testing.assert_close(patch.norm(), (patch.change(weight, 1.0) - weight).norm(), rtol=1e-3, atol=0)


def test_several_are_reckoned_in_order_and_rounded_once(tmp_path: Path) -> None:
    model = tiny_model(torch.device("cpu"), torch.bfloat16)
    uses = [Use(read(both(tmp_path, model, seed), TINY), 0.5, 0.3) for seed in (1, 2, 3)]
    other = apply(model, uses)
    wanted = weight_of(model, QUERY).float()
    for use in uses:
        patch = next(patch for patch in use.adapter.patches if patch.layer == f"{QUERY}.weight")
        wanted = patch.change(wanted, 0.3)
    assert torch.equal(weight_of(other, QUERY), wanted.bfloat16())
    assert weight_of(other, QUERY).stride() == weight_of(model, QUERY).stride()


def test_block_weights(model: Model, tmp_path: Path) -> None:
    adapter = read(both(tmp_path, model), TINY)
    blocks = dict.fromkeys(BLOCKS[26], 0.0) | {"IN04": 0.5}
    other = apply(model, [Use(adapter, blocks=blocks)])
    plain = apply(model, [Use(adapter, 1.0, 0.5)])
    assert torch.equal(weight_of(other, CONV), weight_of(plain, CONV))  # IN04 too
    assert torch.equal(weight_of(other, TEXT), weight_of(model, TEXT))  # BASE
    assert block_weights("outall") == block_weights(PRESETS["OUTALL"])
    assert block_weights("1," + ",".join(map(str, range(11))))["OUT05"] == 10
    for text in ("0.5", "1,2,3", "ALLL", ",".join(["x"] * 12), ",".join(["nan"] * 12)):
        with pytest.raises(DanqingError, match="block weights"):
            block_weights(text)


def test_what_changes_nothing_is_said(model: Model, tmp_path: Path) -> None:
    words: list[str] = []
    path = both(tmp_path, model)
    same = apply(model, [Use(read(path, TINY), 0, 0)], words.append)
    assert same.denoiser is model.denoiser
    parts = lora(tuple(weight_of(model, QUERY).shape))
    parts["lora_up.weight"].zero_()
    apply(model, [Use(read(write(tmp_path / "zero.safetensors", keyed({QUERY: parts})), TINY))], words.append)
    assert words == [
        "0: 3 of 3 layers, rank 4, changes nothing: its strength is 0",
        "zero: 1 of 1 layers, rank 4, changes nothing: its weights are zero",
    ]


def test_numbers_that_are_not_finite_are_refused(model: Model, tmp_path: Path) -> None:
    parts = lora(tuple(weight_of(model, QUERY).shape))
    parts["lora_up.weight"][0, 0] = float("nan")
    adapter = read(write(tmp_path / "nan.safetensors", keyed({QUERY: parts})), TINY)
    with pytest.raises(DanqingError, match=r"nan\.safetensors: holds numbers that are not finite"):
        apply(model, [Use(adapter)])


def test_an_adapter_of_another_family_is_refused(model: Model, tmp_path: Path) -> None:
    adapter = read(both(tmp_path, model), TINY)
    other = replace(model, family=replace(TINY, name="other"))
    with pytest.raises(DanqingError, match="family 'tiny', not 'other'"):
        apply(other, [Use(adapter)])


# --- files ------------------------------------------------------------------------------------------------------------


def test_peft_folders_say_their_alpha(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, QUERY)
    parts = lora(tuple(base.shape), rank=4)
    tensors = {
        f"base_model.model.{QUERY}.lora_A.weight": parts["lora_down.weight"],
        f"base_model.model.{QUERY}.lora_B.weight": parts["lora_up.weight"],
    }
    delta = parts["lora_up.weight"] @ parts["lora_down.weight"]
    write(tmp_path / "adapter_model.safetensors", tensors)
    settings = tmp_path / "adapter_config.json"
    for config, scale in (
        ({"r": 4, "lora_alpha": 8}, 2),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 1}}, 0.25),
        ({"r": 9, "lora_alpha": 8, "rank_pattern": {"to_q": 4}}, 2),
    ):
        settings.write_text(json.dumps(config))
        assert close(weight_of(applied(model, tmp_path), QUERY), base + scale * delta)
    assert read(tmp_path, TINY).name == tmp_path.name
    settings.write_text("[")
    with pytest.raises(DanqingError, match=r"adapter_config\.json: cannot be read"):
        read(tmp_path, TINY)


def test_diffusers_metadata_say_the_alpha(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, QUERY)
    parts = lora(tuple(base.shape), rank=4)
    tensors = {
        f"unet.{QUERY}.lora_A.weight": parts["lora_down.weight"],
        f"unet.{QUERY}.lora_B.weight": parts["lora_up.weight"],
    }
    told = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 9})}
    path = write(tmp_path / "a.safetensors", tensors, told)
    delta = parts["lora_up.weight"] @ parts["lora_down.weight"]
    assert close(weight_of(applied(model, path), QUERY), base + 0.5 * delta)


def test_mixed_precisions_are_one(model: Model, tmp_path: Path) -> None:
    base = weight_of(model, QUERY)
    parts = lora(tuple(base.shape))
    parts["lora_up.weight"] = parts["lora_up.weight"].half()
    parts["lora_down.weight"] = parts["lora_down.weight"].to(torch.float8_e4m3fn)
    parts["alpha"] = torch.tensor(4.0).bfloat16()
    wanted = base + parts["lora_up.weight"].float() @ parts["lora_down.weight"].float()
    assert close(one(model, tmp_path, QUERY, parts), wanted)


def refused(tmp_path: Path, tensors: dict[str, Tensor], words: str, metadata: dict[str, str] | None = None) -> None:
    path = write(tmp_path / "bad.safetensors", tensors, metadata)
    with pytest.raises(DanqingError, match=words) as error:
        read(path, TINY)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_says_why(model: Model, tmp_path: Path) -> None:
    shape = tuple(weight_of(model, QUERY).shape)
    good = keyed({QUERY: lora(shape)})
    other = keyed({QUERY: lora((320, 320))})
    wide = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": random(4, 2048)}
    refused(tmp_path, {"a.weight": random(3)}, "none of its 1 keys is a layer's")
    refused(tmp_path, other, r"1 layers have other shapes \(down_blocks\.1.*\[320, 320\] for \[64, 64\]")
    refused(tmp_path, other, "made for Stable Diffusion XL", {"ss_base_model_version": "sdxl_base_v1-0"})
    refused(tmp_path, good | wide | other, "made for Stable Diffusion XL")
    refused(tmp_path, {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": random(4, 4)}, "for Flux")
    refused(tmp_path, keyed({QUERY: {"lora_down.weight": random(4, 64)}}), "in no way that Danqing knows")
    refused(tmp_path, keyed({QUERY: lora(shape, rank=0)}), "rank 0")
    refused(tmp_path, good | {f"unet.{QUERY}.lora_A.weight": random(4, 64)}, "stands twice")
    refused(tmp_path, good | {f"{kohya(QUERY)}.lora_A.weight": random(4, 64)}, "stands twice")
    refused(tmp_path, good | {f"{kohya(QUERY)}.alpha": random(3)}, "alpha of layer .* is not one number but 3")
    refused(tmp_path, good | {f"{kohya(QUERY)}.alpha": torch.tensor(float("inf"))}, "alpha of layer .* is inf")


def test_a_file_that_is_cut_short(model: Model, tmp_path: Path) -> None:
    path = both(tmp_path, model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DanqingError, match="cut short"):
        read(path, TINY)


def test_what_is_left_aside_is_said(model: Model, tmp_path: Path) -> None:
    tensors = keyed({QUERY: lora(tuple(weight_of(model, QUERY).shape))})
    tensors |= {f"{kohya(QUERY)}.diff_b": random(64), "lora_unet_nowhere.lora_down.weight": random(4, 4)}
    tensors |= {"bundle_emb.word.string_to_param.*": random(2, 64)}
    adapter = read(write(tmp_path / "a.safetensors", tensors, {"ss_output_name": "style"}), TINY)
    assert isinstance(adapter, Adapter)
    assert (adapter.matched, adapter.layers, adapter.kind, adapter.alias) == (1, 2, "LoRA", "style")
    assert adapter.notes == (
        "carries an embedding, which prompts call word",
        "1 layers are not of tiny random weights and are left out: lora_unet_nowhere",
        f"1 tensors have no use and are left out: {QUERY}.diff_b",
    )


def test_a_layer_by_diffusers_name_and_another(model: Model, tmp_path: Path) -> None:
    parts = lora(tuple(weight_of(model, QUERY).shape))
    other = {part: tensor * 5 for part, tensor in parts.items()}
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    for order in (1, -1):
        tensors = list((keyed({QUERY: parts}) | {f"{name}.{part}": t for part, t in other.items()}).items())
        adapter = read(write(tmp_path / "a.safetensors", dict(tensors[::order])), TINY)
        weight = torch.zeros(64, 64)
        wanted = parts["lora_up.weight"] @ parts["lora_down.weight"]
        assert torch.allclose(adapter.patches[0].change(weight, 1.0), wanted, atol=1e-6)
        assert adapter.notes == ("1 layers stand twice, by diffusers' names and by others: the former count",)
