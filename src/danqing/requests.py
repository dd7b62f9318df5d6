"""What a person can ask for. Command-line flags, HTTP bodies, UI fields and metadata derive from these classes.

Field names and ranges are AUTOMATIC1111's. What is unset is None, and `resolve` fills it from the family's row.

`Painting` holds what all paintings share; `TextToImage`, `ImageToImage`, `Inpaint` and `Outpaint` are its kinds.
A picture in a request is a path or a `data:image/png;base64,...` URL; in Python also a PIL image. In a resolved request
it is a `Reference`: its name and the hash of its pixels.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from danqing.errors import DanqingError
from danqing.version import NUMERICS
from danqing.vocabulary import (
    Dialect,
    Dynamic,
    Emphasis,
    Fast,
    NoiseSource,
    Tiling,
    find_module,
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


class Reference(BaseModel):
    """A file that took part: its name, and its hash as soon as it is known.

    A picture's is the SHA-256 of its pixels (`metadata.pixels.pixels_sha256`), for it need not be a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    sha256: str | None = None
    """64 hexadecimal digits; of another tool's picture often the first 10, AUTOMATIC1111's short hash."""
    autov3: str | None = None
    """Of a LoRA: SHA-256 of its file without the header, by which Civitai and kohya's tools know it."""
    md5: str | None = None
    """Of a picture: MD5 of its RGBA bytes, AUTOMATIC1111's `Init image hash`."""


def _unicode(value: str) -> str:
    """No halves of surrogate pairs, which Python makes of bytes that are no UTF-8: no file could hold them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("should be valid Unicode text") from None
    return value


Text = Annotated[str, AfterValidator(_unicode)]


def _source(value: Any) -> Any:
    """A path as text, a PIL image as the data URL of a PNG."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "mode") and hasattr(value, "save"):
        data = io.BytesIO()
        value.save(data, "PNG", compress_level=1)
        return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    if not isinstance(value, str | dict | Reference) or value == "":
        raise ValueError("should be a picture: a path, a data URL, or in Python a PIL image")
    return value


PictureSource = Annotated[Text | Reference, BeforeValidator(_source)]
"""A path, a `data:image/...;base64,` URL, or (once resolved) a `Reference`. `pipeline.images.open_picture` opens it."""

ResizeMode = Literal["just resize", "crop and resize", "resize and fill", "latent upscale"]
"""How a picture of another size is brought to the one asked for; in AUTOMATIC1111's order, whose numbers serve too."""
InpaintingFill = Literal["fill", "original", "latent noise", "latent nothing"]
"""What stands under the mask before painting; in AUTOMATIC1111's order, whose numbers serve too."""
DenoisingCurve = Literal["aggressive", "linear", "lazy"]
"""How a loopback's denoising strength goes from the first loop's to the last's (AUTOMATIC1111's script)."""
ControlMode = Literal["balanced", "my prompt is more important", "controlnet is more important", "guess mode"]
"""Whose word counts, in the words and order of AUTOMATIC1111's extension; `guess mode` is diffusers'."""
WeightType = Literal[
    "linear",
    "ease in",
    "ease out",
    "ease in-out",
    "reverse in-out",
    "weak input",
    "weak middle",
    "weak output",
    "strong middle",
    "style transfer",
    "composition",
    "strong style transfer",
    "style and composition",
    "style transfer precise",
    "composition precise",
]
"""Where in the U-Net an image prompt's weight counts how much, in the words of ComfyUI_IPAdapter_plus."""
Combine = Literal["concat", "average", "add", "subtract", "norm average"]
"""How several pictures make one image prompt: all of them are attended to, or what is seen of them is averaged, added, or
the mean of the others taken from the first; likewise in ComfyUI_IPAdapter_plus' words."""
REFERENCE = "reference only"
"""Stands for an image prompt's model where none is needed: the painting's pixels attend to the picture's."""
LoraMode = Literal["merge", "switch", "composite"]
"""How several LoRAs go together: added up, one per step in turn, their answers averaged (Zhong et al. 2024)."""
TiledMethod = Literal["MultiDiffusion", "Mixture of Diffusers"]
"""How overlapping tiles are weighted: by ramps across the overlaps, or by a bell about each tile's middle."""


def _numbered(value: Any, choices: tuple[str, ...]) -> Any:
    """A choice by its name in any case, or by its number as AUTOMATIC1111's API has it."""
    if (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.strip().isdecimal()
    ):
        number = int(value)
        return choices[number] if 0 <= number < len(choices) else value
    return value.strip().casefold() if isinstance(value, str) else value


