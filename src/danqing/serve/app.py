"""The studio as one ASGI application: the APIs, the page, and the guard around them."""

from __future__ import annotations

import importlib

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from danqing.errors import DanqingError
from danqing.serve import api
from danqing.serve.accept import NOT_JSON
from danqing.serve.engine import Engine, QueueFull
from danqing.serve.examples import described
from danqing.serve.security import Guard, check_exposure
from danqing.serve.settings import ServeSettings
from danqing.serve.store import NotFound
from danqing.version import __version__

DESCRIPTION = (
    "Danqing 丹青: pictures from Stable Diffusion models. Everything is asked for as a job, which nothing loses. "
    "Besides what each route says, any may answer 401 (no password or token where one is asked for), 403 (a page of another "
    "site asks), 408 (the body comes too slowly), 413 (it is too large), 421 (an unknown host name) or 429 (too many requests)."
)


def create_app(engine: Engine, settings: ServeSettings) -> FastAPI:
    """All that the studio serves. Raises DanqingError where that would be open to anybody (`security.check_exposure`)."""
    check_exposure(settings)
    app = FastAPI(
        title="Danqing",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's page has its scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(DanqingError, _mistake)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    api.add_operation(app, engine)
    app.include_router(api.router(engine, settings))
    for name in ("a1111", "openai") if settings.api else ():
        app.include_router(importlib.import_module(f"danqing.serve.{name}").router(engine, settings))
    if settings.page:
        importlib.import_module("danqing.serve.page").mount(app, engine, settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Guard, settings=settings)
    plain = app.openapi
    app.openapi = lambda: described(plain())  # type: ignore[method-assign]
    return app


async def _mistake(request: Request, error: Exception) -> JSONResponse:
    """What a person can mend: one line."""
    status = 404 if isinstance(error, NotFound) else 429 if isinstance(error, QueueFull) else 400
    headers = {"retry-after": "10"} if status == 429 else {}
    return JSONResponse({"error": str(error)}, status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own form, without the input that it repeats: that may be a picture of many megabytes."""
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):
        return JSONResponse({"error": NOT_JSON, "detail": NOT_JSON}, 422)
    problems = [{"type": each["type"], "loc": list(each["loc"]), "msg": each["msg"]} for each in error.errors()]
    line = "; ".join(f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}" for each in problems)
    return JSONResponse({"error": line, "detail": problems}, 422)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI says by itself: no such route, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail, "detail": error.detail}, error.status_code, error.headers)
