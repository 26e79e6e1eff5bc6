"""Curves by hand, of nothing, and of resampled groups."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.evaluation.curves import Pool, average_precision, case_auroc, cpm, froc
from lesionseg.evaluation.matching import NEVER

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def random_pool(seed, n_groups=6, n_cases=9, n_lesions=20, n_false=30):
    rng = np.random.default_rng(seed)
    detected_at = rng.integers(1, 10, n_lesions) / 10
    detected_at[rng.random(n_lesions) < 0.3] = NEVER
    return Pool(
        tuple("abcdefgh"[:n_groups]),
        rng.integers(0, n_groups, n_lesions),
        detected_at,
        rng.integers(0, n_groups, n_false),
        rng.integers(1, 10, n_false) / 10,
        np.sort(np.r_[np.arange(n_groups), rng.integers(0, n_groups, n_cases - n_groups)]),
        rng.integers(0, 10, n_cases) / 10,
        rng.random(n_cases) < 0.5,
        rng.integers(1, 3, n_cases) / 2,
    )


def repeat(pool, weights):
    """The pool in which each group stands as often as its weight says."""
    case = "case_group", "case_score", "case_positive", "case_share"
    of_kind = ("lesion_group", "detected_at"), ("false_group", "false_score"), case
    times = {kind: weights[getattr(pool, kind[0])].astype(int) for kind in of_kind}
    fields = {name: np.repeat(getattr(pool, name), n) for kind, n in times.items() for name in kind}
    return replace(pool, **fields)


@pytest.mark.parametrize("seed", range(8))
def test_a_weight_counts_a_group_as_often(seed):
    """That the plain curves are right is seen in test_naive_scorer.py."""
    pool, rng = random_pool(seed), np.random.default_rng(seed)
    weights, one = rng.multinomial(6, np.full(6, 1 / 6), 5).astype(float), np.ones((1, 6))
    for curve in (lambda p: froc(p, RATES), average_precision, case_auroc):
        again = [curve(repeat(pool, w))(one)[0] for w in weights]
        np.testing.assert_allclose(curve(pool)(weights), again)
    np.testing.assert_allclose(cpm(pool, RATES)(one)[:, 0], froc(pool, RATES)(one).mean(1))


def test_froc_by_hand():
    # 8 cases, lesions found at .9 .8 .5 and never; false positives at .85 and .6
    lesions, false = np.array([0.9, 0.8, 0.5, NEVER]), np.array([0.6, 0.85])
    cases = np.zeros(8, int), np.zeros(8), np.ones(8, bool), np.ones(8)
    pool = Pool(("a",), np.zeros(4, int), lesions, np.zeros(2, int), false, *cases)
    found = froc(pool, (0.1, 0.125, 0.25, 8))(np.ones((1, 1)))
    assert found.tolist() == [[0.25, 0.5, 0.75, 0.75]]


def test_nothing_found_is_zero_and_without_lesions_curves_are_undefined():
    one, pool = np.ones((1, 6)), random_pool(0, n_false=0)
    never = replace(pool, detected_at=np.full(20, NEVER))
    assert not froc(never, RATES)(one).any()
    assert average_precision(never)(one).item() == 0
    free = random_pool(0, n_lesions=0)
    assert np.isnan(froc(free, RATES)(one)).all()
    assert np.isnan(average_precision(free)(one)).all()
