"""What a request changes in the network's own work: FreeU, token merging, HyperTile, perturbed and self-attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from danqing.adapters.attention_guidance import perturbed_source
from danqing.adapters.freeu import freeu_source
from danqing.adapters.hypertile import hypertile_source, splits
from danqing.adapters.merging import merged_blocks, merging_source
from danqing.adapters.step_cache import windows
from danqing.adapters.tgate import gate_step
from danqing.errors import DanqingError
from danqing.families import At, Family, Model
from danqing.models.unet import transformer_blocks
from danqing.request_parts import PerturbedAttention
from danqing.requests import Painting
from danqing.sampling.predict import PatchSource


def patch_sources(
    request: Painting, model: Model, steps: int, steering: Sequence[PatchSource] = ()
) -> list[PatchSource]:
    """The sources of the patches that a resolved request asks for, over a run of `steps`, and of those that steer it;
    the later act around the earlier.

    A tile's attention is to itself whatever else a reference adds; a perturbed layer looks at nothing, references
    neither.

    Raises DanqingError where one asks for layers that the U-Net lacks.
    """
    config, sources = model.family.denoiser, list[PatchSource]()
    if request.sag is not None and model.family.variant == "pix2pix":
        raise DanqingError(
            "sag: does not go with instruct-pix2pix models, which have guidance of their own; leave it out"
        )
    if request.freeu is not None:
        sources.append(freeu_source(request.freeu, config, steps, request.dialect))
    if request.hypertile is not None and not request.hypertile.hires_only:
        sources.append(hypertile_source(request.hypertile, config, model.family.autoencoder.downscale))
    sources += steering
    if request.pag is not None:
        sources.append(perturbed_source(request.pag, config))
    if request.token_merging is not None and request.token_merging.ratio:
        sources.append(merging_source(request.token_merging, config))
    return sources


def pag_scale(pag: PerturbedAttention, timestep: Callable[[float], float]) -> Callable[[At], float]:
    """The scale at a point of the run; the adaptive scale is taken off for each training step from 1000 (diffusers)."""
    return lambda at: max(pag.scale - pag.adaptive_scale * (1000 - timestep(at.sigma)), 0.0)


def patches_without_effect(asked: Painting, resolved: Painting, family: Family) -> Iterator[tuple[str, str]]:
    """(field, why) of what was asked for here and changes nothing."""
    config, cell, hires = family.denoiser, family.autoencoder.downscale, bool(getattr(asked, "enable_hr", False))
    merging, tile = asked.token_merging, asked.hypertile
    if merging is not None:
        if not merging.ratio and not (hires and merging.hr_ratio):
            yield "token_merging", "its ratio is 0"
        elif not merged_blocks(merging.model_copy(update={"ratio": 0.5}), config):
            finest = min(transformer_blocks(config).values(), default=0)
            yield "token_merging", f"{family.title} has attention from max_downsample {2**finest} on"
        if merging.hr_ratio is not None and not hires:
            yield "token_merging.hr_ratio", "the hires fix is off; enable_hr turns it on"
    if tile is not None and not hires:
        cut = splits(tile, config, (resolved.height or 0) // cell, (resolved.width or 0) // cell, cell)
        if tile.hires_only:
            yield "hypertile", "it is for the hires fix, which is off; enable_hr turns it on"
        elif all(tall == [1] and wide == [1] for _, _, tall, wide in cut.values()):
            yield "hypertile", "the picture fits into one tile"
    if asked.pag is not None and not asked.pag.scale:
        yield "pag", "its scale is 0"
    if asked.sag is not None and not asked.sag.scale:
        yield "sag", "its scale is 0"
    if asked.step_cache is not None:
        begins = windows(asked.step_cache, resolved.steps or 1)
        if all(step == begin for step, begin in begins.items()):
            yield "step_cache", f"of {resolved.steps} steps it leaves none out"
    if asked.tgate < 1 and gate_step(asked.tgate, resolved.steps or 1) == resolved.steps:
        yield "tgate", f"of {resolved.steps} steps none is beyond it"
    if asked.freeu is not None and asked.freeu.start == asked.freeu.end and asked.freeu.end != 1:
        yield "freeu", "it ends where it begins"
