"""Lines of `prepare check=true`."""

from lesionseg.reporting.dataset_page import Finding, findings_lines


def test_notes_that_differ_only_in_their_case_share_a_line():
    notes = [
        Finding("a", "remark", "note", named="a: 1 lesion left out."),
        Finding("b", "remark", "note", named="b: 1 lesion left out."),
    ]
    lines = findings_lines(notes, {"a": "case 1", "b": "case 2"})
    assert lines[:-1] == ["- note, 2 cases (a, b): 1 lesion left out."]
