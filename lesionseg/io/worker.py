"""The worker process, in which native decoders run with limits of memory and processor time.

A damaged file may crash a native library (ITK, Pillow, TIFF, JPEG in DICOM, run lengths of COCO),
fill the memory or never end. If the worker dies, only this file fails. The worker is not a sandbox.
"""

import atexit
import math
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock, Timer
from time import monotonic, process_time
from typing import ParamSpec, TypeVar

from lesionseg.child_process import ChildEnded, ChildProcess
from lesionseg.errors import ResourceError
from lesionseg.host_memory import physical_bytes
from lesionseg.io.limits import FileLimits, limits, set_limits

P = ParamSpec("P")
T = TypeVar("T")

_BYTES_PER_SECOND = 2e6  # rate of a slow processor or a slow network disk
_WALL_PER_PROCESSOR = 20  # wall time per processor time before a decoder counts as blocked
_EXIT_SECONDS = 30  # time that a worker may take to exit after it has closed its pipe
_LIBRARIES_BYTES = 2**30  # memory of the decoders in addition to the voxels
_BYTES_PER_VOXEL = 16  # two copies of 64-bit numbers: as decoded, and in the order of the array

_worker: ChildProcess | None = None
_lock = Lock()  # one thread at a time uses the worker


def run_in_worker(read: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """Run `read(*args, **settings)` in the worker of this process and return its result.

    Errors of `read`, such as a `MemoryError`, and its log messages appear in this process. A
    decoder that is blocked without using the processor is stopped after 20 times the limit of its
    processor time.

    Args:
        read: A function that can be pickled.
        args: Its arguments. The first one is the file, or a name for it.
        settings: Its keyword arguments.

    Raises:
        ResourceError: If `read` crashes, for example for lack of memory, or needs more processor
            time than `limits()` allow.
    """
    where = args[0]
    seconds = _allowed_seconds(Path(str(where)))
    with _lock:
        return _run_in_time(where, seconds, partial(read, *args, **settings))


def _allowed_seconds(path: Path) -> float:
    """Return the seconds of processor time for a file, more for a large file.

    A path that does not exist gets the time of an empty file.
    """
    seconds = limits().read_seconds
    with suppress(OSError):
        seconds += path.stat().st_size / _BYTES_PER_SECOND
    return seconds


def _run_in_time(where: object, seconds: float, read: Callable[[], T]) -> T:
    """Run `read` in the worker, which is started if it does not run. Return its result.

    Raise `ResourceError` naming `where` if the worker gives no reply. The worker is stopped then,
    so that the next job gets a new one.
    """
    worker = _running_worker()
    wall_seconds = seconds * _WALL_PER_PROCESSOR
    timer = Timer(wall_seconds, worker.process.kill)
    begin = monotonic()
    timer.start()
    try:
        result: T = worker.run(  # it is what `read` returns
            _read_within_limits, limits(), seconds, read
        )
        return result
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

    The worker has closed its pipe before, but its exit may take a while on a busy machine. Wait up
    to 30 s for it. A worker that still runs then, or runs on Windows, gives False.
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
        _worker.process.returncode = 0  # so that Popen neither waits for the process nor warns
    _worker = None
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_worker)


def _read_within_limits(file_limits: FileLimits, seconds: float, read: Callable[[], T]) -> T:
    """Limit this process and return the result of `read`. The limits stay until the next file.

    The system kills the process after `seconds` of processor time.
    """
    set_limits(file_limits)  # for the checks of the readers
    _limit_this_process(file_limits, seconds)
    return read()


def _limit_this_process(file_limits: FileLimits, seconds: float) -> None:
    """Limit memory (Linux) and processor time (Linux and macOS) for the next job.

    No core dumps are written. A limit that the system refuses is not set.
    """
    with suppress(ImportError):  # Windows
        import resource

        with suppress(OSError, ValueError):  # a core dump would contain patient data
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):
            soft = math.ceil(process_time() + seconds)  # earlier jobs count as well
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        with suppress(OSError, ValueError):
            n_mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
            allowed = _LIBRARIES_BYTES + _BYTES_PER_VOXEL * file_limits.max_voxels
            # RLIMIT_AS counts all mapped addresses, also those of libraries loaded before this job
            soft = n_mapped_pages * resource.getpagesize() + min(allowed, physical_bytes())
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
