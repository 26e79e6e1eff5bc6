"""Access log of `serve`: a line per request (client, status, seconds) without patient names."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

LEFT = 499  # the status of nginx for a client that left before the answer
_OTHER = "(another address)"


class AccessLog:
    """An ASGI middleware that logs a line per request, after its answer.

    The line has the time, the client's address, the method, the path, the bytes of the request's
    body, the status and the seconds. The path is the pattern of the route, because the requested
    address and the query may contain the name of a patient. Successful requests of `/health` have
    the level DEBUG, so that a terminal does not show them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by the application, and log a line about the request.

        The logged status is `LEFT` if the client left before an answer, and 500 if the application
        raised an exception. Other connections than HTTP are not logged.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = LEFT  # until an answer begins
        n_bytes = 0

        async def receive_and_count() -> Message:
            """Return the next message of the request, and count the bytes of its body."""
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            return message

        async def send_and_note_status(message: Message) -> None:
            """Send a message of the answer, and note the status that the first message has."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive_and_count, send_and_note_status)
        except Exception:
            status = 500
            raise
        finally:
            path = _route(scope)
            is_detail = path == "/health" and status == 200  # a monitor may ask often
            client = scope.get("client")
            logger.log(
                logging.DEBUG if is_detail else logging.INFO,
                "%s %s %s %s %d bytes %d %.3f s",
                time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                client[0] if client else "-",
                scope["method"],
                path,
                n_bytes,
                status,
                time.monotonic() - began,
            )


def _route(scope: Scope) -> str:
    """Return the path of a request for the log, without names of patients.

    The logged path is the pattern of the route that answered, such as `/session/{key}`. For a file
    of the viewer it is `/niivue/`, and for a request that no route answered `_OTHER`.
    """
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    if scope["path"].startswith("/niivue/"):
        return "/niivue/"
    return _OTHER
