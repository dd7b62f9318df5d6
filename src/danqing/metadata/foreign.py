"""Fooocus', InvokeAI's and NovelAI's pictures: their JSON -> a request, and notes of what could not be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from danqing.errors import DanqingError
from danqing.metadata.told import UNRECORDED, Told, build, load_object
from danqing.request_parts import Reference
from danqing.requests import Kind

Fields = dict[str, Any]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _reference(name: object, digest: object = None) -> Reference | None:
    if not isinstance(name, str) or name in ("", "None", "Default (model)"):
        return None
    short = digest.lower().removeprefix("sha256:") if isinstance(digest, str) else ""
    return Reference(name=name, sha256=short if re.fullmatch(r"[0-9a-f]{8,64}", short) else None)


# Fooocus (modules/meta_parser.py)


def read_fooocus(text: str) -> Told:
    """The JSON that Fooocus writes as `parameters`, by its own scheme. Raises DanqingError where it is none."""
    data = load_object(text, "parameters")
    notes: list[str] = []
    size = re.findall(r"\d+", str(data.get("resolution", "")))
    whole = [part for part in _rows(data.get("full_prompt")) if isinstance(part, str)]
    negative = [part for part in _rows(data.get("full_negative_prompt")) if isinstance(part, str)]
    loras = [row for row in _rows(data.get("loras")) if isinstance(row, list) and len(row) >= 2]
    prompt = " BREAK ".join(whole) or str(data.get("prompt", ""))
    fields: Fields = {
        # its parts, a style each, are encoded one by one and put end to end
        "prompt": " ".join([prompt, *(f"<lora:{row[0]}:{row[1]}>" for row in loras)]),
        "negative_prompt": " BREAK ".join(negative) or data.get("negative_prompt", ""),
        "steps": data.get("steps"),
        "cfg_scale": data.get("guidance_scale"),
        "seed": data.get("seed"),
        "sampler_name": str(data.get("sampler", "")).removesuffix("_gpu") or None,
        "scheduler": data.get("scheduler"),
        "clip_skip": data.get("clip_skip"),
        "dialect": "comfyui",
        "emphasis": "original",
    }
    if len(size) == 2:
        fields |= {"width": size[0], "height": size[1]}
    if refiner := _reference(data.get("refiner_model"), data.get("refiner_model_hash")):
        fields |= {"refiner_checkpoint": refiner.name, "refiner_switch_at": data.get("refiner_switch")}
    for key, what in (("sharpness", "its sharpness"), ("adm_guidance", "its ADM guidance"),
                      ("adaptive_cfg", "its adaptive CFG"), ("freeu", "FreeU")):  # fmt: skip
        if data.get(key):
            notes.append(f"{what}, {data[key]}, has no counterpart here")
    others = {
        f"lora:{row[0]}": Reference(
            name=str(row[0]), autov3=row[2] if len(row) > 2 and isinstance(row[2], str) else None
        )
        for row in loras
    }
    checkpoint = _reference(data.get("base_model"), data.get("base_model_hash"))
    request = build("txt2img", fields, notes)
    return Told("Fooocus", request, checkpoint, _reference(data.get("vae")), others, tuple(notes))


# InvokeAI (invokeai_metadata of version 3 and later; sd-metadata of version 2)

_INVOKE_SAMPLERS = {
    # diffusers' scheduler as InvokeAI calls it -> sampler; `_k` adds Karras
    "ddim": "DDIM", "ddpm": "DDPM", "deis": None, "dpmpp_2s": "DPM++ 2S a", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "dpmpp_3m": None, "euler": "Euler", "euler_a": "Euler a",
    "heun": "Heun", "kdpm_2": "DPM2", "kdpm_2_a": "DPM2 a", "lms": "LMS", "pndm": "PLMS", "unipc": "UniPC",
    "lcm": "LCM", "tcd": "TCD", "plms": "PLMS", "k_lms": "LMS", "k_euler": "Euler", "k_euler_a": "Euler a",
    "k_dpm_2": "DPM2", "k_dpm_2_a": "DPM2 a", "k_heun": "Heun", "k_dpmpp_2": "DPM++ 2M", "k_dpmpp_2_a": "DPM++ 2S a",
}  # fmt: skip


def _invoke_sampler(name: object, fields: Fields, notes: list[str]) -> None:
    text = str(name or "")
    plain = text.removesuffix("_k")
    label = _INVOKE_SAMPLERS.get(text) or _INVOKE_SAMPLERS.get(plain)
    if label is None:
        if text:
            notes.append(f"scheduler '{text[:40]}' has no counterpart here; the sampler is left to the default")
        return
    fields["sampler_name"] = label
    if text not in _INVOKE_SAMPLERS and plain != text:
        fields["scheduler"] = "Karras"


def read_invokeai(text: str) -> Told:
    """The chunk `invokeai_metadata`. Raises DanqingError where it is no JSON object."""
    data = load_object(text, "invokeai_metadata")
    notes: list[str] = []
    loras = _invoke_loras(data)
    fields: Fields = {
        "prompt": " ".join([compel(data.get("positive_prompt")), *(f"<lora:{name}:{w}>" for name, w in loras)]),
        "negative_prompt": compel(data.get("negative_prompt")),
        **{name: data.get(name) for name in ("width", "height", "seed", "steps", "cfg_scale")},
        "guidance_rescale": data.get("cfg_rescale_multiplier"),
        "dialect": "diffusers",
        "emphasis": "original",
        "noise_source": "gpu" if data.get("rand_device") in ("cuda", "mps") else None,
    }
    if isinstance(data.get("clip_skip"), int):
        fields["clip_skip"] = 1 + data["clip_skip"]
    seamless = (bool(data.get("seamless_x")), bool(data.get("seamless_y")))
    fields["tiling"] = {(True, True): "both", (True, False): "x", (False, True): "y"}.get(seamless)
    _invoke_sampler(data.get("scheduler"), fields, notes)
    mode = str(data.get("generation_mode", "txt2img"))
    kind: Kind = "txt2img"
    if "inpaint" in mode or "outpaint" in mode:
        kind, fields["mask"] = "inpaint", UNRECORDED
    elif "img2img" in mode:
        kind = "img2img"
    if kind != "txt2img":
        fields["image"] = Reference(name=str(data.get("init_image") or ""))
        fields["denoising_strength"] = data.get("strength")
    refiner = _mapping(data.get("refiner_model"))
    if name := refiner.get("name") or refiner.get("model_name"):
        fields |= {"refiner_checkpoint": name, "refiner_switch_at": data.get("refiner_start")}
    for key in ("controlnets", "ipAdapters", "t2iAdapters", "hrf_enabled", "regions", "positive_style_prompt"):
        if data.get(key):
            notes.append(f"its {key} has no counterpart here")
    notes.append("InvokeAI's noise and schedules are diffusers'; the picture may differ in details")
    request = build(kind, fields, notes)
    return Told("InvokeAI", request, _invoke_model(data.get("model")), _invoke_model(data.get("vae")), {}, tuple(notes))


def _invoke_model(value: object) -> Reference | None:
    """`{"key", "hash", "name", ...}`, `{"model_name", ...}`, or a name. Its BLAKE3 hashes are nobody else's."""
    row = _mapping(value)
    return _reference(row.get("name") or row.get("model_name") or value, row.get("hash"))


