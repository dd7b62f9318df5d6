"""Guidance: from `predict` and branches to `denoise`, and from one `denoise` to another. They stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from danqing.families import At, Process
from danqing.models.conditioning import Conditioning
from danqing.sampling.types import Denoise, Predict, Prediction

Scale = Callable[[At], float | None]
"""The guidance scale at a point of the run; None leaves the negative prompt out there."""


def classifier_free(
    predict: Predict,
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning],
    scale: float | Scale,
    keep_negative: bool = False,
) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022), with several prompts (Liu et al. 2022, section 4.3).

    uncond + sum_i strength_i * scale * (cond_i - uncond), as AUTOMATIC1111's AND. Where a positive branch has an area,
    the positive branches are first blended into one by area times strength. Only branches that hold at the step count;
    several negative ones are blended. Everything is one call of `predict`. Where it has no effect (scale 1 with one
    prompt of strength 1) or `scale` is None, the negative prompt is not evaluated, unless `keep_negative` wants
    `Prediction.unconditional` always (CFG++). A step without its negative prompt gives
    cond_0 + sum_i strength_i * (cond_i - cond_0), as AUTOMATIC1111 does.
    Raises ValueError where no positive branch, or no negative branch that is needed, holds.
    """
    scale_at: Scale = scale if callable(scale) else lambda at: scale

    def denoise(latents: Tensor, at: At) -> Prediction:
        conds, unconds = _holding(positive, at, "positive"), [b for b in negative if b.holds(at.step)]
        factor = scale_at(at)
        alone = _blends(conds) or (len(conds) == 1 and conds[0].strength == 1)
        if not keep_negative and (factor is None or (factor == 1 and alone)):
            return Prediction(_without_negative(predict(latents, at, conds), conds))
        unconds = _holding(negative, at, "negative")
        predictions = predict(latents, at, [*conds, *unconds])
        uncond = _blend(predictions[len(conds) :], unconds)
        parts, weights = predictions[: len(conds)], [branch.strength for branch in conds]
        if _blends(conds):
            parts, weights = [_blend(parts, conds, uncond)], [1.0]
        guided = _combine(uncond, parts, weights, 1.0 if factor is None else factor)
        return Prediction(guided, uncond, _combine(uncond, parts, weights, 1.0))

    return denoise


def instruct(
    predict: Predict,
    both: Sequence[Conditioning],
    picture: Sequence[Conditioning],
    neither: Sequence[Conditioning],
    scale: float,
    picture_scale: float,
) -> Denoise:
    """InstructPix2Pix's guidance by text and by picture (Brooks et al. 2023, equation 3).

    neither + scale * (both - picture) + picture_scale * (picture - neither); of `both` (text and picture), `picture`
    (negative text and picture) and `neither` (negative text, empty picture) the branches that hold are blended.
    """

    def denoise(latents: Tensor, at: At) -> Prediction:
        groups = [_holding(group, at, "guidance") for group in (both, picture, neither)]
        predictions = iter(predict(latents, at, [branch for group in groups for branch in group]))
        text, image, nothing = (_blend([next(predictions) for _ in group], group) for group in groups)
        clean = nothing + scale * (text - image) + picture_scale * (image - nothing)
        return Prediction(clean, nothing, text)

    return denoise


def interval(scale: float | Scale, steps: int, start: float = 0.0, end: float = 1.0) -> Scale:
    """Guidance only in part of the run (Kynkäänniemi et al. 2024), by shares of its steps.

    Off up to and including `start` (AUTOMATIC1111's "ignore negative prompt during early sampling") unless that is 0,
    and from `end` on unless that is 1.
    """
    scale_at: Scale = scale if callable(scale) else lambda at: scale

    def limited(at: At) -> float | None:
        share = at.step / steps
        off = (start > 0 and share <= start) or (end < 1 and share >= end)
        return None if off else scale_at(at)

    return limited


