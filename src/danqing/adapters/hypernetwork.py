"""Hypernetworks (NovelAI's, AUTOMATIC1111's): small networks that change what attention makes its keys and values of.

A file holds, for each width of context, a network for the keys and one for the values: linear layers with an activation
behind each (the last has none unless the file says so), layer norms behind that, and dropout that only training knows.
With strength s the context x becomes x + s net(x), in every attention layer whose context has that width; in SD 1.x
the text's is 768, and those of the pixels to each other are 320, 640 and 1280.

Format: AUTOMATIC1111's modules/hypernetworks/hypernetwork.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from danqing.checkpoints.files import TensorFile, open_file
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Family, Model
from danqing.models.patches import ContextPatch, Patches, stacked
from danqing.models.unet import Attention
from danqing.vocabulary import unknown

TAG = "hypernet"
"""What a prompt calls such files by: `<hypernet:name:1>`."""

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Activation] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leakyrelu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "rrelu": F.rrelu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "swish": F.hardswish,  # AUTOMATIC1111's word for it
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
}
"""By AUTOMATIC1111's names: torch's classes in lower case. `prelu` has a weight of its own in the file."""
_KEY = re.compile(r"(\d+)\.([01])\.linear\.?(\d+)\.(weight|bias)")


@dataclass(frozen=True, eq=False)
class Layer:
    weight: Tensor
    bias: Tensor
    slope: Tensor | None = None
    """Of `prelu` alone."""
    norm: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> Layer:
        slope = None if self.slope is None else self.slope.to(device)
        norm = None if self.norm is None else (self.norm[0].to(device), self.norm[1].to(device))
        return Layer(self.weight.to(device), self.bias.to(device), slope, norm)


Net = tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Hypernetwork:
    """What a file holds, in float32."""

    name: str
    path: Path
    pairs: Mapping[int, tuple[Net, Net]]
    """Width of the context -> networks for the keys and for the values."""
    activation: str | None = None
    """None is no activation."""
    activate_last: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def structure(self) -> tuple[float, ...]:
        """Widths of the layers as multiples of the context's, in and out among them: (1, 2, 1)."""
        width, (net, _) = next(iter(self.pairs.items()))
        return (1.0, *(len(layer.weight) / width for layer in net))

    @property
    def report(self) -> str:
        """`sizes 320, 640, 768, 1280; layers 1, 2, 1; relu`."""
        sizes, layers = ", ".join(map(str, self.pairs)), ", ".join(f"{ratio:g}" for ratio in self.structure)
        norms = ", layer norms" if any(layer.norm for net, _ in self.pairs.values() for layer in net) else ""
        return f"sizes {sizes}; layers {layers}; {self.activation or 'linear'}{norms}"


def read(path: Path | str, name: str | None = None) -> Hypernetwork:
    """The hypernetwork in a file, called `name` or as the file. Raises DanqingError: damaged, none, an unknown
    activation, or shapes that do not chain."""
    file = open_file(path)
    found: dict[int, tuple[dict[int, dict[str, Tensor]], dict[int, dict[str, Tensor]]]] = {}
    for key, entry in file.entries.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        # files of the first days call linear.0 and linear.1 linear1 and linear2
        number = int(match[3]) - (0 if ".linear." in key else 1)
        half = found.setdefault(int(match[1]), ({}, {}))[int(match[2])]
        half.setdefault(number, {})[match[4]] = entry.load().float().clone()
    if not found:
        raise DanqingError(f"{file.path}: is no hypernetwork: it has no layers for any width of context")
    activation = _activation(file)
    pairs = {
        width: (_net(file, width, halves[0], activation), _net(file, width, halves[1], activation))
        for width, halves in sorted(found.items())
    }
    last = file.metadata.get("activate_output", "True") == "True"
    return Hypernetwork(name or file.path.stem, file.path, pairs, activation, last, file.metadata)


