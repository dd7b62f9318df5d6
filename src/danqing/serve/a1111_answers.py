"""Jobs and their pictures -> what AUTOMATIC1111 answers: `images`, `parameters`, and `info`, the JSON of its Processed."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from danqing.errors import DanqingError
from danqing.metadata.files import read_picture, save
from danqing.metadata.infotext import parse
from danqing.metadata.read import read_record
from danqing.requests import ResolvedRequest
from danqing.serve.a1111_bodies import Img2Img, Painted
from danqing.serve.a1111_options import Fields
from danqing.serve.store import Job, Stored
from danqing.version import __version__

_SUFFIXES = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "webp": ".webp", "avif": ".avif"}
_FIXED = frozenset(
    {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash", "VAE", "VAE hash", "Variation seed",
     "Variation seed strength", "Seed resize from", "Denoising strength", "Clip skip", "Face restoration", "Version"}
)  # fmt: skip
"""Pairs of an infotext that have fields of their own in `info`; all others are its extra_generation_params."""


@dataclass(frozen=True)
class Shown:
    """A picture of the answer: base64, its infotext, and its record where it has one."""

    image: str
    infotext: str
    record: ResolvedRequest | None


def shown(path: Path, picture: Stored, options: Mapping[str, Any]) -> Shown:
    """A picture of the gallery as the options want it. Raises DanqingError for a format that is not written."""
    record = read_record(picture.record) if picture.record else None
    plain = str(options["samples_format"]).lower() == "png" and options["enable_pnginfo"]
    if plain:
        return Shown(base64.b64encode(path.read_bytes()).decode(), picture.infotext, record)
    return Shown(encoded(read_picture(path).image, picture.infotext, options), picture.infotext, record)


def encoded(image: Image.Image, infotext: str | None, options: Mapping[str, Any]) -> str:
    """A picture's file in base64, in the options' `samples_format` and quality, with its infotext where they allow it."""
    name = str(options["samples_format"]).lower()
    if name not in _SUFFIXES:
        raise DanqingError(f"samples_format: {name!r} is not written; use {', '.join(_SUFFIXES)}")
    if name in ("jpg", "jpeg") and image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture{_SUFFIXES[name]}"
        text = infotext if infotext and options["enable_pnginfo"] else None
        save(image, path, text, None, quality=options["jpeg_quality"], lossless=options["webp_lossless"])
        return base64.b64encode(path.read_bytes()).decode()


def info(
    body: Painted,
    jobs: Sequence[Job],
    pictures: Sequence[Shown],
    *,
    grids: Sequence[str] = (),
    maps: int = 0,
    notes: Sequence[str] = (),
    face_restorer: str | None = None,
) -> str:
    """The JSON text `info`: AUTOMATIC1111's keys in its order, and `notes`, what was not done as asked.

    `grids` are the infotexts of the pictures that stand before the others, of which the first is that of them all;
    `maps` is how many detected maps follow.
    """
    records = [picture.record for picture in pictures if picture.record is not None]
    requests = [record.request for record in records]
    first = requests[0] if requests else None
    asked = jobs[0].parts[0] if jobs and jobs[0].parts else {}

    def of(name: str, default: Any = None) -> Any:
        """A field of the first picture's request; of one that was interrupted before it was done, as it was asked."""
        return getattr(first, name, default) if first is not None else asked.get(name, default)

    prompts = [request.prompt for request in requests] or [asked.get("prompt", "")]
    negatives = [request.negative_prompt for request in requests] or [asked.get("negative_prompt", "")]
    seeds = [request.seed for request in requests] or [asked.get("seed", -1)]
    subseeds = [-1 if request.subseed is None else request.subseed for request in requests] or [-1]
    checkpoint, vae = (records[0].checkpoint, records[0].vae) if records else (None, None)
    texts = [picture.infotext for picture in pictures]
    enlarged = getattr(first, "enable_hr", False) or hasattr(first, "image")
    created = time.localtime(jobs[0].created if jobs else time.time())
    return json.dumps(
        {
            "prompt": prompts[0],
            "all_prompts": prompts,
            "negative_prompt": negatives[0],
            "all_negative_prompts": negatives,
            "seed": seeds[0],
            "all_seeds": seeds,
            "subseed": subseeds[0],
            "all_subseeds": subseeds,
            "subseed_strength": of("subseed_strength", 0.0),
            "width": of("width"),
            "height": of("height"),
            "sampler_name": of("sampler_name"),
            "cfg_scale": of("cfg_scale"),
            "steps": of("steps"),
            "batch_size": body.batch_size or 1,
            "restore_faces": bool(face_restorer),
            "face_restoration_model": face_restorer,
            "sd_model_name": Path(checkpoint.name).stem if checkpoint else None,
            "sd_model_hash": checkpoint.sha256[:10] if checkpoint and checkpoint.sha256 else None,
            "sd_vae_name": vae.name if vae else None,
            "sd_vae_hash": vae.sha256[:10] if vae and vae.sha256 else None,
            "seed_resize_from_w": of("seed_resize_from_w", 0) or -1,
            "seed_resize_from_h": of("seed_resize_from_h", 0) or -1,
            "denoising_strength": of("denoising_strength") if enlarged else None,
            "extra_generation_params": _extra(texts[0]) if texts else {},
            "index_of_first_image": len(grids[:1]),
            "infotexts": [*grids, *texts, *texts[:1] * maps],
            "styles": body.styles or [],
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", created),
            "clip_skip": of("clip_skip") or 1,
            "is_using_inpainting_conditioning": bool(records) and "inpaint" in records[0].family,
            "version": f"danqing {__version__}",
            "notes": list(dict.fromkeys([*notes, *(note for job in jobs for note in job.notes)])),
        },
        ensure_ascii=False,
    )


