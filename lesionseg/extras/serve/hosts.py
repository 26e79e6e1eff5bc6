"""Host names that `serve` answers to (`hosts=`): check of the Host header, refusal message."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# group 1: an IPv6 address in brackets, or a name or IPv4 address; group 2: the port
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
        """Pass a request on if it names a known host, otherwise answer 400.

        Other connections than HTTP are passed on.
        """
        if scope["type"] != "http" or self._is_known(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        await JSONResponse({"detail": UNKNOWN_NAME}, 400)(scope, receive, send)

    def _is_known(self, header: str) -> bool:
        """Return True if the header `Host` of a request has a known name. The port does not matter.

        A setting `*.name` matches all subdomains of `name`, and the setting `*` matches any header.
        """
        match = _HOST.fullmatch(header)
        if "*" in self.hosts:
            return True
        if match is None:
            return False
        name = match[1].lower()  # without the port
        endings = tuple(host[1:] for host in self.hosts if host.startswith("*."))  # ".name"
        return name in self.hosts or name.endswith(endings)


def with_brackets(host: str) -> str:
    """Return a host as an address on the web contains it: an IPv6 address gets brackets.

    >>> with_brackets("::1"), with_brackets("[::1]"), with_brackets("localhost")
    ('[::1]', '[::1]', 'localhost')
    """
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
