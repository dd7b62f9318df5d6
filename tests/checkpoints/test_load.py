"""Loading, saving and converting whole small checkpoints of every family."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small import random_model, read_all, same, small_family, states

from danqing.checkpoints import checkpoint, layouts
from danqing.checkpoints.checkpoint import networks, open_checkpoint
from danqing.checkpoints.load import assign, load, load_autoencoder
from danqing.checkpoints.recognise import (
    DOUBTFUL_TENSOR,
    Configs,
    Evidence,
    family_from_json,
    family_json,
    family_rows,
    kind_of,
    process_of,
)
from danqing.checkpoints.save import convert, save
from danqing.errors import DanqingError
from danqing.families import FAMILIES, Process
from danqing.runtime.conversion import to_dtype

FAMILY_NAMES = list(FAMILIES)


def original(name: str, folder: Path, *, ema: bool = False) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as latent diffusion's own are: no Danqing metadata, buffers, OpenCLIP's unused layer, EMA weights."""
    family = small_family(name)
    save(random_model(family), folder / "plain.safetensors")
    state = read_all(folder / "plain.safetensors")
    state |= {
        "alphas_cumprod": torch.rand(1000),
        "betas": torch.rand(1000, dtype=torch.float64),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    }
    if name.startswith("sd2"):
        last = "cond_stage_model.model.transformer.resblocks.2."
        state |= {
            key.replace("blocks.2.", "blocks.3."): value + 1 for key, value in state.items() if key.startswith(last)
        }
        state["cond_stage_model.model.text_projection"] = torch.randn(16, 16)
        state["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    if name.startswith("sd1"):
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if ema:
        unet = [key for key in state if key.startswith("model.diffusion_model.")]
        state |= {layouts.ema_name(key.removeprefix("model.diffusion_model.")): state[key] * 2 for key in unet}
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, folder / "original.safetensors")
    return folder / "original.safetensors", state


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_saved_and_loaded_in_each_layout(name: str, tmp_path: Path) -> None:
    family = small_family(name)
    model = random_model(family)
    for target, layout in (("a.safetensors", "ldm"), ("a.ckpt", "ldm"), ("folder", "diffusers")):
        save(model, tmp_path / target, layout=layout)
        loaded = load(tmp_path / target, family=family if target == "a.ckpt" else None)
        assert same(states(model), states(loaded)), target
        assert loaded.family == family
        assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
        assert not loaded.denoiser.training


@pytest.mark.parametrize("name", ["sd1", "sd2", "sd2-v", "sdxl", "sdxl-refiner"])
def test_there_and_back_is_lossless(name: str, tmp_path: Path) -> None:
    source, state = original(name, tmp_path, ema=name == "sd1")
    convert(source, tmp_path / "folder", family=small_family(name))
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    convert(tmp_path / "folder", tmp_path / "back.ckpt")
    assert same(read_all(tmp_path / "back.safetensors"), state)
    assert same(read_all(tmp_path / "back.ckpt"), state)
    assert same(torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint", "sd2", "sdxl"])
def test_a_foreign_file_of_unusual_size_is_recognised(name: str, tmp_path: Path) -> None:
    """Nothing but names and shapes: heads and groups then are what the family has everywhere."""
    source, _ = original(name, tmp_path)
    found = open_checkpoint(source).family
    family = small_family(name)
    rule = {"sd1": (8,) * 4, "sd1-inpaint": (8,) * 4, "sd2": (1, 1, 1, 1), "sdxl": (1, 1, 1)}[name]
    expected = replace(family.denoiser, heads=rule, groups=32)
    if name == "sdxl":  # 16 + 6 * 8 numbers, which nobody can tell apart without the configuration
        expected = replace(expected, pooled_width=64, size_ids=0, size_id_width=256)
    assert found.denoiser == expected
    assert found.name == name
    assert [(e.name, e.config.layers) for e in found.text_encoders] == [(e.name, 3) for e in family.text_encoders]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_full_size_rows_are_recognised_by_shapes(name: str) -> None:
    row = FAMILIES[name]
    shapes = {n: {k: tuple(t.shape) for k, t in net.state_dict().items()} for n, net in networks(row).items()}
    entries = {
        part: {key: checkpoint.Entry(shape, torch.float16, torch.empty(0).clone) for key, shape in table.items()}
        for part, table in shapes.items()
    }
    found = checkpoint._configs(entries, {e.name: e.config.activation for e in row.text_encoders})
    rows = family_rows(found)
    assert row in rows
    assert rows[0].denoiser == row.denoiser
    assert {r.text_encoders for r in rows} == {row.text_encoders}


def test_unprefixed_old_and_turbo_text_encoders(tmp_path: Path) -> None:
    _, state = original("sd1", tmp_path)
    old = {
        key.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): v
        for key, v in state.items()
    }
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    family = small_family("sd1")
    assert same(states(load(tmp_path / "old.safetensors", family=family)), states(random_model(family)))
    convert(tmp_path / "old.safetensors", tmp_path / "folder", family=family)
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(read_all(tmp_path / "back.safetensors"), old)

    _, state = original("sd2", tmp_path)
    turbo = {key.replace("cond_stage_model.", "conditioner.embedders.0."): value for key, value in state.items()}
    safetensors.torch.save_file(turbo, tmp_path / "turbo.safetensors")
    family = small_family("sd2")
    assert same(states(load(tmp_path / "turbo.safetensors", family=family)), states(random_model(family)))
    convert(tmp_path / "turbo.safetensors", tmp_path / "folder2", family=family)
    convert(tmp_path / "folder2", tmp_path / "back2.safetensors")
    assert same(read_all(tmp_path / "back2.safetensors"), turbo)


