"""Checkpoint files, opened by their content and never by their extension: safetensors, torch's archives and its
older plain pickles. Only headers are read; tensors are views of the mapped file until somebody changes them.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from danqing.checkpoints import pickles
from danqing.checkpoints.pickles import PickledArray, PickledTensor, Storage
from danqing.errors import DanqingError
from danqing.runtime.conversion import to_dtype

MAX_HEADER = 100 << 20
"""Bytes: the safetensors format's own limit for its header."""
MAX_PICKLE = 256 << 20
MAX_ENTRIES = 1_000_000

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Entry:
    """A tensor that has not been read: its shape and type, and how to get it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    """A CPU tensor; a view of the mapped file wherever nothing has to be computed."""
    release: Callable[[], None] = lambda: None
    """Lets the system take back the file's pages behind a view that is no longer needed."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def cast(self, dtype: torch.dtype | None) -> Entry:
        """The same tensor in `dtype`; whole numbers and None leave it as it is."""
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return Entry(self.shape, dtype, lambda: to_dtype(self.load(), dtype))


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors, with its header read and its data left where it is."""

    path: Path
    format: str
    """`safetensors`, `torch archive`, `torch pickle`, or `shards`."""
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """safetensors' own, or a pickle's plain values beside the tensors."""
    notes: tuple[str, ...] = ()
    """What the file holds that is left aside, in words."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {key: entry.dtype for key, entry in self.entries.items()}

    def read(self, key: str) -> Tensor:
        """The tensor of that name. Raises DanqingError if there is none."""
        if key not in self.entries:
            raise DanqingError(f"{self.path}: has no tensor '{key}'")
        return self.entries[key].load()


def open_file(path: Path | str) -> TensorFile:
    """Open a file of tensors, whatever it is called.

    Formats: safetensors (8 bytes of header length, JSON header, data); torch's zip archives (since 1.6) and
    plain pickles (before), both through an unpickler that cannot run anything.
    Raises DanqingError, naming the file: missing, truncated, lying about itself, unsafe, or not a model at all.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # private and writable, so that torch takes it without a warning; the file itself is never changed
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
    except FileNotFoundError as error:
        raise DanqingError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DanqingError(f"{path}: is a folder without a model_index.json, not a model") from error
    except (OSError, ValueError) as error:
        raise DanqingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(data, bytes):
        raise DanqingError(f"{path}: is empty; download it again")
    head = bytes(data[:512])
    if head[8:9] == b"{" or (size == 8 and int.from_bytes(head, "little") < MAX_HEADER):
        return _open_safetensors(path, data)
    if head.startswith(b"PK\x03\x04"):
        return _open_archive(path, data)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _open_pickle(path, data)
    raise DanqingError(f"{path}: is not a model: {describe(head, size)}")


_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer of a few lines instead of the file it stands for; run `git lfs pull`",
    ),
    (b"GGUF", "a GGUF file, which this version does not read"),
    (b"ggjt", "a GGML file, which this version does not read"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x08\x00\x00\x00", "perhaps an ONNX or TensorFlow Lite model, which Danqing does not read"),
    (b"\x89HDF", "an HDF5 (Keras) model, which Danqing does not read"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
)


def describe(head: bytes, size: int) -> str:
    """What a file that is no model seems to be, in words, from its first bytes."""
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, probably a download that failed or needed a login; download it again"
    if text.startswith(b"<"):
        return "an XML document, probably an error from a download; download it again"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    if not head.strip(b"\0"):
        return f"{size} bytes that begin with zeros, probably a download that never finished; download it again"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return f"a text that begins '{head[:40].decode('ascii').splitlines()[0]}'"
    return f"{size} bytes of no format that Danqing knows (safetensors, or torch's .ckpt, .pt, .pth, .bin)"


# --- safetensors ------------------------------------------------------------------------------------------------------


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(n for n in names if names.count(n) > 1)[:80]}' stands twice")
    return result


def _header(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    size, (length,) = len(data), struct.unpack("<Q", data[:8])
    if length > MAX_HEADER or length < 2:
        raise DanqingError(f"{path}: claims a header of {length} bytes, which no safetensors file has; it is damaged")
    if 8 + length > size:
        raise DanqingError(f"{path}: cut short: its header is {length} bytes long, the file {size}; download it again")
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise DanqingError(f"{path}: damaged safetensors header: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise DanqingError(f"{path}: damaged safetensors header: it is no table of names")
    return header, 8 + length


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _row(path: Path, name: str, row: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one line of a safetensors header. Raises DanqingError."""

    def fail(why: str) -> DanqingError:
        return DanqingError(f"{path}: damaged safetensors header: tensor '{name[:120]}' {why}")

    if not isinstance(row, dict):
        raise fail("is not described")
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise fail(f"is of type {str(dtype)[:40]}, which Danqing does not know")
    if not _whole_numbers(shape) or len(shape) > pickles.MAX_DIMENSIONS:
        raise fail(f"has shape {str(shape)[:80]}")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"has offsets {str(offsets)[:80]}")
    kind = SAFETENSORS_DTYPES[dtype]
    if math.prod(shape) * kind.itemsize != offsets[1] - offsets[0]:
        raise fail(f"of shape {shape} and type {dtype} is said to take {offsets[1] - offsets[0]} bytes")
    return kind, tuple(shape), offsets[0], offsets[1]


