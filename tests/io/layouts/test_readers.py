"""Several readers of a case: merging of their boxes."""

import itertools

import numpy as np
import pytest

from lesionseg.errors import LesionsegError
from lesionseg.io.layouts import read_dataset
from lesionseg.io.layouts.annotated_lesions import AnnotatedLesion, CaseLesions
from lesionseg.io.layouts.readers import merge_case
from lesionseg.io.text import write_json
from tests.io.layouts.box_folders import (
    HEIGHT,
    WIDTH,
    assert_negative,
    assert_rectangle,
    read_all,
    write_picture,
)


def rows_of(*lesions, readers="ABC", minimum=None, ignored=False):
    """Merge lesions. Return label, start and stop of each box that is kept, or ignored."""
    merged = merge_case(CaseLesions(lesions, tuple(readers)), minimum).lesions
    return [(one.label, *one.box) for one in merged if one.is_ignored == ignored]


def box(reader, x0, x1, label=1, y0=0.0):
    """Make a box of 10 rows that a reader marked."""
    return AnnotatedLesion(label, (y0, x0, y0 + 10, x1), reader)


FIRST = box("A", 0, 10)
SHIFTED = box("B", 2, 12)  # IoU with FIRST: 80 / 120
FAR = box("C", 50, 60)
OTHER_LABEL = box("C", 0, 10, label=2)
FOUR = (FIRST, SHIFTED, FAR, OTHER_LABEL)
MEAN, OWN, OTHER = (1, 0, 1, 10, 11), (1, 0, 50, 10, 60), (2, 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("minimum", "kept", "ignored"),
    [(None, [MEAN], [OWN, OTHER]), (1, [MEAN, OWN, OTHER], []), (3, [], [MEAN, OWN, OTHER])],
)
def test_merged_box_is_the_mean_of_boxes_of_one_label(minimum, kept, ignored):
    assert rows_of(*FOUR, minimum=minimum) == kept
    assert rows_of(*FOUR, minimum=minimum, ignored=True) == ignored


def test_lesion_of_one_of_two_readers_is_kept():
    assert rows_of(FIRST, FAR, readers="AC") == [(1, 0, 0, 10, 10), OWN]
    assert rows_of(FIRST, FAR, readers="AC", minimum=9) == []  # both readers are required


def test_reader_without_lesions_counts_as_a_reader():
    assert rows_of(FIRST) == []
    assert len(rows_of(FIRST, readers="AB")) == 1


def test_two_boxes_of_one_reader_count_as_one_reader():
    assert rows_of(FIRST, box("A", 2, 12)) == []


@pytest.mark.parametrize(("x1", "n"), [(5, 1), (4.9, 2)])
def test_boxes_below_half_overlap_are_different_lesions(x1, n):
    assert len(rows_of(FIRST, box("B", 0, x1), readers="AB")) == n


def test_third_box_is_compared_with_the_mean_of_two_boxes():
    two = (FIRST, box("B", 3, 13))
    # IoU with the first is 1/3, with the mean of both 65/135
    assert len(rows_of(*two, box("C", 5, 15), minimum=1)) == 2
    # IoU with the mean of both is 70/130
    assert rows_of(*two, box("C", 4.5, 14.5)) == [(1, 0, 2.5, 10, 12.5)]


def test_order_of_rows_does_not_matter():
    boxes = [FIRST, SHIFTED, box("C", 4, 14, y0=1.0), FAR]
    found = {tuple(rows_of(*order, minimum=1)) for order in itertools.permutations(boxes)}
    assert len(found) == 1


def test_boxes_without_an_area_do_not_overlap():
    assert len(rows_of(box("A", 5, 5), box("B", 5, 5), readers="AB")) == 2


HEADER = "case,label,x0,y0,x1,y1,reader\n"
ROWS = (
    "a,nodule,15,4,31,14,R1\n"
    "a,nodule,17,4,33,14,R2\n"
    "a,nodule,40,20,50,30,R2\n"
    "a,,,,,,R3\n"
    "b,,,,,,R1\n"
)


@pytest.fixture
def folder(tmp_path):
    """Write two pictures and a table of three readers."""
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", bright=False)
    (tmp_path / "boxes.csv").write_text(HEADER + ROWS)
    return tmp_path


@pytest.mark.parametrize(
    ("minimum", "boxes"),
    [(None, [[4, 16, 14, 32]]), (1, [[4, 16, 14, 32], [20, 40, 30, 50]]), (3, [])],
)
def test_readers_of_a_table_are_merged(folder, minimum, boxes):
    _, cases = read_all(folder, min_readers=minimum)
    assert_negative(cases["b"])
    if boxes:
        assert cases["a"].reference.boxes.tolist() == boxes
    else:
        assert_negative(cases["a"])


def test_pixels_of_a_box_of_one_reader_are_neither_lesion_nor_background(folder):
    """R2 alone marked the second box. A box of R1 alone overlaps the lesion of R1 and R2."""
    (folder / "boxes.csv").write_text(HEADER + ROWS + "a,cyst,24,4,40,14,R1\n")
    dataset, cases = read_all(folder)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[20:30, 40:50] = True  # the second box
    expected[4:14, 32:40] = True  # the part of the third box that is outside the lesion
    np.testing.assert_array_equal(cases["a"].reference.ignore, expected)
    assert cases["b"].reference.ignore is None
    (finding,) = dataset.findings
    assert finding.kind == "ignored_boxes"
    assert "2 boxes in 1 case" in finding.message


@pytest.mark.parametrize("merged", [False, True])
def test_labels_are_merged_before_the_boxes(folder, merged):
    (folder / "boxes.csv").write_text(HEADER + ROWS.replace("a,nodule,17", "a,mass,17"))
    _, cases = read_all(folder, merge_labels=merged)
    (assert_rectangle if merged else assert_negative)(cases["a"])


@pytest.fixture(params=[lambda reader: {"reader": reader}, lambda r: {"attributes": {"reader": r}}])
def coco_content(request, tmp_path):
    """Make COCO annotations of two readers, each named by a field or by an attribute."""
    write_picture(tmp_path / "images" / "a.png")
    annotations = [
        {"image_id": 1, "category_id": 0, "bbox": [x, 4, 16, 10], **request.param(reader)}
        for reader, x in (("R1", 15), ("R2", 17), ("R2", 45))
    ]
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 40, "readers": ["R1", "R2", 3]}
    categories = [{"id": 0, "name": "nodule"}]
    return {"images": [image], "annotations": annotations, "categories": categories}


def test_readers_of_coco_are_merged(tmp_path, coco_content):
    write_json(tmp_path / "annotations.json", coco_content)
    dataset, cases = read_all(tmp_path)
    assert dataset.lesions_are_boxes
    assert_rectangle(cases["a"])
    coco_content["images"][0]["height"] = 41
    write_json(tmp_path / "annotations.json", coco_content)
    with pytest.raises(LesionsegError, match="annotations state 64 × 41"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("problem", "match"),
    [
        ({"reader": "", "attributes": {}}, "names no reader"),
        ({"iscrowd": 1}, "several readers, so each"),
    ],
)
def test_annotation_without_reader_or_box_is_an_error(tmp_path, coco_content, problem, match):
    coco_content["annotations"][0].update(problem)
    write_json(tmp_path / "annotations.json", coco_content)
    with pytest.raises(LesionsegError, match=rf"annotations\.json: annotation None: .*{match}"):
        read_dataset(tmp_path)
