"""The networks of preprocessors against a second statement of their architectures, by functions of their files' tensors.

The statements follow the papers and the published files' names; no package has these networks without torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danqing.models.line_art import LineArt
from danqing.models.line_unet import LineUNet
from danqing.models.mlsd import MLSD
from danqing.models.openpose import FACE_POINTS, HAND_POINTS, BodyPose, PointMaps
from danqing.models.pidinet import PiDiNet

Parity = Callable[[str, str, float, float], None]
State = Mapping[str, Tensor]
STATED = "the published architecture, stated by functions"
BOUND = 1e-5


def filled(network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The network's tensors filled so that values neither die out nor grow."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            state[name] = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", ".weight")):
            state[name] = 1 + 0.3 * noise.tanh()
        else:
            state[name] = 0.1 * noise
    network.to(dtype).load_state_dict(state)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def apart(mine: Tensor, theirs: Tensor) -> float:
    assert mine.shape == theirs.shape
    assert float(theirs.std()) > 1e-3
    return float((mine - theirs).abs().max() / theirs.abs().max())


def conv(state: State, name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)


@torch.no_grad()
def test_line_art(parity: Parity) -> None:
    network = LineArt()
    w, x = filled(network), torch.rand(1, 3, 24, 32)

    def mirrored(name: str, x: Tensor, far: int) -> Tensor:
        return conv(w, name, F.pad(x, (far,) * 4, mode="reflect"))

    h = F.relu(F.instance_norm(mirrored("model0.1", x, 3)))
    for name in ("model1.0", "model1.3"):
        h = F.relu(F.instance_norm(conv(w, name, h, stride=2, padding=1)))
    for i in range(3):
        inner = F.relu(F.instance_norm(mirrored(f"model2.{i}.conv_block.1", h, 1)))
        h = h + F.instance_norm(mirrored(f"model2.{i}.conv_block.5", inner, 1))
    for name in ("model3.0", "model3.3"):
        grown = F.conv_transpose2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1, output_padding=1)
        h = F.relu(F.instance_norm(grown))
    stated = mirrored("model4.1", h, 3).sigmoid()
    parity("line art of photographs", STATED, apart(network(x), stated), BOUND)


@torch.no_grad()
def test_anime_line_art(parity: Parity) -> None:
    network = LineUNet()
    w, x = filled(network), torch.rand(1, 3, 256, 256) * 2 - 1

    def grown(name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(F.relu(x), w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)

    prefixes = ["model.model.1.model"]
    prefixes += [prefixes[0] + ".3.model" * i for i in range(1, 7)]
    down = [conv(w, "model.model.0", x, stride=2, padding=1)]
    for i, prefix in enumerate(prefixes):
        h = conv(w, f"{prefix}.1", F.leaky_relu(down[-1], 0.2), stride=2, padding=1)
        down.append(h if i == 6 else F.instance_norm(h))
    h = down[-1]
    for i, prefix in reversed([*enumerate(prefixes)]):
        up = F.instance_norm(grown(f"{prefix}.{3 if i == 6 else 5}", h))
        h = torch.cat([down[i], up], 1)
    stated = grown("model.model.3", h).tanh()
    parity("line art of anime pictures", STATED, apart(network(x), stated), BOUND)


@torch.no_grad()
def test_straight_lines(parity: Parity) -> None:
    network = MLSD()
    w, x = filled(network), torch.rand(1, 4, 32, 48) * 2 - 1

    def normed(name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def mobile(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.0.weight"]
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        x = F.pad(x, (0, 1, 0, 1)) if stride == 2 else x
        padding = kernel.shape[-1] // 2 if stride == 1 else 0
        return normed(f"{name}.1", conv(w, f"{name}.0", x, stride=stride, padding=padding, groups=groups)).clamp(0, 6)

    def layer(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        padding = w[f"{name}.0.weight"].shape[-1] // 2 * dilation
        return F.relu(normed(f"{name}.1", conv(w, f"{name}.0", x, padding=padding, dilation=dilation)))

    h, stages = mobile("backbone.features.0", x, 2), []
    strides = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1)
    for index, stride in enumerate(strides, 1):
        prefix, inner, at = f"backbone.features.{index}.conv", h, 0
        if index > 1:
            inner, at = mobile(f"{prefix}.0", inner), 1
        inner = mobile(f"{prefix}.{at}", inner, stride)
        inner = normed(f"{prefix}.{at + 2}", conv(w, f"{prefix}.{at + 1}", inner))
        h = h + inner if stride == 1 and h.shape == inner.shape else inner
        if index in (1, 3, 6, 10, 13):
            stages.append(h)
    h = stages.pop()
    for name in (15, 17, 19, 21):
        up = layer(f"block{name}.conv1", h)
        if name > 15:
            up = F.interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=True)
        h = torch.cat([layer(f"block{name}.conv2", stages.pop()), up], 1)
        h = layer(f"block{name + 1}.conv2", layer(f"block{name + 1}.conv1", h) + h)
    h = layer("block23.conv2", layer("block23.conv1", h, 5))
    stated = conv(w, "block23.conv3", h)[:, 7:]
    assert stated.shape == (1, 9, 16, 24)
    parity("M-LSD", STATED, apart(network(x), stated), BOUND)


@torch.no_grad()
def test_pidinet(parity: Parity) -> None:
    """In float64, for differences of differences lose digits."""
    network = PiDiNet()
    w, x = filled(network, torch.float64), torch.rand(1, 3, 32, 40, dtype=torch.float64)
    ring = (0, 1, 2, 5, 8, 7, 6, 3)  # around the middle, clockwise
    far = (0, 2, 4, 10, 14, 20, 22, 24)
    near = (6, 7, 8, 11, 13, 16, 17, 18)

    def different(name: str, kind: int, x: Tensor) -> Tensor:
        """Weights times differences of pixels, each pair written down."""
        weight, (rows, columns) = w[f"{name}.weight"], x.shape[-2:]
        size = 5 if kind == 2 else 3
        around = F.unfold(x, size, padding=size // 2).unflatten(1, (x.shape[1], size * size))  # (1, C, 9 or 25, H W)
        if kind == 0:
            pairs = around - around[:, :, 4:5]
        elif kind == 1:
            pairs = around.clone()
            pairs[:, :, 4] = 0  # the middle against itself
            for place, after in zip(ring, (*ring[1:], ring[0])):
                pairs[:, :, place] = around[:, :, place] - around[:, :, after]
        elif kind == 2:
            pairs = torch.zeros_like(around[:, :, :9])
            pairs[:, :, 1:] = around[:, :, list(far)] - around[:, :, list(near)]
        else:
            pairs = around
        flat = weight.flatten(2)  # (C', C or 1, 9)
        made = torch.einsum("ock,nckp->nop", flat, pairs) if weight.shape[1] > 1 else (
            flat[:, 0][None, ..., None] * pairs).sum(2)  # fmt: skip
        return made.unflatten(2, (rows, columns))

    h, layer, edges = different("init_block", 0, x), 0, []
    for level, count in enumerate((3, 4, 4, 4)):
        for index in range(count):
            layer += 1
            name = f"block{level + 1}_{index + 1}"
            halves = level > 0 and index == 0
            h = F.max_pool2d(h, 2) if halves else h
            inner = conv(w, f"{name}.conv2", F.relu(different(f"{name}.conv1", layer % 4, h)))
            h = inner + (conv(w, f"{name}.shortcut", h) if halves else h)
        d = conv(w, f"dilations.{level}.conv1", F.relu(h))
        d = sum(
            conv(w, f"dilations.{level}.conv2_{i + 1}", d, dilation=n, padding=n) for i, n in enumerate((5, 7, 9, 11))
        )
        look = conv(w, f"attentions.{level}.conv2", conv(w, f"attentions.{level}.conv1", F.relu(d)), padding=1)
        edge = conv(w, f"conv_reduces.{level}.conv", d * look.sigmoid())
        edges.append(F.interpolate(edge, x.shape[-2:], mode="bilinear", align_corners=False))
    stated = conv(w, "classifier", torch.cat(edges, 1)).sigmoid()
    parity("PiDiNet, float64", STATED, apart(network(x), stated), BOUND)


def vgg(w: State, x: Tensor, tail: tuple[str, ...]) -> Tensor:
    for level, count in enumerate((2, 2, 4, 2), 1):
        for index in range(count):
            x = F.relu(conv(w, f"conv{level}_{index + 1}", x, padding=1))
        x = F.max_pool2d(x, 2) if level < 4 else x
    for name in tail:
        x = F.relu(conv(w, name, x, padding=1))
    return x


def stage(w: State, mark: str, x: Tensor) -> Tensor:
    for index in range(1, 6):
        x = F.relu(conv(w, f"Mconv{index}_{mark}", x, padding=3))
    return conv(w, f"Mconv7_{mark}", F.relu(conv(w, f"Mconv6_{mark}", x)))


@torch.no_grad()
def test_openpose_bodies(parity: Parity) -> None:
    network = BodyPose()
    w, x = filled(network), torch.rand(1, 3, 16, 24) - 0.5
    seen = vgg(w, x, ("conv4_3_CPM", "conv4_4_CPM"))
    made = []
    for mark in ("L1", "L2"):
        h = seen
        for index in (1, 2, 3):
            h = F.relu(conv(w, f"conv5_{index}_CPM_{mark}", h, padding=1))
        made.append(conv(w, f"conv5_5_CPM_{mark}", F.relu(conv(w, f"conv5_4_CPM_{mark}", h))))
    for number in range(2, 7):
        told = torch.cat([*made, seen], 1)
        made = [stage(w, f"stage{number}_{mark}", told) for mark in ("L1", "L2")]
    links, points = network(x)
    parity("OpenPose, limbs of bodies", STATED, apart(links, made[0]), BOUND)
    parity("OpenPose, parts of bodies", STATED, apart(points, F.relu(made[1])), BOUND)


@torch.no_grad()
def test_openpose_hands_and_faces(parity: Parity) -> None:
    for subject, count in (("OpenPose, hands", HAND_POINTS), ("OpenPose, faces", FACE_POINTS)):
        network = PointMaps(count)
        w, x = filled(network), torch.rand(1, 3, 16, 16) - 0.5
        seen = vgg(w, x, ("conv4_3", "conv4_4", "conv5_1", "conv5_2", "conv5_3_CPM"))
        made = conv(w, "conv6_2_CPM", F.relu(conv(w, "conv6_1_CPM", seen)))
        for number in range(2, 7):
            made = stage(w, f"stage{number}", torch.cat([made, seen], 1))
        parity(subject, STATED, apart(network(x), made), BOUND)
