"""Limits for one file: sizes checked before allocating, and native decoders in a worker process.

A damaged file may crash such a library (ITK, Pillow, TIFF, DICOM's JPEGs, COCO's run lengths), fill
the memory or never end. The worker reads it within limits of memory and processor time, and its
death fails that file only. The worker is no sandbox.
"""

import atexit
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from time import monotonic, process_time
from typing import IO, ParamSpec, TypeVar, cast

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError, ResourceError

P = ParamSpec("P")
T = TypeVar("T")

# deflate, the compression of NIfTI, NRRD, MHA and PNG, shrinks at most 1032 to 1 (zlib's
# technical notes); rounded up, and small files are let through whatever they claim
_MOST_COMPRESSION = 1100
_ALWAYS_ALLOWED_BYTES = 2**20
_MICROSCOPIC_MM = 0.02  # voxels of no clinical scanner
_BYTES_PER_SECOND = 2e6  # decoded by a slow processor, or read from a slow network disk
_WALL_PER_PROCESSOR = 20  # a machine may be this busy before a decoder counts as blocked
_ENDING_SECONDS = 30  # of a process that has closed its pipe
_LIBRARIES_BYTES = 2**30  # what decoders take beside the voxels
_BYTES_PER_VOXEL = 16  # 64-bit numbers twice: as decoded, and in the order of the array
_COMMAND = "import sys; sys.path[:] = {!r}; from lesionseg.io.limits import serve; serve()"


@dataclass(frozen=True)
class FileLimits:
    """The limits of one file.

    `max_voxels`: of one channel, on the file's grid and on the plan's; as many as indices of 32
    bits can count. `spacing_mm`: least and largest. `extent_mm`: of the longest side, least and
    largest. `read_seconds`: processor time of a native decoder, beside a share for each byte of the
    file. Time in which the decoder waits for a processor does not count, so that a busy machine
    fails no healthy file.
    """

    max_voxels: int = 2**31 - 1
    spacing_mm: tuple[float, float] = (1e-3, 100.0)
    extent_mm: tuple[float, float] = (1.0, 1e4)
    read_seconds: float = 60.0


_limits = FileLimits()
_process: subprocess.Popen[bytes] | None = None  # the worker
_lock = Lock()  # threads take turns


def limits() -> FileLimits:
    return _limits


def set_limits(limits: FileLimits) -> None:
    """Set the limits of this process and of its worker."""
    global _limits  # a reader deep in a dataset is handed no settings
    _limits = limits


def check_size(path: Path, n_bytes: int, *, compressed: bool = True) -> None:
    """Raise `ReadError` when a header claims more bytes of voxels than its file can hold."""
    size = path.stat().st_size
    if n_bytes > (size * _MOST_COMPRESSION + _ALWAYS_ALLOWED_BYTES if compressed else size):
        what = f"claims more voxels ({n_bytes} bytes) than the file can hold ({size} bytes)"
        raise ReadError(
            f"{path}: the header {what}. It is damaged or cut short: copy it again from its source."
        )


