"""Digests of content and of the state of files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_of(*parts: str | bytes | memoryview | Path) -> str:
    """Compute the SHA-256 of the parts, one after the other, as 64 hexadecimal digits.

    A text counts as UTF-8, and a path as the content of its file. The digest of one file equals
    the output of `sha256sum`.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        else:
            digest.update(part.encode(errors="replace") if isinstance(part, str) else part)
    return digest.hexdigest()


def file_state(paths: Iterable[Path]) -> str:
    """Return a text that changes if one of the files is replaced or written, without reading them.

    The text is a digest of name, size, times of change and inode of each file, see `stat_values`.
    """
    return digest_of(*(repr((path.name, *stat_values(path))) for path in paths))[:16]


def stat_values(path: Path) -> tuple[int, int, int, int]:
    """Return size in bytes, time of change (ns), change time of the inode (ns) and inode of a file.

    The change time of an inode cannot be set back. Therefore a different file of the same name,
    size and date has other values.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
