import pytest

from danqing.errors import DanqingError
from danqing.library.folders import OWN_FOLDER, Kind, entry_at, extra_paths, hub_snapshot, scan


def plant(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def seen(root):
    return {(entry.kind, entry.name, entry.source) for entry in scan([root])}


A1111 = (
    "models/Stable-diffusion/v1-5.safetensors",
    "models/Stable-diffusion/anime/pony.ckpt",
    "models/Stable-diffusion/v1-5.vae.pt",
    "models/Stable-diffusion/v1-5.yaml",
    "models/Stable-diffusion/v1-5.preview.png",
    "models/Stable-diffusion/Put Stable Diffusion checkpoints here.txt",
    "models/VAE/mse.safetensors",
    "models/Lora/style/ink.safetensors",
    "models/LyCORIS/old.pt",
    "models/hypernetworks/h.pt",
    "models/ESRGAN/4x.pth",
    "models/ControlNet/canny.pth",
    "models/VAE-approx/model.pt",
    "embeddings/bad.pt",
    "embeddings/bad.pt.optim",
    "extensions/sd-webui-controlnet/models/depth.safetensors",
    "extensions/sd-webui-controlnet/annotator/downloads/lineart/sk_model.pth",
    "extensions/sd-webui-controlnet/annotator/downloads/openpose/yolox_l.onnx",
    "venv/lib/site-packages/torch/test.pt",
    "repositories/x/y.ckpt",
)


def test_automatic1111(tmp_path):
    assert seen(plant(tmp_path, *A1111)) == {
        (kind, name, "AUTOMATIC1111")
        for kind, name in [
            ("checkpoint", "v1-5.safetensors"),
            ("checkpoint", "anime/pony.ckpt"),
            ("vae", "v1-5.vae.pt"),
            ("vae", "mse.safetensors"),
            ("lora", "style/ink.safetensors"),
            ("lora", "old.pt"),
            ("hypernetwork", "h.pt"),
            ("upscaler", "4x.pth"),
            ("controlnet", "canny.pth"),
            ("other", "model.pt"),
            ("embedding", "bad.pt"),
            ("controlnet", "depth.safetensors"),
            ("preprocessor", "lineart/sk_model.pth"),
            ("preprocessor", "openpose/yolox_l.onnx"),
        ]
    }


def test_forge(tmp_path):
    plant(
        tmp_path,
        "modules_forge/init.py",
        "models/Stable-diffusion/a.safetensors",
        "models/text_encoder/clip_l.safetensors",
        "models/ControlNetPreprocessor/x/y.pth",
    )
    assert seen(tmp_path) == {
        ("checkpoint", "a.safetensors", "Forge"),
        ("text_encoder", "clip_l.safetensors", "Forge"),
        ("preprocessor", "x/y.pth", "Forge"),
    }


def test_comfyui(tmp_path):
    comfy = plant(
        tmp_path / "ComfyUI",
        "folder_paths.py",
        "models/checkpoints/xl/base.safetensors",
        "models/loras/l.safetensors",
        "models/vae/v.safetensors",
        "models/embeddings/e.pt",
        "models/controlnet/c.safetensors",
        "models/upscale_models/u.pth",
        "models/unet/flux.gguf",
        "models/clip_vision/cv.safetensors",
        "models/configs/v1.yaml",
        "models/custom_thing/z.safetensors",
        "custom_nodes/comfyui_controlnet_aux/ckpts/lllyasviel/Annotators/netG.pth",
    )
    plant(tmp_path / "shared", "sd/s.ckpt", "Lora/one.safetensors", "LyCORIS/two.safetensors", "hn/three.pt")
    (comfy / "extra_model_paths.yaml").write_text(
        "# a comment\n\na111:\n    base_path: ../shared # relative\n    checkpoints: sd\n"
        "    loras: |\n         Lora\n         LyCORIS\n    hypernetworks: 'hn'\n    custom_nodes: nowhere\n\n"
        'other:\n  vae: "/does/not/exist"\n'
    )
    entries = {(kind, name) for kind, name, source in seen(comfy) if source == "ComfyUI"}
    assert entries == {
        ("checkpoint", "xl/base.safetensors"),
        ("lora", "l.safetensors"),
        ("vae", "v.safetensors"),
        ("embedding", "e.pt"),
        ("controlnet", "c.safetensors"),
        ("upscaler", "u.pth"),
        ("denoiser", "flux.gguf"),
        ("clip_vision", "cv.safetensors"),
        ("unknown", "custom_thing/z.safetensors"),
        ("preprocessor", "lllyasviel/Annotators/netG.pth"),
        ("checkpoint", "s.ckpt"),
        ("lora", "one.safetensors"),
        ("lora", "two.safetensors"),
        ("hypernetwork", "three.pt"),
    }
    assert len(scan([comfy])) == len(entries)
    assert {entry.name for entry in scan([comfy / "extra_model_paths.yaml"])} == {
        "s.ckpt",
        "one.safetensors",
        "two.safetensors",
        "three.pt",
    }


def test_extra_paths_expand_home_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MODELS", "/big")
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text("a:\n  base_path: ~/x\n  loras: y\nb:\n  base_path: $MODELS\n  vae:\n    v1\n    v2\n")
    assert [(kind, str(path)) for kind, path in extra_paths(file)] == [
        ("lora", "/home/me/x/y"),
        ("vae", "/big/v1"),
        ("vae", "/big/v2"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a:\n  - x\n", 2),
        ("a: b\n", 1),
        ("a:\n  loras: x\n  {b: c}\n", 3),
        ("a:\n\tloras: x\n", 2),
        ("just words\n", 1),
    ],
)
def test_extra_paths_that_are_anything_else(tmp_path, text, line):
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(text)
    with pytest.raises(DanqingError, match=f"line {line}: ") as error:
        scan([file])
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def hub(root, repository, files, commit="a" * 40, reference="main"):
    home = root / ("models--" + repository.replace("/", "--"))
    for index, file in enumerate(files):
        blob = home / "blobs" / f"{commit[:4]}{index}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(file)
        link = home / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if reference:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / reference).write_text(commit)
    return home / "snapshots" / commit


