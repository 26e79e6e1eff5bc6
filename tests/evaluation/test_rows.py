from dataclasses import replace

import pytest

from lesionseg.core import InputVerdict
from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.rows import (
    CANDIDATE_COLUMNS,
    CASE_COLUMNS,
    LESION_COLUMNS,
    CandidateRow,
    CaseRow,
    LesionRow,
    candidate_rows,
    case_rows,
    lesion_rows,
    without_failed,
)
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference

RESULTS = [
    evaluate_case(make_reference(c), make_prediction(c), PRESETS["lesionseg"], case=c.name)
    for c in HAND_CASES
]


def test_rows_have_exactly_the_columns():
    assert all(set(row) == set(CASE_COLUMNS) for row in case_rows(RESULTS))
    assert all(set(row) == set(LESION_COLUMNS) for row in lesion_rows(RESULTS, {}))
    assert all(set(row) == set(CANDIDATE_COLUMNS) for row in candidate_rows(RESULTS, {}))


def test_cells_are_plain_text():
    row = next(lesion_rows(RESULTS[:1], {1: "metastasis"}))
    assert row["label"] == "metastasis"
    assert row["detected"] == "true"
    assert [row[f"start_{axis}_vox"] for axis in "zyx"] == [None, "1", "1"]
    assert [row[f"stop_{axis}_vox"] for axis in "zyx"] == [None, "3", "3"]
    assert [row[f"centre_{axis}_mm"] for axis in "xyz"] == ["1.5", "1.5", None]
    assert row["volume_ml"] is None


def test_a_warning_of_the_scan_is_in_its_row():
    said = InputVerdict(2.5, "Another grid.")
    prediction = replace(make_prediction(HAND_CASES[0]), input=said)
    result = evaluate_case(
        make_reference(HAND_CASES[0]), prediction, PRESETS["lesionseg"], case="a"
    )
    (row,) = case_rows([result])
    assert (row["warning"], row["input_score"]) == ("Another grid.", 2.5)


def as_text(row):
    return {name: "" if value is None else str(value) for name, value in row.items()}


def test_rows_read_back_are_written_the_same():
    for kind, rows in (
        (CaseRow, case_rows(RESULTS)),
        (LesionRow, lesion_rows(RESULTS, {})),
        (CandidateRow, candidate_rows(RESULTS, {})),
    ):
        assert rows
        for row in rows:
            again = kind.from_csv(as_text(row))
            assert as_text(again.to_csv()) == as_text(row)
            assert kind.from_csv(as_text(again.to_csv())) == again


def test_missing_or_broken_columns_are_named():
    row = as_text(next(lesion_rows(RESULTS[:1], {})))
    with pytest.raises(ValueError, match="no column detected"):
        LesionRow.from_csv({name: cell for name, cell in row.items() if name != "detected"})
    with pytest.raises(ValueError, match="'large' in column diameter_mm"):
        LesionRow.from_csv({**row, "diameter_mm": "large"})
    old = LesionRow.from_csv({name: row[name] for name in row if name not in ("dice", "contrast")})
    assert (old.dice, old.contrast) == (None, None)


def test_cases_without_a_prediction_are_left_out_of_counts():
    cases = [
        CaseRow.from_csv(as_text(row) | {"status": status, "n_false_positive": n})
        for row, status, n in zip(case_rows(RESULTS[:2]), ("ok", "missing"), "30", strict=True)
    ]
    lesions = [LesionRow.from_csv(as_text(row)) for row in lesion_rows(RESULTS[:2], {})]
    counts = without_failed(cases, lesions)
    kept = [row.detected for row in lesions if row.case == cases[0].case]
    assert (counts.n_lesions, counts.n_detected) == (len(kept), sum(kept))
    assert counts.false_positives_per_case == 3
    assert without_failed(cases[1:], lesions).false_positives_per_case is None


def test_each_number_of_a_box_has_its_own_column():
    row = LesionRow(
        case="a",
        lesion=1,
        diameter_mm=2.0,
        start_vox=(0, 1, 2.5),
        stop_vox=(3, 4, 5),
        detected=True,
    )
    cells = row.to_csv()
    assert [cells[f"start_{axis}_vox"] for axis in "zyx"] == ["0", "1", "2.5"]
    assert [cells[f"centre_{axis}_mm"] for axis in "xyz"] == [None] * 3
    assert LesionRow.from_csv(as_text(cells)) == row


def test_boxes_in_one_cell_as_earlier_versions_wrote_them_are_read():
    cells = {"case": "a", "lesion": "1", "diameter_mm": "2", "detected": "true"}
    old = cells | {"start_vox": "0 1 2.5", "stop_vox": "3 4 5", "centre_mm": "-1 2 3.5"}
    row = LesionRow.from_csv(old)
    assert (row.start_vox, row.stop_vox, row.centre_mm) == ((0, 1, 2.5), (3, 4, 5), (-1, 2, 3.5))
    flat = LesionRow.from_csv(cells | {"start_vox": "1 2", "stop_vox": "3 4", "centre_mm": ""})
    assert (flat.start_vox, flat.stop_vox, flat.centre_mm) == ((1, 2), (3, 4), ())
    with pytest.raises(ValueError, match="no column start_x_vox"):
        LesionRow.from_csv(cells)
