"""Mutated files: whatever is done to a file, it opens or says plainly why not, and nothing in it runs."""

from __future__ import annotations

import pickle
import random
import zlib
from pathlib import Path

import pytest
import torch
from small import random_model, small_family
from test_pickles import PROOF, Call, as_ckpt, touch

from danqing.checkpoints.checkpoint import open_checkpoint
from danqing.checkpoints.files import open_file
from danqing.checkpoints.inspect import inspect
from danqing.checkpoints.load import load
from danqing.checkpoints.save import save
from danqing.errors import DanqingError


def seeds(folder: Path) -> list[Path]:
    """One file of each format, small, the pickles with an attack beside the weights in half of them."""
    family = small_family("sd1")
    model = random_model(family, torch.float16)
    save(model, folder / "a.safetensors")
    save(model, folder / "b.ckpt")
    state = {f"layer.{i}.weight": torch.full((2, 3), float(i)) for i in range(6)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "c.ckpt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "d.ckpt", _use_new_zipfile_serialization=False)
    evil = {"state_dict": Call(eval, touch(str(folder / PROOF)))}
    as_ckpt(folder / "e.ckpt", pickle.dumps(evil, 2))
    as_ckpt(folder / "f.ckpt", pickle.dumps(evil, 4))
    return sorted(path for path in folder.iterdir() if path.is_file())


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to eight changes: bits, bytes, runs, cuts, doublings; most of them where the header is."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if not out:
            break
        reach = len(out) if rng.random() < 0.4 else min(len(out), 4096)
        at = rng.randrange(reach)
        if rng.random() < 0.3:
            at = len(out) - 1 - at  # a zip's index is at its end
        kind = rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice(b'\x00\xff.Rc(t}]\x81\x93Qb{"0[9\x80iow')
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4 and rng.random() < 0.3:
            del out[at:]
        else:
            length = rng.randint(1, 32)
            there = rng.randrange(len(out))
            out[at : at + length] = out[there : there + length]
    return bytes(out)


def survive(path: Path) -> str:
    """Open the file in every way there is. Returns what came of it; any other exception is the test's failure."""
    try:
        file = open_file(path)
        for key in list(file.entries)[:20]:
            tensor = file.read(key)
            assert tuple(tensor.shape) == file.shapes[key]
        report = inspect(path)
        assert report.ok or report.trouble
        open_checkpoint(path)
        load(path)
    except DanqingError as error:
        assert str(path) in str(error)  # noqa: PT017
        return "error"
    return "model"


def campaign(folder: Path, count: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    originals = [path.read_bytes() for path in seeds(folder)]
    outcomes = {"error": 0, "model": 0}
    for number in range(count):
        path = folder / f"mutant{number % 4}.bin"
        path.write_bytes(mutated(originals[number % len(originals)], rng))
        outcomes[survive(path)] += 1
        assert not (folder / PROOF).exists(), f"mutant {number} of seed {seed} ran"
    return outcomes


def test_three_hundred_mutants(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, 300, zlib.crc32(b"quick"))
    assert outcomes["error"] > 100
    assert sum(outcomes.values()) == 300


@pytest.mark.long
def test_ten_thousand_mutants(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, 10_000, zlib.crc32(b"long"))
    assert outcomes["error"] > 3000
    assert sum(outcomes.values()) == 10_000
