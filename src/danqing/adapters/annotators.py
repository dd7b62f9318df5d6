"""Preprocessors by their names, those that need weights among them: line drawings, soft edges, straight lines, poses.

Weights are files of lllyasviel/Annotators, known by what they hold; depth and segments are in `scene`, whole-body poses
in `dwpose`. How pictures are shown to the networks is that of lllyasviel's ControlNet (`annotator/`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from danqing.adapters import dwpose, pose, scene
from danqing.adapters.preprocess import PREPROCESSORS, Preprocessor, grey_picture, pixels_of
from danqing.checkpoints.checkpoint import problems
from danqing.checkpoints.files import Entry, open_file
from danqing.checkpoints.load import assign
from danqing.errors import DanqingError
from danqing.models.hed import HED
from danqing.models.line_art import LineArt
from danqing.models.line_unet import STRIDE, LineUNet
from danqing.models.mlsd import MLSD
from danqing.models.openpose import FACE_POINTS, HAND_POINTS, BodyPose, PointMaps
from danqing.models.pidinet import PiDiNet
from danqing.paths import path_of
from danqing.runtime.blank import without_weights
from danqing.vocabulary import MODULES, Module, find_module

Device = torch.device | str
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """A network that a file may hold."""

    title: str
    marks: Mapping[str, int]
    """Tensors by which such a file is known, and their first sizes."""
    build: Callable[[], nn.Module]
    module: str
    """The preprocessor that a file of it stands for."""


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("HED", {"norm": 1, "block1.projection.weight": 1}, HED, "soft edge"),
    Architecture("PiDiNet", {"init_block.weight": 60, "classifier.weight": 1}, PiDiNet, "soft edge pidinet"),
    Architecture("line art network", {"model0.1.weight": 64, "model4.1.weight": 1}, LineArt, "line art realistic"),
    Architecture(
        "anime line art network", {"model.model.0.weight": 64, "model.model.3.bias": 1}, LineUNet, "line art anime"
    ),
    Architecture("M-LSD", {"block15.conv1.0.weight": 64, "block23.conv3.weight": 16}, MLSD, "mlsd"),
    Architecture("OpenPose body network", {"Mconv7_stage6_L2.weight": 19}, BodyPose, "openpose"),
    Architecture(
        "OpenPose hand network", {"Mconv7_stage6.weight": 22}, lambda: PointMaps(HAND_POINTS), "openpose hand"
    ),
    Architecture(
        "OpenPose face network", {"Mconv7_stage6.weight": 71}, lambda: PointMaps(FACE_POINTS), "openpose face"
    ),
)
_WRAPPED = re.compile(r"^(module\.)?(model\d(_\d)?\.(?=M?conv))?")
"""What training programs put before the names, and transformers' ports of OpenPose."""


def find_preprocessor(
    name: str,
    paths: Sequence[Path | str] = (),
    *,
    threshold_a: float | None = None,
    threshold_b: float | None = None,
    device: Device = "cpu",
) -> Preprocessor:
    """The preprocessor of that name, Danqing's or sd-webui-controlnet's, or of that file, with its two numbers.

    paths: the files of its weights, in the order of `vocabulary.Module.files`, where it needs some.
    Raises DanqingError for an unknown name, files that are missing or others, and numbers that it does not take.
    """
    module, given = find_module(name)
    if module is None:
        path = path_of(paths[0] if paths else name)
        if not paths and not path.exists() and path.suffix.lower() not in (".pth", ".safetensors", ".pt", ".bin"):
            known = ", ".join(module.name for module in MODULES)
            raise DanqingError(f"control: no preprocessor is called '{name}'; choose of {known}, or name a file")
        module, paths = module_of(path), [path]
        if len(module.files) > 1:
            raise DanqingError(f"{path}: is one of several files; write '{module.name}' for the module, not the file")
    files = [path_of(path) for path in (paths or [given]) if path]
    if len(files) < len(module.files):
        raise DanqingError(missing(module, module.files[len(files) :]))
    if not module.files and module.name not in PREPROCESSORS:
        raise DanqingError(
            f"control: '{module.name}' is made of a picture and its mask; it is for painting over with one"
        )
    numbers = {}
    for index, value in enumerate((threshold_a, threshold_b)):
        if value is not None and index >= len(module.thresholds):
            raise DanqingError(f"control: the preprocessor '{module.name}' takes no threshold_{'ab'[index]}")
        if value is not None:
            numbers[module.thresholds[index].name] = value
    made = _MAKERS[module.name](files, device) if module.files else PREPROCESSORS[module.name]
    return partial(made, **numbers) if numbers else made


def missing(module: Module, files: Sequence[str]) -> str:
    """The line that says which weights a preprocessor wants."""
    folders = {scene.TASKS[file] for file in files if file in scene.TASKS}
    wanted = (
        f"a folder of a model of {' and '.join(folders)} in transformers' layout" if folders else " and ".join(files)
    )
    how = f", or name it: '{module.name}:PATH'" if len(module.files) == 1 else ""
    return (
        f"control: the preprocessor '{module.name}' needs {wanted} ({module.source}); "
        f"put it into the library's folder preprocessors{how}"
    )


