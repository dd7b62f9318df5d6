"""What AUTOMATIC1111's infotext says of a picture that was made larger after it was painted.

Its scripts/postprocessing_upscale.py, postprocessing_gfpgan.py and postprocessing_codeformer.py; what it has no words for
follows.
"""

from __future__ import annotations

from pathlib import PurePath

from danqing.requests import Upscale


def enlarged_pairs(request: Upscale, before: tuple[int, int], after: tuple[int, int]) -> dict[str, object]:
    """The pairs for a picture of size `before` = (width, height) that `request` made one of size `after`."""
    pairs: dict[str, object] = {}
    if request.width and request.height:
        pairs["Postprocess upscale to"] = f"{request.width}x{request.height}"
        if request.crop:
            pairs["Postprocess crop to"] = f"{after[0]}x{after[1]}"
    else:
        pairs["Postprocess upscale by"] = f"{after[0] / before[0]:g}"
    pairs["Postprocess upscaler"] = _bare(request.upscaler)
    if request.upscaler_2 is not None and request.upscaler_2_visibility:
        pairs["Postprocess upscaler 2"] = _bare(request.upscaler_2)
        pairs["Postprocess upscaler 2 visibility"] = request.upscaler_2_visibility
    if request.face_restorer is not None and request.face_visibility:
        name = _bare(request.face_restorer)
        known = next((each for each in ("CodeFormer", "GFPGAN") if each.lower() in name.lower()), None)
        pairs[f"{known or 'Face restorer'} visibility"] = round(request.face_visibility, 3)
        if known == "CodeFormer":
            pairs["CodeFormer weight"] = request.fidelity
        if known is None:
            pairs["Face restorer"] = name
    return pairs


def _bare(name: str) -> str:
    """A file's name, or a name as it is."""
    return PurePath(name.replace("\\", "/")).name
