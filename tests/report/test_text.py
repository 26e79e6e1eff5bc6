import re
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.errors import ConfigError
from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report import text
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections.table_cells import list_lesions, list_rules
from lesionseg.report.write import Options, write_report
from tests.report.conftest import FORBIDDEN, Evaluation


def wording() -> str:
    """Every word the report may print."""
    return str(dict(text.catalog("en")))


@pytest.mark.parametrize("word", FORBIDDEN)
def test_wording_claims_nothing_it_cannot_show(word: str) -> None:
    assert not re.search(rf"\b{word}\b", wording(), re.IGNORECASE)


def test_wording_says_reference_never_ground_truth() -> None:
    assert "ground truth" not in wording().lower()
    assert "reference" in wording().lower()


def test_limits_that_every_page_carries() -> None:
    limits = " ".join(text.LIMITS)
    for said in (
        "Standalone performance",
        "No reader was studied",
        "An empty result does not exclude a lesion",
        "Research use only. Not a medical device",
    ):
        assert said in limits


def test_few_lesions_without_interval_get_no_percentage() -> None:
    few = Estimate(1.0, None, "fewer than 5 patients")
    assert "%" not in text.share_found(3, 3, few)
    assert text.share_found(3, 3, few) == "3/3"
    assert text.share(3, 3, few) == text.NONE
    assert text.share(3, 3, Estimate(1.0, (0.4, 1.0))) == "100\xa0%"


def test_intervals_agree_with_two_digits_and_keep_room_at_their_ends() -> None:
    assert text.bounds(Estimate(0.5, (0.309, 0.691))) == "31 to 69\xa0%"
    assert text.bounds(Estimate(0.5, (0.3, 0.7))) == "30 to 70\xa0%"
    assert text.bounds(Estimate(1.0, (0.997, 1.0))) == "99 to 100\xa0%"
    assert text.bounds(Estimate(0.0, (0.0, 0.003))) == "0 to 1\xa0%"


def test_undefined_measure_prints_its_reason() -> None:
    assert text.measure(Estimate(None, None, "no scores")) == "not defined: no scores"
    assert text.measure(Estimate(0.5, (0.4, 0.6))) == "0.50 (95 % CI 0.40 to 0.60)"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.0, 3.0, "under 3 mm"), (3.0, 5.0, "3 to 5 mm"), (20.0, None, "20 mm and more")],
)
def test_size_groups_in_words(low: float, high: float | None, words: str) -> None:
    assert text.size_range(SizeGroup(low, high, 0, 0, Estimate(None)), "mm") == words


def test_what_is_left_out_is_counted() -> None:
    assert text.shown_sentence(12, 23, "the largest first").endswith("; 11 not shown.")
    assert text.shown_sentence(2, 2, "the largest first") == "Shown: all 2."
    assert text.shown_sentence(0, 0, "the largest first") == "There are none."


def test_sizes_in_captions_are_equivalent_diameters_and_no_score_is_invented() -> None:
    place = {"start_vox": (0, 0, 0), "stop_vox": (3, 3, 3), "diameter_mm": 4.0}
    lesion = LesionRow(case="a", lesion=1, detected=True, long_axis_mm=6.0, **place)
    assert text.caption_lesion(lesion, "mm") == (
        "equivalent diameter 4.0 mm, long axis 6.0 mm · found"
    )
    candidate = CandidateRow(case="a", candidate=1, accepted=True, outcome="x", **place)
    assert text.caption_candidate(candidate, "mm") == "equivalent diameter 4.0 mm"


def test_froc_shows_target_and_expectation_only_where_there_are_any(tmp_path: Path) -> None:
    point = {"name": "fp_per_case:0.5", "score": 0.4, "expected_false_positives_per_case": 0.9}
    cases = (
        ({**point, "expected_recall": 0.7}, ("fp_per_case", 0.5), (0.9, 0.7), 2),
        (point, ("fp_per_case", 0.5), (0.9, None), 1),
        ({"name": "score:0.4", "score": 0.4}, ("score", 0.4), (None, None), 0),
        ({"name": "by hand", "score": 0.4}, ("by hand", None), (None, None), 0),
    )
    for operating_point, aim, expected, marks in cases:
        folder = Evaluation(changes={"operating_point": operating_point}).write(tmp_path)
        scores = read_tables(folder).scores
        assert text.aim(scores) == aim
        assert text.expected(scores) == expected
        said = text.froc_text(scores)
        assert sum(words in said for words in (text.FROC_TARGET, text.FROC_EXPECTED)) == marks
        assert text.FROC_BAND in said
        assert text.FROC_BEYOND not in said


def test_a_language_without_a_catalog_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    scores = evaluation.write(tmp_path / "scores")
    with pytest.raises(ConfigError, match=r"no report in this language.*fr"):
        write_report(scores, tmp_path / "out", options=Options(language="fr"))


def test_a_lesion_under_an_edge_never_reads_as_that_edge(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.lesions[0].diameter_mm = 2.96
    tables = read_tables(evaluation.write(tmp_path))
    groups = tables.scores.recall_by_size
    lines = [
        [cell.shown for cell in line] for line in list_lesions(tables.lesions, groups, "mm").lines
    ]
    small = [line for line in lines if line[5] == "under 3 mm"]
    assert [line[3] for line in small] == ["2.5 mm", "2.9 mm"]
    row = next(row for row in tables.lesions if 2.9 < row.diameter_mm < 3)
    assert "2.9 mm" in text.caption_lesion(row, "mm")


def test_rules_that_agree_are_one_sentence(evaluation: Evaluation, tmp_path: Path) -> None:
    tables = read_tables(evaluation.write(tmp_path))
    scores = tables.scores
    rate, alike = scores.estimate("false_positives_per_case").value, tables.lesions
    same = {**scores.raw, "other_criteria": {"iou50": {"false_positives_per_case": rate}}}
    rows = [replace(row, iou50=row.detected) for row in alike]
    table = list_rules(replace(scores, raw=same), rows)
    assert (table.lines, table.note.endswith("other rules: IoU at least 0.5.")) == ((), True)
    rows[0] = replace(rows[0], iou50=not rows[0].iou50)
    assert len(list_rules(replace(scores, raw=same), rows).lines) == 2


def test_auroc_and_average_precision_have_their_own_definition() -> None:
    for key, word in (("case_auroc", "AUROC"), ("average_precision", "Average precision")):
        assert word in text.DEFINITIONS[text.MEASURES[key][0]][1]
