import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lesionseg.pipeline.predict.stages import Halt, Queue, Stopped, overlapped


def _plus(n: int) -> Any:
    def step(items: Iterator[int], _: Halt) -> Iterator[int]:
        for item in items:
            yield item + n

    return step


def _no_thread_is_left(before: set[threading.Thread]) -> bool:
    return not (set(threading.enumerate()) - before)


def test_items_pass_all_steps_in_order() -> None:
    before = set(threading.enumerate())
    assert list(overlapped(range(50), _plus(1), _plus(10))) == list(range(11, 61))
    assert list(overlapped([], _plus(1))) == []
    assert _no_thread_is_left(before)


def test_steps_overlap() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def waits_with(waits_at: int) -> Any:
        def step(items: Iterator[int], _: Halt) -> Iterator[int]:
            for item in items:
                if item == waits_at:
                    meeting.wait()
                yield item

        return step

    # the first step meets the second only if it has item 1 while the other has item 0
    assert list(overlapped([0, 1], waits_with(1), waits_with(0))) == [0, 1]


def test_a_slow_step_makes_the_others_wait() -> None:
    begun: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100):
            begun.append(i)
            yield i

    results = overlapped(source(), _plus(0), _plus(0), ahead=1)
    next(results)
    time.sleep(0.1)
    assert len(begun) <= 8
    results.close()


def test_several_workers_share_the_items() -> None:
    found = list(overlapped(range(40), [_plus(1)] * 3, _plus(0)))
    assert sorted(found) == list(range(1, 41))


def test_several_workers_may_begin_with_a_generator() -> None:
    """Which refuses two threads at once."""

    def source() -> Iterator[int]:
        for i in range(40):
            time.sleep(0.001)
            yield i

    assert sorted(overlapped(source(), [_plus(1)] * 4)) == list(range(1, 41))


def test_what_a_step_raises_is_raised_and_ends_the_others() -> None:
    before = set(threading.enumerate())

    def fails(items: Iterator[int], _: Halt) -> Iterator[int]:
        for item in items:
            if item == 5:
                raise RuntimeError("broken")
            yield item

    with pytest.raises(RuntimeError, match="broken"):
        list(overlapped(range(1000), _plus(0), fails, _plus(0)))
    assert _no_thread_is_left(before)


def test_closing_ends_a_step_in_the_middle_of_its_work() -> None:
    before = set(threading.enumerate())

    def endless(items: Iterator[int], halt: Halt) -> Iterator[int]:
        yield next(items)
        while True:
            halt.check()
            time.sleep(0.001)

    results = overlapped(range(1000), _plus(0), endless)
    assert next(results) == 0
    results.close()
    assert _no_thread_is_left(before)


def test_a_queue_says_whether_something_waits() -> None:
    halt = Halt()
    queue = Queue(2, 1, halt)
    assert not queue.ready()
    queue.put(1)
    assert queue.ready()
    halt.set()
    with pytest.raises(Stopped):
        next(queue)
