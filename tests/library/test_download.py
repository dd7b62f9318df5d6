import hashlib
import io
import json
import os
import socket

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from danqing.errors import DanqingError
from danqing.library import transfer
from danqing.library.download import add, choose_files
from danqing.library.folders import BUNDLED
from danqing.library.hash_cache import HashCache
from danqing.library.names import find, known
from danqing.library.settings import load_settings

LORA = save({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)})
UNSURE = save({"something": torch.zeros(3, 4)})
BIG = save({"lora_unet_x.lora_down.weight": torch.arange(700_000, dtype=torch.float32)})


def digest(body):
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "CIVITAI_API_TOKEN", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'hub_cache = "{tmp_path}/hub"\n')
    return load_settings(data_dir=home)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- what is here already ---------------------------------------------------------------------------------------------


def test_a_folder_is_registered_in_place(settings, tmp_path):
    (tmp_path / "webui" / "models" / "Lora").mkdir(parents=True)
    (tmp_path / "webui" / "models" / "Lora" / "ink.safetensors").write_bytes(LORA)
    before = everything(tmp_path / "webui")
    entry = add(str(tmp_path / "webui"), settings=settings)
    assert entry.path == tmp_path / "webui"
    again = load_settings(data_dir=settings.data_dir)
    assert again.folders == (tmp_path / "webui",)
    assert again.hub_cache == settings.hub_cache
    assert find("ink", "lora", again).kind == "lora"
    assert everything(tmp_path / "webui") == before


def test_a_file_is_registered_in_place(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ink.safetensors").write_bytes(LORA)
    entry = add("ink.safetensors", settings=settings, sha256=digest(LORA).upper())
    assert (entry.kind, entry.path) == ("lora", tmp_path / "ink.safetensors")
    assert load_settings(data_dir=settings.data_dir).folders == (tmp_path / "ink.safetensors",)
    with pytest.raises(DanqingError, match=f"its SHA-256 is {digest(LORA)}, not 0000"):
        add("ink.safetensors", settings=settings, sha256="0" * 64)


def test_comfyuis_paths_file_is_registered(settings, tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "ink.safetensors").write_bytes(LORA)
    (tmp_path / "extra.yaml").write_text("mine:\n  loras: l\n")
    add(str(tmp_path / "extra.yaml"), settings=settings)
    assert find("ink", "lora", load_settings(data_dir=settings.data_dir)).path == tmp_path / "l" / "ink.safetensors"
    (tmp_path / "bad.yaml").write_text("- 1\n")
    with pytest.raises(DanqingError, match="line 1"):
        add(str(tmp_path / "bad.yaml"), settings=settings)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("absent", "absent: no such file or folder"),
        ("empty", "no model in this folder"),
        ("page.safetensors", "is not a model: a web page"),
        ("s3://bucket/x", "give a path, https"),
        ("hf:name", "write hf:OWNER/NAME"),
        ("hf:a/b/../c", "write hf:OWNER/NAME"),
        ("civitai:abc", "in digits"),
    ],
)
def test_what_cannot_be_added(settings, tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(DanqingError, match=words) as error:
        add(source, settings=settings)
    assert "\n" not in str(error.value)
    assert load_settings(data_dir=settings.data_dir).folders == ()


def test_a_hash_that_is_none(settings, tmp_path):
    with pytest.raises(DanqingError, match="64 hex digits"):
        add(str(tmp_path), settings=settings, sha256="abc")
    with pytest.raises(DanqingError, match="this is a folder"):
        add(str(tmp_path), settings=settings, sha256="0" * 64)


def test_no_socket_is_opened_for_what_is_here(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    (tmp_path / "ink.safetensors").write_bytes(LORA)
    add(str(tmp_path / "ink.safetensors"), settings=settings)
    assert find("ink", "lora", load_settings(data_dir=settings.data_dir)).kind == "lora"


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_url_comes_to_the_folder_of_its_content(settings, site):
    url = site.put("/files/ink.safetensors?download=true", LORA)
    entry = add(url, settings=settings, kind="checkpoint")
    assert entry.kind == "lora"
    assert entry.path == settings.models_dir / "loras" / "ink.safetensors"
    assert entry.path.read_bytes() == LORA
    assert HashCache(settings.data_dir).known(entry.path) == digest(LORA)
    assert find("ink", "lora", settings) == entry
    assert everything(settings.models_dir) == ["loras/ink.safetensors"]


def test_where_content_does_not_tell_the_asked_kind_does(settings, site):
    url = site.put("/x", UNSURE)
    assert add(url, settings=settings, kind="upscaler").path == settings.models_dir / "upscale_models" / "x.safetensors"
    assert add(url, settings=settings).path == settings.models_dir / "other" / "x.safetensors"


def test_a_pickle_gets_its_suffix(settings, site):
    buffer = io.BytesIO()
    torch.save({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, buffer)
    assert add(site.put("/download/7", buffer.getvalue()), settings=settings).name == "7.ckpt"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "what came is no model: is not a model: a web page"),
        (LORA[:-3], "what came is no model"),
        (b"", "what came is no model: is empty"),
    ],
)
def test_what_is_no_model_is_refused_and_removed(settings, site, body, words):
    url = site.put("/m.safetensors", body)
    with pytest.raises(DanqingError, match=words) as error:
        add(url, settings=settings)
    assert str(error.value).startswith(f"{url}: ")
    assert "\n" not in str(error.value)
    assert everything(settings.models_dir) == []