def skip_alternate(scale: float | Scale, below: float, calls_per_step: int = 1) -> Scale:
    """AUTOMATIC1111's NGMS (`s_min_uncond`): no negative prompt in every other call at noise levels under `below`.

    Of calls counted from 0 the odd ones; `calls_per_step` is 2 for samplers of second order.
    """
    scale_at: Scale = scale if callable(scale) else lambda at: scale

    def skipping(at: At) -> float | None:
        odd = int(at.step * calls_per_step) % 2 == 1
        return None if odd and at.sigma < below else scale_at(at)

    return skipping


def perturbed_attention(
    denoise: Denoise, predict: Predict, perturbed: Sequence[Conditioning], scale: Callable[[At], float]
) -> Denoise:
    """Perturbed-attention guidance (Ahn et al. 2024, equation 14): clean + scale * (positive - perturbed positive).

    `perturbed` are the positive branches, marked so that `predict` perturbs them; AND parts and areas are composed as
    those of `denoise`. A scale of 0 costs nothing.
    """

    def guided(latents: Tensor, at: At) -> Prediction:
        prediction, factor = denoise(latents, at), scale(at)
        if factor == 0:
            return prediction
        branches = _holding(perturbed, at, "positive")
        parts = predict(latents, at, branches)
        if prediction.unconditional is None or prediction.conditional is None:
            positive, other = prediction.clean, _without_negative(parts, branches)
        elif _blends(branches):
            positive, other = prediction.conditional, _blend(parts, branches, prediction.unconditional)
        else:
            weights = [branch.strength for branch in branches]
            positive, other = prediction.conditional, _combine(prediction.unconditional, parts, weights, 1.0)
        clean = prediction.clean + factor * (positive - other)
        return Prediction(clean, prediction.unconditional, prediction.conditional)

    return guided


def self_attention(
    denoise: Denoise,
    predict: Predict,
    positive: Sequence[Conditioning],
    negative: Sequence[Conditioning],
    process: Process,
    scale: float,
    blurred: Callable[[Conditioning, Tensor], Tensor],
) -> Denoise:
    """Self-attention guidance (Hong et al. 2023, equation 16), in what the network predicts, as diffusers has it.

    `denoise` asks marked twins of `positive` and `negative`; `blurred` makes of such a branch and its clean prediction
    (B, C, H, W) one that is blurred where its pixels look most. That, at the same noise, is what the network is asked
    once more: of the negative branches, or of the positive where there is no negative prompt.
    """

    def guided(latents: Tensor, at: At) -> Prediction:
        prediction = denoise(latents, at)
        alone = prediction.unconditional is None
        clean = prediction.clean if prediction.unconditional is None else prediction.unconditional
        branches = _holding(positive if alone else negative, at, "positive" if alone else "negative")
        degraded = latents + (blurred(branches[0], clean) - clean)
        parts = predict(degraded, at, branches)
        other = _without_negative(parts, branches) if alone else _blend(parts, branches)
        c_skip, _, _ = process.scalings(at.sigma)
        away = (clean - c_skip * latents) - (other - c_skip * degraded)
        return Prediction(prediction.clean + scale * away, prediction.unconditional, prediction.conditional)

    return guided


def rescale(denoise: Denoise, process: Process, phi: float) -> Denoise:
    """Guidance rescale (Lin et al. 2023, equations 15 and 16): the guided output gets the positive one's deviation.

    Measured per picture in what the network predicts (epsilon, v ...), as the paper and diffusers do; `phi` in [0, 1]
    mixes it in. Steps without a negative prompt stay as they are.
    """

    def rescaled(latents: Tensor, at: At) -> Prediction:
        prediction = denoise(latents, at)
        if phi == 0 or prediction.conditional is None:
            return prediction
        c_skip, c_out, _ = process.scalings(at.sigma)
        guided, positive = ((clean - c_skip * latents) / c_out for clean in (prediction.clean, prediction.conditional))
        ratio = _deviation(positive) / _deviation(guided)
        output = guided * (phi * ratio + (1 - phi))
        return Prediction(c_skip * latents + c_out * output, prediction.unconditional, prediction.conditional)

    return rescaled


