"""What acts inside the network, asked for by a request: it stacks, off is untouched, the record tells, mistakes are said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import danqing
from danqing.errors import DanqingError
from danqing.families import At, Model
from danqing.metadata.infotext import infotext, read_infotext
from danqing.models.controlnet import from_unet
from danqing.models.patches import Patches, stacked
from danqing.models.weights import Blend
from danqing.pipeline.patching import patch_sources
from danqing.pipeline.replay import replay
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import prepare
from danqing.request_parts import FreeU, HyperTile, PerturbedAttention, Reference, SelfAttention, TokenMerging
from danqing.requests import ImageToImage, Painting, ResolvedRequest, TextToImage, read
from lora_files import OUT, keyed, lora, write

QUICK: dict[str, Any] = {"steps": 2, "seed": 3, "width": 64, "height": 64, "cfg_scale": 3.0}
ON: dict[str, Any] = {
    "freeu": "1.3,1.4,0.5,0.2",
    "pag": "4",
    "sag": "2,1.5,0.9",
    "token_merging": "0.5,,4",
}
"""Settings that show in a picture of 64x64."""


def painted(model: Model, request: Any, **options: Any) -> danqing.Picture:
    (picture,) = danqing.paint(request, model, say=options.pop("say", lambda line: None), **options)
    return picture


def apart(a: danqing.Picture, b: danqing.Picture) -> int:
    difference = np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)
    return int(np.abs(difference).max())


@pytest.fixture
def folder(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ControlNet, a LoRA and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANQING_HOME", str(tmp_path / "home"))
    generator = torch.Generator().manual_seed(1)
    state = from_unet(tiny.denoiser).state_dict()  # type: ignore[arg-type]
    save_file(
        {k: t.detach() + 0.08 * torch.randn(t.shape, generator=generator) for k, t in state.items()},
        "edges.safetensors",
    )
    shape = tuple(tiny.denoiser.get_parameter(f"{OUT}.weight").shape)
    (tmp_path / "home" / "models" / "lora").mkdir(parents=True)
    write(tmp_path / "home" / "models" / "lora" / "ink.safetensors", keyed({OUT: lora(shape)}))
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 64))
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save("photo.png")
    return tmp_path


def test_all_at_once(tiny: Model, folder: Path) -> None:
    """Each has its part in one picture with a LoRA and a ControlNet; leaving any of them out changes it."""
    fields: dict[str, Any] = {**ON, "controls": "edges.safetensors,photo.png,canny,2", "prompt": "a cat <lora:ink:1>"}
    request = read(TextToImage, {**fields, **QUICK})
    whole = painted(tiny, request)
    assert apart(whole, painted(tiny, request)) == 0
    for name in (*ON, "controls"):
        assert (
            apart(
                whole, painted(tiny, read(TextToImage, {**fields, **QUICK, name: () if name == "controls" else None}))
            )
            > 0
        ), name
    assert apart(whole, painted(tiny, request, prompt="a cat")) > 0
    told = read_infotext(infotext(whole.record)).request
    for name in ON:
        assert getattr(told, name) == getattr(request, name)
    whole.save("out.png")
    assert replay("out.png", tiny, say=lambda line: None).identical


def test_with_a_reference_picture(tiny: Model, folder: Path) -> None:
    """It adds keys to the layers that PAG perturbs, that HyperTile cuts and in which tokens are merged."""
    fields: dict[str, Any] = {"prompt": "a cat", "hypertile": "128,1", **ON, **QUICK}
    plain = painted(tiny, read(TextToImage, fields))
    both = painted(tiny, read(TextToImage, {**fields, "image_prompts": "reference only,photo.png"}))
    assert apart(plain, both) > 0


def test_a_lora_of_few_steps_brings_its_settings(tiny: Model, folder: Path) -> None:
    loras = folder / "home" / "models" / "lora"
    (loras / "ink.safetensors").rename(loras / "lcm-lora-ink.safetensors")

    def resolved(prompt: str, **fields: Any) -> tuple[Painting, list[str]]:
        lines: list[str] = []
        size = {"seed": 3, "width": 64, "height": 64}
        return painted(tiny, TextToImage(prompt=prompt, **size, **fields), say=lines.append).record.request, lines

    filled, lines = resolved("a cat <lora:lcm-lora-ink>")
    assert (filled.sampler_name, filled.steps, filled.cfg_scale, filled.fast) == ("LCM", 4, 1, "lcm-lora")
    assert any(line.startswith("an LCM-LoRA, by its file's name: painted with LCM") for line in lines)
    own, lines = resolved("a cat <lora:lcm-lora-ink>", sampler_name="Euler a", steps=2, cfg_scale=7.0)
    assert (own.sampler_name, own.steps, own.cfg_scale) == ("Euler a", 2, 7)
    assert "cfg_scale: 7 ruins the pictures of an LCM-LoRA; it takes 1 to 2" in lines
    off, _ = resolved("a cat <lora:lcm-lora-ink>", fast="none", steps=1)
    assert (off.sampler_name, off.cfg_scale, off.fast) == ("DPM++ 2M", 7, "none")
    for weights, fast in (("0", None), ("0.00", None), ("1:0", None), ("0:1", "lcm-lora"), ("0:unet=1", "lcm-lora")):
        found, _ = resolved(f"a cat <lora:lcm-lora-ink:{weights}>", steps=1)
        assert found.fast == fast, weights
    chosen, _ = resolved("a cat", fast="tcd", steps=1)
    assert (chosen.sampler_name, chosen.eta, chosen.cfg_scale) == ("TCD", 0.3, 1)
    first, _ = resolved("a cat", fast="hyper-1step")
    assert first.sigma_max == pytest.approx(tiny.process.sigma_at(800))


def test_self_attention_at_scale_0_costs_nothing(tiny: Model) -> None:
    request = TextToImage(prompt="a cat", sag=SelfAttention(scale=0), **QUICK)
    run = prepare(resolve(request, tiny.family, Reference(name="m")), tiny, print)
    calls: list[int] = []
    counted = copy.deepcopy(tiny.denoiser)
    counted.register_forward_hook(lambda *told: calls.append(1))
    denoise = replace(run, model=replace(tiny, denoiser=counted)).denoiser(run.plans[0])
    denoise(torch.zeros(1, 4, 8, 8), At(float(run.sigmas[0]), 0))
    assert len(calls) == 1


OFF: dict[str, Any] = {
    "freeu": {"b1": 1, "b2": 1, "s1": 1, "s2": 1, "start": 0.5, "end": 0.5},
    "pag": {"scale": 0},
    "sag": {"scale": 0},
    "token_merging": {"ratio": 0},
    "hypertile": {"hires_only": True},
}


@pytest.mark.parametrize("name", OFF)
def test_off_is_untouched(name: str, tiny: Model) -> None:
    plain = painted(tiny, TextToImage(prompt="a cat", **QUICK))
    lines: list[str] = []
    off = painted(tiny, read(TextToImage, {"prompt": "a cat", **QUICK, name: OFF[name]}), say=lines.append)
    assert np.array_equal(np.asarray(plain.image), np.asarray(off.image))
    assert any(line.startswith(f"{name} has no effect") for line in lines)
    # and the model, which every one of them has painted with, is as it was
    painted(tiny, read(TextToImage, {"prompt": "a cat", **QUICK, name: ON.get(name, "yes")}))
    assert np.array_equal(
        np.asarray(plain.image), np.asarray(painted(tiny, TextToImage(prompt="a cat", **QUICK)).image)
    )


def test_a_picture_does_not_depend_on_its_batch(tiny: Model) -> None:
    request = read(TextToImage, {"prompt": "a cat", **ON, **QUICK})
    pair = danqing.paint(request.model_copy(update={"batch_size": 2}), tiny, say=lambda line: None)
    assert np.array_equal(np.asarray(pair[0].image), np.asarray(painted(tiny, request).image))


def test_half_precision(tiny_bf16: Model) -> None:
    plain = painted(tiny_bf16, TextToImage(prompt="a cat", **QUICK))
    whole = painted(tiny_bf16, read(TextToImage, {"prompt": "a cat", **ON, **QUICK}))
    assert apart(plain, whole) > 0
    assert np.asarray(whole.image).std() > 5


def test_what_is_inverted_is_guided_by_nothing(tiny: Model, folder: Path) -> None:
    request: dict[str, Any] = {"prompt": "a cat", "image": "photo.png", "inversion": True, "denoising_strength": 1.0}
    lines: list[list[str]] = []
    for more in ({}, {"sag": "2"}, {"pag": "3"}):
        said: list[str] = []
        painted(tiny, read(ImageToImage, {**request, **QUICK, **more}), say=said.append)
        lines.append([line for line in said if line.startswith("inversion: ")])
    assert len(lines[0]) == 1
    assert lines[1:] == lines[:1] * 2


def test_self_attention_with_networks_that_answer_together(tiny: Model) -> None:
    torch.manual_seed(0)
    other = copy.deepcopy(tiny.denoiser)
    for parameter in other.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    shares = torch.full((2, 1, 1), 0.5)
    request = TextToImage(prompt="a cat", sag=SelfAttention(scale=2.0, threshold=1.0), **QUICK)
    one, two = (
        painted(replace(tiny, denoiser=Blend(networks, shares)), request)
        for networks in ([tiny.denoiser, other], [other, tiny.denoiser])
    )
    assert apart(one, two) <= 1  # in whatever order they are asked


def test_self_attention_goes_by_the_call_that_it_guides(tiny: Model) -> None:
    request = TextToImage(prompt="a cat", sag=SelfAttention(scale=2.0), **QUICK)
    run = prepare(resolve(request, tiny.family, Reference(name="m")), tiny, print)
    denoise, at = run.denoiser(run.plans[0]), At(float(run.sigmas[0]), 0)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first = denoise(latents, at).clean
    denoise(latents + 1, at)
    assert torch.equal(denoise(latents, at).clean, first)


def test_hypertile_cuts_large_pictures_only(tiny: Model) -> None:
    lines: list[str] = []
    small = TextToImage(prompt="a cat", hypertile=HyperTile(), **QUICK)
    painted(tiny, small, say=lines.append)
    assert "hypertile has no effect: the picture fits into one tile" in lines
    # the tiny model's finest attention is one level below the latents: depth 0 there has tiles of 16 tokens
    large: dict[str, Any] = {**QUICK, "width": 512, "height": 256, "steps": 1, "cfg_scale": 1.0}
    plain = painted(tiny, TextToImage(prompt="a cat", **large))
    tiled = [painted(tiny, TextToImage(prompt="a cat", hypertile=HyperTile(tile_size=128), **large)) for _ in range(2)]
    assert apart(plain, tiled[0]) > 0
    assert apart(*tiled) == 0


def test_the_second_pass_has_its_own(tiny: Model) -> None:
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.9, **QUICK}
    plain = painted(tiny, TextToImage(prompt="a cat", **hires))
    merged = painted(
        tiny, TextToImage(prompt="a cat", token_merging=TokenMerging(ratio=0, hr_ratio=0.7, max_downsample=4), **hires)
    )
    assert apart(plain, merged) > 0
    neither = painted(tiny, TextToImage(prompt="a cat", token_merging=TokenMerging(ratio=0, max_downsample=4), **hires))
    assert apart(plain, neither) == 0


def test_freeu_holds_in_its_part_of_the_steps(tiny: Model) -> None:
    def steps(**fields: Any) -> list[torch.Tensor]:
        request = TextToImage(prompt="a cat", **{**QUICK, "steps": 4}, **fields)
        return [event.clean for event in danqing.stream(request, tiny, say=lambda line: None)]

    plain, late = steps(), steps(freeu=FreeU(start=0.5))
    assert torch.equal(plain[1], late[1])
    assert not torch.equal(plain[2], late[2])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"pag": "3,0,up_blocks.7"}, "pag: the U-Net has no self-attention layer called 'up_blocks.7'"),
        ({"freeu": "1,1,1,1,0.6,0.4"}, "freeu: start, 0.6, should not be above end, 0.4"),
        ({"freeu": "1,2,3,4,0,1,2,9"}, "up to 7 settings"),
        ({"freeu": "1,1,1,1,0,1,3"}, "freeu.version"),
        ({"token_merging": "0.95"}, "token_merging.ratio"),
        ({"sag": "yes", "tiled_diffusion": "yes"}, "sag: does not go with tiled_diffusion"),
        ({"fast": "lcm"}, "fast: lcm is for U-Nets with a guidance embedding, which this one lacks; choose lcm-lora"),
        ({"fast": "faster"}, "fast: "),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], line: str, tiny: Model) -> None:
    def act() -> None:
        painted(tiny, read(TextToImage, {"prompt": "a cat", **QUICK, **fields}))

    with pytest.raises(DanqingError, match=line.replace("(", r"\(")) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_networks_without_a_middle_or_fine_attention(tiny: Model) -> None:
    headless = replace(tiny, family=replace(tiny.family, denoiser=replace(tiny.family.denoiser, mid_depth=0)))
    with pytest.raises(DanqingError, match="sag: the U-Net has no attention in its middle"):
        painted(headless, TextToImage(prompt="a cat", sag=SelfAttention(), **QUICK))
    lines: list[str] = []
    painted(tiny, TextToImage(prompt="a cat", token_merging=TokenMerging(), **QUICK), say=lines.append)
    assert "token_merging has no effect: tiny random weights has attention from max_downsample 2 on" in lines


def test_hypertile_in_the_second_pass_alone(tiny: Model) -> None:
    hires: dict[str, Any] = {"enable_hr": True, "hr_resize_x": 512, "hr_resize_y": 256, "denoising_strength": 0.5}
    hires |= {**QUICK, "steps": 1, "width": 128, "cfg_scale": 1.0}
    plain, later = (
        list(danqing.stream(TextToImage(prompt="a cat", hypertile=tile, **hires), tiny, say=lambda line: None))
        for tile in (None, HyperTile(tile_size=128, hires_only=True))
    )
    assert torch.equal(plain[0].clean, later[0].clean)
    assert not torch.equal(plain[-1].clean, later[-1].clean)


def test_self_attention_does_not_go_with_pix2pix(tiny: Model) -> None:
    family = replace(tiny.family, denoiser=replace(tiny.family.denoiser, in_channels=8))
    with pytest.raises(DanqingError, match="sag: does not go with instruct-pix2pix"):
        patch_sources(TextToImage(sag=SelfAttention()), replace(tiny, family=family), 1)


def test_settings_in_words() -> None:
    request = read(TextToImage, {"pag": "2,0.1,mid+down_blocks.2", "freeu": "yes", "sag": "no", "hypertile": "128,1"})
    assert request.pag == PerturbedAttention(scale=2, adaptive_scale=0.1, layers=("mid", "down_blocks.2"))
    assert request.freeu == FreeU()
    assert request.sag is None
    assert request.hypertile == HyperTile(tile_size=128, swap_size=1)
    assert read(TextToImage, {"token_merging": "0.3,0.6,2"}).token_merging == TokenMerging(
        ratio=0.3, hr_ratio=0.6, max_downsample=2
    )


# --- infotext ---------------------------------------------------------------------------------------------------------

REQUESTS: list[Painting] = [
    TextToImage(
        freeu=FreeU(b1=1.1, s2=0.4, start=0.25, end=0.75, version=1),
        pag=PerturbedAttention(scale=2.5, adaptive_scale=0.01, layers=("mid", "up_blocks.1")),
        sag=SelfAttention(scale=0.5, blur_sigma=2.0, threshold=1.5),
        token_merging=TokenMerging(ratio=0.3, hr_ratio=0.6, max_downsample=4, sx=4, sy=1),
        hypertile=HyperTile(tile_size=128, swap_size=1, max_depth=2),
        fast="lightning",
        enable_hr=True,
    ),
    ImageToImage(
        image=Reference(name="a.png"), hypertile=HyperTile(hires_only=True), token_merging=TokenMerging(ratio=0.4)
    ),
    TextToImage(enable_hr=True, token_merging=TokenMerging(ratio=0, hr_ratio=0.5)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_infotext_and_back(request_: Painting) -> None:
    filled = request_.model_copy(update={"steps": 4, "sampler_name": "Euler", "scheduler": "Karras", "seed": 1})
    resolved = ResolvedRequest(request=filled, family="sd1", checkpoint=Reference(name="m"))
    told = read_infotext(infotext(resolved))
    for name in ("freeu", "pag", "sag", "token_merging", "hypertile", "fast"):
        assert getattr(told.request, name) == getattr(request_, name), name
    assert told.notes == ()


LINE = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, "


def test_infotext_of_other_tools() -> None:
    def told(pairs: str) -> tuple[Painting, tuple[str, ...]]:
        found = read_infotext(LINE + pairs)
        return found.request, found.notes

    forge, notes = told(
        "freeu_enabled: True, freeu_b1: 1.01, freeu_b2: 1.02, freeu_s1: 0.99, freeu_s2: 0.95, sag_enabled: True, "
        "sag_scale: 0.5, sag_blur_sigma: 2, sag_threshold: 1, PerturbedAttentionGuidance_enabled: True, "
        "PerturbedAttentionGuidance_scale: 3, Version: f2.0"
    )
    assert forge.freeu == FreeU(b1=1.01, b2=1.02, s1=0.99, s2=0.95, version=2)
    assert forge.sag == SelfAttention(scale=0.5, blur_sigma=2.0)
    assert forge.pag == PerturbedAttention(scale=3.0)
    assert notes == ()
    a1111, notes = told(
        "Token merging ratio: 0.4, Token merging ratio hr: 0.6, Hypertile U-Net: True, Hypertile U-Net max depth: 2, "
        'FreeU Stages: "[{\\"backbone_factor\\": 1.2, \\"skip_factor\\": 0.9}, {\\"backbone_factor\\": 1.4, '
        '\\"backbone_width\\": 0.7}]", FreeU Schedule: "0.0, 0.5, 0.2", Version: v1.10.1'
    )
    assert a1111.token_merging == TokenMerging(ratio=0.4, hr_ratio=0.6)
    assert a1111.hypertile == HyperTile(max_depth=2)
    assert a1111.freeu == FreeU(b1=1.2, b2=1.4, s1=0.9, s2=1.0, end=0.5, version=1)
    assert len(notes) == 2
    assert all("no counterpart" in note for note in notes)
    broken, notes = told('FreeU Stages: "[{", Hypertile U-Net second pass: True')
    assert broken.freeu is None
    assert broken.hypertile == HyperTile(hires_only=True)
    assert "FreeU is left out" in notes[0]


# --- how patches stack ------------------------------------------------------------------------------------------------


def test_stacking_order() -> None:
    order: list[str] = []

    def attention(name: str) -> Callable[..., torch.Tensor]:
        def patch(plain: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *told: Any) -> torch.Tensor:
            order.append(name)
            return plain(query, key, value) + 1  # type: ignore[no-any-return]

        return patch

    def block(name: str) -> Callable[..., Any]:
        def patch(run: Any, arguments: tuple[Any, ...]) -> Any:
            order.append(name)
            return run(*arguments)

        return patch

    one = torch.ones(1)
    first = Patches(
        residuals={"a": one}, skips={"a": one}, skip_scale={"u": lambda h, s: (h + 1, s)},
        attention={"x": attention("in")}, blocks={"b": block("in")},
    )  # fmt: skip
    second = Patches(
        residuals={"a": one}, skips={"c": one}, skip_scale={"u": lambda h, s: (h * 2, s)},
        attention={"x": attention("out")}, blocks={"b": block("out")},
    )  # fmt: skip
    both = stacked([first, None, second])
    assert both is not None
    assert both.residuals["a"] == 2
    assert both.skips == {"a": one, "c": one}
    assert both.skip_scale["u"](one, one)[0] == 4
    assert both.attention["x"](lambda q, k, v: v, one, one, one, one, one) == 3
    assert both.blocks["b"](lambda x: x, (5,)) == 5
    assert order == ["out", "in", "out", "in"]
    assert stacked([None, first]) is first
    assert stacked([None]) is None
