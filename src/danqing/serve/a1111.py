"""AUTOMATIC1111's HTTP API: /sdapi/v1 (its modules/api/api.py) and /controlnet (sd-webui-controlnet's scripts/api.py).

Bodies and answers are field for field its own. Errors have its form, but what is the caller's fault is a 4xx.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Body, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException

from danqing.errors import DanqingError
from danqing.serve.a1111_answers import encoded
from danqing.serve.a1111_bodies import Detect, ExtrasBatch, ExtrasSingle, Img2Img, Interrogate, PngInfo, Pose, Txt2Img
from danqing.serve.a1111_extensions import add_extensions
from danqing.serve.a1111_options import Fields, Options
from danqing.serve.a1111_studio import Studio, late, progress
from danqing.serve.a1111_tasks import Tasks, add_tasks, interrupt
from danqing.serve.accept import NOT_JSON
from danqing.serve.engine import Engine, QueueFull
from danqing.serve.fetch import fetch
from danqing.serve.settings import ServeSettings

Result = TypeVar("Result")
WAITING = 1024
"""Requests that may wait for their pictures at once, each in a thread of its own."""
UNITS = 3
"""ControlNet units that the extension shows; requests may have more."""
LISTS = (
    "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models", "sd-vae", "hypernetworks",
    "face-restorers", "realesrgan-models", "prompt-styles", "artist-categories", "embeddings", "loras", "memory",
    "scripts", "script-info", "extensions",
)  # fmt: skip
"""GET routes, whose answers are `a1111_lists.TABLES`."""

paint, extras, png_info, interrogated, detected, all_options, set_options = (
    late("a1111_paint", name)
    for name in ("paint", "extras", "png_info", "interrogated", "detect", "all_options", "set_options")
)
table = late("a1111_lists", "table")
model_names, module_names, module_detail, control_types, render = (
    late("a1111_controlnet", name)
    for name in ("model_names", "module_names", "module_detail", "control_types", "render")
)


class Painting(BaseModel):
    """The answer to txt2img and img2img."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class ExtraImage(BaseModel):
    html_info: str
    image: str | None


class ExtraImages(BaseModel):
    html_info: str
    images: list[str]


class PngInfoAnswer(BaseModel):
    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


class ProgressAnswer(BaseModel):
    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None
    textinfo: str | None


class Problem(BaseModel):
    """An error in AUTOMATIC1111's form."""

    error: str
    detail: Any
    body: str
    errors: str


class Invalid(BaseModel):
    """A body of wrong types, in FastAPI's form."""

    detail: list[dict[str, Any]]


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Something in the body makes no sense"},
    404: {"model": Problem, "description": "A model or picture that is not there"},
    422: {"model": Problem | Invalid, "description": "A body of wrong types, or an unknown script"},
    429: {"model": Problem, "description": "Too many jobs wait"},
    503: {"model": Problem, "description": "The studio is ending"},
}


