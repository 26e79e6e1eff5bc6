"""FROC, average precision and AUROC, by hand and as in naive loops, with and without ties."""

import numpy as np
import pytest

from lesionseg.evaluation.curves import average_precision, case_auroc, cpm, froc
from tests.evaluation.hand_cases import naive_curves, result, tables_of

# 5 lesions, of which one is never found, and 3 false positives on 2 cases; no two scores are equal
UNTIED = (
    result("a", detected_at=(0.9, 0.6, None), false=(0.8,)),
    result("b", detected_at=(0.7, 0.3), false=(0.5, 0.2)),
)


def value(statistic, weights=(1.0, 1.0)):
    return statistic(np.array([weights], float))[0].tolist()


@pytest.mark.parametrize(
    ("found", "false", "expected"),
    [
        ((0.9, 0.8), (), 1.0),
        ((None, None), (0.9,), 0.0),
        ((None, None), (), 0.0),
        # equal scores enter together: 1/3 at precision 1, then 2/3 at 3 of 4 candidates
        ((0.9, 0.5, 0.5), (0.5, 0.4), 1 / 3 + 2 / 3 * 3 / 4),
    ],
)
def test_average_precision_by_hand(found, false, expected):
    tables = tables_of([result("a", detected_at=found, false=false)])
    assert value(average_precision(tables), [1.0]) == pytest.approx([expected])


def test_numbers_are_zero_without_detections_and_undefined_without_lesions():
    never = tables_of([result("a", detected_at=(None,))])
    assert value(froc(never, [1.0, 8.0]), [1.0]) == [0.0, 0.0]
    free = tables_of([result("a", false=(0.5,))])
    for statistic in (average_precision(free), froc(free, [1.0]), cpm(free, [1.0])):
        assert np.isnan(value(statistic, [1.0])).all()


def test_recall_at_a_rate_is_that_of_the_lowest_threshold_that_keeps_it():
    # two cases: below a rate of 0.5, only the lesion above the first false positive is found
    rates = [0.0, 0.49, 0.5, 1.0, 1.5, 100.0]
    recalls = [1 / 5, 1 / 5, 3 / 5, 4 / 5, 4 / 5, 4 / 5]
    tables = tables_of(UNTIED)
    assert value(froc(tables, rates)) == pytest.approx(recalls)
    assert value(cpm(tables, rates)) == pytest.approx([np.mean(recalls)])
    # a lesion is found together with a false positive of its score
    tied = tables_of([result("a", detected_at=(0.5,), false=(0.5, 0.1))])
    assert value(froc(tied, [0.0, 1.0]), [1.0]) == [0.0, 1.0]


def random_results(rng):
    """Return nine cases of six patients with equal scores. Some are only partly annotated."""
    results = []
    for i in range(9):
        at = [None if rng.random() < 0.3 else rng.integers(1, 10) / 10 for _ in range(i % 4)]
        false = (rng.integers(1, 10, rng.integers(0, 6)) / 10).tolist()
        cells = {"group": f"{i % 6}", "annotated": {1: True, 2: bool(i % 3)}}
        results.append(result(f"c{i}", at, false, case_score=rng.integers(0, 10) / 10, **cells))
    return results


@pytest.mark.parametrize("seed", range(8))
def test_weight_of_a_group_equals_repeating_its_cases(seed):
    rng = np.random.default_rng(seed)
    results = random_results(rng)
    weights = rng.multinomial(6, np.full(6, 1 / 6), 5)  # some groups have weight 0
    for curve in (lambda t: froc(t, [0.0, 0.5, 1.0, 2.0]), average_precision, case_auroc):
        found = curve(tables_of(results))(weights.astype(float))
        for row, often in zip(found, weights, strict=True):
            again = tables_of([r for r in results for _ in range(often[int(r.group)])])
            np.testing.assert_allclose(row, value(curve(again), np.ones(len(again.groups))))


@pytest.mark.parametrize(
    ("ill", "well", "expected"),
    [
        ((0.9, 0.4), (0.5, 0.1), 3 / 4),
        ((0.5, 0.5), (0.5,), 1 / 2),
        ((0.3, 0.6, 0.6), (0.6, 0.2, 0.9), (1 + 1.5 + 1.5) / 9),
    ],
)
def test_auroc_counts_pairs_of_cases_and_ties_half(ill, well, expected):
    cases = [result(f"i{i}", (score,), case_score=score) for i, score in enumerate(ill)]
    alone = tables_of(cases)
    cases += [result(f"w{i}", case_score=score) for i, score in enumerate(well)]
    weights = np.ones(len(cases))
    assert value(case_auroc(tables_of(cases)), weights) == pytest.approx([expected])
    assert np.isnan(value(case_auroc(alone), weights[: len(ill)])).all()


@pytest.mark.parametrize("seed", range(20))
def test_curves_of_random_scores_equal_naive_loops(seed):
    rng = np.random.default_rng(seed)
    n_cases = int(rng.integers(1, 5))
    scores = rng.random((n_cases, 5))
    if seed % 2:  # with ties
        scores = np.ceil(scores * 4) / 4
    at, false = np.split(scores, [3], axis=1)
    at[rng.random(at.shape) < 0.3] = -1  # never found
    results = []
    for case, (own, wrong) in enumerate(zip(at.tolist(), false.tolist(), strict=True)):
        results.append(result(f"c{case}", [None if x < 0 else x for x in own], wrong))
    rates = (0.0, 0.3, 1.0, 2.5)
    area, recalls = naive_curves(at.ravel(), false.ravel(), n_cases, rates)
    ones = np.ones(n_cases)
    assert value(average_precision(tables_of(results)), ones) == pytest.approx([area])
    assert value(froc(tables_of(results), rates), ones) == pytest.approx(recalls)