def _open_safetensors(path: Path, data: mmap.mmap) -> TensorFile:
    """Format: https://github.com/huggingface/safetensors (header checks as its reference reader makes them)."""
    header, start = _header(path, data)
    metadata = header.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DanqingError(f"{path}: damaged safetensors header: its metadata are not texts")
    rows = {name: _row(path, name, row) for name, row in header.items()}
    reached, before = 0, "the header"
    for name, (_, _, begin, end) in sorted(rows.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            trouble = "overlaps" if begin < reached else "leaves a hole after"
            raise DanqingError(f"{path}: damaged safetensors header: tensor '{name[:120]}' {trouble} {before[:120]}")
        reached, before = end, f"'{name}'"
    present = len(data) - start
    if present < reached:
        raise DanqingError(
            f"{path}: cut short: its header promises {reached} bytes of tensors, {present} are there; download it again"
        )
    if present > reached:
        raise DanqingError(f"{path}: damaged: {present - reached} bytes follow the last tensor")
    entries = {
        name: Entry(shape, dtype, _slice(data, start + begin, dtype, shape), _forget(data, start + begin, start + end))
        for name, (dtype, shape, begin, end) in rows.items()
    }
    return TensorFile(path, "safetensors", entries, metadata)


def _forget(data: mmap.mmap, begin: int, end: int) -> Callable[[], None]:
    """Takes the whole pages in [begin, end) out of the process; they are read anew from the file if asked for."""
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED") and last > first:
            data.madvise(mmap.MADV_DONTNEED, first, last - first)

    return release


def _slice(data: mmap.mmap, at: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """A reader of the tensor that starts at byte `at`: a view, unless its address does not suit its type."""

    def load() -> Tensor:
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if at % dtype.itemsize:
            raw = torch.frombuffer(data, dtype=torch.uint8, count=count * dtype.itemsize, offset=at)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(data, dtype=dtype, count=count, offset=at).view(shape)

    return load


# --- torch's archives and pickles -------------------------------------------------------------------------------------


def _zip_places(path: Path, data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Entry name -> (offset, length) of its bytes. Only stored entries, which is how torch writes."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(io.BufferedReader(_Raw(data))) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError, EOFError) as error:
        raise DanqingError(
            f"{path}: a torch archive that is cut short or damaged ({error}); download it again"
        ) from error
    for info in infos:
        if info.filename in places:
            raise DanqingError(f"{path}: damaged archive: '{info.filename[:80]}' stands twice")
        at = info.header_offset
        if data[at : at + 4] != b"PK\x03\x04" or at + 30 > len(data):
            raise DanqingError(f"{path}: damaged archive: '{info.filename[:80]}' is not where its index says")
        name_length, extra_length = struct.unpack("<HH", data[at + 26 : at + 30])
        begin = at + 30 + name_length + extra_length
        if begin + info.compress_size > len(data):
            raise DanqingError(f"{path}: cut short: '{info.filename[:80]}' ends beyond the end of the file")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size:
            places[info.filename] = (begin, info.file_size)
    return places


class _Raw(io.RawIOBase):
    """A mapped file as a readable stream, without a copy."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, len(self.data))[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        part = self.data[self.at : self.at + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


def _open_archive(path: Path, data: mmap.mmap) -> TensorFile:
    """torch.save since 1.6: a zip of NAME/data.pkl, NAME/data/KEY for each storage, NAME/byteorder."""
    places = _zip_places(path, data)
    pickle = next((name for name in places if name == "data.pkl" or name.endswith("/data.pkl")), None)
    if pickle is None:
        held = ", ".join(sorted(places)[:3]) or "nothing, or only compressed files"
        raise DanqingError(f"{path}: is not a model: a zip archive that holds {held}; unpack it first")
    prefix = pickle[: -len("data.pkl")]
    if f"{prefix}constants.pkl" in places or f"{prefix}code/" in places:
        raise DanqingError(f"{path}: is a TorchScript program, not a file of weights")
    at, length = places[pickle]
    if length > MAX_PICKLE:
        raise DanqingError(f"{path}: its pickle is {length} bytes long; no checkpoint has more than {MAX_PICKLE}")
    order = places.get(f"{prefix}byteorder")
    swap = order is not None and bytes(data[order[0] : order[0] + order[1]]).strip() == b"big"
    tree = pickles.read(io.BytesIO(data[at : at + length]), str(path))

    def place(storage: Storage) -> int:
        if f"{prefix}data/{storage.key}" not in places:
            raise DanqingError(f"{path}: damaged: storage '{storage.key[:80]}' is missing from the archive")
        begin, size = places[f"{prefix}data/{storage.key}"]
        if size != storage.nbytes:
            raise DanqingError(
                f"{path}: damaged: storage '{storage.key[:80]}' is said to take {storage.nbytes} bytes and takes {size}"
            )
        return begin

    return _from_tree(path, "torch archive", tree, data, place, swap)


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def _open_pickle(path: Path, data: mmap.mmap) -> TensorFile:
    """torch.save before 1.6: five pickles (magic, protocol, system, object, storage keys), then each storage as
    its count of numbers (int64) and its numbers."""
    stream = io.BytesIO(data[:MAX_PICKLE])
    if pickles.read(stream, str(path)) != _LEGACY_MAGIC:
        raise DanqingError(f"{path}: is not a model: a pickle that torch did not write")
    if pickles.read(stream, str(path)) != _LEGACY_PROTOCOL:
        raise DanqingError(f"{path}: written by a version of torch that Danqing does not know")
    system = pickles.read(stream, str(path))
    swap = isinstance(system, dict) and system.get("little_endian") is False
    tree = pickles.read(stream, str(path))
    keys = pickles.read(stream, str(path))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DanqingError(f"{path}: damaged: its list of storages is none")
    sizes = {storage.key: storage for storage in _storages(tree)}
    places: dict[str, int] = {}
    at = stream.tell()
    for key in keys:
        if key not in sizes:
            raise DanqingError(f"{path}: damaged: storage '{key[:80]}' belongs to no tensor")
        count = int.from_bytes(data[at : at + 8], "big" if swap else "little")
        end = at + 8 + sizes[key].nbytes
        if count != sizes[key].numel or end > len(data):
            raise DanqingError(f"{path}: cut short or damaged in storage '{key[:80]}'; download it again")
        places[key], at = at + 8, end

    def place(storage: Storage) -> int:
        if storage.key not in places or sizes[storage.key] != storage:
            raise DanqingError(f"{path}: damaged: storage '{storage.key[:80]}' is missing")
        return places[storage.key]

    return _from_tree(path, "torch pickle", tree, data, place, swap)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that hangs in nested dictionaries, lists and tuples.

    A value may be reached by several ways, and lists of lists of the same list by more ways than can be walked:
    everything passed is counted. Raises Malformed for too deep or too much.
    """
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    count = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        count += 1
        if depth > 32 or count > MAX_ENTRIES:
            raise pickles.Malformed(f"it is nested more than 32 deep, or holds more than {MAX_ENTRIES} values")
        if not isinstance(value, (dict, list, tuple)):
            yield prefix, value
            continue
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        if len(waiting) + len(pairs) > MAX_ENTRIES:
            raise pickles.Malformed(f"it holds more than {MAX_ENTRIES} values")
        waiting += [(f"{prefix}.{key}" if prefix else str(key), inner, depth + 1) for key, inner in reversed(pairs)]


def _storages(tree: Any) -> Iterator[Storage]:
    try:
        yield from (value.storage for _, value in _leaves(tree) if isinstance(value, PickledTensor))
    except pickles.Malformed:
        return  # said, with the file's name, where the tree is walked for its tensors


WRAPPERS = ("state_dict", "model_state_dict", "module", "model", "params_ema", "params", "generator", "net", "ema")
"""Keys under which training programs put the weights, first come first served."""


def _has_tensors(tree: Any) -> bool:
    return isinstance(tree, dict) and any(isinstance(value, (PickledTensor, PickledArray)) for value in tree.values())


def _unwrapped(tree: Any) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """(weights, what is left aside, plain values) of a training program's nest of dictionaries."""
    left: list[str] = []
    plain: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(tree, dict) or _has_tensors(tree):
            break
        inner = next((key for key in WRAPPERS if isinstance(tree.get(key), dict) and tree[key]), None)
        if inner is None:
            break
        for key, value in tree.items():
            if isinstance(value, (str, int, float, bool)):
                plain[str(key)] = value
            elif key != inner:
                left.append(str(key))
        tree = tree[inner]
    return tree, tuple(left), plain


def _from_tree(
    path: Path, kind: str, tree: Any, data: mmap.mmap, place: Callable[[Storage], int], swap: bool
) -> TensorFile:
    if isinstance(tree, (PickledTensor, PickledArray)):
        tree = {"tensor": tree}
    weights, left, plain = _unwrapped(tree)
    entries: dict[str, Entry] = {}
    try:
        for name, value in _leaves(weights):
            if isinstance(value, PickledTensor):
                entries[_utf8(name)] = _lazy(value, data, place(value.storage), swap)
            elif isinstance(value, PickledArray):
                entries[_utf8(name)] = Entry(value.shape, value.dtype, _array(value))
            elif isinstance(value, (str, int, float, bool)):
                plain[name] = value
    except (pickles.Malformed, RecursionError) as error:
        raise DanqingError(f"{path}: damaged pickle: {error}") from error
    if not entries:
        raise DanqingError(f"{path}: is not a model: a pickle without tensors")
    metadata = {_utf8(key): _utf8(str(value)[:100_000]) for key, value in plain.items()}
    return TensorFile(path, kind, entries, metadata, tuple(f"left aside: {_utf8(name)}" for name in left))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _array(value: PickledArray) -> Callable[[], Tensor]:
    if not value.data:
        return lambda: torch.empty(value.shape, dtype=value.dtype)
    return lambda: torch.frombuffer(bytearray(value.data), dtype=value.dtype).view(value.shape)


def _lazy(tensor: PickledTensor, data: mmap.mmap, begin: int, swap: bool) -> Entry:
    storage, size = tensor.storage, tensor.dtype.itemsize
    whole = _slice(data, begin, tensor.dtype, (storage.nbytes // size,))

    def load() -> Tensor:
        flat = whole()
        if swap and size > 1:
            flat = flat.clone().view(torch.uint8).view(-1, size).flip(1).contiguous().view(tensor.dtype).view(-1)
        return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)

    return Entry(tensor.shape, tensor.dtype, load, _forget(data, begin, begin + storage.nbytes))


# --- diffusers folders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A diffusers folder: `model_index.json` and one folder for each component."""

    path: Path
    index: Mapping[str, Any]
    components: Mapping[str, TensorFile]
    configs: Mapping[str, Mapping[str, Any]]
    """By folder name: `unet`, `vae`, `text_encoder`, `scheduler` ..., where there is a configuration."""
    leftover: TensorFile | None = None
    """Danqing's own: tensors of a single file that have no place in the folders."""

    @property
    def tokenizers(self) -> dict[str, Path]:
        """Text encoder -> the folder of the tokenizer that comes with it."""
        pairs = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        return {encoder: self.path / name for encoder, name in pairs.items() if (self.path / name).is_dir()}


_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DanqingError for anything else."""
    try:
        if path.stat().st_size > MAX_HEADER:
            raise DanqingError(f"{path}: is too long to be a configuration")
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DanqingError(f"{path}: damaged JSON: {str(error)[:200]}") from error
    except OSError as error:
        raise DanqingError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise DanqingError(f"{path}: should hold a JSON object")
    return value


def open_component(folder: Path, variant: str | None = None) -> TensorFile | None:
    """The weights in one component's folder, or None if there are none.

    `.safetensors` before `.bin`; the plain file before its variants (`fp16`), unless `variant` names one;
    in shards where an index says so. Raises DanqingError for a variant or shard that is missing.
    """
    marks = (f".{variant}",) if variant else ("", ".fp16", ".bf16", ".non_ema")
    for mark in marks:
        for suffix in ("safetensors", "bin"):
            for stem in _STEMS:
                if (folder / f"{stem}{mark}.{suffix}").is_file():
                    return open_file(folder / f"{stem}{mark}.{suffix}")
                for index in (f"{stem}.{suffix}.index{mark}.json", f"{stem}{mark}.{suffix}.index.json"):
                    if (folder / index).is_file():
                        return _open_shards(folder / index)
    if variant and open_component(folder) is not None:
        raise DanqingError(f"{folder}: has no weights of variant '{variant}'")
    return None


def _open_shards(index: Path) -> TensorFile:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DanqingError(f"{index}: has no weight_map")
    if any(Path(name).name != name for name in names.values()):
        raise DanqingError(f"{index}: names a shard outside its own folder")
    shards = {name: open_file(index.parent / name) for name in sorted(set(names.values()))}
    for key, name in names.items():
        if key not in shards[name].entries:
            raise DanqingError(f"{index.parent / name}: has no tensor '{key[:120]}', which the index puts there")
    return TensorFile(index, "shards", {key: shards[name].entries[key] for key, name in names.items()})


COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def open_folder(path: Path | str, variant: str | None = None) -> Folder:
    """Open a diffusers folder. Raises DanqingError if it is none, or a file in it is damaged."""
    path = Path(path)
    if not (path / "model_index.json").is_file():
        raise DanqingError(f"{path}: is a folder without a model_index.json, not a model")
    vae = "vqvae" if (path / "vqvae").is_dir() else "vae"  # diffusers' LDMSuperResolutionPipeline
    found = {name: folder for name in COMPONENTS if (folder := path / (vae if name == "vae" else name)).is_dir()}
    opened = {name: open_component(folder, variant) for name, folder in found.items()}
    configs = {
        "vae" if folder.name == vae else folder.name: read_json(file)
        for folder in sorted(path.iterdir())
        for file in (folder / "config.json", folder / "scheduler_config.json")
        if file.is_file()
    }
    beside = path / "leftover.safetensors"
    return Folder(
        path,
        read_json(path / "model_index.json"),
        {name: file for name, file in opened.items() if file is not None},
        configs,
        open_file(beside) if beside.is_file() else None,
    )
