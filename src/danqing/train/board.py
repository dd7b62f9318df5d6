"""TensorBoard's event files, written at once and in this thread, so that a full disk is told where it happens."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


class Board:
    """A run's scalars and pictures for `tensorboard --logdir`."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin a file in `folder`; what earlier ones say of updates after `step` is to be forgotten.

        Raises OSError: a full disk, a folder that cannot be written.
        """
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{os.getpid()}.{now % 10**9:09}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values at an update. Raises OSError."""
        rows = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self._summary(value=rows))

    def picture(self, step: int, sheet: Image.Image) -> None:
        """The sample sheet of an update. Raises OSError."""
        packed = io.BytesIO()
        sheet.convert("RGB").save(packed, "PNG")
        image = self._summary.Image(
            width=sheet.width, height=sheet.height, colorspace=3, encoded_image_string=packed.getvalue()
        )
        row = self._summary.Value(tag="samples", image=image)
        self._write(step=step, summary=self._summary(value=[row]))

    def close(self) -> None:
        self._file.close()