def check_grid(path: Path, geometry: Geometry, unit: str = "") -> Geometry:
    """Return the same geometry; raise `ReadError` if its size cannot be that of a scan.

    That is: too many voxels, a spacing outside the limits, or voxels of a microscope on a grid that
    covers less than a millimetre, as a wrong unit gives them. Pictures that state no pixel size
    have no extent. `unit` is the header's, if it is not millimetres: the message names it.
    """
    n_voxels = math.prod(geometry.shape)
    if n_voxels > _limits.max_voxels:
        raise ReadError(
            f"{path}: the image has too many voxels: {n_voxels}, at most {_limits.max_voxels}. "
            "Crop it, or resample it to larger voxels."
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
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a file library raises into an error of ours that names the file."""
    try:
        yield
    except LesionsegError as error:
        if isinstance(error, GeometryError) and str(path) not in str(error):
            raise GeometryError(f"{path}: {error}") from error
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{path}: reading it takes more memory than there is. Close other programs, or crop it."
        ) from error
    except Exception as error:  # a parser fed with damaged bytes may raise anything at all
        words = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(
            f"{path}: cannot be read ({words}). If a viewer opens it, save it from there again; "
            "otherwise copy it again from its source."
        ) from error


def in_worker(read: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """Run `read(*args, **settings)` in this process's worker and return its result.

    The first argument is the file, or a name for it. Errors and log messages of `read` appear in
    this process. Raises `ReadError` if `read` crashes, or takes more processor time or memory than
    `limits()` allow a file. A decoder that does nothing at all is ended after a far longer time.
    """
    global _process
    where, seconds = args[0], _limits.read_seconds
    with suppress(OSError):
        seconds += Path(str(where)).stat().st_size / _BYTES_PER_SECOND
    with _lock:
        if _process is None or _process.poll() is not None:
            stop()
            _process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _COMMAND.format(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pipesize=2**20,  # voxels in larger pieces
                # a signal to the whole group, as a scheduler's SIGTERM, is for the parent to answer
                process_group=0 if os.name == "posix" else None,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        jobs, replies = cast(IO[bytes], _process.stdin), cast(IO[bytes], _process.stdout)
        patience = seconds * _WALL_PER_PROCESSOR
        timer = Timer(patience, _process.kill)
        begin = monotonic()
        timer.start()
        try:
            pickle.dump((read, args, settings, _limits, seconds), jobs)
            jobs.flush()
            failed, value, said = pickle.load(replies)  # voxels go straight into their array
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            what = "crashed on it"
            # its pipe is closed, so it is ending: on a busy machine that takes a while
            with suppress(subprocess.TimeoutExpired):
                if _process.wait(timeout=_ENDING_SECONDS) == -getattr(signal, "SIGXCPU", 0):
                    what = f"took longer than {seconds:.0f} s of processor time"
            if monotonic() - begin >= patience:
                what = f"did not answer for {patience:.0f} s"
            stop()
            raise ResourceError(
                f"{where}: the reader {what}. Write the file again in a viewer, or leave it out."
            ) from error
        except BaseException:  # interrupted: the reply still to come is no other file's
            stop()
            raise
        finally:
            timer.cancel()
    for name, level, message in said:
        logging.getLogger(name).log(level, "%s", message)
    if failed:
        raise value
    return value  # type: ignore[no-any-return]  # what `read` returns


@atexit.register
def stop() -> None:
    """End the worker; the next file starts another."""
    global _process
    process, _process = _process, None
    if process is not None:
        process.kill()
        with suppress(OSError):  # unsent bytes of a pipe whose reader is gone
            process.communicate()


def _forget() -> None:
    """In a forked process the worker is the parent's, and its pipes are left as they are."""
    global _process, _lock
    if _process is not None:
        _process.returncode = 0
    _process, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Said(logging.Handler):
    """The warnings of one job, to be logged by the other process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message; its arguments may not travel."""
        self.messages.append((record.name, record.levelno, record.getMessage()))


def serve() -> None:
    """Run the worker: jobs from standard input, replies to standard output, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print goes nowhere
    said = _Said()
    logging.getLogger("lesionseg").addHandler(said)
    with suppress(OSError):  # where memory runs out all the same, this process is ended first
        Path("/proc/self/oom_score_adj").write_text("1000")
    while True:
        try:
            read, args, settings, file_limits, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        set_limits(file_limits)
        _limit_this_process(file_limits, seconds)
        said.messages = []
        try:
            reply = (False, read(*args, **settings), said.messages)
        except Exception as error:  # raised again by the other process
            reply = (True, error, said.messages)
        pickle.dump(reply, replies, protocol=5)
        replies.flush()


def _limit_this_process(file_limits: FileLimits, seconds: float) -> None:
    """Limit memory (Linux) and processor time (Linux and macOS) of the worker's next job."""
    with suppress(ImportError):  # Windows
        import resource

        with suppress(OSError, ValueError):  # the memory of a crashed decoder holds patients' data
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):
            most = math.ceil(process_time() + seconds)
            resource.setrlimit(
                resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1])
            )
        with suppress(OSError, ValueError):
            page = resource.getpagesize()
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
            allowed = _LIBRARIES_BYTES + _BYTES_PER_VOXEL * file_limits.max_voxels
            soft = mapped + min(allowed, os.sysconf("SC_PHYS_PAGES") * page)
            resource.setrlimit(
                resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1])
            )