def _settings(value: Any, kind: type[BaseModel]) -> Any:
    """What a field of `kind` may be written as: `yes` is the defaults, `no` is off, `1,0.5,,4` the settings in order."""
    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, str):
        return value
    if value.strip().casefold() in ("yes", "true", "on"):
        return {}
    if value.strip().casefold() in ("no", "false", "off"):
        return None
    parts = value.split(",")
    if len(parts) > len(kind.model_fields):
        raise ValueError(
            f"should be yes, no, or up to {len(kind.model_fields)} settings: {', '.join(kind.model_fields)}"
        )
    return {field: part.strip() for field, part in zip(kind.model_fields, parts) if part.strip()}


class DynamicThresholding(BaseModel):
    """Dynamic thresholding of the guided prediction (Imagen, Saharia et al. 2022, section 2.3; mcmonkey's mimic scale)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mimic_scale: float = Field(7.0, ge=0, description="CFG scale whose range of values the result is brought into")
    percentile: float = Field(0.999, gt=0, le=1, description="share of values that are left unclipped")


class FreeU(BaseModel):
    """FreeU: the U-Net's backbone counts more, its skip connections less (Si et al. 2024)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    b1: float = Field(1.3, ge=-1, le=3, description="factor of the backbone in the first stage")
    b2: float = Field(1.4, ge=-1, le=3, description="factor of the backbone in the second stage")
    s1: float = Field(0.9, ge=-1, le=4, description="factor of the skips' low frequencies in the first stage")
    s2: float = Field(0.2, ge=-1, le=4, description="factor of the skips' low frequencies in the second stage")
    start: Unit = Field(0.0, description="share of the steps at which it begins")
    end: Unit = Field(1.0, description="share of the steps at which it ends")
    version: Literal[1, 2] = Field(2, description="2 weighs by the picture's structure, 1 by b alone")

    @field_validator("version", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.strip() in ("1", "2") else value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise DanqingError(f"freeu: start, {self.start:g}, should not be above end, {self.end:g}")
        return self


class PerturbedAttention(BaseModel):
    """Perturbed-attention guidance: away from a picture whose pixels do not look at each other (Ahn et al. 2024)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(3.0, ge=0, le=100, description="how far away from it")
    adaptive_scale: float = Field(
        0.0, ge=0, le=100, description="taken off the scale for each of the 1000 training steps that are done"
    )
    layers: tuple[Text, ...] = Field(("mid",), description="parts of layers' names, by diffusers: `mid+down_blocks.2`")

    @field_validator("layers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value.replace("+", " ").split() if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("should name a layer, as mid")
        return value


class SelfAttention(BaseModel):
    """Self-attention guidance: away from a picture that is blurred where the network looks most (Hong et al. 2023)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(0.75, ge=-2, le=5, description="how far away from it")
    blur_sigma: float = Field(1.0, ge=0, le=10, description="deviation of the blur, in latent cells")
    threshold: float = Field(1.0, ge=0, le=4, description="how much a place must be looked at; 1 is the average")


class TokenMerging(BaseModel):
    """Token merging: attention over fewer tokens, the most alike of them merged (ToMe; Bolya & Hoffman 2023)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ratio: float = Field(0.5, ge=0, le=0.9, description="share of the tokens that are merged away")
    hr_ratio: float | None = Field(None, ge=0, le=0.9, description="the same in a hires fix's second pass")
    max_downsample: int = Field(1, ge=1, le=8, description="down to which level: 1, 2, 4 or 8 cells to a token's side")
    sx: int = Field(2, ge=1, le=16, description="of so many tokens in a row, and...")
    sy: int = Field(2, ge=1, le=16, description="... so many in a column one stays in any case")

    @field_validator("hr_ratio", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value == "" else value


class HyperTile(BaseModel):
    """HyperTile: the attention of a large picture's pixels to each other in tiles. Defaults are AUTOMATIC1111's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tile_size: int = Field(256, ge=16, le=2048, description="pixels of a tile's side, at most")
    swap_size: int = Field(3, ge=0, le=64, description="between how many sizes it changes from step to step")
    max_depth: int = Field(3, ge=0, le=3, description="down to which level, counted from the finest")
    hires_only: bool = Field(False, description="in a hires fix's second pass alone")


class SoftInpainting(BaseModel):
    """Soft inpainting: a grey mask is a strength (differential diffusion, Levin & Fried 2023; AUTOMATIC1111's script)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schedule_bias: float = Field(1.0, ge=0, le=8, description="when the original is let go; above 1 earlier")
    preservation_strength: float = Field(0.5, ge=0, le=8, description="how strongly the original is held")
    transition_contrast_boost: float = Field(4.0, ge=1, le=32, description="contrast where both meet")
    mask_influence: Unit = Field(0.0, description="how much the given mask counts when the result is laid over")
    difference_threshold: float = Field(0.5, ge=0, le=8, description="change at which a pixel is half the new one")
    difference_contrast: float = Field(2.0, ge=0, le=8, description="how sharply that turns over")


class TiledDiffusion(BaseModel):
    """Pictures larger than a network's memory, in overlapping tiles (MultiDiffusion, Bar-Tal et al. 2023, and others).

    Names, units and defaults are those of AUTOMATIC1111's extension Tiled Diffusion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tile_width: int = Field(96, ge=8, le=4096, description="latent cells, of which Stable Diffusion's have 8 pixels")
    tile_height: int = Field(96, ge=8, le=4096, description="likewise")
    overlap: int = Field(48, ge=0, le=4095, description="latent cells that neighbours share")
    batch_size: int = Field(4, ge=1, le=64, description="tiles that share a call of the network, where memory suffices")
    method: TiledMethod = Field("MultiDiffusion", description="how tiles are weighted where they overlap")

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Any:
        known = {method.casefold(): method for method in get_args(TiledMethod)}
        return known.get(value.strip().casefold(), value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _overlaps(self) -> Self:
        side = min(self.tile_width, self.tile_height)
        if self.overlap >= side:
            raise DanqingError(
                f"tiled_diffusion: an overlap of {self.overlap} leaves nothing of a tile of {side} cells"
            )
        return self


class SDUpscale(BaseModel):
    """Enlarge the picture, then paint it over tile by tile (AUTOMATIC1111's script SD upscale)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = Field(2.0, ge=1, le=16, description="how many times larger")
    overlap: int = Field(64, ge=0, le=4096, description="pixels that neighbouring tiles share")
    upscaler: Text = Field("Lanczos", description="a network by path or name, Lanczos ..., or None to leave the size")


class Region(BaseModel):
    """A part of the picture with a prompt of its own: a rectangle in shares of the picture, or a mask."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = Field(description="what to paint there")
    x: Unit = Field(0.0, description="left edge, as a share of the width")
    y: Unit = Field(0.0, description="upper edge, as a share of the height")
    width: float = Field(1.0, gt=0, le=1, description="share of the picture's width")
    height: float = Field(1.0, gt=0, le=1, description="share of the picture's height")
    mask: PictureSource | None = Field(None, description="white where the prompt holds, in place of the rectangle")
    strength: float = Field(1.0, gt=0, le=100, description="weight against the prompt of the whole and other regions")


class LoraRegion(BaseModel):
    """A part of the picture where one of the prompt's LoRAs holds: a rectangle in shares of the picture, or a mask."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Text = Field(description="the LoRA's name in the prompt's tag")
    x: Unit = Field(0.0, description="left edge, as a share of the width")
    y: Unit = Field(0.0, description="upper edge, as a share of the height")
    width: float = Field(1.0, gt=0, le=1, description="share of the picture's width")
    height: float = Field(1.0, gt=0, le=1, description="share of the picture's height")
    mask: PictureSource | None = Field(None, description="white where the LoRA holds, in place of the rectangle")
    strength: float = Field(1.0, gt=0, le=1, description="how much of it holds there")


class AestheticEmbedding(BaseModel):
    """Aesthetic gradients: the text encoder learns, for a few steps, to read a prompt as some pictures look (Gallego 2022).

    Names and defaults are those of AUTOMATIC1111's extension.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    embedding: Text = Field(description="file of the mean of CLIP's vectors of pictures, by path or name")
    projection: Text | None = Field(
        None, description="a file of CLIP with its text_projection, by path or name; SD 1.x and 2.x lack it"
    )
    weight: float = Field(0.9, gt=0, le=1, description="how much of what it learned counts")
    steps: int = Field(5, ge=1, le=50, description="steps of learning")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="how far each step goes")
    slerp: bool = Field(False, description="mix on an arc, not on a line")
    text: Text = Field("", description="turns the embedding towards what this says")
    slerp_angle: Unit = Field(0.1, description="how far it is turned")
    text_negative: bool = Field(False, description="turn it away instead")

    @field_validator("projection", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value == "" else value


class ControlUnit(BaseModel):
    """A ControlNet or T2I-Adapter, and the picture that it is shown.

    Names, ranges and defaults are those of AUTOMATIC1111's extension ControlNet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Text = Field(description="the network's file or diffusers folder, by path or name")
    image: PictureSource | None = Field(None, description="what it is shown; unset is the picture painted over")
    module: Text = Field("none", description="what is made of the picture first: canny, scribble, tile ...")
    weight: float = Field(1.0, ge=0, le=10, description="how much it is listened to")
    guidance_start: Unit = Field(0.0, description="share of the steps at which it begins")
    guidance_end: Unit = Field(1.0, description="share of the steps at which it ends")
    control_mode: ControlMode = Field("balanced", description="whose word counts: the prompt's or the network's")
    resize_mode: Literal["just resize", "crop and resize", "resize and fill"] = Field(
        "crop and resize", description="how a picture of another shape is made to fit"
    )
    union_control_type: int | None = Field(
        None, ge=0, le=99, description="which kind of picture a union network is shown, by its number"
    )
    processor_res: int | None = Field(
        None, ge=64, le=8192, description="shorter side at which the module sees it; unset is pixel perfect"
    )
    threshold_a: float | None = Field(None, description="the module's first number: canny's lower threshold ...")
    threshold_b: float | None = Field(None, description="its second one: canny's higher threshold ...")

    @field_validator("control_mode", "resize_mode", mode="before")
    @classmethod
    def _worded(cls, value: Any, info: ValidationInfo) -> Any:
        return _numbered(value, get_args(cls.model_fields[info.field_name or ""].annotation))

    @field_validator("image", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("union_control_type", "processor_res", "threshold_a", "threshold_b", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """-1 is AUTOMATIC1111's way to say so."""
        return None if value in ("", -1, "-1", "-1.0") else value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.guidance_start > self.guidance_end:
            raise DanqingError(
                f"controls: guidance_start, {self.guidance_start:g}, should not be above guidance_end, {self.guidance_end:g}"
            )
        return self

    @model_validator(mode="after")
    def _taken(self) -> Self:
        """Numbers that the module takes. What takes which is known of modules by name; a file's is looked at later."""
        module = find_module(self.module)[0]
        if module is None:
            return self
        if self.processor_res is not None and not module.sized:
            raise DanqingError(f"controls: processor_res has no effect on the module '{module.name}'; leave it out")
        for index, field in enumerate(("threshold_a", "threshold_b")):
            value = getattr(self, field)
            if value is None:
                continue
            if index >= len(module.thresholds):
                raise DanqingError(f"controls: the module '{module.name}' takes no {field}; leave it out")
            told = module.thresholds[index]
            if not told.low <= value <= told.high:
                raise DanqingError(
                    f"controls: {field} of '{module.name}' is its {told.name}, from {told.low:g} to {told.high:g}, not {value:g}"
                )
        return self


class ImagePrompt(BaseModel):
    """Pictures as a prompt: an IP-Adapter, InstantID's, a PhotoMaker, or `reference only`.

    Names are those of AUTOMATIC1111's extension ControlNet and of ComfyUI_IPAdapter_plus.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Text = Field(description="the adapter's file, by path or name, or `reference only`")
    images: tuple[PictureSource, ...] = Field((), description="the pictures, several apart by |")
    weight: float = Field(1.0, ge=-5, le=5, description="how much they are listened to")
    weight_type: WeightType = Field("linear", description="where in the U-Net the weight counts")
    guidance_start: Unit = Field(0.0, description="share of the steps at which it begins")
    guidance_end: Unit = Field(1.0, description="share of the steps at which it ends")
    combine: Combine = Field("concat", description="what several pictures make together")
    encoder: Text | None = Field(None, description="CLIP's image tower, by path or name; unset is one that fits")
    mask: PictureSource | None = Field(None, description="white where it acts")
    faces: Text | None = Field(None, description="file of faces' vectors (.npy), for FaceID, InstantID, PhotoMaker v2")
    identity_net: Text | None = Field(None, description="InstantID's ControlNet, by path or name")
    keypoints: tuple[float, ...] = Field(
        (), description="InstantID: eyes, nose and corners of the mouth as X Y of the painting's pixels, ten numbers"
    )
    identity_weight: float = Field(1.0, ge=0, le=5, description="how much InstantID's ControlNet is listened to")
    style_fidelity: Unit = Field(0.5, description="reference only: how much the negative prompt's side is kept from it")

    @field_validator("weight_type", "combine", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.strip().casefold() if isinstance(value, str) else value

    @field_validator("images", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(filter(None, map(str.strip, value.split("|"))))
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("encoder", "mask", "faces", "identity_net", mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("keypoints", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.guidance_start > self.guidance_end:
            raise DanqingError(
                f"image_prompts: guidance_start, {self.guidance_start:g}, should not be above guidance_end, "
                f"{self.guidance_end:g}"
            )
        if len(self.keypoints) not in (0, 10):
            raise DanqingError(
                f"image_prompts: keypoints are ten numbers, X and Y of five points, not {len(self.keypoints)}"
            )
        return self


class Detailer(BaseModel):
    """Find things in a painted picture and paint each again, larger (as the extension ADetailer does)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    detector: str = Field(description="weights of the detector: an ONNX export of a YOLO model, by path")
    prompt: Text = Field("", description="what to paint there; empty is the picture's own prompt")
    negative_prompt: Text = Field("", description="what to keep away from; empty is the picture's own")
    classes: tuple[int, ...] = Field((), description="only these of the detector's classes; empty is all of them")
    confidence: Unit = Field(0.3, description="how sure the detector must be")
    largest: int = Field(0, ge=0, description="repaint only so many, the largest first; 0 is all")
    dilate: int = Field(4, ge=-128, le=128, description="pixels by which the masks grow, or shrink below 0")
    mask_blur: int = Field(4, ge=0, le=64, description="as in inpainting")
    padding: int = Field(32, ge=0, le=256, description="pixels around the mask that are painted along")
    denoising_strength: Unit = Field(0.4, description="how much is painted anew")
    width: int | None = Field(None, ge=64, le=2048, description="size at which it is painted; unset is the picture's")
    height: int | None = Field(None, ge=64, le=2048, description="see width")
    steps: int | None = Field(None, ge=1, le=1000, description="sampling steps; unset is the picture's")


class Template(BaseModel):
    """What was asked for, where styles and wildcards made another prompt of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: tuple[Text, ...] = ()
    dynamic: Dynamic = "none"


_WITH_SETTINGS: Mapping[str, type[BaseModel]] = {
    "tiled_diffusion": TiledDiffusion,
    "freeu": FreeU,
    "pag": PerturbedAttention,
    "sag": SelfAttention,
    "token_merging": TokenMerging,
    "hypertile": HyperTile,
    "aesthetic": AestheticEmbedding,
}
"""Fields that are `yes`, or settings in their order."""


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

    @field_validator("tiled_diffusion", "freeu", "pag", "sag", "token_merging", "hypertile", "aesthetic", mode="before")
    @classmethod
    def _by_settings(cls, value: Any, info: ValidationInfo) -> Any:
        return _settings(value, _WITH_SETTINGS[info.field_name or ""])

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
        return [_settings(part, ControlUnit) for part in filter(None, map(str.strip, value.split(";")))]

    @field_validator("image_prompts", mode="before")
    @classmethod
    def _spelled_image_prompts(cls, value: Any) -> Any:
        """`model,images,weight ...`, several apart by semicolons; or JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        return [_settings(part, ImagePrompt) for part in filter(None, map(str.strip, value.split(";")))]

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
        value = _numbered(value, get_args(ResizeMode))
        return "latent upscale" if value == "just resize (latent upscale)" else value

    @field_validator("denoising_curve", mode="before")
    @classmethod
    def _curve(cls, value: Any) -> Any:
        return value.strip().casefold() if isinstance(value, str) else value

    @field_validator("sd_upscale", mode="before")
    @classmethod
    def _upscales(cls, value: Any) -> Any:
        return _settings(value, SDUpscale)

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
        return _numbered(value, get_args(InpaintingFill))

    @field_validator("soft_inpainting", mode="before")
    @classmethod
    def _soft(cls, value: Any) -> Any:
        return _settings(value, SoftInpainting)


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


class Platform(BaseModel):
    """What a picture was computed on: another one may round otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    """PyTorch's version."""
    device: str
    """`cpu`, `cuda`, `mps`."""
    dtype: str
    """Precision of the networks: `float32`, `bfloat16`, `float16`."""


def _recorded(kind: Kind, fields: dict[str, Any]) -> Painting:
    """A record's request. An outpainting's has the size that came of it, for which nobody can ask."""
    size = {name: fields[name] for name in ("width", "height") if kind == "outpaint" and name in fields}
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
    """Hash of the painted pixels (`metadata.pixels.pixels_sha256`), as soon as they are painted."""

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