def module_of(path: Path) -> Module:
    """The preprocessor that a file or folder of weights stands for, by what is in it.

    Raises DanqingError for a damaged file, or another one.
    """
    if path.is_dir():
        name = scene.module_of(path)
    elif path.suffix.lower() == ".onnx":
        name = "dw openpose"
    else:
        name = _architecture(path)[0].module
    return next(module for module in MODULES if module.name == name)


def load_network(path: Path, title: str, device: Device = "cpu") -> nn.Module:
    """The network of that title (`ARCHITECTURES`) in a file, in float32. Raises DanqingError for another or a part of one."""
    found, entries = _architecture(path)
    if found.title != title:
        raise DanqingError(f"{path}: is {_a(found.title)}, not {_a(title)}")
    with without_weights():
        network = found.build()
    trouble = problems({"weights": entries}, {"weights": network}, ())
    if str(trouble):
        raise DanqingError(f"{path}: is not a whole {title}: {trouble}")
    assign(network, entries, device, torch.float32)
    return network


def _a(title: str) -> str:
    return f"{'an' if title[0] in 'aeiouOMH' else 'a'} {title}"


def _architecture(path: Path) -> tuple[Architecture, dict[str, Entry]]:
    """What network a file holds, and its tensors by the network's names. Raises DanqingError for none that is known."""
    file = open_file(path)
    entries = {
        _WRAPPED.sub("", key): entry for key, entry in file.entries.items() if not key.endswith("num_batches_tracked")
    }
    for known in ARCHITECTURES:
        if all(name in entries and entries[name].shape[:1] == (size,) for name, size in known.marks.items()):
            return known, entries
    names = ", ".join(dict.fromkeys(file for module in MODULES for file in module.files if file.endswith(".pth")))
    raise DanqingError(f"{path}: is no preprocessor that Danqing knows; it reads {names}")


# --- lines and edges --------------------------------------------------------------------------------------------------


def _shown(picture: Image.Image, network: nn.Module, multiple: int, least: int) -> tuple[Tensor, tuple[int, int]]:
    """((1, 3, H, W) from 0 to 255 with its last pixels repeated to such sides, the picture's own (height, width))."""
    x = torch.from_numpy(pixels_of(picture)).permute(2, 0, 1)[None].to(next(network.parameters()))
    height, width = x.shape[-2:]
    bottom, right = (max(math.ceil(side / multiple) * multiple, least) - side for side in (height, width))
    return F.pad(x, (0, right, 0, bottom), mode="replicate"), (height, width)