PIPELINE = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "whole.safetensors")


def test_hub_cache(tmp_path):
    hub(tmp_path, "runwayml/sd", PIPELINE)
    hub(tmp_path, "ip/adapter--x", ["sdxl/models/ip.bin", "README.md"])
    hub(
        tmp_path,
        "big/language",
        ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    )
    hub(tmp_path, "sai/vae", ["config.json", "diffusion_pytorch_model.safetensors"])
    plant(tmp_path, "datasets--a--b/snapshots/c/x.bin", "models--broken--one/refs/x", ".locks/x")
    expected = {
        ("checkpoint", "runwayml/sd", "Hub"),
        ("checkpoint", "runwayml/sd/whole.safetensors", "Hub"),
        ("unknown", "ip/adapter--x/sdxl/models/ip.bin", "Hub"),
        ("other", "big/language", "Hub"),
        ("unknown", "sai/vae", "Hub"),
    }
    assert seen(tmp_path) == expected
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").symlink_to(tmp_path)
    assert seen(tmp_path / "home") == expected


def test_hub_revisions(tmp_path):
    old = hub(tmp_path, "o/n", PIPELINE, "b" * 40, "v1")
    new = hub(tmp_path, "o/n", PIPELINE, "c" * 40, "main")
    assert hub_snapshot(tmp_path, "o/n") == new
    assert hub_snapshot(tmp_path, "o/n", "v1") == old
    assert hub_snapshot(tmp_path, "o/n", "bbbb") == old
    assert hub_snapshot(tmp_path, "o/n", "v2") is None
    assert hub_snapshot(tmp_path, "o/absent") is None


