"""Native decoders (ITK, Pillow, TIFF, DICOM's JPEGs, COCO's run lengths) in one worker process.

A damaged file may crash such a library, fill the memory or never end. The worker reads it within
limits of memory and time, and its death is that file's failure alone. It is no sandbox.
"""

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from time import monotonic
from typing import IO, ParamSpec, TypeVar, cast

from lesionseg.errors import ReadError
from lesionseg.io.limits import limits, set_limits

P = ParamSpec("P")
T = TypeVar("T")

_BYTES_PER_SECOND = 2e6  # of a slow network disk, on top of the time that any file may take
_LIBRARIES_BYTES = 2**30  # what decoders take beside the voxels
_BYTES_PER_VOXEL = 16  # 64-bit numbers twice: as decoded, and in the order of the array
_COMMAND = "import sys; sys.path[:] = {!r}; from lesionseg.io.worker import serve; serve()"

_process: subprocess.Popen[bytes] | None = None
_lock = Lock()  # threads take turns


def in_worker(read: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
    """What `read(*args, **settings)` returns or raises, run in this process's worker.

    `read` is a function of a module, its first argument the file, or what to call it. Raises
    `ReadError` when it crashes, or takes more time or memory than `limits()` allow a file.
    """
    global _process
    where, seconds = args[0], limits().read_seconds
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
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        jobs, replies = cast(IO[bytes], _process.stdin), cast(IO[bytes], _process.stdout)
        timer, begin = Timer(seconds, _process.kill), monotonic()
        timer.start()
        try:
            pickle.dump((read, args, settings, limits()), jobs)
            jobs.flush()
            failed, value = pickle.load(replies)  # voxels go straight into their array
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            late = monotonic() - begin >= seconds
            what = f"took longer than {seconds:.0f} s" if late else "crashed on it"
            stop()
            raise ReadError(
                f"{where}: the reader {what}. Write the file again in a viewer, or leave it out."
            ) from error
        except BaseException:  # interrupted: the reply still to come is no other file's
            stop()
            raise
        finally:
            timer.cancel()
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


def serve() -> None:
    """What the worker does: jobs from standard input, replies to standard output, until it ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print goes nowhere
    with suppress(OSError):  # where memory runs out all the same, this process is ended first
        Path("/proc/self/oom_score_adj").write_text("1000")
    while True:
        try:
            read, args, settings, file_limits = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        set_limits(file_limits)
        _limit_memory(_LIBRARIES_BYTES + _BYTES_PER_VOXEL * file_limits.max_voxels)
        try:
            reply = (False, read(*args, **settings))
        except Exception as error:  # raised again by the other process
            reply = (True, error)
        pickle.dump(reply, replies, protocol=5)
        replies.flush()


def _limit_memory(n_bytes: int) -> None:
    """Allow `n_bytes` beyond what is mapped now, and no more than the machine has; Linux alone."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        page = resource.getpagesize()
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
        machine = os.sysconf("SC_PHYS_PAGES") * page
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + min(n_bytes, machine), hard))
