import pytest
import torch

from danqing.runtime.conversion import PART, Block, convert, to_dtype

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_converts_to_the_same_bits_as_torch(source: torch.dtype, target: torch.dtype) -> None:
    values = (torch.randn(PART + 77) * 3).to(source)
    values[:4] = torch.tensor([0.0, -0.0, 6e-8, 65504.0]).to(source)
    got = torch.empty(len(values), dtype=target)
    convert(values, got)
    assert torch.equal(got, values.to(target))
    assert torch.equal(to_dtype(values.view(-1, 1), target), values.to(target).view(-1, 1))


def test_tensors_of_a_block_do_not_touch_each_other() -> None:
    first, second = torch.randn(3, 5), torch.randn(7)
    size = sum(Block.aligned(t.numel() * 2) for t in (first, second))
    block = Block(size)
    a, b = block.take(first, torch.float16), block.take(second, torch.float16)
    assert torch.equal(a, first.half())
    assert torch.equal(b, second.half())
    a.zero_()
    assert torch.equal(b, second.half())
    del block
    assert torch.equal(b, second.half())
