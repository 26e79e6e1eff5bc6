"""Lines of `prepare check=true`."""

import numpy as np

from lesionseg.core import Case, CaseFiles, Geometry, Volume
from lesionseg.reporting.dataset_page import Finding, findings_lines, look_at


def test_notes_that_differ_only_in_their_case_share_a_line():
    notes = [
        Finding("a", "remark", "note", named="a: 1 lesion left out."),
        Finding("b", "remark", "note", named="b: 1 lesion left out."),
    ]
    lines = findings_lines(notes, {"a": "case 1", "b": "case 2"})
    assert lines[:-1] == ["- note, 2 cases (a, b): 1 lesion left out."]


def test_shape_and_spacing_of_a_sagittal_scan_have_one_order():
    """Use 20 sagittal slices of 5 mm with pixels of 0.5 mm."""
    grid = Geometry((20, 16, 12), np.diag([5.0, 0.5, 0.5, 1.0]))
    case = Case("a", Volume(np.zeros((1, *grid.shape), np.float32), grid))
    look = look_at("case 1", CaseFiles("a", ()), case)
    assert look.shape == (12, 16, 20)
    assert look.spacing_mm == (0.5, 0.5, 5.0)
