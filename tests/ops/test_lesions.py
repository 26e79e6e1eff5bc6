"""The lesions of a reference: masks, instances, boxes, and combinations of them."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.errors import ContentError
from lesionseg.ops.components import candidates_of, lesion_mask, lesions_of, unscored_prediction
from tests.boxes import reference_of_boxes
from tests.grids import unit_grid

PLANE = Geometry.from_spacing((4, 6), (2.0, 1.0))  # pixels of 2 mm²


def make_map(*rows):
    """Make a label map from one digit per pixel. Missing rows are 0."""
    rows += ("000000",) * (4 - len(rows))
    return np.array([[int(c) for c in row] for row in rows], dtype=np.int32)


def test_components_of_a_label_map_are_lesions():
    labels = make_map("110003", "000003", "000000", "000020")
    lesions = lesions_of(Reference(PLANE, labels=labels))
    assert lesions.ids.tolist() == [1, 2, 3]
    assert lesions.labels.tolist() == [1, 3, 2]
    assert lesions.boxes.tolist() == [[0, 0, 1, 2], [0, 5, 2, 6], [3, 4, 4, 5]]
    np.testing.assert_allclose(lesions.diameters_mm, 2 * np.sqrt(np.array([4, 4, 2]) / np.pi))
    assert lesions.draw().tolist() == make_map("110002", "000002", "000000", "000030").tolist()


def test_touching_instances_stay_separate_and_ignored_pixels_are_removed():
    instances = make_map("112200", "112200", "000000", "333000")
    ignore = np.zeros((4, 6), dtype=bool)
    ignore[[0, 3], :] = True
    reference = Reference(PLANE, instances=instances, instance_labels=(5, 6, 7), ignore=ignore)
    lesions = lesions_of(reference)
    assert lesions.ids.tolist() == [1, 2]  # the third is ignored completely
    assert lesions.labels.tolist() == [5, 6]
    assert lesions.boxes.tolist() == [[1, 0, 2, 2], [1, 2, 2, 4]]
    assert lesion_mask(reference).sum() == 4
    assert (lesions.draw() > 0).tolist() == lesion_mask(reference).tolist()


def test_ignored_lesion_is_left_out_although_it_has_a_box():
    ignore = np.zeros((4, 6), dtype=bool)
    ignore[:2] = True
    boxes = np.array([[0, 0, 2, 2], [1, 3, 3, 5], [2, 0, 3, 2]], dtype=np.float32)
    labels = (5, 6, 7)
    plain = Reference(PLANE, boxes=boxes, box_labels=labels, ignore=ignore)
    lesions = lesions_of(plain)
    assert (lesions.ids.tolist(), lesions.labels.tolist()) == ([2, 3], [6, 7])
    assert lesions.boxes.tolist() == boxes[1:].tolist()
    instances = make_map("110000", "100220", "000220", "000000")  # the third has only a box
    lesions = lesions_of(replace(plain, instances=instances, instance_labels=labels))
    assert (lesions.ids.tolist(), lesions.n_voxels.tolist()) == ([2, 3], [2, 0])
    assert lesions.voxels_of(0).tolist() == [[2, 3], [2, 4]]


@pytest.mark.parametrize(("dims", "size"), [(2, 78.54), (3, 523.6)])
def test_box_without_a_mask_has_the_size_of_its_inscribed_ellipsoid(dims, size):
    geometry = unit_grid(*(30,) * dims)
    reference = reference_of_boxes(geometry, [5] * dims + [15] * dims)
    lesions = lesions_of(reference)
    assert lesions.diameters_mm.tolist() == [pytest.approx(10)]  # of a box of 10 mm
    assert lesions.sizes_vox.tolist() == [round(size)]
    assert lesion_mask(reference).sum() == 10**dims  # its mask is the whole box


def test_smaller_boxes_are_drawn_last_and_all_touched_pixels_belong_to_the_mask():
    reference = reference_of_boxes(PLANE, [0, 0, 4, 2], [0.5, 1.2, 1.5, 3])
    lesions = lesions_of(reference)
    # the smaller box covers the larger, and contains the centre of row 0 but not that of row 1
    assert lesions.draw().tolist() == make_map("122000", "110000", "110000", "110000").tolist()
    # the mask contains every pixel that a box touches
    touched = make_map("111000", "111000", "110000", "110000")
    assert (lesion_mask(reference) == (touched > 0)).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_drawn_box_has_the_mean_size_of_the_box_wherever_it_lies(dims):
    geometry = unit_grid(*(12,) * dims)
    lengths = []
    for shift in np.arange(0, 1, 0.125):
        box = [2 + shift] * dims + [6.5 + shift] * dims
        drawn = lesions_of(reference_of_boxes(geometry, box)).draw()
        lengths.append(np.count_nonzero(drawn) ** (1 / dims))
    assert np.mean(lengths) == pytest.approx(4.5)


def test_listed_lesion_without_voxels_has_its_box():
    instances = make_map("330000")
    boxes = np.array([[0, 0, 2, 2], [2, 2, 4, 6], [0, 0, 4, 6]], dtype=np.float32)
    reference = Reference(PLANE, instances=instances, instance_labels=(1, 2, 1), boxes=boxes)
    lesions = lesions_of(reference)
    assert lesions.has_voxels.tolist() == [False, False, True]
    assert lesions.boxes.tolist() == [[0, 0, 2, 2], [2, 2, 4, 6], [0, 0, 1, 2]]


@pytest.mark.parametrize(
    "reference",
    [
        Reference(PLANE, labels=np.zeros((4, 6), dtype=np.uint8)),
        Reference(PLANE, instances=np.zeros((4, 6), dtype=np.int32)),
        Reference(PLANE, boxes=np.zeros((0, 4), dtype=np.float32)),
        Reference(PLANE),
    ],
)
def test_lesion_free_reference_has_no_rows(reference):
    lesions = lesions_of(reference)
    assert len(lesions) == 0
    assert lesions.boxes.shape == (0, 4)
    assert not lesion_mask(reference).any()


@pytest.mark.parametrize("unlisted", [-1, -3, 3, 9])
def test_id_that_is_not_listed_is_an_error(unlisted):
    instances = make_map("120000")
    instances[2, 2] = unlisted
    with pytest.raises(ContentError, match=rf"\[{unlisted}\]"):
        lesions_of(Reference(PLANE, instances=instances, instance_labels=(1, 1)))


def test_candidates_are_lesions_in_the_order_of_the_prediction():
    instances = make_map("220000")
    drawn = Candidate.from_voxels(2, 1, 0.9, np.argwhere(instances), PLANE)
    box = Candidate.from_box(1, 3, 0.4, (0.0, 2.0, 4.0, 4.0), PLANE)
    prediction = Prediction("a", PLANE, (drawn, box), instances)
    lesions = candidates_of(prediction)
    assert (lesions.ids.tolist(), lesions.labels.tolist()) == ([2, 1], [1, 3])
    assert lesions.has_voxels.tolist() == [True, False]
    for row, candidate in enumerate(prediction.candidates):
        assert lesions.diameters_mm[row] == pytest.approx(candidate.diameter_mm)
        assert tuple(lesions.centres_mm[row]) == candidate.centre_mm
        assert tuple(lesions.boxes[row]) == candidate.start_vox + candidate.stop_vox


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        (None, {1: (5, 1.0, (0, 0)), 2: (4, 1.0, (0, 3))}),
        # the third has no label
        (
            make_map("220100", "000003"),
            {1: (4, 1.0, (0, 3)), 2: (5, 1.0, (0, 0)), 3: (1, 1.0, (1, 5))},
        ),
        (make_map("110300"), {1: (5, 1.0, (0, 0)), 3: (4, 1.0, (0, 3))}),  # 2 is not used
    ],
)
def test_masks_without_scores_give_a_candidate_per_component_or_instance(instances, expected):
    found = unscored_prediction("a", PLANE, make_map("550400"), instances)
    assert not found.has_scores
    assert {c.id: (c.label, c.score, c.start_vox) for c in found.candidates} == expected
