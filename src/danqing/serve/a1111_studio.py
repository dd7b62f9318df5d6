"""What all routes of AUTOMATIC1111's API share. No torch: the studio is there before that is loaded."""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastapi import HTTPException
from PIL import Image

from danqing.serve.a1111_options import Fields, Options
from danqing.serve.a1111_tasks import Tasks
from danqing.serve.engine import Engine

Fetch = Callable[[str], str]
"""The data URL of the picture at an http(s) URL; raises HTTPException where that is not allowed."""


def late(module: str, name: str) -> Callable[..., Any]:
    """A function of one of this room's modules, which is imported when it is first called."""

    def call(*args: Any) -> Any:
        return getattr(import_module(f"danqing.serve.{module}"), name)(*args)

    return call


@dataclass(frozen=True, eq=False)
class Studio:
    """The engine, and what the API keeps besides."""

    engine: Engine
    options: Options
    fetch: Fetch
    tasks: Tasks

    def opened(self, encoded_picture: str) -> str:
        """A body's picture as a data URL."""
        return data_url(encoded_picture, self.fetch)


def data_url(encoded: str, fetch: Fetch) -> str:
    """A picture as a body gives it -> its data URL. What is neither base64 nor a URL is refused: it is never a path."""
    if encoded.startswith(("http://", "https://")):
        return fetch(encoded)
    _head, comma, data = encoded.partition(",") if encoded.startswith("data:") else ("", "", encoded)
    if (encoded.startswith("data:") and not comma) or not data.strip():
        raise HTTPException(400, "Invalid encoded image")
    try:
        plain = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, "Invalid encoded image") from None
    return "data:image/png;base64," + base64.b64encode(plain).decode()


def progress(studio: Studio, skip_current_image: bool) -> Fields:
    """The answer to progress: nothing is painted where `progress` is 0 and `job_count` too."""
    engine = studio.engine
    options = studio.options.all()
    now = engine.progress(preview=not skip_current_image and bool(options["live_previews_enable"]))
    state: Fields = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if now.job is None:
        state["job_count"] = engine.store.counts()["queued"]
        return {
            "progress": 0.0,
            "eta_relative": 0.0,
            "state": state,
            "current_image": None,
            "textinfo": now.text or None,
        }
    job = engine.job(now.job)
    size = max(int(job.request.get("batch_size") or 1), 1)
    state |= {
        "job": f"{job.kind} {job.id}",
        "job_count": max(-(-job.total // size), 1),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.started or job.created)),
        "job_no": now.picture // size,
        "sampling_step": now.step,
        "sampling_steps": now.steps,
    }
    return {
        "progress": min(max(now.share, 0.01), 1.0),
        "eta_relative": now.left or 0.0,
        "state": state,
        "current_image": _png(now.preview) if now.preview else None,
        "textinfo": now.text or None,
    }


def _png(image: Image.Image) -> str:
    """In base64; what is asked for every second is not to take long."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode()
