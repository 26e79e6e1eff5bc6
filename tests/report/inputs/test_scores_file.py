import json
from pathlib import Path

import pytest

from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation.score_sections import FrocPoint
from lesionseg.evaluation.statistics.estimates import UNSTATED, Estimate
from lesionseg.report.inputs.result_tables import read_scores


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"scores\.json.*run evaluate first"):
        read_scores(tmp_path / "scores.json")


def test_other_version_is_refused(scores_dir: Path) -> None:
    path = scores_dir / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(ContentError, match="schema_version 1"):
        read_scores(path)


def test_missing_key_is_named(scores_dir: Path) -> None:
    path = scores_dir / "scores.json"
    raw = json.loads(path.read_text())
    del raw["n_missed"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ContentError, match="n_missed"):
        read_scores(path)


def test_counts_and_sizes_are_read(scores_dir: Path) -> None:
    scores = read_scores(scores_dir / "scores.json")
    assert (scores.n_lesions, scores.n_missed, scores.n_false_positive) == (5, 2, 2)
    assert [group.n for group in scores.recall_by_size] == [1, 1, 1, 1, 1]
    assert scores.recall_by_size[-1].to_mm is None
    assert scores.recall_by_size[0].recall.reason == "fewer than 3 lesions"
    assert scores.estimate("dice").value == 0.55
    assert scores.median_dice == 0.6
    assert scores.froc[0] == FrocPoint(0.0, 0.1, (0.0, 0.3), reached=True)


@pytest.mark.parametrize(
    ("raw", "value", "reason"),
    [
        ({"x": 0.5}, 0.5, UNSTATED),
        ({"x": None}, None, UNSTATED),
        ({}, None, UNSTATED),
        ({"x": {"value": None, "reason": "no lesion"}}, None, "no lesion"),
        ({"x": {"mean": 0.4, "ci95": None}, "reasons": {"x": "few"}}, 0.4, "few"),
        ({"x": None, "x_reason": "no scores"}, None, "no scores"),
    ],
)
def test_every_shape_of_a_number(raw: dict[str, object], value: float | None, reason: str) -> None:
    estimate = Estimate.from_json(raw, "x")
    assert (estimate.value, estimate.reason) == (value, reason)
