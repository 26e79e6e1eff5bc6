import json

import pytest

from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.evaluation.score_sections import Scores, in_halves
from lesionseg.evaluation.statistics.compare import compare
from lesionseg.evaluation.statistics.estimates import UNSTATED, Estimate
from lesionseg.evaluation.statistics.score_parts import (
    CalibrationBin,
    ContrastCell,
    Difference,
    SizeCurveScores,
    SizeGroup,
)
from tests.evaluation.random_cases import random_cases

PRESET = PRESETS["lesionseg"]


def judge(seed):
    return [
        evaluate_case(c.as_reference(), c.as_prediction(0.3), PRESET, case=c.name, group=c.name)
        for c in random_cases(30, seed)
    ]


@pytest.fixture(scope="module")
def raw():
    return json.loads(json.dumps(summarise(judge(1), PRESET, evaluated_on="test", replicates=50)))


def again(kind, row):
    """The row read and written, without the words that stand for an unstated reason."""
    found = kind.from_json(row).to_json()
    return {key: value for key, value in found.items() if value != UNSTATED}


def test_sections_read_back_are_written_the_same(raw):
    for key in ("recall_by_size", "recall_by_half", "recall_by_size_quantile"):
        assert [again(SizeGroup, row) for row in raw[key]] == raw[key]
    bins = raw["calibration"]["reliability"]
    assert [again(CalibrationBin, row) for row in bins] == bins
    assert again(SizeCurveScores, raw["size_curve"]) == raw["size_curve"]
    for row in json.loads(json.dumps(compare(judge(1), judge(1), replicates=50))).values():
        assert again(Difference, row) == row


def test_a_missing_key_is_named_and_one_that_may_be_null_is_not_needed():
    row = {"from_mm": 0, "contrast_from": 1, "n": 2, "detected": 1, "recall": 0.5, "ci95": None}
    cell = ContrastCell.from_json(row)
    assert (cell.size, cell.contrast) == ((0.0, None), (1.0, None))
    assert cell.recall == Estimate(0.5, None, UNSTATED)
    with pytest.raises(KeyError, match="detected"):
        ContrastCell.from_json({key: row[key] for key in row if key != "detected"})


def test_scores_hold_what_was_written(raw):
    scores = Scores.from_json(raw)
    assert scores.n_detected == raw["n_true_positive"]
    assert scores.recall_by_size[0].n == raw["recall_by_size"][0]["n"]
    assert len(scores.froc) == len(raw["froc"]["fp_per_case"])
    assert scores.operating_point.score == raw["operating_point"]["score"]


def test_halves_of_scores_that_do_not_hold_them_are_counted(raw):
    old = {key: value for key, value in raw.items() if key != "recall_by_half"}
    halves = Scores.from_json(old).recall_by_half
    assert [(h.n, h.detected) for h in halves] == [
        (row["n"], row["detected"]) for row in raw["recall_by_half"]
    ]
    assert [h.recall.value for h in halves] == pytest.approx(
        [row["recall"] for row in raw["recall_by_half"]]
    )
    assert all(h.recall.ci95 is None for h in halves)
    assert in_halves(()) == ()