def test_plain_folders_and_folders_of_one_kind(tmp_path):
    plant(tmp_path / "heap", "a.safetensors", "sub/b.ckpt", "notes.txt", ".hidden/c.ckpt", ".d.ckpt")
    plant(tmp_path / "Lora", "x.safetensors", "vae/y.safetensors")
    plant(tmp_path / "sorted", "checkpoints/m.safetensors", "loras/vae/n.safetensors", "o.ckpt")
    assert seen(tmp_path / "heap") == {("unknown", "a.safetensors", "folder"), ("unknown", "sub/b.ckpt", "folder")}
    assert seen(tmp_path / "Lora") == {("lora", "x.safetensors", "folder"), ("lora", "vae/y.safetensors", "folder")}
    assert seen(tmp_path / "sorted") == {
        ("checkpoint", "m.safetensors", "folder"),
        ("lora", "vae/n.safetensors", "folder"),
        ("unknown", "o.ckpt", "folder"),
    }


def test_the_models_folder_of_an_installation(tmp_path):
    plant(tmp_path, *A1111)
    assert ("checkpoint", "anime/pony.ckpt", "AUTOMATIC1111") in seen(tmp_path / "models")
    assert ("checkpoint", "anime/pony.ckpt", "folder") in seen(tmp_path / "models" / "Stable-diffusion")


def test_folders_that_are_one_model(tmp_path):
    plant(tmp_path, *(f"pipes/sd/{file}" for file in PIPELINE))
    plant(tmp_path, "cn/config.json", "cn/diffusion_pytorch_model.safetensors")
    plant(tmp_path, "peft/adapter_config.json", "peft/adapter_model.safetensors")
    assert seen(tmp_path) == {
        ("checkpoint", "pipes/sd", "folder"),
        ("unknown", "pipes/sd/whole.safetensors", "folder"),
        ("unknown", "cn", "folder"),
        ("lora", "peft", "folder"),
    }
    assert entry_at(tmp_path / "pipes" / "sd").kind == "checkpoint"
    assert entry_at(tmp_path / "pipes") is None
    assert entry_at(tmp_path / "absent") is None


def test_roots_that_are_files_overlap_or_are_gone(tmp_path, caplog):
    plant(tmp_path, "loras/a.safetensors", "b.vae.pt")
    roots = [tmp_path, tmp_path / "loras", tmp_path / "loras" / "a.safetensors", tmp_path / "gone"]
    assert [entry.name for entry in scan(roots)] == ["a.safetensors", "b.vae.pt"]
    assert [(e.kind, e.name) for e in scan([tmp_path / "b.vae.pt"])] == [("vae", "b.vae.pt")]
    assert "gone is not there" in caplog.text


def test_links_in_a_circle_end(tmp_path):
    plant(tmp_path / "root", "checkpoints/a.ckpt")
    plant(tmp_path / "elsewhere", "b.ckpt")
    (tmp_path / "root" / "checkpoints" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "checkpoints" / "more").symlink_to(tmp_path / "elsewhere")
    assert {entry.name for entry in scan([tmp_path / "root"])} == {"a.ckpt", "more/b.ckpt"}


def test_nothing_is_opened(tmp_path, monkeypatch):
    plant(tmp_path, *A1111)
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr("pathlib.Path.read_text", None)
    monkeypatch.setattr("pathlib.Path.open", None)
    assert len(scan([tmp_path])) == 14


def test_every_kind_has_a_folder_that_scans_as_that_kind(tmp_path):
    for kind in Kind.__args__:
        plant(tmp_path, f"{OWN_FOLDER[kind]}/{kind}.safetensors")
    kinds = {entry.name: entry.kind for entry in scan([tmp_path])}
    assert kinds == {f"{kind}.safetensors": kind for kind in Kind.__args__ if kind not in ("other", "unknown")} | {
        "other/other.safetensors": "unknown",
        "other/unknown.safetensors": "unknown",
    }
