"""AUTOMATIC1111's infotext, held to its parser's rules (a key, a colon, a value that ends at a comma or is JSON)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from danqing.errors import DanqingError
from danqing.metadata.infotext import (
    ELSEWHERE,
    ENTRIES,
    MAX_LINE,
    OWN_ENTRIES,
    PAIR,
    infotext,
    parse,
    quote,
    read_infotext,
    unquote,
)
from danqing.metadata.read import read_record
from danqing.metadata.told import UNRECORDED
from danqing.request_parts import DynamicThresholding, Reference, Region, SDUpscale, SoftInpainting, TiledDiffusion
from danqing.requests import REQUESTS, ImageToImage, Inpaint, Kind, Outpaint, Painting, ResolvedRequest, TextToImage
from danqing.vocabulary import DIALECT_EMPHASIS, DIALECTS, EMPHASES, NOISE_SOURCES, SAMPLERS, SCHEDULERS

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The shape of a pair as INTEROP describes the tool's reader: a JSON string, or all up to the next comma."""
FILLED: dict[str, Any] = {
    "width": 512, "height": 768, "steps": 20, "cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
    "seed": 5, "noise_source": "cpu", "emphasis": "original", "clip_skip": 1,
}  # fmt: skip


def resolved(name: str = "anything-v3", sha256: str | None = None, **fields: Any) -> ResolvedRequest:
    request = TextToImage(**{**FILLED, "prompt": "a castle", **fields})
    return ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name=name, sha256=sha256))


def pairs(text: str) -> dict[str, str]:
    return {key: unquote(value) for key, value in _PAIR.findall(text.rpartition("\n")[2])}


def test_the_three_parts() -> None:
    text = infotext(resolved(sha256="0123456789abcdef" * 4, negative_prompt="rain"))
    prompt, negative, line = text.split("\n")
    assert (prompt, negative) == ("a castle", "Negative prompt: rain")
    start = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, "
    assert line.startswith(start + "Model hash: 0123456789, Model: anything-v3, RNG: CPU, Version: danqing ")


def test_an_empty_negative_prompt_has_no_line() -> None:
    assert len(infotext(resolved()).split("\n")) == 2


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"clip_skip": 2}, "Clip skip", "2"),
        ({"clip_skip": 1}, "Clip skip", None),
        ({"noise_source": "gpu"}, "RNG", None),
        ({"noise_source": "philox"}, "RNG", "NV"),
        ({"subseed": 9}, "Variation seed", None),
        ({"subseed": 9, "subseed_strength": 0.25}, "Variation seed", "9"),
        ({"subseed": 9, "subseed_strength": 0.25}, "Variation seed strength", "0.25"),
        ({"seed_resize_from_w": 64}, "Seed resize from", None),
        ({"seed_resize_from_w": 64, "seed_resize_from_h": 128}, "Seed resize from", "64x128"),
        ({"eta_noise_seed_delta": 31337}, "ENSD", "31337"),
        ({"tiling": "both"}, "Tiling", "True"),
        ({"tiling": "none"}, "Tiling", None),
        ({"emphasis": "no norm", "prompt": "(a:2)"}, "Emphasis", "No norm"),
        ({"emphasis": "no norm", "prompt": "a"}, "Emphasis", None),
        ({"emphasis": "original", "prompt": "(a:2)"}, "Emphasis", None),
        ({"s_min_uncond": 1.5}, "NGMS", "1.5"),
        ({"guidance_start": 0.1}, "Skip Early CFG", "0.1"),
        ({"sigma_max": 14.614643}, "Schedule max sigma", "14.614643"),
        ({"cfg_scale": 7.1234567}, "CFG scale", "7.1234567"),
    ],
)
def test_what_is_written_of_a_field(fields: dict[str, Any], key: str, value: str | None) -> None:
    assert pairs(infotext(resolved(**fields))).get(key) == value


def test_as_sd_parsers_reads_it() -> None:
    """It splits the last line at ", " and ": " and wants three of these keys, the sampler among them."""
    line = infotext(resolved(name="a, b: c", prompt="x, y: (z:1.2)\nw")).splitlines()[-1]
    plain = dict(part.split(": ", 1) for part in line.split(", ") if ": " in part)
    assert {key: plain[key] for key in ("Steps", "Sampler", "CFG scale", "Seed", "Size")} == {
        "Steps": "20", "Sampler": "DPM++ 2M", "CFG scale": "7", "Seed": "5", "Size": "512x768",
    }  # fmt: skip
    assert pairs(line)["Model"] == "a, b: c"


