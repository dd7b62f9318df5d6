"""The pairs of what acts inside the network: FreeU, PAG, SAG, token merging, HyperTile, written and read.

Formats: ljleb's sd-webui-freeu (`FreeU Stages` ...) and Forge's (`freeu_b1` ...), Forge's perturbed attention and SAG,
AUTOMATIC1111's token merging and Hypertile. What they have no pair for follows under keys of the same kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from danqing.errors import DanqingError
from danqing.metadata.told import load_json
from danqing.request_parts import HyperTile, PerturbedAttention, TokenMerging
from danqing.requests import Painting

FIELDS = ("freeu", "pag", "sag", "token_merging", "hypertile")
"""The request's fields that these pairs speak for."""
_PAG, _SAG = "PerturbedAttentionGuidance_", "sag_"
_TILE, _MERGE = "Hypertile U-Net", "Token merging"
_TILES = {"max depth": "max_depth", "max tile size": "tile_size", "swap size": "swap_size"}
_MERGES = {"max downsample": "max_downsample", "sx": "sx", "sy": "sy"}
RATIO, RATIO_HR = f"{_MERGE} ratio", f"{_MERGE} ratio hr"
"""These two have a fixed place in AUTOMATIC1111's line."""
KEYS = frozenset(
    ["FreeU Stages", "FreeU Schedule", "FreeU Version", "freeu_enabled", "freeu_b1", "freeu_b2", "freeu_s1", "freeu_s2"]
    + [_PAG + part for part in ("enabled", "scale", "adaptive_scale", "layers")]
    + [_SAG + part for part in ("enabled", "scale", "blur_sigma", "threshold")]
    + [_TILE, f"{_TILE} second pass", *(f"{_TILE} {part}" for part in _TILES)]
    + [RATIO, RATIO_HR, *(f"{_MERGE} {part}" for part in _MERGES)]
)


def network_pairs(request: Painting) -> Iterator[tuple[str, object]]:
    """The pairs of a request, but for the two with a fixed place."""
    if (freeu := request.freeu) is not None:
        stages = [{"backbone_factor": b, "skip_factor": s} for b, s in ((freeu.b1, freeu.s1), (freeu.b2, freeu.s2))]
        yield "FreeU Stages", json.dumps(stages)
        yield "FreeU Schedule", f"{freeu.start}, {freeu.end}, 0.0"
        yield "FreeU Version", freeu.version
    if (pag := request.pag) is not None:
        yield f"{_PAG}enabled", True
        yield f"{_PAG}scale", pag.scale
        yield f"{_PAG}adaptive_scale", pag.adaptive_scale or None
        yield f"{_PAG}layers", None if pag.layers == _default(PerturbedAttention, "layers") else "+".join(pag.layers)
    if (sag := request.sag) is not None:
        yield f"{_SAG}enabled", True
        for part in ("scale", "blur_sigma", "threshold"):
            yield _SAG + part, getattr(sag, part)
    if (tile := request.hypertile) is not None:
        yield f"{_TILE} second pass" if tile.hires_only else _TILE, True
        yield from _set(tile, _TILE, _TILES)
    if (merging := request.token_merging) is not None:
        yield from _set(merging, _MERGE, _MERGES)


def ratio(request: Painting) -> float | None:
    """`Token merging ratio`; none where it is 0, as there."""
    return (request.token_merging.ratio or None) if request.token_merging else None


def ratio_hr(request: Painting) -> float | None:
    """`Token merging ratio hr`."""
    return request.token_merging.hr_ratio if request.token_merging else None


def _set(settings: HyperTile | TokenMerging, key: str, parts: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """What is not as by default."""
    for part, field in parts.items():
        value = getattr(settings, field)
        yield f"{key} {part}", None if value == _default(type(settings), field) else value


def _default(kind: type[Any], field: str) -> object:
    return kind.model_fields[field].default


def read_network(pairs: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The request's fields that the pairs tell; `notes` gets what has no counterpart here."""
    found: dict[str, Any] = {}
    if "FreeU Stages" in pairs:
        found["freeu"] = _stages(pairs, notes)
    elif pairs.get("freeu_enabled") == "True":
        found["freeu"] = {part: pairs[f"freeu_{part}"] for part in ("b1", "b2", "s1", "s2") if f"freeu_{part}" in pairs}
        found["freeu"]["version"] = 2  # Forge knows no other
    for field, key in (("pag", _PAG), ("sag", _SAG)):
        if pairs.get(f"{key}enabled") == "True":
            told = {name.removeprefix(key): value for name, value in pairs.items() if name.startswith(key)}
            found[field] = {name: value for name, value in told.items() if name != "enabled" and key + name in KEYS}
    if "True" in (pairs.get(_TILE), pairs.get(f"{_TILE} second pass")):
        found["hypertile"] = _given(pairs, _TILE, _TILES) | {"hires_only": pairs.get(_TILE) != "True"}
    if RATIO in pairs or RATIO_HR in pairs:
        hires = {"hr_ratio": pairs[RATIO_HR]} if RATIO_HR in pairs else {}
        found["token_merging"] = {"ratio": pairs.get(RATIO, "0"), **hires, **_given(pairs, _MERGE, _MERGES)}
    return found


def _given(pairs: Mapping[str, str], key: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {field: pairs[f"{key} {part}"] for part, field in parts.items() if f"{key} {part}" in pairs}


def _stages(pairs: Mapping[str, str], notes: list[str]) -> dict[str, Any] | None:
    """FreeU's settings of the extension, which has three stages and more to each of them."""
    try:
        stages = load_json(pairs["FreeU Stages"], "FreeU Stages")
    except DanqingError as error:
        notes.append(f"{error}; FreeU is left out")
        return None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        notes.append("FreeU Stages: no list of stages; FreeU is left out")
        return None
    all_stages: list[dict[str, Any]] = [*stages, {}, {}]
    first, second, *more = all_stages
    plain = {"backbone_factor", "skip_factor"}
    if any(more) or (first.keys() | second.keys()) - plain:
        notes.append(
            "'FreeU Stages': a third stage, widths, offsets and cutoffs have no counterpart here and are left out"
        )
    start, end, smooth = ([part.strip() for part in pairs.get("FreeU Schedule", "").split(",")] + ["", "", ""])[:3]
    if smooth not in ("", "0", "0.0"):
        notes.append("'FreeU Schedule': its smooth transition has no counterpart here and is left out")
    settings = {
        "b1": first.get("backbone_factor", 1.0),
        "b2": second.get("backbone_factor", 1.0),
        "s1": first.get("skip_factor", 1.0),
        "s2": second.get("skip_factor", 1.0),
        "version": pairs.get("FreeU Version", 1),
    }
    return settings | ({"start": start} if start else {}) | ({"end": end} if end else {})
