"""Cases of a dataset: patients, pixel sizes, references, entries for loaders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels, Reference
from lesionseg.core.dataset import assign_groups, find_likely_visits
from lesionseg.errors import ConfigError, DatasetError, GeometryError

GRID = Geometry.from_spacing((2, 3), (1, 1))


def make_cases(*ids, group=""):
    return tuple(CaseFiles(case, (Path(f"{case}.nii.gz"),), group=group) for case in ids)


def groups_of(cases, pattern=None):
    return [case.group for case in assign_groups(cases, pattern)]


def test_case_is_labelled_by_a_mask_or_a_table():
    assert not CaseFiles("a", ()).is_labelled
    assert CaseFiles("a", (), reference=Path("mask.nii.gz")).is_labelled
    assert CaseFiles("a", (), annotations={"boxes": []}).is_labelled


@pytest.mark.parametrize(("text", "size"), [("0.143", 0.143), ("", None)])
def test_pixel_size_is_that_of_the_manifest(text, size):
    assert CaseFiles("a", (), columns={"pixel_mm": text}).pixel_mm == size
    assert CaseFiles("a", ()).pixel_mm is None


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "wide"])
def test_impossible_pixel_size_is_an_error(text):
    with pytest.raises(DatasetError, match=r"pixel_mm.*'a'"):
        _ = CaseFiles("a", (), columns={"pixel_mm": text}).pixel_mm


@pytest.mark.parametrize("name", ["labels", "instances", "ignore"])
def test_reference_of_another_shape_than_its_grid_is_an_error(name):
    fitting = Reference(GRID, **{name: np.zeros((2, 3), np.int32)})
    assert getattr(fitting, name).shape == (2, 3)
    with pytest.raises(GeometryError, match=name):
        Reference(GRID, **{name: np.zeros((3, 2), np.int32)})


def test_mask_of_a_reference_is_that_of_instances_if_there_are_any():
    labels = np.array([[0, 1, 2], [0, 0, 0]])
    instances = np.array([[0, 0, 7], [0, 0, 0]], np.int32)
    assert Reference(GRID, labels).mask().tolist() == (labels > 0).tolist()
    assert Reference(GRID, labels, instances).mask().tolist() == (instances > 0).tolist()
    assert Reference(GRID).mask() is None


@pytest.mark.parametrize(
    ("dims", "channels", "images", "missing", "expected"),
    [
        (2, 3, 1, (), True),
        (2, 3, 0, (), True),  # of a dataset without cases
        (2, 1, 1, (), False),
        (2, 4, 1, (), False),
        (3, 3, 1, (), False),
        (2, 3, 3, (), False),
        (2, 3, 1, (1, 2), False),
    ],
)
def test_picture_in_colour_is_one_complete_file_of_three_channels(
    dims, channels, images, missing, expected
):
    names = tuple("RGBA"[:channels])
    case = CaseFiles("a", tuple(Path(f"{i}.png") for i in range(images)), missing=missing)
    cases = (case,) if images else ()
    dataset = Dataset("d", Path(), "list", dims, names, Labels((1,), ("lesion",)), cases)
    assert dataset.is_colour is expected


@pytest.mark.parametrize(
    ("ids", "is_likely"),
    [
        (("A_0", "A_1", "B_0", "B_1"), True),
        (("A_0", "A_1", "B_0"), True),
        (("A_0", "A_1", "B_0", "C_0"), True),  # exactly half of the ids share a prefix
        (("A_0", "A_1", "B_0", "C_0", "D_0"), False),
        (("A_0", "A_1", "B", "C"), False),  # a single prefix may be that of a study
        (("A_0", "A_1", "B_0", "B_1", "C", "D"), True),  # ids without a number count, too
        (("A_0", "A_1", "B_0", "C", "D", "E"), False),
        (("A_0", "B_0"), False),
        (("A_100", "A_101", "B_100", "B_101"), False),
        (tuple(f"{p}_{i}" for p in "AB" for i in range(8)), True),
        (tuple(f"{p}_{i}" for p in "AB" for i in range(9)), False),  # more than eight of a prefix
    ],
)
def test_ids_that_share_a_prefix_may_be_visits(ids, is_likely):
    found = find_likely_visits(make_cases(*ids))
    assert len(found) == is_likely
    if is_likely:
        assert "A_0 and A_1" in found[0].message


def test_suggested_pattern_matches_all_ids():
    for ids in (("A_0", "A_1", "B_0", "B_1"), ("A_0", "A_1", "B_0", "B_1", "C")):
        (finding,) = find_likely_visits(make_cases(*ids), setting="group")
        pattern = finding.message.split("group='")[1].split("'")[0]
        assert groups_of(make_cases(*ids), pattern) == [case.split("_")[0] for case in ids]


def test_ids_with_a_stated_group_are_not_suspected():
    ids = ("A_0", "A_1", "B_0", "B_1")
    assert find_likely_visits(make_cases(*ids, group="patient")) == []
    own = tuple(replace(case, group=case.case) for case in make_cases(*ids))
    assert len(find_likely_visits(own)) == 1


def test_group_is_the_first_of_statement_subject_and_side():
    assert groups_of(make_cases("x_sub-7_ses-1", group="P1")) == ["P1"]
    assert groups_of(make_cases("x_sub-7_ses-1", "sub-7_ses-2")) == ["sub-7", "sub-7"]
    assert groups_of(make_cases("P1_L", "P1_R", "P2_L")) == ["P1", "P1", "P2_L"]
    assert groups_of(make_cases("P3")) == ["P3"]


@pytest.mark.parametrize("ids", [("P1_L", "P1_R", "P2"), ("P1", "P2")])
def test_pairing_of_sides_is_logged_with_its_numbers(caplog, ids):
    caplog.set_level("INFO")
    assign_groups(make_cases(*ids), None)
    assert ("2 cases, 1 patient" in caplog.text) == (len(ids) == 3) == bool(caplog.text)


def test_pattern_gives_its_first_capture_group_or_the_whole_match():
    assert groups_of(make_cases("P1_a", "P2_b", group="stated"), r"P(\d)_(.)") == ["1", "2"]
    assert groups_of(make_cases("P1_a"), r"P\d") == ["P1"]


@pytest.mark.parametrize("pattern", [r"Q", r"(x?)P"])
def test_pattern_without_a_group_in_a_case_is_an_error(pattern):
    with pytest.raises(DatasetError, match="'P1'"):
        assign_groups(make_cases("P1"), pattern)


def test_pattern_that_is_no_regular_expression_is_an_error():
    with pytest.raises(ConfigError, match=r"data\.group"):
        assign_groups(make_cases("P1"), "(")
