"""Models distilled to few steps: what each needs, and by what it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from danqing.families import Defaults, Prediction
from danqing.sampling.schedules import TIMESTEP_SAMPLERS
from danqing.vocabulary import Dialect, Fast


@dataclass(frozen=True)
class FastModel:
    """A way of distilling: the settings that its models were made for, and beyond which their pictures are ruined."""

    name: Fast
    title: str
    source: str
    """Where its makers say so."""
    pattern: str
    """Of names in lower case; empty where no name tells."""
    sampler: str
    scheduler: str
    """SGM Uniform is what diffusers calls trailing: even from the top, the last level left out."""
    steps: int
    cfg: tuple[float, float]
    """The CFG scales from and to which it paints well; the first is the default."""
    most_steps: int
    """More are no better, or worse."""
    eta: float | None = None
    size: int | None = None
    """Pixels of the side that it was distilled at, where that is not the family's."""
    first: int | None = None
    """The training step at which it begins, where that is not the last."""
    told_steps: bool = False
    """Whether there is a model for each number of steps, which its name tells."""
    embeds: bool = False
    """Whether the U-Net is told the CFG scale and guides itself, so that any scale serves."""
    lora_pattern: str | None = None
    """Of LoRAs' names, where a word that tells a checkpoint would be a LoRA's subject; None is as of checkpoints."""
    suited: tuple[str, ...] = ()
    """More samplers that serve; empty is all of them."""

    @property
    def cfg_scale(self) -> float:
        return 8.0 if self.embeds else self.cfg[0]


_PLAIN = (
    *("Euler", "Euler a", "DDIM", "LCM", "TCD", "DDPM", "UniPC"),
    *("DPM++ 2S a", "DPM++ SDE", "DPM++ 2M", "DPM++ 2M SDE"),
)
"""Samplers that take few steps well."""

FAST_MODELS: tuple[FastModel, ...] = (
    FastModel(
        "hyper-1step", "Hyper-SD for one step, a whole U-Net", "ByteDance/Hyper-SD, model card",
        r"hyper.*\b1[-_ ]?step.*unet", "LCM", "SGM Uniform", 1, (1.0, 1.0), 1, first=800, suited=("LCM",),
    ),
    FastModel(
        "hyper-cfg", "Hyper-SD that keeps CFG", "ByteDance/Hyper-SD, model card",
        r"hyper[-_ ]?(sd|xl|\d+[-_ ]?step).*cfg", "DDIM", "SGM Uniform", 8, (5.0, 8.0), 12, told_steps=True,
        suited=_PLAIN,
    ),
    FastModel(
        "hyper", "Hyper-SD", "Ren et al. 2024 (arXiv 2404.13686); ByteDance/Hyper-SD, model card",
        r"hyper[-_ ]?(sd|xl|\d+[-_ ]?step)", "DDIM", "SGM Uniform", 8, (1.0, 2.0), 16, told_steps=True,
        suited=_PLAIN,
    ),
    FastModel(
        "lightning", "SDXL Lightning", "Lin et al. 2024 (arXiv 2402.13929); ByteDance/SDXL-Lightning, model card",
        r"lightning", "Euler", "SGM Uniform", 4, (1.0, 2.0), 12, told_steps=True,
        lora_pattern=r"lightning.*step|sd[-_ ]?xl[-_ ]?lightning", suited=_PLAIN,
    ),
    FastModel(
        "tcd", "TCD", "Zheng et al. 2024 (arXiv 2402.19159); h1t/TCD-SDXL-LoRA, model card",
        r"(^|[^a-z])tcd([^a-z]|$)", "TCD", "SGM Uniform", 4, (1.0, 2.0), 50, eta=0.3, suited=("TCD", "LCM", "DDIM", "Euler"),
    ),
    FastModel(
        "lcm", "a latent consistency model", "Luo et al. 2023 (arXiv 2310.04378); SimianLuo/LCM_Dreamshaper_v7",
        "", "LCM", "SGM Uniform", 4, (0.0, 100.0), 50, embeds=True, suited=("LCM", "TCD"),
    ),
    FastModel(
        "lcm-lora", "an LCM-LoRA", "Luo et al. 2023 (arXiv 2311.05556); latent-consistency/lcm-lora-sdxl, model card",
        r"(^|[^a-z])lcm([^a-z]|$)", "LCM", "SGM Uniform", 4, (1.0, 2.0), 50, suited=("LCM", "TCD", "Euler a", "DDPM"),
    ),
    FastModel(
        "turbo", "SD or SDXL Turbo", "Sauer et al. 2023 (arXiv 2311.17042); stabilityai/sdxl-turbo, model card",
        r"^sd[-_ ]?(xl)?[-_ ]?turbo", "Euler a", "SGM Uniform", 1, (1.0, 1.0), 4, size=512, suited=_PLAIN,
    ),
    FastModel(
        "turbo-mix", "a model merged with SDXL Turbo", "Lykon/dreamshaper-xl-v2-turbo, model card",
        r"turbo", "DPM++ SDE", "Karras", 6, (2.0, 3.0), 12, lora_pattern="", suited=_PLAIN,
    ),
)  # fmt: skip
"""The first whose pattern fits is it."""
BY_NAME: Mapping[str, FastModel] = {row.name: row for row in FAST_MODELS}
TITLES = ("modelspec.title", "ss_output_name")
"""Metadata that hold a model's name."""


