"""Text to image: a request becomes pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from danqing.checkpoints.load import with_autoencoder
from danqing.families import Model
from danqing.models.clip_vision import SafetyChecker
from danqing.models.conditioning import Conditioning
from danqing.models.seamless import seamless
from danqing.pipeline.decode import decode, to_image
from danqing.pipeline.expand import expand
from danqing.pipeline.models import Say, find_vae, hashes_later, load, print_note
from danqing.pipeline.picture import Picture
from danqing.pipeline.resolve import resolve
from danqing.pipeline.safety import flag, folder_of, load_checker
from danqing.prompts.encode import Cache, Sizes, conditionings
from danqing.prompts.grammar import understand
from danqing.requests import Reference, ResolvedRequest, TextToImage, read
from danqing.runtime.memory import (
    Plan,
    available,
    first_that_fits,
    leaner,
    out_of_memory,
    plans,
    predicted_peak,
    with_retries,
)
from danqing.sampling import guidance
from danqing.sampling.guidance import Scale
from danqing.sampling.noise import DRAWING, sampling_noise
from danqing.sampling.predict import predictor, timesteps
from danqing.sampling.samplers import (
    CFGPP_SCALE,
    NEEDS_NEGATIVE,
    PICTURE_BY_PICTURE,
    SAMPLER_FUNCTIONS,
    dialect_options,
    end_scale,
    options_of,
    start_scale,
)
from danqing.sampling.schedules import schedule
from danqing.sampling.types import Denoise, Noise, Step
from danqing.vocabulary import find_sampler


@dataclass(frozen=True, eq=False)
class Progress:
    """A finished step of a batch; with its last step come the batch's pictures."""

    batch: int
    """From 0."""
    batches: int
    step: int
    """Steps done in this batch, from 1."""
    steps: int
    latents: Tensor
    """(B, C, H, W) float32, in the samplers' coordinates."""
    clean: Tensor
    """(B, C, H, W): what the model takes the pictures to be by now."""
    pictures: tuple[Picture, ...] = ()


def paint(request: TextToImage | str, model: Model | None = None, **options: Any) -> list[Picture]:
    """Paint pictures and return them all. Takes what `stream` takes."""
    return [picture for event in stream(request, model, **options) for picture in event.pictures]


def stream(
    request: TextToImage | str,
    model: Model | None = None,
    *,
    say: Say = print_note,
    safety_checker: bool = False,
    wrap: Callable[[Denoise], Denoise] | None = None,
    cache: Cache | None = None,
    **fields: Any,
) -> Generator[Progress, None, None]:
    """Paint step by step. Closing the iterator stops after the step; what was yielded stays good.

    `request` is a `TextToImage`, or a prompt; `fields` are the request's. Without a `model`, the request's own is
    loaded, or the bundled one. `say` is told, a line each, what is not as asked. `safety_checker` runs the
    checkpoint's own, and blackens what it flags. `wrap` puts guidance of your own around the denoiser
    (`sampling.guidance.classifier_guidance` for one). `cache` keeps encoded prompts for later requests to one model.
    Raises DanqingError for a field that is wrong, a checkpoint that does not fit, or memory that is too small.
    """
    if isinstance(request, str):
        request = read(TextToImage, {"prompt": request, **fields})
    elif fields:
        request = read(TextToImage, {**request.model_dump(exclude_unset=True), **fields})
    if model is None:
        model = load(request.model, vae=request.vae, say=say)
    elif request.vae and (path := find_vae(request.vae)) != model.vae_path:
        model = with_autoencoder(model, path)
    return _parts(expand(request), model, say, safety_checker, wrap, {} if cache is None else cache)


def _parts(
    requests: Sequence[TextToImage],
    model: Model,
    say: Say,
    safety_checker: bool,
    wrap: Callable[[Denoise], Denoise] | None,
    cache: Cache,
) -> Generator[Progress, None, None]:
    """The batches of all requests that styles and wildcards made of one, counted through."""
    for index, request in enumerate(requests):
        for event in _batches(request, model, say, safety_checker, wrap, cache):
            batches = event.batches * len(requests)
            yield replace(event, batch=index * event.batches + event.batch, batches=batches)


