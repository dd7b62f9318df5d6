"""AUTOMATIC1111's infotext: the text under a picture that tools read back (its `create_infotext`)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from danqing.requests import ResolvedRequest
from danqing.version import __version__


def quote(value: object) -> str:
    """A value as AUTOMATIC1111 writes it: a JSON string where it holds a comma, a colon or a newline.

    Numbers are written in full, so that reading them back gives the same bits; 7.0 is 7.
    """
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


def _pairs(resolved: ResolvedRequest) -> Iterator[tuple[str, object]]:
    """The parameters line, in AUTOMATIC1111's fixed order; None is left out."""
    r = resolved.request
    varied = r.subseed_strength > 0
    resized = r.seed_resize_from_w > 0 and r.seed_resize_from_h > 0
    checkpoint, vae = resolved.checkpoint, resolved.vae
    yield "Steps", r.steps
    yield "Sampler", r.sampler_name
    yield "Schedule type", r.scheduler
    yield "CFG scale", r.cfg_scale
    yield "Seed", r.seed
    yield "Size", f"{r.width}x{r.height}"
    yield "Model hash", checkpoint.sha256[:10] if checkpoint.sha256 else None
    yield "Model", checkpoint.name
    yield "VAE hash", vae.sha256[:10] if vae and vae.sha256 else None
    yield "VAE", vae.name if vae else None
    yield "Variation seed", r.subseed if varied else None
    yield "Variation seed strength", r.subseed_strength if varied else None
    yield "Seed resize from", f"{r.seed_resize_from_w}x{r.seed_resize_from_h}" if resized else None
    yield "Clip skip", r.clip_skip if (r.clip_skip or 1) > 1 else None
    yield "ENSD", r.eta_noise_seed_delta or None
    yield "RNG", {"cpu": "CPU", "philox": "NV", "gpu": None, None: None}[r.noise_source]
    yield "Tiling", "True" if r.tiling == "both" else r.tiling if r.tiling != "none" else None
    yield "Emphasis", _EMPHASIS.get(r.emphasis or "original") if set(r.prompt + r.negative_prompt) & set("([") else None
    yield "Eta", r.eta
    yield "Sigma churn", r.s_churn or None
    yield "Sigma tmin", r.s_tmin or None
    yield "Sigma tmax", r.s_tmax
    yield "Sigma noise", r.s_noise if r.s_noise != 1 else None
    yield "Schedule min sigma", r.sigma_min
    yield "Schedule max sigma", r.sigma_max
    yield "Schedule rho", r.rho
    yield "Discard penultimate sigma", "True" if r.discard_penultimate else None
    yield "NGMS", r.s_min_uncond or None
    yield "Skip Early CFG", r.guidance_start or None
    yield "CFG rescale", r.guidance_rescale or None
    yield "Version", f"danqing {__version__}"


_EMPHASIS = {"no norm": "No norm", "ignore": "Ignore", "none": "None", "comfyui": "ComfyUI"}


def infotext(resolved: ResolvedRequest) -> str:
    """Prompt, negative prompt and parameters in AUTOMATIC1111's three-part form."""
    request = resolved.request
    line = ", ".join(f"{key}: {quote(value)}" for key, value in _pairs(resolved) if value is not None)
    parts = [request.prompt]
    if request.negative_prompt:
        parts.append(f"Negative prompt: {request.negative_prompt}")
    return "\n".join([*parts, line])
