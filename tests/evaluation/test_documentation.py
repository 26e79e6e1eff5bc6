"""docs/metrics.md names every key of scores.json and every preset, docs/tables.md every column."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.core import OperatingPoint
from lesionseg.evaluation import PRESETS, summarise
from lesionseg.evaluation.readers.adjudication import adjudicate
from lesionseg.evaluation.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS
from lesionseg.evaluation.statistics.compare import compare
from tests.evaluation.statistics.test_further_scores import grown
from tests.evaluation.test_scores import many

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "metrics.md").read_text(encoding="utf-8")
TABLES = (DOCS / "tables.md").read_text(encoding="utf-8")
# words in backquotes, and names within braces or brackets in backquotes
NAMED = {
    word
    for quoted in re.findall(r"`([^`\n]+)`", TEXT + TABLES)
    for word in re.findall(r"[A-Za-z][A-Za-z0-9_]*", quoted)
}
# keys that are names of something: labels, presets' settings, numbers by the name of a number
NAMES = ("per_label", "per_region", "values", "preset", "other_criteria", "comparison", "reasons")
FREE = ("undefined", "official")  # what stands below has the names of numbers, or other scorers'


def everything():
    results = [
        replace(r, lesions=tuple(replace(x, contrast=2.0) for x in r.lesions)) for r in many()
    ]
    columns = {r.case: {"site": "AB"[i % 2]} for i, r in enumerate(results)}
    scores = summarise(
        results,
        PRESETS["lesionseg"],
        evaluated_on="test",
        operating_point=OperatingPoint("score:0.3", 0.3),
        replicates=20,
        columns=columns,
    )
    scores["comparison"] = compare(results, results, replicates=20)
    scores["adjudication"] = adjudicate(results, [])
    scores["size_curve"] = summarise(
        grown(8, 0), PRESETS["lesionseg"], evaluated_on="test", replicates=20
    )["size_curve"]
    return scores


def keys(value, path=()):
    """Every key, by the path to it; lists are looked through."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not (path and path[-1] in NAMES):
                yield (*path, key)
            if key not in FREE:
                yield from keys(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, path)


def test_every_key_of_the_scores_is_documented():
    missing = {".".join(path) for path in keys(everything()) if path[-1] not in NAMED}
    assert not missing


@pytest.mark.parametrize("columns", [CASE_COLUMNS, LESION_COLUMNS, CANDIDATE_COLUMNS])
def test_every_column_is_documented(columns):
    assert set(columns) <= NAMED


def test_every_number_has_a_row_with_formula_and_unit():
    scores = everything()
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    first = {word for row in rows for word in re.findall(r"[a-z0-9_]+", row.split("|")[1])}
    told_in_prose = {"ci95", "reasons", "provenance"}
    assert set(scores) - told_in_prose <= first


def test_every_preset_and_reason_is_named():
    assert set(PRESETS) <= NAMED
    for why in ("no_response", "below_operating_point", "overlap_too_small", "merged"):
        assert why in NAMED
    assert {"removed_by_size", "wrong_label", "case_failed"} <= NAMED