def dynamic_thresholding(denoise: Denoise, mimic_scale: float, percentile: float = 1.0) -> Denoise:
    """A high guidance scale with the range of values of a lower one (mcmonkey's sd-dynamic-thresholding, constant
    mode).

    Each picture's channels, about their means: values beyond the `percentile` quantile, or beyond the greatest of
    guidance at `mimic_scale` where that is more, are clipped (Saharia et al. 2022, section 2.3), and what is left is
    scaled to that greatest. Steps without a negative prompt stay as they are.
    """

    def thresholded(latents: Tensor, at: At) -> Prediction:
        prediction = denoise(latents, at)
        uncond, cond = prediction.unconditional, prediction.conditional
        if uncond is None or cond is None:
            return prediction
        mimic, _ = _centred(uncond + mimic_scale * (cond - uncond))
        values, mean = _centred(prediction.clean)
        greatest = mimic.abs().amax(-1, keepdim=True)
        limit = torch.maximum(values.abs().quantile(percentile, dim=-1, keepdim=True), greatest)
        brought = values.clamp(-limit, limit) * (greatest / limit.clamp(min=1e-12)) + mean
        return Prediction(brought.view_as(prediction.clean), uncond, cond)

    return thresholded


def classifier_guidance(
    denoise: Denoise, log_probability: Callable[[Tensor, At], Tensor], scale: float, noisy: bool = False
) -> Denoise:
    """Guidance by the gradient of a classifier (Dhariwal & Nichol 2021, algorithm 2).

    Clean predictions move by scale * sigma^2 * gradient of log p(y | latents), which is the shift of the score in the
    samplers' coordinates. `log_probability` gives (B,) for (B, C, H, W) and `at`: of the clean prediction, and then the
    gradient goes through the network; or with `noisy` of the noisy latents, as the paper's own classifiers.
    """

    def guided(latents: Tensor, at: At) -> Prediction:
        with torch.enable_grad():
            x = latents.detach().requires_grad_()
            prediction = denoise(latents if noisy else x, at)
            total = log_probability(x if noisy else prediction.clean, at).sum()
            (gradient,) = torch.autograd.grad(total, x)
        prediction = prediction.each(Tensor.detach)
        return replace(prediction, clean=prediction.clean + scale * at.sigma**2 * gradient)

    return guided


def _holding(branches: Sequence[Conditioning], at: At, side: str) -> list[Conditioning]:
    holding = [branch for branch in branches if branch.holds(at.step)]
    if not holding:
        raise ValueError(f"no {side} conditioning holds at step {at.step:g}")
    return holding


def _blends(branches: Sequence[Conditioning]) -> bool:
    return any(branch.area is not None for branch in branches)


def _blend(parts: Sequence[Tensor], branches: Sequence[Conditioning], elsewhere: Tensor | None = None) -> Tensor:
    """The mean of the branches' predictions by area and strength; `elsewhere` (the first) where none has weight."""
    if len(parts) == 1 and not _blends(branches):
        return parts[0]
    total, weight = torch.zeros_like(parts[0]), torch.zeros_like(parts[0][:, :1])
    for part, branch in zip(parts, branches):
        share = branch.strength if branch.area is None else branch.strength * branch.area.to(part)
        total, weight = total + share * part, weight + share
    somewhere = weight != 0
    return torch.where(
        somewhere, total / torch.where(somewhere, weight, 1), parts[0] if elsewhere is None else elsewhere
    )


def _without_negative(parts: Sequence[Tensor], branches: Sequence[Conditioning]) -> Tensor:
    if _blends(branches):
        return _blend(parts, branches)
    return _combine(parts[0], parts[1:], [branch.strength for branch in branches[1:]], 1.0)


def _combine(base: Tensor, parts: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    out = base
    for part, weight in zip(parts, weights):
        out = out + (part - base) * (weight * scale)
    return out


def _deviation(x: Tensor) -> Tensor:
    """Each picture's own standard deviation, (B, 1, 1, 1); one picture at a time, whose bits no batch changes."""
    return torch.stack([picture.std() for picture in x]).view(-1, 1, 1, 1)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values about their mean (B, C, H W), the means (B, C, 1)); one picture at a time, likewise."""
    flat = x.flatten(2)
    mean = torch.stack([picture.mean(-1, keepdim=True) for picture in flat])
    return flat - mean, mean
