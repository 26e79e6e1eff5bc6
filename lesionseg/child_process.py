"""A child Python process that runs functions: jobs sent and answered, killed, stop signals."""

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import IO, Any, TypeVar, cast

T = TypeVar("T")

# the signals by which schedulers stop a command; SLURM sends SIGUSR1 if the job asks for it
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]

_COMMAND = (
    "import sys; sys.path[:] = {!r}; from lesionseg.child_process import run_jobs; run_jobs()"
)


class ChildEnded(Exception):
    """The child process ended before it returned a result."""


class ChildProcess:
    """A Python process that runs functions for this process, one at a time.

    It has no state of this process: it imports the functions that it runs. It ends with this
    process, even during a function. Signals to the group of this process do not reach it.

    Args:
        stderr: Its standard error, as in `subprocess.Popen`. None shares that of this process.
        environment: Environment variables in addition to, or instead of, those of this process.
    """

    def __init__(self, *, stderr: int | None = None, **environment: str) -> None:
        self._lock = Lock()  # `close` waits until `run` no longer uses the pipes
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _COMMAND.format(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pipesize=2**20,  # bytes; fewer and larger pieces than with the default of 64 KiB
            # only the parent may get a signal to its whole group, such as those of a scheduler
            process_group=0 if os.name == "posix" else None,
            env={**os.environ, **environment},
        )
        self._jobs = cast(IO[bytes], self.process.stdin)
        self._replies = cast(IO[bytes], self.process.stdout)

    @property
    def has_ended(self) -> bool:
        """True if the child process no longer runs."""
        return self.process.poll() is not None

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function(*args)` in the child process and return its result.

        Warnings and errors that the function logs below `lesionseg` appear in this process. An
        exception of the function is raised here. If this call is interrupted, or the function or
        its arguments cannot be pickled, the child process is killed.

        Args:
            function: A function that can be pickled.
            args: Its arguments.

        Raises:
            ChildEnded: If the child process crashes or is killed, or the result cannot be pickled.
        """
        with self._lock:
            try:
                # Pickled twice: a thread of the child reads the inner bytes as they are, and the
                # main thread imports the function when it unpickles them.
                pickle.dump(pickle.dumps((function, args)), self._jobs)
                self._jobs.flush()
                # pickle's protocol 5 reads an array from the pipe directly into its memory
                failed, value, messages = pickle.load(self._replies)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise ChildEnded from error
            except BaseException:  # after an interruption, the next job would get the late reply
                self.process.kill()
                self.process.wait()
                raise
        for record in messages:
            logging.getLogger(record.name).handle(record)
        if failed:
            raise value
        result: T = value
        return result

    def close(self) -> None:
        """Kill the child process and wait for its end.

        A call of `run` in another thread then raises `ChildEnded`.
        """
        self.process.kill()
        with self._lock, suppress(OSError):  # the pipe may contain bytes that were not read
            self.process.communicate()


def run_jobs() -> None:
    """Run the jobs of the parent process. This is the main loop of the child process.

    It reads pickled jobs (function, arguments) from standard input and writes replies to standard
    output. A reply is a tuple: True if the job failed, the result or the error, and the log
    messages. The function never returns, because the process ends with the parent's pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    replies = os.fdopen(os.dup(1), "wb")  # a copy of standard output, the pipe to the parent
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discard text that libraries print
    messages: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger("lesionseg").addHandler(QueueHandler(messages))  # makes them picklable
    with suppress(OSError):  # if memory runs out, Linux must kill this process, not the parent
        Path("/proc/self/oom_score_adj").write_text("1000")  # the maximum
    jobs: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_receive_jobs, args=(jobs,), daemon=True).start()
    while True:
        job = jobs.get()
        try:
            function, args = pickle.loads(job)
            value = function(*args)
            failed = False
        except Exception as error:  # the parent raises it again
            value = error
            failed = True
        logged = [messages.get() for _ in range(messages.qsize())]
        pickle.dump((failed, value, logged), replies, protocol=5)
        replies.flush()
        del value  # the next job needs the memory


def _receive_jobs(jobs: SimpleQueue[bytes]) -> None:
    """Read jobs from the parent into a queue, in a thread of the child process.

    When the parent closes the pipe or ends, this process ends at once, even during a job.
    """
    try:
        with os.fdopen(0, "rb", closefd=False) as pipe:
            while True:
                jobs.put(pickle.load(pipe))
    finally:
        os._exit(0)  # `sys.exit` would only end this thread
