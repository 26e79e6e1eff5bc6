"""Many volumes: steps that overlap, in order, or not where memory is short."""

import time

import pytest

from lesionseg.inference.volumes import read_ahead

SECONDS = {"read": 0.0, "infer": 0.03, "write": 0.01}


def run(fits):
    """What three items give, and the steps in the order in which they ended."""
    log = []

    def step(name):
        def take(item, *_):
            time.sleep(SECONDS[name])
            log.append(f"{name} {item}")
            return item

        return take

    return list(read_ahead(range(3), *map(step, SECONDS), fits=lambda _: fits)), log


def test_steps_overlap_in_order_and_one_after_the_other_where_memory_is_short():
    (together, ahead), (alone, one_by_one) = run(True), run(False)
    assert together == alone == [0, 1, 2]
    assert one_by_one == [f"{name} {i}" for i in range(3) for name in SECONDS]
    assert ahead.index("read 1") < ahead.index("infer 0")
    assert list(read_ahead([], print, print, print)) == []


@pytest.mark.parametrize("place", range(3))
def test_what_a_step_raises_is_raised(place):
    steps = [(lambda *_: 1 // 0) if i == place else (lambda *_: None) for i in range(3)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 2], *steps))
