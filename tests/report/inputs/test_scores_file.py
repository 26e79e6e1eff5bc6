import json
from pathlib import Path

import pytest

from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation.score_sections import FrocPoint
from lesionseg.evaluation.statistics.estimates import UNSTATED, Estimate
from lesionseg.report import text
from lesionseg.report.figures.second_model import read_pair
from lesionseg.report.result_tables import read_scores, read_tables
from lesionseg.report.sections.table_cells import list_rules
from tests.report.conftest import Evaluation


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"scores\.json.*run evaluate first"):
        read_scores(tmp_path / "scores.json")


def test_other_version_is_refused(scores_dir: Path) -> None:
    path = scores_dir / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 3}))
    with pytest.raises(ContentError, match="schema_version 1 or 2"):
        read_scores(path)


def first_version(evaluation: Evaluation, folder: Path) -> Path:
    """The same evaluation as the version before wrote it."""
    path = evaluation.write(folder) / "scores.json"
    raw = json.loads(path.read_text()) | {"schema_version": 1}
    del raw["match_rule"], raw["other_criteria"]["iou10"]
    path.write_text(json.dumps(raw))
    return folder


def test_version_1_is_read_and_told_by_its_own_rule(evaluation: Evaluation, tmp_path: Path) -> None:
    old, new = first_version(evaluation, tmp_path / "old"), evaluation.write(tmp_path / "new")
    tables = read_tables(old)
    assert tables.scores.match_rule == "lesionseg 1"
    assert "IoU under 0.1" in text.meanings(tables.scores.match_rule)["false-positive"][1]
    assert "another one had found" in text.ignored_sentence(tables.scores)
    assert len(list_rules(tables.scores, tables.lesions).lines) == 4
    now = read_tables(new)
    assert "10 %" in text.meanings(now.scores.match_rule)["false-positive"][1]
    assert "not to judge" in text.ignored_sentence(now.scores)
    assert len(list_rules(now.scores, now.lesions).lines) == 5
    with pytest.raises(ContentError, match="same rule"):
        read_pair(now, old, ("a", "b"))


def test_headline_has_both_rules_where_they_differ(evaluation: Evaluation, tmp_path: Path) -> None:
    path = evaluation.write(tmp_path) / "scores.json"
    raw = json.loads(path.read_text())
    assert "one to one" not in text.headline(read_tables(tmp_path))
    raw["other_criteria"]["iou10"] = {
        "lesion_recall": {"value": 0.4},
        "false_positives_per_case": 2.2,
    }
    path.write_text(json.dumps(raw | {"splits": 2, "merges": 1}))
    tables = read_tables(tmp_path)
    said = text.headline(tables)
    assert "; one to one at IoU ≥ 0.1: 2 of 5, 2.2 false positives per scan." in said
    note = list_rules(tables.scores, tables.lesions).note
    assert note == "Overlapped by several detections: 2 lesions; over several lesions: 1 detection."


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