def _invoke_loras(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    for row in map(_mapping, _rows(data.get("loras"))):
        model = _mapping(row.get("model") or row.get("lora"))
        if name := model.get("name") or model.get("model_name"):
            rows.append((str(name), row.get("weight", 1)))
    return rows


_COMPEL = re.compile(r"\(([^()]*)\)(\d*\.\d+|\d+|[+]+|-+)?|([^\s,()+]+?)([+]+|--+)(?=[\s,.)]|$)")


def compel(text: object) -> str:
    """InvokeAI's weights in AUTOMATIC1111's words: `(a cat)1.3` -> `(a cat:1.3)`, `cat++` -> `(cat:1.21)`.

    A plus is 1.1 and a minus 0.9 (the library compel); brackets without a weight mean nothing there.
    """

    def written(match: re.Match[str]) -> str:
        inner, weight = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        if weight is None:
            return rf"\({inner}\)"
        sign = {"+": 1.1, "-": 0.9}.get(weight[0])
        return f"({inner}:{weight if sign is None else f'{sign ** len(weight):.4g}'})"

    return _COMPEL.sub(written, str(text or ""))


def read_invokeai_2(text: str) -> Told:
    """The chunk `sd-metadata`. Raises DanqingError where it is no JSON object with an `image`."""
    data = load_object(text, "sd-metadata")
    image = _mapping(data.get("image"))
    if not image:
        raise DanqingError("sd-metadata: holds no 'image'")
    notes: list[str] = []
    rows = image.get("prompt")
    if isinstance(rows, list):
        rows = " AND ".join(
            f"{_mapping(row).get('prompt', '')} :{_mapping(row).get('weight', 1)}"
            if len(rows) > 1
            else str(_mapping(row).get("prompt", ""))
            for row in rows
        )
    whole = str(rows or "")
    # what stands in brackets is the negative prompt
    negative = ", ".join(re.findall(r"\[([^\[\]]*)\]", whole))
    fields: Fields = {
        "prompt": compel(re.sub(r"\s*\[[^\[\]]*\]", "", whole)),
        "negative_prompt": compel(negative),
        **{name: image.get(name) for name in ("width", "height", "seed", "steps", "cfg_scale")},
        "tiling": "both" if image.get("seamless") else None,
        "dialect": "diffusers",
        "emphasis": "original",
    }
    _invoke_sampler(image.get("sampler"), fields, notes)
    kind: Kind = "txt2img"
    if image.get("type") == "img2img":
        kind, fields["denoising_strength"] = "img2img", image.get("strength", image.get("strength_steps"))
        fields["image"] = Reference(name=str(image.get("init_image_path") or ""))
    for key in ("perlin", "threshold", "facetool", "upscale", "variations"):
        if image.get(key):
            notes.append(f"its {key} has no counterpart here")
    model = _reference(data.get("model_weights"), data.get("model_hash"))
    return Told("InvokeAI", build(kind, fields, notes), model, None, {}, tuple(notes))


# NovelAI (Comment; hidden in the alpha channel the same keys)

_NOVELAI_KINDS: Mapping[str, Kind] = {"Img2ImgRequest": "img2img", "NativeInfillingRequest": "inpaint"}


def read_novelai(texts: Mapping[str, str]) -> Told:
    """NovelAI's chunks: `Description`, `Source`, and `Comment` in JSON. Raises DanqingError where that is none."""
    data = load_object(texts["Comment"], "Comment")
    notes: list[str] = []
    v4 = _mapping(data.get("v4_prompt"))
    prompt = str(texts.get("Description") or data.get("prompt") or "")
    negative = str(data.get("uc") or "")
    if v4:
        prompt = _captions(v4) or prompt
        negative = _captions(_mapping(data.get("v4_negative_prompt"))) or negative
        notes.append("NovelAI's newer models are no Stable Diffusion; another model paints another picture")
    fields: Fields = {
        "prompt": braces(prompt),
        "negative_prompt": braces(negative),
        **{name: data.get(name) for name in ("width", "height", "seed", "steps")},
        "cfg_scale": data.get("scale"),
        "guidance_rescale": data.get("cfg_rescale"),
        "sampler_name": str(data.get("sampler", "")).removesuffix("_v3") or None,
        "scheduler": {"native": None}.get(str(data.get("noise_schedule")), data.get("noise_schedule")),
        "clip_skip": None if v4 or "XL" in texts.get("Source", "") else 2,
        "eta_noise_seed_delta": 31337,
        "dialect": "a1111",
    }
    kind = _NOVELAI_KINDS.get(str(data.get("request_type")), "txt2img")
    if kind == "txt2img" and data.get("strength") is not None and data.get("image"):
        kind = "img2img"
    if kind != "txt2img":
        fields["denoising_strength"] = data.get("strength")
        if kind == "inpaint":
            fields["mask"] = UNRECORDED
    for key, what in (("sm", "SMEA"), ("dynamic_thresholding", "its dynamic thresholding (Decrisper)"),
                      ("skip_cfg_above_sigma", "Variety+"), ("reference_strength_multiple", "vibe transfer"),
                      ("controlnet_model", "its ControlNet")):  # fmt: skip
        if data.get(key):
            notes.append(f"{what} has no counterpart here")
    name, _, digest = texts.get("Source", "").rpartition(" ")
    return Told("NovelAI", build(kind, fields, notes), _reference(name or digest, digest), None, {}, tuple(notes))


def _captions(value: Mapping[str, Any]) -> str:
    caption = _mapping(value.get("caption"))
    rows = [_mapping(row).get("char_caption") for row in _rows(caption.get("char_captions"))]
    return " | ".join(str(part) for part in (caption.get("base_caption"), *rows) if part)


_BRACE = 1.05
_TOKEN = re.compile(r"(-?\d*\.?\d+)::|::|[{}\[\]]|[^{}\[\]:\d.-]+|.", re.DOTALL)


def braces(text: str) -> str:
    """NovelAI's weights in AUTOMATIC1111's words: `{cat}` -> `(cat:1.05)`, `[cat]` -> `(cat:0.9524)`, `2::cat::` -> `(cat:2)`.

    Round brackets mean nothing to NovelAI.
    """
    level, factor = 0, 1.0
    runs: list[tuple[float, str]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            level += 1 if token == "{" else -1
        elif token in "}]":
            level -= 1 if token == "}" else -1
        elif token.endswith("::"):
            factor = float(match[1]) if match[1] else 1.0
        else:
            weight = factor * _BRACE**level
            if runs and runs[-1][0] == weight:
                runs[-1] = (weight, runs[-1][1] + token)
            else:
                runs.append((weight, token))
    parts = []
    for weight, run in runs:
        plain = run.replace("(", r"\(").replace(")", r"\)")
        parts.append(plain if weight == 1 or not plain.strip() else f"({plain}:{weight:.4g})")
    return "".join(parts)
