"""One pass of a sampler over a batch: the model, its branches, noise levels and memory plans, and what they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from danqing.adapters.attention_guidance import Watch, perturbed
from danqing.adapters.control import Network, held_steps
from danqing.adapters.identity import Identity, without_trigger
from danqing.adapters.steer import Steering, steered, steering_sources
from danqing.families import Model
from danqing.models.clip_vision import CLIPVision
from danqing.models.conditioning import Conditioning
from danqing.models.controlnet import ControlNet
from danqing.models.ip_adapter import IPAdapter
from danqing.models.photomaker import PhotoMaker
from danqing.models.seamless import seamless
from danqing.pipeline.caching import caching
from danqing.pipeline.decode import decode, encode, to_image
from danqing.pipeline.detect import Detect
from danqing.pipeline.levels import levels
from danqing.pipeline.models import Say
from danqing.pipeline.patching import pag_scale, patch_sources
from danqing.pipeline.start import Start, switch
from danqing.pipeline.texts import encode as encode_texts
from danqing.prompts.encode import Cache
from danqing.requests import ImageToImage, Painting, ResolvedRequest
from danqing.runtime.memory import (
    Plan,
    available,
    first_that_fits,
    leaner,
    left,
    out_of_memory,
    plans,
    predicted_peak,
    with_retries,
)
from danqing.runtime.stream import is_streamed, slot_bytes
from danqing.sampling import guidance
from danqing.sampling.guidance import Scale
from danqing.sampling.noise import sampling_noise
from danqing.sampling.predict import PatchSource, predictor, timesteps, together
from danqing.sampling.retrace import Retrace
from danqing.sampling.samplers import (
    CFGPP_SCALE,
    NEEDS_NEGATIVE,
    SAMPLER_FUNCTIONS,
    dialect_options,
    end_scale,
    options_of,
    start_scale,
)
from danqing.sampling.schedules import NAMED_SPACING
from danqing.sampling.types import Denoise, Noise, Step
from danqing.sampling.windows import WEIGHTS, in_windows
from danqing.vocabulary import find_sampler

Wrap = Callable[[Denoise], Denoise]
Aside = Callable[[str, int, int], None]
"""Told of long work that is no step of a painting: (what it is, how much of it is done, how much there is)."""
Networks = Mapping[Path, Network]
"""ControlNets, T2I-Adapters and LLLites by the paths of their files."""


def unseen(what: str, done: int, total: int) -> None:
    """An `Aside` for those who do not look."""


@dataclass(frozen=True, eq=False)
class Run:
    """What all batches of a pass share."""

    model: Model
    resolved: ResolvedRequest
    positive: tuple[Conditioning, ...]
    negative: tuple[Conditioning, ...]
    sigmas: Tensor
    note: Say
    wrap: Wrap | None
    plans: Sequence[Plan]
    """From the fastest that fits to the leanest."""
    refiner: Run | None = None
    """The same pass by the model that paints its last steps."""
    channels: Tensor | None = None
    """(1, C', h, w): what an inpainting or instruct-pix2pix model is told where there is no picture."""
    full: bool = True
    """Whether `sigmas` begin at the schedule's beginning."""
    controls: tuple[Steering, ...] = ()
    """ControlNets, T2I-Adapters and image prompts with what they are shown; a refiner is shown nothing."""

    @property
    def count(self) -> int:
        return len(self.sigmas) - 1

    @property
    def cells(self) -> tuple[int, int]:
        """The latents' (width, height)."""
        r, cell = self.resolved.request, self.model.family.autoencoder.downscale
        return (r.width or 0) // cell, (r.height or 0) // cell

    def denoiser(self, plan: Plan, start: Start | None = None, retrace: Retrace | None = None) -> Denoise:
        """The network with all guidance that the request asks for; `retrace` is the run's, where it keeps something."""
        denoise = self._guided(plan, start)
        if retrace is not None:
            denoise = retrace.asking(denoise)
        if self.refiner is not None:
            share = self.resolved.request.refiner_switch_at or 0.0
            denoise = switch(denoise, self.refiner._guided(plan, None), self.model.process, share)
        denoise = self.wrap(denoise) if self.wrap else denoise
        return denoise if retrace is None else retrace.noting(denoise)

    def _guided(self, plan: Plan, start: Start | None) -> Denoise:
        r, process = self.resolved.request, self.model.process
        sampler = find_sampler(r.sampler_name or "")
        told = timesteps(process, r.dialect, sampler.name, r.scheduler or "")
        sag = r.sag if r.sag is not None and r.sag.scale else None
        watch = None if sag is None else Watch(sag, self.model.family.denoiser)
        sources: list[PatchSource] = [] if watch is None else [watch.source]
        steering = steering_sources(self.controls, self.model, self.count, r.dialect, self.note)
        sources += patch_sources(r, self.model, self.count, steering)
        channels = self.channels if start is None or start.channels is None else start.channels
        positive, negative = (_with_channels(side, channels) for side in (self.positive, self.negative))
        embeds = self.model.family.denoiser.guidance_width > 0
        if embeds:
            positive, negative = (_with_scale(side, r.cfg_scale or 0.0) for side in (positive, negative))
        keeps = caching(r, self.model, self.count)
        sources += [] if keeps is None else keeps.sources(r, self.model, negative)
        predict = predictor(
            self.model,
            pictures_per_call=plan.pictures_per_call,
            branches_apart=plan.branches_apart,
            timestep_of=told,
            patches=together(sources),
            say=self.note,
        )
        if r.tiled_diffusion is not None:
            tiles = r.tiled_diffusion
            size = tiles.tile_width, tiles.tile_height
            predict = in_windows(predict, size, tiles.overlap, tiles.batch_size, WEIGHTS[tiles.method])
        scale: float | Scale = r.cfg_scale or 0.0
        if embeds:  # the network is told the scale, and guides itself
            scale = 1.0
        if sampler.name in NEEDS_NEGATIVE:
            scale = (r.cfg_scale or 0.0) / CFGPP_SCALE
        guided_until = min(r.guidance_end, r.tgate)
        if r.guidance_start > 0 or guided_until < 1:
            scale = guidance.interval(scale, self.count, r.guidance_start, guided_until)
        if r.s_min_uncond > 0:
            scale = guidance.skip_alternate(scale, r.s_min_uncond, 2 if sampler.second_order else 1)
        keep = sampler.name in NEEDS_NEGATIVE
        seen = (positive, negative) if watch is None else (watch.marked(positive), watch.marked(negative))
        if channels is not None and channels is not self.channels and self.model.family.variant == "pix2pix":
            by_picture = (isinstance(r, ImageToImage) and r.image_cfg_scale) or 0.0
            neither = _with_channels(negative, torch.zeros_like(channels))
            denoise = guidance.instruct(predict, positive, negative, neither, r.cfg_scale or 0.0, by_picture)
        else:
            denoise = guidance.classifier_free(predict, *seen, scale, keep)
        if r.pag is not None:
            denoise = guidance.perturbed_attention(denoise, predict, perturbed(positive), pag_scale(r.pag, told))
        if watch is not None:
            asked, scale = watch.watching(denoise), watch.sag.scale
            denoise = guidance.self_attention(asked, predict, positive, negative, process, scale, watch.blurred)
        if r.dynamic_thresholding is not None:
            thresholds = r.dynamic_thresholding
            denoise = guidance.dynamic_thresholding(denoise, thresholds.mimic_scale, thresholds.percentile)
        if r.guidance_rescale > 0:
            denoise = guidance.rescale(denoise, process, r.guidance_rescale)
        return denoise

    def noise(self, singles: Sequence[ResolvedRequest]) -> Noise:
        """The batch's random numbers: each picture's from its own seed."""
        r, family = self.resolved.request, self.model.family
        cell = family.autoencoder.downscale
        width, height = self.cells
        resized = r.seed_resize_from_w > 0 and r.seed_resize_from_h > 0
        return sampling_noise(
            r.dialect,
            find_sampler(r.sampler_name or ""),
            self.sigmas,
            [single.request.seed or 0 for single in singles],
            (family.autoencoder.latent_channels, height, width),
            source=r.noise_source or "cpu",
            device=self.model.device,
            subseeds=[single.request.subseed or 0 for single in singles],
            subseed_strength=r.subseed_strength,
            seed_resize_from=(r.seed_resize_from_w // cell, r.seed_resize_from_h // cell) if resized else None,
            ensd=r.eta_noise_seed_delta,
        )

    def steps(self, singles: Sequence[ResolvedRequest], start: Start | None = None) -> Iterator[Step]:
        """Sample a batch. Where memory runs out, the step is done again by the next leaner plan."""
        r, process = self.resolved.request, self.model.process
        name = r.sampler_name or ""
        noise, level = self.noise(singles), float(self.sigmas[0])
        spacing = NAMED_SPACING.get(r.scheduler or "", self.model.family.spacing)
        scale = start_scale(name, process, level, r.dialect, spacing)
        if start is None:
            first = noise(0) * scale
        else:
            noise = start.numbered(noise)
            first = start.first(noise, level, scale, self.full, r.dialect)
        asked = {option: getattr(r, option) for option in options_of(name)}
        options = dialect_options(name, r.dialect) | {k: v for k, v in asked.items() if v is not None}
        sample, ladder = SAMPLER_FUNCTIONS[name], self.plans
        puts_back = start is not None and start.puts_back(r.dialect, name)
        last: Step | None = None
        keeps = caching(r, self.model, self.count)
        retrace = None if keeps is None else Retrace(keeps.rests)

        def denoiser(plan: Plan) -> Denoise:
            denoise = self.denoiser(plan, start, retrace)
            return denoise if start is None else start.holding(denoise, noise, r.dialect, name, process)

        denoise = denoiser(ladder[0])
        while True:
            try:
                for step in sample(denoise, first, self.sigmas, noise, last, **options):
                    last = step
                    if puts_back and start is not None:
                        last = start.after(step, float(self.sigmas[step.index + 1]), noise)
                        yield last
                        break  # the sampler goes on from what was put back
                    yield step
                else:
                    return
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            ladder = leaner(ladder, self.note)
            denoise = denoiser(ladder[0])

    def paint(self, singles: Sequence[ResolvedRequest], start: Start | None = None) -> Generator[Step, None, Tensor]:
        """`steps`; returns the painted latents (B, C, H, W)."""
        latents = torch.empty(0)
        for step in self.steps(singles, start):
            latents = step.latents
            yield step
        return latents if start is None else start.last(latents)

    def picture(self, latents: Tensor) -> Image.Image:
        """The last latents (1, C, H, W) of one picture, decoded."""
        r = self.resolved.request
        scale = end_scale(r.sampler_name or "", self.model.process, float(self.sigmas[-1]), r.dialect)

        def run(plan: Plan) -> Tensor:
            return decode(self.model.autoencoder, latents * scale, tile=plan.tile, note=self.note)

        return to_image(with_retries(self._coding_plans(), run, self.note), r.dialect)

    def latents(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pixels (1, 3, H, W) -> latents (1, C, h, w); `noise` as in `decode.encode`."""

        def run(plan: Plan) -> Tensor:
            return encode(self.model.autoencoder, pixels, tile=plan.tile, note=self.note, noise=noise)

        return with_retries(self._coding_plans(), run, self.note)

    def _coding_plans(self) -> Sequence[Plan]:
        return [*[plan for plan in self.plans if plan.tile is None][:1], self.plans[-1]]


def prepare(
    resolved: ResolvedRequest,
    model: Model,
    note: Say,
    wrap: Wrap | None = None,
    cache: Cache | None = None,
    *,
    strength: float | None = None,
    exact: bool = False,
    first_pass_steps: int | None = None,
    pictures: Mapping[str, Image.Image] | None = None,
    refiner: Model | None = None,
    controls: Sequence[Steering] = (),
) -> Run:
    """Encode the prompts and what is shown, choose the noise levels and a plan that fits in memory.

    `strength` and `exact` are `levels`'s, `first_pass_steps` and `pictures` are `texts.encode`'s. `refiner` paints the
    last steps. `controls` steer all but those.
    """
    r = resolved.request
    if r.tiling != "none":
        model = replace(
            model, denoiser=seamless(model.denoiser, r.tiling), autoencoder=seamless(model.autoencoder, r.tiling)
        )
    sigmas = levels(r, model, strength, exact)
    who = next((unit for unit in controls if isinstance(unit, Identity)), None)
    always = (-math.inf, math.inf)
    positive, negative = encode_texts(
        r,
        model,
        note,
        {} if cache is None else cache,
        first_pass_steps=first_pass_steps,
        pictures=pictures,
        identity=who,
        held=held_steps(who.start, who.end, sigmas.tolist(), model.process, r.dialect) if who else always,
    )
    branches = len([b for b in positive if b.holds(0)]) + len([b for b in negative if b.holds(0)])
    second = None
    if refiner is not None:
        seen = resolved
        if who is not None:  # whom it is not shown
            seen = resolved.model_copy(update={"request": r.model_copy(update={"prompt": without_trigger(r.prompt)})})
        second = prepare(seen, refiner, note, None, pictures=pictures)
    fitting = fitting_plans(r, model, branches, note)
    full = strength is None or len(sigmas) == len(levels(r, model))
    channels = empty_channels(model, r)
    run = Run(model, resolved, positive, negative, sigmas, note, wrap, fitting, second, channels, full, tuple(controls))
    cell = model.family.autoencoder.downscale
    positive, negative = steered(positive, negative, controls, run.cells, cell, run.latents, model.device)
    return replace(run, positive=positive, negative=negative)


@dataclass(frozen=True, eq=False)
class Prompter:
    """What an image prompt of a request is made with; nothing for `reference only`."""

    network: IPAdapter | PhotoMaker | None = None
    tower: CLIPVision | None = None
    """What the network looks through, unless that is its own or there is only a face."""
    identity_net: ControlNet | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    """Where they and faces' vectors lie, by the setting that names them: `model`, `encoder`, `identity_net`,
    `faces`."""


@dataclass(frozen=True, eq=False)
class Studio:
    """What a painting is made with, besides its request."""

    model: Model
    note: Say
    wrap: Wrap | None = None
    cache: Cache = field(default_factory=dict)
    """Encoded prompts of `model`."""
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    """What the request's pictures show, by field."""
    others: Mapping[str, Model] = field(default_factory=dict)
    """More models, by the request's field: `refiner_checkpoint`, `hr_checkpoint_name`."""
    detectors: Mapping[str, Detect] = field(default_factory=dict)
    """Detectors of detailers, by the name that a request has for them; others are loaded."""
    controls: tuple[Steering, ...] = ()
    """ControlNets, T2I-Adapters and image prompts with what they are shown."""
    networks: Networks = field(default_factory=dict)
    """Those of the request's own controls, loaded."""
    prompters: tuple[Prompter, ...] = ()
    """Of the request's image prompts, in their order."""
    aside: Aside = unseen
    """Told of an upscaler's tiles and an inversion's steps."""


@dataclass(frozen=True, eq=False)
class Painter:
    """How the batches of a request are painted."""

    count: int
    """Steps of a batch; a detailer that finds something adds to them."""
    batch: Callable[[Sequence[ResolvedRequest]], Generator[Step, None, list[Image.Image]]]
    """Paints one picture for each request of a batch, and returns them."""


def fitting_plans(request: Painting, model: Model, branches: int, note: Say) -> Sequence[Plan]:
    """The plans that should fit in what memory is free, fastest first; one that does not is not even tried."""
    itemsize, tiles = model.dtype.itemsize, request.tiled_diffusion
    window = None if tiles is None else (tiles.tile_width, tiles.tile_height)
    coming = slot_bytes(model.denoiser, model.dtype) if is_streamed(model.denoiser) else 0
    together = request.batch_size * (1 if tiles is None else tiles.batch_size)

    def peak(plan: Plan) -> int:
        return predicted_peak(
            plan,
            weights=coming,  # the others are loaded already
            denoiser=model.family.denoiser,
            autoencoder=model.family.autoencoder,
            width=request.width or 0,
            height=request.height or 0,
            itemsize=itemsize,
            branches=branches,
            window=window,
            controls=len(request.controls),
            in_bands=model.device.type == "cpu",
        )

    free = available(model.device)
    if model.memory is not None:
        granted = left(model.memory, model.device)
        free = granted if free is None else min(free, granted)
    return first_that_fits(plans(together, model.device), peak, free, note)


def _with_channels(branches: Sequence[Conditioning], channels: Tensor | None) -> tuple[Conditioning, ...]:
    return tuple(branches) if channels is None else tuple(replace(branch, channels=channels) for branch in branches)


def _with_scale(branches: Sequence[Conditioning], scale: float) -> tuple[Conditioning, ...]:
    """The branches with the CFG scale that a latent consistency model is told."""
    told = torch.tensor([scale])
    return tuple(replace(branch, extra={**branch.extra, "guidance": told}) for branch in branches)


def empty_channels(model: Model, request: Painting) -> Tensor | None:
    """What an inpainting or instruct-pix2pix model is told when there is no picture, as AUTOMATIC1111 does.

    Inpainting (5 channels): repaint all of a mid-grey picture. Instruct-pix2pix (4): zeros.
    """
    config, cell = model.family.denoiser, model.family.autoencoder.downscale
    width, height = request.width or 0, request.height or 0
    extra = config.in_channels - config.out_channels
    if extra == 0:
        return None
    channels = torch.zeros(1, extra, height // cell, width // cell)
    if model.family.variant == "inpaint":
        grey = torch.zeros(1, 3, height, width, device=model.device)
        channels[:, :1] = 1
        channels[:, 1:] = model.autoencoder.encode(grey).mode()
    return channels.to(model.device)
