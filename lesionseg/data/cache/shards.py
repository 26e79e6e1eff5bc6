"""Prepared cases at a URL: many to an object, each fetched alone when a tile of it is wanted.

<url>/<key of plan and dataset>/
├── <name>.tar        about 1 GB of case folders, uncompressed, one after the other
├── <name>.json.gz    which bytes are which case, and its lesions; written last
└── claims/<case>     who is making it

A shard counts once its table is there, so one whose upload broke off is never read. Tables are read
when a cache is opened, and of a shard only the bytes of the case that is asked for: a tile may come
from any case, and a shard read whole for each would be forty times as much. A case that changed
lies in a new shard; the old bytes stay where they are.
"""

import contextlib
import gzip
import io
import json
import re
import shutil
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.data.cache.cached_case import (
    CachedCase,
    case_from_json,
    read_cached_case,
    write_cached_case,
)
from lesionseg.data.cache.case_cache import CaseStore, reference_of
from lesionseg.data.cache.claims import Claims
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.errors import OutputError, ReadError
from lesionseg.io.remote.local_disk import PARTIAL, LocalDisk, folder_bytes, partial_name, sweep
from lesionseg.io.remote.remote_folder import RemoteFolder

SHARD_BYTES = 10**9
# a shard is sent off after this time however small it is: what is not sent is lost with a machine
SHARD_SECONDS = 600.0
_LOOK_AGAIN_SECONDS = 30.0
_TABLE = ".json.gz"
_PARTS = ("case.json", "image.npy", "labels.npy", "instances.npy", "valid.npy")
_SOURCE = re.compile("[0-9a-f]{2,128}")
_READERS = 16


