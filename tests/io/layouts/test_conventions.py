"""Recognising a dataset folder, and what holds for all conventions."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import CONVENTIONS, assign_groups, read_dataset

Folder = Callable[..., Path]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone.* does not exist"):
        read_dataset(tmp_path / "gone")


def test_a_folder_of_nothing_known_names_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match="no known dataset layout") as refused:
        read_dataset(tmp_path)
    for convention in CONVENTIONS:
        assert convention.looks_for in str(refused.value)


def test_a_convention_may_be_named(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    assert read_dataset(root, convention="nnunet").convention == "nnunet"
    with pytest.raises(ConfigError, match=r"data.convention.*nnunet"):
        read_dataset(root, convention="bidz")


def test_the_convention_is_said_in_the_log(
    nnunet_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        read_dataset(nnunet_folder())
    assert "layout nnunet: 2 cases of 2 patients" in caplog.text


def test_groups_follow_a_pattern(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(cases=("P1_a", "P1_b")), group="P[0-9]+")
    assert [c.group for c in dataset.cases] == ["P1", "P1"]


def test_halves_are_grouped_by_default(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(cases=("MSCS_19L", "MSCS_19R")))
    assert {c.group for c in dataset.cases} == {"MSCS_19"}


def test_a_group_on_both_sides_is_warned_about(
    nnunet_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = nnunet_folder(cases=("P1L", "P1R"), channels=1)
    for part in ("images", "labels"):
        (root / f"{part}Ts").mkdir()
        file = next((root / f"{part}Tr").glob("P1R*"))
        file.rename(root / f"{part}Ts" / file.name)
    read_dataset(root)
    assert "Training and test cases share 1 patient" in caplog.text


def test_merged_labels_are_one_and_read_as_one(nnunet_folder: Folder) -> None:
    root = nnunet_folder(labels={"background": 0, "other": 2, "lesion": 1, "ignore": 3})
    dataset = read_dataset(root, merge_labels=True)
    assert dataset.labels == {1: "lesion"}
    assert dataset.merged_values == (1, 2)
    assert dataset.ignore_label == 3
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    assert reference.labels is not None
    assert reference.labels.sum() == 1


def _groups(*ids: str, pattern: str | None = None) -> list[str]:
    cases = [CaseFiles(case, (Path(f"{case}.nii.gz"),)) for case in ids]
    return [case.group for case in assign_groups(cases, pattern)]


def test_without_a_hint_every_case_is_its_own_group() -> None:
    assert _groups("A", "B_2") == ["A", "B_2"]
    assert _groups() == []


def test_two_halves_of_one_patient_are_one_group(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert _groups("MSCS_19L", "MSCS_19R", "MSCS_26L", "MSCS_26R") == [
            "MSCS_19",
            "MSCS_19",
            "MSCS_26",
            "MSCS_26",
        ]
    assert "4 cases" in caplog.text
    assert "2 patients" in caplog.text


@pytest.mark.parametrize("joint", ["_", "-", "."])
def test_a_joint_before_the_side_is_no_part_of_the_group(joint: str) -> None:
    assert _groups(f"P1{joint}L", f"P1{joint}R") == ["P1", "P1"]


def test_a_side_without_its_twin_is_just_a_name() -> None:
    assert _groups("PAUL", "PETER", "L", "R") == ["PAUL", "PETER", "L", "R"]


def test_bids_subjects_are_groups() -> None:
    assert _groups("sub-01_ses-1", "sub-01_ses-2", "sub-02_FLAIR") == ["sub-01", "sub-01", "sub-02"]


def test_what_the_dataset_says_comes_before_the_name() -> None:
    said = [
        CaseFiles("P1L", (Path("a"),), group="ann"),
        CaseFiles("P1R", (Path("b"),)),
    ]
    assert [c.group for c in assign_groups(said, None)] == ["ann", "P1R"]


def test_a_pattern_comes_before_all_else() -> None:
    cases = [CaseFiles("sub-01_v1", (Path("a"),), group="ann")]
    assert [c.group for c in assign_groups(cases, r"_v(\d)")] == ["1"]
    assert [c.group for c in assign_groups(cases, r"sub-\d+")] == ["sub-01"]


def test_the_rest_of_a_case_is_untouched() -> None:
    case = CaseFiles("A", (Path("a"),), role="test", fold=2, columns={"sex": "f"})
    assert assign_groups([case], None) == (replace(case, group="A"),)


@pytest.mark.parametrize("pattern", [r"_v(\d)", r"(x?)"])
def test_a_pattern_that_finds_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(DatasetError, match=r"finds no patient in the case 'A'"):
        _groups("A", pattern=pattern)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        _groups("A", pattern="(")
