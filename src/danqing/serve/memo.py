"""What the network said so far of a picture, on disk: after a crash the sampler hears it again, and goes on.

A sampler's noise is addressed and its sums are the same each time, so that a run that begins anew and is told the same
predictions comes to the same latents, bit for bit, whichever sampler it is and however many passes a painting has. The
network, which takes nearly all the time, is not asked again. An entry is found by the hash of all that the prediction
depends on; what does not fit is not used.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from danqing.families import At
from danqing.sampling.types import Denoise, Prediction

_HEAD = struct.Struct("<32sII")
"""An entry: SHA-256 of what was asked, length and CRC-32 of what follows, a safetensors file."""
_SIDES = ("clean", "unconditional", "conditional")
_MOST = 1 << 30
EVERY = 2.0
"""Seconds between writes; what a short painting says is never written."""


class Memo:
    """The predictions of one run of a painting."""

    def __init__(self, path: Path, salt: str, every: float = EVERY) -> None:
        """Read what is there. `salt` says all that a prediction depends on besides latents and level."""
        self.path, self.every = path, every
        self.replayed = 0
        """Predictions that were told again."""
        self._salt = hashlib.sha256(salt.encode()).digest()
        self._aside = path.with_name(f"{path.name}.painted")
        self._known = _entries(self._aside) | _entries(path)
        self._waiting: list[tuple[Tensor, At, Prediction]] = []
        self._written = time.monotonic()

    def wrap(self, denoise: Denoise) -> Denoise:
        """The denoiser, which is asked only what is not known."""

        def remembered(latents: Tensor, at: At) -> Prediction:
            prediction = self.known(latents, at)
            if prediction is None:
                prediction = denoise(latents, at)
                self.note(latents, at, prediction)
            return prediction

        return remembered

    def known(self, latents: Tensor, at: At) -> Prediction | None:
        """What was said of these latents; None where nothing was."""
        if not self._known or (body := self._known.pop(self._key(latents, at), None)) is None:
            return None
        self.replayed += 1
        return Prediction(**{name: tensor.to(latents.device) for name, tensor in load(body).items()})

    def note(self, latents: Tensor, at: At, prediction: Prediction) -> None:
        """Remember what is said of these latents, on disk every so often."""
        self._waiting.append((latents.clone(), at, prediction))
        if time.monotonic() - self._written >= self.every:
            self.flush()

    def flush(self) -> None:
        """Write what waits. A full disk costs the memory of these steps, not the picture."""
        said, self._waiting = self._waiting, []
        self._written = time.monotonic()
        if not said:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"".join(self._entry(*each) for each in said))
        except OSError:
            self.path.unlink(missing_ok=True)

    def set_aside(self) -> Callable[[], None]:
        """The pictures are painted; once they are in the gallery, call what is returned: this is needed no more."""
        self._known.clear()
        self._waiting.clear()
        self._written = time.monotonic()
        with suppress(FileNotFoundError):
            os.replace(self.path, self._aside)
        return partial(self._aside.unlink, missing_ok=True)

    def _key(self, latents: Tensor, at: At) -> bytes:
        digest = hashlib.sha256(self._salt)
        digest.update(struct.pack("<dd", at.sigma, at.step) + repr(tuple(latents.shape)).encode())
        digest.update(latents.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.digest()

    def _entry(self, latents: Tensor, at: At, prediction: Prediction) -> bytes:
        named = {name: getattr(prediction, name) for name in _SIDES}
        # cloned, for one tensor under two names is none that safetensors writes
        body = save(
            {name: value.detach().cpu().clone().contiguous() for name, value in named.items() if value is not None}
        )
        return _HEAD.pack(self._key(latents, at), len(body), zlib.crc32(body)) + body


def wrap_each(memos: Sequence[Memo | None], denoise: Denoise) -> Denoise:
    """The denoiser of a batch, each picture of which has a memory of its own, as if it were painted alone, or none.

    It is asked where anything is not known. The list may change meanwhile.
    """

    def remembered(latents: Tensor, at: At) -> Prediction:
        rows = [latents[index : index + 1] for index in range(len(latents))]
        said = [memo.known(row, at) if memo is not None else None for memo, row in zip(memos, rows)]
        known = [each for each in said if each is not None]
        if len(known) == len(rows):
            return _joined(known)
        prediction = denoise(latents, at)
        for index, (memo, row, old) in enumerate(zip(memos, rows, said)):
            if memo is not None and old is None:
                memo.note(row, at, prediction.each(itemgetter(slice(index, index + 1))))
        return prediction

    return remembered


def _joined(rows: Sequence[Prediction]) -> Prediction:
    """Of a batch."""
    there = [name for name in _SIDES if getattr(rows[0], name) is not None]
    return Prediction(**{name: torch.cat([getattr(row, name) for row in rows]) for name in there})


def _entries(path: Path) -> dict[bytes, bytes]:
    """Key -> safetensors of each whole entry. A torn end is cut off, so that more can be written behind."""
    found: dict[bytes, bytes] = {}
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MOST else b""
    except OSError:
        return found
    place = 0
    while place + _HEAD.size <= len(data):
        key, length, check = _HEAD.unpack_from(data, place)
        body = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(body) < length or zlib.crc32(body) != check or not _sound(body):
            break
        found[key] = body
        place += _HEAD.size + length
    if place < size:
        os.truncate(path, place)
    return found


def _sound(body: bytes) -> bool:
    try:
        return all(bool(torch.isfinite(tensor).all()) for tensor in load(body).values())
    except SafetensorError:
        return False