@torch.no_grad()
def _batches(
    request: TextToImage,
    model: Model,
    say: Say,
    safety_checker: bool,
    wrap: Callable[[Denoise], Denoise] | None,
    cache: Cache,
) -> Generator[Progress, None, None]:
    notes: list[str] = []

    def note(line: str) -> None:
        if line not in notes:
            notes.append(line)
            say(line)

    vae = Reference(name=Path(model.vae_path).name) if model.vae_path else None
    resolved = resolve(request, model.family, Reference(name=model.name or "model"), vae)
    for line in resolved.notes:
        note(line)
    checker = load_checker(model) if safety_checker else None
    if checker is None and folder_of(model):
        note("the checkpoint brings a safety checker, which is not run unless asked for (--safety-checker)")
    hashes = hashes_later({"checkpoint": model.path, "vae": model.vae_path})
    run = prepare(resolved, model, note, wrap, cache)
    size, batches = resolved.request.batch_size, resolved.request.n_iter
    if resolved.request.sampler_name in PICTURE_BY_PICTURE and not DRAWING[resolved.request.dialect].batched:
        size, batches = 1, size * batches
    for batch in range(batches):
        singles = [resolved.picture(batch * size + index) for index in range(size)]
        latents = clean = torch.empty(0)
        for step in run.steps(singles):
            latents, clean = step.latents, step.clean
            if step.index + 1 < run.count:
                yield Progress(batch, batches, step.index + 1, run.count, latents, clean)
        images = [run.picture(latents[index : index + 1]) for index in range(size)]
        pictures = [
            Picture(_checked(image, checker, note), single.model_copy(update={"notes": tuple(notes)}), hashes)
            for image, single in zip(images, singles)
        ]
        yield Progress(batch, batches, run.count, run.count, latents, clean, tuple(pictures))


def _checked(image: Image.Image, checker: SafetyChecker | None, note: Say) -> Image.Image:
    if checker is None or not flag(checker, image):
        return image
    note("the safety checker flagged a picture; it is painted black")
    return Image.new("RGB", image.size)