def parameters(body: Painted, pictures: Sequence[Shown]) -> Fields:
    """The body again, as AUTOMATIC1111 echoes it; what was left to the model is as it was painted."""
    echo = body.model_dump(mode="json")
    record = next((picture.record for picture in pictures if picture.record is not None), None)
    for name in ("steps", "cfg_scale", "width", "height", "sampler_name", "scheduler"):
        if echo.get(name) is None and record is not None:
            echo[name] = getattr(record.request, name)
    if isinstance(body, Img2Img) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None}
    return echo


def _extra(infotext: str) -> dict[str, str]:
    return {key: value for key, value in parse(infotext)[2].items() if key not in _FIXED}


DEFAULTS: Mapping[str, Any] = {
    "Clip skip": "1", "Hires resize-1": 0, "Hires resize-2": 0, "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler", "Hires checkpoint": "Use same checkpoint", "Hires prompt": "",
    "Hires negative prompt": "", "Mask mode": "Inpaint masked", "Masked content": "original",
    "Inpaint area": "Whole picture", "Masked area padding": 32, "RNG": "GPU", "Schedule type": "Automatic",
    "Schedule max sigma": 0, "Schedule min sigma": 0, "Schedule rho": 0, "VAE Encoder": "Full", "VAE Decoder": "Full",
    "FP8 weight": "Disable", "Cache FP16 weight for LoRA": False, "Refiner switch by sampling steps": False,
}  # fmt: skip
"""What AUTOMATIC1111 takes to be said where an infotext does not say it (its infotext_utils.py)."""


def png_parameters(infotext: str) -> Fields:
    """The pairs of an infotext as AUTOMATIC1111's png-info gives them; sizes are also two numbers, `Size-1`, `Size-2`."""
    if not infotext:
        return {}
    prompt, negative_prompt, pairs = parse(infotext)
    values: Fields = {"Prompt": prompt, "Negative prompt": negative_prompt}
    for key, value in pairs.items():
        width, x, height = value.partition("x")
        if x and width.isdecimal() and height.isdecimal():
            values |= {f"{key}-1": width, f"{key}-2": height}
        else:
            values[key] = value
    return {**DEFAULTS, **values}
