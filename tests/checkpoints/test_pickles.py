"""The unpickler: what torch writes reads back equal; what attacks, is refused by name, and nothing of it runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from danqing.checkpoints import pickles
from danqing.checkpoints.files import open_file
from danqing.errors import DanqingError

PROOF = "danqing_proof"


def as_ckpt(path: Path, payload: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A torch archive around a pickle of ours."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(target: str) -> str:
    return f"__import__('pathlib').Path({target!r}).touch()"


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def attacks(proof: str) -> dict[str, tuple[bytes, str]]:
    """name -> (pickle, what the refusal must name)."""
    shell = f"touch {proof}"
    evil = touch(proof)
    nested = pickle.dumps({"state_dict": [{"deep": (Call(eval, evil),)}]}, 2)
    tensor = glob("torch._utils", "_rebuild_tensor_v2")
    return {
        "os.system": (pickle.dumps(Call(os.system, shell), 2), "posix.system"),
        "os.system protocol 4": (pickle.dumps(Call(os.system, shell), 4), "posix.system"),
        "os.system protocol 0": (pickle.dumps(Call(os.system, shell), 0), "posix.system"),
        "eval": (pickle.dumps(Call(eval, evil), 2), "eval"),
        "exec": (pickle.dumps(Call(exec, evil), 4), "builtins.exec"),
        "nested": (nested, "eval"),
        "torch.hub": (b"\x80\x02" + glob("torch.hub", "load") + text("a/b") + text("c") + b"\x86R.", "torch.hub.load"),
        "runpy": (b"\x80\x02" + glob("runpy", "_run_code") + text(evil) + b"\x85R.", "runpy._run_code"),
        "subprocess": (b"\x80\x02" + glob("subprocess", "Popen") + text(shell) + b"\x85\x81.", "subprocess.Popen"),
        "inst": (b"(S'" + shell.encode() + b"'\nios\nsystem\n.", "os.system"),
        "obj": (b"(" + glob("os", "system") + text(shell) + b"o.", "os.system"),
        "newobj": (b"\x80\x02" + glob("os", "system") + text(shell) + b"\x85\x81.", "os.system"),
        "newobj_ex": (b"\x80\x04" + glob("os", "system") + text(shell) + b"\x85}\x92.", "os.system"),
        "build on a class": (b"\x80\x02" + glob("os", "environ") + b"}" + text("x") + text("y") + b"sb.", "os.environ"),
        "build setstate": (b"\x80\x02" + b"]" + b"}" + text("__setstate__") + glob("os", "system") + b"sb.", "list"),
        "dotted name": (
            b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93)R.",
            "torch._utils._rebuild_tensor_v2.__globals__",
        ),
        "dotted module": (b"\x80\x02" + glob("collections.abc.os", "system") + text(shell) + b"\x85R.", "collections.abc.os.system"),
        "stack global from memo": (
            b"\x80\x04" + text("os") + b"\x94" + b"0" + text("system") + b"\x94" + b"0h\x00h\x01\x93" + text(shell) + b"\x85R.",
            "os.system",
        ),
        "extension 1": (b"\x80\x02\x82\x01.", "EXT1"),
        "extension 2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
        "extension 4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        "persistent id as text": (b"Pos.system\n.", "PERSID"),
        "out of band": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "getattr": (b"\x80\x02" + glob("builtins", "getattr") + glob("os", "path") + text("join") + b"\x86R.", "builtins.getattr"),
        "storage of another type": (
            b"\x80\x02(" + text("storage") + glob("os", "system") + text("0") + text("cpu") + b"K\x01tQ.", "os.system"
        ),
        "type of a rebuilt tensor": (
            b"\x80\x02" + glob("torch._tensor", "_rebuild_from_type_v2") + b"(" + tensor + glob("os", "system") + b")Nt" + b"R.",
            "os.system",
        ),
        "function of a rebuilt tensor": (
            b"\x80\x02" + glob("torch._tensor", "_rebuild_from_type_v2") + b"(" + glob("os", "system")
            + glob("torch", "Tensor") + text(shell) + b"\x85Nt" + b"R.",
            "os.system",
        ),
        "a function that a call returned": (b"\x80\x02" + glob("collections", "OrderedDict") + b")R)R.", "dict"),
        "numpy object arrays": (b"\x80\x02" + glob("numpy", "dtype") + text("O8") + b"K\x00K\x01\x87R.", "O8"),
    }  # fmt: skip


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A folder in which a file appears if anything runs; imports while reading are counted too."""
    monkeypatch.delitem(sys.modules, "runpy", raising=False)
    monkeypatch.setitem(sys.modules, "torch.hub", None)  # importing it would fail, loudly
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", list(attacks("x")))
@pytest.mark.parametrize("legacy", [False, True])
def test_attacks_are_refused_by_name(name: str, legacy: bool, watched: Path) -> None:
    payload, word = attacks(str(watched / PROOF))[name]
    path = watched / "model.ckpt"
    if legacy:
        head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + payload)
    else:
        as_ckpt(path, payload)
    before = set(sys.modules)
    with pytest.raises(DanqingError) as caught:
        open_file(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()
    assert not (watched / PROOF).exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "nested", "inst", "obj", "stack global from memo"])
