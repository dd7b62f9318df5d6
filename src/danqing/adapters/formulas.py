"""Formulas: what each algorithm of the LoRA family makes of a weight, as one table.

Every formula takes the layer's parts (float32, on the weight's device), the weight W in float32 and the strength s, and
gives the new weight: W at s = 0, what was trained at s = 1, the straight line through both elsewhere (BOFT: each of its
stages on such a line, as LyCORIS and ComfyUI have it).

Sources: Hu et al. 2021 (LoRA); Hyeon-Woo et al. 2022 (FedPara: LoHa); Yeh et al. 2024 (LyCORIS: LoCon, LoKr, Tucker's
and CP's decompositions of convolutions); Liu et al. 2022 ((IA)^3); Chavan et al. 2023 (GLoRA); Liu et al. 2024 (DoRA);
Qiu et al. 2023 (OFT); Liu et al. 2024 (BOFT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = Mapping[str, Tensor]
Change = Callable[[Parts, Tensor, float], Tensor]

NUMBERS = ("alpha", "scale", "on_input")
"""Parts that are one number each."""


@dataclass(frozen=True)
class Algorithm:
    """A row: what a layer has in the file, and what it does."""

    name: str
    needs: frozenset[str]
    may: frozenset[str]
    change: Change
    parameter: str = "weight"
    """Which parameter of the layer it changes; `bias` is left out where the layer has none."""
    rank: Callable[[Parts], int] | None = None
    norm: Callable[[Parts], Tensor] | None = None
    """The norm of what it adds at strength 1, where that is much cheaper to know than to make."""


# --- what all have in common ------------------------------------------------------------------------------------------


def _scale(parts: Parts, rank: int) -> float:
    """alpha / rank; 1 where the file has no alpha; a `scale` in the file (or PEFT's settings) instead of both."""
    if "scale" in parts:
        return float(parts["scale"])
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _fitted(delta: Tensor, weight: Tensor) -> Tensor:
    """`delta` in the weight's shape: a 1x1 convolution is a linear layer; the channels that an inpainting model's first
    layer has besides the latents' are zeros. Raises ValueError where it does not fit."""
    if delta.numel() == weight.numel() and delta.shape[0] == weight.shape[0]:
        return delta.reshape(weight.shape)
    first = delta.dim() == 4 and delta.shape[1] < weight.shape[1] < 32
    if first and delta.shape[::2] == weight.shape[::2] and delta.shape[3] == weight.shape[3]:
        return F.pad(delta, (0, 0, 0, 0, 0, weight.shape[1] - delta.shape[1]))
    raise ValueError(f"{list(delta.shape)} for {list(weight.shape)}")


def _moved(weight: Tensor, delta: Tensor, parts: Parts, strength: float) -> Tensor:
    """W + s delta; with DoRA, W + s (m (W + delta) / |W + delta| - W), the norm along the axis that m is not on.

    Which axis that is, the shape tells: (out, 1 ...) is LyCORIS' default, by rows; (1, in ...) is the paper's, by
    columns; a plain vector goes by its length, rows first. PEFT's magnitude is always by rows.
    """
    delta = _fitted(delta, weight)
    if "magnitude" in parts:
        magnitude, rows = parts["magnitude"], True
    elif "dora_scale" in parts:
        magnitude = parts["dora_scale"]
        rows = magnitude.shape[0] == weight.shape[0] and magnitude.numel() == weight.shape[0]
    else:
        return weight + strength * delta
    whole = weight + delta
    axes = [axis for axis in range(whole.dim()) if axis != (0 if rows else 1)]
    norm = torch.linalg.vector_norm(whole, dim=axes, keepdim=True)
    trained = whole * (magnitude.reshape(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return torch.lerp(weight, trained, strength)


def _tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """Tucker's decomposition: core (r, r', k ...), out (r, O), into (r', I) -> (O, I, k ...)."""
    return torch.einsum("rs...,ro,si->oi...", core, out, into)


# --- the algorithms ---------------------------------------------------------------------------------------------------


def _same_rows(shape: tuple[int, ...], weight: Tensor) -> None:
    """Before anything large is made of parts that are another layer's. Raises ValueError where they are."""
    if shape[0] != weight.shape[0]:
        raise ValueError(f"{list(shape)} for {list(weight.shape)}")


def _lora(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """delta = up down alpha / rank; a convolution's up is 1x1; with a mid (LoCon), up mid down."""
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    scale = _scale(parts, down.shape[0])
    _same_rows((up.shape[0], *down.shape[1:]), weight)
    flat = up.flatten(1), down.flatten(1)
    if "lora_mid.weight" in parts:
        return _moved(weight, _tucker(parts["lora_mid.weight"], flat[0].T, flat[1]) * scale, parts, strength)
    if plain(parts) and up.shape[0] * flat[1].shape[1] == weight.numel():  # in one pass over memory
        return torch.addmm(weight.flatten(1), *flat, alpha=strength * scale).view(weight.shape)
    delta = (flat[0] @ flat[1]).reshape(up.shape[0], *down.shape[1:]) * scale
    return _moved(weight, delta, parts, strength)


def plain(parts: Iterable[str]) -> bool:
    """Whether a LoRA of these parts adds a product of two to the weight, and nothing else."""
    return {"lora_mid.weight", "dora_scale", "magnitude"}.isdisjoint(parts)


def _lora_norm(parts: Parts) -> Tensor:
    """|U D| alpha / rank of what is `plain`: |U D|^2 is the sum of U^T U * D D^T, of the rank's size squared."""
    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"].flatten(1)
    return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt() * abs(_scale(parts, down.shape[0]))


def _loha(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """delta = (a1 b1) * (a2 b2) alpha / rank, element by element; with cores, each factor is Tucker's."""

    def factor(i: int) -> Tensor:
        a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
        core = parts.get(f"hada_t{i}")
        _same_rows((a.shape[0 if core is None else 1], b.shape[1]), weight)
        return a @ b if core is None else _tucker(core, a, b)

    scale = _scale(parts, parts["hada_w1_b"].shape[0])
    return _moved(weight, factor(1) * factor(2) * scale, parts, strength)


def _lokr(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """delta = w1 (x) w2, Kronecker's product; each may be a product of two. Only then is there a rank to scale by."""

    def factor(i: int) -> Tensor:
        if f"lokr_w{i}" in parts:
            return parts[f"lokr_w{i}"]
        a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
        return _tucker(parts[f"lokr_t{i}"], a, b) if f"lokr_t{i}" in parts else a @ b

    w1, w2 = factor(1), factor(2)
    _same_rows((w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1]), weight)
    w1 = w1.reshape(*w1.shape, *[1] * (w2.dim() - w1.dim()))
    rank = _lokr_rank(parts)
    scale = _scale(parts, rank) if rank or "scale" in parts else 1.0
    return _moved(weight, torch.kron(w1, w2.contiguous()) * scale, parts, strength)


def _lokr_rank(parts: Parts) -> int:
    """0 where neither factor is a product."""
    return next((parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), 0)


def _glora(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """delta = (W A + B) alpha / rank with A = a1 a2 and B = b1 b2; LyCORIS before 2.0 had A = a2 a1 and B = b2 b1."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if a1.shape[0] != weight.shape[1]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    if "bm.weight" in parts:
        added = _tucker(parts["bm.weight"], b1.T, b2)
    else:
        added = (b1 @ b2).reshape(weight.shape)
    delta = torch.einsum("or...,rj->oj...", torch.einsum("oi...,ir->or...", weight, a1), a2) + added
    return _moved(weight, delta * _scale(parts, a2.shape[0]), parts, strength)


def _glora_rank(parts: Parts) -> int:
    return min(parts["a1.weight"].shape[:2])


def _ia3(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """delta = W * w along the inputs or the outputs (LyCORIS: w is the difference from 1)."""
    axis = 1 if float(parts["on_input"]) else 0
    shape = [weight.shape[axis] if i == axis else 1 for i in range(weight.dim())]
    return weight * (1 + strength * parts["weight"].reshape(shape))


def _of_inputs(parts: Parts, outputs: int) -> bool:
    """Whether PEFT's factors are of a layer's inputs: by its settings; else by the vector's shape, (1, in) or (out, 1);
    a convolution's is (1, n, 1, 1) for both, and taken for the outputs' where their number fits."""
    vector = parts["ia3_l"]
    if "on_input" in parts:
        return bool(parts["on_input"])
    return vector.shape[0] == 1 if vector.dim() == 2 else vector.numel() != outputs


def _peft_ia3(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """W l along inputs or outputs (PEFT: l is the factor itself)."""
    axis = 1 if _of_inputs(parts, weight.shape[0]) else 0
    factor = parts["ia3_l"].reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    return weight * (1 + strength * (factor - 1))


def _peft_ia3_bias(parts: Parts, bias: Tensor, strength: float) -> Tensor:
    """A factor of the outputs is the bias' too; one of the inputs leaves it alone."""
    if _of_inputs(parts, len(bias)):
        return bias
    return bias * (1 + strength * (parts["ia3_l"].flatten() - 1))


def _rotations(parts: Parts, size: int) -> Tensor:
    """Cayley's transform of each block: Q = B - B^T, R = (I + Q) (I - Q)^-1; |Q| at most alpha x outputs (COFT)."""
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.mT
    limit = float(parts["alpha"]) * size if "alpha" in parts else 0.0
    if limit > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * (limit / norm).clamp(max=1)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    turns: Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return turns


def _oft(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """Blocks of outputs are turned by R^T (OFT, blocks of three dimensions) or by stages of R in butterflies (BOFT, of
    four); `rescale` is a factor for each output."""
    turns = _rotations(parts, weight.shape[0])
    size = turns.shape[-1]
    if turns.dim() == 3:
        rows = weight.reshape(-1, size, *weight.shape[1:])
        turned = torch.einsum("bnm,bn...->bm...", turns, rows).reshape(weight.shape)
        trained = turned * parts["rescale"] if "rescale" in parts else turned
        return torch.lerp(weight, trained, strength)
    one = torch.eye(size, device=turns.device)
    turned = weight.flatten(1)
    for stage, turn in enumerate(turns):
        reach = 2**stage * size // 2
        mixed = turned.reshape(-1, 2, reach, turned.shape[1]).transpose(1, 2).reshape(-1, size, turned.shape[1])
        mixed = torch.lerp(one, turn, strength) @ mixed
        turned = mixed.reshape(-1, reach, 2, mixed.shape[-1]).transpose(1, 2).flatten(0, 2)
    turned = turned.reshape(weight.shape)
    return turned * (1 + strength * (parts["rescale"] - 1)) if "rescale" in parts else turned


def _difference(part: str) -> Change:
    def change(parts: Parts, weight: Tensor, strength: float) -> Tensor:
        return weight + strength * _fitted(parts[part], weight)

    return change


def _row(
    name: str,
    needs: str,
    may: str,
    change: Change,
    rank: str | Callable[[Parts], int] | None = None,
    parameter: str = "weight",
    norm: Callable[[Parts], Tensor] | None = None,
) -> Algorithm:
    def first(parts: Parts) -> int:
        return int(parts[str(rank)].shape[0])

    ranked = first if isinstance(rank, str) else rank
    return Algorithm(name, frozenset(needs.split()), frozenset(may.split()), change, parameter, ranked, norm)


_SCALED = "alpha scale dora_scale magnitude"
_LOKR = f"lokr_t2 {_SCALED}"

ALGORITHMS: tuple[Algorithm, ...] = (
    _row(
        "LoRA",
        "lora_down.weight lora_up.weight",
        f"lora_mid.weight {_SCALED}",
        _lora,
        "lora_down.weight",
        norm=_lora_norm,
    ),
    _row("LoHa", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", f"hada_t1 hada_t2 {_SCALED}", _loha, "hada_w1_b"),
    _row("LoKr", "lokr_w1 lokr_w2", _LOKR, _lokr),
    _row("LoKr", "lokr_w1 lokr_w2_a lokr_w2_b", _LOKR, _lokr, _lokr_rank),
    _row("LoKr", "lokr_w1_a lokr_w1_b lokr_w2", _LOKR, _lokr, _lokr_rank),
    _row("LoKr", "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b", _LOKR, _lokr, _lokr_rank),
    _row("GLoRA", "a1.weight a2.weight b1.weight b2.weight", f"bm.weight {_SCALED}", _glora, _glora_rank),
    _row("(IA)^3", "weight on_input", "", _ia3),
    _row("(IA)^3", "ia3_l", "on_input", _peft_ia3),
    _row("(IA)^3", "ia3_l", "on_input", _peft_ia3_bias, parameter="bias"),
    _row("OFT", "oft_blocks", "rescale alpha", _oft),
    _row("full difference", "diff", "", _difference("diff")),
    _row("bias difference", "diff_b", "", _difference("diff_b"), parameter="bias"),
    _row("norm layers", "w_norm", "", _difference("w_norm")),
    _row("norm layers", "b_norm", "", _difference("b_norm"), parameter="bias"),
)
"""A layer has every row whose needs it has."""
