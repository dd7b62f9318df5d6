"""What a person can ask for. Command-line flags, HTTP bodies, UI fields and metadata derive from these classes.

Field names and ranges are AUTOMATIC1111's. What is unset is None, and `resolve` fills it from the family's row.

`Painting` holds what all paintings share; `TextToImage`, `ImageToImage`, `Inpaint` and `Outpaint` are its kinds.
A picture in a request is a path or a `data:image/png;base64,...` URL; in Python also a PIL image. In a resolved request
it is a `Reference`: its name and the hash of its pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from danqing.errors import DanqingError
from danqing.request_parts import (
    AestheticEmbedding,
    ControlUnit,
    DenoisingCurve,
    Detailer,
    DynamicThresholding,
    FreeU,
    HyperTile,
    ImagePrompt,
    InpaintingFill,
    LoraMode,
    LoraRegion,
    PerturbedAttention,
    PictureSource,
    Pixels,
    Reference,
    Region,
    ResizeMode,
    SDUpscale,
    SelfAttention,
    SoftInpainting,
    StepCache,
    Template,
    Text,
    TiledDiffusion,
    TokenMerging,
    Unit,
    as_settings,
    numbered,
)
from danqing.version import NUMERICS
from danqing.vocabulary import (
    Dialect,
    Dynamic,
    Emphasis,
    Fast,
    NoiseSource,
    Tiling,
    find_sampler,
    find_scheduler,
    nearest,
    quoted,
    split_combined,
)

MAX_SEED = 2**64 - 1
Request = TypeVar("Request", bound=BaseModel)

_WITH_SETTINGS: Mapping[str, type[BaseModel]] = {
    "tiled_diffusion": TiledDiffusion,
    "freeu": FreeU,
    "pag": PerturbedAttention,
    "sag": SelfAttention,
    "token_merging": TokenMerging,
    "hypertile": HyperTile,
    "step_cache": StepCache,
    "aesthetic": AestheticEmbedding,
}
"""Fields that are `yes`, or settings in their order."""
_GOES_BACK = ("DPM adaptive", "Restart")
"""Samplers that do some steps more than once."""


class Painting(BaseModel):
    """What all kinds of paintings share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = Field("", description="what to paint, in AUTOMATIC1111's prompt language")
    negative_prompt: Text = Field("", description="what to keep away from")
    styles: tuple[Text, ...] = Field((), description="named pieces of prompt to merge in, one after another")
    dynamic: Dynamic = Field("none", description="what __wildcards__ and {a|b} in the prompts do")
    template: Template | None = Field(None, description="what the prompt was made of; Danqing writes it itself")
    width: int | None = Field(None, ge=64, le=16384, description="pixels; rounded to what the model can paint")
    height: int | None = Field(None, ge=64, le=16384, description="pixels; rounded to what the model can paint")
    steps: int | None = Field(None, ge=1, le=1000, description="sampling steps")
    cfg_scale: float | None = Field(
        None, ge=0, le=100, description="how strictly the prompt is followed; 1 leaves the negative prompt out"
    )
    sampler_name: str | None = Field(None, description="sampler, by AUTOMATIC1111's label or any tool's alias")
    scheduler: str | None = Field(None, description="noise schedule; Automatic is the sampler's own")
    fast: Fast | None = Field(
        None,
        description="a model distilled to few steps, whose settings hold where nothing else is asked; unset is found out",
    )
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

    subprompt: Text | None = Field(None, description="variation prompt, in the same language")
    subprompt_strength: Unit = Field(0.0, description="how far towards the variation prompt")
    regions: tuple[Region, ...] = Field(
        (), description="prompts of parts of the picture, as shares of it: `0,0,0.5,1 a cat; 0.5,0,0.5,1 a dog`"
    )

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

    freeu: FreeU | None = Field(
        None, description="a stronger backbone, weaker skips: `yes`, or b1,b2,s1,s2,start,end,version"
    )
    pag: PerturbedAttention | None = Field(
        None, description="perturbed-attention guidance: `yes`, or its scale, adaptive scale, layers (3,0,mid)"
    )
    sag: SelfAttention | None = Field(
        None, description="self-attention guidance: `yes`, or its scale, blur, threshold (0.75,1,1)"
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

    model: Text | None = Field(None, description="checkpoint, by path or name; unset is the bundled model")
    vae: Text | None = Field(None, description="autoencoder file in place of the checkpoint's")

    refiner_checkpoint: Text | None = Field(None, description="model that paints the last steps, by path or name")
    refiner_switch_at: Unit | None = Field(
        None, description="share of the noise schedule after which the refiner takes over; 0.8 by default"
    )

    tiled_diffusion: TiledDiffusion | None = Field(
        None,
        description="denoise in overlapping tiles, for large pictures: `yes`, or its settings in order, 96,96,48,4",
    )

    token_merging: TokenMerging | None = Field(
        None, description="faster, with fewer tokens: `yes`, or ratio, hires ratio, max downsample, sx, sy (0.5,,1,2,2)"
    )
    hypertile: HyperTile | None = Field(
        None, description="faster, with attention in tiles: `yes`, or tile size, swap size, max depth (256,3,3)"
    )
    step_cache: StepCache | None = Field(
        None,
        description="faster, asking the whole U-Net at some steps only: `yes`, or every, depth, start, end, threshold",
    )
    tgate: float = Field(
        1.0, gt=0, le=1, description="faster: share of the steps after which the text is read no more (T-GATE)"
    )
    quick: bool = Field(
        False,
        description="faster at a small, measured loss: step_cache and tgate, where they are not asked for otherwise",
    )

    aesthetic: AestheticEmbedding | None = Field(
        None,
        description="aesthetic gradients: an embedding's file, CLIP's projection, weight, steps ... "
        "(flowers.pt,clip.safetensors,0.9,5)",
    )

    lora_mode: LoraMode = Field("merge", description="how the prompt's LoRAs go together")
    lora_switch_every: int = Field(1, ge=1, le=1000, description="lora_mode switch: steps of each LoRA's turn")
    lora_regions: tuple[LoraRegion, ...] = Field(
        (), description="parts of the picture where LoRAs hold, as shares of it: `0,0,0.5,1 ink; 0.5,0,0.5,1 oil`"
    )

    controls: tuple[ControlUnit, ...] = Field(
        (), description="ControlNets and what they are shown: `MODEL,PICTURE,canny,0.8; ...`, settings in their order"
    )

    image_prompts: tuple[ImagePrompt, ...] = Field(
        (),
        description="pictures as prompts, by IP-Adapters and their kin: `MODEL,PICTURE|PICTURE,0.8,style transfer; ...`",
    )

    detailers: tuple[Detailer, ...] = Field(
        (), description="find things and paint them again, larger: `face.onnx a face; hand.onnx`"
    )

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

    @field_validator(*_WITH_SETTINGS, mode="before")
    @classmethod
    def _by_settings(cls, value: Any, info: ValidationInfo) -> Any:
        return as_settings(value, _WITH_SETTINGS[info.field_name or ""])

    @field_validator("regions", "lora_regions", mode="before")
    @classmethod
    def _spelled_regions(cls, value: Any, info: ValidationInfo) -> Any:
        """`x,y,width,height prompt` (or a LoRA's name), several apart by semicolons; or JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        rows, what = [], "prompt" if info.field_name == "regions" else "name"
        for part in filter(None, map(str.strip, value.split(";"))):
            numbers, _, text = part.partition(" ")
            sides = numbers.split(",")
            if len(sides) != 4:
                shown = f"X,Y,WIDTH,HEIGHT {what.upper()}"
                raise ValueError(f"should be {shown}, in shares of the picture, several apart by ';'")
            rows.append(dict(zip(("x", "y", "width", "height"), sides)) | {what: text.strip()})
        return rows

    @field_validator("controls", mode="before")
    @classmethod
    def _spelled_controls(cls, value: Any) -> Any:
        """`model,image,module,weight ...`, several apart by semicolons; or JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        return [as_settings(part, ControlUnit) for part in filter(None, map(str.strip, value.split(";")))]

    @field_validator("image_prompts", mode="before")
    @classmethod
    def _spelled_image_prompts(cls, value: Any) -> Any:
        """`model,images,weight ...`, several apart by semicolons; or JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        return [as_settings(part, ImagePrompt) for part in filter(None, map(str.strip, value.split(";")))]

    @field_validator("detailers", mode="before")
    @classmethod
    def _spelled_detailers(cls, value: Any) -> Any:
        """`detector prompt`, several apart by semicolons; or JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        parts = (part.strip().partition(" ") for part in value.split(";") if part.strip())
        return [{"detector": detector, "prompt": prompt.strip()} for detector, _, prompt in parts]

    @field_validator("emphasis", "dialect", "noise_source", "tiling", "dynamic", "fast", "lora_mode", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        """AUTOMATIC1111 writes `No norm` and `CPU`."""
        return value.strip().casefold() if isinstance(value, str) else value

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
        if self.tiled_diffusion is not None and self.tiling != "none":
            raise DanqingError(
                "tiling: does not go with tiled_diffusion, whose tiles have no seamless edges; leave one out"
            )
        if self.tiled_diffusion is not None and self.sag is not None:
            raise DanqingError(
                "sag: does not go with tiled_diffusion, whose tiles have no middle in common; leave one out"
            )
        self._without_caches()
        if self.lora_regions:
            clashes = ("tiled_diffusion", "detailers", "sd_upscale", "inpaint_full_res")
            clash = next((field for field in clashes if getattr(self, field, None)), None)
            if clash is not None:
                raise DanqingError(
                    f"lora_regions: does not go with {clash}, which paints parts of the picture; leave one out"
                )
            if self.lora_mode != "merge":
                raise DanqingError(f"lora_regions: does not go with lora_mode {self.lora_mode}; leave one out")
        count = self.batch_size * self.n_iter
        for name in ("seed", "subseed"):
            seed = getattr(self, name) or 0
            if seed + count - 1 > MAX_SEED:
                raise DanqingError(f"{name}: the last of {count} pictures would have one above {MAX_SEED}; lower it")
        return self

    def _without_caches(self) -> None:
        """Raises DanqingError where what is kept from step to step meets what knows no such steps."""
        fields = ("tiled_diffusion", "sag", "refiner_checkpoint")
        clashes = [field for field in fields if getattr(self, field) is not None]
        asked = (getattr(self, field, None) or "Euler" for field in ("sampler_name", "hr_sampler_name"))
        samplers = [find_sampler(split_combined(name)[0]).name for name in asked]
        clashes += [f"the sampler {name}" for name in samplers if name in _GOES_BACK]
        if self.step_cache is not None and clashes:
            raise DanqingError(f"step_cache: does not go with {clashes[0]}; leave one out")
        clashes += [f"the sampler {name}" for name in samplers if name.endswith("CFG++")]
        if (self.tgate < 1 or self.quick) and clashes:
            name = "tgate" if self.tgate < 1 else "quick"
            raise DanqingError(f"{name}: does not go with {clashes[0]}; leave one out")


class TextToImage(Painting):
    """Paint pictures from a text, and with `enable_hr` again at a larger size (hires fix)."""

    enable_hr: bool = Field(False, description="hires fix: enlarge the picture and paint it over")
    hr_scale: float = Field(2.0, ge=1, le=16, description="how much larger; hr_resize_x and _y go before it")
    hr_resize_x: int = Field(
        0, ge=0, le=16384, description="width after it in pixels; 0 is by the other side or the scale"
    )
    hr_resize_y: int = Field(0, ge=0, le=16384, description="height after it, likewise; with both the picture is cut")
    hr_upscaler: Text | None = Field(
        None, description="Latent (or another of AUTOMATIC1111's latent modes), Lanczos, Nearest, or an upscaler's file"
    )
    hr_second_pass_steps: int = Field(
        0, ge=0, le=1000, description="steps of the second pass; 0 is as many as the first"
    )
    denoising_strength: Unit | None = Field(
        None, description="hires fix: how much the second pass paints anew; 0.7 by default"
    )
    hr_sampler_name: str | None = Field(None, description="sampler of the second pass; unset is the first's")
    hr_scheduler: str | None = Field(None, description="scheduler of the second pass; unset is the first's")
    hr_cfg: float | None = Field(None, ge=0, le=100, description="CFG scale of the second pass; unset is the first's")
    hr_prompt: Text = Field("", description="prompt of the second pass; empty is the first's")
    hr_negative_prompt: Text = Field("", description="negative prompt of the second pass; empty is the first's")
    hr_checkpoint_name: Text | None = Field(None, description="checkpoint of the second pass, by path or name")

    @field_validator("hr_sampler_name", "hr_scheduler", "hr_checkpoint_name", mode="before")
    @classmethod
    def _same(cls, value: Any) -> Any:
        """AUTOMATIC1111 writes `Use same sampler` where nothing is set."""
        return None if isinstance(value, str) and value.strip().casefold().startswith("use same ") else value

    @field_validator("hr_sampler_name")
    @classmethod
    def _hr_sampler(cls, value: str | None) -> str | None:
        return cls._sampler(value)

    @field_validator("hr_scheduler")
    @classmethod
    def _hr_scheduler(cls, value: str | None) -> str | None:
        return cls._scheduler(value)


class ImageToImage(Painting):
    """Paint a picture over. Without `width` and `height` the result has the picture's size."""

    image: PictureSource = Field(description="the picture to begin with")
    denoising_strength: Unit = Field(0.75, description="0 keeps the picture, 1 keeps nothing of it")
    resize_mode: ResizeMode = Field("just resize", description="how a picture of another size is fitted")
    exact_steps: bool = Field(
        False, description="do all the steps, and not their share by denoising strength (AUTOMATIC1111's option)"
    )
    color_correction: bool = Field(False, description="give the result the picture's distribution of colours")
    initial_noise_multiplier: float = Field(1.0, ge=0, le=10, description="strength of the first noise")
    extra_noise: float = Field(0.0, ge=0, le=1, description="noise added to the picture besides")
    background_color: str = Field(
        "#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="what shines through where the picture is transparent"
    )
    image_cfg_scale: float | None = Field(
        None, ge=0, le=100, description="instruct-pix2pix models: how strictly the picture is followed; 1.5 by default"
    )
    loops: int = Field(1, ge=1, le=128, description="loopback: paint the result over, so many times in all")
    final_denoising_strength: Unit | None = Field(None, description="the last loop's; unset is as the first")
    denoising_curve: DenoisingCurve = Field("linear", description="how it gets there")
    inversion: bool = Field(
        False, description="begin with the noise that DDIM would make this picture of, in place of random noise"
    )
    inversion_prompt: Text = Field("", description="what the picture shows, for the way back to its noise")
    subimage: PictureSource | None = Field(None, description="variation picture: a second one, inverted like the first")
    subimage_strength: Unit = Field(0.0, description="how far towards the variation picture's noise")
    sd_upscale: SDUpscale | None = Field(
        None,
        description="enlarge the picture and paint it over in tiles of width x height: `yes`, or scale, overlap, upscaler",
    )

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _resize_mode(cls, value: Any) -> Any:
        value = numbered(value, get_args(ResizeMode))
        return "latent upscale" if value == "just resize (latent upscale)" else value

    @field_validator("denoising_curve", mode="before")
    @classmethod
    def _curve(cls, value: Any) -> Any:
        return value.strip().casefold() if isinstance(value, str) else value

    @field_validator("sd_upscale", mode="before")
    @classmethod
    def _upscales(cls, value: Any) -> Any:
        return as_settings(value, SDUpscale)

    @model_validator(mode="after")
    def _in_tiles(self) -> Self:
        if self.sd_upscale is not None and self.subimage is not None:
            raise DanqingError("subimage: does not go with sd_upscale, which has tiles in the picture's place")
        return self

    @model_validator(mode="after")
    def _inverts(self) -> Self:
        if not self.inversion and (self.subimage is not None or self.inversion_prompt):
            name = "subimage" if self.subimage is not None else "inversion_prompt"
            raise DanqingError(f"{name}: has an effect with inversion only; add --inversion yes")
        return self


class Masked(ImageToImage):
    """What inpainting and outpainting share: how the masked part is painted and joined."""

    mask_blur: int = Field(4, ge=0, le=256, description="pixels by which the mask's edge is softened")
    inpainting_fill: InpaintingFill = Field("original", description="what stands under the mask before painting")
    inpainting_mask_weight: Unit = Field(
        1.0, description="inpainting models: how much of the picture under the mask is hidden from them"
    )
    mask_round: bool = Field(True, description="whether the mask is taken as black and white by the sampler")
    soft_inpainting: SoftInpainting | None = Field(
        None, description="a soft mask fades from old to new: `yes`, or its settings in order"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.sd_upscale is not None:
            raise DanqingError("sd_upscale: paints whole pictures over; ask for img2img")
        return self

    @field_validator("inpainting_fill", mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        return numbered(value, get_args(InpaintingFill))

    @field_validator("soft_inpainting", mode="before")
    @classmethod
    def _soft(cls, value: Any) -> Any:
        return as_settings(value, SoftInpainting)


class Inpaint(Masked):
    """Paint anew what a mask covers. White is painted; without a mask, what is transparent in the picture."""

    mask: PictureSource | None = Field(
        None, description="white where to paint; unset is where the picture is transparent"
    )
    mask_text: Text | None = Field(None, description="mask by words, found by CLIPSeg in place of a mask picture")
    mask_model: Text | None = Field(None, description="folder of the CLIPSeg model (extra [caption])")
    mask_threshold: Unit = Field(0.4, description="how sure CLIPSeg must be")
    mask_blur_x: int | None = Field(None, ge=0, le=256, description="mask_blur along the width, where it differs")
    mask_blur_y: int | None = Field(None, ge=0, le=256, description="mask_blur along the height, where it differs")
    inpainting_mask_invert: bool = Field(False, description="paint what the mask leaves out")
    inpaint_full_res: bool = Field(
        False, description="only masked: cut the masked part out, paint it at full size, and put it back"
    )
    inpaint_full_res_padding: int = Field(32, ge=0, le=4096, description="pixels around it that are cut out along")

    @model_validator(mode="after")
    def _one_mask(self) -> Self:
        if self.mask is not None and self.mask_text is not None:
            raise DanqingError("mask_text: a mask comes from a picture or from words, not from both")
        if self.mask_text is not None and self.mask_model is None:
            raise DanqingError("mask_model: a mask from words needs the folder of a CLIPSeg model; give it")
        return self


class Outpaint(Masked):
    """Paint on beyond the picture's edges, by so many pixels on each side. The result is that much larger."""

    left: int = Field(0, ge=0, le=8192, description="pixels to add on the left")
    right: int = Field(0, ge=0, le=8192, description="pixels to add on the right")
    up: int = Field(0, ge=0, le=8192, description="pixels to add above")
    down: int = Field(0, ge=0, le=8192, description="pixels to add below")
    denoising_strength: Unit = Field(1.0, description="0 keeps the first fill, 1 keeps nothing of it")
    inpainting_fill: InpaintingFill = Field("fill", description="what stands there before painting")
    mask_blur: int = Field(
        16, ge=0, le=256, description="pixels of the picture's edge over which old and new are blended"
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.left or self.right or self.up or self.down):
            raise DanqingError("left: nothing to paint; give pixels for at least one of left, right, up, down")
        if self.width is not None or self.height is not None:
            raise DanqingError("width: an outpainting's size is the picture's and what is added; leave it out")
        return self


Kind = Literal["txt2img", "img2img", "inpaint", "outpaint"]
REQUESTS: Mapping[Kind, type[Painting]] = {
    "txt2img": TextToImage,
    "img2img": ImageToImage,
    "inpaint": Inpaint,
    "outpaint": Outpaint,
}
"""The request class of each kind of painting."""


def kind_of(request: Painting) -> Kind:
    """`txt2img` for a TextToImage, and so on."""
    return next(kind for kind, cls in REQUESTS.items() if type(request) is cls)


class Upscale(BaseModel):
    """Make pictures larger, and restore the faces in them: what AUTOMATIC1111 calls extras."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    upscaler: Text = Field("Lanczos", description="a network by path or name, or Lanczos, Nearest, Bicubic ...")
    scale: float | None = Field(None, gt=0, le=64, description="how many times larger; 2 unless a size is given")
    width: int | None = Field(None, ge=1, le=65536, description="width of the result; alone it keeps the proportions")
    height: int | None = Field(None, ge=1, le=65536, description="height of the result, likewise")
    crop: bool = Field(True, description="with both: cut what is beyond the size; else the picture covers it")
    upscaler_2: Text | None = Field(None, description="a second upscaler, laid over the first")
    upscaler_2_visibility: Unit = Field(0.5, description="how much of the second shows")
    tile: int = Field(512, ge=64, le=16384, description="pixels of the tiles that a network sees, along each side")
    ldsr_steps: int | None = Field(None, ge=1, le=1000, description="sampling steps of LDSR; 100 by default")
    face_restorer: Text | None = Field(
        None, description="weights of GFPGAN, CodeFormer or RestoreFormer, by path or name"
    )
    face_detector: Text = Field("face_detection_yunet_2023mar", description="YuNet's .onnx, which finds the faces")
    face_visibility: Unit = Field(1.0, description="how much of a restored face shows")
    fidelity: Unit = Field(0.5, description="CodeFormer's weight: 0 restores most, 1 keeps most")
    faces_first: bool = Field(False, description="restore faces before the picture is enlarged")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.scale is not None and (self.width or self.height):
            raise DanqingError("scale: give it, or a size, but not both")
        return self


class Enlarged(BaseModel):
    """What was done to a picture after it was painted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    request: Upscale
    before: tuple[int, int]
    """Width and height of the picture that went in."""
    after: tuple[int, int]
    files: Mapping[str, Reference] = Field(default_factory=dict)
    """Networks that took part, by the request's field: `upscaler`, `face_restorer` ..."""


class Platform(BaseModel):
    """What a picture was computed on: another one may round otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    """PyTorch's version."""
    device: str
    """`cpu`, `cuda`, `mps`."""
    dtype: str
    """Precision of the networks: `float32`, `bfloat16`, `float16`."""
    engine: str = "eager"
    """What ran the denoiser, with its version and options: `openvino 2026.4.1 int8`."""


def _recorded(kind: Kind, fields: dict[str, Any]) -> Painting:
    """A record's request. An outpainting's has the size that came of it, for which nobody can ask."""
    size: dict[str, Any] = {name: fields[name] for name in ("width", "height") if kind == "outpaint" and name in fields}
    plain = REQUESTS[kind].model_validate({name: value for name, value in fields.items() if name not in size})
    return plain.model_copy(update=Painting.model_validate(size).model_dump(include=set(size)))


class ResolvedRequest(BaseModel):
    """A request with nothing left open: what metadata, queue and replay store."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind = "txt2img"
    """Whose request: it follows from the request's class, and tells it when a record is read."""
    request: SerializeAsAny[Painting]
    """Every field of the arithmetic set: size, steps, CFG, sampler, scheduler, noise source, emphasis, seeds.
    Its pictures are `Reference`s."""
    family: str
    checkpoint: Reference
    vae: Reference | None = None
    others: Mapping[str, Reference] = Field(default_factory=dict)
    """More files that took part, by the request's field: `refiner_checkpoint`, `hr_checkpoint_name`, `hr_upscaler` ...
    A LoRA is `lora:NAME`, by its name in the prompt; so are `hypernet:NAME` and `embedding:NAME`."""
    notes: tuple[str, ...] = ()
    """What was changed or could not be done as asked: a rounded size, a part that ran in another precision."""
    numerics: int = NUMERICS
    platform: Platform | None = None
    pixels: str | None = None
    """Hash of the painted pixels (`metadata.pixels.pixels_sha256`), as soon as they are painted; of the enlarged ones where
    they were enlarged."""
    enlarged: tuple[Enlarged, ...] = ()
    """What was done to the picture after that, in order."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        """A record's request is read as its kind's class; a request object tells the kind."""
        if not isinstance(value, dict):
            return value
        request = value.get("request")
        if isinstance(request, Painting):
            return {**value, "kind": kind_of(request)}
        kind = value.get("kind", "txt2img")
        if isinstance(request, dict) and kind in REQUESTS:
            return {**value, "request": _recorded(kind, request)}
        return value

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


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("should be valid JSON") from None


def _problem(kind: type[BaseModel], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "request"
    if problem["type"] == "extra_forbidden":
        like = nearest(name, kind.model_fields)
        shown = name if name.isidentifier() and len(name) < 80 else quoted(name)
        return f"{shown}: no such field" + (f"; did you mean {' or '.join(like)}?" if like else "")
    what = problem["msg"].removeprefix("Input ").removeprefix("Value error, ").partition(", unable to")[0]
    return f"{name}: {what}, but it is {quoted(problem['input'])}"
