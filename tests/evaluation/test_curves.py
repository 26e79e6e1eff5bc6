"""FROC, average precision and AUROC, by hand and as in naive loops, with and without ties."""

import numpy as np
import pytest

from lesionseg.evaluation.curves import accumulate, average_precision, case_auroc, cpm, froc
from tests.evaluation.hand_cases import result, tables_of

# 5 lesions, of which one is never found, and 3 false positives on 2 cases; no two scores are equal
UNTIED = (
    result("a", detected_at=(0.9, 0.6, None), false=(0.8,)),
    result("b", detected_at=(0.7, 0.3), false=(0.5, 0.2)),
)


def value(statistic, weights=(1.0, 1.0)):
    return statistic(np.array([weights], float))[0].tolist()


def test_average_precision_of_untied_scores_is_the_sum_by_hand():
    # found at ranks 1, 3, 4 and 6 of 7 candidates: precisions 1/1, 2/3, 3/4, 4/6, each for 1/5
    expected = (1 + 2 / 3 + 3 / 4 + 4 / 6) / 5
    assert value(average_precision(tables_of(UNTIED))) == pytest.approx([expected])


def test_equal_scores_enter_the_average_precision_together():
    tied = tables_of([result("a", detected_at=(0.9, 0.5, 0.5), false=(0.5, 0.4))])
    # 1/3 at precision 1, then 2/3 at 3 of 4 candidates
    assert value(average_precision(tied), [1.0]) == pytest.approx([1 / 3 + 2 / 3 * 3 / 4])
    apart = tables_of([result("a", detected_at=(0.9, 0.5, 0.49), false=(0.51, 0.4))])
    assert value(average_precision(apart), [1.0]) == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])


@pytest.mark.parametrize(
    ("found", "false", "expected"),
    [
        ((0.9, 0.8), (0.1,), 1.0),
        ((0.9, 0.8), (), 1.0),
        ((0.2,), (0.9, 0.8), 1 / 3),
        ((None, None), (0.9,), 0.0),
        ((None, None), (), 0.0),
        ((0.4, None), (), 0.5),
    ],
)
def test_average_precision_by_hand(found, false, expected):
    tables = tables_of([result("a", detected_at=found, false=false)])
    assert value(average_precision(tables), [1.0]) == pytest.approx([expected])


def test_numbers_without_lesions_are_undefined():
    tables = tables_of([result("a", false=(0.5,))])
    for statistic in (average_precision(tables), froc(tables, [1.0]), cpm(tables, [1.0])):
        assert np.isnan(value(statistic, [1.0])).all()


@pytest.mark.parametrize(
    ("rate", "recall"),
    [
        (0.0, 1 / 5),  # the lesion above the first false positive
        (0.49, 1 / 5),
        (0.5, 3 / 5),  # one false positive on two cases: down to the second one
        (1.0, 4 / 5),
        (1.5, 4 / 5),  # all candidates
        (100.0, 4 / 5),
    ],
)
def test_recall_at_a_rate_is_that_of_the_lowest_threshold_that_keeps_it(rate, recall):
    assert value(froc(tables_of(UNTIED), [rate])) == pytest.approx([recall])


def test_lesion_with_the_score_of_a_false_positive_is_found_with_it():
    tables = tables_of([result("a", detected_at=(0.5,), false=(0.5, 0.1))])
    assert value(froc(tables, [0.0, 1.0]), [1.0]) == [0.0, 1.0]


def test_mean_over_rates_is_that_of_the_curve():
    tables = tables_of(UNTIED)
    assert value(cpm(tables, [0.0, 0.5, 1.0])) == pytest.approx([(1 + 3 + 4) / 15])


