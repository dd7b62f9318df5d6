"""Checkpoints in memory: those used last stay, as many as a budget of bytes allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from danqing.library.folders import Entry
from danqing.library.settings import Settings, load_settings

if TYPE_CHECKING:
    from danqing.families import Model
    from danqing.prompts.encode import Cache
    from danqing.serve.preview import Look

Key = tuple[str, str, int]
"""(path of the checkpoint, name of the autoencoder or nothing, when the checkpoint's file was written)."""


@dataclass(eq=False)
class Held:
    """A loaded checkpoint."""

    model: Model
    size: int
    """Bytes of its weights."""
    prompts: Cache = field(default_factory=dict)
    """Encoded prompts, which go with it."""
    look: Look | None = None
    """What previews are made by (`serve.preview`), once that is known."""


class ModelCache:
    """Models by name. Its methods may be called from any thread; loading is one at a time."""

    def __init__(
        self,
        budget: int | None = None,
        *,
        settings: Settings | None = None,
        device: str | None = None,
        dtype: str | None = None,
        engine: str | None = None,
        quantize: str | None = None,
        load: Callable[[str | None, str | None], Model] | None = None,
    ) -> None:
        """`budget` is in bytes of weights; None is no limit. The one in use is kept even where it is above.

        `load` (checkpoint, autoencoder) stands in for `pipeline.models.load` in tests.
        """
        self.budget = budget
        self.settings = settings or load_settings()
        self.device, self.dtype, self._load = device, dtype, load
        self.engine, self.quantize = engine, quantize
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._lock = threading.RLock()
        self._loading = threading.Lock()

    def check(self, name: str | None) -> Entry | None:
        """What `name` means; None is the default model. Raises DanqingError where there is none such."""
        name = name or self.settings.default_model
        if name is None or self._load is not None:
            return None
        from danqing.library.names import find  # torch comes with it, and the server answers before it is there

        return find(name, "checkpoint", self.settings)

    def get(self, name: str | None = None, vae: str | None = None) -> Held:
        """The model, loaded where it is not; others go until it fits. Raises DanqingError as `load` does."""
        entry = self.check(name)
        key = (str(entry.path) if entry is not None else name or "", vae or "", _written(entry))
        with self._loading:  # whoever asks what is in memory need not wait for it
            with self._lock:
                if key in self._held:
                    self._held.move_to_end(key)
                    return self._held[key]
                for other in [other for other in self._held if other[:2] == key[:2]]:
                    del self._held[other]  # its file was written anew
            if self.budget is not None:
                self._shrink(self.budget - _size_on_disk(entry), keep=0)
            held = self._loaded(name, vae)
            with self._lock:
                self._held[key] = held
            if self.budget is not None:
                self._shrink(self.budget, keep=1)
            return held

    def loaded(self) -> tuple[str, ...]:
        """The names of what is in memory, the one used last at the end."""
        with self._lock:
            return tuple(held.model.name or key[0] for key, held in self._held.items())

    @property
    def size(self) -> int:
        """Bytes of weights in memory."""
        with self._lock:
            return sum(held.size for held in self._held.values())

    def unload(self) -> None:
        """Let go of all; what is needed is loaded again."""
        with self._lock:
            self._held.clear()
        _release()

    def _shrink(self, budget: int, keep: int) -> None:
        """Let go of the oldest until the rest is within `budget`, or only `keep` are left."""
        dropped = False
        with self._lock:
            while len(self._held) > keep and self.size > budget:
                self._held.popitem(last=False)
                dropped = True
        if dropped:
            _release()

    def _loaded(self, name: str | None, vae: str | None) -> Held:
        from danqing.pipeline.models import load
        from danqing.runtime.memory import weight_bytes

        if self._load is not None:
            model = self._load(name, vae)
        else:
            model = load(
                name,
                vae=vae,
                device=self.device,
                dtype=self.dtype,
                memory=self.budget,
                engine=self.engine,
                quantize=self.quantize,
                settings=self.settings,
            )
        networks = [model.denoiser, model.autoencoder, *model.text_encoders.values()]
        return Held(model, weight_bytes(*networks))


def _written(entry: Entry | None) -> int:
    """When the checkpoint's file was written last, in nanoseconds; 0 where that is not known."""
    try:
        return 0 if entry is None else entry.path.stat().st_mtime_ns
    except OSError:
        return 0


def _size_on_disk(entry: Entry | None) -> int:
    """Bytes that loading will take, about: the file's, or those in a folder."""
    if entry is None or not entry.path.exists():
        return 0
    files = [entry.path] if entry.path.is_file() else [file for file in entry.path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _release() -> None:
    """Give freed memory back: Python's circles, and what the GPU's allocator keeps."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
