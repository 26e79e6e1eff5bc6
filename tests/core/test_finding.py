"""Findings: errors become findings of their case, and a command may require that there is none."""

from pathlib import Path

import pytest

from lesionseg.core.finding import Finding, collect_errors, require_no_errors
from lesionseg.errors import DatasetError, ReadError

ROOT = Path("data")


def test_error_becomes_the_finding_of_its_case_and_names_its_place_once():
    error = ReadError("a.nii: the file is truncated.")
    expected = Finding("unreadable", "a.nii: the file is truncated.", "a", "error")
    assert Finding.of(error, "a", kind="unreadable") == expected
    assert Finding.of(error, "a", "a.nii", "unreadable") == expected
    assert Finding.of(error, "a", "line 2").message == "line 2: a.nii: the file is truncated."


def test_collecting_continues_after_an_error_but_not_after_a_mistake_in_the_code():
    findings = []
    with collect_errors(findings, "a"):
        raise DatasetError("no image.")
    assert findings == [Finding("listed", "no image.", "a", "error")]
    with pytest.raises(ZeroDivisionError), collect_errors(findings, "b"):
        raise ZeroDivisionError
    assert len(findings) == 1


def test_only_errors_stop_and_all_of_them_are_listed():
    remarks = [Finding("names", "odd names."), Finding("folds", "no fold.", severity="note")]
    require_no_errors(remarks, ROOT)
    first = Finding("listed", "line 2: no image.", "a", "error")
    second = Finding("listed", "line 3: no mask.", "b", "error")
    with pytest.raises(DatasetError, match=r"^line 2: no image\.$"):
        require_no_errors([*remarks, first], ROOT)
    with pytest.raises(DatasetError, match=r"^data: 2 entries.*\n *line 2: .*\n *line 3: [^\n]*$"):
        require_no_errors([*remarks, first, second], ROOT)