def problem(status: int, detail: Any, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in AUTOMATIC1111's form."""
    body = {"error": "HTTPException", "detail": unicode(detail), "body": "", "errors": ""}
    return JSONResponse(body, status, headers=headers)


def unicode(text: Any) -> Any:
    """Text that came from a body may hold halves of surrogate pairs, which no answer can: these become `?`."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else text


class Route(APIRoute):
    """Errors in AUTOMATIC1111's form, and how long it took."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            began = time.perf_counter()
            response: Response
            try:
                response = await handle(request)
            except RequestValidationError as error:
                rows = error.errors()
                if isinstance(error.body, bytes):
                    rows = [{"loc": ("body",), "msg": NOT_JSON, "type": "json_type"}]
                places = [[*map(unicode, row["loc"])] for row in rows]
                told = [{"loc": loc, "msg": unicode(row["msg"]), "type": row["type"]} for loc, row in zip(places, rows)]
                response = JSONResponse({"detail": told}, 422)
            except AnyHTTPException as error:  # FastAPI raises both
                response = problem(error.status_code, error.detail, dict(error.headers or {}))
            except QueueFull as error:
                response = problem(429, str(error), {"Retry-After": "10"})
            except DanqingError as error:
                response = problem(400, str(error))
            response.headers["X-Process-Time"] = f"{time.perf_counter() - began:.4f}"
            return response

        return handler


def router(engine: Engine, settings: ServeSettings) -> APIRouter:
    """The routes over one engine."""
    routes = APIRouter(route_class=Route, tags=["AUTOMATIC1111"], responses=ERRORS)
    options = Options(engine.store, {"api_enable_requests": settings.urls})

    def fetched(url: str) -> str:
        if not settings.urls:
            raise HTTPException(400, "Requests not allowed: pictures by URL are not switched on (--allow-urls)")
        return "data:image/png;base64," + base64.b64encode(fetch(url, "image", engine.rules.picture_bytes)).decode()

    studio = Studio(engine, options, fetched, Tasks())
    limiter = anyio.CapacityLimiter(WAITING)

    async def waited(work: Callable[..., Result], *args: Any) -> Result:
        """Beside the event loop, and beside the threads of short requests, which stay free for progress."""
        return await anyio.to_thread.run_sync(work, *args, limiter=limiter)

    @routes.post("/sdapi/v1/txt2img", response_model=Painting)
    async def txt2img(body: Txt2Img) -> Any:
        return await waited(paint, studio, body)

    @routes.post("/sdapi/v1/img2img", response_model=Painting)
    async def img2img(body: Img2Img) -> Any:
        return await waited(paint, studio, body)

    @routes.post("/sdapi/v1/extra-single-image", response_model=ExtraImage)
    async def extra_single_image(body: ExtrasSingle) -> Any:
        return await waited(extras, studio, body)

    @routes.post("/sdapi/v1/extra-batch-images", response_model=ExtraImages)
    async def extra_batch_images(body: ExtrasBatch) -> Any:
        return await waited(extras, studio, body)

    @routes.post("/sdapi/v1/png-info", response_model=PngInfoAnswer)
    def png_info_route(body: PngInfo) -> Any:
        return png_info(studio, body.image)

    @routes.post("/sdapi/v1/interrogate")
    async def interrogate(body: Interrogate) -> Fields:
        answer: Fields = await waited(interrogated, studio, body)
        return answer

    @routes.get("/sdapi/v1/progress", response_model=ProgressAnswer)
    def progress_route(skip_current_image: bool = False) -> Any:
        return progress(studio, skip_current_image)

    @routes.post("/sdapi/v1/interrupt")
    def interrupt_route() -> Fields:
        interrupt(engine, studio.tasks)
        return {}

    @routes.post("/sdapi/v1/skip")
    def skip() -> None:
        engine.skip()

    @routes.get("/sdapi/v1/options")
    def get_options() -> Fields:
        values: Fields = all_options(studio)
        return values

    @routes.post("/sdapi/v1/options")
    def post_options(values: Fields) -> None:
        set_options(studio, values)

    @routes.post("/sdapi/v1/unload-checkpoint")
    def unload_checkpoint() -> Fields:
        engine.models.unload()
        return {}

    @routes.post("/sdapi/v1/reload-checkpoint")
    async def reload_checkpoint() -> Fields:
        await waited(engine.models.get, options.all()["sd_model_checkpoint"])
        return {}

    _add_lists(routes, studio, settings)
    _add_controlnet(routes, studio, waited)
    add_extensions(routes, studio, waited)
    add_tasks(routes, engine, studio.tasks)
    return routes


def _add_lists(routes: APIRouter, studio: Studio, settings: ServeSettings) -> None:
    def refresh() -> None:
        """Nothing is to be done: every list is read anew."""

    @routes.get("/sdapi/v1/cmd-flags")
    def flags() -> Fields:
        return cmd_flags(studio.engine, settings)

    for name in LISTS:
        get = _getter(name, studio.engine)
        routes.add_api_route(f"/sdapi/v1/{name}", get, methods=["GET"], name=name)
    for name in ("checkpoints", "vae", "loras", "embeddings"):
        routes.add_api_route(f"/sdapi/v1/refresh-{name}", refresh, methods=["POST"], name=f"refresh-{name}")


def _getter(name: str, engine: Engine) -> Callable[[], Any]:
    """A route function without parameters, as FastAPI reads them off its signature."""

    def get() -> Any:
        return table(name, engine.models.settings)

    return get


def _add_controlnet(routes: APIRouter, studio: Studio, waited: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    library = studio.engine.models.settings

    @routes.get("/controlnet/version")
    def version() -> dict[str, int]:
        return {"version": 3}

    @routes.get("/controlnet/model_list")
    def model_list() -> Fields:
        return {"model_list": model_names(library)}

    @routes.get("/controlnet/module_list")
    def module_list(alias_names: bool = False) -> Fields:
        return {"module_list": module_names(), "module_detail": module_detail()}

    @routes.get("/controlnet/control_types")
    def types() -> Fields:
        return {"control_types": control_types(library)}

    @routes.get("/controlnet/settings")
    def units() -> dict[str, int]:
        return {"control_net_unit_count": UNITS}

    @routes.post("/controlnet/detect")
    async def detect(body: Detect) -> Fields:
        answer: Fields = await waited(detected, studio, body)
        return answer

    @routes.post("/controlnet/render_openpose_json")
    def render_openpose_json(poses: Annotated[list[Pose], Body(max_length=16)]) -> Fields:
        if not poses:
            return {"info": "No pose data detected."}
        plain = {**studio.options.all(), "samples_format": "png"}
        return {"images": [encoded(render(pose), None, plain) for pose in poses], "info": "Success"}

    @routes.post("/controlnet/txt2img", response_model=Painting, deprecated=True)
    async def old_txt2img(body: Txt2Img) -> Any:
        return await waited(paint, studio, body)

    @routes.post("/controlnet/img2img", response_model=Painting, deprecated=True)
    async def old_img2img(body: Img2Img) -> Any:
        return await waited(paint, studio, body)


def cmd_flags(engine: Engine, settings: ServeSettings) -> Fields:
    """AUTOMATIC1111's command-line flags, as far as they say something of this server."""
    folders = [str(folder) for folder in engine.models.settings.folders]
    return {
        "data_dir": str(engine.folder),
        "ckpt_dir": folders[0] if folders else None,
        "lora_dir": None,
        "embeddings_dir": None,
        "vae_dir": None,
        "ckpt": engine.models.settings.default_model,
        "listen": settings.host not in ("127.0.0.1", "::1", "localhost"),
        "server_name": settings.host,
        "port": settings.port,
        "api": settings.api,
        "nowebui": not settings.page,
        "api_auth": None,
        "api_log": False,
        "api_server_stop": False,
        "cors_allow_origins": ",".join(settings.origins) or None,
        "tls_keyfile": str(settings.key) if settings.key else None,
        "tls_certfile": str(settings.certificate) if settings.certificate else None,
        "medvram": False,
        "lowvram": False,
        "xformers": False,
        "share": False,
        "disable_safe_unpickle": False,
    }