@dataclass(frozen=True)
class ShardPart:
    """The bytes of one case in a shard, and the disk that copies of cases may take."""

    shard: RemoteFolder
    name: str
    start: int
    stop: int
    disk: LocalDisk

    def fetch(self, folder: Path) -> None:
        """Copy the case to `folder`; whole, or not at all. Raises `ReadError`."""
        packed = self.shard.read(self.name, self.start, self.stop)
        scratch = folder.with_name(partial_name())
        try:
            scratch.mkdir(parents=True)
            _unpack(packed, scratch)
            read_cached_case(scratch)
            _place(scratch, folder)
        except (OSError, tarfile.TarError) as error:
            raise ReadError(
                "A case of a shard cannot be copied to this machine.",
                where=f"{self.shard.url}/{self.name}",
                seen=error,
                remedy=f"see that {self.disk.folder} may be written to and has room.",
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.disk.make_room("cases/*/*/*", folder, len(packed))


class ShardCache(CaseStore):
    """Prepared cases of one plan and dataset at a URL; copies of them come to `disk` and go."""

    def __init__(
        self, folder: RemoteFolder, key: str, disk: LocalDisk, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = folder / key
        super().__init__(key, Claims(self.folder / "claims"))
        self.disk, self.shard_bytes = disk, shard_bytes
        self._copies = disk.folder / "cases" / key
        self._known: dict[tuple[str, str], CachedCase] = {}
        self._tables: set[str] = set()
        self._shard: _OpenShard | None = None
        self._lock = threading.Lock()
        self._looked = 0.0

    def find(self, case: str, source: str) -> CachedCase | None:
        """The case made of files of that hash, if it is in a shard; nothing is fetched."""
        with self._lock:
            if (case, source) not in self._known:
                self._look()
            return self._known.get((case, source))

    def store(self, prepared: PreparedCase, source: str) -> CachedCase:
        """Put a case into the shard that is being filled; a full one is sent off."""
        reference = reference_of(prepared)
        folder = self._copy_of(source)
        scratch = folder.with_name(partial_name())
        try:
            scratch.mkdir(parents=True)
            write_cached_case(scratch, prepared, reference, source)
            with self._lock:
                cached = self._add(scratch)
            _place(scratch, folder)
        except OSError as error:
            raise OutputError(
                "The local copy of a case cannot be written.",
                where=self.disk.folder,
                seen=error,
                remedy="check that the folder may be written to and that the disk has room.",
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.disk.make_room("cases/*/*/*", folder, folder_bytes(folder))
        return cached

    def flush(self) -> None:
        """Send off the shard that is being filled, then its table; look what others have sent."""
        with self._lock:
            self._send()
            self._looked = 0.0

    def sweep(self) -> None:
        """Remove what killed runs have left on this machine a day ago or earlier."""
        for folder in (self._copies, *self._copies.glob("*")):
            sweep(folder)

    def _copy_of(self, source: str) -> Path:
        return self._copies / source[:2] / source

    def _add(self, scratch: Path) -> CachedCase:
        if self._shard is None:
            self._copies.mkdir(parents=True, exist_ok=True)
            self._shard = _OpenShard(self._copies)
        shard = self._shard
        record = shard.add(scratch)
        cached = self._case(record, shard.name)
        self._known[cached.case, cached.source] = cached
        if shard.size >= self.shard_bytes or time.monotonic() - shard.began > SHARD_SECONDS:
            self._send()
        return cached

    def _send(self) -> None:
        shard, self._shard = self._shard, None
        if shard is None:
            return
        try:
            shard.close()
            self.folder.put(f"{shard.name}.tar", shard.tar)
            self.folder.put(f"{shard.name}{_TABLE}", shard.table)
            self._tables.add(f"{shard.name}{_TABLE}")
        finally:
            shutil.rmtree(shard.folder, ignore_errors=True)
            for record in shard.cases:
                self._claims.give_back(record["case"])

    def _look(self) -> None:
        """Read the tables that are new; no more often than every half minute."""
        if time.monotonic() - self._looked < _LOOK_AGAIN_SECONDS and self._looked:
            return
        names = [f.path for f in self.folder.list() if f.path.endswith(_TABLE)]
        new = [name for name in names if name not in self._tables]
        with ThreadPoolExecutor(_READERS) as pool:
            for name, content in zip(new, pool.map(self.folder.read, new), strict=True):
                for record in _read_table(content, f"{self.folder.url}/{name}"):
                    cached = self._case(record, name.removesuffix(_TABLE))
                    self._known[cached.case, cached.source] = cached
        self._tables.update(new)
        self._looked = time.monotonic()

    def _case(self, record: dict[str, Any], shard: str) -> CachedCase:
        part = ShardPart(self.folder, f"{shard}.tar", record["from"], record["to"], self.disk)
        return case_from_json(record, self._copy_of(record["source"]), part)


class _OpenShard:
    """A shard on its way: a tar file on local disk, and what lies where in it."""

    def __init__(self, copies: Path) -> None:
        self.name = uuid.uuid4().hex
        self.folder = copies / f"{PARTIAL}{self.name}"
        self.folder.mkdir()
        self.tar, self.table = self.folder / "shard.tar", self.folder / "table"
        self.cases: list[dict[str, Any]] = []
        self.began = time.monotonic()
        # open until close(): a shard outlives many calls
        self._stream = self.tar.open("wb")
        self._packed = tarfile.TarFile(fileobj=self._stream, mode="w")

    @property
    def size(self) -> int:
        return self._stream.tell()

    def add(self, case_folder: Path) -> dict[str, Any]:
        """Append a case's folder; its `case.json` with the bytes it takes, `from` … `to`."""
        record: dict[str, Any] = json.loads((case_folder / "case.json").read_text(encoding="utf-8"))
        start = self.size
        for part in _PARTS:
            if (case_folder / part).exists():
                self._packed.add(case_folder / part, f"{record['source']}/{part}", filter=_nobodys)
        record |= {"from": start, "to": self.size}
        self.cases.append(record)
        return record

    def close(self) -> None:
        """End the tar file and write the table."""
        self._packed.close()
        self._stream.close()
        self.table.write_bytes(gzip.compress(json.dumps({"cases": self.cases}).encode()))


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without date and owner: nobody's name leaves the machine."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _read_table(content: bytes, where: str) -> Iterator[dict[str, Any]]:
    try:
        for record in json.loads(gzip.decompress(content))["cases"]:
            if not _SOURCE.fullmatch(record["source"]):  # it becomes a path on this machine
                raise ValueError(f"source {record['source']!r}")
            yield record
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ReadError(
            "The table of a shard is damaged.",
            where=where,
            seen=repr(error),
            remedy="remove it: its cases are made again.",
        ) from error


def _unpack(packed: bytes, folder: Path) -> None:
    """Write the known files of a case, and no others."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as members:
        for member in members:
            name = member.name.rpartition("/")[2]
            content = members.extractfile(member) if name in _PARTS else None
            if content is not None:
                with (folder / name).open("wb") as out:
                    shutil.copyfileobj(content, out)


def _place(scratch: Path, folder: Path) -> None:
    """Move a whole copy into place; what another process has put there meanwhile is as good."""
    try:
        scratch.replace(folder)
    except OSError:
        with contextlib.suppress(ReadError):
            read_cached_case(folder)
            return
        raise
