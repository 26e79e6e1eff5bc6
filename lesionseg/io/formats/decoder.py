"""Native decoders in a process of their own: ITK, Pillow, TIFF, JPEG and COCO's run lengths.

A damaged file may crash such a library, fill the memory or never end. So a worker process reads
it, within limits of memory and time; a worker that dies is replaced, and its file refused by name.
The worker starts with the first such file. Voxels come back through its pipe (1.6 GB/s measured),
which unlike /dev/shm no container keeps small. It guards against crashes; it is no sandbox.
"""

import atexit
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.formats import guard

P = ParamSpec("P")
T = TypeVar("T")

CRASHED = "The reader crashed on this file."
_BYTES_PER_SECOND = 2e6  # of a slow network disk, on top of the time that any file may take
_LIBRARIES_BYTES = 2**30  # what decoders take beside the voxels
_BYTES_PER_VOXEL = 16  # 64-bit numbers twice: as decoded, and in the order of the array
_COMMAND = "import sys; sys.path[:] = {!r}; from lesionseg.io.formats.decoder import serve; serve()"


def decode(read: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """What `read(*arguments, **settings)` returns or raises, run in this process's worker.

    `read` is a function of a module, and its first argument the file, or what to call it. Raises
    `ReadError` when it crashes, or takes more time or memory than `limits` allow a file.
    """
    return _decoder.run(read, arguments, settings)


class _Decoder:
    """The worker of one process, started when it is needed; threads take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._parents: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def run(
        self, read: Callable[..., T], arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> T:
        where, seconds = arguments[0], _seconds(arguments[0])
        with self._lock:
            process = self._running()
            timer = Timer(seconds, process.kill)
            timer.start()
            try:
                job = pickle.dumps((read, arguments, settings, guard.limits()))
                value, failed, records = _exchange(process, job)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise _death(where, self.stop(), None if timer.is_alive() else seconds) from error
            except BaseException:  # interrupted: the reply still to come is no other file's
                self.stop()
                raise
            finally:
                timer.cancel()
        for name, level, message in records:
            logging.getLogger(name).log(level, "%s", message)
        if failed:
            raise value
        return value  # type: ignore[no-any-return]  # of the type that `read` returns

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _COMMAND.format(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def stop(self) -> int | None:
        """End the worker; its exit status, None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # unsent bytes of a pipe whose reader is gone
                pipe.close()  # type: ignore[union-attr]  # both are pipes
        with suppress(subprocess.TimeoutExpired):  # it may be on its way to an exit status
            return process.wait(0.2)
        process.kill()
        return process.wait()

    def forget(self) -> None:
        """In a forked process: the worker is the parent's, and its pipes are left as they are."""
        self._parents, self._process, self._lock = self._process, None, Lock()
        if self._parents is not None:
            self._parents.returncode = 0


_decoder = _Decoder()
atexit.register(_decoder.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_decoder.forget)


def _seconds(where: object) -> float:
    with suppress(OSError):
        if isinstance(where, Path):
            return guard.limits().read_seconds + where.stat().st_size / _BYTES_PER_SECOND
    return guard.limits().read_seconds


def _exchange(process: subprocess.Popen[bytes], job: bytes) -> Any:
    jobs, replies = process.stdin, process.stdout
    if jobs is None or replies is None:
        raise EOFError
    jobs.write(job)
    jobs.flush()
    head, sizes = pickle.load(replies)
    return pickle.loads(head, buffers=[_received(replies, size) for size in sizes])


def _received(replies: IO[bytes], n_bytes: int) -> NDArray[np.uint8]:
    buffer = np.empty(n_bytes, dtype=np.uint8)
    view, n_read = buffer.data, 0
    while n_read < n_bytes:
        n = replies.readinto(view[n_read:])  # type: ignore[attr-defined]  # a buffered reader
        if not n:
            raise EOFError
        n_read += n
    return buffer


def _death(where: object, status: int | None, seconds: float | None) -> ReadError:
    remedy = "Open the file in a viewer and write it again, or leave it out."
    if seconds is not None:
        what = "Reading the file took too long and was given up."
        expected = f"at most {seconds:.0f} s"
        return ReadError(what, where=where, expected=expected, remedy=remedy)
    name = f"exit status {status}"
    with suppress(ValueError, TypeError):
        name = signal.Signals(-(status or 0)).name
    return ReadError(CRASHED, where=where, seen=name, remedy=remedy)


def serve() -> None:
    """What the worker does: a job from standard input, a reply to standard output, until it ends.

    What the libraries print goes nowhere. Ctrl-C is the parent's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with suppress(OSError):  # where memory runs out all the same, this process is ended first
        Path("/proc/self/oom_score_adj").write_text("1000")
    log = _Records()
    logging.getLogger("lesionseg").addHandler(log)
    while True:
        try:
            read, arguments, settings, limits = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        guard.set_limits(limits)
        _limit_memory(_LIBRARIES_BYTES + _BYTES_PER_VOXEL * limits.max_voxels)
        log.records = []
        try:
            value, failed = read(*arguments, **settings), False
        except Exception as error:  # raised again by the other process
            value, failed = error, True
        _reply(replies, (value, failed, log.records))


class _Records(logging.Handler):
    """Keeps what is logged, to be logged by the other process."""

    records: list[tuple[str, int, str]]

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, record.getMessage()))


def _reply(replies: IO[bytes], reply: tuple[Any, bool, Any]) -> None:
    buffers: list[pickle.PickleBuffer] = []
    try:
        head = pickle.dumps(reply, protocol=5, buffer_callback=buffers.append)
    except Exception:  # an error may hold what cannot travel
        buffers = []
        head = pickle.dumps((ReadError(str(reply[0])), True, reply[2]))
    views = [buffer.raw() for buffer in buffers]
    replies.write(pickle.dumps((head, [view.nbytes for view in views])))
    for view in views:
        replies.write(view)
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
