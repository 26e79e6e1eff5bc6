import numpy as np
import pytest

from lesionseg.report.figures.slice_views import Loop, trace_loops


def area(loop: Loop) -> float:
    """Shoelace formula, positive for loops that keep the inside on the right."""
    nodes = np.array([*loop, loop[0]], dtype=float)
    return float((nodes[:-1, 0] * nodes[1:, 1] - nodes[1:, 0] * nodes[:-1, 1]).sum() / 2)


def test_rectangle_has_four_corners() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    assert trace_loops(mask) == (((2, 1), (5, 1), (5, 3), (2, 3)),)


def test_hole_is_a_loop_of_its_own() -> None:
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = False
    assert sorted(area(loop) for loop in trace_loops(mask)) == [-1.0, 9.0]


def test_empty_mask_has_no_loop() -> None:
    assert trace_loops(np.zeros((4, 4), dtype=bool)) == ()


@pytest.mark.parametrize("seed", range(20))
def test_loops_enclose_exactly_the_mask(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) < 0.5
    assert sum(area(loop) for loop in trace_loops(mask)) == mask.sum()