def test_ema_half_and_types(tmp_path: Path) -> None:
    source, state = original("sd1", tmp_path, ema=True)
    family = small_family("sd1")
    plain, averaged = load(source, family=family), load(source, family=family, ema=True)
    key = "conv_in.weight"
    assert torch.equal(averaged.denoiser.state_dict()[key], 2 * plain.denoiser.state_dict()[key])
    with pytest.raises(DanqingError, match="has EMA weights for 0 of"):
        load(tmp_path / "plain.safetensors", ema=True)
    convert(source, tmp_path / "half.safetensors", dtype=torch.float16, family=family)
    half = read_all(tmp_path / "half.safetensors")
    assert all(torch.equal(half[k], state[k].half()) for k in state if k.startswith(("model.", "model_ema.diff", "cond_stage")) and state[k].is_floating_point())  # fmt: skip
    assert torch.equal(half["betas"], state["betas"])
    assert load(tmp_path / "half.safetensors").dtype == torch.float16
    convert(tmp_path / "half.safetensors", tmp_path / "cpu.safetensors", dtype=torch.bfloat16, family=family)
    assert load(tmp_path / "cpu.safetensors").dtype == torch.bfloat16
    assert load(tmp_path / "half.safetensors", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_float8_with_and_without_scales(tmp_path: Path) -> None:
    _, state = original("sd1", tmp_path)
    key = "model.diffusion_model.time_embed.0.weight"
    small = {k: v.to(torch.float8_e4m3fn) if k.startswith("model.") and v.ndim > 1 else v for k, v in state.items()}
    scaled = small | {key: (state[key] / 0.5).to(torch.float8_e4m3fn), f"{key[:-6]}scale_weight": torch.tensor(0.5)}
    scaled["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    safetensors.torch.save_file(scaled, tmp_path / "f8.safetensors")
    model = load(tmp_path / "f8.safetensors", family=small_family("sd1"))
    assert model.dtype == torch.bfloat16
    weight = model.denoiser.state_dict()["time_embedding.linear_1.weight"]
    assert torch.equal(weight, ((state[key] / 0.5).to(torch.float8_e4m3fn).float() * 0.5).bfloat16())


def test_casts_are_torchs_own_bit_for_bit() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    for a, b in ((torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16), (torch.float16, torch.float32)):
        numbers = every.view(a)
        numbers = numbers[~numbers.isnan()]
        assert torch.equal(to_dtype(numbers, b), numbers.to(b))


def test_weights_are_not_copied(tmp_path: Path) -> None:
    save(random_model(small_family("sd1")), tmp_path / "a.safetensors")
    one = open_checkpoint(tmp_path / "a.safetensors")
    entry = one.components["unet"]["conv_in.weight"]
    assert entry.load().data_ptr() == entry.load().data_ptr()
    net = networks(one.family)["unet"]
    assign(net, one.components["unet"], "cpu", torch.float32)
    assert net.conv_in.weight.data_ptr() == entry.load().data_ptr()


def test_missing_surplus_and_misshaped_keys_are_one_line(tmp_path: Path) -> None:
    source, state = original("sd1", tmp_path)
    family = small_family("sd1")
    prefix = "model.diffusion_model."
    del state[f"{prefix}time_embed.2.bias"]
    state[f"{prefix}extra.weight"] = torch.zeros(1)
    state[f"{prefix}out.0.bias"] = torch.zeros(7)
    safetensors.torch.save_file(state, source)
    with pytest.raises(DanqingError) as caught:
        load(source, family=family)
    line = str(caught.value)
    assert "1 missing: unet.time_embedding.linear_2.bias" in line
    assert "1 surplus: model.diffusion_model.extra.weight" in line
    assert "1 mis-shaped: unet.conv_norm_out.bias [7] instead of [32]" in line
    assert "\n" not in line
    with pytest.raises(DanqingError, match="missing"):
        convert(source, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is a LoRA, not a checkpoint"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
        (["lora_te1_x.hada_w1_a"], "is a LoRA"),
        (["string_to_param.*"], "is a textual inversion"),
        (["768.0.linear.0.weight", "768.1.linear.0.weight"], "is a hypernetwork"),
        (["control_model.zero_convs.0.0.weight"], "is a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight"], "is a ControlNet"),
        (["body.0.in_conv.weight"], "is a T2I-Adapter"),
        (["ip_adapter.1.to_k_ip.weight", "ip_adapter.0.to_q_lora.down.weight"], "is an IP-Adapter"),
        (["first_stage_model.decoder.conv_in.weight"], "is a VAE alone"),
        (["decoder.conv_in.weight"], "is a VAE alone"),
        (["taesd_decoder.1.weight"], "is a TAESD"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "is a text encoder alone"),
        (["conv_first.weight"], "is an upscaler"),
        (["input_blocks.0.0.weight"], "is a U-Net alone"),
        (
            ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
            "Stable Diffusion 3 model, which this version does not support yet",
        ),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "is a Flux model"),
        (["t_block.1.weight"], "is a PixArt model"),
        (["model.diffusion_model.new.weight"], "of an architecture that Danqing does not know"),
        (["fc.weight"], "of a kind that Danqing does not know"),
    ],
)
def test_other_kinds_are_named(keys: list[str], word: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({key: torch.zeros(4, 4) for key in keys}, path)
    with pytest.raises(DanqingError, match=word) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_families_that_do_not_fit_and_names_that_do_not_exist(tmp_path: Path) -> None:
    save(random_model(small_family("sd1")), tmp_path / "a.safetensors")
    with pytest.raises(DanqingError, match="is not of family 'sdxl'"):
        load(tmp_path / "a.safetensors", family="sdxl")
    with pytest.raises(DanqingError, match="family 'sd9' is unknown; did you mean sd"):
        load(tmp_path / "a.safetensors", family="sd9")
    with pytest.raises(DanqingError, match="prediction type 'x' is unknown"):
        load(tmp_path / "a.safetensors", prediction="x")
    with pytest.raises(DanqingError, match="no such file"):
        load(tmp_path / "none")


# --- prediction type --------------------------------------------------------------------------------------------------


def evidence(path: Path, **given) -> Evidence:
    return Evidence(path, **given)


def test_prediction_type_in_order_of_trust(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.touch()
    base = Process()
    spread = torch.linspace(-1, 1, 320)

    def found(**given) -> tuple[str, bool, str]:
        process, how = process_of(Evidence(path, **given), base)
        return process.prediction, process.zero_terminal_snr, how

    assert found() == ("epsilon", False, "the family's usual")
    assert found(read=lambda: spread)[:2] == ("v", False)
    assert found(read=lambda: spread * 0.1)[0] == "epsilon"
    (tmp_path / "m.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert found() == ("v", False, "m.yaml")
    (tmp_path / "m.yaml").write_text("model:\n  params:\n    linear_start: 0.00085\n")
    assert found(read=lambda: spread)[0] == "epsilon"  # the configuration wins over the guess
    assert found(metadata={"modelspec.prediction_type": "v"})[0] == "v"
    assert found(metadata={"modelspec.predict_key": "v"})[0] == "v"
    assert found(metadata={"modelspec.architecture": "stable-diffusion-v2-768-v"})[0] == "v"
    assert found(marks=frozenset({"v_pred"}))[:2] == ("v", False)
    assert found(marks=frozenset({"v_pred", "ztsnr"}))[:2] == ("v", True)
    assert found(marks=frozenset({"edm_mean", "edm_std"}))[0] == "edm"
    assert found(scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})[:2] == ("v", True)
    assert found(scheduler={"prediction_type": "epsilon"}, marks=frozenset({"v_pred"}))[0] == "epsilon"
    assert found(scheduler={"prediction_type": "sample"})[0] == "sample"
    for scheduler, word in (
        ({"prediction_type": "sampling"}, "prediction type 'sampling' is unknown"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear' is not supported"),
        ({"beta_start": "x"}, "beta_start should be a number"),
    ):
        with pytest.raises(DanqingError, match=word):
            found(scheduler=scheduler)


def test_the_doubtful_tensor_is_output_block_11() -> None:
    unet = FAMILIES["sd2"].denoiser
    table = layouts.unet_table(layouts.Depths(unet.down_depth, unet.mid_depth, unet.up_depth))
    entry = checkpoint.Entry((320,), torch.float16, torch.empty(0).clone)
    assert list(table.to_foreign({DOUBTFUL_TENSOR: entry})[0]) == ["output_blocks.11.1.transformer_blocks.0.norm1.bias"]


def test_prediction_is_overridden_and_carried(tmp_path: Path) -> None:
    for name in ("sd2", "sdxl"):
        source = tmp_path / f"{name}.safetensors"
        save(random_model(small_family(name)), source)
        assert load(source, prediction="v").process.prediction == "v"
        convert(source, tmp_path / f"{name}-v", prediction_type="v")
        assert json.loads((tmp_path / f"{name}-v" / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"  # fmt: skip
        assert load(tmp_path / f"{name}-v").process.prediction == "v"
        convert(tmp_path / f"{name}-v", tmp_path / f"{name}-v.safetensors")
        found = open_checkpoint(tmp_path / f"{name}-v.safetensors")
        assert found.family.process.prediction == "v"
        assert ("v_pred" in found.leftover) == (name == "sdxl")
        assert found.metadata["modelspec.prediction_type"] == "v"
        convert(tmp_path / f"{name}-v.safetensors", tmp_path / f"{name}-e.safetensors", prediction_type="epsilon")
        assert "v_pred" not in open_checkpoint(tmp_path / f"{name}-e.safetensors").leftover


# --- autoencoders -----------------------------------------------------------------------------------------------------


def vae_files(folder: Path, name: str) -> dict[str, Path]:
    """The same autoencoder in every form in which people have it."""
    family = small_family(name)
    save(random_model(family, seed=5), folder / f"{name}.safetensors")
    save(random_model(family, seed=5), folder / f"{name}-folder", layout="diffusers")
    state = {k: v for k, v in read_all(folder / f"{name}.safetensors").items() if k.startswith("first_stage_model.")}
    bare = {key.removeprefix("first_stage_model."): value for key, value in state.items()}
    safetensors.torch.save_file(bare, folder / f"{name}-bare.safetensors")
    safetensors.torch.save_file(state, folder / f"{name}-prefixed.safetensors")
    torch.save({"state_dict": bare | {"loss.logvar": torch.zeros(1)}}, folder / f"{name}-vae.pt")
    alone = shutil.copy(
        folder / f"{name}-folder" / "vae" / "diffusion_pytorch_model.safetensors", folder / f"{name}-alone.safetensors"
    )
    return {
        "checkpoint": folder / f"{name}.safetensors",
        "pipeline": folder / f"{name}-folder",
        "folder": folder / f"{name}-folder" / "vae",
        "inside": folder / f"{name}-folder" / "vae" / "diffusion_pytorch_model.safetensors",
        "bare": folder / f"{name}-bare.safetensors",
        "prefixed": folder / f"{name}-prefixed.safetensors",
        "pt": folder / f"{name}-vae.pt",
        "diffusers names": Path(alone),
    }


def test_a_separate_vae_in_every_form(tmp_path: Path) -> None:
    family = small_family("sd1")
    wanted = random_model(family, seed=5).autoencoder.state_dict()
    source, _ = original("sd1", tmp_path)
    for form, path in vae_files(tmp_path, "sd1").items():
        assert same(dict(load_autoencoder(path, family).state_dict()), dict(wanted)), form
        assert same(dict(load(source, vae=path, family=family).autoencoder.state_dict()), dict(wanted)), form
    convert(source, tmp_path / "out", vae=tmp_path / "sd1-bare.safetensors", family=family)
    assert same(dict(load(tmp_path / "out").autoencoder.state_dict()), dict(wanted))


def test_another_familys_vae_is_refused(tmp_path: Path) -> None:
    forms = vae_files(tmp_path, "sdxl")
    family = small_family("sd1")
    for form in ("checkpoint", "pipeline", "folder", "inside"):
        with pytest.raises(DanqingError, match=r"is a VAE for latents of scale 0\.13025 \(Stable Diffusion XL\)"):
            load_autoencoder(forms[form], family)
    state = safetensors.torch.load_file(forms["bare"])
    safetensors.torch.save_file(state, forms["bare"], {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    with pytest.raises(DanqingError, match=r"metadata modelspec\.architecture"):
        load_autoencoder(forms["bare"], family)
    load_autoencoder(forms["bare"], small_family("sdxl"))


def test_what_is_no_vae(tmp_path: Path) -> None:
    family = small_family("sd1")
    safetensors.torch.save_file({"x.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(DanqingError, match="is a LoRA, not a VAE"):
        load_autoencoder(tmp_path / "lora.safetensors", family)
    wide = replace(family, autoencoder=replace(family.autoencoder, latent_channels=16))
    save(random_model(wide), tmp_path / "wide.safetensors")
    with pytest.raises(DanqingError, match=r"is not an autoencoder for .* mis-shaped"):
        load_autoencoder(tmp_path / "wide.safetensors", family)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DanqingError, match="without an autoencoder"):
        load_autoencoder(tmp_path / "empty", family)


def test_a_checkpoint_without_vae_asks_for_one(tmp_path: Path) -> None:
    source, state = original("sd1", tmp_path)
    pruned = {key: value for key, value in state.items() if not key.startswith("first_stage_model.")}
    safetensors.torch.save_file(pruned, source)
    family = small_family("sd1")
    with pytest.raises(DanqingError, match="the whole vae; give the autoencoder by --vae"):
        load(source, family=family)
    vae = vae_files(tmp_path, "sd1")["bare"]
    assert load(source, family=family, vae=vae).autoencoder is not None


def test_folder_options_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    save(random_model(small_family("sd1")), tmp_path / "f", layout="diffusers")
    config = tmp_path / "f" / "unet" / "config.json"
    original_config = json.loads(config.read_text())
    for change, word in (
        ({"class_embed_type": "projection"}, "class_embed_type = projection is not supported"),
        ({"attention_head_dim": 7}, "heads do not suit"),
        ({"norm_num_groups": 0}, "norm_num_groups should be a whole number"),
    ):
        config.write_text(json.dumps(original_config | change))
        with pytest.raises(DanqingError, match=word):
            load(tmp_path / "f")
    config.write_text("{")
    with pytest.raises(DanqingError, match="damaged JSON"):
        load(tmp_path / "f")


def test_a_vocabulary_of_its_own_travels_in_a_single_file(tmp_path: Path) -> None:
    small = small_family("sd1")
    (encoder,) = small.text_encoders
    own = replace(encoder, config=replace(encoder.config, vocabulary=8, end_token=7), pad_token=7)
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "vocab.json").write_text('{"丹": 0}', "utf-8")
    (vocabulary / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    model = random_model(replace(small, name="own", text_encoders=(own,)))
    model = replace(model, tokenizers={"text_encoder": vocabulary})
    save(model, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    texts = {path.name: path.read_text("utf-8") for path in vocabulary.iterdir()}
    assert load(tmp_path / "two.safetensors").tokenizers == {"text_encoder": texts}
    convert(tmp_path / "two.safetensors", tmp_path / "folder")
    assert {path.name: path.read_text("utf-8") for path in (tmp_path / "folder" / "tokenizer").iterdir()} == texts
    assert not [key for key in open_checkpoint(tmp_path / "folder").metadata if key.startswith("danqing.tokenizer")]
    with pytest.raises(DanqingError, match="no place for the model's own vocabulary"):
        save(model, tmp_path / "one.ckpt")
    assert not (tmp_path / "one.ckpt").exists()
    tensors = safetensors.torch.load_file(tmp_path / "one.safetensors")
    for broken in ("{", "[]", '{"vocab.json": 3}'):
        metadata = {"danqing.tokenizer.text_encoder": broken}
        safetensors.torch.save_file(tensors, tmp_path / "broken.safetensors", metadata)
        with pytest.raises(DanqingError, match=r"broken.safetensors: its danqing.tokenizer.text_encoder is damaged"):
            open_checkpoint(tmp_path / "broken.safetensors", family=model.family)


def test_family_rows_survive_json() -> None:
    for row in FAMILIES.values():
        assert family_from_json(family_json(row), "x") == row
    with pytest.raises(DanqingError, match=r"x: its metadata 'danqing\.family' is damaged"):
        family_from_json('{"name": 3}', "x")


def test_small_things() -> None:
    assert kind_of({"emb_params": (4, 768)}).name == "embedding"
    assert kind_of({"<cat>": (1, 768)}).name == "embedding"
    unet = FAMILIES["sd1"].denoiser
    assert family_rows(Configs(unet, None, {}))[0] is FAMILIES["sd1"]
