"""The files an image consists of, their content and their state."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from time import time_ns

from lesionseg.errors import ReadError
from lesionseg.io import itk
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import series_headers, split_series

# a file that changed so shortly before may change again within one tick of its clock
_SETTLED_NS = 2_000_000_000


def content_files(path: Path) -> tuple[Path, ...]:
    """The files an image consists of: itself, those of a series, or header and voxels."""
    if split_series(path) is not None:
        return tuple(series_headers(path))
    if path.is_dir():
        return tuple(sorted(file for file in path.iterdir() if is_dicom(file)))
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        return tuple(dict.fromkeys((path, itk.voxel_file(path))))
    return (path,)


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file. Raises `ReadError` naming it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({error}).") from error


def file_states(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...] | None:
    """Path, bytes and time of change (ns) of all files of these images, without opening any.

    Of a series, all files of its folder. None where they are unknown: a header whose voxels may lie
    elsewhere, what is missing, and what changed within two seconds.
    """
    states = []
    for path in paths:
        place = (split_series(path) or (path,))[0]
        if place.suffix.lower() in itk.SUFFIXES:
            return None
        try:
            files = sorted(place.iterdir()) if place.is_dir() else [place]
            states += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        except OSError:
            return None
    if any(changed > time_ns() - _SETTLED_NS for _, _, changed in states):
        return None
    return tuple(dict.fromkeys(states))
