import pytest
import torch

from danqing.errors import DanqingError
from danqing.runtime.devices import cpu_multiplies_bfloat16, pick_device, pick_dtype, widened


def test_a_named_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(" CPU ").type == "cpu"


@pytest.mark.parametrize(("cuda", "mps", "kind"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_fastest_that_is_here(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, kind: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == kind


def test_absent_devices_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, words in (("cuda", "no CUDA device"), ("cuda:1", "no CUDA device"), ("mps", "no MPS")):
        with pytest.raises(DanqingError, match=words) as error:
            pick_device(name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DanqingError, match="the last CUDA device is cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "mps:0"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(DanqingError, match="choose auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bfloat16", torch.bfloat16), ("BF16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_named_dtype(name: str, dtype: torch.dtype) -> None:
    assert pick_dtype(name, torch.device("cpu")) == dtype


def test_auto_dtype_follows_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert pick_dtype("auto", torch.device("cpu")) == dtype
    monkeypatch.setattr(torch.cpu, "get_capabilities", None, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert cpu_multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not cpu_multiplies_bfloat16()


@pytest.mark.parametrize(
    ("capability", "title", "dtype"),
    [
        ((8, 6), "NVIDIA GeForce RTX 3090", torch.float16),
        ((7, 5), "NVIDIA GeForce GTX 1660", torch.float32),
        ((6, 1), "NVIDIA GeForce GTX 1080", torch.float32),
    ],
)
def test_auto_dtype_follows_the_cuda_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], title: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: title)
    assert pick_dtype("auto", torch.device("cuda")) == dtype
    assert pick_dtype("auto", torch.device("mps")) == torch.float16


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(DanqingError, match="choose auto, float32"):
        pick_dtype("int8", torch.device("cpu"))


def test_what_overflows_float16_is_widened_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    for capability, dtype in (((8, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert widened(torch.float16, device) == dtype
        assert widened(torch.float32, device) == torch.float32
    assert widened(torch.float16, torch.device("cpu")) == torch.float16
