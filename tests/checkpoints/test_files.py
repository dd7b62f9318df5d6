"""Opening files by content: safetensors, torch's two formats, shards, and everything that is no model."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danqing.checkpoints.files import SAFETENSORS_DTYPES, Entry, open_component, open_file
from danqing.checkpoints.write import beside, write_safetensors
from danqing.errors import DanqingError

QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def row(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    data = torch.randint(0, 2 if dtype == torch.bool else 100, shape)
    return data.to(dtype)


@QUIET
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=20).filter(lambda s: s != "__metadata__"),
            st.sampled_from([d for n, d in SAFETENSORS_DTYPES.items() if not n.startswith("C")]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=6,
        unique_by=lambda item: item[0],
    ),
    st.dictionaries(st.text(max_size=10).filter(lambda s: s != "format"), st.text(max_size=10), max_size=3),
)
def test_what_we_write_the_reference_reads_and_what_it_writes_we_read(tmp_path: Path, rows, metadata) -> None:
    tensors = {name: random_tensor(dtype, tuple(shape)) for name, dtype, shape in rows}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_safetensors(ours, {k: Entry(tuple(t.shape), t.dtype, lambda t=t: t) for k, t in tensors.items()}, metadata)
    safetensors.torch.save_file(tensors, theirs, {"format": "pt", **metadata})
    reference = safetensors.torch.load_file(ours)
    for path in (ours, theirs):
        file = open_file(path)
        assert dict(file.metadata) == {"format": "pt", **metadata}
        assert file.entries.keys() == tensors.keys() == reference.keys()
        for key, tensor in tensors.items():
            read = file.read(key)
            assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype) == (file.shapes[key], file.dtypes[key])
            assert read.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes() if tensor.dtype not in (
                torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
            ) else torch.equal(read.float(), tensor.float())  # fmt: skip
            assert torch.equal(reference[key].float(), tensor.float())


@QUIET
@given(st.binary(max_size=300), st.integers(0, 2**64 - 1) | st.integers(0, 400))
def test_any_bytes_behind_a_length_are_a_file_or_an_error(tmp_path: Path, body: bytes, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + body)
    try:
        file = open_file(path)
    except DanqingError as error:
        line = str(error)
        assert str(path) in line and "\n" not in line  # noqa: PT018
    else:
        assert not file.entries


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@QUIET
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=4),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "U8", "Q9"]) | json_values,
                "shape": st.lists(st.integers(-1, 2**40), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
            },
        )
        | json_values,
        max_size=4,
    ),
    st.binary(max_size=64),
)
def test_any_header_is_a_file_whose_tensors_read_or_an_error(tmp_path: Path, header, data: bytes) -> None:
    path = raw(tmp_path / "x", header, data)
    try:
        file = open_file(path)
    except DanqingError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        for key in file.entries:
            assert file.read(key).shape == file.shapes[key]


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        ({"a": row(0, 16)}, b"\0" * 12, "cut short: its header promises 16 bytes of tensors, 12 are there"),
        ({"a": row(0, 16)}, b"\0" * 20, "4 bytes follow the last tensor"),
        ({"a": row(0, 16), "b": row(8, 24)}, b"\0" * 24, "'b' overlaps 'a'"),
        ({"a": row(0, 16), "b": row(20, 24)}, b"\0" * 24, "'b' leaves a hole after 'a'"),
        ({"a": row(4, 16)}, b"\0" * 16, "'a' leaves a hole after the header"),
        ({"a": row(0, 16, [5])}, b"\0" * 16, "is said to take 16 bytes"),
        ({"a": row(0, 16, [-4])}, b"\0" * 16, "has shape"),
        ({"a": row(0, 16, [2**40, 2**40, 0])}, b"\0" * 16, "is said to take"),
        ({"a": row(16, 0, [4])}, b"\0" * 16, "has offsets"),
        ({"a": row(0, 16, dtype="F7")}, b"\0" * 16, "is of type F7"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4, "has shape"),
        ({"a": 3}, b"", "is not described"),
        ([1, 2], b"", "not a model|no table"),
        ({"__metadata__": {"a": 1}}, b"", "metadata are not texts"),
        (b'{"a":1,"a":2}', b"", "stands twice"),
        (b'{"a":', b"", "damaged safetensors header"),
        (b"{\xff\xfe}", b"", "damaged safetensors header"),
        (b'{"a":' + b"[" * 100_000 + b"}", b"", "damaged safetensors header"),
    ],
)
def test_headers_that_lie(header, data: bytes, word: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", header, data)
    with pytest.raises(DanqingError, match=word) as caught:
        open_file(path)
    assert str(path) in str(caught.value)


def test_header_lengths_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", 1000) + b'{"a":')
    with pytest.raises(DanqingError, match="its header is 1000 bytes long, the file 13"):
        open_file(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b'{"a":')
    with pytest.raises(DanqingError, match="claims a header of"):
        open_file(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>login</html>", "a web page"),
        (b"  \n<HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89PNG\r\n\x1a\n0000", "a PNG picture"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"\0" * 4096, "begin with zeros"),
        (b"Access denied\n", "begins 'Access denied'"),
        (b"\x93\x01\x02\x99" * 10, "of no format that Danqing knows"),
        (b"\x80\x02K\x05.", "a pickle that torch did not write"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model"])
def test_what_is_no_model_is_named(content: bytes, word: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DanqingError, match=word):
        open_file(tmp_path / name)


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DanqingError, match=r"a zip archive that holds readme\.txt"):
        open_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DanqingError, match="cut short or damaged"):
        open_file(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="no such file"):
        open_file(tmp_path / "none")
    with pytest.raises(DanqingError, match="a folder without"):
        open_file(tmp_path)


STATE = {
    "f32": torch.randn(3, 4),
    "f16": torch.randn(5).half(),
    "bf16": torch.randn(2, 2, 2).bfloat16(),
    "f8": torch.randn(6).to(torch.float8_e4m3fn),
    "turned": torch.randn(3, 4).T,
    "slice": torch.randn(10)[2:7:2],
    "scalar": torch.tensor(3.5),
    "none": torch.empty(0, 4),
    "whole": torch.arange(5),
    "yes": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "module", "model"])
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_both_of_torch_formats_read_as_torch_reads_them(
    zipped: bool, wrapper: str | None, name: str, tmp_path: Path
) -> None:
    shared = torch.randn(4)
    state = {**STATE, "twin": shared, "view": shared[1:3], **torch.nn.Linear(2, 2).state_dict()}
    if not zipped:
        state.pop("f8")  # torch itself cannot read these back
    torch.save(
        {wrapper: state, "global_step": 5} if wrapper else state,
        tmp_path / "reference.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    (tmp_path / name).write_bytes((tmp_path / "reference.ckpt").read_bytes())
    reference = torch.load(tmp_path / "reference.ckpt", weights_only=True)
    reference = reference[wrapper] if wrapper else reference
    file = open_file(tmp_path / name)
    assert file.entries.keys() == reference.keys()
    for key, tensor in reference.items():
        read = file.read(key)
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype) == (file.shapes[key], file.dtypes[key])
        assert torch.equal(read.float(), tensor.detach().float()), key
    assert file.metadata == ({"global_step": "5"} if wrapper else {})


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(64)}, tmp_path / "a")
    torch.save({"a": torch.zeros(64)}, tmp_path / "b")
    for name in "ab":
        file = open_file(tmp_path / name)
        first, again = file.read("a"), file.read("a")
        assert first.data_ptr() == again.data_ptr()
        first[0] = 1.0  # private: the file is not written to
        assert open_file(tmp_path / name).read("a")[0] == 0.0


def test_big_endian_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, 2.0])}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(tmp_path / "b", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("byteorder"):
                data = b"big"
            if info.filename.endswith("data/0"):
                data = struct.pack(">2f", 1.0, 2.0)
            new.writestr(info.filename, data)
    assert open_file(tmp_path / "b").read("a").tolist() == [1.0, 2.0]


def test_components_prefer_safetensors_and_plain_weights(tmp_path: Path) -> None:
    assert open_component(tmp_path) is None
    torch.save({"a": torch.tensor(1.0)}, tmp_path / "diffusion_pytorch_model.bin")
    assert open_component(tmp_path).read("a") == 1
    safetensors.torch.save_file({"a": torch.tensor(2.0)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert open_component(tmp_path).read("a") == 1
    assert open_component(tmp_path, "fp16").read("a") == 2
    safetensors.torch.save_file({"a": torch.tensor(3.0)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert open_component(tmp_path).read("a") == 3
    with pytest.raises(DanqingError, match="variant 'bf16'"):
        open_component(tmp_path, "bf16")


def test_shards(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.tensor(1.0)}, tmp_path / "one.safetensors")
    safetensors.torch.save_file({"b": torch.tensor(2.0)}, tmp_path / "two.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"

    def write(**names: str) -> None:
        index.write_text(json.dumps({"weight_map": names}))

    write(a="one.safetensors", b="two.safetensors")
    assert {key: open_component(tmp_path).read(key).item() for key in "ab"} == {"a": 1, "b": 2}
    for names, word in (
        ({"a": "two.safetensors"}, "has no tensor 'a'"),
        ({"a": "three.safetensors"}, "no such file"),
        ({"a": "../one.safetensors"}, "outside its own folder"),
    ):
        write(**names)
        with pytest.raises(DanqingError, match=word):
            open_component(tmp_path)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="the disk is full"), beside(tmp_path / "a", 1 << 60):
        pass
    with pytest.raises(DanqingError, match="the disk is full"), beside(tmp_path / "a", 0) as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "a", 0) as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DanqingError, match="not empty"), beside(tmp_path / "full", 0):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
