"""Scans unlike the training scans: by grid, intensities, sharpness; empty and missing channels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.inference.input_check import (
    InputCheck,
    check_scan,
    grid_statistics,
    image_statistics,
    make_input_check,
)
from lesionseg.plan.plan import Plan

SHAPE, GRID = (20, 24, 28), Geometry.from_spacing((20, 24, 28), (1.0, 1.0, 1.0))


def _scan(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


@pytest.fixture
def check() -> InputCheck:
    grids = [grid_statistics(SHAPE, (1.0, 1.0, 1.0))] * 6
    made = make_input_check(grids, [image_statistics(_scan(s), ("T1",)) for s in range(6)])
    assert made is not None
    return InputCheck.model_validate_json(made.model_dump_json())


def test_a_scan_like_those_of_the_training_has_no_warning(check: InputCheck, plan: Plan) -> None:
    result = check_scan(check, _scan(9), GRID, plan, ())
    assert result.warning == ""
    assert result.score is not None
    assert result.score < 1


@pytest.mark.parametrize(
    ("image", "spacing_mm", "name"),
    [
        (_scan(9) + 1, (1.0, 1.0, 1.0), "percentile of T1"),
        (_scan(9).cumsum(1), (1.0, 1.0, 1.0), "T1"),
        (_scan(9), (5.0, 1.0, 1.0), "along S"),
    ],
)
def test_what_is_unlike_is_named(
    check: InputCheck,
    plan: Plan,
    image: NDArray[np.float32],
    spacing_mm: tuple[float, ...],
    name: str,
) -> None:
    result = check_scan(check, image, Geometry.from_spacing(SHAPE, spacing_mm), plan, ())
    assert result.score is not None
    assert result.score > 1
    assert name in result.warning


def test_empty_and_missing_channels_are_named_without_a_check(plan: Plan) -> None:
    assert "T1 is empty" in check_scan(None, np.zeros((1, *SHAPE)), GRID, plan, ()).warning
    two = plan.with_(channel_names=("T1", "T2"), normalisation=plan.normalisation * 2)
    result = check_scan(None, np.concatenate([_scan(0), 0 * _scan(0)]), GRID, two, (1,))
    assert result.missing == ("T2",)
    assert "T2" in result.warning
    assert "empty" not in result.warning


def test_four_scans_are_too_few() -> None:
    grids = [grid_statistics(SHAPE, (1.0, 1.0, 1.0))] * 4
    assert make_input_check(grids, [image_statistics(_scan(0), ("T1",))] * 4) is None
