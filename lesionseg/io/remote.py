"""Datasets and results at a URL: files are downloaded before they are read, and uploaded when done.

`s3://bucket/folder`, `gs://…`, `http://…`, `memory://…`: whatever fsspec knows. Endpoint, key and
region come from the store's own settings: `~/.config/fsspec/*.json`, variables such as
`FSSPEC_S3_ENDPOINT_URL`, or the cloud's usual files.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from lesionseg.config import is_url
from lesionseg.errors import ConfigError, OutputError, ReadError, pip_install
from lesionseg.io.files import read_json, write_json

# what stores call the number or date that changes with a file's content, the best first
_KEYS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")


def download(place: str, folder: str | None = None, *, new: bool = False) -> Path:
    """The local copy of a folder at a URL; a path is given back as it is.

    Below `folder` (None: `lesionseg` in the user's cache folder). Files that are here and have not
    changed at the store are not fetched again; those that are gone there are removed. Raises
    `ReadError` when the store cannot be read or, unless it may be `new`, has no file there.
    """
    if not is_url(place):
        return Path(place)
    cache = Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lesionseg"))
    base = cache.expanduser().absolute() / hashlib.sha256(place.encode()).hexdigest()[:16]
    copy, states = base / (PurePosixPath(place).name or "data"), base / "states.json"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)  # scans are their user's alone
    copy.mkdir(exist_ok=True)
    with FileLock(base / ".lock"):
        system, root = _open(place)
        before = read_json(states) if states.is_file() else {}
        listed: dict[str, str] = {}
        try:
            with suppress(FileNotFoundError):
                for name, info in system.find(root, detail=True).items():
                    state = (info[key] for key in ("size", *_KEYS) if info.get(key) is not None)
                    listed[name.removeprefix(root.rstrip("/") + "/")] = " ".join(map(str, state))
            if any(".." in PurePosixPath(n).parts or n.startswith("/") for n in listed):
                raise ValueError("a name leads out of its folder")
            for name in before.keys() - listed.keys():
                (copy / name).unlink(missing_ok=True)
            kept = {n for n, s in listed.items() if before.get(n) == s and (copy / n).is_file()}
            wanted = [name for name in listed if name not in kept]
            for name in wanted:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if wanted:  # many at once
                sources = [f"{root.rstrip('/')}/{name}" for name in wanted]
                write_json(states, {name: before[name] for name in kept})
                system.get(sources, [str(copy / name) for name in wanted])
            for name in wanted:  # a time that every copy of this content has
                ns = int(hashlib.sha256(listed[name].encode()).hexdigest()[:15], 16)
                os.utime(copy / name, ns=(ns, ns))
        except Exception as error:  # stores raise errors of their own packages
            raise ReadError(f"{place}: the folder cannot be downloaded ({error!r}).") from error
        write_json(states, listed)
    if not listed and not new:
        raise ReadError(f"{place}: there is no file below this URL.")
    return copy


def upload(paths: Iterable[Path], copy: Path, place: str) -> None:
    """Copy files of `copy`, which `download` gave for `place`, to the store; of a path, nothing.

    A file that is no longer in `copy` is removed there.
    """
    if not is_url(place):
        return
    system, root = _open(place)
    for path in paths:
        target = f"{root.rstrip('/')}/{path.relative_to(copy).as_posix()}"
        try:
            if path.is_file():
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path), target)
            elif system.exists(target):
                system.rm_file(target)
        except Exception as error:
            raise OutputError(f"{place}: {path.name} cannot be uploaded ({error!r}).") from error


def _open(place: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        # listings change while others write: none is remembered
        system, root = url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        install = pip_install("remote")
        raise ConfigError(f"{place}: there is no such store ({error}). {install}.") from error
    return system, root
