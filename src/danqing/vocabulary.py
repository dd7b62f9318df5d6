"""The names people use for samplers, schedulers and dialects, and their aliases in each tool. No torch here."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from danqing.errors import DanqingError

Dialect = Literal["danqing", "a1111", "comfyui", "diffusers"]
"""Whose details a request follows where tools differ: prompt weights, noise, start noise, schedule rounding."""
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

Emphasis = Literal["original", "no norm", "ignore", "none", "comfyui"]
"""How a word's weight acts on its vector: AUTOMATIC1111's four modes, and ComfyUI's interpolation."""
EMPHASES: tuple[Emphasis, ...] = get_args(Emphasis)

NoiseSource = Literal["cpu", "gpu", "philox"]
"""Whose random numbers: torch's CPU generator, the device's own, or CUDA's Philox computed anywhere."""
NOISE_SOURCES: tuple[NoiseSource, ...] = get_args(NoiseSource)

DIALECT_EMPHASIS: Mapping[Dialect, Emphasis] = {
    "danqing": "original",
    "a1111": "original",
    "comfyui": "comfyui",
    "diffusers": "none",
}
DIALECT_NOISE: Mapping[Dialect, NoiseSource] = {
    "danqing": "cpu",
    "a1111": "philox",  # AUTOMATIC1111 draws on the GPU; Philox gives CUDA's numbers on any machine
    "comfyui": "cpu",
    "diffusers": "cpu",
}
DIALECT_SCHEDULER: Mapping[Dialect, str | None] = {
    # What the scheduler `Automatic` stands for; None is the sampler's own, by AUTOMATIC1111's table.
    "danqing": None,
    "a1111": None,
    "comfyui": "Normal",
    "diffusers": "Automatic",  # each of diffusers' scheduler classes brings its spacing
}

Dynamic = Literal["none", "random", "all"]
"""What wildcards and choices in prompts do: stand for themselves, draw by each picture's seed, make all combinations."""

Fast = Literal["none", "lcm", "lcm-lora", "turbo", "turbo-mix", "lightning", "hyper", "hyper-cfg", "hyper-1step", "tcd"]
"""Models distilled to few steps, each with settings of its own (`adapters.fast`); none is what is no such model."""

Tiling = Literal["none", "x", "y", "both"]
"""Along which axes a picture repeats without a seam."""


@dataclass(frozen=True)
class Sampler:
    """A sampler by its AUTOMATIC1111 label, with what AUTOMATIC1111 attaches to the name."""

    name: str
    aliases: tuple[str, ...] = ()
    """AUTOMATIC1111's, ComfyUI's and k-diffusion's names."""
    scheduler: str = "Uniform"
    """What the scheduler `Automatic` stands for."""
    second_order: bool = False
    """Two network calls a step: AUTOMATIC1111 counts calls, so prompt editing sees twice the steps."""
    discard_penultimate: bool = False
    """The schedule is made for one step more and its last level but one is dropped (AUTOMATIC1111)."""
    comfyui_discards: bool = False
    """The same, in ComfyUI."""
    brownian: bool = False
    """Draws its noise from a Brownian tree over sigma."""
    ensd: bool = False
    """AUTOMATIC1111 writes the eta noise seed delta beside this sampler."""


SAMPLERS: tuple[Sampler, ...] = (
    Sampler("DPM++ 2M", ("k_dpmpp_2m", "dpmpp_2m"), "Karras"),
    Sampler("DPM++ SDE", ("k_dpmpp_sde", "dpmpp_sde"), "Karras", second_order=True, brownian=True),
    Sampler("DPM++ 2M SDE", ("k_dpmpp_2m_sde", "dpmpp_2m_sde"), "Exponential", brownian=True),
    Sampler("DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun"), "Exponential", brownian=True),
    Sampler("DPM++ 2S a", ("k_dpmpp_2s_a", "dpmpp_2s_ancestral"), "Karras", second_order=True, ensd=True),
    Sampler("DPM++ 3M SDE", ("k_dpmpp_3m_sde", "dpmpp_3m_sde"), "Exponential", discard_penultimate=True, brownian=True),
    Sampler("Euler a", ("k_euler_a", "k_euler_ancestral", "euler_ancestral"), ensd=True),
    Sampler("Euler", ("k_euler", "euler")),
    Sampler("LMS", ("k_lms", "lms")),
    Sampler("Heun", ("k_heun", "heun"), second_order=True),
    Sampler("DPM2", ("k_dpm_2", "dpm_2"), "Karras", second_order=True, discard_penultimate=True, comfyui_discards=True),
    Sampler(
        "DPM2 a",
        ("k_dpm_2_a", "dpm_2_ancestral"),
        "Karras",
        second_order=True,
        discard_penultimate=True,
        comfyui_discards=True,
        ensd=True,
    ),
    Sampler("DPM fast", ("k_dpm_fast", "dpm_fast"), ensd=True),
    Sampler("DPM adaptive", ("k_dpm_ad", "dpm_adaptive"), ensd=True),
    Sampler("Restart", ("restart",), "Karras", second_order=True),
    Sampler("DDIM", ("ddim",), "DDIM"),
    Sampler("DDIM CFG++", ("ddim_cfgpp",), "DDIM"),
    Sampler("PLMS", ("plms",), "DDIM"),
    Sampler("UniPC", ("unipc", "uni_pc"), "DDIM", comfyui_discards=True),
    Sampler("LCM", ("k_lcm", "lcm")),
    Sampler("DDPM", ("ddpm",)),
    Sampler("TCD", ("tcd",), "SGM Uniform"),
    Sampler("ER-SDE", ("er_sde",)),
)


