"""Scans unlike the training scans: by grid, intensities, sharpness; empty and missing channels."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import DatasetError
from lesionseg.inference.input_check import (
    InputCheck,
    check_missing,
    check_scan,
    grid_statistics,
    image_statistics,
    make_input_check,
)
from lesionseg.plan.plan import Plan

SHAPE, GRID = (20, 24, 28), Geometry.from_spacing((20, 24, 28), (1.0, 1.0, 1.0))


def scan(seed):
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def check_of(n):
    grids = [grid_statistics(SHAPE, (1.0, 1.0, 1.0))] * n
    return make_input_check(grids, [image_statistics(scan(s), ("T1",)) for s in range(n)])


@pytest.fixture(scope="module")
def check():
    return InputCheck.model_validate_json(check_of(6).model_dump_json())


@pytest.mark.parametrize(
    ("image", "spacing_mm", "name"),
    [
        (scan(9), (1.0, 1.0, 1.0), ""),
        (scan(9) + 1, (1.0, 1.0, 1.0), "percentile of T1"),
        (scan(9).cumsum(1), (1.0, 1.0, 1.0), "T1"),
        (scan(9), (5.0, 1.0, 1.0), "along S"),
    ],
)
def test_what_is_unlike_the_training_scans_is_named(check, plan, image, spacing_mm, name):
    result = check_scan(check, image, Geometry.from_spacing(SHAPE, spacing_mm), plan, ())
    assert (result.score > 1) == bool(name) == bool(result.warning)
    assert name in result.warning


def test_empty_and_missing_channels_are_named_without_a_check(plan):
    assert check_of(4) is None  # too few
    assert "T1 is empty" in check_scan(None, np.zeros((1, *SHAPE)), GRID, plan, ()).warning
    two = plan.with_(channel_names=("T1", "T2"), normalisation=plan.normalisation * 2)
    result = check_scan(None, np.concatenate([scan(0), 0 * scan(0)]), GRID, two, (1,))
    assert result.missing == ("T2",)
    assert "T2" in result.warning
    assert "empty" not in result.warning


def test_a_scan_may_lack_one_channel_or_none(plan):
    three = {"channel_names": ("C0", "C1", "C2"), "normalisation": plan.normalisation * 3}
    plan = plan.with_(**three, may_lack=True)
    assert Plan.from_json(plan.to_json()) == plan
    for missing in ((), (0,), (2,)):
        check_missing(plan, missing)
    with pytest.raises(DatasetError, match="no C0, C2"):
        check_missing(plan, (0, 2))
    with pytest.raises(DatasetError, match="no C1"):
        check_missing(plan.with_(may_lack=False), (1,))
