"""Steps over many volumes that overlap in time, unless memory is short."""

from functools import partial
from threading import Event

import numpy as np
import pytest

from lesionseg.config import InferenceConfig
from lesionseg.core import CaseFiles, Volume
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import needed_bytes, predict_volumes, read_ahead
from tests.grids import unit_grid
from tests.inference.networks import Bright


@pytest.mark.parametrize("fits", [True, False])
def test_results_are_in_order_and_items_do_not_overlap_if_memory_is_short(fits):
    log = []

    def do(number, item, *_):
        log.append((item, number))
        return item

    steps = [partial(do, number) for number in range(3)]
    assert list(read_ahead(range(3), *steps, fits=lambda _: fits)) == [0, 1, 2]
    assert sorted(log) == [(i, step) for i in range(3) for step in range(3)]
    assert fits or log == sorted(log)
    assert list(read_ahead([], *steps)) == []


def pass_nothing(*_):
    return None


def divide_by_zero(*_):
    return 1 // 0


@pytest.mark.parametrize("place", range(3))
def test_error_of_a_step_is_raised(place):
    steps = [pass_nothing, pass_nothing, pass_nothing]
    steps[place] = divide_by_zero
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 2], *steps))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_result_of_a_written_item_precedes_the_interruption(interruption):
    def infer(item, _):
        if item == 2:
            raise interruption
        return item

    found = read_ahead([0, 1, 2, 3], pass_nothing, infer, lambda item, _: item)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(interruption):
        next(found)
    with pytest.raises(StopIteration):
        next(found)


class WaitForNextCase(Bright):
    """A network that waits for an event, at most for `seconds`."""

    def __init__(self, event, seconds):
        super().__init__()
        self.event = event
        self.seconds = seconds

    def forward(self, image):
        self.event.wait(self.seconds)
        return super().forward(image)


@pytest.mark.parametrize(("n_cases", "is_early"), [(1, False), (3.5, True)])
def test_predictions_of_volumes_follow_the_memory_of_the_settings(plan, rng, n_cases, is_early):
    """With memory for a single case, the second one is read after the first one is done."""
    shape = (9, 10, 11)
    geometry = unit_grid(*shape)
    gigabytes = n_cases * needed_bytes(geometry, plan) / 1e9
    settings = InferenceConfig.of(max_memory_gb=gigabytes)
    second_is_read = Event()

    def read(files):
        if files.case == "second":
            second_is_read.set()
        return Volume(rng.normal(0, 1, (1, *shape)).astype(np.float32), geometry)

    def use(*_):
        return second_is_read.is_set()

    cases = [CaseFiles(name, ()) for name in ("first", "second")]
    network = WaitForNextCase(second_is_read, seconds=600 if is_early else 0.5)
    predictor = Predictor(Bundle((network,), plan), settings=settings)
    assert list(predict_volumes(predictor, cases, read, use)) == [is_early, True]
