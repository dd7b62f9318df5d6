"""What the machine is: the device and the precision that a name stands for."""

from __future__ import annotations

import torch

from danqing.errors import DanqingError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def pick_device(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a device; auto is the first of CUDA, MPS and CPU that is here.

    Raises DanqingError where the name is unknown or the device absent.
    """
    wanted = name.strip().lower()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    kind, _, number = wanted.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (number.isdigit() and kind == "cuda")):
        raise DanqingError(f"device: '{name}' is unknown; choose auto, cpu, cuda, cuda:1 (the second one) or mps")
    if kind == "mps" and not _has_mps():
        raise DanqingError("device: this machine or this torch has no MPS (Apple's GPU); choose cpu or auto")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DanqingError(f"device: there is no CUDA device, {_why_no_cuda()}; choose cpu or auto")
        if number and int(number) >= count:
            raise DanqingError(f"device: '{name}' is not here; the last CUDA device is cuda:{count - 1}")
    return torch.device(wanted)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32`, `bfloat16` or `float16` (fp32, bf16, fp16) as a precision for `device`.

    auto is bfloat16 on a CPU that multiplies in it (AVX512-BF16, AMX), float16 on MPS and on CUDA devices with fast
    and sound half precision (compute capability 7 and up, but the GTX 16 series makes NaN of it), else float32.
    Raises DanqingError for an unknown name.
    """
    wanted = name.strip().lower().removeprefix("torch.")
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted != "auto":
        raise DanqingError(f"dtype: '{name}' is unknown; choose auto, float32, bfloat16 or float16")
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if device.type == "cuda":
        sound = torch.cuda.get_device_capability(device) >= (7, 0)
        return torch.float16 if sound and "GTX 16" not in torch.cuda.get_device_name(device) else torch.float32
    return torch.float16


def widened(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or where that is float16 and `device` multiplies in bfloat16, whose range is float32's, that.

    CUDA devices do from compute capability 8 on. It is for networks whose values float16 cannot hold.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if able and dtype == torch.float16 else dtype


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16 matrices; without them float32 is faster."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        known = capabilities()
        return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    # torch before 2.12 tells only so
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and bool(check()) for check in checks)


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())


def _why_no_cuda() -> str:
    return "as this torch was built without it" if torch.version.cuda is None else "or its driver does not answer"
