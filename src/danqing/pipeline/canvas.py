"""A picture made ready for painting over: fitted, masked, filled or extended; and how the result goes back into it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageOps

from danqing.errors import DanqingError
from danqing.pipeline import masks
from danqing.pipeline.images import fit, flatten
from danqing.pipeline.mask_text import mask_from_text
from danqing.pipeline.run import Studio
from danqing.requests import ImageToImage, Inpaint, Outpaint
from danqing.vocabulary import Dialect

OVERLAID: tuple[Dialect, ...] = ("danqing", "a1111")
"""Tools that lay the untouched picture over the result; ComfyUI and diffusers give what the autoencoder gives."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is painted over. Without `under` the painted picture is the result."""

    image: Image.Image
    """RGB: what the model begins with."""
    colors: Image.Image
    """RGB: whose colours a colour correction aims at."""
    mask: Image.Image | None = None
    """L, of the image's size: 255 where to paint."""
    under: Image.Image | None = None
    """RGB: the picture that the result is laid into."""
    cover: Image.Image | None = None
    """L, of the size of `under`: 255 where the painted picture covers it, 0 where no pixel changes."""
    box: masks.Box | None = None
    """Where in `under` the painted picture belongs; None is all of it."""
    crop: masks.Box | None = None
    """What of it all is the result (an outpainting's rounding is cut off again)."""
    asked: Image.Image | None = None
    """L: the mask as it came, at the source's size, for the next loop."""

    def finish(self, painted: Image.Image, cover: Image.Image | None = None) -> Image.Image:
        """`painted` in its place; `cover` (L, of its size) lets less of it through."""
        out = painted
        if self.under is not None and self.cover is not None:
            layer, shade = painted, self.cover
            if self.box is not None:
                size = self.box[2] - self.box[0], self.box[3] - self.box[1]
                layer = self.under.copy()
                layer.paste(fit(painted, *size, "crop and resize"), self.box[:2])
            if cover is not None:
                wide = Image.new("L", self.under.size)
                where = self.box or (0, 0, *self.under.size)
                wide.paste(cover.resize((where[2] - where[0], where[3] - where[1])), where[:2])
                shade = ImageChops.darker(wide, self.cover.point(lambda value: 255 if value else 0))
            out = Image.composite(layer, self.under, shade)
        return out if self.crop is None else out.crop(self.crop)


def canvas_of(source: Image.Image, request: ImageToImage, studio: Studio, before: Canvas | None = None) -> Canvas:
    """The canvas of a resolved request; `before` is the last loop's, whose mask goes on.

    Raises DanqingError where nothing is masked.
    """
    cell = studio.model.family.autoencoder.downscale
    picture = flatten(source, request.background_color)
    if isinstance(request, Outpaint):
        return _outpaint(picture, request, before)
    size = request.width or 0, request.height or 0
    if not isinstance(request, Inpaint):
        if request.resize_mode == "latent upscale":
            size = max(picture.width // cell, 1) * cell, max(picture.height // cell, 1) * cell
        image = fit(picture, *size, request.resize_mode)
        return Canvas(image, image)
    asked = _asked_mask(source, request, studio) if before is None or before.asked is None else before.asked
    if asked.size != picture.size:  # the last loop's result
        asked = asked.resize(picture.size)
    return _inpaint(picture, asked, request)


def _asked_mask(source: Image.Image, request: Inpaint, studio: Studio) -> Image.Image:
    """The mask as asked for, at the picture's size: from a picture, from words, or from what is transparent."""
    binary = request.mask_round and request.soft_inpainting is None
    given = studio.pictures.get("mask")
    if request.mask_text is not None and request.mask_model is not None:
        mask = mask_from_text(flatten(source), request.mask_text, request.mask_model, request.mask_threshold, binary)
        nothing = f"mask_text: nothing like '{request.mask_text}' was found; lower mask_threshold or choose other words"
    elif given is not None:
        if given.size != source.size:
            studio.note(f"the mask is {_size(given)} and the picture {_size(source)}; the mask is resized")
            given = given.resize(source.size, Image.Resampling.LANCZOS)
        mask = masks.read_mask(given, binary)
        nothing = "mask: all of it is black, so there is nothing to paint; white is what is painted"
    else:
        if source.mode != "RGBA":
            raise DanqingError("mask: give one, or a picture that is transparent where to paint")
        mask = masks.transparent_part(source, binary)
        nothing = "mask: the picture is transparent nowhere, so there is nothing to paint"
    if request.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
        nothing = "mask: inverted it is all black, so there is nothing to paint"
    if mask.getbbox() is None:
        raise DanqingError(nothing)
    return mask


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _inpaint(picture: Image.Image, asked: Image.Image, request: Inpaint) -> Canvas:
    width, height = request.width or 0, request.height or 0
    x = request.mask_blur if request.mask_blur_x is None else request.mask_blur_x
    y = request.mask_blur if request.mask_blur_y is None else request.mask_blur_y
    soft = masks.blur(asked, x, y)
    if not request.inpaint_full_res:
        mode = "just resize" if request.resize_mode == "latent upscale" else request.resize_mode
        image, mask = fit(picture, width, height, mode), fit(soft, width, height, mode)
        # AUTOMATIC1111: the overlay lets all of the painting through where the mask is half there
        cover = mask.point(lambda value: min(2 * value, 255)) if request.dialect in OVERLAID else None
        canvas = Canvas(image, image, mask, image, cover, asked=asked)
    else:
        box = masks.bounds(soft, request.inpaint_full_res_padding, width, height)
        assert box is not None  # a mask that is not black has bounds
        image, mask = (fit(each.crop(box), width, height, "resize and fill") for each in (picture, soft))
        canvas = Canvas(image, image, mask, picture, soft, box, asked=asked)
    if request.inpainting_fill == "original":
        return canvas
    filled = masks.fill(image, mask)
    return replace(canvas, image=filled, colors=filled)


def _outpaint(picture: Image.Image, request: Outpaint, before: Canvas | None) -> Canvas:
    """The picture with room around it. Edges are repeated into it, and repainted over `mask_blur` pixels.

    A later loop's picture has the room already, and is painted over with the first one's mask.
    """
    width, height = request.width or 0, request.height or 0
    if before is None:
        size = picture.width + request.left + request.right, picture.height + request.up + request.down
        inner = (request.left, request.up, request.left + picture.width, request.up + picture.height)
        crop = (0, 0, *size)
    else:
        assert before.crop is not None
        inner, crop = (0, 0, *picture.size), before.crop
    margins = [(inner[1], height - inner[3]), (inner[0], width - inner[2]), (0, 0)]
    whole = Image.fromarray(np.pad(np.asarray(picture), margins, mode="edge"))
    if before is not None:
        return replace(before, image=whole, under=whole)
    # what rounding adds on the right and below is new too, unless no pixel of the result is next to it
    edges = (inner[0], inner[1], inner[2] if request.right else width, inner[3] if request.down else height)
    cover = masks.ramp((width, height), edges, request.mask_blur)
    mask = cover.point(lambda value: 255 if value else 0)
    canvas = Canvas(whole, whole, mask, whole, cover, crop=crop)
    if request.inpainting_fill == "original":
        return canvas
    # the new part alone is filled, from the picture's edges
    return replace(canvas, image=masks.fill(whole, masks.ramp((width, height), edges, 0)))
