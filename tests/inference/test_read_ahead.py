"""Many volumes: steps that overlap, in order, or not where memory is short."""

import pytest

from lesionseg.inference.read_ahead import read_ahead


@pytest.mark.parametrize("fits", [True, False])
def test_steps_are_taken_in_order_and_one_item_after_the_other_where_memory_is_short(fits):
    log = []
    steps = [lambda i, *_, s=s: (log.append((i, s)), i)[1] for s in range(3)]
    assert list(read_ahead(range(3), *steps, fits=lambda _: fits)) == [0, 1, 2]
    assert sorted(log) == [(i, step) for i in range(3) for step in range(3)]
    assert fits or log == sorted(log)
    assert list(read_ahead([], print, print, print)) == []


@pytest.mark.parametrize("place", range(3))
def test_what_a_step_raises_is_raised(place):
    steps = [(lambda *_: 1 // 0) if i == place else (lambda *_: None) for i in range(3)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 2], *steps))