def test_a_pickle_that_wants_to_run_is_refused(settings, site, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    buffer = io.BytesIO()
    torch.save({"state_dict": Attack()}, buffer)
    with pytest.raises(DanqingError, match="what came is no model"):
        add(site.put("/m.ckpt", buffer.getvalue()), settings=settings)
    assert everything(settings.models_dir) == []
    assert not (tmp_path / "ran").exists()


def test_adding_again(settings, site):
    url = site.put("/ink.safetensors", LORA)
    assert add(url, settings=settings) == add(url, settings=settings)
    site.put("/ink.safetensors", BIG)
    with pytest.raises(DanqingError, match="already there, with other content"):
        add(url, settings=settings)
    (settings.models_dir / "loras" / "ink.safetensors").unlink()
    site.asked.clear()
    assert add(url, settings=settings).path.read_bytes() == BIG
    assert len(site.asked) == 1  # what had come was kept


def test_interrupted_and_gone_on(settings, site):
    url = site.put("/ink.safetensors", BIG, drops=[1 << 20] + [0] * 9)
    with pytest.raises(DanqingError, match="what came is kept"):
        add(url, settings=settings)
    assert everything(settings.models_dir) == [".parts/ink.safetensors.part", ".parts/ink.safetensors.part.of"]
    site.pages["/ink.safetensors"].drops.clear()
    assert add(url, settings=settings).path.read_bytes() == BIG
    assert everything(settings.models_dir) == ["loras/ink.safetensors"]


# --- the Hub ----------------------------------------------------------------------------------------------------------

COMMIT = "c0ffee" + "0" * 34


def publish(site, repository, files, revision="main", token=None, large=(".safetensors", ".bin", ".ckpt")):
    rows = []
    for name, body in files.items():
        row = {"rfilename": name, "size": len(body)}
        if name.endswith(large):
            row["lfs"] = {"sha256": digest(body), "size": len(body), "pointerSize": 134}
        rows.append(row)
        site.put(f"/{repository}/resolve/{COMMIT}/{name}", body, token=token)
    answer = json.dumps({"id": repository, "sha": COMMIT, "siblings": rows}).encode()
    site.put(f"/api/models/{repository}/revision/{revision}", answer, token=token)


def pipeline():
    weights = save({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2)})
    return {
        "model_index.json": b"{}",
        "README.md": b"read",
        "whole.safetensors": weights,
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights,
        "unet/diffusion_pytorch_model.fp16.safetensors": weights,
        "unet/diffusion_pytorch_model.bin": weights,
        "unet/diffusion_pytorch_model.non_ema.safetensors": weights,
        "vae/diffusion_pytorch_model.safetensors": weights,
        "text_encoder/pytorch_model.bin": weights,
        "text_encoder/pytorch_model.fp16.bin": weights,
        "text_encoder/model.onnx": b"onnx",
        "text_encoder/flax_model.msgpack": b"flax",
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"a b",
        "scheduler/scheduler_config.json": b"{}",
    }


