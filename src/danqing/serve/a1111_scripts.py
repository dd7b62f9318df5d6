"""All of AUTOMATIC1111's scripts that there are: found by their titles, applied, listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException

from danqing.requests import ImageToImage, Painting, TextToImage
from danqing.serve.a1111_alwayson import ALWAYS_ON
from danqing.serve.a1111_script import Arg, Script, Work, apply, script_values
from danqing.serve.a1111_selectable import SELECTABLE
from danqing.vocabulary import quoted

SCRIPTS: tuple[Script, ...] = (*ALWAYS_ON, *SELECTABLE)
"""In the order in which they are listed."""


def find_script(name: str, kind: type[Painting], alwayson: bool) -> Script:
    """The script of that title, in any case, on txt2img or img2img. Raises HTTPException as AUTOMATIC1111 does."""
    tab = TextToImage if issubclass(kind, TextToImage) else ImageToImage
    here = [script for script in SCRIPTS if tab in script.tabs]
    folded = name.strip().casefold()
    found = next((script for script in here if script.title.casefold() == folded), None)
    if found is None and alwayson and folded.startswith("dynamic prompts v"):  # its title says its version
        found = next(script for script in here if script.title == "Dynamic Prompts")
    if found is None:
        known = ", ".join(script.title for script in here if script.alwayson == alwayson)
        raise HTTPException(422, f"Script {quoted(name)} not found; there are {known}")
    if alwayson and not found.alwayson:
        raise HTTPException(422, "Cannot have a selectable script in the always on scripts params")
    return found


def apply_alwayson(work: Work, given: Mapping[str, Any]) -> None:
    """All of `alwayson_scripts`, whose values are {"args": [...]}. Raises HTTPException."""
    for name, value in given.items():
        script = find_script(name, work.kind, True)
        args = value.get("args", []) if isinstance(value, dict) else value
        if not isinstance(args, list):
            raise HTTPException(422, f"Script '{script.title}': its args should be a list, but they are {quoted(args)}")
        apply(script, work, script_values(script, args))


def script_info() -> list[dict[str, Any]]:
    """What /sdapi/v1/script-info answers."""
    rows = []
    for tab in (TextToImage, ImageToImage):
        for script in SCRIPTS:
            if tab in script.tabs:
                args = [{**vars(arg), "choices": _choices(arg)} for arg in script.args]
                rows.append(
                    {
                        "name": script.title.lower(),
                        "is_alwayson": script.alwayson,
                        "is_img2img": tab is ImageToImage,
                        "args": args,
                    }
                )
    return rows


def script_names(tab: type[Painting]) -> list[str]:
    """Titles in small letters, as AUTOMATIC1111 lists them."""
    return [script.title.lower() for script in SCRIPTS if tab in script.tabs]


def _choices(arg: Arg) -> list[str] | None:
    return None if arg.choices is None else list(arg.choices)
