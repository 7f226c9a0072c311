"""Who may call: no page of another site, under whatever name it reaches this server.

There is no password, so a page that the user happens to visit must not use the model: neither by
sending its own requests here, nor by pointing a name of its own at this address.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# the page loads nothing from elsewhere, and no other site may show it in a frame
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """
    Args:
        names: host names by which this server may be called; addresses always may, since nobody
            can point them elsewhere.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, [name.lower() for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        began = False

        async def with_headers(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        answer: ASGIApp = self.app
        if not self._known(headers.get("host", "")):
            answer = _refusal(400, self._unknown(headers.get("host", "")))
        elif scope["method"] not in ("GET", "HEAD") and _of_another_site(headers):
            answer = _refusal(403, "asked by a page of another site; open this server's own page")
        try:
            await answer(scope, receive, with_headers)
        except asyncio.CancelledError:  # at Ctrl+C, of what was not done soon
            if not began:
                await _refusal(503, "the server was ended")(scope, receive, with_headers)

    def _known(self, host: str) -> bool:
        name = _name(host)
        return name in self.names or _is_address(name)

    def _unknown(self, host: str) -> str:
        return (
            f"host {host[:100]!r}: this server is called {', '.join(self.names)} or by its "
            "address; `ark serve --names='[\"NAME\"]'` adds a name"
        )


def _refusal(status: int, said: str) -> ASGIApp:
    return JSONResponse({"error": said}, status)


def _name(host: str) -> str:
    """Without the port, and without the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _of_another_site(headers: Headers) -> bool:
    """What browsers say themselves; programs such as curl say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:  # told to trustworthy addresses alone: https and this machine
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
