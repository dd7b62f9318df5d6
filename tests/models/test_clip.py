"""CLIP's text tower, without a reference."""

import pytest
import torch

from danqing.models.clip import CLIPText, CLIPTextConfig

SMALL = CLIPTextConfig(
    vocabulary=60, width=32, intermediate=64, layers=2, heads=2, positions=12, projection=16, end_token=59
)
IDS = torch.tensor([[58, 4, 5, 59, 59, 59], [58, 4, 6, 7, 59, 0]])


@pytest.fixture(scope="module")
def tower() -> CLIPText:
    torch.manual_seed(0)
    return CLIPText(SMALL).eval().requires_grad_(False)


def test_pooled_at_the_first_end(tower: CLIPText) -> None:
    out = tower(IDS)
    wanted = torch.stack([out.last[0, 3], out.last[1, 4]])
    torch.testing.assert_close(out.pooled, tower.text_projection(wanted))


def test_end_token_may_be_smaller_than_others() -> None:
    """An argmax over the ids would find 58."""
    torch.manual_seed(0)
    tower = CLIPText(
        CLIPTextConfig(vocabulary=60, width=32, intermediate=64, layers=1, heads=2, positions=12, end_token=2)
    )
    out = tower(torch.tensor([[58, 5, 2, 7, 2]]))
    assert torch.equal(out.pooled, out.last[:, 2])


def test_last_is_the_norm_of_the_last_hidden(tower: CLIPText) -> None:
    out = tower(IDS)
    assert len(out.hidden) == SMALL.layers + 1
    assert torch.equal(tower.final_norm(out.hidden[-1]), out.last)


def test_embeddings_stand_in_for_tokens(tower: CLIPText) -> None:
    embeddings = tower.embed(IDS)
    assert torch.equal(tower(IDS, embeddings=embeddings).last, tower(IDS).last)
    embeddings[:, 1] = 0
    assert not torch.equal(tower(IDS, embeddings=embeddings).last, tower(IDS).last)


def test_a_token_sees_none_after_it(tower: CLIPText) -> None:
    later = IDS.clone()
    later[:, 4:] = 9
    assert torch.equal(tower(IDS).last[:, :4], tower(later).last[:, :4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(vocabulary=60, layers=1, projection=768, end_token=59)
    tower = CLIPText(config).to(dtype).requires_grad_(False)
    ids = torch.randint(0, 59, (5, 77))
    ids[:, 30:] = 59
    alone = [tower(one) for one in ids.split(1)]
    together = tower(ids)
    assert torch.equal(together.last, torch.cat([out.last for out in alone]))
    assert torch.equal(together.pooled, torch.cat([out.pooled for out in alone]))


@torch.no_grad()
def test_has_no_buffers(tower: CLIPText) -> None:
    """Position numbers are made when they are needed: a tower built on the meta device lacks nothing."""
    assert dict(tower.named_buffers()) == {}
    with torch.device("meta"):
        empty = CLIPText(SMALL)
    empty.load_state_dict(tower.state_dict(), assign=True)
    assert torch.equal(empty(IDS).pooled, tower(IDS).pooled)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="quick_gelu"):
        CLIPTextConfig(activation="relu")