@dataclass(frozen=True)
class Scheduler:
    """A noise schedule by its AUTOMATIC1111 label."""

    name: str
    aliases: tuple[str, ...] = ()


SCHEDULERS: tuple[Scheduler, ...] = (
    Scheduler("Automatic", ("automatic",)),
    Scheduler("Uniform", ("uniform",)),
    Scheduler("Karras", ("karras",)),
    Scheduler("Exponential", ("exponential",)),
    Scheduler("Polyexponential", ("polyexponential",)),
    Scheduler("SGM Uniform", ("sgm_uniform", "SGMUniform")),
    Scheduler("KL Optimal", ("kl_optimal",)),
    Scheduler("Align Your Steps", ("align_your_steps", "AYS")),
    Scheduler("Simple", ("simple",)),
    Scheduler("Normal", ("normal",)),
    Scheduler("DDIM", ("ddim", "ddim_uniform")),
    Scheduler("Beta", ("beta",)),
    Scheduler("Linear Quadratic", ("linear_quadratic",)),
)


Row = TypeVar("Row", bound=Sampler | Scheduler)
Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Threshold:
    """A number that a preprocessor takes, sd-webui-controlnet's `threshold_a` or `threshold_b`."""

    name: str
    """Of the function's parameter."""
    low: float
    high: float
    default: float | None
    """None is found from the picture."""


@dataclass(frozen=True)
class Module:
    """A preprocessor: what is made of a picture before a ControlNet is shown it."""

    name: str
    aliases: tuple[str, ...] = ()
    """sd-webui-controlnet's names (`scripts/processor.py`)."""
    thresholds: tuple[Threshold, ...] = ()
    files: tuple[str, ...] = ()
    """Its weights, as they are called where they are published; a task of transformers for a folder of its layout."""
    source: str = ""
    """Where these are published."""
    sized: bool = True
    """Whether the size at which it sees the picture matters."""


DEPTH, SEGMENTS = "depth-estimation", "image-segmentation"
"""Tasks of folders in transformers' layout."""
_ANNOTATORS = "huggingface.co/lllyasviel/Annotators"
_BODY, _HAND, _FACE = "body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"
_DW = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
_GAMMA = Threshold("gamma", 0.1, 2, 1)

