"""A prediction on another grid, by position in space."""

from dataclasses import replace

import numpy as np

from lesionseg.core import Candidate, Geometry
from lesionseg.evaluation.regrid import resample_prediction
from tests.evaluation.hand_cases import prediction_of
from tests.grids import unit_grid

FINE = unit_grid(40, 40)
COARSE = Geometry.from_spacing((10, 10), (4, 4))


def test_lost_candidate_and_removed_box_follow_a_grid_that_the_caller_has_moved():
    """A registration moves the grid by 8 mm in y and 4 mm in x after centres were measured."""
    mask = np.zeros(FINE.shape, np.int32)
    mask[17, 9] = 1  # after the move at 25 and 13 mm, between the coarse voxels
    affine = FINE.affine.copy()
    affine[:2, 2] += [4, 8]
    small = Candidate(7, 1, 0.2, (16, 8), (18, 10), (8.5, 16.5), 1.0, None, has_mask=False)
    found = replace(
        prediction_of(mask, [0.5], FINE), geometry=Geometry(FINE.shape, affine), removed=(small,)
    )
    moved = resample_prediction(found, COARSE)
    assert np.argwhere(moved.instances).tolist() == [[6, 3]]
    assert moved.candidates[0].start_vox == (6, 3)
    (box,) = moved.removed
    assert box.start_vox == (6.375, 3.375)
    assert box.stop_vox == (6.875, 3.875)


def test_mask_on_a_coarse_grid_that_is_a_little_shorter_reaches_the_ends_of_the_new_grid():
    fine = unit_grid(12, 1)
    affine = Geometry.from_spacing((2, 1), (5, 1)).affine.copy()
    affine[1, 2] = 3  # the same centre as `fine`, from y = 0.5 to 10.5 instead of -0.5 to 11.5 mm
    found = prediction_of(np.ones((2, 1), np.int32), [0.9], Geometry((2, 1), affine))
    assert resample_prediction(found, fine).instances.tolist() == [[1]] * 12


def test_candidates_outside_the_new_grid_are_left_out(caplog):
    """They are no false positives, because the reference says nothing about their place."""
    wide = unit_grid(10, 20)
    narrow = unit_grid(10, 10)
    mask = np.zeros(wide.shape, np.int32)
    mask[2:4, 2:4] = 1
    mask[5:7, 14:16] = 2
    found = prediction_of(mask, [0.9, 0.8], wide, case="a")
    masks = resample_prediction(found, narrow)
    assert [candidate.id for candidate in masks.candidates] == [1]
    assert "a: 1 candidate outside the grid of the reference or later visit is" in caplog.text
    boxes = resample_prediction(replace(found, instances=None), narrow)
    assert [candidate.id for candidate in boxes.candidates] == [1]


def test_resampled_candidate_keeps_its_zone_with_and_without_a_mask():
    mask = np.ones(COARSE.shape, np.int32)
    found = prediction_of(mask, [0.9], COARSE).with_zones(["liver"])
    for given in (found, replace(found, instances=None)):
        assert resample_prediction(given, FINE).candidates[0].zone == "liver"
