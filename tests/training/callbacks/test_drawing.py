"""Pictures of a plane, by hand."""

import numpy as np
import pytest

from lesionseg.training.callbacks.drawing import (
    LEAST_SIDE,
    PREDICTED,
    REFERENCE,
    boxes_side_by_side,
    crossing,
    fullest,
    stacked,
)


def test_the_fullest_plane_is_taken():
    marked = np.zeros((4, 5, 6), bool)
    marked[1, 2, 2] = marked[3, 2, 2] = marked[3, 2, 3] = True
    assert fullest(marked) == (3,)
    assert fullest(marked[3]) == ()


@pytest.mark.parametrize(("plane", "n"), [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_a_box_meets_the_planes_from_its_start_to_before_its_stop(plane, n):
    assert len(crossing([[1, 2, 3, 3, 6, 8]], (plane,))) == n
    assert len(crossing(np.zeros((0, 6)), (plane,))) == 0


def test_frames_lie_just_outside_boxes_and_the_reference_on_top():
    plane = np.full((12, 12), 1.0)
    picture = boxes_side_by_side(plane, [[4, 4, 7, 8]], [[4, 4, 7, 8], [0, 0, 2, 2]])
    times = LEAST_SIDE // 12
    small = picture[::times, ::times]
    left, right = small[:, :12], small[:, 12:]
    frame = (left == REFERENCE).all(-1)
    assert frame.sum() == 2 * 6 + 2 * 3  # 5 x 6 pixels around 3 x 4
    assert frame[3, 3]
    assert frame[7, 8]
    assert not frame[4:7, 4:8].any()
    assert ((right == REFERENCE).all(-1) == frame).all()
    predicted = (right == PREDICTED).all(-1)
    assert predicted[0, 0]  # at the border: inside
    assert predicted[2, 2]
    assert not predicted[3:, 3:].any()


def test_rows_of_any_width_are_stacked():
    rows = [np.full((2, w, 3), 9, np.uint8) for w in (3, 5)]
    picture = stacked(rows)
    assert picture.shape == (4, 5, 3)
    assert (picture[:2, 3:] == 0).all()
