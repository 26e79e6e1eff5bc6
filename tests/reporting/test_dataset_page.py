"""Lines of `prepare check=true`."""

from lesionseg.reporting.dataset_page import Finding, findings_lines


def test_notes_that_differ_only_in_their_case_share_a_line():
    notes = [
        Finding(case, "remark", "note", named=f"{case}: 1 lesion left out.") for case in ("a", "b")
    ]
    lines = findings_lines(notes, {"a": "case 1", "b": "case 2"})
    assert lines[:-1] == ["- note, 2 cases (a, b): 1 lesion left out."]
