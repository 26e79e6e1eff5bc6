"""What stands before every request: who may ask, how much, how long, and what is logged of it."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
RETRY_SECONDS = 10
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True)
class ServeLimits:
    """What requests may cost.

    Args:
        max_bytes: of one request, and of what its zip holds.
        max_files: of one request, and of its zip.
        max_waiting: uploads and scans that are taken at once; others get status 503.
        request_seconds: for one request, from its first byte to its answer.
    """

    max_bytes: int = 2**30
    max_files: int = 5000
    max_waiting: int = 32
    request_seconds: float = 900.0


class Gate:
    """Lets requests through to `app` that may ask, within `limits`, and logs them by route.

    Args:
        app: what answers.
        limits: what a request may cost.
        hosts: names that the server is called by, besides localhost and IP addresses.
        token: None, or what a client must send as bearer or as password.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ServeLimits,
        hosts: Collection[str] = (),
        token: str | None = None,
    ) -> None:
        self.app, self._limits, self._token = app, limits, token
        self._hosts = {"localhost", *(h.lower() for h in hosts)}
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 500

        async def say(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            await self._answer(scope, receive, say)
        finally:
            # neither address, query nor client: they may name people
            route = getattr(scope.get("route"), "path", "(refused)")
            logger.info("%s: %d, %.1f s", route, status, time.monotonic() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(headers, scope["method"], scope["path"])
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD", "DELETE"):
            await self.app(scope, receive, send)
        else:
            self._taken += 1
            try:
                await self.app(scope, self._limited(receive), send)
            finally:
                self._taken -= 1

    def _refusal(self, headers: Mapping[str, str], method: str, path: str) -> JSONResponse | None:
        """Why a request is not let in; None: it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            return _refused(403, "The server is not called by this name; see `hosts`.")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _refused(403, "Pages of other sites may not ask.")
        if self._token and path != "/health" and not _knows(headers, self._token):
            asks = {"WWW-Authenticate": 'Basic realm="lesionseg"'}
            return _refused(401, "The server asks for its token.", asks)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.max_bytes:
            return _refused(413, self._too_large())
        if method not in ("GET", "HEAD", "DELETE") and self._taken >= self._limits.max_waiting:
            return _refused(503, "Too many scans wait.", {"Retry-After": str(RETRY_SECONDS)})
        return None

    def _is_ours(self, host: str) -> bool:
        """Only names can be bound anew by a foreign page's DNS; addresses cannot."""
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts:
                return True
            ipaddress.ip_address(name)
            return True
        return False

    def _limited(self, receive: Receive) -> Callable[[], Any]:
        seen, end = 0, time.monotonic() + self._limits.request_seconds

        async def limited() -> Message:
            nonlocal seen
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0.01))
            except TimeoutError as error:
                raise HTTPException(408, "The request took too long.") from error
            seen += len(message.get("body", b""))
            if seen > self._limits.max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"The request is too large; at most {self._limits.max_bytes / 2**20:g} MB are taken."


def _refused(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    # what is still coming in is not read
    return JSONResponse({"detail": detail}, status, {**(headers or {}), "Connection": "close"})


def _knows(headers: Mapping[str, str], token: str) -> bool:
    """Whether a client sent the token: as bearer, or as password, which browsers ask for."""
    kind, _, sent = headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            sent = base64.b64decode(sent).decode().partition(":")[2]
        except ValueError:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(sent.encode(), token.encode())
