"""spandrel, imported where torchvision cannot be: three names stand in for it while the import lasts."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


class _InterpolationMode:
    BILINEAR = "bilinear"


def _absent(*_: object, **__: object) -> None:
    raise AssertionError("no test needs torchvision's functions")


def import_spandrel() -> None:
    """After this `import spandrel` and `import spandrel_extra_arches` work anywhere.

    The stand-in is gone again afterwards: transformers looks whether torchvision is there.
    """
    if "spandrel_extra_arches" in sys.modules:
        return
    before = {name: sys.modules.get(name) for name in _NAMES}
    stubs = {name: ModuleType(name) for name in _NAMES}
    vars(stubs[_NAMES[-1]]).update(InterpolationMode=_InterpolationMode, rotate=_absent, normalize=_absent)
    sys.modules.update(stubs)
    try:
        importlib.import_module("spandrel")
        importlib.import_module("spandrel_extra_arches")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