@given(st.text())
def test_quoting_is_undone_by_json(text: str) -> None:
    written = quote(text)
    if any(character in text for character in ",:\n"):
        assert json.loads(written) == text
        assert "\n" not in written
    else:
        assert written == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_lose_nothing(value: float) -> None:
    assert float(quote(value)) == value


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_model_of_any_name_leaves_the_other_pairs_readable(name: str) -> None:
    text = infotext(resolved(name=name))
    assert text.count("\n") == 1
    read = pairs(text)
    assert read["Seed"] == "5"
    assert read["Version"].startswith("danqing ")
    if any(character in name for character in ",:\n"):
        assert read["Model"] == name


# Reading


def unit(low: float = 0.0) -> st.SearchStrategy[float]:
    return st.floats(low, 1, allow_nan=False).map(lambda value: value + 0.0)


seeds = st.integers(0, 2**64 - 1)
printable = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=80)
"""Any printable character: quotes, commas, newlines, colons, Chinese, emoji."""
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.text("abc XYZ_-.,:(1)'\"猫🐈", min_size=1, max_size=20).map(lambda text: text.strip(' "')).filter(bool)
"""Not within quotation marks: AUTOMATIC1111 writes those as they are, and reads them as JSON's."""
pictures = st.builds(Reference, name=names, sha256=digests)


