"""Refusing bad files by name, before they cost memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError, require

# deflate, the compression of NIfTI, NRRD, MHA and PNG, shrinks at most 1032 to 1 (zlib's
# technical notes); rounded up, and small files are let through whatever they claim
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20


@dataclass(frozen=True)
class FileLimits:
    """What one file may cost; more is refused before anything is allocated for it.

    `max_voxels`: of one channel, on the file's grid and on the plan's; 8 GiB as float32, and no
    more than indices of 32 bits can count. `spacing_mm`: least and largest, from finer than
    microscopes to coarser than any scanner. `read_seconds`: of a native decoder, beside the time
    to load the file from a slow disk. Raises `ConfigError`.
    """

    max_voxels: int = 2**31 - 1
    spacing_mm: tuple[float, float] = (1e-3, 100.0)
    read_seconds: float = 60.0

    def __post_init__(self) -> None:
        mm = tuple(self.spacing_mm)
        object.__setattr__(self, "spacing_mm", mm)
        n, seconds = self.max_voxels, self.read_seconds
        for right, key, seen, expected in (
            (isinstance(n, int) and 1 <= n < 2**31, "max_voxels", n, "1 to 2147483647"),
            (len(mm) == 2 and 0 < mm[0] <= mm[-1] < math.inf, "spacing_mm", mm, "least, largest"),
            (0 < seconds < math.inf, "read_seconds", seconds, "above 0"),
        ):
            what, where = "The limit of what a file may cost is wrong.", f"limits.{key}"
            require(right, what, where=where, seen=seen, expected=expected)


_limits = FileLimits()


def limits() -> FileLimits:
    """The limits of this process."""
    return _limits


def set_limits(limits: FileLimits) -> None:
    """Set the limits of this process, and of the processes that it starts for reading."""
    global _limits  # a reader deep in a dataset is handed no settings
    _limits = limits


def check_file(path: Path) -> None:
    """Raise `ReadError` unless it is a file with at least one byte."""
    if path.is_dir():
        raise ReadError(
            "A folder stands where an image file was expected.",
            where=path,
            remedy="Name a folder only where it holds one DICOM series.",
        )
    if not path.is_file():
        raise ReadError("The file does not exist.", where=path, remedy="Check its name and folder.")
    if path.stat().st_size == 0:
        raise ReadError("The file is empty.", where=path, remedy="Copy it again from its source.")


def check_claim(path: Path, n_bytes: int, *, compressed: bool = True) -> None:
    """Raise `ReadError` when a header claims more bytes of voxels than its file can hold."""
    size = path.stat().st_size
    most = size * _MOST_COMPRESSION + _ALWAYS_ALLOWED_BYTES if compressed else size
    if n_bytes > most:
        raise ReadError(
            "The header claims more voxels than the file can hold: it is truncated or damaged.",
            where=path,
            seen=f"{n_bytes} bytes of voxels claimed, {size} bytes in the file",
            remedy="Copy the file again, or write it again from its source.",
        )


def check_voxels(path: Path, n_voxels: int) -> None:
    """Raise `ReadError` for more voxels than one file may have, whatever its size."""
    if n_voxels > _limits.max_voxels:
        raise ReadError(
            "The image has too many voxels.",
            where=path,
            seen=n_voxels,
            expected=f"at most {_limits.max_voxels} (limits.max_voxels)",
            remedy="Check the file's header; cut a larger image into parts.",
        )


def check_grid(path: Path, geometry: Geometry) -> Geometry:
    """The very geometry; raises `ReadError` for too many voxels and for an impossible spacing."""
    check_voxels(path, math.prod(geometry.shape))
    low, high = _limits.spacing_mm
    if not all(low <= mm <= high for mm in geometry.spacing_mm):
        raise ReadError(
            "The voxels have an impossible size.",
            where=path,
            seen=" × ".join(f"{mm:g}" for mm in geometry.spacing_mm) + " mm",
            expected=f"{low:g} to {high:g} mm (limits.spacing_mm)",
            remedy="Correct the spacing, and its unit, in the file's header.",
        )
    return geometry


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a file library raises into an error of ours that names the file."""
    try:
        yield
    except GeometryError as error:
        raise GeometryError(
            error.what, where=path, seen=error.seen, expected=error.expected, remedy=error.remedy
        ) from error
    except LesionsegError:
        raise
    except MemoryError as error:
        raise ReadError(
            "Reading the file takes more memory than there is.",
            where=path,
            remedy="Check the file's header; cut a larger image into parts.",
        ) from error
    except Exception as error:  # a parser fed with damaged bytes may raise anything at all
        raise ReadError(
            f"Cannot read the file: {error}.",
            where=path,
            remedy="Check that it opens in a viewer; if not, copy it again from its source.",
        ) from error
