"""OpenAI's routes for pictures, /v1/images/generations and /v1/images/edits, for programs that know only these.

Bodies and answers are those of OpenAI's API reference ("Images"); `seed`, `steps`, `cfg_scale` and `negative_prompt` may
be sent besides. What a body leaves out is the model's own.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException

from danqing.errors import DanqingError
from danqing.requests import ImageToImage, Inpaint, Painting, TextToImage, read
from danqing.serve.a1111_answers import shown
from danqing.serve.a1111_options import OPTIONS
from danqing.serve.a1111_studio import late
from danqing.serve.accept import NOT_JSON, check_picture
from danqing.serve.engine import Engine, QueueFull
from danqing.serve.settings import ServeSettings
from danqing.vocabulary import quoted

Fields = dict[str, Any]
WAITING = 1024
"""Requests that may wait for their pictures at once, each in a thread of its own."""
THEIRS = ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest")
"""OpenAI's own models, which programs name unasked: the default model stands for them."""
check_model, submitted, finished = (late("a1111_paint", name) for name in ("check_model", "submitted", "finished"))
_TYPES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


class Generation(BaseModel):
    """The body of generations, and the fields of edits."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        json_schema_extra={"examples": [{"prompt": "a red apple", "size": "128x128", "seed": 7}]},
    )

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: str | None = Field(None, description="WIDTHxHEIGHT; auto or unset is the model's default")
    response_format: Literal["url", "b64_json"] | None = Field(None, description="unset is both")
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    quality: str | None = Field(None, description="no effect; steps says how long a picture is painted")
    style: str | None = Field(None, description="no effect")
    moderation: str | None = Field(None, description="no effect")
    input_fidelity: str | None = Field(None, description="no effect")
    user: str | None = Field(None, description="no effect")
    stream: bool | None = False
    partial_images: int | None = None
    seed: int | None = None
    steps: int | None = None
    cfg_scale: Annotated[float, Field(allow_inf_nan=False)] | None = None
    negative_prompt: str = ""


class Problem(BaseModel):
    """An error in OpenAI's form."""

    error: dict[str, str | None]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Something in the body makes no sense"},
    404: {"model": Problem, "description": "A model that is not there"},
    429: {"model": Problem, "description": "Too many jobs wait"},
    503: {"model": Problem, "description": "The studio is ending"},
}


def problem(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    told = {"message": message, "type": kind, "param": param, "code": code}
    plain = {name: text and text.encode(errors="replace").decode() for name, text in told.items()}
    return JSONResponse({"error": plain}, status)


class Route(APIRoute):
    """Errors in OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, ValidationError) as error:
                if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):
                    return problem(400, NOT_JSON)
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"] if part != "body") or None
                return problem(400, f"{name or 'body'}: {first['msg']}", name)
            except AnyHTTPException as error:  # FastAPI raises both
                code = "model_not_found" if error.status_code == 404 else None
                return problem(error.status_code, str(error.detail), None, code)
            except QueueFull as error:
                return problem(429, str(error), code="rate_limit_exceeded")
            except DanqingError as error:
                return problem(400, str(error), str(error).partition(":")[0])

        return handler


def router(engine: Engine, settings: ServeSettings) -> APIRouter:
    """The routes over one engine."""
    routes = APIRouter(route_class=Route, tags=["OpenAI"], responses=ERRORS)
    limiter = anyio.CapacityLimiter(WAITING)

    @routes.post("/v1/images/generations")
    async def generations(body: Generation, request: Request) -> Fields:
        asked = read(TextToImage, _fields(body))
        return await anyio.to_thread.run_sync(_painted, engine, asked, body, str(request.base_url), limiter=limiter)

    @routes.post("/v1/images/edits", openapi_extra={"requestBody": _EDIT_BODY})
    async def edits(request: Request) -> Fields:
        form = await request.form(max_files=17, max_fields=64)
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        files: dict[str, list[bytes]] = {"image": [], "mask": []}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                plain = name.removesuffix("[]")
                if plain not in files:
                    raise HTTPException(400, f"{quoted(name)} is no file of an edit; send image and mask")
                files[plain].append(await value.read())
        body = Generation.model_validate(texts)
        return await anyio.to_thread.run_sync(
            lambda: _painted(engine, _edit(engine, body, files), body, str(request.base_url)), limiter=limiter
        )

    return routes


_EDIT_BODY: Mapping[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "prompt"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "mask": {"type": "string", "format": "binary", "description": "transparent where to paint"},
                    "prompt": {"type": "string"},
                    "model": {"type": "string"},
                    "n": {"type": "integer", "minimum": 1, "maximum": 10},
                    "size": {"type": "string"},
                    "response_format": {"type": "string", "enum": ["url", "b64_json"]},
                },
            }
        }
    },
}


def _fields(body: Generation) -> Fields:
    """What all kinds of requests take of a body. Raises HTTPException for what is not offered."""
    if body.stream or body.partial_images:
        raise HTTPException(400, "stream: is not offered here; /api/v1 tells of every step by server-sent events")
    if body.background == "transparent":
        raise HTTPException(400, "background: pictures are opaque; leave it out")
    from danqing.pipeline.outputs import parse_size  # torch comes with it

    size = parse_size(body.size) if body.size not in (None, "", "auto") else {}
    model = None if body.model in ("", *THEIRS) else body.model
    given = {"model": model, "seed": body.seed, "steps": body.steps, "cfg_scale": body.cfg_scale, "n_iter": body.n}
    return {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        **{name: value for name, value in given.items() if value is not None},
        **size,
    }


def _edit(engine: Engine, body: Generation, files: Mapping[str, list[bytes]]) -> Painting:
    """Painted anew is where the mask, or else the picture, is transparent; of an opaque one without a mask all of it."""
    if len(files["image"]) != 1 or len(files["mask"]) > 1:
        raise HTTPException(400, "image: send one picture, and at most one mask")
    for data in (*files["image"], *files["mask"]):
        check_picture(data, "image", engine.rules)
    image = Image.open(io.BytesIO(files["image"][0]))
    fields = {**_fields(body), "image": "data:image/png;base64," + base64.b64encode(files["image"][0]).decode()}
    if files["mask"]:
        mask = Image.open(io.BytesIO(files["mask"][0]))
        alpha = mask.convert("RGBA").getchannel("A").point(lambda value: 255 - value)
        fields["mask"] = alpha if mask.has_transparency_data else mask.convert("L")
    elif not image.has_transparency_data:
        return read(ImageToImage, fields)
    return read(Inpaint, {**fields, "denoising_strength": 1.0, "inpainting_fill": "fill"})


def _painted(engine: Engine, asked: Painting, body: Generation, base: str) -> Fields:
    """The answer, once the pictures are painted. Blocks."""
    check_model(engine, asked.model)
    job = finished(engine, submitted(engine, [asked], "openai"))[0]
    kind = body.output_format or "png"
    quality = 95 if body.output_compression is None else max(body.output_compression, 1)
    options = {name: option.default for name, option in OPTIONS.items()}
    options |= {"samples_format": _TYPES[kind], "jpeg_quality": quality}
    rows: list[Fields] = []
    size = None
    for picture in engine.pictures(job.id):
        row: Fields = {"revised_prompt": picture.prompt}
        if body.response_format != "url":
            row["b64_json"] = shown(engine.path(picture), picture, options).image
        if body.response_format != "b64_json":
            row["url"] = f"{base}api/v1/pictures/{picture.id}/file"
        rows.append(row)
        size = size or f"{picture.width}x{picture.height}"
    return {"created": int(job.created), "data": rows, "output_format": kind, "size": size}