@dataclass(frozen=True)
class Known:
    """A fast model, and how it is known."""

    row: FastModel
    by: str
    """In words: `its file's name`, `its metadata`, `you`."""
    exact: bool = False
    """Whether it was made for `row.steps` steps and no others."""
    checkpoint: bool = False
    """Whether it is the checkpoint, and not a LoRA on another."""


def named(row: FastModel, name: str) -> Known:
    """The row with the number of steps that `name` tells, where there is a model for each."""
    told = re.search(r"(\d{1,2})[-_ ]?steps?", name.lower())
    if told is None or not row.told_steps or not 0 < int(told[1]) <= row.most_steps:
        return Known(row, "")
    steps = int(told[1])
    if row.name == "hyper" and steps == 1:  # its unified LoRA: for more steps too, by TCD
        return Known(replace(row, sampler="TCD", eta=1.0, steps=1), "", exact=False)
    return Known(replace(row, steps=steps), "", exact=True)


def by_name(name: str, lora: bool = False) -> Known | None:
    """The fast model that the name of a checkpoint or LoRA tells."""
    folded = name.lower()
    for row in FAST_MODELS:
        pattern = row.pattern if row.lora_pattern is None or not lora else row.lora_pattern
        if pattern and re.search(pattern, folded):
            return named(row, folded)
    return None


def lora_known(name: str, metadata: Mapping[str, str]) -> Known | None:
    """What a LoRA is, by the name in its metadata, else by its file's."""
    return _told(name, metadata, lora=True)


def recognised(
    name: str, metadata: Mapping[str, str], guidance_width: int = 0, scheduler: Mapping[str, object] | None = None
) -> Known | None:
    """What a checkpoint is, by the first of these that tells: its U-Net's guidance embedding, the scheduler in its
    diffusers folder, the name in its metadata, its file's name; None where it is no fast model."""
    config = scheduler or {}
    kind, trailing = config.get("_class_name", ""), config.get("timestep_spacing") == "trailing"
    found = None
    if guidance_width:
        found = Known(BY_NAME["lcm"], "its U-Net's guidance embedding")
    elif kind in ("LCMScheduler", "TCDScheduler"):
        found = Known(BY_NAME["lcm-lora" if kind == "LCMScheduler" else "tcd"], "its scheduler_config.json")
    elif kind == "EulerAncestralDiscreteScheduler" and trailing:
        found = Known(BY_NAME["turbo"], "its scheduler_config.json")
    found = found or _told(name, metadata)
    return None if found is None else replace(found, checkpoint=True)


def _told(name: str, metadata: Mapping[str, str], lora: bool = False) -> Known | None:
    for title in TITLES:
        if found := by_name(metadata.get(title, ""), lora):
            return replace(found, by="the name in its metadata")
    found = by_name(name, lora)
    return None if found is None else replace(found, by="its file's name")


def defaults(known: Known, usual: Defaults, dialect: Dialect = "danqing") -> Defaults:
    """The family's defaults with what the fast model needs in their place.

    AUTOMATIC1111's DDIM takes no scheduler; Euler, which does, has the same formula.
    """
    row = known.row
    sampler = "Euler" if dialect == "a1111" and row.sampler in TIMESTEP_SAMPLERS else row.sampler
    size = min(row.size or usual.width, usual.width) if known.checkpoint else usual.width
    return replace(
        usual,
        width=size,
        height=size if size != usual.width else usual.height,
        steps=row.steps,
        cfg_scale=row.cfg_scale,
        sampler=sampler,
        scheduler=row.scheduler,
    )


def advice(known: Known, sampler: str, steps: int, cfg_scale: float, prediction: Prediction = "epsilon") -> list[str]:
    """A line for each setting that will ruin its pictures."""
    row, lines = known.row, list[str]()
    if row.name == "lightning" and known.exact and row.steps == 1 and prediction != "sample":
        lines.append(
            "SDXL Lightning for one step predicts the picture, not the noise: load it with --prediction-type sample"
        )
    low, high = row.cfg
    if cfg_scale < 1 and not row.embeds:
        lines.append(f"cfg_scale: {cfg_scale:g} leaves the prompt out; what diffusers calls 0 is 1 here")
    elif not low <= cfg_scale <= high:
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        lines.append(f"cfg_scale: {cfg_scale:g} ruins the pictures of {row.title}; it takes {span}")
    if known.exact and steps < row.steps:
        lines.append(f"steps: {steps} are too few for this {row.title}, which was made for {row.steps}")
    elif steps > row.most_steps:
        lines.append(f"steps: {steps} are more than {row.title} is good at; it takes at most {row.most_steps}")
    if row.suited and sampler not in row.suited and sampler != row.sampler:
        lines.append(f"sampler_name: {sampler} ruins the pictures of {row.title}; it takes {row.sampler}")
    return lines
