"""What requests are made of: references to files, choices, and the small records of one feature each."""

from __future__ import annotations

import base64
import io
import os
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from danqing.errors import DanqingError
from danqing.vocabulary import (
    Dynamic,
    find_module,
)

Unit = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=0, le=1 << 20)]


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


def numbered(value: Any, choices: tuple[str, ...]) -> Any:
    """A choice by its name in any case, or by its number as AUTOMATIC1111's API has it."""
    if (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.strip().isdecimal()
    ):
        number = int(value)
        return choices[number] if 0 <= number < len(choices) else value
    return value.strip().casefold() if isinstance(value, str) else value


def as_settings(value: Any, kind: type[BaseModel]) -> Any:
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


class StepCache(BaseModel):
    """Step caching: the U-Net's deep part is asked at some of the steps only (DeepCache; Ma et al. 2024)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: int = Field(2, ge=2, le=1000, description="the whole U-Net is asked at one of so many steps")
    depth: int = Field(1, ge=1, le=32, description="layers of the way up that are done at each step, the finest first")
    start: Unit = Field(0.0, description="share of the steps at which it begins")
    end: Unit = Field(1.0, description="share of the steps at which it ends")
    threshold: float = Field(
        0.0, ge=0, le=10, description="ask sooner where the deep part's input changed by such a share; 0 never does"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise DanqingError(f"step_cache: start, {self.start:g}, should not be above end, {self.end:g}")
        return self


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
        return numbered(value, get_args(cls.model_fields[info.field_name or ""].annotation))

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