def with_hypernetworks(
    model: Model, uses: Sequence[tuple[Hypernetwork, float]], say: Callable[[str], None] | None = None
) -> Model:
    """`model` in whose attention layers hypernetworks speak, one behind another, each with its strength: any finite
    number, 0 for none and below it the other way. No weight is touched: taking them off is going back to `model`.

    `say` is told of each: "ink: 32 attention layers, sizes 320, 640, 768, 1280; layers 1, 2, 1; relu".
    Raises DanqingError for one whose sizes are another family's.
    """
    widths = {layer.name: layer.to_k.in_features for layer in model.denoiser.modules() if isinstance(layer, Attention)}
    parts: list[Patches | None] = [model.patches]
    for network, strength in uses:
        _require_fit(network, model.family, set(widths.values()))
        halves: dict[int, ContextPatch] = {}
        for width, pair in network.pairs.items():
            for_keys, for_values = ([layer.to(model.device) for layer in net] for net in pair)
            halves[width] = partial(_changed, network, strength, for_keys, for_values)
        contexts = {name: halves[width] for name, width in widths.items() if width in halves}
        if say is not None:
            told = "changes nothing: its strength is 0" if strength == 0 else f"{len(contexts)} attention layers"
            say(f"{network.name}: {told}, {network.report}")
        parts.append(Patches(contexts=contexts) if strength else None)
    return replace(model, patches=stacked(parts))


def apply(network: Hypernetwork, net: Sequence[Layer], x: Tensor) -> Tensor:
    """net(x): (..., C) -> (..., C) float32."""
    out = x.float()
    for index, layer in enumerate(net):
        out = F.linear(out, layer.weight, layer.bias)
        if network.activation is not None and (index < len(net) - 1 or network.activate_last):
            out = ACTIVATIONS[network.activation](out) if layer.slope is None else F.prelu(out, layer.slope)
        if layer.norm is not None:
            out = F.layer_norm(out, out.shape[-1:], *layer.norm)
    return out


def _changed(
    network: Hypernetwork,
    strength: float,
    for_keys: Sequence[Layer],
    for_values: Sequence[Layer],
    keys: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    key, value = (
        (x.float() + strength * apply(network, net, x)).to(x.dtype)
        for net, x in ((for_keys, keys), (for_values, values))
    )
    return key, value


def _activation(file: TensorFile) -> str | None:
    name = file.metadata.get("activation_func", "linear").lower()
    if name in ("linear", "none"):
        return None
    if name != "prelu" and name not in ACTIVATIONS:
        raise DanqingError(f"{file.path}: {unknown('activation', name, ['linear', 'prelu', *ACTIVATIONS])}")
    return name


def _net(file: TensorFile, width: int, parts: Mapping[int, Mapping[str, Tensor]], activation: str | None) -> Net:
    """The layers by their numbers: what has a weight of two dimensions is linear; what follows belongs to it."""
    layers: list[Layer] = []
    size = width
    for _, tensors in sorted(parts.items()):
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if weight is not None and bias is not None and weight.dim() == 2 and weight.shape == (len(bias), size):
            layers.append(Layer(weight, bias))
            size = len(bias)
        elif weight is not None and bias is not None and layers and weight.shape == bias.shape == (size,):
            layers[-1] = replace(layers[-1], norm=(weight, bias))
        elif weight is not None and bias is None and layers and weight.shape == (1,) and activation == "prelu":
            layers[-1] = replace(layers[-1], slope=weight)
        else:
            shape = "nothing" if weight is None else str(list(weight.shape))
            raise DanqingError(
                f"{file.path}: a layer of size {width} holds {shape}, which does not fit those before it"
            )
    if not layers or size != width:
        raise DanqingError(f"{file.path}: the layers of size {width} end with {size}, not {width}")
    if not all(bool(torch.isfinite(part).all()) for layer in layers for part in (layer.weight, layer.bias)):
        raise DanqingError(f"{file.path}: holds numbers that are not finite; download it again")
    return tuple(layers)


def _require_fit(network: Hypernetwork, family: Family, widths: set[int]) -> None:
    strange = set(network.pairs) - widths
    title = likely(set(network.pairs))
    if strange == set(network.pairs) or (strange and family.denoiser.context_width not in network.pairs):
        hint = f"; it is made for {title}" if title and title != family.title else ""
        sizes = ", ".join(map(str, network.pairs))
        raise DanqingError(
            f"{network.path}: does not fit {family.title}: none of its sizes, {sizes}, is its text's{hint}"
        )


def likely(sizes: set[int]) -> str:
    """The title of the family whose text has one of these sizes; empty if none has."""
    titles = {row.denoiser.context_width: row.title for row in reversed(FAMILIES.values())}
    return next((titles[size] for size in sorted(sizes, reverse=True) if size in titles and size != 1280), "")
