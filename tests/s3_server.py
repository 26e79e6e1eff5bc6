"""An S3 server of this machine, moto's, whose answers a test may spoil."""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

_SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

Spoil = Callable[[str, list[Any], bytes], tuple[str, list[Any], Iterable[bytes]]]


@dataclass
class S3Server:
    """What was asked of it, as `GET key?query range`, and which answers are spoilt."""

    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    _spoils: list[list[Any]] = field(default_factory=list)
    _old_lists: dict[str, tuple[str, list[Any], bytes]] = field(default_factory=dict)
    lists_are_old: bool = False

    def spoil(self, part: str, how: Spoil, times: int) -> None:
        """Answer the next requests with that part in what was asked in another way."""
        self._spoils.append([part, how, times])

    def heal(self) -> None:
        """Answer as is right again."""
        self._spoils.clear()
        self._old_lists.clear()
        self.asked.clear()
        self.lists_are_old = False

    def answer(self, app: Any, environ: Mapping[str, Any], start: Any) -> Iterable[bytes]:
        """One request, as WSGI has it."""
        query = environ.get("QUERY_STRING", "")
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{query}"
        with_range = f"{asked} {environ.get('HTTP_RANGE', '')}".strip()
        self.asked.append(with_range)
        if self.lists_are_old and asked in self._old_lists:
            status, headers, body = self._old_lists[asked]
        else:
            status, headers, body = _answered(app, environ)
        if "list-type" in query:
            self._old_lists[asked] = status, headers, body
        how = self._spoilt(with_range)
        pieces: Iterable[bytes] = [body]
        if how is not None:
            status, headers, pieces = how(status, headers, body)
        start(status, headers)
        return pieces

    def _spoilt(self, asked: str) -> Spoil | None:
        for entry in self._spoils:
            if entry[0] in asked and entry[2] > 0:
                entry[2] -= 1
                return entry[1]  # type: ignore[no-any-return]
        return None


def slow_down(*_: Any) -> tuple[str, list[Any], Iterable[bytes]]:
    """The store is busy."""
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(_SLOW)))]
    return "503 Slow Down", headers, [_SLOW]


def cut_short(status: str, headers: list[Any], body: bytes) -> tuple[str, list[Any], list[bytes]]:
    """The connection is lost in the middle of a file."""
    return status, headers, [body[: len(body) // 2]]


def _answered(app: Any, environ: Mapping[str, Any]) -> tuple[str, list[Any], bytes]:
    said: list[Any] = []
    body = b"".join(app(environ, lambda status, headers, _=None: said.extend((status, headers))))
    return said[0], list(said[1]), body


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server, one for all tests."""
    pytest.importorskip("s3fs")
    app = pytest.importorskip("moto.server")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            return

    server = S3Server()
    moto = app.DomainDispatcherApplication(app.create_backend_app)
    listening = make_server(
        "127.0.0.1", 0, lambda e, s: server.answer(moto, e, s), True, request_handler=Quiet
    )
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    server.endpoint = f"http://127.0.0.1:{listening.server_port}"
    yield server
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Server, str]]:
    """The server, and the URL of a new bucket there; keys as the cloud's own variables."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",  # as s3fs tries again by itself
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    s3_server.heal()
    yield s3_server, f"s3://{bucket}"
    s3_server.heal()
    s3fs.S3FileSystem.clear_instance_cache()