MODULES: tuple[Module, ...] = (
    Module("none", sized=False),
    Module("canny", (), (Threshold("low", 0, 2040, 100), Threshold("high", 0, 2040, 200))),
    Module("scribble", ("scribble_xdog",), (Threshold("threshold", 1, 254, 32),)),
    Module("line art", ("lineart_standard", "lineart_standard (from white bg & black line)")),
    Module("invert", ("invert (from white bg & black line)",), sized=False),
    Module("threshold", (), (Threshold("level", 0, 255, None),)),
    Module("brightness", sized=False),
    Module("luminance", ("recolor_luminance",), (_GAMMA,), sized=False),
    Module("intensity", ("recolor_intensity",), (_GAMMA,), sized=False),
    Module("blur", ("blur_gaussian",), (Threshold("sigma", 0.01, 64, 9),)),
    Module("tile", ("tile_resample",), (Threshold("rate", 1, 8, 1),), sized=False),
    Module("shuffle", sized=False),
    Module("inpaint", ("inpaint_only", "inpaint_global_harmonious", "inpaint_only+lama"), sized=False),
    Module("soft edge", ("softedge_hed", "hed"), (), ("ControlNetHED.pth",), _ANNOTATORS),
    Module("soft edge safe", ("softedge_hedsafe", "hed_safe"), (), ("ControlNetHED.pth",), _ANNOTATORS),
    Module("scribble hed", ("fake_scribble",), (), ("ControlNetHED.pth",), _ANNOTATORS),
    Module("soft edge pidinet", ("softedge_pidinet", "pidinet"), (), ("table5_pidinet.pth",), _ANNOTATORS),
    Module("soft edge pidinet safe", ("softedge_pidisafe", "pidinet_safe"), (), ("table5_pidinet.pth",), _ANNOTATORS),
    Module("scribble pidinet", ("pidinet_scribble",), (), ("table5_pidinet.pth",), _ANNOTATORS),
    Module("line art realistic", ("lineart", "lineart_realistic"), (), ("sk_model.pth",), _ANNOTATORS),
    Module("line art coarse", ("lineart_coarse",), (), ("sk_model2.pth",), _ANNOTATORS),
    Module("line art anime", ("lineart_anime",), (), ("netG.pth",), _ANNOTATORS),
    Module(
        "mlsd",
        ("m-lsd",),
        (Threshold("score", 0.01, 2, 0.1), Threshold("distance", 0.01, 20, 0.1)),
        ("mlsd_large_512_fp32.pth",),
        _ANNOTATORS,
    ),
    Module(
        "depth",
        ("depth_midas", "depth_anything", "depth_anything_v2", "depth_zoe"),
        (),
        (DEPTH,),
        "huggingface.co/depth-anything/Depth-Anything-V2-Small-hf, Intel/dpt-hybrid-midas, Intel/zoedepth-nyu-kitti",
    ),
    Module(
        "normal",
        ("normal_map", "normal_midas"),
        (Threshold("background", 0, 1, 0.4),),
        (DEPTH,),
        "huggingface.co/Intel/dpt-hybrid-midas",
    ),
    Module(
        "segmentation",
        ("seg_ufade20k", "seg_ofade20k"),
        (),
        (SEGMENTS,),
        "huggingface.co/openmmlab/upernet-convnext-small, shi-labs/oneformer_ade20k_swin_large",
    ),
    Module("openpose", (), (), (_BODY,), _ANNOTATORS),
    Module("openpose hand", (), (), (_BODY, _HAND), _ANNOTATORS),
    Module("openpose face", (), (), (_BODY, _FACE), _ANNOTATORS),
    Module("openpose face only", ("openpose_faceonly",), (), (_BODY, _FACE), _ANNOTATORS),
    Module("openpose full", (), (), (_BODY, _HAND, _FACE), _ANNOTATORS),
    Module("dw openpose", ("dw_openpose_full",), (), _DW, "huggingface.co/yzd-v/DWPose"),
)
"""Every preprocessor, those that need no weights first."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices most like `word`, best first; none where nothing is like it."""
    by_fold = {choice.casefold(): choice for choice in choices}
    return [by_fold[fold] for fold in difflib.get_close_matches(word.casefold(), by_fold, n=count, cutoff=0.5)]


def quoted(value: object) -> str:
    """A value as a message shows it: on one line, and no longer than a glance."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    try:
        return shortener.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"


def choose(field: str, name: str, choices: Sequence[Choice]) -> Choice:
    """The choice spelled `name`, in any case. Raises DanqingError with the nearest."""
    for choice in choices:
        if choice.casefold() == name.strip().casefold():
            return choice
    raise DanqingError(unknown(field, name, choices))


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The line that says so, with the nearest choices, or all of them where none is near."""
    choices = list(choices)
    like = nearest(name, choices)
    hint = f"did you mean {' or '.join(like)}?" if like else f"choose one of: {', '.join(choices)}"
    return f"{kind} {quoted(name)} is unknown; {hint}"


def _find(kind: str, name: str, rows: Sequence[Row]) -> Row:
    known: dict[str, Row] = {}
    for row in rows:
        known.update(dict.fromkeys([label.casefold() for label in (row.name, *row.aliases)], row))
    folded = name.strip().casefold()
    if folded not in known:
        # a misspelt alias is answered with the label that it stands for
        like = dict.fromkeys(known[label].name for label in nearest(folded, known))
        raise DanqingError(unknown(kind, name, like or [row.name for row in rows]))
    return known[folded]


def find_sampler(name: str) -> Sampler:
    """The sampler of that label or alias, in any case. Raises DanqingError with the nearest names."""
    return _find("sampler", name, SAMPLERS)


def find_scheduler(name: str) -> Scheduler:
    """The scheduler of that label or alias, in any case. Raises DanqingError with the nearest names."""
    return _find("scheduler", name, SCHEDULERS)


def split_combined(name: str) -> tuple[str, str | None]:
    """AUTOMATIC1111's old combined names: `DPM++ 2M Karras` -> (`DPM++ 2M`, `Karras`)."""
    folded = name.strip().casefold()
    if any(folded in {s.name.casefold(), *(a.casefold() for a in s.aliases)} for s in SAMPLERS):
        return name, None
    for scheduler in SCHEDULERS:
        for label in (scheduler.name, *scheduler.aliases):
            if folded.endswith(" " + label.casefold()):
                return name.strip()[: -len(label) - 1].strip(), scheduler.name
    return name, None


def find_module(text: str) -> tuple[Module | None, str]:
    """The preprocessor that `text` names in any tool's way, and the file that follows its name after a colon.

    (None, text) where none is called so: it may be a file.
    """
    name, colon, file = text.partition(":")
    plain = _spaced(name)
    for module in MODULES:
        if any(_spaced(known) == plain for known in (module.name, *module.aliases)) and (module.files or not colon):
            return module, file.strip()
    return None, text.strip()


def _spaced(name: str) -> str:
    """A name in small letters, its words apart by one space."""
    return " ".join(name.casefold().replace("_", " ").split())
