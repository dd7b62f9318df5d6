"""Networks in ONNX files, by the library onnxruntime (the extra `[detect]`). Such files hold no code."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from danqing.errors import DanqingError


def open_session(path: Path, name: str) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; `name` is the field that asked for it, which messages begin with.

    Raises DanqingError where onnxruntime is missing, or the file cannot be read.
    """
    try:
        runtime: Any = import_module("onnxruntime")
    except ImportError:
        raise DanqingError(f"{name}: needs the extra [detect]; install danqing[detect]") from None
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        raise DanqingError(f"{name}: '{path}' cannot be read: {str(error).splitlines()[0]}") from None
