"""What a person can ask for. Command-line flags, HTTP bodies, UI fields and metadata derive from these classes.

Field names and ranges are AUTOMATIC1111's. What is unset is None, and `resolve` fills it from the family's row.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    quoted,
    split_combined,
)

Unit = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=0, le=1 << 20)]
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
    noise_source: NoiseSource | None = Field(None, description="whose random numbers; philox is CUDA's, on any machine")

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
    dynamic_thresholding: DynamicThresholding | None = Field(
        None, description="keeps a high CFG scale from burning colours: 7 or 7,0.999"
    )

    eta: float | None = Field(
        None, ge=0, le=1, description="share of fresh noise: ancestral samplers 1, DDIM 0 by default"
    )
    s_churn: float = Field(0.0, ge=0, le=100, description="fresh noise at each step (Karras et al. 2022)")
    s_tmin: float = Field(0.0, ge=0, le=100, description="noise level below which there is no churn")
    s_tmax: float | None = Field(None, ge=0, description="noise level above which there is no churn")
    s_noise: float = Field(1.0, ge=0, le=2, description="strength of fresh noise")
    sigma_min: float | None = Field(None, ge=1e-5, le=1e5, description="lowest noise level of the schedule")
    sigma_max: float | None = Field(None, ge=1e-5, le=1e5, description="highest noise level of the schedule")
    rho: float | None = Field(None, ge=0.05, le=1000, description="curvature of Karras and polyexponential schedules")
    discard_penultimate: bool | None = Field(None, description="drop the schedule's last level but one")

    original_width: Pixels | None = Field(None, ge=1, description="size that the model shall think a picture had")
    original_height: Pixels | None = Field(None, ge=1, description="see original_width")
    crop_left: Pixels = Field(0, description="where the model shall think it was cropped")
    crop_top: Pixels = Field(0, description="see crop_left")
    target_width: Pixels | None = Field(None, ge=1, description="size that the model shall think it paints")
    target_height: Pixels | None = Field(None, ge=1, description="see target_width")
    aesthetic_score: float = Field(6.0, ge=0, le=10, description="how beautiful; for SDXL's refiner")
    negative_aesthetic_score: float = Field(2.5, ge=0, le=10, description="the same, on the negative prompt's side")

    model: str | None = Field(None, description="checkpoint, by path or name; unset is the bundled model")
    vae: str | None = Field(None, description="autoencoder file in place of the checkpoint's")

    @field_validator("dynamic_thresholding", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """`7` or `7,0.99`, as the command line gives it."""
        if not isinstance(value, str):
            return value
        parts = value.split(",")
        if len(parts) > len(DynamicThresholding.model_fields):
            raise ValueError("should be MIMIC_SCALE or MIMIC_SCALE,PERCENTILE")
        return dict(zip(DynamicThresholding.model_fields, parts))

    @field_validator("emphasis", "dialect", "noise_source", "tiling", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        """AUTOMATIC1111 writes `No norm` and `CPU`."""
        return value.strip().casefold() if isinstance(value, str) else value

    @field_validator("prompt", "negative_prompt", "model", "vae")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        """No halves of surrogate pairs, which Python makes of bytes that are no UTF-8: no file could hold them."""
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise ValueError("should be valid Unicode text") from None
        return value

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

    @model_validator(mode="after")
    def _together(self) -> Self:
        for low, high in (("guidance_start", "guidance_end"), ("s_tmin", "s_tmax"), ("sigma_min", "sigma_max")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above is not None and below > above:
                raise DanqingError(f"{low}: should not be above {high}, {above:g}, but it is {below:g}")
        count = self.batch_size * self.n_iter
        for name in ("seed", "subseed"):
            seed = getattr(self, name) or 0
            if seed + count - 1 > MAX_SEED:
                raise DanqingError(f"{name}: the last of {count} pictures would have one above {MAX_SEED}; lower it")
        return self


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
        return kind.model_validate(fields)
    except ValidationError as error:
        raise DanqingError("; ".join(_problem(kind, problem) for problem in error.errors())) from None


def _problem(kind: type[BaseModel], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "request"
    if problem["type"] == "extra_forbidden":
        like = nearest(name, kind.model_fields)
        shown = name if name.isidentifier() and len(name) < 80 else quoted(name)
        return f"{shown}: no such field" + (f"; did you mean {' or '.join(like)}?" if like else "")
    what = problem["msg"].removeprefix("Input ").removeprefix("Value error, ").partition(", unable to")[0]
    return f"{name}: {what}, but it is {quoted(problem['input'])}"
