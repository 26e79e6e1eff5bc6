"""What stands before every request: who may ask, how much, how long, and what is logged of it."""

import asyncio
import base64
import hmac
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lesionseg.pipeline.serve.uploads import ServeLimits

logger = logging.getLogger(__name__)
HEAD_SECONDS = 20.0  # for a request's head
BODY_SECONDS, BODY_BYTES_PER_SECOND = 30.0, 2**15  # for its body, and as fast at least
RETRY_SECONDS = 10
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """Lets requests through to `app` that may ask, within `limits`, and logs them by route.

    Args:
        app: what answers.
        limits: what a request may cost.
        policy: the Content-Security-Policy of every answer.
        token: None, or what a client must send as bearer or as password.
    """

    def __init__(self, app: ASGIApp, limits: ServeLimits, policy: str, token: str | None) -> None:
        self.app, self._limits, self._token = app, limits, token
        self._headers = {**_HEADERS, "Content-Security-Policy": policy}
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def say(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            await self._answer(scope, receive, say)
        except asyncio.CancelledError:  # uvicorn's, when it stops
            if not status:
                await _refused(503, "The server stops.")(scope, receive, say)
        finally:
            # neither address, query nor client: they may name people
            route = getattr(scope.get("route"), "path", "(no route)")
            level = logging.DEBUG if route == "/health" else logging.INFO
            logger.log(level, "%s: %d, %.1f s", route, status, time.monotonic() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope), scope["method"], scope["path"])
        if refusal is not None:
            await refusal(scope, receive, send)
        elif not _has_body(scope["method"]):
            await self.app(scope, receive, send)
        else:
            self._taken += 1
            try:
                await self.app(scope, self._limited(receive), send)
            finally:
                self._taken -= 1

    def _refusal(self, headers: Headers, method: str, path: str) -> JSONResponse | None:
        """Why a request is not let in; None: it is."""
        origin, length = headers.get("origin"), headers.get("content-length", "0")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            return _refused(403, "Pages of other sites may not ask.")
        if self._token is not None and path != "/health" and not _knows(headers, self._token):
            asks = {"WWW-Authenticate": 'Basic realm="lesionseg"'}
            return _refused(401, "The server asks for its token.", asks)
        if length.isdecimal() and int(length) > self._limits.max_bytes:
            return _refused(413, self._too_large())
        if _has_body(method) and self._taken >= self._limits.max_waiting:
            return _refused(503, "Too many scans wait.", {"Retry-After": str(RETRY_SECONDS)})
        return None

    def _limited(self, receive: Receive) -> Receive:
        """What a client sends, as long as it is neither too much nor too slow."""
        begin, seen, more = asyncio.get_running_loop().time(), 0, True

        async def limited() -> Message:
            nonlocal seen, more
            seconds = min(BODY_SECONDS + seen / BODY_BYTES_PER_SECOND, self._limits.request_seconds)
            try:
                # what comes after the body is that the client leaves: that has time
                async with asyncio.timeout_at(begin + seconds if more else None):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "The request came too slowly.") from error
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
            if seen > self._limits.max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"The request is too large; at most {self._limits.max_bytes / 2**20:g} MB are taken."


def _has_body(method: str) -> bool:
    return method not in ("GET", "HEAD", "DELETE")


def _refused(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    # what is still coming in is not read
    return JSONResponse({"detail": detail}, status, {**(headers or {}), "Connection": "close"})


def _knows(headers: Headers, token: str) -> bool:
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


class HeadInTime(H11Protocol):
    """uvicorn's protocol; it ends connections on which no request's head comes in `HEAD_SECONDS`.

    uvicorn itself waits for the first byte of a head for ever, and for its last.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._end_unless_asked, 0)
        self._n_answered = 0

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._n_answered += 1
        self.loop.call_later(HEAD_SECONDS, self._end_unless_asked, self._n_answered)

    def _end_unless_asked(self, n_answered: int) -> None:
        is_asked = self.cycle is not None and not self.cycle.response_complete
        if n_answered == self._n_answered and not is_asked:
            self.transport.close()