def _seen(network: Network, x: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    with torch.no_grad():
        made: NDArray[np.float32] = network(x)[0, 0, : size[0], : size[1]].float().cpu().numpy()
    return made


def soft_edges(network: HED, safe: bool = False, strokes: bool = False) -> Preprocessor:
    """Edges as HED sees them, white on black, the surer the brighter; `safe` in three levels, `strokes` thick ones."""

    def preprocess(picture: Image.Image) -> Image.Image:
        return _edges(_seen(network, *_shown(picture, network, 1, 16)), safe, strokes)

    return preprocess


def pidinet_edges(network: PiDiNet, safe: bool = False, strokes: bool = False) -> Preprocessor:
    """The same by PiDiNet."""

    def preprocess(picture: Image.Image) -> Image.Image:
        x, size = _shown(picture, network, 1, 8)
        return _edges(_seen(network, x.flip(1) / 255, size), safe, strokes)

    return preprocess


def _edges(sure: NDArray[np.float32], safe: bool, strokes: bool) -> Image.Image:
    if safe:  # what edges hide in faint greys is taken off
        sure = (np.floor(sure * 3) / 2).astype(np.float32)
    return grey_picture(_strokes(sure * 255) if strokes else sure * 255)


def _strokes(edges: NDArray[np.float32], level: float = 127, sigma: float = 3.0) -> NDArray[np.bool_]:
    """Thick strokes along the ridges of edges (0 to 255) that are above `level`."""
    blurred = cv2.GaussianBlur(np.floor(edges), (0, 0), sigma)
    ridges = np.zeros(edges.shape, bool)
    for line in (np.eye(3), np.eye(3)[::-1], [[0, 0, 0], [1, 1, 1], [0, 0, 0]], [[0, 1, 0]] * 3):
        ridges |= cv2.dilate(blurred, np.array(line, np.uint8)) == blurred
    kept = np.where(ridges & (blurred > level), 255, 0).astype(np.uint8)
    thick: NDArray[np.bool_] = cv2.GaussianBlur(kept, (0, 0), sigma) > 4
    return thick


def line_drawing(network: LineArt) -> Preprocessor:
    """A photograph's lines, white on black."""

    def preprocess(picture: Image.Image) -> Image.Image:
        x, size = _shown(picture, network, 4, 8)
        return grey_picture(255 - np.floor(_seen(network, x / 255, size) * 255))

    return preprocess


def anime_drawing(network: LineUNet) -> Preprocessor:
    """An anime picture's lines, white on black."""

    def preprocess(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        sides = [math.ceil(side / STRIDE) * STRIDE for side in (width, height)]
        resized = cv2.resize(pixels_of(picture).astype(np.uint8), sides, interpolation=cv2.INTER_CUBIC)
        x, size = _shown(Image.fromarray(resized), network, 1, STRIDE)
        paper = _seen(network, x / 127.5 - 1, size) * 127.5 + 127.5
        paper = cv2.resize(paper, (width, height), interpolation=cv2.INTER_CUBIC)
        return grey_picture(255 - np.floor(np.clip(paper, 0, 255)))

    return preprocess


_MOST_LINES = 200


def straight_lines(network: MLSD) -> Callable[..., Image.Image]:
    """M-LSD's lines, white on black, a pixel thick."""

    def preprocess(picture: Image.Image, score: float = 0.1, distance: float = 0.1) -> Image.Image:
        """score: how sure it should be of a line, from 0 to 1; distance: how long it should be, in its own pixels."""
        width, height = picture.size
        sides = [max(round(side / 64), 1) * 64 for side in (width, height)]
        resized = cv2.resize(pixels_of(picture).astype(np.uint8), sides, interpolation=cv2.INTER_AREA)
        x, _ = _shown(Image.fromarray(resized), network, 1, 64)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1) / 127.5 - 1
        with torch.no_grad():
            maps = network(x)[0].float().cpu()
        canvas = np.zeros((height, width), np.uint8)
        scale = 2 * np.array([width / sides[0], height / sides[1]] * 2)
        for line in _lines(maps, score, distance):
            left, top, right, bottom = (int(value) for value in np.array(line) * scale)
            cv2.line(canvas, (left, top), (right, bottom), 255, 1)
        return grey_picture(canvas > 0)

    return preprocess


def _lines(maps: Tensor, score: float, distance: float) -> list[tuple[float, ...]]:
    """X, Y, X, Y of each line that M-LSD's maps (9, h, w) tell, in their pixels: its middle and its ends from there."""
    sure = maps[0].sigmoid()
    sure = sure * (F.max_pool2d(sure[None], 3, 1, 1)[0] == sure)
    scores, places = sure.flatten().topk(min(_MOST_LINES, sure.numel()))
    found: list[tuple[float, ...]] = []
    for how, place in zip(scores.tolist(), places.tolist()):
        y, x = divmod(place, sure.shape[1])
        ends = maps[1:5, y, x].tolist()
        if how > score and math.dist(ends[:2], ends[2:]) > distance:
            found.append((x + ends[0], y + ends[1], x + ends[2], y + ends[3]))
    return found


# --- by name ----------------------------------------------------------------------------------------------------------


def _of(title: str, make: Callable[..., Preprocessor], **how: bool) -> Callable[[Sequence[Path], Device], Preprocessor]:
    return lambda paths, device: make(load_network(paths[0], title, device), **how)


def _poses(
    body: bool = True, hand: bool = False, face: bool = False
) -> Callable[[Sequence[Path], Device], Preprocessor]:
    def load(paths: Sequence[Path], device: Device) -> Preprocessor:
        titles = ["body", *["hand"] * hand, *["face"] * face]
        networks = {t: load_network(path, f"OpenPose {t} network", device) for t, path in zip(titles, paths)}
        return pose.openpose(networks["body"], networks.get("hand"), networks.get("face"), body)  # type: ignore[arg-type]

    return load


_MAKERS: Mapping[str, Callable[[Sequence[Path], Device], Callable[..., Image.Image]]] = {
    "soft edge": _of("HED", soft_edges),
    "soft edge safe": _of("HED", soft_edges, safe=True),
    "scribble hed": _of("HED", soft_edges, strokes=True),
    "soft edge pidinet": _of("PiDiNet", pidinet_edges),
    "soft edge pidinet safe": _of("PiDiNet", pidinet_edges, safe=True),
    "scribble pidinet": _of("PiDiNet", pidinet_edges, strokes=True),
    "line art realistic": _of("line art network", line_drawing),
    "line art coarse": _of("line art network", line_drawing),
    "line art anime": _of("anime line art network", anime_drawing),
    "mlsd": _of("M-LSD", straight_lines),
    "depth": lambda paths, device: scene.depth_map(scene.load_depth(paths[0], device)),
    "normal": lambda paths, device: scene.normal_map(scene.load_depth(paths[0], device)),
    "segmentation": lambda paths, device: scene.segment_map(scene.load_segmenter(paths[0], device)),
    "openpose": _poses(),
    "openpose hand": _poses(hand=True),
    "openpose face": _poses(face=True),
    "openpose face only": _poses(body=False, face=True),
    "openpose full": _poses(hand=True, face=True),
    "dw openpose": lambda paths, device: dwpose.whole_bodies(*paths),
}
