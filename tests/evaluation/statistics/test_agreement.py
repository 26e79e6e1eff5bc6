"""Lesion load and predictive values by hand, and against plain formulas."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.evaluation import PRESETS, summarise
from lesionseg.evaluation.statistics.case_accuracy import agreement_statistic, predictive_values
from tests.evaluation.statistics.test_further_scores import judge


def numbers(x, y):
    sums = np.stack([np.ones_like(x), y - x, (y - x) ** 2, x + y, (x + y) ** 2])
    return agreement_statistic(sums)(np.ones((1, len(x))))[0]


def test_bias_limits_and_icc_by_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    x = rng.gamma(2, 5, 30)
    y = x + 1.5 + rng.normal(0, 2, 30)
    bias, low, high, icc = numbers(x, y)
    d = y - x
    assert bias == pytest.approx(d.mean())
    assert (low, high) == pytest.approx(
        (bias - 1.96 * d.std(ddof=1), bias + 1.96 * d.std(ddof=1)), rel=1e-4
    )
    both, n = np.stack([x, y], 1), 30
    rows = 2 * both.mean(1).var(ddof=1)
    columns = n * both.mean(0).var(ddof=1)
    rest = ((both - both.mean(1, keepdims=True) - both.mean(0) + both.mean()) ** 2).sum() / (n - 1)
    assert icc == pytest.approx((rows - rest) / (rows + rest + 2 / n * (columns - rest)))


def test_equal_loads_agree_and_one_case_says_nothing():
    x = np.array([1.0, 2.0, 4.0])
    assert numbers(x, x) == pytest.approx([0, 0, 0, 1])
    assert np.isnan(numbers(x[:1], x[:1])).all()


def test_predictive_values_by_hand():
    # sensitivity 0.8, specificity 0.9
    hits, cases = np.repeat([1.0, 0.0], [8, 2]), np.ones(10)
    clean, free = np.repeat([1.0, 0.0], [18, 2]), np.ones(20)
    ppv, npv = predictive_values(hits, cases, clean, free, 0.1)
    assert ppv.value == pytest.approx(0.08 / (0.08 + 0.09))
    assert npv.value == pytest.approx(0.81 / (0.81 + 0.02))
    assert ppv.ci95[0] < ppv.value < ppv.ci95[1] < 1
    assert npv.ci95[0] < npv.value < npv.ci95[1] < 1
    rare, _ = predictive_values(hits, cases, clean, free, 0.01)
    assert rare.value < ppv.value


def test_no_false_positive_has_an_interval_too_and_one_kind_of_case_has_no_value():
    ones = np.ones(10)
    ppv, npv = predictive_values(ones, ones, ones, ones, 0.1)
    assert (ppv.value, npv.value) == (1.0, 1.0)
    assert ppv.ci95[0] < 0.7
    assert 0.9 < npv.ci95[0] < 1
    assert predictive_values(ones, ones, ones, 0 * ones, 0.1)[0].value is None
    assert "5 groups" in predictive_values(ones[:4], ones[:4], ones, ones, 0.1)[0].reason


def test_predictive_values_cover():
    rng, held = np.random.default_rng(0), np.zeros(2)
    truth = 0.09 / (0.09 + 0.18), 0.72 / (0.72 + 0.01)
    for _ in range(1000):
        ill, free = rng.random(15) < 0.9, rng.random(15) < 0.8
        found = predictive_values(ill * 1.0, np.ones(15), free * 1.0, np.ones(15), 0.1)
        held += [one.ci95[0] <= t <= one.ci95[1] for one, t in zip(found, truth, strict=True)]
    assert (held / 1000 >= 0.94).all()


def test_the_scores_hold_the_four_counts_and_the_load():
    names = ["perfect", "missed", "false_alarm", "perfect"]
    results = [
        replace(judge(n, f"c{i}"), reference_ml=2.0 + i, predicted_ml=1.0 + i)
        for i, n in enumerate(names)
    ]
    scores = summarise(results, PRESETS["lesionseg"], evaluated_on="test", replicates=0)
    table, load = scores["case_table"], scores["lesion_load"]
    assert sum(v for k, v in table.items() if k != "predictive_values") == 4
    assert table["predictive_values"][0]["prevalence"] == 0.01
    assert load["volume_ml"]["bias"]["value"] == -1.0
    assert load["volume_ml"]["n"] == load["n_lesions"]["n"] == 4
    flat = summarise(results[:0], PRESETS["lesionseg"], evaluated_on="test", replicates=0)
    assert flat["lesion_load"]["volume_ml"]["icc"]["value"] is None
