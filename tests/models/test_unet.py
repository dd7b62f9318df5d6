"""The U-Net's hooks, sizes, layouts and batches, without a reference."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from danqing.models.patches import Patches
from danqing.models.unet import UNet, UNetConfig, guidance_embedding, sinusoid

SMALL = UNetConfig(
    channels=(32, 64),
    down_depth=((1, 1), (1, 1)),
    up_depth=((1, 1, 1), (1, 1, 1)),
    heads=(2, 2),
    context_width=32,
    groups=8,
)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).eval().requires_grad_(False)


def inputs(batch: int = 2, size: tuple[int, int] = (16, 16), dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, 4, *size, generator=generator).to(dtype),
        "timestep": torch.rand(batch, generator=generator) * 999,
        "context": torch.randn(batch, 77, 32, generator=generator).to(dtype),
    }


def rows(given: dict[str, Any], index: slice) -> dict[str, Any]:
    return {name: tensor[index] for name, tensor in given.items()}


def test_sinusoid_is_the_formula() -> None:
    # t = 3, width 4: frequencies 1 and 10000^-1/2
    wanted = torch.tensor([3.0, 0.03])
    torch.testing.assert_close(sinusoid(torch.tensor([3.0]), 4), torch.cat([wanted.cos(), wanted.sin()])[None])


def test_guidance_of_one_embeds_zero() -> None:
    assert guidance_embedding(torch.tensor([1.0]), 5).tolist() == [[0, 0, 1, 1, 0]]


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="one entry per level"):
        replace(SMALL, heads=(2, 2, 2))


BATCHES = [
    (torch.float32, 32, (16, 16)),
    (torch.float32, 32, (40, 36)),  # 1024 pixels and more take another group norm
    (torch.bfloat16, 32, (40, 36)),
    (torch.bfloat16, 320, (8, 32)),  # the full width
    (torch.float32, 320, (8, 32)),
]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "width", "size"), BATCHES)
def test_a_picture_hardly_depends_on_its_batch(dtype: torch.dtype, width: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, channels=(width, width), pooled_width=16, size_ids=6, size_id_width=8, guidance_width=16)
    network = UNet(config).to(dtype).to(memory_format=torch.channels_last)
    batch = 8 if width == 32 else 3
    given = inputs(batch, size, dtype)
    given |= {
        "pooled": torch.randn(batch, 16).to(dtype),
        "time_ids": torch.rand(batch, 6),
        "guidance": torch.rand(batch),
    }
    alone = torch.cat([network(**rows(given, slice(i, i + 1))) for i in range(batch)])
    for count in (2, 3, batch):
        together = network(**rows(given, slice(count)))
        # oneDNN's kernels follow the batch: to the last bits, not bit for bit (`predict` calls one picture at a time)
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(together, alone[:count], rtol=bound, atol=bound)


@torch.no_grad()
def test_keeps_channels_last() -> None:
    network = UNet(SMALL).to(memory_format=torch.channels_last)
    given = inputs()
    given["latents"] = given["latents"].contiguous(memory_format=torch.channels_last)
    strides = []
    for module in network.modules():
        if module.__class__.__name__ in ("ResBlock", "Transformer", "Upsample", "Downsample"):
            module.register_forward_hook(
                lambda _m, _i, out: strides.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    assert network(**given).is_contiguous(memory_format=torch.channels_last)
    assert len(strides) > 15
    assert all(strides)


def test_trains() -> None:
    trained = UNet(SMALL)
    painted = trained(**inputs())
    found = trained.train()(**inputs())
    torch.testing.assert_close(found, painted)  # but for the last bits
    found.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.parameters())


def test_compiles_to_one_graph_without_patches(network: UNet) -> None:
    explained = torch._dynamo.explain(network)(**inputs())
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@torch.no_grad()
def test_meta_is_free_and_takes_weights_by_assignment(network: UNet) -> None:
    with torch.device("meta"):
        empty = UNet(SMALL)
    assert all(t.is_meta for t in empty.state_dict().values())
    assert dict(empty.named_buffers()) == {}
    empty.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(empty(**inputs()), network(**inputs()))


def changed(network: UNet, patches: Patches) -> Tensor:
    return network(**inputs(), patches=patches)


@pytest.fixture(scope="module")
def plain(network: UNet) -> Tensor:
    return network(**inputs())


def test_empty_patches_change_nothing(network: UNet, plain: Tensor) -> None:
    assert torch.equal(changed(network, Patches()), plain)


RESIDUALS = {
    "conv_in": (32, 16),
    "down_blocks.0.resnets.0": (32, 16),
    "down_blocks.0.resnets.1": (32, 16),
    "down_blocks.0.downsamplers.0": (32, 8),
    "down_blocks.1.resnets.1": (64, 8),
    "down_blocks.0": (32, 8),
    "down_blocks.1": (64, 8),
    "mid_block": (64, 8),
    "up_blocks.0.resnets.0": (64, 8),
    "up_blocks.0": (64, 16),
    "up_blocks.1.resnets.2": (32, 16),
    "up_blocks.1": (32, 16),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_residual_is_added_to_the_blocks_output(network: UNet, plain: Tensor, name: str) -> None:
    channels, size = RESIDUALS[name]
    residual = torch.randn(2, channels, size, size)
    assert not torch.equal(changed(network, Patches(residuals={name: residual})), plain)
    assert torch.equal(changed(network, Patches(residuals={name: torch.zeros_like(residual)})), plain)


def test_residual_on_the_last_block_is_the_same_as_adding_by_hand(network: UNet) -> None:
    residual = torch.randn(2, 32, 16, 16)
    handle = network.up_blocks[1].register_forward_hook(lambda _m, _i, out: out + residual)
    by_hand = network(**inputs())
    handle.remove()
    assert torch.equal(changed(network, Patches(residuals={"up_blocks.1": residual})), by_hand)


@pytest.mark.parametrize(
    "name", [n for n in RESIDUALS if n == "conv_in" or (n.startswith("down") and n.count(".") > 1)]
)
def test_skip_leaves_the_main_flow_alone(network: UNet, plain: Tensor, name: str) -> None:
    channels, size = RESIDUALS[name]
    middles: list[Tensor] = []
    handle = network.mid_block.register_forward_hook(lambda _m, _i, out: middles.append(out))
    network(**inputs())
    result = changed(network, Patches(skips={name: torch.randn(2, channels, size, size)}))
    handle.remove()
    assert torch.equal(*middles)
    assert not torch.equal(result, plain)


def test_skip_scale(network: UNet, plain: Tensor) -> None:
    seen: list[tuple[int, int]] = []

    def nothing(hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((hidden.shape[1], skip.shape[1]))
        return hidden, skip

    assert torch.equal(changed(network, Patches(skip_scale={"up_blocks.1": nothing})), plain)
    assert seen == [(64, 32), (32, 32), (32, 32)]
    halved = Patches(skip_scale={"up_blocks.1": lambda hidden, skip: (hidden, skip / 2)})
    assert not torch.equal(changed(network, halved), plain)


def attention_names(network: UNet) -> list[str]:
    return [name for name, module in network.named_modules() if module.__class__.__name__ == "Attention"]


def test_attention_layers_know_their_names(network: UNet) -> None:
    names = attention_names(network)
    assert len(names) == 2 * (2 + 2 + 1 + 3 + 3)
    assert all(network.get_submodule(name).name == name for name in names)
    seen: list[str] = []

    def spy(name: str) -> Any:
        def patch(attend: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
            seen.append(name)
            assert query.shape[:3] == (2, 2, hidden.shape[1])
            assert key.shape == value.shape == (2, 2, context.shape[1], query.shape[-1])
            assert context is hidden or name.endswith("attn2")
            return attend(query, key, value)

        return patch

    patches = Patches(attention={name: spy(name) for name in names})
    assert torch.equal(changed(network, patches), network(**inputs()))
    assert sorted(seen) == sorted(names)


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_attention_override(network: UNet, plain: Tensor, kind: str) -> None:
    name = f"mid_block.attentions.0.transformer_blocks.0.{kind}"

    def zero(attend: Any, query: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(query)

    assert not torch.equal(changed(network, Patches(attention={name: zero})), plain)


def test_attention_with_other_keys_is_not_masked(network: UNet) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    mask = torch.arange(77) < 40

    def images(attend: Any, query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
        return attend(query, key, value) + 0.5 * attend(query, key[:, :, :4], value[:, :, :4])

    given = inputs() | {"mask": mask.expand(2, -1)}
    patched = network(**given, patches=Patches(attention={name: images}))
    cut = given | {"context": given["context"][:, :40], "mask": None}
    torch.testing.assert_close(patched, network(**cut, patches=Patches(attention={name: images})))
    assert not torch.allclose(patched, network(**given))


BLOCKS = ["down_blocks.0", "mid_block", "up_blocks.1", "down_blocks.1.attentions.0.transformer_blocks.0"]


@pytest.mark.parametrize("name", BLOCKS)
def test_block_wrapper(network: UNet, plain: Tensor, name: str) -> None:
    calls: list[int] = []

    def wrap(run: Any, arguments: tuple[Any, ...]) -> Any:
        calls.append(len(arguments))
        return run(*arguments)

    assert torch.equal(changed(network, Patches(blocks={name: wrap})), plain)
    assert len(calls) == 1


def test_block_wrapper_may_leave_the_block_out(network: UNet, plain: Tensor) -> None:
    skipped = Patches(blocks={"mid_block": lambda run, arguments: arguments[0]})
    result = changed(network, skipped)
    handle = network.mid_block.register_forward_hook(lambda _m, arguments, _o: arguments[0])
    assert torch.equal(result, network(**inputs()))
    handle.remove()
    assert not torch.equal(result, plain)


def test_transformer_wrapper_may_shorten_the_tokens(network: UNet, plain: Tensor) -> None:
    def half(run: Any, arguments: tuple[Any, ...]) -> Tensor:
        tokens, *others = arguments
        return run(tokens[:, ::2], *others).repeat_interleave(2, 1)

    result = changed(network, Patches(blocks={BLOCKS[-1]: half}))
    assert result.shape == plain.shape
    assert not torch.equal(result, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_under_two_prompts_is_one_row_of_latents(network: UNet, dtype: torch.dtype) -> None:
    net = copy.deepcopy(network).to(dtype, memory_format=torch.channels_last)
    given = inputs(dtype=dtype)
    one = given | {"latents": given["latents"][:1], "timestep": given["timestep"][:1]}
    both = one | {"latents": one["latents"].repeat(2, 1, 1, 1)}
    with torch.no_grad():
        found, wanted = net(**one), net(**both)
    assert found.shape == wanted.shape == (2, 4, 16, 16)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert (found - wanted).norm() < bound * wanted.norm()
    assert (found[0] - found[1]).norm() > 100 * (found - wanted).norm()  # the prompts do differ
