"""A picture's metadata -> its request, whichever tool wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from danqing.errors import DanqingError
from danqing.metadata.comfyui import read_comfyui
from danqing.metadata.files import RECORD_KEY, PictureFile
from danqing.metadata.foreign import read_fooocus, read_invokeai, read_invokeai_2, read_novelai
from danqing.metadata.infotext import infotext, read_infotext
from danqing.metadata.told import Told, load_object
from danqing.request_parts import Reference
from danqing.requests import ResolvedRequest, kind_of

Texts = Mapping[str, str]


def read_record(text: str) -> ResolvedRequest:
    """Danqing's own JSON. Raises DanqingError where it is damaged, or of a later version that says more."""
    data = load_object(text, "the record")
    try:
        return ResolvedRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DanqingError(
            f"the record is damaged, or of another version of Danqing: {where}: {first['msg']}"
        ) from None


def _own(texts: Texts) -> Told:
    resolved = read_record(texts[RECORD_KEY])
    return Told(
        "Danqing", resolved.request, resolved.checkpoint, resolved.vae, resolved.others, resolved.notes, resolved
    )


def _readers(texts: Texts) -> Iterator[tuple[str, Callable[[], Told]]]:
    """(tool, how to read it) of each tool whose texts are there, the surest first."""
    if RECORD_KEY in texts:
        yield "Danqing", lambda: _own(texts)
    if "Comment" in texts and ("NovelAI" in texts.get("Software", "") or '"uc"' in texts["Comment"]):
        yield "NovelAI", lambda: read_novelai(texts)
    if "invokeai_metadata" in texts:
        yield "InvokeAI", lambda: read_invokeai(texts["invokeai_metadata"])
    if "sd-metadata" in texts:
        yield "InvokeAI", lambda: read_invokeai_2(texts["sd-metadata"])
    parameters = texts.get("parameters", "")
    if parameters.lstrip().startswith("{") and '"base_model"' in parameters:
        yield "Fooocus", lambda: read_fooocus(parameters)
    if "prompt" in texts:
        yield "ComfyUI", lambda: read_comfyui(texts["prompt"])
    if parameters:
        yield "AUTOMATIC1111", lambda: read_infotext(parameters)


def tell(file: PictureFile) -> Told:
    """How the picture was made.

    Where it carries several tools' texts, the surest that can be read is taken; Danqing's own record before all.
    Raises DanqingError where it carries none that can be read.
    """
    problems: list[str] = []
    for tool, read in _readers(file.texts):
        try:
            return read()
        except DanqingError as error:
            problems.append(f"{tool}: {error}")
    if problems:
        raise DanqingError(f"{file.path}: its metadata cannot be read: {'; '.join(problems)}")
    raise DanqingError(f"{file.path}: the picture does not say how it was made; it carries no metadata of a known tool")


def as_dict(told: Told) -> dict[str, Any]:
    """What is known, for programs: Danqing's record as it is, else tool, request, files and notes."""
    if told.resolved is not None:
        return {"tool": told.tool, **told.resolved.model_dump(mode="json", exclude_none=True)}
    files = {"checkpoint": told.checkpoint, "vae": told.vae}
    return {
        "tool": told.tool,
        "kind": kind_of(told.request),
        "request": told.request.model_dump(mode="json", exclude_unset=True),
        **{name: file.model_dump(exclude_none=True) for name, file in files.items() if file is not None},
        "others": {name: file.model_dump(exclude_none=True) for name, file in told.others.items()},
        "notes": list(told.notes),
    }


def as_infotext(told: Told) -> str:
    """The request as AUTOMATIC1111 would write it, of a picture that carries no infotext."""
    resolved = told.resolved or ResolvedRequest(
        request=told.request,
        family="",
        checkpoint=told.checkpoint or Reference(name=""),
        vae=told.vae,
        others=told.others,
    )
    return infotext(resolved)