@dataclass(frozen=True, eq=False)
class Run:
    """What all batches of a request share."""

    model: Model
    resolved: ResolvedRequest
    positive: tuple[Conditioning, ...]
    negative: tuple[Conditioning, ...]
    sigmas: Tensor
    note: Say
    wrap: Callable[[Denoise], Denoise] | None
    plans: Sequence[Plan]
    """From the fastest that fits to the leanest."""

    @property
    def count(self) -> int:
        return len(self.sigmas) - 1

    def denoiser(self, plan: Plan) -> Denoise:
        """The network with all guidance that the request asks for."""
        r, process = self.resolved.request, self.model.process
        sampler = find_sampler(r.sampler_name or "")
        told = timesteps(process, r.dialect, sampler.name, r.scheduler or "")
        predict = predictor(
            self.model,
            pictures_per_call=plan.pictures_per_call,
            branches_apart=plan.branches_apart,
            timestep_of=told,
            say=self.note,
        )
        scale: float | Scale = r.cfg_scale or 0.0
        if sampler.name in NEEDS_NEGATIVE:
            scale = (r.cfg_scale or 0.0) / CFGPP_SCALE
        if r.guidance_start > 0 or r.guidance_end < 1:
            scale = guidance.interval(scale, self.count, r.guidance_start, r.guidance_end)
        if r.s_min_uncond > 0:
            scale = guidance.skip_alternate(scale, r.s_min_uncond, 2 if sampler.second_order else 1)
        keep = sampler.name in NEEDS_NEGATIVE
        denoise = guidance.classifier_free(predict, self.positive, self.negative, scale, keep)
        if r.dynamic_thresholding is not None:
            thresholds = r.dynamic_thresholding
            denoise = guidance.dynamic_thresholding(denoise, thresholds.mimic_scale, thresholds.percentile)
        if r.guidance_rescale > 0:
            denoise = guidance.rescale(denoise, process, r.guidance_rescale)
        return self.wrap(denoise) if self.wrap else denoise

    def noise(self, singles: Sequence[ResolvedRequest]) -> Noise:
        """The batch's random numbers: each picture's from its own seed."""
        r, family = self.resolved.request, self.model.family
        cell = family.autoencoder.downscale
        shape = (family.autoencoder.latent_channels, (r.height or 0) // cell, (r.width or 0) // cell)
        resized = r.seed_resize_from_w > 0 and r.seed_resize_from_h > 0
        return sampling_noise(
            r.dialect,
            find_sampler(r.sampler_name or ""),
            self.sigmas,
            [single.request.seed or 0 for single in singles],
            shape,
            source=r.noise_source or "cpu",
            device=self.model.device,
            subseeds=[single.request.subseed or 0 for single in singles],
            subseed_strength=r.subseed_strength,
            seed_resize_from=(r.seed_resize_from_w // cell, r.seed_resize_from_h // cell) if resized else None,
            ensd=r.eta_noise_seed_delta,
        )

    def steps(self, singles: Sequence[ResolvedRequest]) -> Iterator[Step]:
        """Sample a batch. Where memory runs out, the step is done again by the next leaner plan."""
        r, process = self.resolved.request, self.model.process
        name = r.sampler_name or ""
        noise, first = self.noise(singles), float(self.sigmas[0])
        start = noise(0) * start_scale(name, process, first, r.dialect, self.model.family.spacing)
        asked = {option: getattr(r, option) for option in options_of(name)}
        options = dialect_options(name, r.dialect) | {k: v for k, v in asked.items() if v is not None}
        sample, ladder = SAMPLER_FUNCTIONS[name], self.plans
        last: Step | None = None
        while True:
            try:
                for step in sample(self.denoiser(ladder[0]), start, self.sigmas, noise, last, **options):
                    last = step
                    yield step
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            ladder = leaner(ladder, self.note)

    def picture(self, latents: Tensor) -> Image.Image:
        """The last latents (1, C, H, W) of one picture, decoded."""
        r = self.resolved.request
        scale = end_scale(r.sampler_name or "", self.model.process, float(self.sigmas[-1]), r.dialect)

        def run(plan: Plan) -> Tensor:
            return decode(self.model.autoencoder, latents * scale, tile=plan.tile, note=self.note)

        ladder = [*[plan for plan in self.plans if plan.tile is None][:1], self.plans[-1]]
        return to_image(with_retries(ladder, run, self.note), r.dialect)


def prepare(
    resolved: ResolvedRequest,
    model: Model,
    note: Say,
    wrap: Callable[[Denoise], Denoise] | None = None,
    cache: Cache | None = None,
) -> Run:
    """Encode the prompts, make the schedule, choose a plan that fits in memory."""
    r = resolved.request
    if r.tiling != "none":
        model = replace(
            model, denoiser=seamless(model.denoiser, r.tiling), autoencoder=seamless(model.autoencoder, r.tiling)
        )
    sampler = find_sampler(r.sampler_name or "")
    sigmas = schedule(
        r.scheduler or "Automatic",
        model.process,
        r.steps or 1,
        dialect=r.dialect,
        sampler=sampler,
        sigma_min=r.sigma_min,
        sigma_max=r.sigma_max,
        rho=r.rho,
        discard_penultimate=r.discard_penultimate,
        table="sdxl" if model.family.size_ids != "none" else "sd1",
        spacing=model.family.spacing,
    )
    positive, negative = encode(resolved, model, note, {} if cache is None else cache)
    branches = len([b for b in positive if b.holds(0)]) + len([b for b in negative if b.holds(0)])
    return Run(model, resolved, positive, negative, sigmas, note, wrap, fitting_plans(r, model, branches, note))


def fitting_plans(request: TextToImage, model: Model, branches: int, note: Say) -> Sequence[Plan]:
    """The plans that should fit in what memory is free, fastest first; one that does not is not even tried."""
    itemsize = model.dtype.itemsize

    def peak(plan: Plan) -> int:
        return predicted_peak(
            plan,
            weights=0,  # they are loaded already
            denoiser=model.family.denoiser,
            autoencoder=model.family.autoencoder,
            width=request.width or 0,
            height=request.height or 0,
            itemsize=itemsize,
            branches=branches,
        )

    return first_that_fits(plans(request.batch_size, model.device), peak, available(model.device), note)


def encode(
    resolved: ResolvedRequest, model: Model, note: Say, cache: Cache
) -> tuple[tuple[Conditioning, ...], tuple[Conditioning, ...]]:
    """The positive and the negative branches, with the channels that inpainting models are given."""
    r, family = resolved.request, model.family
    calls = 2 if find_sampler(r.sampler_name or "").second_order else 1
    sizes = None
    if family.size_ids != "none":
        sizes = Sizes(
            original=(r.original_height or 0, r.original_width or 0),
            crop=(r.crop_top, r.crop_left),
            target=(r.target_height or 0, r.target_width or 0),
            aesthetic=r.aesthetic_score,
            negative_aesthetic=r.negative_aesthetic_score,
        )
    channels = _empty_channels(model, r.width or 0, r.height or 0)
    sides = []
    for text, negative in ((r.prompt, False), (r.negative_prompt, True)):
        prompt = understand(text, r.steps or 1, dialect=r.dialect, calls_per_step=calls, negative=negative)
        for tag in prompt.networks:
            note(f"<{tag.kind}:{':'.join(tag.positional)}> is left out: this version applies no adapters yet")
        branches = conditionings(
            model,
            prompt,
            emphasis=r.emphasis or "original",
            clip_skip=r.clip_skip,
            dialect=r.dialect,
            sizes=sizes,
            negative=negative,
            cache=cache,
            say=note,
        )
        sides.append(tuple(replace(branch, channels=channels) for branch in branches))
    return sides[0], sides[1]


def _empty_channels(model: Model, width: int, height: int) -> Tensor | None:
    """What an inpainting or instruct-pix2pix model is told when there is no picture, as AUTOMATIC1111 does.

    Inpainting (5 channels): repaint all of a mid-grey picture. Instruct-pix2pix (4): zeros.
    """
    config, cell = model.family.denoiser, model.family.autoencoder.downscale
    extra = config.in_channels - config.out_channels
    if extra == 0:
        return None
    channels = torch.zeros(1, extra, height // cell, width // cell)
    if model.family.variant == "inpaint":
        grey = torch.zeros(1, 3, height, width, device=model.device)
        channels[:, :1] = 1
        channels[:, 1:] = model.autoencoder.encode(grey).mode()
    return channels.to(model.device)
