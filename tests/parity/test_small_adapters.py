"""Hypernetworks and aesthetic gradients against their definitions, computed with torch's modules, diffusers' U-Net and
transformers' CLIP: no library has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import UNet2DConditionModel
from test_networks import SMALL, error, reference_unet, share_weights
from torch import Tensor, nn
from transformers import CLIPTextConfig as ReferenceConfig
from transformers import CLIPTextModelWithProjection

from danqing.adapters.aesthetic import read, read_projection, with_aesthetic
from danqing.adapters.hypernetwork import read as read_hypernetwork
from danqing.adapters.hypernetwork import with_hypernetworks
from danqing.families import SD1, Model
from danqing.models.clip import CLIPText
from danqing.models.unet import UNet
from danqing.prompts.chunks import chunks
from danqing.prompts.encode import conditionings
from danqing.prompts.grammar import understand
from danqing.prompts.tokenizer import clip
from danqing.request_parts import AestheticEmbedding

Parity = Callable[[str, str, float, float], None]


pytestmark = pytest.mark.usefixtures("one_thread")


def hypernet(width: int, structure: tuple[float, ...], seed: int) -> nn.Sequential:
    """AUTOMATIC1111's order: linear, activation, layer norm, dropout; no activation behind the last."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    sizes = [int(width * ratio) for ratio in structure]
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        layers += [nn.Mish()] if i < len(sizes) - 2 else []
        layers.append(nn.LayerNorm(sizes[i + 1]))
        layers += [nn.Dropout(0.3)] if 0 < i < len(sizes) - 2 else []
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def test_hypernetworks(tmp_path: Path, parity: Parity) -> None:
    ours, reference = UNet(SMALL), UNet2DConditionModel(**reference_unet(SMALL)).eval()
    share_weights(ours, reference)
    nets = {width: tuple(hypernet(width, (1, 2, 1.5, 1), width + k) for k in range(2)) for width in (32, 48, 64)}
    state = {
        width: tuple({f"linear.{key}": value for key, value in half.state_dict().items()} for half in pair)
        for width, pair in nets.items()
    }
    table = {"layer_structure": [1, 2, 1.5, 1], "activation_func": "mish", "is_layer_norm": True}
    table |= {"use_dropout": True, "activate_output": False, "last_layer_dropout": False, "name": "x", "step": 3}
    torch.save({**state, **table}, tmp_path / "x.pt")
    model = Model(replace(SD1, denoiser=SMALL), ours, nn.Identity(), {})
    model = with_hypernetworks(model, [(read_hypernetwork(tmp_path / "x.pt"), 0.6)])

    def hook(half: int, module: nn.Linear, given: tuple[Tensor]) -> tuple[Tensor]:
        return (given[0] + 0.6 * nets[module.in_features][half](given[0]),)

    for name, layer in reference.named_modules():
        if name.endswith(("to_k", "to_v")):
            layer.register_forward_pre_hook(partial(hook, int(name.endswith("to_v"))))
    latents, step, context = torch.randn(2, 4, 16, 8), torch.tensor([500.0, 500.0]), torch.randn(2, 9, 48)
    found = ours(latents, step, context, patches=model.patches)
    wanted = reference(latents, step, context).sample
    plain = ours(latents, step, context)
    assert error(plain, wanted) > 0.01
    subject = "hypernetwork in every attention, layer norms and dropout in the file"
    parity(subject, f"x + s net(x) about diffusers {diffusers.__version__} to_k and to_v", error(found, wanted), 1e-5)


def slerp(low: Tensor, high: Tensor, part: float) -> Tensor:
    """The extension's: angles along dimension 1."""
    unit = [x / torch.norm(x, dim=1, keepdim=True) for x in (low, high)]
    omega = torch.acos((unit[0] * unit[1]).sum(1))
    first, second = torch.sin((1 - part) * omega), torch.sin(part * omega)
    return (first / torch.sin(omega)).unsqueeze(1) * low + (second / torch.sin(omega)).unsqueeze(1) * high


CASES: dict[str, dict[str, Any]] = {
    "a line": {},
    "an arc": {"slerp": True},
    "towards a text": {"text": "a garden", "slerp_angle": 0.3},
    "away from a text": {"text": "a garden", "slerp_angle": 0.3, "text_negative": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skip", [1, 2])
def test_aesthetic_gradients(case: str, skip: int, tmp_path: Path, parity: Parity) -> None:
    options = CASES[case]
    config = replace(SD1.text_encoders[0].config, width=16, intermediate=32, layers=3, heads=2)
    kind = ReferenceConfig(vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
                           num_attention_heads=2, hidden_act="quick_gelu", projection_dim=12, bos_token_id=49406,
                           eos_token_id=49407, pad_token_id=1)  # fmt: skip
    torch.manual_seed(5)
    reference = CLIPTextModelWithProjection(kind).eval()
    for parameter in reference.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    state = reference.state_dict()
    ours = CLIPText(config).requires_grad_(False)
    ours.load_state_dict({key: value for key, value in state.items() if key != "text_projection.weight"})
    torch.save({"text_projection.weight": state["text_projection.weight"]}, tmp_path / "clip.pt")
    torch.save(torch.randn(1, 12) * 3, tmp_path / "flowers.pt")
    encoder = replace(SD1.text_encoders[0], config=config)
    model = Model(replace(SD1, text_encoders=(encoder,)), nn.Linear(1, 1), nn.Identity(), {"text_encoder": ours})
    vectors, projection = read(tmp_path / "flowers.pt"), read_projection(tmp_path / "clip.pt")
    settings = AestheticEmbedding(embedding="flowers", steps=4, learning_rate=1e-3, weight=0.7, **options)
    changed = with_aesthetic(model, settings, vectors, projection)
    text = "a cat on a mat"
    (found,) = conditionings(changed, understand(text, 10), clip_skip=skip)
    assert torch.equal(
        conditionings(changed, understand(text, 10), clip_skip=skip, negative=True)[0].context,
        conditionings(model, understand(text, 10), clip_skip=skip)[0].context,
    )

    def hidden(network: nn.Module, ids: Tensor) -> Tensor:
        out = network(ids, output_hidden_states=True)
        if skip == 1:
            return out.last_hidden_state
        tower = getattr(network, "text_model", network)
        return tower.final_layer_norm(out.hidden_states[-skip])

    def ids_of(words: str) -> Tensor:
        return torch.tensor([chunks(words, clip(), 49407)[0][0].ids])

    ids, target = ids_of(text), torch.load(tmp_path / "flowers.pt")
    target = target / target.norm(dim=-1, keepdim=True)
    pupil = copy.deepcopy(reference)
    if "text" in options:
        told = reference(ids_of(options["text"])).text_embeds.detach()
        if options.get("text_negative"):
            told = target - told
            told = told / told.norm(dim=-1, keepdim=True)
        target = slerp(target, told, options["slerp_angle"])
    learning = [p for name, p in pupil.named_parameters() if not name.startswith("text_projection")]
    optimizer = torch.optim.Adam(learning, lr=1e-3)
    for _ in range(4):
        vector = pupil(ids).text_embeds
        loss = -(vector / vector.norm(dim=-1, keepdim=True)) @ target.T
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        before, after = hidden(reference, ids), hidden(pupil, ids)
        wanted = slerp(before, after, 0.7) if options.get("slerp") else before * 0.3 + after * 0.7
    assert error(before, wanted) > 1e-3
    subject = f"aesthetic gradients of a prompt, {case}"
    parity(
        subject,
        f"the extension's formula on transformers {transformers.__version__}",
        error(found.context, wanted),
        1e-5,
    )
