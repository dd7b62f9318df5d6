"""A model by name or path: found, recognised, loaded onto a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from danqing import checkpoints
from danqing.families import Model
from danqing.library.names import find
from danqing.library.settings import Settings, load_settings
from danqing.pipeline.placeholder import NOTICE, placeholder
from danqing.runtime.devices import pick_device, pick_dtype

Say = Callable[[str], None]


def load(
    name: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prediction: str | None = None,
    ema: bool = False,
    say: Say = print,
    settings: Settings | None = None,
) -> Model:
    """The model of that path or name, ready to paint; without a name the settings' default, else the bundled one.

    Any format: the family is recognised from the file. `dtype` auto is bfloat16 where the machine computes in it,
    else float32; `prediction` overrides what the file says of itself; `ema` takes its EMA weights.
    Raises DanqingError where the file is missing, is no checkpoint, or does not fit.
    """
    settings = settings or load_settings()
    target = pick_device(device or settings.device)
    precision = pick_dtype(dtype or settings.dtype, target)
    wanted = name or settings.default_model
    if wanted is None:
        say(NOTICE)
        return placeholder(target, precision)
    path = find(str(wanted), "checkpoint", settings).path
    return checkpoints.load(
        path,
        device=target,
        dtype=precision,
        prediction=prediction,
        vae=find(str(vae), "vae", settings).path if vae else None,
        ema=ema,
        channels_last=target.type != "mps",
    )
