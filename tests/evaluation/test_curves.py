"""Curves against plain loops over thresholds."""

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
    kinds = {"detected_at": "lesion_group", "false_score": "false_group"}
    items = {
        field: np.repeat(values, weights[getattr(pool, group)].astype(int))
        for field, values in vars(pool).items()
        if isinstance(values, np.ndarray)
        for group in [field if field.endswith("group") else kinds.get(field, "case_group")]
    }
    return replace(pool, **items)


def thresholds(pool):
    found = pool.detected_at[pool.detected_at > NEVER]
    return sorted({*found, *pool.false_score}, reverse=True)


def naive_froc(pool, rate):
    recalls = [0.0]
    for t in thresholds(pool):
        if (pool.false_score >= t).sum() <= rate * pool.n_cases:
            recalls.append((pool.detected_at >= t).mean())
    return max(recalls)


def naive_ap(pool):
    area, before = 0.0, 0.0
    for t in thresholds(pool):
        hits, false = (pool.detected_at >= t).sum(), (pool.false_score >= t).sum()
        recall = hits / len(pool.detected_at)
        area += (recall - before) * hits / (hits + false)
        before = recall
    return area


def naive_auroc(pool):
    pairs = [
        0.5 if a == b else float(a > b)
        for a, p in zip(pool.case_score, pool.case_positive, strict=True)
        for b, q in zip(pool.case_score, pool.case_positive, strict=True)
        if p and not q
    ]
    return np.mean(pairs)


@pytest.mark.parametrize("seed", range(8))
def test_curves_equal_plain_loops_also_in_resampled_data(seed):
    pool = random_pool(seed)
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(6), rng.multinomial(6, np.full(6, 1 / 6), 4)]).astype(float)
    curve, area = froc(pool, RATES)(weights), average_precision(pool)(weights)
    auroc = case_auroc(pool)(weights)[:, 0]
    for row, w in enumerate(weights):
        same = repeat(pool, w)
        if len(same.detected_at):
            np.testing.assert_allclose(curve[row], [naive_froc(same, x) for x in RATES])
            assert area[row, 0] == pytest.approx(naive_ap(same))
        if same.case_positive.any() and not same.case_positive.all():
            assert auroc[row] == pytest.approx(naive_auroc(same))
        else:
            assert np.isnan(auroc[row])
    np.testing.assert_allclose(cpm(pool, RATES)(weights)[:, 0], curve.mean(1))


def test_froc_by_hand():
    # 8 cases, lesions found at .9 .8 .5 and never; false positives at .85 and .6
    pool = Pool(
        ("a",), np.zeros(4, int), np.array([0.9, 0.8, 0.5, NEVER]), np.zeros(2, int),
        np.array([0.6, 0.85]), np.zeros(8, int), np.zeros(8), np.ones(8, bool), np.ones(8),
    )  # fmt: skip
    one = np.ones((1, 1))
    assert froc(pool, (0.1, 0.125, 0.25, 8))(one).tolist() == [[0.25, 0.5, 0.75, 0.75]]


def test_nothing_found_is_zero_and_without_lesions_curves_are_undefined():
    one, pool = np.ones((1, 6)), random_pool(0, n_false=0)
    never = replace(pool, detected_at=np.full(20, NEVER))
    assert not froc(never, RATES)(one).any()
    assert average_precision(never)(one).item() == 0
    free = random_pool(0, n_lesions=0)
    assert np.isnan(froc(free, RATES)(one)).all()
    assert np.isnan(average_precision(free)(one)).all()
