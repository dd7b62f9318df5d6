"""Muon: what it does to matrices, and that vectors get AdamW's step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.train.muon import Muon, orthogonal


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.integers(0, 1000))
def test_singular_values_come_near_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    kept = s > 0.05 * s[0]  # five steps do not lift what is nearly nothing
    values = torch.diagonal(u.T @ found @ v.T)[kept]
    assert found.shape == matrix.shape
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_a_zero_gradient_moves_nothing() -> None:
    assert orthogonal(torch.zeros(3, 5)).count_nonzero() == 0


def test_vectors_move_as_by_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    a = Muon([ours], 0.01, betas=(0.9, 0.95), weight_decay=0.1)
    b = torch.optim.AdamW([theirs], 0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(20):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 4, 3, 3)])
def test_a_matrix_s_step_is_as_large_as_adam_s(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    Muon([weight], 0.01).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3)


def test_it_finds_a_linear_map_whose_inputs_differ_in_size() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(6, 10, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(6, 10))
    optimizer = Muon([weight], 0.1)
    sizes = torch.logspace(-1, 1, 10)
    first = last = 0.0
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        x = torch.randn(32, 10, generator=generator) * sizes
        loss = (x @ (weight - wanted).T).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first, last = first or loss.item(), loss.item()
    assert last < 0.01 * first


def test_a_state_is_gone_on_with_bit_for_bit() -> None:
    def begin() -> tuple[torch.nn.Parameter, Muon]:
        weight = torch.nn.Parameter(torch.ones(4, 6))
        bias = torch.nn.Parameter(torch.ones(4))
        return weight, Muon([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], 0.01)

    def lesson(optimizer: Muon, seed: int) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    whole, one = begin()
    for seed in range(6):
        lesson(one, seed)
    _, two = begin()
    for seed in range(3):
        lesson(two, seed)
    again, three = begin()
    three.load_state_dict(two.state_dict())
    for new, old in zip(three.param_groups, two.param_groups):
        for p, q in zip(new["params"], old["params"]):
            p.data.copy_(q.data)
    for seed in range(3, 6):
        lesson(three, seed)
    assert torch.equal(whole, again)
