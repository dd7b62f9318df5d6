"""What a person can ask for. Command-line flags, HTTP bodies, UI fields and metadata derive from these classes.

Field names and ranges are AUTOMATIC1111's. What is unset is None, and `resolve` fills it from the family's row.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from danqing.errors import DanqingError
from danqing.version import NUMERICS
from danqing.vocabulary import (
    Dialect,
    Emphasis,
    NoiseSource,
    Tiling,
    find_sampler,
    find_scheduler,
    nearest,
    split_combined,
)

Unit = Annotated[float, Field(ge=0, le=1)]
MAX_SEED = 2**64 - 1
Request = TypeVar("Request", bound=BaseModel)


class DynamicThresholding(BaseModel):
    """Dynamic thresholding of the guided prediction (Imagen, Saharia et al. 2022, section 2.3; mcmonkey's mimic scale)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mimic_scale: float = Field(7.0, ge=0, description="CFG scale whose range of values the result is brought into")
    percentile: float = Field(0.999, gt=0, le=1, description="share of values that are left unclipped")


class TextToImage(BaseModel):
    """Paint pictures from a text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: str = Field("", description="what to paint, in AUTOMATIC1111's prompt language")
    negative_prompt: str = Field("", description="what to keep away from")
    width: int | None = Field(None, ge=64, le=16384, description="pixels; rounded to what the model can paint")
    height: int | None = Field(None, ge=64, le=16384, description="pixels; rounded to what the model can paint")
    steps: int | None = Field(None, ge=1, le=1000, description="sampling steps")
    cfg_scale: float | None = Field(
        None, ge=0, le=100, description="how strictly the prompt is followed; 1 leaves the negative prompt out"
    )
    sampler_name: str | None = Field(None, description="sampler, by AUTOMATIC1111's label or any tool's alias")
    scheduler: str | None = Field(None, description="noise schedule; Automatic is the sampler's own")
    seed: int | None = Field(
        None, ge=-1, le=MAX_SEED, description="picture i of a batch has seed + i; -1 or unset draws one"
    )
    batch_size: int = Field(1, ge=1, le=64, description="pictures painted together")
    n_iter: int = Field(1, ge=1, le=1000, description="batches painted after another")

    subseed: int | None = Field(None, ge=-1, le=MAX_SEED, description="variation seed")
    subseed_strength: Unit = Field(0.0, description="how far towards the variation seed's noise")
    seed_resize_from_w: int = Field(0, ge=0, le=16384, description="take the noise of a picture of this width")
    seed_resize_from_h: int = Field(0, ge=0, le=16384, description="take the noise of a picture of this height")
    eta_noise_seed_delta: int = Field(
        0, ge=0, le=MAX_SEED, description="ENSD: added to the seed of the noise after the first"
    )
    noise_source: NoiseSource | None = Field(None, description="random numbers: cpu, gpu, or philox (CUDA's, anywhere)")

    clip_skip: int | None = Field(None, ge=1, le=12, description="1 is the text encoder's last layer, 2 the one before")
    emphasis: Emphasis | None = Field(None, description="how (word:1.2) acts")
    dialect: Dialect = Field("danqing", description="whose details to follow where tools differ")
    tiling: Tiling = Field("none", description="axes along which the picture repeats without a seam")

    guidance_rescale: Unit = Field(0.0, description="CFG rescale (Lin et al. 2023)")
    guidance_start: Unit = Field(0.0, description="share of the steps after which guidance begins (skip early CFG)")
    guidance_end: Unit = Field(1.0, description="share of the steps after which guidance ends")
    s_min_uncond: float = Field(
        0.0, ge=0, le=15, description="NGMS: below this noise level the negative prompt is left out every other step"
    )
    dynamic_thresholding: DynamicThresholding | None = None

    eta: float | None = Field(
        None, ge=0, le=1, description="share of fresh noise: ancestral samplers 1, DDIM 0 by default"
    )
    s_churn: float = Field(0.0, ge=0, le=100)
    s_tmin: float = Field(0.0, ge=0, le=100)
    s_tmax: float | None = Field(None, ge=0, description="unset is infinite")
    s_noise: float = Field(1.0, ge=0, le=2)
    sigma_min: float | None = Field(None, gt=0, description="lowest noise level of the schedule")
    sigma_max: float | None = Field(None, gt=0, description="highest noise level of the schedule")
    rho: float | None = Field(None, gt=0, description="curvature of Karras and polyexponential schedules")
    discard_penultimate: bool | None = Field(None, description="drop the schedule's last level but one")

    original_width: int | None = Field(
        None, ge=1, description="SDXL: size the model shall think the training picture had"
    )
    original_height: int | None = Field(None, ge=1)
    crop_left: int = Field(0, ge=0, description="SDXL: where the model shall think it was cropped")
    crop_top: int = Field(0, ge=0)
    target_width: int | None = Field(None, ge=1)
    target_height: int | None = Field(None, ge=1)
    aesthetic_score: float = Field(6.0, ge=0, le=10, description="SDXL refiner")
    negative_aesthetic_score: float = Field(2.5, ge=0, le=10)

    model: str | None = Field(None, description="checkpoint, by path or name; unset is the bundled model")
    vae: str | None = Field(None, description="autoencoder file in place of the checkpoint's")

    @field_validator("dynamic_thresholding", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """`7` or `7,0.99`, as the command line gives it."""
        if not isinstance(value, str):
            return value
        return dict(zip(DynamicThresholding.model_fields, value.split(",")))

    @field_validator("sampler_name")
    @classmethod
    def _sampler(cls, value: str | None) -> str | None:
        if value is None:
            return None
        name, _ = split_combined(value)
        find_sampler(name)
        return value

    @field_validator("scheduler")
    @classmethod
    def _scheduler(cls, value: str | None) -> str | None:
        return None if value is None else find_scheduler(value).name


class Reference(BaseModel):
    """A file that took part: its name, and its hash as soon as it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    sha256: str | None = None


class ResolvedRequest(BaseModel):
    """A request with nothing left open: what metadata, queue and replay store."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["txt2img"] = "txt2img"
    request: TextToImage
    """Every field of the arithmetic set: size, steps, CFG, sampler, scheduler, noise source, emphasis, seeds."""
    family: str
    checkpoint: Reference
    vae: Reference | None = None
    notes: tuple[str, ...] = ()
    """What was changed or could not be done as asked: a rounded size, a part that ran in another precision."""
    numerics: int = NUMERICS

    def picture(self, index: int) -> ResolvedRequest:
        """The request that paints picture `index` of this one's alone."""
        request = self.request
        seed = request.seed or 0
        changes: dict[str, Any] = {"batch_size": 1, "n_iter": 1}
        if request.subseed_strength == 0:
            changes["seed"] = seed + index
        if request.subseed is not None:
            changes["subseed"] = request.subseed + index
        return self.model_copy(update={"request": request.model_copy(update=changes)})


def read(kind: type[Request], fields: dict[str, Any]) -> Request:
    """`kind(**fields)`, text taken as what it spells. Raises DanqingError: one line with every wrong field."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise DanqingError("; ".join(_problem(kind, problem) for problem in error.errors())) from None


def _problem(kind: type[BaseModel], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        like = nearest(name, kind.model_fields)
        return f"{name}: no such field" + (f"; did you mean {' or '.join(like)}?" if like else "")
    what = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{name}: {what}, but it is {problem['input']!r}"
