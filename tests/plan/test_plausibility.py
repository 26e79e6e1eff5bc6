"""Doubts about references: shares and borders of masks, boxes as tables state them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import AnnotatedBoxes, Dataset, Geometry, Labels, Reference
from lesionseg.core.lesions import clip_boxes
from lesionseg.plan.plausibility import (
    QUESTIONS,
    ReferenceStatistics,
    find_implausible,
    has_no_background,
    implausible_lines,
    reference_statistics,
)

PLANE = Geometry.from_spacing((96, 96), (1.0, 1.0))
COCO = Dataset("d", Path("d"), "coco", 2, ("image",), Labels.of({1: "nodule"}), ())


def mask_reference(array, geometry=PLANE, **more):
    return Reference(geometry, np.asarray(array, np.uint8), **more)


def disc(side=96):
    mask = np.zeros((side, side), np.uint8)
    mask[40:50, 40:52] = 1  # 120 pixels
    return mask


def box_reference(*boxes, labels=None):
    """Return a reference of boxes (x, y, width, height) as a COCO table states them."""
    x, y, width, height = np.array(boxes, np.float64).T
    given = np.stack([y, x, y + height, x + width], axis=1)
    names = tuple(labels or [1] * len(boxes))
    cut = clip_boxes(given, PLANE.shape, "a")
    return Reference(
        PLANE, boxes=cut, box_labels=names, annotated_boxes=AnnotatedBoxes(given, names)
    )


def doubts_of(*references, dataset=COCO):
    """Return the kinds of doubt with the case and the numbers that follow the question."""
    statistics = {f"c{k}": reference_statistics(one) for k, one in enumerate(references)}
    doubts = find_implausible(dataset, statistics)
    return {(d.kind, d.case): d.message.removeprefix(QUESTIONS[d.kind]) for d in doubts}


def test_plausible_mask_raises_no_doubt():
    statistics = reference_statistics(mask_reference(disc()))
    assert statistics == ReferenceStatistics(share=120 / 96**2, labels=(1,))
    assert doubts_of(mask_reference(disc()), mask_reference(np.zeros((96, 96)))) == {}


def test_an_inverted_mask_fills_most_of_the_image_and_touches_all_borders():
    frame = np.pad(np.zeros((94, 94)), 1, constant_values=1)
    band = np.zeros((96, 96))
    band[40:44] = 1
    for mask, doubt in (
        (1 - disc(), ("mostly_lesion", "c0")),
        (frame, ("touches_borders", "c0")),
        (band, ("full_width", "c0")),
    ):
        assert {*doubts_of(mask_reference(mask))} == {doubt}


def test_a_lesion_through_all_slices_of_a_thin_slab_is_not_as_wide_as_the_image():
    geometry = Geometry.from_spacing((5, 40, 40), (5.0, 1.0, 1.0))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[:, 10:14, 10:14] = 1
    assert doubts_of(mask_reference(mask, geometry), dataset=replace(COCO, layout="nnunet")) == {}


def test_ignored_voxels_do_not_belong_to_the_image():
    ignore = np.zeros((96, 96), bool)
    ignore[:, :90] = True
    mask = np.zeros((96, 96), np.uint8)
    mask[:60, 90:] = 1
    assert reference_statistics(mask_reference(mask, ignore=ignore)).share == 60 / 96


def test_boxes_that_may_be_corners_raise_a_doubt():
    corners = [(20, 30, 32, 40), (40, 30, 60, 70)]
    found = doubts_of(*(box_reference(box) for box in corners))
    assert " All 2 fit" in found["box_corners", ""]
    assert " 1 of them reaches outside." in found["box_corners", ""]
    assert found["boxes_outside", "c1"] == " 1 of 1."
    inside = [(8 * k, 8 * k, 8 * k + 2, 8 * k + 3) for k in range(1, 6)]  # as sizes, too
    assert ("box_corners", "") in doubts_of(box_reference(*inside))
    assert doubts_of(box_reference(*inside[:4])) == {}  # too few for a doubt
    sizes = [(30, 40, 9, 12), (60, 20, 40, 10)]  # the second reaches outside
    assert doubts_of(box_reference(*sizes)) == {("boxes_outside", "c0"): " 1 of 2."}
    assert doubts_of(box_reference((-0.5, 0, 20, 20))) == {}  # within rounding
    other = replace(COCO, layout="datalist")
    assert ("box_corners", "") not in doubts_of(box_reference(*corners), dataset=other)


def test_boxes_of_several_readers_are_counted():
    three = [(20, 30, 12, 10), (21, 30, 12, 10), (20, 31, 12, 10)]
    assert doubts_of(box_reference(*three)) == {("box_readers", "c0"): " 2 of 3."}
    assert doubts_of(box_reference(three[0], three[0])) == {("box_duplicates", "c0"): " 1 of 2."}
    two = replace(COCO, labels=Labels.of({1: "nodule", 2: "mass"}))
    assert doubts_of(box_reference(*three[:2], labels=(1, 2)), dataset=two) == {}
    half = [(20, 30, 12, 10), (24, 30, 12, 10)]  # IoU 0.5
    assert doubts_of(box_reference(*half)) == {}


def test_repeated_boxes_are_found_in_a_long_list(rng):
    places = rng.uniform(0, 60, (700, 2))
    boxes = np.concatenate([places, np.full((700, 2), 0.01)], axis=1)
    boxes[650] = boxes[3]
    statistics = reference_statistics(box_reference(*boxes.tolist()))
    assert (statistics.n_boxes, statistics.n_equal, statistics.n_overlapping) == (700, 1, 0)


def test_a_label_without_a_lesion_is_named():
    roboflow = replace(COCO, labels=Labels.of({1: "lesions", 2: "nodule"}))
    for label, words in ((2, " 'lesions'. Roboflow"), (1, " 'nodule'. If no image")):
        found = doubts_of(box_reference((20, 30, 12, 10), labels=(label,)), dataset=roboflow)
        assert words in found["empty_label", ""]
    three = Labels.of({1: "cyst", 2: "mass", 3: "scar"})
    masks = replace(roboflow, layout="nnunet", labels=three)
    found = doubts_of(mask_reference(2 * disc()), dataset=masks)
    assert found == {("empty_label", ""): " 'cyst' (value 1), 'scar' (value 3)."}
    assert doubts_of(mask_reference(np.zeros((96, 96))), dataset=masks) == {}  # no lesion at all


@pytest.mark.parametrize(("shares", "expected"), [((1.0, 0.0), True), ((1.0, 0.99), False)])
def test_references_without_any_background_are_detected(shares, expected):
    statistics = {str(share): ReferenceStatistics(share=share) for share in shares}
    assert has_no_background(statistics) is expected


def test_each_kind_of_doubt_gives_one_line_with_its_cases():
    inverted = reference_statistics(mask_reference(1 - disc()))
    outside = reference_statistics(box_reference((20, 30, 90, 10)))
    lines = implausible_lines(find_implausible(COCO, {"a": inverted, "b": inverted, "c": outside}))
    assert lines == [
        f"{QUESTIONS['mostly_lesion']} 2 cases: a, b (a: They fill 98.7 %.)",
        f"{QUESTIONS['boxes_outside']} 1 case: c (c: 1 of 1.)",
    ]
