"""Lines of `prepare check=true`."""

import numpy as np

from lesionseg.core import Case, CaseFiles, Finding, Geometry, Volume
from lesionseg.reporting.dataset_page import (
    CasePreview,
    _findings_table,
    findings_lines,
    preview_case,
    write_dataset_report,
)
from tests.grids import unit_grid


def test_notes_that_differ_only_in_their_case_share_a_line():
    notes = [Finding("remark", f"{case}: 1 lesion left out.", case, "note") for case in "ab"]
    lines = findings_lines(notes, {"a": "case 1", "b": "case 2"})
    assert lines[:-1] == ["- note, 2 cases (a, b): 1 lesion left out."]


def test_shape_and_spacing_of_a_sagittal_scan_have_one_order():
    """Use 20 sagittal slices of 5 mm with pixels of 0.5 mm."""
    grid = Geometry((20, 16, 12), np.diag([5.0, 0.5, 0.5, 1.0]))
    case = Case("a", Volume(np.zeros((1, *grid.shape), np.float32), grid))
    preview = preview_case("case 1", CaseFiles("a", ()), case)
    assert preview.shape == (12, 16, 20)
    assert preview.spacing_mm == (0.5, 0.5, 5.0)


def test_missing_channel_has_no_intensities_and_no_picture():
    grid = unit_grid(4, 4)
    channel = np.arange(16, dtype=np.float32).reshape(4, 4)
    lacking = Volume(np.stack([0 * channel, channel]), grid, missing=(0,))
    found, whole = (
        preview_case("case 1", CaseFiles("a", ()), Case("a", image))
        for image in (lacking, Volume(channel[None], grid))
    )
    assert np.isnan(found.ranges[0]).all()
    assert found.ranges[1] == whole.ranges[0]
    assert found.picture == whole.picture


def test_finding_about_the_dataset_counts_no_case():
    findings = [
        Finding("left_out", "notes.txt is left out."),
        Finding("listed", "row 3: no image.", severity="error"),
    ]
    rows = [(row["cases"], row["which"]) for row in _findings_table({}, findings)]
    assert rows == [(1, "not in the pictures below"), (None, "the whole dataset")]


def test_headline_says_that_training_cannot_start(tmp_path):
    findings = [Finding("no_training", "no case is left for validation.", severity="error")]
    previews = {"a": CasePreview("case 1")}
    page = tmp_path / "page.html"
    write_dataset_report(page, previews, findings, ("T1",), "mm", "", identifiers=False)
    assert "<h1>Every case can be used, but training cannot start.</h1>" in page.read_text()