def test_the_attacks_are_real(name: str, watched: Path) -> None:
    """Python's own unpickler runs them: the payloads are not duds."""
    payload, _ = attacks(str(watched / PROOF))[name]
    pickle.loads(payload)
    assert (watched / PROOF).exists()


def tensor_call(numel: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """The pickle of one float32 tensor that claims these numbers."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    return (
        b"\x80\x02}" + text("weight") + glob("torch._utils", "_rebuild_tensor_v2")
        + b"((" + text("storage") + glob("torch", "FloatStorage") + text(key) + text("cpu") + number(numel) + b"tQ"
        + number(offset) + numbers(shape) + numbers(stride) + b"\x89" + glob("collections", "OrderedDict") + b")RtRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "word"),
    [
        ((4, 0, (8,), (1,)), "reaches beyond"),
        ((4, 2, (3,), (1,)), "reaches beyond"),
        ((4, 0, (2, 2), (1 << 40, 1)), "reaches beyond"),
        ((4, 0, (1 << 40, 1 << 40), (0, 0)), "reaches beyond"),
        ((4, -1, (2,), (1,)), "an offset"),
        ((4, 0, (-2,), (1,)), "a shape"),
        ((4, 0, (2,), (-1,)), "a stride"),
        ((400, 0, (400,), (1,)), "is said to take 1600 bytes and takes 16"),
        ((3, 0, (3,), (1,)), "is said to take 12 bytes and takes 16"),
        ((1 << 60, 0, (4,), (1,)), "a storage's size"),
        ((4, 0, (4,), (1,), "../../etc/passwd"), "missing from the archive"),
    ],
)
def test_storages_that_lie(claim: tuple, word: str, tmp_path: Path) -> None:
    path = as_ckpt(tmp_path / "a.ckpt", tensor_call(*claim), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    with pytest.raises(DanqingError, match=word):
        open_file(path)


def test_the_same_tensor_told_truly(tmp_path: Path) -> None:
    path = as_ckpt(tmp_path / "a.ckpt", tensor_call(4, 1, (2,), (2,)), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert open_file(path).read("weight").tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02" + b"h\x05.",  # a memo that was never kept
        b"\x80\x02" + b"}" * 3 + b"s.",
        b"\x80\x02" + b"t.",
        b"\x80\x02" + b"X" + struct.pack("<I", 1 << 31) + b"abc.",  # a huge count
        b"\x80\x04" + b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x02" + b"\x8b" + struct.pack("<i", 1 << 30) + b"\x01.",
        b"\x80\x02" + b"I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02" + b")" + b"\x85" * 500_000 + b"}q\x000)h\x00.",
        b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u.",  # hashing it would overflow the C stack
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",  # lists in lists
        b"\x80\x02" + b"]" + b"q\x00" + b"h\x00a" + b".",  # a list in itself
        b"\x80\x02" + b"}q\x00" + text("state_dict") + b"h\x00s.",  # a dictionary in itself
        b"\x80\x02" + b"]" + b"".join(b"q%c](%sl" % (0, b"h\x00" * 10) for _ in range(30)) + b".",
        b"",
        b".",
        b"\x80\x02",
        b"\xff\xff\xff",
    ],
    ids=range(17),
)
def test_nonsense_is_an_error_and_no_crash(payload: bytes, tmp_path: Path) -> None:
    with pytest.raises(DanqingError):
        open_file(as_ckpt(tmp_path / "a.ckpt", payload))


def test_laughing_lists_end_soon(tmp_path: Path) -> None:
    """Ten references to a list of ten references, thirty deep: 10^30 values, none of which may be walked for ever."""
    payload = b"\x80\x02]q\x00"
    for level in range(1, 30):
        payload += b"](" + b"h%c" % (level - 1) * 10 + b"e" + b"q%c" % level
    with pytest.raises(DanqingError, match="more than"):
        open_file(as_ckpt(tmp_path / "a.ckpt", payload + b"."))


def test_long_memo_chains_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    with pytest.raises(DanqingError, match="more than 1000"):
        pickles.read(io.BytesIO(b"\x80\x02}q\x00" + b"h\x00q\x01" * 1000 + b"."), "x")


class ModelCheckpoint:
    """Stands for pytorch_lightning's class of that name, which the first checkpoints have as a dictionary key."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
ModelCheckpoint.__qualname__ = "ModelCheckpoint"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_checkpoint_as_stable_diffusion_1_4_is(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class as a dictionary key, a numpy scalar, nested optimizer states: read, and nothing imported."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    names = [name.rsplit(".", cut)[0] for cut in (2, 1)] + [name]
    for part in names:
        monkeypatch.setitem(sys.modules, part, type(sys)(part))
    sys.modules[name].ModelCheckpoint = ModelCheckpoint
    state = collections.OrderedDict(torch.nn.Linear(3, 2).state_dict())
    torch.save(
        {
            "state_dict": state,
            "epoch": 6,
            "pytorch-lightning_version": "1.4.2",
            "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(0.25), "current": np.array([1.0, 2.0])}},
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}}],
        },
        tmp_path / "sd.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    for part in names:
        monkeypatch.delitem(sys.modules, part)
    file = open_file(tmp_path / "sd.ckpt")
    assert name not in sys.modules
    assert {key: file.read(key).tolist() for key in file.entries} == {k: v.tolist() for k, v in state.items()}
    assert file.metadata["epoch"] == "6"
    assert file.notes == ("left aside: callbacks", "left aside: optimizer_states")


def test_numpy_values() -> None:
    tree = {"f": np.float32(0.5), "i": np.int64(-3), "a": np.arange(6, dtype=">i4").reshape(2, 3), "b": np.bool_(True)}
    found = pickles.read(io.BytesIO(pickle.dumps(tree, 2)), "x")
    assert (found["f"], found["i"], found["b"]) == (0.5, -3, True)
    assert found["a"].shape == (2, 3)
    assert list(struct.unpack("<6i", found["a"].data)) == list(range(6))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_data_reads_as_pickle_reads_it(protocol: int) -> None:
    shared = [1, 2]
    tree = {
        "a": shared, "b": (shared, None, True, False), 3: -(2**70), "f": 1e300, "s": "一 \U0001f600", "y": b"\x00\xff",
        "t": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "o": collections.OrderedDict(x=1),
        "set": {1, "q"}, "e": {}, "many": list(range(3000)), "d": {str(i): i for i in range(300)},
    }  # fmt: skip
    assert pickles.read(io.BytesIO(pickle.dumps(tree, protocol)), "x") == tree