def test_weight_of_a_case_counts_it_that_often():
    twice = (*UNTIED, result("c", detected_at=(0.7, 0.3), false=(0.5, 0.2)))
    for statistic in (average_precision, lambda t: froc(t, [0.0, 0.5, 1.0, 1.4])):
        one = value(statistic(tables_of(UNTIED)), (1.0, 2.0))
        assert one == pytest.approx(value(statistic(tables_of(twice)), (1.0, 1.0, 1.0)))
    # a case of weight 0 is not there
    alone = value(average_precision(tables_of(UNTIED[:1])), [1.0])
    assert value(average_precision(tables_of(UNTIED)), (1.0, 0.0)) == pytest.approx(alone)


@pytest.mark.parametrize(
    ("ill", "well", "expected"),
    [
        ((0.9, 0.4), (0.5, 0.1), 3 / 4),
        ((0.5,), (0.5, 0.1), 3 / 4),
        ((0.5, 0.5), (0.5,), 1 / 2),
        ((0.1,), (0.2, 0.3), 0.0),
        ((0.3, 0.6, 0.6), (0.6, 0.2, 0.9), (1 + 1.5 + 1.5) / 9),
    ],
)
def test_auroc_counts_pairs_of_cases_and_ties_half(ill, well, expected):
    cases = [result(f"i{i}", (score,), case_score=score) for i, score in enumerate(ill)]
    cases += [result(f"w{i}", case_score=score) for i, score in enumerate(well)]
    weights = np.ones(len(cases))
    assert value(case_auroc(tables_of(cases)), weights) == pytest.approx([expected])
    assert np.isnan(value(case_auroc(tables_of(cases[:1])), [1.0])).all()


def test_auroc_of_weighted_cases_equals_that_of_repeated_ones():
    cases = [result("a", (0.7,), case_score=0.7), result("b", case_score=0.8)]
    cases += [result("c", case_score=0.7), result("d", case_score=0.1)]
    # pairs of the ill case: 0 (twice), ½ (three times) and 1 (once), of 6
    assert value(case_auroc(tables_of(cases)), (5.0, 2.0, 3.0, 1.0)) == pytest.approx([2.5 / 6])


@pytest.mark.parametrize("seed", range(20))
def test_curves_of_random_scores_equal_naive_loops(seed):
    rng = np.random.default_rng(seed)
    n_cases = int(rng.integers(1, 5))
    cases = []
    for _ in range(n_cases):
        draws = [rng.random(rng.integers(0, 5)) for _ in range(2)]
        if seed % 2:
            draws = [np.ceil(scores * 4) / 4 for scores in draws]
        lesions = [None if rng.random() < 0.3 else at for at in draws[0].tolist()]
        cases.append((lesions, draws[1].tolist()))
    tables = tables_of(result(f"c{i}", tuple(at), tuple(f)) for i, (at, f) in enumerate(cases))
    at = np.array([-1.0 if x is None else x for lesions, _ in cases for x in lesions])
    false = np.array([x for _, own in cases for x in own])
    if not len(at):
        return
    area = 0.0
    before = 0
    rates = (0.0, 0.3, 1.0, 2.5)
    recalls = dict.fromkeys(rates, 0.0)
    for score in sorted({*at, *false} - {-1.0}, reverse=True):
        found = int((at >= score).sum())
        mistaken = int((false >= score).sum())
        area += (found - before) / len(at) * found / (found + mistaken)
        before = found
        recalls |= {rate: found / len(at) for rate in rates if mistaken <= rate * n_cases}
    ones = np.ones(n_cases)
    assert value(average_precision(tables), ones) == pytest.approx([area])
    assert value(froc(tables, rates), ones) == pytest.approx(list(recalls.values()))


def test_sums_of_weights_begin_with_zero():
    weights = np.array([[1, 2], [3, 0]], np.uint8)
    groups = np.array([0, 1, 1])
    assert accumulate(weights, groups).tolist() == [[0, 1, 3, 5], [0, 3, 3, 3]]
    assert accumulate(weights, np.zeros(0, int)).tolist() == [[0], [0]]
