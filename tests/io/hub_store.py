"""A web server and a small store with the interface of the Hugging Face Hub, on this machine."""

import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Server(ThreadingHTTPServer):
    """A server on a free port. `requests` has the path and the status of each answer."""

    def __init__(self, handler: Any, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http", "https")


@contextmanager
def running_server(handler: Any, certificate: Path | None = None) -> Iterator[Server]:
    """Run a server in a thread. With a certificate, it answers by https."""
    with Server(handler, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_certificate(path: Path) -> None:
    """Write a key and a certificate of this machine, which the tests trust, by openssl."""
    key = path.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(key.read_text() + path.read_text())


class WebFolder(SimpleHTTPRequestHandler):
    """Serve a folder. `/to/URL` redirects to a URL, `/cut/NAME` sends the first half of a file.

    `/loop` redirects to itself, `/as/HEADERS/NAME` sends a file with other headers of its length.
    """

    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        _, route, *rest = path.split("/")
        if route in ("to", "loop"):
            self._answer(302, {"Location": path.removeprefix("/to/")})
        elif route in ("as", "cut"):
            content = Path(self.directory, rest[-1]).read_bytes()
            headers = {"Content-Length": str(len(content))}
            if route == "as":
                stated = (header.rpartition(":") for header in rest[0].split(","))
                headers = {key or "Transfer-Encoding": value for key, _, value in stated}
            if "Transfer-Encoding" in headers:
                content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
            self._answer(200, headers, content[: len(content) // (2 if route == "cut" else 1)])
        else:
            super().do_GET()

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.server.requests.append((self.path, int(code)))

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def web_folder(folder: Path) -> Any:
    """Return the handler of requests for the files of a folder."""
    return partial(WebFolder, directory=str(folder))


class HubStore:
    """Repositories in memory: their files by commit, and their commits by branch.

    Attributes:
        files: The files of each commit, by `models/user/name` or `datasets/user/name`.
        branches: The commits of branches and tags.
        downloads: The paths of files whose content was sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.downloads: list[str] = []

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Store the files of a repository as a new commit of a branch. Return the commit."""
        digests = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
        commit = hashlib.sha1(json.dumps(digests).encode()).hexdigest()
        self.files.setdefault(name, {})[commit] = dict(files)
        self.branches.setdefault(name, {})[branch] = commit
        return commit

    def commit_folder(self, name: str, folder: Path, branch: str = "main") -> str:
        """Store the files of a folder, see `commit`."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.commit(name, files, branch)

    def handler(self) -> Any:
        """Return the handler of requests."""
        return type("Handler", (_HubHandler,), {"store": self})


class _HubHandler(BaseHTTPRequestHandler):
    """The routes that `snapshot_download` and `HfFileSystem` use.

    `/api/models/USER/NAME/revision/REVISION`, `/api/…/tree/REVISION`, `/api/…/paths-info/REVISION`
    and `/USER/NAME/resolve/REVISION/PATH`; those of data sets begin with `datasets/`.
    """

    store: HubStore

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        if is_api:
            parts = parts[1:]
        elif parts[0] != "datasets":
            parts = ["models", *parts]
        name = "/".join(parts[:3])
        route, *rest = [*parts[3:], "revision", "main"][: max(len(parts) - 3, 2)]
        if name in self.store.gated:
            return self._refuse(403, "GatedRepo")
        if name not in self.store.files:
            return self._refuse(401 if is_api else 404, "RepoNotFound")
        revision = rest[0]
        commit = self.store.branches[name].get(revision, revision)
        if commit not in self.store.files[name]:
            return self._refuse(404, "RevisionNotFound")
        files = self.store.files[name][commit]
        if not is_api:
            return self._send_file(files, "/".join(rest[1:]), commit)
        if route == "revision":
            listed = [{"rfilename": path} for path in files]
            return self._send_json({"id": "/".join(parts[1:3]), "sha": commit, "siblings": listed})
        if route == "tree":
            below = "".join(f"{part}/" for part in rest[1:])
            paths = [path for path in files if path.startswith(below)]
            return self._send_json([_describe(path, files[path]) for path in paths])
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))["paths"]
        found = [_describe(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if any(name.startswith(f"{path}/") for name in files)]
        found += [{"type": "directory", "path": path, "oid": commit} for path in folders]
        return self._send_json(found)

    do_HEAD = do_GET
    do_POST = do_GET

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        if self.command == "GET":
            self.store.downloads.append(path)
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self._send(files[path], {"X-Repo-Commit": commit, "ETag": etag})

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _describe(path: str, content: bytes) -> dict[str, Any]:
    """Return the entry of a file in a listing."""
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