def test_a_whole_repository_lands_in_the_hubs_cache(settings, site):
    publish(site, "owner/sd", pipeline())
    entry = add("hf:owner/sd", settings=settings, hub=site.url)
    assert (entry.kind, entry.name, entry.source) == ("checkpoint", "owner/sd", "Hub")
    assert everything(entry.path) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/pytorch_model.fp16.bin",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert find("owner/sd", "checkpoint", settings) == entry
    # the Hub's own client finds it too
    cached = huggingface_hub.try_to_load_from_cache("owner/sd", "unet/config.json", cache_dir=settings.hub_cache)
    assert cached == str(entry.path / "unet" / "config.json")
    (repository,) = huggingface_hub.scan_cache_dir(settings.hub_cache).repos
    assert (repository.repo_id, len(repository.revisions)) == ("owner/sd", 1)
    asked = len(site.asked)
    assert add("hf:owner/sd", settings=settings, hub=site.url) == entry
    assert len(site.asked) == asked + 1  # the list of files, and none of them


def test_an_interrupted_repository_is_not_taken_for_whole(settings, site):
    publish(site, "owner/sd", pipeline())
    broken = f"/owner/sd/resolve/{COMMIT}/unet/diffusion_pytorch_model.fp16.safetensors"
    site.pages[broken].drops = [20] + [0] * 9
    with pytest.raises(DanqingError, match="what came is kept"):
        add("hf:owner/sd", settings=settings, hub=site.url)
    assert [entry for entry in known(settings) if entry.kind == "checkpoint"] == [BUNDLED]
    site.pages[broken].drops.clear()
    site.asked.clear()
    add("hf:owner/sd", settings=settings, hub=site.url)
    assert site.ranges() == ["bytes=20-"]
    assert [entry.name for entry in known(settings)] == ["danqing", "owner/sd"]


