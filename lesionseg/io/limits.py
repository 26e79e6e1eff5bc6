"""Limits of an image file: voxels, spacing, extent, seconds; advice for unreadable files.

They are checked before allocation.
"""

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import Geometry, describe_sides
from lesionseg.errors import GeometryError, LesionsegError, ReadError, ResourceError
from lesionseg.io.files import explain_missing

# numbers of errors of a disk, a network, a permission or the system, not of a file's content
MAY_PASS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EROFS,
    errno.EHOSTUNREACH, errno.ECONNRESET, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOSPC,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
}  # fmt: skip

ONE_VALUE = (
    "A file has one value per voxel: split an image into one file per channel (<case>_0000, "
    "<case>_0001, …), and merge the layers of a mask into one label map."
)

# The ratio of deflate, which compresses NIfTI, NRRD, MHA and PNG, is at most 1032 (zlib's technical
# notes). It is rounded up, and a small claim is always accepted.
_MAX_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20
_MICROSCOPIC_MM = 0.02  # clinical scanners do not have such small voxels


@dataclass(frozen=True)
class FileLimits:
    """The limits for reading one file. Larger images and slower decoders are errors.

    Attributes:
        max_voxels: Largest number of voxels of one channel, before and after resampling to the
            plan's spacing. The default is the highest number that 32-bit indices allow.
        advice: A sentence for the message about too many voxels. It names the setting that
            `max_voxels` follows from.
        spacing_mm: Smallest and largest spacing.
        extent_mm: Smallest and largest length of the longest side, see `check_grid`.
        read_seconds: Processor time that a native decoder may use. Large files get more, in
            proportion to their size. Time in which the decoder waits for a processor does not
            count, so that intact files do not fail on a busy machine.
    """

    max_voxels: int = 2**31 - 1
    advice: str = ""
    spacing_mm: tuple[float, float] = (1e-3, 100.0)
    extent_mm: tuple[float, float] = (1.0, 1e4)
    read_seconds: float = 60.0


_limits = FileLimits()


def limits() -> FileLimits:
    """Return the limits that apply to all files in this process."""
    return _limits


def set_limits(limits: FileLimits) -> None:
    """Set the limits that apply to all files in this process and in its worker (`io.worker`)."""
    global _limits  # otherwise, most functions of the package would need it as an argument
    _limits = limits


def limit_voxels(maximum: int, advice: str) -> None:
    """Lower the allowed number of voxels of an image in this process. Never raise it.

    Args:
        maximum: The new largest number of voxels. It is ignored if the present limit is lower.
        advice: A sentence for the message about larger images, see `FileLimits`.
    """
    if maximum < _limits.max_voxels:
        set_limits(replace(_limits, max_voxels=maximum, advice=advice))


def largest_content(n_compressed: int, ratio: int = _MAX_COMPRESSION) -> int:
    """Return the largest possible size in bytes of a content that deflate has compressed.

    The size is used to reject a header that claims more. 1 MiB is always allowed.

    Args:
        n_compressed: The size of the compressed content in bytes.
        ratio: The highest ratio of uncompressed to compressed size.
    """
    return n_compressed * ratio + _ALWAYS_ALLOWED_BYTES


def check_size(path: Path, n_bytes: int, *, compressed: bool = True) -> None:
    """Raise `ReadError` if a header claims more voxels than its file can contain.

    Readers call this function before they allocate memory for the claimed voxels.

    Args:
        path: The file.
        n_bytes: The size of the voxels that the header claims.
        compressed: False if the voxels are stored without compression.
    """
    size = path.stat().st_size
    if n_bytes > (largest_content(size) if compressed else size):
        raise ReadError(
            f"{path}: the header claims more voxels ({n_bytes} bytes) than the file can hold "
            f"({size} bytes). It is damaged or cut short: copy it again from its source."
        )


