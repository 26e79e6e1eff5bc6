"""Limits for reading a file: sizes are checked before allocation, native decoders run in a worker.

A damaged file may crash a native library (ITK, Pillow, TIFF, JPEG in DICOM, run lengths of COCO),
fill the memory or never end. The worker process reads it within limits of memory and processor
time. If the worker dies, only this file fails. The worker is not a sandbox.
"""

import atexit
import errno
import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock, Timer
from time import monotonic, process_time
from typing import ParamSpec, TypeVar

from lesionseg.child_process import ChildEnded, ChildProcess
from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError, ResourceError
from lesionseg.host_memory import physical_bytes
from lesionseg.io.files import explain_missing

P = ParamSpec("P")
# numbers of errors of a disk, a network, a permission or the system, not of a file's content
MAY_PASS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH),
        *(errno.EHOSTUNREACH, errno.ECONNRESET, errno.EACCES, errno.EPERM, errno.EBUSY),
        *(errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EROFS),
    }
)

T = TypeVar("T")

ONE_VALUE = (
    "A file has one value per voxel: split an image into one file per channel (<case>_0000, "
    "<case>_0001, …), and merge the layers of a mask into one label map."
)

# The ratio of deflate, which compresses NIfTI, NRRD, MHA and PNG, is at most 1032 (zlib's technical
# notes). It is rounded up, and a small claim is always accepted.
_MAX_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20
_MICROSCOPIC_MM = 0.02  # clinical scanners do not have such small voxels
_BYTES_PER_SECOND = 2e6  # rate of a slow processor or a slow network disk
_WALL_PER_PROCESSOR = 20  # wall time per processor time before a decoder counts as blocked
_EXIT_SECONDS = 30  # time that a worker may take to exit after it has closed its pipe
_LIBRARIES_BYTES = 2**30  # memory of the decoders in addition to the voxels
_BYTES_PER_VOXEL = 16  # two copies of 64-bit numbers: as decoded, and in the order of the array


@dataclass(frozen=True)
class FileLimits:
    """The limits for one file.

    Attributes:
        max_voxels: Largest number of voxels of one channel, before and after resampling to the
            plan's spacing. The default is the highest number that 32-bit indices allow.
        advice: A sentence for the message about too many voxels. It names the setting that
            `max_voxels` follows from.
        spacing_mm: Smallest and largest spacing.
        extent_mm: Smallest and largest length of the longest side.
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
_worker: ChildProcess | None = None
_lock = Lock()  # one thread at a time uses the worker


def limits() -> FileLimits:
    """Return the limits of this process."""
    return _limits


def set_limits(limits: FileLimits) -> None:
    """Set the limits of this process and of its worker."""
    global _limits  # otherwise, most functions of the package would need it as an argument
    _limits = limits


def largest_content(n_compressed: int) -> int:
    """Return the largest number of bytes that so many bytes of deflate can contain."""
    return n_compressed * _MAX_COMPRESSION + _ALWAYS_ALLOWED_BYTES


def check_size(path: Path, n_bytes: int, *, compressed: bool = True) -> None:
    """Raise `ReadError` if a header claims more voxels than its file can contain.

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


def check_grid(path: Path, geometry: Geometry, unit: str = "") -> Geometry:
    """Check that the size of a grid is possible for a scan, and return the grid.

    The extent is not checked for pictures without a pixel size.

    Args:
        path: The file, for messages.
        geometry: The grid.
        unit: The unit of the header, for messages, if it is not millimetres.

    Raises:
        ReadError: There are too many voxels, or the spacing or the extent is outside its limits.
            An extent below its limit is an error only if the spacing is microscopic as well,
            because a wrong unit changes both.
    """
    n_voxels = math.prod(geometry.shape)
    if n_voxels > _limits.max_voxels:
        raise ReadError(
            f"{path}: the image has too many voxels: {n_voxels}, at most {_limits.max_voxels}. "
            f"Crop it, or resample it to larger voxels. {_limits.advice}".rstrip()
        )
    spacing = " × ".join(f"{mm:g}" for mm in geometry.spacing_mm)
    stated = f" The header gives lengths in {unit}." if unit else ""
    advice = f"{stated} Correct the spacing or its unit in the header."
    low, high = _limits.spacing_mm
    if not all(low <= mm <= high for mm in geometry.spacing_mm):
        raise ReadError(
            f"{path}: impossible voxel size: the spacing {spacing} mm is outside {low:g}–{high:g} "
            f"mm.{advice}"
        )
    extent = max(n * mm for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True))
    least, largest = _limits.extent_mm
    is_tiny = extent < least and max(geometry.spacing_mm) < _MICROSCOPIC_MM
    if geometry.size_unit != "px" and (is_tiny or extent > largest):
        raise ReadError(
            f"{path}: impossible extent: the longest side is {extent:.3g} mm with the spacing "
            f"{spacing} mm, expected {least:g}–{largest:g} mm.{advice}"
        )
    return geometry


