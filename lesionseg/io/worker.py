"""The worker process of native decoders: limits of memory and processor time, crash, restart.

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
    """Run `read(*args, **settings)` in the worker process and return its result.

    The worker belongs to this process and is started if necessary. Errors of `read`, such as a
    `MemoryError`, and its log messages appear in this process. A decoder that is blocked without
    using the processor is stopped after 20 times the limit of its processor time.

    Args:
        read: A function that can be pickled.
        args: The arguments of `read`. The first one is the file, or a name for it in messages.
        settings: The keyword arguments of `read`.

    Raises:
        ResourceError: If `read` crashes, for example for lack of memory, or needs more processor
            time than `limits()` allow.
    """
    where = args[0]
    seconds = _allowed_seconds(Path(str(where)))
    with _lock:
        return _run_in_time(where, seconds, partial(read, *args, **settings))


def _allowed_seconds(path: Path) -> float:
    """Return the allowed processor time in seconds for reading a file.

    The time is the limit of `limits()`, plus a time in proportion to the size of the file. A path
    that does not exist gets the time of an empty file.
    """
    seconds = limits().read_seconds
    with suppress(OSError):
        seconds += path.stat().st_size / _BYTES_PER_SECOND
    return seconds


def _run_in_time(where: object, seconds: float, read: Callable[[], T]) -> T:
    """Run `read` in the worker within limited time, and return its result.

    If the worker ends or does not reply, it is stopped, so that the next file gets a new worker.

    Args:
        where: The file, for the message.
        seconds: The allowed processor time. The allowed wall time is 20 times as long.
        read: The function without arguments.

    Raises:
        ResourceError: If the worker crashes or exceeds one of the times.
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
        reason = "crashed on it"  # the last cause that applies goes into the message
        if _has_exceeded_time(worker.process):
            reason = f"took longer than {seconds:.0f} s of processor time"
        if monotonic() - begin >= wall_seconds:
            reason = f"did not answer for {wall_seconds:.0f} s"
        stop_worker()
        raise ResourceError(
            f"{where}: the reader {reason}. Write the file again in a viewer, or leave it out."
        ) from error
    finally:
        timer.cancel()


def _running_worker() -> ChildProcess:
    """Return the worker of this process. Start a worker if none runs yet, or if it has ended."""
    global _worker
    if _worker is None or _worker.has_ended:
        stop_worker()
        # drop what native libraries print; their threads would add to the limited time and memory
        _worker = ChildProcess(
            stderr=subprocess.DEVNULL, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"
        )
    return _worker


def _has_exceeded_time(process: subprocess.Popen[bytes]) -> bool:
    """Return True if the system has killed the worker because it exceeded its processor time.

    The worker has closed its pipe already, but may need some time to exit on a busy machine. Wait
    for its exit for up to 30 s. Return False if the worker still runs then, and on Windows, which
    has no such limit.
    """
    with suppress(subprocess.TimeoutExpired):
        # SIGXCPU: the signal about exceeded processor time. On Windows, no exit code is -1.
        return process.wait(timeout=_EXIT_SECONDS) == -getattr(signal, "SIGXCPU", 1)
    return False


@atexit.register
def stop_worker() -> None:
    """End the worker, if one runs. The next file starts another worker.

    This function is also called at the exit of this process.
    """
    global _worker
    worker = _worker
    _worker = None
    if worker is not None:
        worker.close()


def _disown_worker() -> None:
    """Forget the worker in a forked child process, because it belongs to the parent process.

    The child must not use or close the pipes that it shares with the parent. It starts its own
    worker if it reads a file.
    """
    global _worker, _lock
    if _worker is not None:
        _worker.process.returncode = 0  # so that Popen neither waits for the process nor warns
    _worker = None
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_worker)


def _read_within_limits(file_limits: FileLimits, seconds: float, read: Callable[[], T]) -> T:
    """Set limits for this process, the worker, and return the result of `read`.

    The worker calls this function for each file. The system kills the worker after `seconds` of
    further processor time.
    """
    set_limits(file_limits)  # for the checks of the readers
    _limit_this_process(file_limits, seconds)
    return read()


def _limit_this_process(file_limits: FileLimits, seconds: float) -> None:
    """Limit memory (Linux) and processor time (Linux and macOS) of this process, the worker.

    Core dumps (files with the memory of a crashed process) are switched off. A limit that the
    system refuses is not set. Windows has no such limits.

    Args:
        file_limits: The limits for the file. The allowed memory follows from `max_voxels`.
        seconds: The further processor time that is allowed from now on.
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
