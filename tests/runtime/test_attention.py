"""Attention against its formula in double precision."""

import pytest
import torch
import torch.nn.functional as F

from danqing.runtime import attention as module
from danqing.runtime.attention import attention


def inputs(batch: int, heads: int, length: int, keys: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Laid out as the networks do: (B, T, heads, D) in memory."""
    torch.manual_seed(0)
    sizes = ((length, width), (keys, width), (keys, width))
    return [torch.randn(batch, n, heads, d).to(dtype).transpose(1, 2) for n, d in sizes]


def formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value.double()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


SHAPES = [(2, 3, 50, 50, 16), (1, 2, 300, 77, 40), (2, 2, 600, 1030, 40), (2, 1, 560, 1024, 64), (1, 1, 700, 5000, 24)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_formula(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    query, key, value = inputs(*shape, dtype)
    assert error(attention(query, key, value), formula(query, key, value, shape[-1] ** -0.5)) < bound
    assert error(attention(query, key, value, scale=0.3), formula(query, key, value, 0.3)) < bound


@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_large_scores_stay_as_fine_as_torchs(offset: float, width: int) -> None:
    """Rounded scores would be off by as much as they are large; a common offset of the keys must not matter either."""
    query, key, value = inputs(1, 2, 512, 1024, width, torch.bfloat16)
    query, key = query * 4, key + offset * torch.randn(1, 2, 1, width).to(key) / 10
    wanted = formula(query, key, value, width**-0.5)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert error(attention(query, key, value), wanted) < 3 * error(theirs, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_far_above_the_guess(dtype: torch.dtype) -> None:
    """One that no sample sees, and that wins by more than a sigmoid can tell."""
    query, key, value = inputs(1, 2, 512, 1024, 40, dtype)
    key[:, :, 333] = query[:, :, 7] * 20
    wanted = formula(query, key, value, 40**-0.5)
    assert float((wanted[:, :, 7] - value[:, :, 333]).abs().max()) < 1e-6
    assert error(attention(query, key, value), wanted) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask(dtype: torch.dtype) -> None:
    query, key, value = inputs(2, 2, 20, 300, 16, dtype)
    mask = (torch.arange(300) < torch.tensor([[300], [120]]))[:, None, None, :]
    wanted = formula(query, key, value, 0.25, mask)
    assert error(attention(query, key, value, mask), wanted) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "keys", "width"), [(1100, 1100, 40), (1100, 1100, 64), (64, 77, 160)])
def test_same_bits_in_any_batch(
    length: int, keys: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES", 1 << 16)  # more than one block
    query, key, value = inputs(3, 8, length, keys, width, dtype)
    together = attention(query, key, value)
    alone = [attention(*(t[i : i + 1] for t in (query, key, value))) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_gradients() -> None:
    given = [t.requires_grad_() for t in inputs(1, 2, 300, 300, 16, torch.bfloat16)]
    gradients = torch.autograd.grad(attention(*given).float().square().sum(), given)
    exact = [t.detach().double().requires_grad_() for t in given]
    wanted = torch.autograd.grad(formula(*exact, 0.25).square().sum(), exact)
    assert all(error(mine, theirs) < 2e-2 for mine, theirs in zip(gradients, wanted))


@pytest.mark.parametrize("masked", [False, True])
def test_a_training_step_has_torchs_values_and_gradients(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    mask = torch.rand(5, 7) < 0.8 if masked else None
    if mask is not None:
        mask[:, 0] = True
    ours = attention(query, key, value, mask)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.allclose(ours, theirs, atol=1e-6)
    toward = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, (query, key, value), toward)
    for a, b in zip(mine, torch.autograd.grad(theirs, (query, key, value), toward)):
        assert torch.allclose(a, b, atol=1e-5)
