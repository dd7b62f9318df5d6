"""Pictures that come in by the page: looked at before Gradio opens them, and never fetched from elsewhere."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from danqing.errors import DanqingError
from danqing.serve.accept import Rules, check_picture
from danqing.serve.page_errors import explained
from danqing.serve.page_texts import Language

SESSIONS = 32
"""Open pages that are remembered: Gradio keeps a copy of all components' settings for each, and of those that left too."""


def guarded(page: gr.Blocks, folder: Path, rules: Rules, language: Language) -> gr.Blocks:
    """The page, whose handlers get pictures that were uploaded to `folder` and that `check_picture` takes, and no others.

    Gradio by itself fetches a picture whose path is a URL, and opens one of any size. This is done to the page, for what
    is done to a component ends when a session changes it: Gradio makes it anew then.
    """
    page.state_session_capacity = SESSIONS
    plain = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        try:
            await asyncio.to_thread(_look, block_fn.inputs, inputs, state, folder.resolve(), rules)
        except DanqingError as error:
            raise gr.Error(html.escape(explained(str(error), language)), print_exception=False) from None
        return await plain(block_fn, inputs, state, explicit_call)

    page.preprocess_data = preprocess_data  # type: ignore[method-assign]
    return page


def _look(components: Sequence[Any], inputs: Sequence[Any], state: Any, folder: Path, rules: Rules) -> None:
    """Raises DanqingError for a picture of the inputs that is none, is too large or was not uploaded."""
    for component, value in zip(components, inputs):
        for path in _paths(value):
            check_picture(_uploaded(path, folder), "image", rules)
        if isinstance(value, Mapping) and isinstance(value.get("id"), str):  # of an editor, whose pictures came before
            holder = state[component._id] if state is not None and component._id in state else component
            for data in _blobs(getattr(holder, "blob_storage", {}).get(value["id"])):
                check_picture(data, "image", rules)


def _uploaded(path: str, folder: Path) -> bytes:
    """What is in a file of `folder`. Raises DanqingError for any other, and for a URL."""
    try:
        if Path(path).resolve().is_relative_to(folder):
            return Path(path).read_bytes()
    except (OSError, ValueError):  # it is gone, or a name that is no path at all
        pass
    raise DanqingError("image: was not uploaded, or is not there any more; give the picture again")


def _paths(value: Any) -> Iterator[str]:
    """All paths of files in a handler's input."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for each in value.values():
            yield from _paths(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)


def _blobs(sent: Any) -> Iterator[bytes]:
    for data in (getattr(sent, "background", None), getattr(sent, "composite", None), *(getattr(sent, "layers", ()))):
        if data is not None:
            yield data
