"""The model doctor: what a file is and what is wrong with it, from its headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danqing.checkpoints import hashes
from danqing.checkpoints.checkpoint import Checkpoint, networks, open_checkpoint, problems
from danqing.checkpoints.files import Entry, open_component, open_file
from danqing.checkpoints.recognise import CHECKPOINTS, FUTURE, kind_of
from danqing.errors import DanqingError


@dataclass(frozen=True)
class Report:
    """What `inspect` found. Every field is JSON; what does not apply is None or empty."""

    path: str
    ok: bool
    """Whether Danqing can use it as what it is."""
    kind: str
    """`checkpoint`, `lora`, `autoencoder` ...; `damaged` for a file that cannot be read as anything."""
    title: str
    format: str | None = None
    bytes: int = 0
    family: str | None = None
    family_title: str | None = None
    variant: str | None = None
    """`base`, `inpaint`, `pix2pix`, `upscale`."""
    prediction: str | None = None
    prediction_known_by: str | None = None
    zero_terminal_snr: bool | None = None
    layout: str | None = None
    precision: dict[str, str] = field(default_factory=dict)
    """Component -> its tensors' types, the commonest first."""
    tensors: int = 0
    parameters: int = 0
    baked_vae: bool | None = None
    ema: bool | None = None
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()
    """Tensors that are no part of the networks and do no harm."""
    trouble: tuple[str, ...] = ()
    """What is wrong, each in one line."""
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect(path: Path | str, *, with_hashes: bool = False) -> Report:
    """Look at a model file or diffusers folder and say what it is; nothing is loaded and nothing is raised for a file
    that is damaged or no model: the report says so. Raises DanqingError only if there is no such file.

    `with_hashes` reads the whole file for SHA-256, AUTOMATIC1111's two short hashes and, for safetensors, AutoV3.
    """
    path = Path(path)
    if not path.exists():
        raise DanqingError(f"{path}: no such file")
    report = _report(path)
    return _with(report, hashes=_hashes(path, report.format)) if with_hashes and path.is_file() else report


def _with(report: Report, **changes: Any) -> Report:
    return Report(**{**report.__dict__, **changes})


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _report(path: Path) -> Report:
    size = _size(path)
    try:
        if path.is_dir() and (path / "model_index.json").is_file():
            return _checkpoint(open_checkpoint(path), size)
        component = open_component(path) if path.is_dir() else None
        if path.is_dir() and component is None:
            raise DanqingError(f"{path}: is a folder without a model_index.json or a network's weights, not a model")
        file = component or open_file(path)
    except DanqingError as error:
        return Report(str(path), False, "damaged", "not a readable model", bytes=size, trouble=(str(error),))
    kind = kind_of(file.shapes)
    trouble: tuple[str, ...] = ()
    if kind.name in CHECKPOINTS:
        try:
            return _checkpoint(open_checkpoint(path), size)
        except DanqingError as error:
            trouble = (str(error),)
    elif kind.name in FUTURE or kind.name in ("unknown", "other"):
        trouble = (f"{path}: is {kind.title}, which this version does not support",)
    return Report(
        path=str(path),
        ok=not trouble,
        kind=kind.name,
        title=kind.title,
        format=file.format,
        bytes=size,
        precision={"all": _precision(file.entries)},
        tensors=len(file.entries),
        parameters=_parameters(file.entries),
        trouble=trouble,
        notes=file.notes,
        metadata=dict(file.metadata),
    )


def _checkpoint(found: Checkpoint, size: int) -> Report:
    family = found.family
    faults = problems(found.components, networks(family, str(found.path)), found.surplus)
    absent_vae = "vae" not in found.components
    missing = tuple(key for key in faults.missing if key != "the whole vae")
    ok = not (missing or faults.surplus or faults.misshaped)
    trouble = () if ok else (f"{found.path}: does not fit {family.title}: {faults}",)
    notes = found.notes + (("has no VAE of its own: give one by --vae",) if absent_vae else ())
    return Report(
        path=str(found.path),
        ok=ok,
        kind="checkpoint",
        title="a checkpoint",
        format=found.format,
        bytes=size,
        family=family.name,
        family_title=family.title,
        variant=family.variant,
        prediction=family.process.prediction,
        prediction_known_by=found.known_by,
        zero_terminal_snr=family.process.zero_terminal_snr,
        layout=found.layout,
        precision={name: _precision(entries) for name, entries in found.components.items()},
        tensors=sum(map(len, found.components.values())) + len(found.leftover),
        parameters=sum(map(_parameters, found.components.values())),
        baked_vae=not absent_vae,
        ema=found.has_ema,
        missing=missing,
        surplus=faults.surplus,
        misshaped=faults.misshaped,
        leftover=tuple(key for key in found.leftover if key not in found.surplus),
        trouble=trouble,
        notes=notes,
        metadata=dict(found.metadata),
    )


def _precision(entries: Mapping[str, Entry]) -> str:
    counts: Counter[str] = Counter()
    for entry in entries.values():
        counts[str(entry.dtype).removeprefix("torch.")] += entry.numel
    return ", ".join(name for name, _ in counts.most_common())


def _parameters(entries: Mapping[str, Entry]) -> int:
    return sum(entry.numel for entry in entries.values())


def _hashes(path: Path, format: str | None) -> dict[str, str]:
    whole = hashes.sha256(path)
    result = {"sha256": whole, "short": whole[:10], "legacy": hashes.legacy_hash(path)}
    return result | ({"autov3": hashes.addnet_hash(path)[:12]} if format == "safetensors" else {})