@st.composite
def common(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a resolved request as `resolve` leaves them: what has no effect is at its default."""
    dialect = draw(st.sampled_from(DIALECTS))
    fields: dict[str, Any] = {
        "prompt": draw(printable),
        "negative_prompt": draw(printable),
        "width": draw(st.integers(64, 16384)),
        "height": draw(st.integers(64, 16384)),
        "steps": draw(st.integers(1, 1000)),
        "cfg_scale": draw(st.floats(0, 100)) + 0.0,
        "sampler_name": draw(st.sampled_from(SAMPLERS)).name,
        "scheduler": draw(st.sampled_from(SCHEDULERS)).name,
        "seed": draw(seeds),
        "noise_source": draw(st.sampled_from(NOISE_SOURCES)),
        "clip_skip": draw(st.integers(1, 12)),
        "dialect": dialect,
        "emphasis": DIALECT_EMPHASIS[dialect],
        "tiling": draw(st.sampled_from(["none", "x", "y", "both"])),
        "guidance_start": draw(st.floats(0, 0.5)) + 0.0,
        "guidance_end": draw(st.floats(0.5, 1)),
        "guidance_rescale": draw(unit()),
        "s_min_uncond": draw(st.floats(0, 15)) + 0.0,
        "s_churn": draw(st.floats(0, 100)) + 0.0,
        "s_noise": draw(st.floats(0, 2)) + 0.0,
        "eta": draw(st.none() | unit()),
        "sigma_min": draw(st.none() | st.floats(1e-5, 1)),
        "sigma_max": draw(st.none() | st.floats(1, 1e5)),
        "rho": draw(st.none() | st.floats(0.05, 1000)),
        "discard_penultimate": draw(st.none() | st.booleans()),
        "eta_noise_seed_delta": draw(st.just(0) | seeds),
        "crop_left": draw(st.integers(0, 1 << 20)),
        "aesthetic_score": draw(st.floats(0, 10)) + 0.0,
        "dynamic_thresholding": draw(
            st.none()
            | st.builds(DynamicThresholding, mimic_scale=st.floats(0, 30).map(abs), percentile=st.floats(1e-6, 1))
        ),
        "refiner_checkpoint": draw(st.none() | names),
        "refiner_switch_at": draw(st.none() | unit()),
        "regions": draw(st.just(()) | st.tuples(st.builds(Region, prompt=printable, mask=st.none() | pictures))),
    }
    if fields["tiling"] == "none":
        sides = st.integers(10, 256)
        tiles = st.builds(
            TiledDiffusion, tile_width=sides, tile_height=sides, overlap=st.integers(0, 9), batch_size=st.integers(1, 8),
            method=st.sampled_from(["MultiDiffusion", "Mixture of Diffusers"]),
        )  # fmt: skip
        fields["tiled_diffusion"] = draw(st.none() | tiles)
    if any(character in fields["prompt"] + fields["negative_prompt"] for character in "(["):
        fields["emphasis"] = draw(st.sampled_from(EMPHASES))
    if draw(st.booleans()):
        fields |= {"subseed": draw(seeds), "subseed_strength": draw(unit(1e-9))}
    if draw(st.booleans()):
        fields |= {"seed_resize_from_w": draw(st.integers(1, 16384)), "seed_resize_from_h": draw(st.integers(1, 16384))}
    if draw(st.booleans()):
        fields |= {"subprompt": draw(names), "subprompt_strength": draw(unit())}
    return fields


@st.composite
def requests(draw: st.DrawFn) -> Painting:
    """Resolved requests of all kinds."""
    kind: Kind = draw(st.sampled_from(list(REQUESTS)))
    fields = draw(common())
    if kind == "txt2img":
        if draw(st.booleans()):
            fields |= {
                "enable_hr": True,
                "denoising_strength": draw(unit()),
                "hr_prompt": draw(names),
                "hr_sampler_name": draw(st.none() | st.just("Euler a")),
                "hr_cfg": draw(st.none() | st.floats(0, 100).map(abs)),
                "hr_upscaler": draw(st.none() | names),
                "hr_second_pass_steps": draw(st.integers(0, 1000)),
                **draw(
                    st.builds(lambda scale: {"hr_scale": scale}, st.floats(1, 16))
                    | st.builds(lambda x: {"hr_resize_x": x}, st.integers(1, 16384))
                ),
            }
        return TextToImage(**fields)
    fields |= {
        "image": draw(pictures),
        "denoising_strength": draw(unit()),
        "resize_mode": draw(st.sampled_from([0, 1, 2, 3])),
        "exact_steps": draw(st.booleans()),
        "color_correction": draw(st.booleans()),
        "initial_noise_multiplier": draw(st.floats(0, 10)) + 0.0,
        "image_cfg_scale": draw(st.none() | st.floats(0, 100).map(abs)),
        "loops": draw(st.integers(1, 128)),
    }
    if kind == "img2img":
        if draw(st.booleans()):
            fields |= {"inversion": True, "inversion_prompt": draw(names), "subimage": draw(st.none() | pictures)}
        elif draw(st.booleans()):
            fields["sd_upscale"] = draw(st.builds(SDUpscale, scale=st.floats(1, 16), upscaler=names))
        return ImageToImage(**fields)
    fields |= {
        "mask_blur": draw(st.integers(0, 256)),
        "inpainting_fill": draw(st.sampled_from([0, 1, 2, 3])),
        "inpainting_mask_weight": draw(unit()),
        "mask_round": draw(st.booleans()),
        "soft_inpainting": draw(st.none() | st.builds(SoftInpainting, mask_influence=unit())),
    }
    if kind == "outpaint":
        return Outpaint(**{**fields, "width": None, "height": None, "left": draw(st.integers(1, 99)), "up": 3})
    fields |= {"mask": draw(st.none() | pictures), "inpainting_mask_invert": draw(st.booleans())}
    if draw(st.booleans()):
        fields |= {"inpaint_full_res": True, "inpaint_full_res_padding": draw(st.integers(0, 4096))}
    return Inpaint(**fields)


@settings(max_examples=500, deadline=None)
@given(requests(), digests)
def test_request_to_infotext_to_request_is_the_identity(request: Painting, digest: str) -> None:
    """The record decides; where the grammar is not ambiguous, the infotext alone says it all."""
    if isinstance(request, TextToImage):  # AUTOMATIC1111 leaves out a second pass's prompt that is the first's
        assume(request.hr_prompt in ("", None) or request.hr_prompt != request.prompt)
        assume(request.hr_negative_prompt in ("", None) or request.hr_negative_prompt != request.negative_prompt)
    made = ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name="castle v1.5", sha256=digest))
    assert read_record(made.model_dump_json(exclude_none=True)) == made
    text = infotext(made)
    told = read_infotext(text)
    assert told.checkpoint == Reference(name="castle v1.5", sha256=digest[:10])
    assert (told.tool, told.notes) == ("Danqing", ())
    assert type(told.request) is type(request)
    assert told.request.model_copy(update={"prompt": "", "negative_prompt": ""}) == request.model_copy(
        update={"prompt": "", "negative_prompt": ""}
    )
    if unambiguous(request.prompt, request.negative_prompt):
        assert told.request == request


def unambiguous(prompt: str, negative: str) -> bool:
    """Lines keep no blanks at their ends, the text no blank lines, and a line may not begin the negative prompt."""
    lines = (prompt + "\n" + negative).split("\n")
    return (
        all(line == line.strip() and not line.startswith("Negative prompt:") for line in lines)
        and prompt == prompt.strip()
        and negative == negative.strip()
    )


def test_every_field_has_its_pair() -> None:
    spoken_for = [field for entry in (*ENTRIES, *OWN_ENTRIES) for field in entry.fields]
    keys = [entry.key for entry in (*ENTRIES, *OWN_ENTRIES)]
    assert len(keys) == len(set(keys))
    assert {field for cls in REQUESTS.values() for field in cls.model_fields} == {*spoken_for, *ELSEWHERE}
    assert all(re.fullmatch(r"\w[\w \-/]+", key) for key in keys)


@given(st.text(st.sampled_from('ab1 -/:,"\\é猫\t'), max_size=60))
def test_pairs_are_those_that_automatic1111_finds(line: str) -> None:
    assert PAIR.findall(line) == _PAIR.findall(line)


TILED = (
    "a castle\nSteps: 25, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 1024x1536, Denoising strength: 0.75, "
    'Tiled Diffusion: {"Method": "%s", "Tile tile width": 112, "Tile tile height": 96, "Tile Overlap": 32, '
    '"Tile batch size": 8, "Upscaler": "4x, sharp", "Upscale factor": 2, "Keep input size": true}, Clip skip: 2'
)
"""The form in which AUTOMATIC1111 writes what its extension Tiled Diffusion adds."""


def test_automatic1111s_script_sd_upscale() -> None:
    told = read_infotext(
        "a castle\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 512x512, Denoising strength: 0.3, "
        "SD upscale overlap: 96, SD upscale upscaler: R-ESRGAN 4x+, Version: v1.10.1"
    )
    assert isinstance(told.request, ImageToImage)
    assert told.request.sd_upscale == SDUpscale(overlap=96, upscaler="R-ESRGAN 4x+")
    made = ResolvedRequest(
        request=ImageToImage(**FILLED, image=Reference(name="a.png"), sd_upscale="3,96,models/4x.pth"),
        family="sd1",
        checkpoint=Reference(name="m"),
        others={"sd_upscale": Reference(name="4x.pth")},
    )
    assert "SD upscale overlap: 96, SD upscale upscaler: 4x.pth, SD upscale scale: 3, " in infotext(made)


def test_tiles_of_automatic1111s_extension() -> None:
    told = read_infotext(TILED % "Mixture of Diffusers")
    assert told.request.tiled_diffusion == TiledDiffusion(
        tile_width=112, tile_height=96, overlap=32, batch_size=8, method="Mixture of Diffusers"
    )
    assert told.request.clip_skip == 2
    assert [note for note in told.notes if "Tiled" in note] == [
        "'Tiled Diffusion: Upscale factor' has no counterpart here and is left out",
        "'Tiled Diffusion: Upscaler' has no counterpart here and is left out",
    ]
    tiles = {"tile_width": 64, "tile_height": 48, "overlap": 8}
    assert (
        'Tiled Diffusion: {"Method": "MultiDiffusion", "Tile tile width": 64, "Tile tile height": 48, '
        '"Tile Overlap": 8, "Tile batch size": 4}'
    ) in infotext(resolved(tiled_diffusion=tiles))


@pytest.mark.parametrize("value", ["No Such Thing", '"'])
def test_tiles_that_are_not_known_are_left_out_and_said(value: str) -> None:
    told = read_infotext(TILED % value)
    assert told.request.tiled_diffusion is None
    assert sum("tiled_diffusion: left to the default" in note for note in told.notes) == 1


def test_the_infotext_of_automatic1111s_documentation() -> None:
    told = read_infotext(
        "girl with an artist's beret, ((eyeshadow)), (coquettish),\n detailed\n"
        "Negative prompt: ugly, fat, (((deformed))), [blurry]\n bad anatomy\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"
    )
    assert told.tool == "AUTOMATIC1111"
    assert told.checkpoint == Reference(name="", sha256="45dee52b")
    assert told.request == TextToImage(
        prompt="girl with an artist's beret, ((eyeshadow)), (coquettish),\ndetailed",
        negative_prompt="ugly, fat, (((deformed))), [blurry]\nbad anatomy",
        steps=20, sampler_name="Euler a", cfg_scale=7, seed=965400086, width=512, height=512, dialect="a1111",
    )  # fmt: skip
    assert told.notes == ()


def test_a_hires_picture_of_automatic1111() -> None:
    told = read_infotext(
        "a castle <lora:stone:0.8>\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, "
        "Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: c6a580b13a, VAE: vae.pt, "
        "Denoising strength: 0.5, Clip skip: 2, ENSD: 31337, RNG: NV, Hires sampler: Euler, "
        'Hires prompt: "a castle, night", Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent, '
        'Lora hashes: "stone: 0123456789ab", Refiner: xl-refiner [7440042bbd], Refiner switch at: 0.8, '
        "Face restoration: CodeFormer, NGMS: 2.5, Version: v1.10.1"
    )
    assert told.request == TextToImage(
        prompt="a castle <lora:stone:0.8>", steps=20, sampler_name="DPM++ 2M", scheduler="Karras", cfg_scale=7, seed=1,
        width=512, height=768, denoising_strength=0.5, clip_skip=2, eta_noise_seed_delta=31337, noise_source="philox",
        enable_hr=True, hr_sampler_name="Euler", hr_prompt="a castle, night", hr_scale=1.5, hr_second_pass_steps=10,
        hr_upscaler="Latent", refiner_checkpoint="xl-refiner [7440042bbd]", refiner_switch_at=0.8, s_min_uncond=2.5,
        dialect="a1111",
    )  # fmt: skip
    assert told.vae == Reference(name="vae.pt", sha256="c6a580b13a")
    assert told.others == {"lora:stone": Reference(name="stone", autov3="0123456789ab")}
    assert told.notes == ("'Face restoration: CodeFormer' has no counterpart here and is left out",)


def test_an_inpainted_picture_of_automatic1111_says_what_it_does_not_know() -> None:
    told = read_infotext(
        "a hat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.75, "
        "Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 32, "
        "Masked content: latent noise, Version: f2.0.1v1.10.1-previous-659"
    )
    assert told.tool == "Forge"
    assert told.request == Inpaint(
        prompt="a hat", steps=20, sampler_name="Euler", cfg_scale=7, seed=1, width=512, height=512, image=UNRECORDED,
        mask=UNRECORDED, inpainting_mask_invert=True, inpaint_full_res=True, inpainting_fill="latent noise",
        denoising_strength=0.75, dialect="a1111",
    )  # fmt: skip


def test_what_is_not_known_is_left_to_the_default_and_said() -> None:
    told = read_infotext("x\nSteps: many, Sampler: Restarting, CFG scale: 7, Seed: 5, Size: 8x8")
    assert told.request == TextToImage(prompt="x", cfg_scale=7, seed=5, dialect="a1111")
    assert [note.partition(":")[0] for note in told.notes] == ["steps", "sampler_name", "width", "height"]


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nSteps: 20, Seed: 1", "Negative prompt: x", "a" * 3 * MAX_LINE])
def test_no_infotext(text: str) -> None:
    with pytest.raises(DanqingError, match="no infotext"):
        read_infotext(text)


def test_a_long_line_takes_no_quadratic_time() -> None:
    assert parse('k: "' * (MAX_LINE // 4))[2] is not None
    assert parse("a " * (MAX_LINE // 2))[2] == {}
    assert parse('ab: {"\\"' * (MAX_LINE // 8))[2] is not None


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_by_one_line(text: str) -> None:
    message = ""
    try:
        read_infotext(text + "\nSteps: 20, Sampler: Euler, Seed: 1")
        read_infotext(text)
    except DanqingError as error:
        message = str(error)
    assert "\n" not in message