def test_a_peft_adapter_comes_with_its_configuration(settings, site):
    body = save({"base_model.model.unet.x.lora_A.weight": torch.zeros(2, 2)})
    publish(site, "owner/peft", {"adapter_config.json": b"{}", "adapter_model.safetensors": body, "config.json": b"{}"})
    entry = add("hf:owner/peft", settings=settings, hub=site.url)
    assert (entry.kind, entry.name) == ("lora", "owner/peft")
    assert everything(entry.path) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_endpoint_comes_from_the_environment(settings, site, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", site.url + "/")
    publish(site, "owner/lora", {"ink.safetensors": LORA})
    entry = add("hf:owner/lora", settings=settings)
    assert (entry.kind, entry.name) == ("lora", "owner/lora/ink.safetensors")
    assert entry.path.read_bytes() == LORA
    assert find("owner/lora/ink", "lora", settings).path == entry.path


@pytest.mark.parametrize(
    "source", ["hf:owner/l@v1.0/deep/ink.safetensors", "{hub}/owner/l/blob/v1.0/deep/ink.safetensors?download=true"]
)
def test_one_file_of_a_revision(settings, site, source):
    publish(site, "owner/l", {"deep/ink.safetensors": LORA, "other.safetensors": LORA}, revision="v1.0")
    entry = add(source.format(hub=site.url), settings=settings, hub=site.url, sha256=digest(LORA))
    assert entry.path == settings.hub_cache / "models--owner--l" / "snapshots" / COMMIT / "deep" / "ink.safetensors"
    assert (settings.hub_cache / "models--owner--l" / "refs" / "v1.0").read_text() == COMMIT
    assert everything(settings.hub_cache) == [
        "models--owner--l/refs/v1.0",
        f"models--owner--l/snapshots/{COMMIT}/deep/ink.safetensors",
    ]


def test_branches_with_slashes(settings, site):
    publish(site, "owner/l", {"ink.safetensors": LORA}, revision="refs%2Fpr%2F1")
    add("hf:owner/l@refs%2Fpr%2F1", settings=settings, hub=site.url)
    assert (settings.hub_cache / "models--owner--l" / "refs" / "refs" / "pr" / "1").read_text() == COMMIT


def test_several_models_and_wrong_names(settings, site):
    publish(site, "owner/l", {"ink.safetensors": LORA, "oil.safetensors": LORA})
    with pytest.raises(DanqingError, match=r"2 models in this repository; add /FILE, one of: ink.safetensors, oil"):
        add("hf:owner/l", settings=settings, hub=site.url)
    with pytest.raises(DanqingError, match=r"hf:owner/l/inc.safetensors: no such file; did you mean ink.safetensors"):
        add("hf:owner/l/inc.safetensors", settings=settings, hub=site.url)
    with pytest.raises(DanqingError, match=r"hf:owner/absent: not found .404.; check the name"):
        add("hf:owner/absent", settings=settings, hub=site.url)
    publish(site, "owner/sd", pipeline())
    with pytest.raises(DanqingError, match="a hash is one file's"):
        add("hf:owner/sd", settings=settings, hub=site.url, sha256="0" * 64)
    publish(site, "owner/empty", {"README.md": b"x"})
    with pytest.raises(DanqingError, match="there is no model in it"):
        add("hf:owner/empty", settings=settings, hub=site.url)
    assert not settings.hub_cache.exists()


def test_the_hubs_tokens(settings, site, monkeypatch):
    publish(site, "owner/l", {"ink.safetensors": LORA}, token="secret")
    with pytest.raises(DanqingError, match=r"hf:owner/l: .*it needs a token") as error:
        add("hf:owner/l", settings=settings, hub=site.url)
    assert f"{site.url}/owner/l" in str(error.value)
    for given, name, value in (
        ("secret", "X", ""),
        (None, "HF_TOKEN", "secret"),
    ):
        monkeypatch.setenv(name, value)
        assert add("hf:owner/l", settings=settings, hub=site.url, token=given).kind == "lora"
        monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    assert add("hf:owner/l", settings=settings, hub=site.url).kind == "lora"
    mine = settings.model_copy(update={"hub_token": "wrong"})
    with pytest.raises(DanqingError, match="the token does not open it"):
        add("hf:owner/l", settings=mine, hub=site.url)


def test_the_hubs_file_is_held_to_its_hash(settings, site):
    publish(site, "owner/l", {"ink.safetensors": LORA})
    body = bytearray(LORA)
    body[-1] ^= 1
    site.put(f"/owner/l/resolve/{COMMIT}/ink.safetensors", bytes(body))
    with pytest.raises(DanqingError, match=f"{digest(LORA)} was promised"):
        add("hf:owner/l", settings=settings, hub=site.url)
    assert everything(settings.hub_cache) == []


def test_a_repository_cannot_write_elsewhere(settings, site, tmp_path):
    for name in ("../../../../evil.safetensors", "/evil.safetensors", "a\\..\\evil.safetensors", "a//b.safetensors"):
        publish(site, "owner/evil", {name: LORA})
        with pytest.raises(DanqingError, match="is refused"):
            add("hf:owner/evil", settings=settings, hub=site.url)
    assert not list(tmp_path.rglob("*evil*.safetensors"))


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"sha": "x", "siblings": [{}]}', b'{"sha": "x", "siblings": 3}'])
def test_an_answer_of_another_shape(settings, site, answer):
    site.put("/api/models/owner/l/revision/main", answer)
    with pytest.raises(DanqingError, match="cannot be understood") as error:
        add("hf:owner/l", settings=settings, hub=site.url)
    assert "\n" not in str(error.value)


def test_which_files_are_chosen():
    names = [*pipeline(), "unet/model.safetensors.index.json"]
    full = choose_files(names, None, "x")
    assert "unet/diffusion_pytorch_model.safetensors" in full
    assert "text_encoder/pytorch_model.bin" in full
    assert not [name for name in full if "fp16" in name or "non_ema" in name]
    shards = [
        "config.json",
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.bin",
        "deeper/config.json",
    ]
    assert set(choose_files(shards, None, "x")) == set(shards[:4])
    assert set(choose_files(shards, "fp16", "x")) == {"config.json", *shards[4:6]}
    only = ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert set(choose_files(only, None, "x")) == set(only)
    assert choose_files(["README.md", "a/b.ckpt"], None, "x") == ["a/b.ckpt"]


# --- Civitai ----------------------------------------------------------------------------------------------------------


def version(site, path, *, kind="LORA", body=LORA, sha256=None, name="ink v1.safetensors"):
    return {
        "id": 7,
        "model": {"name": "Ink", "type": kind},
        "files": [
            {
                "name": "data.zip",
                "type": "Training Data",
                "primary": False,
                "downloadUrl": site.url + "/zip",
                "hashes": {},
            },
            {"name": "ink.ckpt", "type": "Model", "primary": True, "metadata": {"format": "PickleTensor"}},
            {
                "name": name,
                "type": "Model",
                "metadata": {"format": "SafeTensor", "fp": "fp16"},
                "hashes": {"SHA256": (sha256 or digest(body)).upper(), "AutoV2": "x"},
                "downloadUrl": site.url + path,
            },
        ],
    }


