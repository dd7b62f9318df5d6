"""The only caller of the network: noisy latents and branches in, clean predictions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from danqing.families import At, Model, Process
from danqing.models.conditioning import Conditioning
from danqing.models.patches import Patches, stacked
from danqing.models.weights import ByStep
from danqing.runtime.numerics import all_finite, guarded
from danqing.sampling.types import Predict
from danqing.vocabulary import Dialect

PatchSource = Callable[[Tensor, Tensor, At, Conditioning], Patches | None]
"""(what the network is given (N, C', H, W), the step that it is told (1,), at, its conditioning with N rows) -> what to
change in this call."""


def together(sources: Sequence[PatchSource]) -> PatchSource | None:
    """Several sources as one, for `predictor(patches=...)`: the later stands around the earlier (`patches.stacked`)."""
    if len(sources) < 2:
        return sources[0] if sources else None

    def source(scaled: Tensor, told: Tensor, at: At, conditioning: Conditioning) -> Patches | None:
        return stacked(each(scaled, told, at, conditioning) for each in sources)

    return source


def ask(
    model: Model,
    scaled: Tensor,
    told: Tensor,
    at: At,
    conditioning: Conditioning,
    changes: Patches | None,
    note: Callable[[str, str], None],
    say: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """What the model's network answers, (N, C, H, W), to `scaled` (N, C', H, W) at the step `told` (1,) that it is
    told.

    The one call of it: the network is that of the step `at`, `model.patches` hold and `changes` around them, and what
    is not finite is done again in float32, of which `note` is told (`numerics.guarded`). `model.engine` runs it where
    nothing is patched; `say` is told where it does not.
    """
    denoiser = model.denoiser.at(at.step) if isinstance(model.denoiser, ByStep) else model.denoiser
    patches = stacked([model.patches, changes])

    given = {"mask": conditioning.mask, "pooled": conditioning.pooled, **conditioning.extra}
    inputs = {"latents": scaled, "timestep": told, "context": conditioning.context}
    inputs |= {name: tensor for name, tensor in given.items() if tensor is not None}
    if model.engine is not None:
        answer = model.engine.answer(denoiser, inputs, say, patched=patches is not None)
        if answer is not None and all_finite(answer):
            return answer

    def run() -> Tensor:
        output: Tensor = denoiser(**inputs, patches=patches)
        return output

    return guarded(denoiser, run, note, "U-Net")


def predictor(
    model: Model,
    *,
    pictures_per_call: int | None = None,
    timestep_of: Callable[[float], float] | None = None,
    patches: PatchSource | None = None,
    pad: bool = False,
    branches_apart: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Predict:
    """`predict(latents, at, branches)` of `model`: each branch's clean prediction (B, C, H, W) float32.

    latents (B, C, H, W) are in the samplers' coordinates, on any device. Branches of one shape share calls of at most
    `pictures_per_call` pictures, which is 1 on a CPU and the batch elsewhere unless given. Branches whose contexts
    differ in length are called apart, as in AUTOMATIC1111, unless `pad` repeats the last vector of the shorter;
    with `branches_apart` every branch is a call of its own, which takes the least memory.
    `timestep_of` maps a noise level to what the network is told of it (the process's own rule unless given; see
    `timesteps`). `model.patches` hold in every call, and `patches` around them.
    `say` is told what had to run in float32 because it was not finite, each module once.
    Raises DanqingError where even that does not help.
    """
    process = model.process
    timestep_of = timestep_of or process.timestep
    said: set[str] = set()

    def call(latents: Tensor, at: At, conditioning: Conditioning) -> Tensor:
        """One call of the network: latents (N or 1, C, H, W) float32 and N rows of conditioning -> clean predictions
        (N, C, H, W)."""
        c_skip, c_out, c_in = process.scalings(at.sigma)
        conditioning = _cast(conditioning.to(model.device), model.dtype)
        scaled = (latents * c_in).to(model.dtype)
        if conditioning.channels is not None:
            scaled = torch.cat([scaled.expand(len(conditioning.channels), -1, -1, -1), conditioning.channels], 1)
        told = torch.tensor([timestep_of(at.sigma)], device=model.device, dtype=torch.float32)
        changes = patches(scaled, told, at, conditioning) if patches else None

        def note(module: str, part: str) -> None:
            if module not in said:
                said.add(module)
                say(f"NaN in {module} at step {at.step:g}: {part} ran in float32")

        output = ask(model, scaled, told, at, conditioning, changes, note, say)
        return c_skip * latents + c_out * output.float()

    def predict(latents: Tensor, at: At, branches: Sequence[Conditioning]) -> list[Tensor]:
        x = latents.to(model.device, torch.float32)
        count = len(x)
        size = pictures_per_call or (1 if model.device.type == "cpu" else count)
        answers: list[list[Tensor]] = [[] for _ in branches]
        groups = [[i] for i in range(len(branches))] if branches_apart else _groups(branches, pad)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            pictures = rows.stop - rows.start
            for group in groups:
                rowed = _stack([_rows(branches[i], rows) for i in group], pictures, pad)
                # one picture is told once for all its prompts, unless what changes the network from without counts rows
                once = pictures == 1 and patches is None and model.patches is None
                clean = call(x[rows] if once else x[rows].repeat(len(group), 1, 1, 1), at, rowed)
                clean = clean.expand(len(group) * pictures, -1, -1, -1)  # one answer, where nobody looks at the prompts
                for index, part in zip(group, clean.chunk(len(group))):
                    answers[index].append(part)
        return [torch.cat(parts).to(latents.device) for parts in answers]

    return predict


def timesteps(process: Process, dialect: Dialect, sampler: str = "", scheduler: str = "") -> Callable[[float], float]:
    """What each tool tells the network of a noise level; `sampler` and `scheduler` are labels and matter to diffusers.

    AUTOMATIC1111 interpolates in log sigma, ComfyUI takes the training step that is nearest there. diffusers' spaced
    schedules interpolate sigma itself; its Karras, exponential and beta ones go by log sigma, and the classes that keep
    whole timesteps round (Karras) or cut (the others).
    """
    if not process.preserving or dialect in ("danqing", "a1111"):
        return process.timestep
    sigmas = process.sigmas.numpy()
    if dialect == "comfyui":
        logs = np.log(sigmas)
        return lambda sigma: float(np.abs(np.log(sigma) - logs).argmin())
    whole = sampler in _DIFFUSERS_WHOLE
    if scheduler in ("Karras", "Exponential", "Beta"):
        fit: Callable[[float], float] = _as_is if not whole else np.round if scheduler == "Karras" else _cut
        return lambda sigma: float(fit(process.timestep(sigma)))
    fit = np.round if whole else _as_is
    return lambda sigma: float(fit(np.interp(sigma, sigmas, np.arange(len(sigmas)))))


_DIFFUSERS_WHOLE = frozenset(
    {
        "DDIM",
        "PLMS",
        "DPM++ 2M",
        "DPM++ 2M SDE",
        "DPM++ 2M SDE Heun",
        "DPM++ 3M SDE",
        "DPM++ 2S a",
        "UniPC",
        "LCM",
        "TCD",
    }
    | {"DDPM"}
)
"""Samplers whose scheduler class in diffusers stores its timesteps as whole numbers."""


def _as_is(value: float) -> float:
    return value


def _cut(value: float) -> float:
    """To the whole number below; the top level's 999 comes out as 998, for their sums end just under it."""
    return float(np.floor(max(value - 1e-3, 0.0)))


@dataclass(frozen=True)
class _Kind:
    """What two branches must have in common to be rows of one call."""

    length: int | None
    names: tuple[tuple[str, tuple[int, ...]], ...]
    """The tensors that are there, with a row's shape."""
    controls: tuple[int, ...]


def _kind(branch: Conditioning, pad: bool) -> _Kind:
    optional = {"pooled": branch.pooled, "channels": branch.channels, "image_tokens": branch.image_tokens}
    tensors = {**branch.extra, **{name: value for name, value in optional.items() if value is not None}}
    return _Kind(
        length=None if pad else branch.context.shape[1],
        names=tuple(sorted((name, tuple(value.shape[1:])) for name, value in tensors.items())),
        controls=tuple(id(control) for control in branch.controls),
    )


def _groups(branches: Sequence[Conditioning], pad: bool) -> list[list[int]]:
    """The branches' numbers, those of one kind together."""
    groups: dict[_Kind, list[int]] = {}
    for index, branch in enumerate(branches):
        groups.setdefault(_kind(branch, pad), []).append(index)
    return list(groups.values())


def _cast(conditioning: Conditioning, dtype: torch.dtype) -> Conditioning:
    """What enters the network's layers in its precision; sizes and scales (`extra`) stay as exact as they are."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    return replace(
        conditioning,
        context=conditioning.context.to(dtype),
        pooled=cast(conditioning.pooled),
        image_tokens=cast(conditioning.image_tokens),
        channels=cast(conditioning.channels),
    )


def _rows(branch: Conditioning, rows: slice) -> Conditioning:
    """The part of a conditioning that belongs to these pictures."""
    part = branch.map(lambda t: t if t.shape[0] == 1 else t[rows])
    return replace(part, rows=tuple((id(branch), picture) for picture in range(rows.start, rows.stop)))


def _stack(branches: Sequence[Conditioning], pictures: int, pad: bool) -> Conditioning:
    """The branches as one conditioning, branch after branch, each with a row per picture."""
    length = max(branch.context.shape[1] for branch in branches)
    if any(branch.mask is not None for branch in branches):
        branches = [replace(b, mask=_mask(b)) for b in branches]
    if pad:
        branches = [replace(b, context=_lengthen(b.context, length), mask=_lengthen_mask(b, length)) for b in branches]

    def joined(tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1 and len(tensors[0]) == 1:
            return tensors[0]  # one row for all pictures is the cheapest
        return torch.cat([t.expand(pictures, *t.shape[1:]) for t in tensors])

    def optional(name: str) -> Tensor | None:
        tensors = [getattr(branch, name) for branch in branches]
        return None if tensors[0] is None else joined(tensors)

    def alike(hint: Tensor) -> Tensor:
        return hint if len(hint) == 1 or len(branches) == 1 else hint.repeat(len(branches), 1, 1, 1)

    channels = optional("channels")
    return Conditioning(
        context=joined([branch.context for branch in branches]),
        mask=optional("mask"),
        pooled=optional("pooled"),
        extra={name: joined([branch.extra[name] for branch in branches]) for name in branches[0].extra},
        image_tokens=optional("image_tokens"),
        channels=None if channels is None else channels.expand(len(branches) * pictures, -1, -1, -1),
        controls=tuple(control.map(alike) for control in branches[0].controls),
        rows=tuple(row for branch in branches for row in branch.rows),
    )


def _mask(branch: Conditioning) -> Tensor:
    if branch.mask is not None:
        return branch.mask
    return torch.ones(branch.context.shape[:2], dtype=torch.bool, device=branch.context.device)


def _lengthen(context: Tensor, length: int) -> Tensor:
    """context (B, T, C) with its last vector repeated up to `length`."""
    missing = length - context.shape[1]
    return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], 1) if missing else context


def _lengthen_mask(branch: Conditioning, length: int) -> Tensor | None:
    if branch.mask is None:
        return None
    missing = length - branch.mask.shape[1]
    return torch.cat([branch.mask, branch.mask[:, -1:].expand(-1, missing)], 1) if missing else branch.mask