def check_grid(path: Path, geometry: Geometry, unit: str = "") -> None:
    """Check that a grid has a size that is possible for a scan, see `FileLimits`.

    Three sizes are checked:

    - the number of voxels,
    - the spacing along each axis,
    - the extent, which is the length of the longest side. It is not checked for pictures without a
      pixel size. A small extent is an error only if all spacings are below 0.02 mm as well, because
      a wrong unit in the header reduces both.

    Args:
        path: The file, for messages.
        geometry: The grid.
        unit: The unit of lengths in the header, for messages. "" if it is millimetres.

    Raises:
        ReadError: If one of the sizes is outside its limits.
    """
    n_voxels = math.prod(geometry.shape)
    if n_voxels > _limits.max_voxels:
        raise ReadError(
            f"{path}: the image has too many voxels: {n_voxels}, at most {_limits.max_voxels}. "
            f"Crop it, or resample it to larger voxels. {_limits.advice}".rstrip()
        )
    spacing = describe_sides(geometry.spacing_mm)
    unit_hint = f" The header gives lengths in {unit}." if unit else ""
    advice = f"{unit_hint} Correct the spacing or its unit in the header."
    low, high = _limits.spacing_mm
    if not all(low <= mm <= high for mm in geometry.spacing_mm):
        raise ReadError(
            f"{path}: impossible voxel size: the spacing {spacing} mm is outside {low:g}–{high:g} "
            f"mm.{advice}"
        )
    extent = max(n * mm for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True))
    smallest, largest = _limits.extent_mm
    is_tiny = extent < smallest and max(geometry.spacing_mm) < _MICROSCOPIC_MM
    if geometry.size_unit != "px" and (is_tiny or extent > largest):
        raise ReadError(
            f"{path}: impossible extent: the longest side is {extent:.3g} mm with the spacing "
            f"{spacing} mm, expected {smallest:g}–{largest:g} mm.{advice}"
        )


def check_resampled(where: str, shape: Sequence[int]) -> None:
    """Raise `GeometryError` if a resampled image would have more voxels than the limit.

    A small file whose header states large voxels could otherwise exhaust the memory when it is
    resampled to small ones.

    Args:
        where: The image, for the message.
        shape: The shape of the resampled image.
    """
    if math.prod(shape) > _limits.max_voxels:
        raise GeometryError(
            f"{where}: would have {describe_sides(shape)} voxels on the model's grid, more than "
            f"{_limits.max_voxels}. Check the voxel size in the file's header. "
            f"{_limits.advice}".rstrip()
        )


@contextmanager
def convert_read_errors(path: Path) -> Iterator[None]:
    """Convert every error within the context into a `LesionsegError` that names the file.

    - A `LesionsegError` is raised again. A `GeometryError` without the path gets the path.
    - An error that may not occur at the next attempt becomes a `ResourceError`: too little memory,
      a failure of the network or disk, missing permissions.
    - Any other error, such as that of a parser about damaged bytes, becomes a `ReadError`.
    """
    try:
        yield
    except LesionsegError as error:
        if isinstance(error, GeometryError) and str(path) not in str(error):
            raise GeometryError(f"{path}: {error}") from error
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{path}: there is not enough memory to read it. Close other programs, or crop it."
        ) from error
    except Exception as error:  # damaged bytes can make a parser raise any error
        failure = _unreadable(path, error)
        if isinstance(error, OSError) and error.errno in MAY_PASS:
            raise ResourceError(str(failure)) from error
        raise failure from error


def _unreadable(path: Path, error: Exception) -> ReadError:
    """Return the `ReadError` with advice for an error that occurred while a file was read.

    The message explains a missing file, an error of the system, or any other error.
    """
    if isinstance(error, FileNotFoundError):
        return ReadError(explain_missing(path))
    if isinstance(error, OSError) and error.strerror:
        return ReadError(
            f"{path}: cannot be read: {error.strerror.lower()}. Check the disk and the permissions."
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return ReadError(
        f"{path}: cannot be read ({reason}). If a viewer opens it, save it from there again; "
        "otherwise copy it again from its source."
    )
