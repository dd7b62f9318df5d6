"""The schema of training recipes (TOML): what `danqing train` is told. An unknown key is an error that names it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from danqing.errors import DanqingError
from danqing.paths import path_of
from danqing.vocabulary import nearest


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Share = Annotated[float, Field(ge=0, le=1)]


class Data(_Section):
    """The pictures, and what is done to them each time they are shown."""

    folder: Path = Field(description="pictures with captions; relative to the recipe")
    size: int = Field(128, ge=16, le=4096, description="pixels: buckets have about size x size")
    bucket_step: int = Field(
        0, ge=0, description="pixels between the sizes of aspect buckets; 0 is one square bucket, pictures cropped"
    )
    cache_gb: float = Field(2.0, ge=0, description="memory for decoded pictures")


class Augment(_Section):
    """Changes to pictures, drawn anew each time."""

    flip: Share = Field(0.0, description="share of mirrored pictures, among those whose meaning a mirror keeps")
    crop: Share = Field(0.0, description="at most this share of an edge is cut off, or added in the border's colour")
    colour: Share = Field(0.0, description="how far brightness, contrast and saturation wander")
    grey: Share = Field(0.0, description="share of pictures without colour")
    hue: Share = Field(0.0, description="how far hues turn; 1 is all the way round")


class Average(_Section):
    """The moving average of the weights, which is what a stage results in."""

    kind: Literal["power", "constant"] = Field("power", description="power function of the steps, or one decay")
    length: float = Field(0.05, gt=0, lt=0.29, description="power: its relative standard deviation (Karras 2024)")
    decay: float = Field(0.999, gt=0, lt=1, description="constant: how much of the average a step keeps")


class Loop(_Section):
    """What all stages share."""

    steps: int = Field(gt=0, description="updates of the weights, in all")
    batch: int = Field(16, gt=0, description="pictures an update, on all machines together")
    accumulate: int = Field(1, gt=0, description="parts in which a batch is computed")
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(100, ge=0, description="updates during which the learning rate rises")
    schedule: Literal["cosine", "constant", "decay"] = Field(
        "cosine", description="after the warm-up: a half cosine to nothing; level; level, then a line to nothing"
    )
    decay_share: Share = Field(0.2, description="schedule decay: the share of the steps in which it falls")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: matrices and convolutions by Muon, vectors by AdamW"
    )
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    average: Average | None = Average()
    precision: Literal["no", "bf16", "fp16"] = Field("bf16", description="mixed precision")
    compile: bool = Field(False, description="torch.compile")
    checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    seed: int = Field(0, ge=0)
    save_minutes: float = Field(10.0, gt=0, description="between saved states")
    keep: int = Field(2, gt=0, description="saved states that are kept, besides the best on held-out pictures")
    evaluate_every: int = Field(500, gt=0, description="updates between looks at held-out pictures")
    sample_every: int = Field(1000, gt=0, description="updates between sample sheets")
    augment: Augment = Augment()


class Text(_Section):
    """CLIP's text tower."""

    vocabulary: int = Field(8192, ge=1024)
    width: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    positions: int = Field(77, ge=77, le=77)


class Vision(_Section):
    """CLIP's image tower. Not part of the model that paints."""

    width: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    patch: int = Field(16, gt=0)


class Clip(Loop):
    text: Text = Text()
    vision: Vision = Vision()


class Discriminator(_Section):
    """The patch discriminator (Isola et al. 2017) as latent diffusion trains it."""

    start: int = Field(0, ge=0, description="the update at which it begins to count")
    weight: float = Field(0.5, ge=0, description="times the adaptive weight")
    loss: Literal["hinge", "minimax"] = "hinge"
    gradient_penalty: float = Field(0.0, ge=0, description="R1's weight (Mescheder et al. 2018)")
    channels: int = Field(32, gt=0)
    layers: int = Field(3, gt=0)
    learning_rate: float = Field(1e-4, gt=0)


class Autoencode(Loop):
    channels: tuple[int, ...] = (32, 64, 96, 128)
    layers: int = Field(1, gt=0)
    latent_channels: int = Field(8, gt=0)
    groups: int = Field(32, gt=0)
    kl_weight: float = Field(1e-4, ge=0, description="per latent value, beside an L1 loss per pixel value")
    square_weight: float = Field(
        0.0, ge=0, description="of the squared error, beside the L1 loss: colours that are far off count more"
    )
    structure_weight: float = Field(0.0, ge=0, description="of 1 - SSIM (Zhao et al. 2017): edges and flat areas")
    perceptual_weight: float = Field(0.1, ge=0, description="of the distance in the features of CLIP's image tower")
    discriminator: Discriminator | None = Discriminator()


