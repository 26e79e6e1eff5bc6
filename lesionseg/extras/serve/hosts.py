"""The names under which the server answers."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?", re.IGNORECASE)
UNKNOWN_NAME = (
    "This server does not answer to the name in the address. Start it with hosts=[NAME], where "
    "NAME is the name or the IP address in the address that you opened, without the port."
)


class KnownHosts:
    """An ASGI middleware that refuses requests whose `Host` is not a name of the server.

    It prevents DNS rebinding: a page of another site whose name suddenly has this server's address
    could otherwise read answers. Starlette's own middleware does not say which setting to change.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = [host.lower() for host in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400."""
        if scope["type"] != "http" or self._is_known(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        await JSONResponse({"detail": UNKNOWN_NAME}, 400)(scope, receive, send)

    def _is_known(self, header: str) -> bool:
        """Return True if the header `Host` has a known name. The port does not matter.

        The name `*.name` matches subdomains, and `*` any header.
        """
        match = _HOST.fullmatch(header)
        if "*" in self.hosts:
            return True
        if match is None:
            return False
        name = match[1].lower()
        endings = tuple(host[1:] for host in self.hosts if host.startswith("*."))
        return name in self.hosts or name.endswith(endings)


def with_brackets(host: str) -> str:
    """Return a host as it is written in an address: an IPv6 address is in brackets.

    >>> with_brackets("::1"), with_brackets("[::1]"), with_brackets("localhost")
    ('[::1]', '[::1]', 'localhost')
    """
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