@contextmanager
def convert_read_errors(path: Path) -> Iterator[None]:
    """Convert every error within the context into a `LesionsegError` that names the file."""
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
    """Return the error of a file whose content cannot be read."""
    if isinstance(error, FileNotFoundError):
        return ReadError(explain_missing(path))
    words = " ".join(str(error).split()) or type(error).__name__
    return ReadError(
        f"{path}: cannot be read ({words}). If a viewer opens it, save it from there again; "
        "otherwise copy it again from its source."
    )


def run_in_worker(read: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """Run `read(*args, **settings)` in the worker of this process and return its result.

    Errors and log messages of `read` appear in this process. A decoder that is blocked without
    using the processor is stopped after 20 times the limit of its processor time.

    Args:
        read: A function that can be pickled.
        args: Its arguments. The first one is the file, or a name for it.
        settings: Its keyword arguments.

    Raises:
        ResourceError: `read` crashes, or needs more processor time or memory than `limits()` allow.
    """
    where = args[0]
    seconds = _allowed_seconds(Path(str(where)))
    with _lock:
        return _run_in_time(where, seconds, partial(read, *args, **settings))


def _allowed_seconds(path: Path) -> float:
    """Return the processor time for a file. A large file gets more. A name of no file does not."""
    seconds = _limits.read_seconds
    with suppress(OSError):
        seconds += path.stat().st_size / _BYTES_PER_SECOND
    return seconds


def _run_in_time(where: object, seconds: float, read: Callable[[], T]) -> T:
    """Run `read` in the worker, which is started if it does not run. Return its result.

    Raises `ResourceError` naming `where` if the worker gives no reply. It is stopped then, so that
    the next job gets a new one.
    """
    worker = _running_worker()
    wall_seconds = seconds * _WALL_PER_PROCESSOR
    timer = Timer(wall_seconds, worker.process.kill)
    begin = monotonic()
    timer.start()
    try:
        return worker.run(  # type: ignore[no-any-return]  # it is what `read` returns
            _read_within_limits, _limits, seconds, read
        )
    except ChildEnded as error:
        failure = "crashed on it"  # the last cause that applies is stated
        if _has_exceeded_time(worker.process):
            failure = f"took longer than {seconds:.0f} s of processor time"
        if monotonic() - begin >= wall_seconds:
            failure = f"did not answer for {wall_seconds:.0f} s"
        stop_worker()
        raise ResourceError(
            f"{where}: the reader {failure}. Write the file again in a viewer, or leave it out."
        ) from error
    finally:
        timer.cancel()


def _running_worker() -> ChildProcess:
    """Return the worker of this process. Start it if it does not run yet, or no longer."""
    global _worker
    if _worker is None or _worker.has_ended:
        stop_worker()
        _worker = ChildProcess(
            stderr=subprocess.DEVNULL, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"
        )
    return _worker


def _has_exceeded_time(process: subprocess.Popen[bytes]) -> bool:
    """Return True if the system has ended the worker because of its processor time.

    The worker has closed its pipe before, but its exit may take a while on a busy machine.
    """
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_EXIT_SECONDS) == -getattr(signal, "SIGXCPU", 0)
    return False


@atexit.register
def stop_worker() -> None:
    """End the worker. The next file starts a new one."""
    global _worker
    worker = _worker
    _worker = None
    if worker is not None:
        worker.close()


def _disown_worker() -> None:
    """Leave the worker to the parent after a fork, without touching its pipes."""
    global _worker, _lock
    if _worker is not None:
        _worker.process.returncode = 0
    _worker = None
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_worker)


def _read_within_limits(file_limits: FileLimits, seconds: float, read: Callable[[], T]) -> T:
    """Call `read` in the worker, within limits."""
    set_limits(file_limits)  # for the checks of the readers
    _limit_this_process(file_limits, seconds)
    return read()


def _limit_this_process(file_limits: FileLimits, seconds: float) -> None:
    """Limit memory (Linux) and processor time (Linux and macOS) for the next job."""
    with suppress(ImportError):  # Windows
        import resource

        with suppress(OSError, ValueError):  # a core dump would contain patient data
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):
            soft = math.ceil(process_time() + seconds)  # earlier jobs count as well
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        with suppress(OSError, ValueError):
            page = resource.getpagesize()
            n_mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
            allowed = _LIBRARIES_BYTES + _BYTES_PER_VOXEL * file_limits.max_voxels
            # RLIMIT_AS counts all mapped addresses, also those of libraries loaded before this job
            soft = n_mapped_pages * page + min(allowed, physical_bytes())
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
