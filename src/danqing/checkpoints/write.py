"""Writing tensors: streamed, beside the target first, then renamed; a failure leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from danqing.checkpoints.files import SAFETENSORS_DTYPES, Entry
from danqing.errors import DanqingError

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@contextlib.contextmanager
def beside(target: Path, needed: int) -> Iterator[Path]:
    """A name beside `target` to write to; renamed to it when all went well, removed when not.

    `needed` bytes are asked for beforehand. Raises DanqingError for a full disk, a folder that cannot be written, or
    a target that is a folder with something in it.
    """
    if target.is_dir() and any(target.iterdir()):
        raise DanqingError(f"{target}: exists and is not empty; choose another name or remove it")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} are free")
        yield temporary
        if target.is_dir():
            target.rmdir()
        os.replace(temporary, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's archive writer reports a failed write as RuntimeError, and what failed as its context; safetensors'
        # writer tells the system's reason within its own
        error = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = f"'{error.filename}' is a file, not a folder"
        if isinstance(error, RuntimeError) and shutil.disk_usage(target.parent).free < 2**20:
            reason = "the disk is full"  # which torch's writer does not always know
        if getattr(error, "errno", None) == errno.ENOSPC:
            reason = "the disk is full" if reason == os.strerror(errno.ENOSPC) else f"the disk is full: {reason}"
        raise DanqingError(f"{target}: could not be written: {reason}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # it may never have been there
                temporary.unlink()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def write_safetensors(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """A safetensors file, one tensor in memory at a time; wide types first, so that every tensor is aligned."""
    order = sorted(entries, key=lambda key: (-entries[key].dtype.itemsize, key))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for key in order:
        entry = entries[key]
        if entry.dtype not in _NAMES:
            raise DanqingError(f"{path}: tensor '{key}' is of type {entry.dtype}, which safetensors does not have")
        header[key] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            if entries[key].numel:
                file.write(_bytes(entries[key].load()))


def write_ckpt(path: Path, entries: Mapping[str, Entry]) -> None:
    """A torch archive with the one key `state_dict`, as latent diffusion's own checkpoints have it."""
    state = {key: _compact(entry.load()) for key, entry in entries.items()}
    with path.open("wb") as file:
        torch.save({"state_dict": state}, file)


def _compact(tensor: Tensor) -> Tensor:
    """Without the rest of a storage that it is a view of, which torch would write too."""
    tensor = tensor.detach().cpu()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize and tensor.is_contiguous()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n", "utf-8")