@pytest.mark.parametrize("source", ["civitai:7", "civitai:3@7", "civitai:3", "{civitai}/models/3/ink?modelVersionId=7"])
def test_civitai(settings, site, source):
    row = version(site, "/api/download/models/7")
    site.put("/api/v1/model-versions/7", json.dumps(row).encode())
    model = {"id": 3, "type": row.pop("model")["type"], "modelVersions": [row, {"files": []}]}
    site.put("/api/v1/models/3", json.dumps(model).encode())
    site.put("/api/download/models/7", LORA, headers={"Content-Disposition": 'attachment; filename="other.bin"'})
    entry = add(source.format(civitai=site.url), settings=settings, civitai=site.url)
    assert entry.path == settings.models_dir / "loras" / "ink v1.safetensors"
    assert entry.kind == "lora"


def test_civitais_type_decides_where_content_does_not(settings, site):
    site.put("/api/v1/model-versions/7", json.dumps(version(site, "/d", kind="Upscaler", body=UNSURE)).encode())
    site.put("/d", UNSURE)
    assert add("civitai:7", settings=settings, civitai=site.url).kind == "upscaler"


def test_civitais_key_goes_to_civitai_only(settings, site, other_site, monkeypatch):
    site.put("/api/v1/model-versions/7", json.dumps(version(site, "/d")).encode(), token="key")
    other_site.put("/storage", LORA)
    site.redirect("/d", other_site.url + "/storage")
    monkeypatch.setenv("CIVITAI_API_TOKEN", "key")
    add("civitai:7", settings=settings, civitai=site.url)
    assert dict(site.asked)["/d"]["Authorization"] == "Bearer key"
    site.put("/api/v1/model-versions/8", json.dumps(version(other_site, "/storage", name="b.safetensors")).encode())
    add("civitai:8", settings=settings, civitai=site.url)
    assert [path for path, _ in other_site.asked] == ["/storage", "/storage"]
    assert all("Authorization" not in headers for _, headers in other_site.asked)


def test_what_civitai_refuses(settings, site):
    with pytest.raises(DanqingError, match=r"civitai:7: not found .404."):
        add("civitai:7", settings=settings, civitai=site.url)
    site.put("/api/v1/model-versions/7", json.dumps(version(site, "/d")).encode())
    site.put("/d", LORA, token="key")
    with pytest.raises(DanqingError, match=r"civitai:7: access is refused .401.: it needs a token"):
        add("civitai:7", settings=settings, civitai=site.url)
    site.put("/d", b"<html>", headers={"Content-Type": "text/html"})
    with pytest.raises(DanqingError, match="a web page, not a file"):
        add("civitai:7", settings=settings, civitai=site.url)
    site.put("/d", LORA)
    site.put("/api/v1/model-versions/7", json.dumps(version(site, "/d", sha256="1" * 64)).encode())
    with pytest.raises(DanqingError, match="was promised"):
        add("civitai:7", settings=settings, civitai=site.url)
    for answer in (b"{}", b'{"files": []}', b"[1]", b'{"files": [{}]}'):
        site.put("/api/v1/model-versions/7", answer)
        with pytest.raises(DanqingError, match="cannot be understood"):
            add("civitai:7", settings=settings, civitai=site.url)
    assert everything(settings.models_dir) == [] if settings.models_dir.exists() else True


def test_a_name_of_civitais_cannot_lead_elsewhere(settings, site):
    row = version(site, "/d", name="../../../evil.safetensors")
    site.put("/api/v1/model-versions/7", json.dumps(row).encode())
    site.put("/d", LORA)
    assert (
        add("civitai:7", settings=settings, civitai=site.url).path == settings.models_dir / "loras" / "evil.safetensors"
    )


def test_a_full_disk_is_one_line(settings, site, monkeypatch):
    url = site.put("/ink.safetensors", LORA)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    with pytest.raises(DanqingError, match="the disk is full") as error:
        add(url, settings=settings)
    assert "\n" not in str(error.value)
