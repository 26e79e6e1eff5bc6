import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.layouts.groups import assign_groups


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
    with pytest.raises(DatasetError, match=r"does not fit the case 'A'"):
        _groups("A", pattern=pattern)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        _groups("A", pattern="(")
