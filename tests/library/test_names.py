import hashlib

import pytest
import torch
from safetensors.torch import save_file

from danqing.errors import DanqingError
from danqing.library.hash_cache import HashCache
from danqing.library.names import find, known
from danqing.library.settings import Settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roots").mkdir()
    return Settings(
        path=tmp_path / "config.toml",
        data_dir=tmp_path / "data",
        folders=(tmp_path / "roots",),
        hub_cache=tmp_path / "hub",
    )


@pytest.fixture
def plant(tmp_path):
    def plant(*files):
        for file in files:
            path = tmp_path / "roots" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.encode())

    return plant


def hub(root, repository, commit="a" * 40, reference="main"):
    home = root / ("models--" + repository.replace("/", "--"))
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / reference).write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "snapshots" / commit / "model_index.json").write_text("{}")
    return home / "snapshots" / commit


@pytest.mark.parametrize(
    "text",
    [
        "anime/Pony v6.safetensors",
        "anime/pony V6.SAFETENSORS",
        "anime\\Pony v6",
        "anime/pony v6",
        "Pony v6.safetensors",
        "Pony v6",
        "PONY V6",
        "  Pony v6 ",
        "anime_Pony v6",
        "Pony v6.safetensors [0123456789]",
        "roots/checkpoints/anime/Pony v6.safetensors",
        "./roots/checkpoints/anime/Pony v6.safetensors",
    ],
)
def test_the_forms_of_a_name(settings, plant, tmp_path, text):
    plant("checkpoints/anime/Pony v6.safetensors", "checkpoints/other.ckpt", "loras/Pony v6.safetensors")
    entry = find(text, "checkpoint", settings)
    assert entry.path == tmp_path / "roots" / "checkpoints" / "anime" / "Pony v6.safetensors"
    assert entry.kind == "checkpoint"


def test_the_kind_tells_twins_apart(settings, plant):
    plant("checkpoints/ink.safetensors", "loras/ink.safetensors", "vae/ink.pt")
    assert find("ink", "lora", settings).path.parent.name == "loras"
    assert find("ink", "vae", settings).path.parent.name == "vae"
    assert find("ink.pt", None, settings).path.parent.name == "vae"
    with pytest.raises(DanqingError, match="model 'ink' means 3 files"):
        find("ink", None, settings)


def test_the_exact_name_goes_before_others(settings, plant):
    plant("checkpoints/a.ckpt", "checkpoints/a.safetensors", "checkpoints/A.ckpt", "checkpoints/sub/a.ckpt")
    assert find("a.ckpt", "checkpoint", settings).name == "a.ckpt"
    assert find("A.ckpt", "checkpoint", settings).name == "A.ckpt"
    assert find("sub/a", "checkpoint", settings).name == "sub/a.ckpt"
    with pytest.raises(
        DanqingError, match=r"'a' means 2 files, name one by its path: .*a.ckpt, .*a.safetensors"
    ) as error:
        find("a", "checkpoint", settings)
    assert "\n" not in str(error.value)


def test_unsorted_files_are_told_apart_by_content(settings, tmp_path):
    lora, vae = {"lora_unet_x.lora_down.weight": torch.zeros(2)}, {"decoder.conv_in.weight": torch.zeros(2)}
    for folder, tensors in (("a", lora), ("b", vae)):
        (tmp_path / "roots" / folder).mkdir()
        save_file(tensors, tmp_path / "roots" / folder / "m.safetensors")
    assert find("m", "vae", settings).path.parent.name == "b"
    assert find("m", "lora", settings).kind == "lora"
    assert find("a/m", None, settings).kind == "lora"
    with pytest.raises(DanqingError, match=r"a/m.safetensors: is a LoRA, not a vae"):
        find("a/m", "vae", settings)


def test_unsorted_files_count_after_sorted_ones_and_links_count_once(settings, plant, tmp_path):
    plant("heap/m.safetensors", "checkpoints/m.safetensors")
    assert find("m", "checkpoint", settings).path.parent.name == "checkpoints"
    plant("checkpoints/x.ckpt")
    (tmp_path / "roots" / "checkpoints" / "sub").mkdir()
    (tmp_path / "roots" / "checkpoints" / "sub" / "x.ckpt").symlink_to("../x.ckpt")
    assert find("x", "checkpoint", settings).path.name == "x.ckpt"


