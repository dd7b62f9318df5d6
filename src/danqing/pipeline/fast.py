"""Whether a painting is by a model distilled to few steps: what was chosen, or what its files tell."""

from __future__ import annotations

from pathlib import Path

from danqing.adapters.fast import BY_NAME, Known, by_name, lora_known, named, recognised
from danqing.adapters.lora import name_of, open_adapter
from danqing.checkpoints.files import open_file, read_json
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline.adapters import find_lora, tags, wanted
from danqing.requests import Painting


def fast_model(request: Painting, model: Model) -> Known | None:
    """The request's own choice; else a LoRA of its prompt that is one; else what the checkpoint is.

    Raises DanqingError where a U-Net with a guidance embedding was chosen, and this one has none.
    """
    if request.fast == "none":
        return None
    loras = _loras(request)
    if request.fast is None:
        return next((found for _, found in loras if found), None) or _of_checkpoint(model)
    row = BY_NAME[request.fast]
    if row.embeds and not model.family.denoiser.guidance_width:
        raise DanqingError("fast: lcm is for U-Nets with a guidance embedding, which this one lacks; choose lcm-lora")
    counts = (named(row, name) for name in (*(name for name, _ in loras), model.name))
    known = next((each for each in counts if each.exact or each.row != row), Known(row, ""))
    return Known(known.row, "you", known.exact, not any(found and found.row.name == row.name for _, found in loras))


def _loras(request: Painting) -> list[tuple[str, Known | None]]:
    """The names of the prompt's LoRAs that are there and change the U-Net, and which fast model each is."""
    out = []
    for tag in tags(request.prompt, request):
        try:
            want = wanted(tag, request.steps or 1, lambda line: None)
            if not want.name or not want.unet:
                continue
            file = open_adapter(find_lora(want.name))
        except DanqingError:
            continue  # said where it is applied
        out.append((name_of(file), lora_known(name_of(file), file.metadata)))
    return out


def _of_checkpoint(model: Model) -> Known | None:
    metadata: dict[str, str] = {}
    scheduler: dict[str, object] = {}
    path = Path(model.path) if model.path else None
    if path is not None and path.is_dir():
        config = path / "scheduler" / "scheduler_config.json"
        scheduler = dict(read_json(config)) if config.is_file() else {}
    elif path is not None and path.is_file() and path.suffix == ".safetensors":
        metadata = dict(open_file(path).metadata)
    found = recognised(model.name, metadata, model.family.denoiser.guidance_width, scheduler)
    if found is None and (found := by_name(model.family.name)) is not None:
        found = Known(found.row, "its family", checkpoint=True)
    return found
