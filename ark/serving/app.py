"""The HTTP interface of a model.

    GET  /              the page
    GET  /api/model     name, input, tasks and classes
    POST /api/predict   the bytes of an image's file -> predictions; ?tasks=A&tasks=B chooses

Errors are JSON too: {"error": "what is wrong and what to do"}, with status 400 (no image, no such
task), 413 (too large) or 500.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from ark.errors import ConfigError
from ark.published.model import Model
from ark.serving.answers import answer, describe

log = logging.getLogger("ark")
PAGE = Path(__file__).parent / "page"
# the page loads nothing from elsewhere, and no other site may show it in a frame
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"


_PATIENCE = 5  # times the limit


class TooLarge(Exception):
    """More bytes than the server takes."""


def make_app(model: Model, megabytes: float, hosts: Sequence[str]) -> FastAPI:
    """
    Args:
        megabytes: an upload's limit.
        hosts: names under which browsers may call; a page of another site that points its own
            name here is refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its docs load from elsewhere
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    lock = threading.Lock()  # one image at a time: torch uses all processors for each

    @app.get("/api/model")
    def about() -> dict[str, Any]:
        return describe(model)

    @app.post("/api/predict")
    async def predict(
        request: Request, tasks: Annotated[list[str] | None, Query()] = None
    ) -> dict[str, Any]:
        image = await _body(request, int(megabytes * 1e6))

        def run() -> dict[str, Any]:
            with lock:
                began = time.perf_counter()
                found = answer(model, image, tasks)
                return {"tasks": found, "seconds": round(time.perf_counter() - began, 3)}

        return await run_in_threadpool(run)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    _add_errors(app, megabytes)
    return app


async def _body(request: Request, limit: int) -> bytes:
    """
    Raises:
        TooLarge: of what is a little too large the rest is read and thrown away, because clients
            hear nothing before they have sent all; of more, no further byte.
    """
    count, data = int(request.headers.get("content-length") or 0), bytearray()
    if count > _PATIENCE * limit:
        raise TooLarge
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > _PATIENCE * limit:
            raise TooLarge
        if count <= limit:
            data += chunk
    if count > limit:
        raise TooLarge
    return bytes(data)


def _add_errors(app: FastAPI, megabytes: float) -> None:
    @app.exception_handler(ConfigError)
    def wrong(request: Request, error: ConfigError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(TooLarge)
    def large(request: Request, error: TooLarge) -> JSONResponse:
        said = f"the file is larger than {megabytes:g} MB; `ark serve --megabytes` raises the limit"
        return JSONResponse({"error": said}, 413, {"Connection": "close"})

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s: %r", request.url.path, error)
        return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
