"""Refusing bad files by name, before they cost memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError

# deflate, the compression of NIfTI, NRRD, MHA and PNG, shrinks at most 1032 to 1 (zlib's
# technical notes); rounded up, and small files are let through whatever they claim
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20
# of one channel, on the file's grid and on the plan's: 8 GiB as float32, and indices fit 32 bits
MOST_VOXELS = 2**31 - 1
# from finer than microscopes to coarser than any scanner
SPACING_MM = (1e-3, 100.0)


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
    if n_voxels > MOST_VOXELS:
        raise ReadError(
            "The image has too many voxels.",
            where=path,
            seen=n_voxels,
            expected=f"at most {MOST_VOXELS}",
            remedy="Check the file's header; cut a larger image into parts.",
        )


def check_grid(path: Path, geometry: Geometry) -> Geometry:
    """The very geometry; raises `ReadError` for too many voxels and for an impossible spacing."""
    check_voxels(path, math.prod(geometry.shape))
    low, high = SPACING_MM
    if not all(low <= mm <= high for mm in geometry.spacing_mm):
        raise ReadError(
            "The voxels have an impossible size.",
            where=path,
            seen=" × ".join(f"{mm:g}" for mm in geometry.spacing_mm) + " mm",
            expected=f"{low:g} to {high:g} mm",
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
    except Exception as error:  # a parser fed with damaged bytes may raise anything at all
        raise ReadError(
            f"Cannot read the file: {error}.",
            where=path,
            remedy="Check that it opens in a viewer; if not, copy it again from its source.",
        ) from error
