"""Steps that overlap: each in threads of its own, with a short queue between one and the next.

 source ──▶ step 1 ──▶▐ ▌──▶ step 2 ──▶▐ ▌──▶ step 3 ──▶ whoever asked

numpy, torch and zlib let other threads run while they compute, hence reading, computing and writing
go on at the same time; a full queue makes the faster step wait, so that memory stays bounded.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any


class Stopped(BaseException):
    """The run was given up while a step was at work: no error that a step may handle."""


class Halt:
    """Whether the run was given up, for steps that take long."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Give the run up."""
        self._event.set()

    def check(self) -> None:
        """Raise `Stopped` once the run was given up."""
        if self._event.is_set():
            raise Stopped


Step = Callable[[Iterator[Any], Halt], Iterator[Any]]


class Queue:
    """A queue of at most `size` items between threads; it ends when all its writers have."""

    def __init__(self, size: int, n_writers: int, halt: Halt) -> None:
        self._items: deque[Any] = deque()
        self._size, self._n_writers, self._halt = size, n_writers, halt
        self._changed = threading.Condition()

    def put(self, item: object) -> None:
        """Add an item once there is room; raises `Stopped` when the run was given up."""
        with self._changed:
            while len(self._items) >= self._size:
                self._halt.check()
                self._changed.wait()
            self._halt.check()
            self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """One writer has no more."""
        with self._changed:
            self._n_writers -= 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Let every waiting thread look again."""
        with self._changed:
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            while not self._items:
                self._halt.check()
                if self._n_writers <= 0:
                    raise StopIteration
                self._changed.wait()
            self._halt.check()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def ready(self) -> bool:
        """Whether an item waits."""
        with self._changed:
            return bool(self._items)


class _Shared:
    """An iterator that several threads may ask, such as a generator alone would refuse."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source, self._lock = iter(source), threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            return next(self._source)


def overlapped(
    source: Iterable[Any], *steps: Step | Sequence[Step], ahead: int = 1
) -> Generator[Any]:
    """Pass the items of `source` through `steps`, each in a thread of its own.

    A step is called with an iterator of what comes in and a `Halt`, and yields what goes out; it
    is a `Queue` from the second step on. Several steps in one place share what comes in (one for
    each GPU): order is then no longer kept, else it is. `ahead` items wait between two steps. What
    a step raises is raised here. Closing the generator, or an exception while it waits (Ctrl-C),
    gives the run up: every step ends at its next item or `Halt.check`, and its thread with it.
    """
    halt = Halt()
    groups = [[step] if callable(step) else list(step) for step in steps]
    queues = [Queue(ahead, len(group), halt) for group in groups]
    errors: list[BaseException] = []

    def give_up() -> None:
        halt.set()
        for queue in queues:
            queue.wake()

    def work(step: Step, incoming: Iterator[Any], outgoing: Queue) -> None:
        try:
            for item in step(incoming, halt):
                outgoing.put(item)
        except Stopped:
            pass
        except BaseException as error:  # raised again in the thread that asked
            errors.append(error)
            give_up()
        finally:
            outgoing.end()

    inputs: list[Iterator[Any]] = [_Shared(source), *queues[:-1]]
    threads = [
        threading.Thread(target=work, args=(step, incoming, outgoing), daemon=True)
        for group, incoming, outgoing in zip(groups, inputs, queues, strict=True)
        for step in group
    ]
    for thread in threads:
        thread.start()
    try:
        with suppress(Stopped):
            yield from queues[-1]
    finally:
        give_up()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
