"""What one file may cost, checked before memory is allocated for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError

# deflate, the compression of NIfTI, NRRD, MHA and PNG, shrinks at most 1032 to 1 (zlib's
# technical notes); rounded up, and small files are let through whatever they claim
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20


@dataclass(frozen=True)
class FileLimits:
    """What one file may cost.

    `max_voxels`: of one channel, on the file's grid and on the plan's; 8 GiB as float32, and no
    more than indices of 32 bits can count. `spacing_mm`: least and largest, from finer than
    microscopes to coarser than any scanner. `read_seconds`: of a native decoder, beside the time
    to load the file from a slow disk.
    """

    max_voxels: int = 2**31 - 1
    spacing_mm: tuple[float, float] = (1e-3, 100.0)
    read_seconds: float = 60.0


_limits = FileLimits()


def limits() -> FileLimits:
    """The limits of this process."""
    return _limits


def set_limits(limits: FileLimits) -> None:
    """Set the limits of this process and of its worker (`io.worker`)."""
    global _limits  # a reader deep in a dataset is handed no settings
    _limits = limits


def check_file(path: Path) -> None:
    """Raise `ReadError` unless it is a regular file (no pipe, no folder) with at least one byte."""
    if path.is_dir():
        raise ReadError(f"{path}: a folder where an image file was expected.")
    if not path.is_file():
        raise ReadError(f"{path}: no such file. Check its name and folder.")
    if path.stat().st_size == 0:
        raise ReadError(f"{path}: the file is empty. Copy it again from its source.")


def check_claim(path: Path, n_bytes: int, *, compressed: bool = True) -> None:
    """Raise `ReadError` when a header claims more bytes of voxels than its file can hold."""
    size = path.stat().st_size
    if n_bytes > (size * _MOST_COMPRESSION + _ALWAYS_ALLOWED_BYTES if compressed else size):
        raise ReadError(
            f"{path}: the header claims more voxels ({n_bytes} bytes) than the file can hold "
            f"({size} bytes). It is truncated or damaged: copy it again from its source."
        )


def check_grid(path: Path, geometry: Geometry) -> Geometry:
    """The very geometry; raises `ReadError` for too many voxels and for an impossible spacing."""
    n_voxels, (low, high) = math.prod(geometry.shape), _limits.spacing_mm
    if n_voxels > _limits.max_voxels:
        raise ReadError(
            f"{path}: too many voxels: {n_voxels}, at most {_limits.max_voxels} "
            "(max_voxels=). Check the header, or cut the image into parts."
        )
    if not all(low <= mm <= high for mm in geometry.spacing_mm):
        spacing = " × ".join(f"{mm:g}" for mm in geometry.spacing_mm)
        raise ReadError(
            f"{path}: impossible voxel size {spacing} mm, expected {low:g} to {high:g} mm. "
            "Correct the spacing, and its unit, in the file's header."
        )
    return geometry


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a file library raises into an error of ours that names the file."""
    try:
        yield
    except LesionsegError as error:
        if isinstance(error, GeometryError) and str(path) not in str(error):
            raise GeometryError(f"{path}: {error}") from error
        raise
    except MemoryError as error:
        raise ReadError(f"{path}: reading it takes more memory than there is.") from error
    except Exception as error:  # a parser fed with damaged bytes may raise anything at all
        words = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(
            f"{path}: cannot be read ({words}). Check it in a viewer, or copy it again."
        ) from error
