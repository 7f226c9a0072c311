"""The HTTP interface of a model.

    GET  /              the page
    GET  /api/model     name, input, tasks and classes
    POST /api/predict   the bytes of an image's file -> predictions; ?tasks=A&tasks=B chooses,
                        ?preview=true sends the image back as the model sees it

Errors are JSON too: {"error": "what is wrong and what to do"}, with status 400 (no image, no such
task, or called by another's name), 403 (by a page of another site), 404 and 405 (no such place),
408 (too slow), 413 (too large), 503 (too many wait) or 500.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ark.errors import ConfigError
from ark.published.model import Model
from ark.serving.answers import answer, describe
from ark.serving.guarding import Guard
from ark.serving.reading import PIXELS, Window, read
from ark.serving.turns import Busy, Turns

log = logging.getLogger("ark")
PAGE = Path(__file__).parent / "page"
PLACES = "GET /, GET /api/model, POST /api/predict"
NOTE = (
    "For research. No medical device; it must not decide about patients. The image stays on this "
    "server's machine and is not kept."
)
_PATIENCE = 5  # times the limit


class TooLarge(Exception):
    """More bytes than the server takes."""


@dataclass
class Limits:
    """
    Args:
        megabytes: of an upload.
        seconds: that an upload may take.
        queue: requests at once, the computed one included.
    """

    megabytes: float = 20.0
    seconds: float = 120.0
    queue: int = 32


def make_app(
    model: Model,
    names: Sequence[str],
    limits: Limits | None = None,
    window: Window = "auto",
    note: str = NOTE,
) -> FastAPI:
    """
    Args:
        names: under which browsers may call, see `Guard`.
        window: how pixels of more than 8 bits become 8, as of `ark predict`.
        note: at the foot of the page.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its docs load from elsewhere
    app.add_middleware(Guard, names=names)
    limits = limits or Limits()
    turns = Turns(limits.queue)
    about = describe(model) | {"megabytes": limits.megabytes, "pixels": PIXELS, "note": note}

    @app.get("/api/model")
    async def says() -> dict[str, Any]:
        return about

    @app.post("/api/predict")
    async def predict(
        request: Request,
        tasks: Annotated[list[str] | None, Query()] = None,
        preview: bool = False,
    ) -> Response:
        async with turns.place():
            data = await _body(request, limits)
            async with turns.turn():
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody hears it
                return JSONResponse(
                    await run_in_threadpool(_look, model, data, tasks, preview, window)
                )

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    _add_errors(app, limits)
    return app


def _look(
    model: Model, data: bytes, tasks: list[str] | None, preview: bool, window: Window
) -> dict[str, Any]:
    began = time.perf_counter()
    found = answer(model, read(data, window), tasks, preview)
    return found | {"seconds": round(time.perf_counter() - began, 3)}


async def _body(request: Request, limits: Limits) -> bytes:
    """
    Raises:
        ConfigError: a form instead of a file's bytes.
        TooLarge: of what is a little too large the rest is read and thrown away, because clients
            hear nothing before they have sent all; of more, no further byte.
        TimeoutError: it takes too long.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise ConfigError(
            "image: a form; expected the bytes of the image's file as the body, as "
            "`curl --data-binary @FILE` sends them"
        )
    limit, count, data = int(limits.megabytes * 1e6), 0, bytearray()
    if int(request.headers.get("content-length") or 0) > _PATIENCE * limit:
        raise TooLarge
    async with asyncio.timeout(limits.seconds):
        async for chunk in request.stream():
            count += len(chunk)
            if count > _PATIENCE * limit:
                raise TooLarge
            if count <= limit:
                data += chunk
    if count > limit:
        raise TooLarge
    return bytes(data)


def _add_errors(app: FastAPI, limits: Limits) -> None:
    def refused(status: int, said: str) -> JSONResponse:
        # the rest of an upload may still be under way
        close = {"Connection": "close"} if status in (408, 413, 503) else None
        return JSONResponse({"error": said}, status, close)

    @app.exception_handler(ConfigError)
    async def wrong(request: Request, error: ConfigError) -> JSONResponse:
        return refused(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def unlike(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refused(400, f"{first['loc'][-1]}: {first.get('input')!r}; {first['msg']}")

    @app.exception_handler(HTTPException)
    async def nowhere(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path[:100]}"
        return refused(error.status_code, f"{where}: {error.detail}; there are {PLACES}")

    @app.exception_handler(TooLarge)
    async def large(request: Request, error: TooLarge) -> JSONResponse:
        limit = f"{limits.megabytes:g} MB"
        return refused(413, f"the file is larger than {limit}; `ark serve --megabytes` raises it")

    @app.exception_handler(TimeoutError)
    async def slow(request: Request, error: TimeoutError) -> JSONResponse:
        return refused(408, f"the upload took more than {limits.seconds:g} s; send it again")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return refused(503, f"{limits.queue} images are waiting already; send it again later")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("%s: %r", request.url.path, error)
        return refused(500, f"the server failed: {type(error).__name__}; its log says more")
