"""PhotoMaker at work: whom photographs show stands in the prompt for a word, and InstantID's five points of a face."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.models.clip_vision import prepare
from danqing.models.conditioning import Conditioning
from danqing.models.photomaker import PhotoMaker
from danqing.prompts.chunks import chunks
from danqing.prompts.encode import tokenizer_of, words_of
from danqing.prompts.grammar import Prompt
from danqing.vocabulary import Dialect, Emphasis

TRIGGER = "img"
_CLASS_WORD = re.compile(rf"([^\W_]+)\s+{TRIGGER}\b", re.IGNORECASE)
Branches = tuple[Conditioning, ...]


@dataclass(frozen=True, eq=False)
class Identity:
    """Whom a PhotoMaker puts into the prompt."""

    network: PhotoMaker
    photographs: Tensor
    """(n, C): what it made of them."""
    start: float = 0.0
    """Share of the steps at which they begin to count."""
    end: float = 1.0


@torch.no_grad()
def identity(
    network: PhotoMaker, pixels: Sequence[Tensor], faces: Tensor | None = None, start: float = 0.0, end: float = 1.0
) -> Identity:
    """Of photographs (each (1, 3, H, W) in [0, 1], any size), and for version 2 a face's vector to each (n, W).

    The LoRA in its file is the caller's to apply (`checkpoints.image_prompts.lora_part`); a request's is applied.
    Raises DanqingError where there is none, or not a face to each.
    """
    config = network.photomaker
    if not pixels:
        raise DanqingError("image_prompts: a PhotoMaker is shown no photograph; give one by its images")
    if config.faces and (faces is None or faces.shape != (len(pixels), config.face_width)):
        given = "none are given" if faces is None else f"these are {list(faces.shape)}"
        raise DanqingError(
            f"image_prompts: PhotoMaker v2 reads faces' vectors, {config.face_width} numbers to each of {len(pixels)} "
            f"photographs, and {given}; see its faces"
        )
    weight = network.visual_projection.weight
    shown = torch.cat([prepare(picture, config.vision.picture) for picture in pixels]).to(weight.device, weight.dtype)
    faces = None if faces is None else faces.to(weight.device, weight.dtype)
    return Identity(network, network.photographs(shown, faces), start, end)


@torch.no_grad()
def with_identity(
    who: Identity,
    prompt: Prompt,
    model: Model,
    encode: Callable[[Prompt], Branches],
    *,
    held: tuple[float, float],
    dialect: Dialect,
    emphasis: Emphasis,
    finish: Callable[[Branches], Branches] = lambda branches: branches,
) -> Branches:
    """The branches of a prompt in which `man img` is whom the photographs show (Li et al. 2023, section 3.2).

    Each photograph's vectors are merged into a repetition of the word's last token; in the half-open range `held` of
    `At.step` these hold, before and after it the prompt without the trigger word. A part without the word is encoded as
    it is (see `require_trigger`). `finish` is done to the whole prompt's branches with the photographs, and to those
    without. Raises DanqingError with two of them in a part, or with one that the dialect cuts away.
    """
    count = len(who.photographs)
    encoder = model.family.text_encoders[0]
    tokenizer = tokenizer_of(model, encoder)

    def tokens(text: str) -> list[int]:
        made, _ = chunks(text, tokenizer, encoder.pad_token, dialect, emphasis, words_of(model))
        return [token for chunk in made for token in chunk.ids]

    places: list[Tensor | None] = []

    def expanded(text: str) -> str:
        found = list(_CLASS_WORD.finditer(text))
        if len(found) > 1:
            raise DanqingError(f"image_prompts: the prompt has the trigger word '{TRIGGER}' twice; once is enough")
        if not found:
            places.append(None)
            return text
        match = found[0]
        ids = tokenizer.encode(match[1])
        repeated = match[1] + f" {tokenizer.text(ids[-1:]).strip()}" * (count - 1)
        new = text[: match.start()] + repeated + text[match.end() :]
        before = tokens(text[: match.start()]).count(ids[-1]) + ids[:-1].count(ids[-1])
        at = [place for place, token in enumerate(tokens(new)) if token == ids[-1]][before : before + count]
        if len(at) < count:
            raise DanqingError(
                f"image_prompts: '{match[1]} {TRIGGER}' stands too far back in the prompt; move it forward"
            )
        places.append(torch.tensor(at))
        return new

    repeated = encode(_rewritten(prompt, expanded))
    plain = finish(encode(_rewritten(prompt, without_trigger)))
    weight = who.network.visual_projection.weight

    def known(branch: Conditioning, at: Tensor | None) -> Conditioning:
        if at is None:
            return branch
        context = branch.context.to(weight.device, weight.dtype)
        return replace(branch, context=who.network.fused(context, at, who.photographs).float())

    merged = finish(tuple(known(branch, at) for branch, at in zip(repeated, places)))
    first, last = held
    branches: list[Conditioning] = []
    for without, with_them, at in zip(plain, merged, places):
        if at is None:
            branches.append(without)
            continue
        for branch, begin, end in ((without, -math.inf, first), (with_them, first, last), (without, last, math.inf)):
            steps = max(branch.steps[0], begin), min(branch.steps[1], end)
            if steps[0] < steps[1]:
                branches.append(replace(branch, steps=steps))
    return tuple(branches)


def require_trigger(text: str) -> None:
    """Raises DanqingError for a prompt that names nobody for a PhotoMaker to show."""
    if not _CLASS_WORD.search(text):
        raise DanqingError(
            f"image_prompts: a PhotoMaker's prompt should have the trigger word '{TRIGGER}' behind a noun: 'a man {TRIGGER}'"
        )


def without_trigger(text: str) -> str:
    """The prompt for whoever sees no photographs."""
    return _CLASS_WORD.sub(r"\1", text)


def _rewritten(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    parts = [
        replace(part, segments=tuple(replace(segment, text=change(segment.text)) for segment in part.segments))
        for part in prompt.parts
    ]
    return replace(prompt, parts=tuple(parts))


_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
_LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))


def draw_keypoints(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Image.Image:
    """The picture of a face's five points that InstantID's ControlNet is shown, of `size` = (width, height).

    `points` in pixels: the eyes, the nose, the corners of the mouth. Each is a disc; a line of 4 pixels, darker, leads
    from it to the nose. Source: instantX-research/InstantID (`draw_kps`). Raises ValueError unless there are five, and
    DanqingError for one outside of the picture.
    """
    if len(points) != len(_COLORS):
        raise ValueError(f"a face has five points here, not {len(points)}")
    for x, y in points:
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise DanqingError(
                f"image_prompts: keypoints: {x:g} {y:g} is outside of the picture of {size[0]}x{size[1]}; give X and Y in it"
            )
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    for begin, end in _LIMBS:
        (x0, y0), (x1, y1) = points[begin], points[end]
        middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
        half, angle = int(math.hypot(x0 - x1, y0 - y1) / 2), int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
        cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, (half, 4), angle, 0, 360, 1), _COLORS[begin])
    canvas = (canvas * 0.6).astype(np.uint8)
    for (x, y), color in zip(points, _COLORS):
        cv2.circle(canvas, (int(x), int(y)), 10, color, -1)
    return Image.fromarray(canvas)