class Denoiser(_Section):
    channels: tuple[int, ...] = (64, 128, 192)
    down_depth: tuple[tuple[int, ...], ...] = ((0,), (1,), (1,))
    mid_depth: int = 1
    up_depth: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1), (0, 0))
    heads: tuple[int, ...] = (2, 4, 6)
    pooled: bool = Field(False, description="whether the text's pooled vector is told to every residual block too")
    groups: int = Field(32, gt=0)


class Diffuse(Loop):
    denoiser: Denoiser = Denoiser()
    prediction: Literal["v", "epsilon", "flow"] = "v"
    zero_terminal_snr: bool = True
    weighting: Literal["min-snr", "none"] = "min-snr"
    snr_gamma: float = Field(5.0, gt=0, description="Hang et al. 2023: the signal-to-noise ratio at which it is cut")
    shift: float = Field(
        1.0, gt=0, description="above 1 more training steps are near pure noise, where the text decides what is painted"
    )
    text_learning_rate: float = Field(
        0.0, ge=0, description="of the text tower, which then learns with the denoiser; 0 leaves it as CLIP made it"
    )
    text_start: int = Field(0, ge=0, description="the update from which it learns; a new denoiser has nothing to teach")
    drop_condition: Share = Field(0.1, description="share of pictures that are shown without their caption")
    captions_per_picture: int = Field(12, gt=0, description="captions that are encoded beforehand")


class Distort(_Section):
    """What is done to the judge's pictures besides `augment`."""

    rotation: float = Field(15.0, ge=0, le=180, description="at most so many degrees either way")
    scale: Share = Field(0.25, description="how far pictures are enlarged or shrunk")
    stretch: Share = Field(0.2, description="how far one edge becomes longer than the other")
    shift: Share = Field(0.08, description="how far they are moved, in shares of an edge")
    blur: Share = Field(0.25, description="share of pictures that are blurred")
    noise: float = Field(0.08, ge=0, le=1, description="noise's largest deviation; pixels are in [-1, 1]")
    erase: Share = Field(0.25, description="share of pictures of which a rectangle is painted over")
    mixup: Share = Field(0.15, description="share of pictures that are blended with another")
    cutmix: Share = Field(0.15, description="share of pictures into which a part of another is pasted")


class Judge(Loop):
    """The network that names what was painted. It is no part of the model and shares nothing with its CLIP."""

    picture: int = Field(64, ge=16, description="pixels along an edge: what it resizes pictures to")
    channels: tuple[int, ...] = (48, 96, 192, 320)
    layers: tuple[int, ...] = Field((1, 2, 2, 1), description="residual blocks of each level")
    groups: int = Field(8, gt=0)
    features: int = Field(256, gt=0)
    label_smoothing: Share = 0.1
    style_weight: float = Field(0.25, ge=0, description="of the style's loss beside the concept's")
    distort: Distort = Distort()


class Recipe(_Section):
    """A model from nothing: its data and its three stages, each of which may be left out if its result is there."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the family's name, and the run's folder")
    title: str = ""
    data: Data
    clip: Clip
    autoencoder: Autoencode
    diffusion: Diffuse
    judge: Judge | None = None


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises DanqingError that names the file and the key at fault."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DanqingError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DanqingError(f"{path}: is no TOML: {error}") from None
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        raise DanqingError(f"{path}: {_reason(error)}") from None
    folder = path_of(recipe.data.folder)
    folder = folder if folder.is_absolute() else path.parent / folder
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": folder})})


def _reason(error: ValidationError) -> str:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt section is missing too
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = nearest(str(first["loc"][-1]), _keys(first["loc"][:-1]))
        return f"'{place}' is no key of a recipe" + (f"; did you mean {known[0]}?" if known else "")
    if first["type"] == "missing":
        return f"'{place}' is missing"
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at that place."""
    section: Any = Recipe
    for part in place:
        annotation = section.model_fields[str(part)].annotation
        section = next(kind for kind in getattr(annotation, "__args__", (annotation,)) if kind is not type(None))
    return list(section.model_fields)
