"""Image prompts, reference-only, PhotoMaker and InstantID against formulas written out here."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from danqing.adapters.control import Unit
from danqing.adapters.identity import (
    Identity,
    draw_keypoints,
    identity,
    require_trigger,
    with_identity,
    without_trigger,
)
from danqing.adapters.image_prompt import PicturePrompt, layers_of, picture_prompt
from danqing.adapters.reference import ReferencePicture, looking
from danqing.adapters.steer import parts_of, steered, steering_sources
from danqing.errors import DanqingError
from danqing.families import SD1, SDXL, At, Model
from danqing.models.clip_vision import prepare
from danqing.models.conditioning import Conditioning
from danqing.models.controlnet import from_unet
from danqing.models.ip_adapter import IPAdapter
from danqing.models.patches import Patches
from danqing.models.unet import cross_attentions
from danqing.models.weights import Blend
from danqing.prompts.encode import conditionings
from danqing.prompts.grammar import understand
from danqing.sampling.predict import predictor, together
from ip_adapter_files import config_of, ip_adapter, photomaker, tower
from tiny_model import tiny_model

AT = At(2.0, 3.0)
STEPS = 10


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def network(model: Model, kind: str) -> IPAdapter:
    unet = model.family.denoiser
    made = IPAdapter(config_of(kind, unet.context_width), cross_attentions(unet))
    made.load_state_dict(ip_adapter(kind, unet))
    return made.requires_grad_(False)


def noisy(seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> Conditioning:
    return Conditioning(context=torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(seed)))


def faces(count: int) -> Tensor:
    return torch.randn(count, 512, generator=torch.Generator().manual_seed(9))


def answers(model: Model, units: list[Any], at: At = AT, latents: Tensor | None = None) -> list[Tensor]:
    """(positive, negative) predictions."""
    sides = steered((text(1),), (text(2),), units, (8, 8), 8, lambda pixels: model.autoencoder.encode(pixels).mode())
    predict = predictor(model, patches=together(steering_sources(units, model, STEPS, "danqing", print)))
    return predict(noisy(0) if latents is None else latents, at, [sides[0][0], sides[1][0]])


def scaled(model: Model) -> tuple[Tensor, Tensor, Tensor]:
    """What the U-Net is given at AT: (latents, step); and what is made of its answer."""
    _, _, c_in = model.process.scalings(AT.sigma)
    return noisy(0) * c_in, torch.tensor([model.process.timestep(AT.sigma)]), noisy(0)


def clean(model: Model, output: Tensor) -> Tensor:
    c_skip, c_out, _ = model.process.scalings(AT.sigma)
    return c_skip * noisy(0) + c_out * output


# --- where the weight counts ------------------------------------------------------------------------------------------


def places(kind: Any, family: Any) -> list[float]:
    """By transformer, as the flow passes them."""
    weights = layers_of(kind, family.denoiser)[0]
    firsts = [name for name in layers_of("linear", family.denoiser)[0] if ".transformer_blocks.0." in name]
    return [weights.get(name, 0.0) for name in firsts]


def test_weight_types_of_sd1() -> None:
    assert places("linear", SD1) == [1.0] * 16
    assert places("style transfer", SD1) == [1.0] * 4 + [0.0] * 5 + [1.0] * 7
    assert places("composition", SD1) == [0.0] * 4 + [0.25, 1.0] + [0.0] * 10
    assert places("strong style transfer", SD1) == [1.0] * 4 + [0.0] * 2 + [1.0] * 10
    assert places("ease in", SD1)[8] == pytest.approx(0.05 + 0.95 * 0.5)
    assert places("ease out", SD1)[0] == pytest.approx(0.05)
    assert places("ease in-out", SD1)[8] == pytest.approx(1.0)
    assert places("reverse in-out", SD1)[12] == pytest.approx(0.05 + 0.95 * 0.5)
    assert places("weak middle", SD1) == [1.0] * 6 + [0.2] + [1.0] * 9
    assert places("strong middle", SD1) == [0.2] * 6 + [1.0] + [0.2] * 9
    assert places("weak input", SD1) == [0.2] * 6 + [1.0] * 10


def test_weight_types_of_sdxl() -> None:
    """InstantStyle's blocks: down_blocks.2.attentions.1 is the composition, up_blocks.0.attentions.1 the style."""
    style, composition = (layers_of(kind, SDXL.denoiser)[0] for kind in ("style transfer", "composition"))
    assert {name.split(".transformer")[0] for name in style} == {"up_blocks.0.attentions.1"}
    assert {name.split(".transformer")[0] for name in composition} == {"down_blocks.2.attentions.1"}
    assert len(style) == len(composition) == 10
    assert places("style and composition", SDXL) == [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_precise_weight_types_turn_some_layers() -> None:
    config = SDXL.denoiser
    assert places("style transfer precise", SDXL) == [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert {name.split(".transformer")[0] for name in layers_of("style transfer precise", config)[1]} == {
        "down_blocks.2.attentions.1"
    }
    assert places("composition precise", SDXL) == [0.1, 0.1, 0.1, 1, 0.1, 0.1, 1, 0.1, 0.1, 0.1, 0.1]
    assert not any(
        name.startswith("down_blocks.2.attentions.1") for name in layers_of("composition precise", config)[1]
    )
    assert len(layers_of("composition precise", config)[1]) == 60
    assert len(layers_of("composition precise", SD1.denoiser)[1]) == 14
    assert places("composition precise", SD1) == [1] * 4 + [0.25, 1] + [0.1] * 3 + [1] * 7
    assert layers_of("style transfer", config)[1] == frozenset()


@torch.no_grad()
def test_a_turned_layer_shows_the_picture_to_the_other_side(tiny: Model) -> None:
    """The tiny U-Net has SDXL's number of transformers."""
    prompt = picture_prompt(
        network(tiny, "face"), tiny.family.denoiser, faces=faces(1), kind="style transfer precise", weight=0.9
    )
    names = layers_of("style transfer precise", tiny.family.denoiser)[1]
    here = {name: factor for name, factor in prompt.layers.items() if name not in names}
    there = {name: factor for name, factor in prompt.layers.items() if name in names}
    assert here
    assert there
    common = replace(prompt, turned=frozenset())
    before = picture_prompt(network(tiny, "face"), tiny.family.denoiser, faces=faces(1), weight=0.0)
    got = answers(tiny, [before, prompt])
    positive = answers(tiny, [replace(common, layers=here)])[0]
    assert torch.allclose(got[0], positive, atol=1e-5)
    apart = [replace(common, layers=here), replace(common, layers=there, negative=prompt.positive)]
    assert torch.allclose(got[1], answers(tiny, apart)[1], atol=1e-5)  # type: ignore[arg-type]
    assert (got[1] - answers(tiny, [replace(common, layers=here)])[1]).abs().max() > 1e-3


def test_a_unet_without_such_places_is_told(tiny: Model) -> None:
    without_middle = replace(tiny.family.denoiser, mid_depth=0)
    with pytest.raises(DanqingError, match="'style transfer' is known for U-Nets of SD"):
        layers_of("style transfer", without_middle)[0]


# --- picture prompts --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_prompt_is_added_to_each_cross_attention(tiny: Model) -> None:
    adapter = network(tiny, "face")
    prompt = picture_prompt(adapter, tiny.family.denoiser, faces=faces(1), weight=0.6, kind="weak output")
    got = answers(tiny, [prompt])
    for side, tokens, conditioning in zip(got, (prompt.positive, prompt.negative), (text(1), text(2))):

        def patch(name: str, tokens: Tensor = tokens) -> Any:
            layer = adapter.at(name)
            scale = 0.6 * (0.2 if name.startswith("up") else 1.0)

            def attend(
                plain: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, context: Tensor
            ) -> Tensor:
                heads = query.shape[1]
                own = (tokens @ layer.to_k_ip.weight.T, tokens @ layer.to_v_ip.weight.T)
                k, v = (t.view(1, -1, heads, query.shape[-1]).transpose(1, 2) for t in own)
                scores = torch.softmax(query @ k.transpose(-1, -2) / math.sqrt(query.shape[-1]), -1)
                return plain(query, key, value) + scale * (scores @ v)

            return attend

        changes = Patches(attention={name: patch(name) for name in cross_attentions(tiny.family.denoiser)})
        latents, told, _ = scaled(tiny)
        expected = clean(tiny, tiny.denoiser(latents, told, conditioning.context, patches=changes))
        assert torch.allclose(side, expected, atol=1e-5 * float(expected.abs().max()))


def test_when_and_where_it_acts(tiny: Model) -> None:
    adapter = network(tiny, "face")
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    base = picture_prompt(adapter, tiny.family.denoiser, faces=faces(1), start=0.3, end=0.5)
    free = answers(tiny, [])[0]
    for step, acts in ((2.0, False), (3.0, True), (5.0, True), (6.0, False)):
        assert torch.equal(answers(tiny, [base], At(2.0, step))[0], answers(tiny, [], At(2.0, step))[0]) is not acts
    assert torch.equal(answers(tiny, [replace(base, weight=0.0)])[0], free)
    nowhere, everywhere = (replace(base, mask=torch.full((1, 1, 64, 64), v)) for v in (0.0, 1.0))
    assert torch.allclose(answers(tiny, [nowhere])[0], free, atol=1e-5)
    assert torch.allclose(answers(tiny, [everywhere])[0], answers(tiny, [base])[0], atol=1e-5)
    right = answers(tiny, [replace(base, mask=mask)])[0] - free
    assert right.abs().max() > 1e-3
    whole = answers(tiny, [base])[0] - free
    assert not torch.allclose(right, whole, atol=1e-3)
    (cut,) = parts_of([replace(base, mask=mask)], (64, 64), (32, 0, 64, 64))
    assert torch.equal(cut.mask, torch.ones(1, 1, 64, 32))  # type: ignore[union-attr]


def test_several_pictures(tiny: Model) -> None:
    adapter, see = network(tiny, "plain"), tower()
    pixels = [torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    config = tiny.family.denoiser
    alone = [picture_prompt(adapter, config, tower=see, pixels=[each]) for each in pixels]
    both = picture_prompt(adapter, config, tower=see, pixels=pixels)
    assert torch.equal(both.positive, torch.cat([each.positive for each in alone], 1))
    mean = picture_prompt(adapter, config, tower=see, pixels=pixels, combine="average")
    vectors = torch.cat([see(prepare(each, 32)).projected for each in pixels])
    assert torch.allclose(mean.positive, adapter.tokens(vectors.mean(0, keepdim=True)), atol=1e-6)
    assert torch.equal(mean.negative, adapter.tokens(torch.zeros(1, 48)))
    for combine, one in (
        ("add", vectors.sum(0, keepdim=True)),
        ("subtract", vectors[:1] - vectors[1:]),
        ("norm average", (vectors / vectors.pow(2).sum(0).sqrt()).mean(0, keepdim=True)),
    ):
        made = picture_prompt(adapter, config, tower=see, pixels=pixels, combine=combine)  # type: ignore[arg-type]
        assert torch.allclose(made.positive, adapter.tokens(one), atol=1e-5)
    two = answers(tiny, alone)  # type: ignore[arg-type]
    assert (two[0] - answers(tiny, [alone[0]])[0]).abs().max() > 1e-3


def test_patches_of_no_picture_are_those_of_zeros(tiny: Model) -> None:
    see = tower()
    prompt = picture_prompt(network(tiny, "plus"), tiny.family.denoiser, tower=see, pixels=[torch.rand(1, 3, 32, 32)])
    nothing = see(torch.zeros(1, 3, 32, 32)).hidden[-2]
    assert torch.equal(prompt.negative, prompt.network.tokens(nothing))


def test_what_is_missing_is_said(tiny: Model) -> None:
    config = tiny.family.denoiser
    with pytest.raises(DanqingError, match="reads faces' vectors of 512 numbers, and none are given"):
        picture_prompt(network(tiny, "face"), config)
    with pytest.raises(DanqingError, match="through CLIP's image tower"):
        picture_prompt(network(tiny, "plain"), config)
    with pytest.raises(DanqingError, match="2 faces for 1 pictures"):
        picture_prompt(
            network(tiny, "face plus"), config, tower=tower(), pixels=[torch.rand(1, 3, 32, 32)], faces=faces(2)
        )
    with pytest.raises(DanqingError, match="not after the end"):
        picture_prompt(network(tiny, "face"), config, faces=faces(1), start=0.5, end=0.4)


def test_a_picture_does_not_depend_on_its_batch(tiny: Model) -> None:
    prompt = picture_prompt(network(tiny, "face"), tiny.family.denoiser, faces=faces(1))
    reference = ReferencePicture(torch.rand(1, 3, 64, 64), fidelity=0.3)
    units: list[Any] = [prompt, reference]
    both = answers(tiny, units, latents=noisy(4, 2))
    assert torch.equal(both[0][:1], answers(tiny, units, latents=noisy(4, 2)[:1])[0])


# --- reference-only ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fidelity", [0.0, 0.4])
def test_reference_only(tiny: Model, fidelity: float) -> None:
    picture = ReferencePicture(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)), fidelity=fidelity)
    got = answers(tiny, [picture])
    latents, told, _ = scaled(tiny)
    encoded = tiny.autoencoder.encode(picture.pixels * 2 - 1).mode()
    noise = torch.randn(encoded.shape[1:], generator=torch.Generator().manual_seed(round(2 * AT.step)))
    shown = (encoded + AT.sigma * noise) * tiny.process.scalings(AT.sigma)[2]
    names = [name.replace("attn2", "attn1") for name in cross_attentions(tiny.family.denoiser)]
    for side, conditioning, own in zip(got, (text(1), text(2)), (0.0, fidelity)):
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Any:
            def attend(plain: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
                seen[name] = hidden
                return plain(q, k, v)

            return attend

        def look(name: str, seen: dict[str, Tensor] = seen, own: float = own) -> Any:
            layer = tiny.denoiser.get_submodule(name)

            def attend(plain: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
                both = torch.cat([hidden, seen[name]], 1)
                heads = [
                    (both @ p.weight.T).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
                    for p in (layer.to_k, layer.to_v)
                ]
                return own * plain(q, k, v) + (1 - own) * F.scaled_dot_product_attention(q, *heads)

            return attend

        for patch, given in ((keep, shown), (look, latents)):
            changes = Patches(attention={name: patch(name) for name in names})
            output = tiny.denoiser(given, told, conditioning.context, patches=changes)
        expected = clean(tiny, output)
        assert torch.allclose(side, expected, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_networks_that_answer_together_each_look_at_their_own(tiny: Model) -> None:
    """One U-Net twice is the U-Net; and a blend is its networks' mean, whatever they look at."""
    other = tiny_model(torch.device("cpu"), torch.float32).denoiser
    for parameter in other.parameters():
        parameter *= 1.1
    halves = torch.full((2, 1, 1), 0.5)
    picture = ReferencePicture(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)), fidelity=0.3)
    alone = [answers(replace(tiny, denoiser=each), [picture])[0] for each in (tiny.denoiser, other)]
    both = answers(replace(tiny, denoiser=Blend([tiny.denoiser, other], halves)), [picture])[0]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5 * float(both.abs().max()))


@torch.no_grad()
def test_what_the_model_changes_in_every_call_is_in_the_references(tiny: Model) -> None:
    def doubled(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys * 2, values * 2

    names = [name.replace("attn2", "attn1") for name in cross_attentions(tiny.family.denoiser)]
    twice = copy.deepcopy(tiny.denoiser)
    for name in names:
        for part in ("to_k", "to_v"):
            twice.get_parameter(f"{name}.{part}.weight").mul_(2)
    picture = ReferencePicture(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    changed = answers(replace(tiny, patches=Patches(contexts=dict.fromkeys(names, doubled))), [picture])[0]
    expected = answers(replace(tiny, denoiser=twice), [picture])[0]
    assert torch.allclose(changed, expected, atol=1e-5 * float(expected.abs().max()))


def test_what_is_shown_is_moved_to_the_models_device_once(tiny: Model) -> None:
    prompt = replace(picture_prompt(network(tiny, "face"), tiny.family.denoiser, faces=faces(1)), mask=torch.ones(1, 1, 64, 64))  # fmt: skip
    unit = Unit(from_unet(tiny.denoiser), (torch.rand(1, 3, 64, 64),))  # type: ignore[arg-type]
    reference = ReferencePicture(torch.rand(1, 3, 64, 64))
    units: list[Any] = [prompt, unit, reference]
    for (side,) in steered((text(1),), (text(2),), units, (8, 8), 8, lambda pixels: pixels[:, :, ::8, ::8], "meta"):
        assert len(side.controls) == 3
        assert all(a is b for a, b in zip(side.controls, side.to("meta").controls))


def test_a_references_weight_is_a_share_of_the_attentions(tiny: Model) -> None:
    every = looking(SD1.denoiser, 1.0)
    assert len(every) == 16
    assert every[0].startswith("down_blocks.2")  # the widest, in the order of the flow
    assert len(looking(SD1.denoiser, 0.5)) == 8
    assert looking(SD1.denoiser, 0.0) == ()
    picture = ReferencePicture(torch.rand(1, 3, 64, 64), weight=0.0)
    assert torch.allclose(answers(tiny, [picture])[0], answers(tiny, [])[0], atol=1e-5)


# --- PhotoMaker -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_photographs_are_merged_into_the_words_vector(tiny: Model, version: int) -> None:
    maker = photomaker(64, version == 2)
    pixels = [torch.rand(1, 3, 50, 40, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    given = torch.randn(2, 512) if version == 2 else None
    who = identity(maker, pixels, given, start=0.25)
    seen = maker(torch.cat([prepare(each, 32) for each in pixels]))
    if version == 1:
        both = torch.cat([seen.projected, seen.pooled @ maker.visual_projection_2.weight.T], -1)
    else:
        reader = maker.qformer_perceiver
        read = reader.token_norm(reader.token_proj(given).view(2, 2, 64))
        both = (read + reader.perceiver_resampler(seen.hidden[-1], read)).flatten(0, 1)
    assert torch.allclose(who.photographs, both, atol=1e-5)
    count = len(both)

    prompt = understand("a man, a (man img:1.2) in snow", 8)
    branches = with_identity(
        who,
        prompt,
        tiny,
        lambda each: conditionings(tiny, each),
        held=(2, math.inf),
        dialect="danqing",
        emphasis="original",
    )
    plain = conditionings(tiny, understand("a man, a (man:1.2) in snow", 8))[0]
    assert [branch.steps for branch in branches] == [(-math.inf, 2), (2, math.inf)]
    assert torch.equal(branches[0].context, plain.context)
    repeated = conditionings(tiny, understand(f"a man, a ({'man ' * count}:1.2) in snow", 8))[0].context
    expected = repeated.clone()
    for number in range(count):  # start, "a man , a", then the word's repetitions
        word, face = repeated[0, 5 + number], both[number]
        fuse = maker.fuse_module
        mixed = torch.cat([word, face])[None]
        for mlp, rest in ((fuse.mlp1, word), (fuse.mlp2, None)):
            hidden = F.gelu(mlp.fc1(F.layer_norm(mixed, mixed.shape[-1:], mlp.layernorm.weight, mlp.layernorm.bias)))
            mixed = mlp.fc2(hidden) + (mixed if rest is None else rest)
        expected[0, 5 + number] = fuse.layer_norm(mixed)[0]
    assert torch.allclose(branches[1].context, expected, atol=1e-5)


def test_a_photomakers_prompt_needs_its_word(tiny: Model) -> None:
    who = Identity(photomaker(64, False), torch.zeros(1, 64))

    def read(prompt: str) -> Any:
        return with_identity(
            who, understand(prompt, 4), tiny, lambda each: conditionings(tiny, each),
            held=(-math.inf, math.inf), dialect="danqing", emphasis="original",
        )  # fmt: skip

    with pytest.raises(DanqingError, match="trigger word 'img' behind a noun"):
        require_trigger("a man in snow")
    require_trigger("a [man  IMG:dog:0.5] in snow")
    plain = conditionings(tiny, understand("a man in snow", 4))[0]
    assert torch.equal(read("a man in snow")[0].context, plain.context)
    assert without_trigger("a (man img:1.2) in snow") == "a (man:1.2) in snow"
    with pytest.raises(DanqingError, match="twice"):
        read("a man img and a woman img")
    assert len(read("a man img AND snow")) == 2
    with pytest.raises(DanqingError, match="no photograph"):
        identity(who.network, [])
    with pytest.raises(DanqingError, match="512 numbers to each of 1 photographs, and none are given"):
        identity(photomaker(64, True), [torch.rand(1, 3, 32, 32)])


# --- InstantID --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_instantids_network_is_told_the_face_instead_of_the_text(tiny: Model) -> None:
    prompt = picture_prompt(network(tiny, "instant"), tiny.family.denoiser, faces=faces(1))
    other = picture_prompt(network(tiny, "face"), tiny.family.denoiser, faces=faces(1), weight=0.0)
    torch.manual_seed(0)
    net = from_unet(tiny.denoiser).requires_grad_(False)  # type: ignore[arg-type]
    for parameter in net.parameters():
        parameter += 0.08 * torch.randn(parameter.shape)
    hint = torch.rand(1, 3, 64, 64)
    unit = Unit(net, (hint,), weight=0.7, listens=prompt)
    got = answers(tiny, [other, prompt, unit])
    latents, told, _ = scaled(tiny)
    for side, tokens, conditioning in zip(got, (prompt.positive, prompt.negative), (text(1), text(2))):
        added = {name: 0.7 * x for name, x in net(latents, told, tokens, [net.hint(hint)]).items()}
        middle = {"mid_block": added.pop("mid_block")}
        sides = replace(conditioning, image_tokens=tokens)
        prompted = steered((sides,), (), [replace(prompt, positive=tokens)], (8, 8), 8, lambda pixels: pixels)[0][0]
        source = together(steering_sources([prompt], tiny, STEPS, "danqing", print))
        assert source is not None
        patches = source(latents, told, AT, prompted)
        assert patches is not None
        changes = Patches(residuals=middle, skips=added, attention=patches.attention)
        expected = clean(tiny, tiny.denoiser(latents, told, conditioning.context, patches=changes))
        assert torch.allclose(side, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_network_still_hears_the_face_where_the_picture_is_cut(tiny: Model) -> None:
    prompt = replace(picture_prompt(network(tiny, "instant"), tiny.family.denoiser, faces=faces(1)), mask=torch.ones(1, 1, 64, 64))  # fmt: skip
    unit = Unit(from_unet(tiny.denoiser), (torch.rand(1, 3, 64, 64),), listens=prompt)  # type: ignore[arg-type]
    cut = parts_of((unit, prompt), (64, 64), (0, 0, 32, 64))
    assert isinstance(cut[0], Unit)
    assert cut[0].listens is cut[1]
    sides = steered((text(1),), (), cut, (8, 8), 8, lambda pixels: pixels)
    assert sides[0][0].controls[-1].told == (0, 5)  # type: ignore[attr-defined]
    with pytest.raises(DanqingError, match="listens to a picture prompt"):
        steered((text(1),), (), [unit], (8, 8), 8, lambda pixels: pixels)


def test_a_face_is_drawn_by_its_points() -> None:
    points = [(40.0, 50.0), (90.0, 48.0), (64.0, 80.0), (48.0, 100.0), (82.0, 99.0)]
    drawn = draw_keypoints(points, (128, 160))
    assert drawn.size == (128, 160)
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    assert [drawn.getpixel((int(x), int(y))) for x, y in points] == colors
    assert drawn.getpixel((52, 65)) == (153, 0, 0)  # half way from the first eye to the nose
    assert drawn.getpixel((2, 2)) == (0, 0, 0)
    assert isinstance(drawn, Image.Image)
    with pytest.raises(ValueError, match="five points"):
        draw_keypoints(points[:4], (64, 64))
    for far in ((1e12, 5.0), (5.0, -1.0), (129.0, 5.0)):
        with pytest.raises(DanqingError, match=r"keypoints: .* outside of the picture of 128x160"):
            draw_keypoints([far, *points[1:]], (128, 160))


def test_settings_of_a_prompt_are_checked(tiny: Model) -> None:
    adapter = network(tiny, "face")
    with pytest.raises(DanqingError, match="is not a number"):
        PicturePrompt(adapter, torch.zeros(1, 4, 64), torch.zeros(1, 4, 64), {}, weight=math.nan)
    with pytest.raises(DanqingError, match="from 0 to 1"):
        ReferencePicture(torch.zeros(1, 3, 8, 8), fidelity=2.0)
    for weight in (-0.5, 1.5, math.nan):
        with pytest.raises(DanqingError, match=r"a reference's weight, .* from 0 to 1"):
            ReferencePicture(torch.zeros(1, 3, 8, 8), weight=weight)