def test_unknown_names(settings, plant):
    with pytest.raises(
        DanqingError, match="checkpoint 'x' is unknown, and none of yours is known yet: `danqing models add"
    ):
        find("x", "checkpoint", settings)
    plant("checkpoints/deep/dreamshaper_8.safetensors", "checkpoints/v1-5.ckpt", "loras/dreamsharper.pt")
    with pytest.raises(
        DanqingError, match=r"'dreamsharper' is unknown; did you mean deep/dreamshaper_8.safetensors"
    ) as e:
        find("dreamsharper", "checkpoint", settings)
    assert "\n" not in str(e.value)
    with pytest.raises(DanqingError, match=r"'zzz' is unknown; `danqing models list` shows the 3 that are"):
        find("zzz", "checkpoint", settings)
    with pytest.raises(DanqingError, match="the name of the text encoder is empty"):
        find(" ", "text_encoder", settings)


def test_paths(settings, plant, tmp_path):
    plant("folder/x.txt", "file without suffix")
    assert find("roots/file without suffix", None, settings).path == tmp_path / "roots" / "file without suffix"
    for text in ("/absent/m.ckpt", "./m.ckpt", "~/absent.ckpt"):
        with pytest.raises(DanqingError, match="no such file or folder"):
            find(text, None, settings)
    with pytest.raises(DanqingError, match="a folder, but not one model"):
        find("./roots", None, settings)
    with pytest.raises(DanqingError, match="'roots' is unknown"):  # a folder of that name means nothing
        find("roots", None, settings)


def test_the_hubs_cache(settings, tmp_path):
    old = hub(tmp_path / "hub", "owner/name", "b" * 40, "v1")
    new = hub(tmp_path / "hub", "owner/name")
    assert find("owner/name", "checkpoint", settings).path == new
    assert find("Owner/Name", "checkpoint", settings).path == new
    assert find("name", "checkpoint", settings).source == "Hub"
    assert find("owner/name@v1", "checkpoint", settings).path == old
    assert find("owner/name@bbbbbb", "checkpoint", settings).path == old
    with pytest.raises(DanqingError, match="not in the Hub's cache; `danqing models add hf:owner/name@v2` downloads"):
        find("owner/name@v2", "checkpoint", settings)


def test_danqings_own_folder(settings, tmp_path):
    path = tmp_path / "data" / "models" / "checkpoints" / "own.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert [(entry.name, entry.source) for entry in known(settings)[1:]] == [("own.ckpt", "Danqing")]


def test_hashes(settings, plant, tmp_path):
    plant("checkpoints/a.safetensors", "checkpoints/b.safetensors", "checkpoints/sub/b.safetensors")
    folder = tmp_path / "roots" / "checkpoints"
    cache = HashCache(settings.data_dir)
    digests = {path: cache.later(path).result(10) for path in (folder / "a.safetensors", folder / "b.safetensors")}
    digest = digests[folder / "b.safetensors"]
    for text in (
        digest,
        digest[:10],
        digest[:10].upper(),
        f"b.safetensors [{digest[:10]}]",
        f"moved.ckpt [{digest[:10]}]",
    ):
        assert find(text, "checkpoint", settings).path == folder / "b.safetensors"
    # one of the two is not hashed yet, so it may be the one meant
    plant("checkpoints/one/x.ckpt", "checkpoints/two/x.ckpt")
    cache.later(folder / "one" / "x.ckpt").result(10)
    assert find("x.ckpt [0123456789]", "checkpoint", settings).path == folder / "two" / "x.ckpt"
    with pytest.raises(
        DanqingError, match=rf"a.safetensors: its hash is {digests[folder / 'a.safetensors'][:10]}, not 0123456789"
    ):
        find("a.safetensors [0123456789]", "checkpoint", settings)
    with pytest.raises(DanqingError, match="unknown"):
        find("0123456789", "checkpoint", settings)


def test_automatic1111s_old_eight_digits(settings, plant, tmp_path):
    plant("checkpoints/a.ckpt", "checkpoints/b.ckpt", "loras/c.pt")
    path = tmp_path / "roots" / "checkpoints" / "b.ckpt"
    data = bytes(range(256)) * 8192
    path.write_bytes(data)
    digest = hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert find(digest, "checkpoint", settings).path == path
    assert find(f"elsewhere.ckpt [{digest}]", "checkpoint", settings).path == path
    assert find(f"b.ckpt [{digest}]", "checkpoint", settings).path == path


def test_nothing_is_read_to_find_a_name(settings, plant, monkeypatch):
    plant("checkpoints/a.safetensors")
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr("pathlib.Path.open", None)
    assert find("a", "checkpoint", settings).name == "a.safetensors"
