"""Acceptance: samples that suffice, limits met by whole intervals, files that are refused."""

import hashlib
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lesionseg.errors import ConfigError, ReadError
from lesionseg.evaluation.local_acceptance import AcceptanceCriterion, judge, read_acceptance
from lesionseg.evaluation.statistics.bootstrap import garwood_interval, wilson_interval
from lesionseg.evaluation.statistics.estimates import Estimate

TEMPLATE = Path(__file__).parents[2] / "docs" / "acceptance.yaml"


def test_the_template_is_read_with_its_hash():
    plan = read_acceptance(TEMPLATE)
    assert plan.stated_on == date(2025, 3, 1)
    assert plan.sha256 == hashlib.sha256(TEMPLATE.read_bytes()).hexdigest()
    assert plan.criteria[0] == AcceptanceCriterion("lesion_recall", 0.8, 0.9)
    assert plan.criteria[1].upper


@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_planned_sample_passes_as_often_as_said(power):
    rng = np.random.default_rng(0)
    recall = AcceptanceCriterion("lesion_recall", 0.8, 0.9)
    n = recall.n_needed(power, 1.0)
    drawn = rng.binomial(n, 0.9, 2000)
    passed = [recall.passed(Estimate(k / n, wilson_interval(k, n))) for k in drawn.tolist()]
    assert np.mean(passed) == pytest.approx(power, abs=0.05)
    false = AcceptanceCriterion("false_positives_per_case", 2.0, 1.0, upper=True)
    n = false.n_needed(power, 1.0)
    drawn = rng.poisson(n, 2000)
    ends = [garwood_interval(k) for k in drawn.tolist()]
    passed = [false.passed(Estimate(1.0, (low / n, high / n))) for low, high in ends]
    assert np.mean(passed) == pytest.approx(power, abs=0.12)  # Garwood's is the wider


def test_a_criterion_needs_the_whole_interval():
    least = AcceptanceCriterion("lesion_recall", 0.8, 0.9)
    assert least.passed(Estimate(0.9, (0.8, 0.95)))
    assert not least.passed(Estimate(0.9, (0.79, 0.95)))
    assert not least.passed(Estimate(1.0, None, "few"))
    most = AcceptanceCriterion("false_positives_per_case", 2.0, 1.0, upper=True)
    assert most.passed(Estimate(1.0, (0.5, 2.0)))
    assert not most.passed(Estimate(1.0, (0.5, 2.1)))


def test_scans_are_counted_by_what_scans_like_these_hold():
    scores = SimpleNamespace(
        n_cases=20,
        n_lesion_free_cases=5,
        n_lesions=60,
        raw={"case_sensitivity": {"value": 0.95, "n": 15}},
        estimate=lambda key: Estimate(0.95, (0.85, 1.0)),
    )
    lesions, false, clean = judge(read_acceptance(TEMPLATE), scores)
    assert (lesions.n_needed, lesions.n_there, lesions.scans_needed) == (215, 60, 72)
    assert lesions.passed
    assert false.n_there == 20
    assert clean.n_needed * 4 == clean.scans_needed  # a quarter is free of lesions


GOOD = (
    "stated_on: 2025-03-01\ncriteria:\n  - {number: lesion_recall, at_least: 0.8, expected: 0.9}\n"
)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("- a", ReadError, "no criteria"),
        (GOOD.replace("2025-03-01", "soon"), ConfigError, "date"),
        (GOOD.replace("lesion_recall", "lesion_recal"), ConfigError, "lesion_recall"),
        (GOOD.replace("expected: 0.9", "expected: 0.7"), ConfigError, "better than the limit"),
        (GOOD.replace("0.8", "80"), ConfigError, "between 0 and 1"),
        (GOOD.replace("at_least", "at_most"), ConfigError, "at_least"),
        (GOOD + "powr: 0.9\n", ConfigError, "power"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, error, said):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(error, match=said):
        read_acceptance(path)
