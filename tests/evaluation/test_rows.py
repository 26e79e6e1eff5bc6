from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.rows import (
    CANDIDATE_COLUMNS,
    CASE_COLUMNS,
    LESION_COLUMNS,
    candidate_rows,
    case_rows,
    lesion_rows,
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
    row = lesion_rows(RESULTS[:1], {1: "metastasis"})[0]
    assert row["label"] == "metastasis"
    assert row["detected"] == "true"
    assert row["start_vox"] == "1 1"
    assert row["stop_vox"] == "3 3"
    assert row["centre_mm"] == "1.5 1.5"
    assert row["volume_ml"] is None
