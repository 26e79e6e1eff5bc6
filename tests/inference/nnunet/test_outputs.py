"""Candidates from nnU-Net's probability files, in any axis order of its reader."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import ContentError, GeometryError, ReadError
from lesionseg.inference.candidates import find_candidates
from lesionseg.inference.nnunet.outputs import (
    NNUNET_RULE,
    rank_sure,
    read_probabilities,
)
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import write_json
from tests.grids import unit_grid
from tests.inference.nnunet.probability_files import (
    blobs,
    softmax_of,
    write_labels,
    write_outputs,
)

SHAPE = (9, 12, 15)
LESIONS = blobs(SHAPE, ((1, 2, 3), 4, 0.9), ((6, 7, 8), 2, 0.3), ((1, 9, 1), 1, 0.02))


def read(folder, geometry=None):
    return open_prediction(find_predictions(folder)["a"], geometry=geometry)


def test_candidates_equal_those_found_on_the_probabilities(tmp_path):
    write_outputs(tmp_path, "a", softmax_of(LESIONS), LESIONS > 0.5)
    found = read(tmp_path)
    naive = find_candidates([LESIONS.astype(np.float32)], unit_grid(*SHAPE), NNUNET_RULE, (1,))
    np.testing.assert_array_equal(found.instances, naive.instances)
    scores = [c.score for c in found.candidates]
    assert scores == pytest.approx([c.score for c in naive.candidates], abs=1e-6)
    assert scores == pytest.approx([0.9, 0.3, 0.02], abs=1e-3)
    assert [c.accepted for c in found.candidates] == [True, False, False]  # as in nnU-Net's mask
    np.testing.assert_array_equal(found.mask(), LESIONS > 0.5)
    assert found.has_scores
    write_json(tmp_path / "a_candidates.json", {"candidates": []})  # it has priority
    assert read(tmp_path).candidates == ()


def make_grid(axes, flipped):
    """Make a grid whose array axes run along other axes of the patient."""
    affine = np.eye(4)
    directions = np.fliplr(np.eye(3))[:, list(axes)] * np.where(flipped, -1.0, 1.0)
    affine[:3, :3] = directions * [3.0, 1.0, 0.5]
    return Geometry(SHAPE, affine)


def to_canonical(array, axes, flipped):
    """Reorder an array on a grid from `make_grid` so that its axes run along +S, +A, +R."""
    straight = array[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]
    return straight.transpose(np.argsort(axes))


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flipped", list(product((False, True), repeat=3))[::3])
def test_axis_order_of_a_reorienting_reader_is_recognised(tmp_path, axes, flipped):
    straight = to_canonical(LESIONS, axes, flipped)
    write_outputs(tmp_path, "a", softmax_of(straight), LESIONS > 0.5, make_grid(axes, flipped))
    found = read(tmp_path)
    np.testing.assert_array_equal(found.mask(), LESIONS > 0.5)
    assert [round(c.score, 3) for c in found.candidates] == [0.9, 0.3, 0.02]


def test_axis_order_is_that_of_the_plans_if_the_mask_is_empty(tmp_path):
    axes = (1, 0, 2), (False, True, False)
    straight = to_canonical(np.minimum(LESIONS, 0.4), *axes)
    write_json(tmp_path / "plans.json", {"image_reader_writer": "NibabelIOWithReorient"})
    write_outputs(tmp_path, "a", softmax_of(straight), LESIONS > 2, make_grid(*axes))
    found = read(tmp_path).instances
    assert found[1, 2, 3] == found[4, 5, 6] > 0
    assert found[6, 7, 8] > 0


def test_post_processed_mask_keeps_all_candidates_and_is_logged(tmp_path, caplog):
    mask = (LESIONS > 0.5) & (np.arange(SHAPE[0])[:, None, None] < 2)  # a quarter of it is left
    write_outputs(tmp_path, "a", softmax_of(LESIONS), mask)
    assert len(read(tmp_path).candidates) == 3
    assert "post-processed" in caplog.text


CORE = blobs(SHAPE, ((2, 3, 4), 2, 0.6))


def test_each_label_has_its_own_candidates(tmp_path):
    other = blobs(SHAPE, ((6, 7, 8), 2, 0.8))
    write_outputs(tmp_path, "a", softmax_of(CORE, other), (CORE > 0.5) + 2 * (other > 0.5))
    write_labels(tmp_path, {"background": 0, "nodule": 1, "mass": 2})
    assert {(c.label, round(c.score, 2)) for c in read(tmp_path).candidates} == {(1, 0.6), (2, 0.8)}


def test_lesion_with_two_regions_is_one_candidate(tmp_path):
    whole = blobs(SHAPE, ((1, 2, 3), 4, 0.9))  # it contains the core
    mask = 1 * (whole > 0.5) + (CORE > 0.5)
    write_outputs(tmp_path, "a", np.stack([whole, CORE]).astype(np.float32), mask)
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    write_labels(tmp_path, regions, regions_class_order=[1, 2])
    found = read(tmp_path)
    assert [c.label for c in found.candidates] == [1]
    np.testing.assert_array_equal(found.mask(), mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_picture_with_an_axis_of_length_1_is_read(tmp_path, axis):
    flat = LESIONS[2]
    probabilities = np.expand_dims(softmax_of(flat), 1 + axis)
    write_outputs(tmp_path, "a", probabilities, flat > 0.5, suffix=".png")
    found = read(tmp_path)
    assert found.instances.shape == SHAPE[1:]
    np.testing.assert_array_equal(found.mask(), flat > 0.5)


def test_sure_voxels_keep_their_rank():
    rest = np.array([1e-12, 1e-9, 1e-5, 1e-4, 4e-4, 0.2])
    p = (1 - rest).astype(np.float32).astype(np.float64)  # the first two are 1
    ranked = rank_sure(p, rest)
    assert (np.diff(ranked) < 0).all()
    np.testing.assert_allclose(ranked, p, atol=1e-4)
    np.testing.assert_array_equal(ranked[4:], p[4:].astype(np.float32))


def test_files_that_do_not_belong_together_are_an_error(tmp_path):
    write_outputs(tmp_path, "a", softmax_of(LESIONS), LESIONS > 0.5)
    files = find_predictions(tmp_path)["a"]
    with pytest.raises(ReadError, match="is missing in this folder"):
        read_probabilities(replace(files, mask=None))
    with pytest.raises(GeometryError):
        read(tmp_path, geometry=Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0)))
    write_labels(tmp_path, {"background": 0, "nodule": 1, "mass": 2})
    with pytest.raises(ContentError, match=r"2 channels.*need 3"):
        read(tmp_path)


@pytest.mark.parametrize(("shape", "suffix"), [((8, 12, 15), ".nii.gz"), (SHAPE[:2], ".png")])
def test_mask_of_another_shape_than_the_probabilities_is_an_error(tmp_path, shape, suffix):
    write_outputs(tmp_path, "a", softmax_of(LESIONS), np.zeros(shape), suffix=suffix)
    with pytest.raises(GeometryError, match="axis order"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.stack([LESIONS, LESIONS]), "sum to 1"),
        (softmax_of(LESIONS) * 30, "not probabilities"),
        (np.where(softmax_of(LESIONS) > 0.5, np.nan, 0.5), "NaN"),
    ],
)
def test_values_that_are_not_probabilities_are_an_error(tmp_path, values, words):
    write_outputs(tmp_path, "a", values.astype(np.float32), LESIONS > 0.5)
    with pytest.raises(ContentError, match=words):
        read(tmp_path)


def test_probabilities_of_zero_give_no_candidates(tmp_path):
    write_outputs(tmp_path, "a", softmax_of(0 * LESIONS), LESIONS > 2)
    found = read(tmp_path)
    assert (found.candidates, found.has_scores) == ((), True)
