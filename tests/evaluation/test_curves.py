"""Curves by hand, of nothing, and of resampled groups."""

import numpy as np
import pytest

from lesionseg.evaluation.curves import Pool, average_precision, case_auroc, cpm, froc
from tests.evaluation.hand_cases import result

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def random_results(rng):
    """Nine cases of six patients, some of them annotated by half; scores tie."""
    results = []
    for i in range(9):
        at = [None if rng.random() < 0.3 else rng.integers(1, 10) / 10 for _ in range(i % 4)]
        false = rng.integers(1, 10, rng.integers(0, 6)) / 10
        more = {"annotated": {1: True, 2: bool(i % 3)}, "case_score": rng.integers(0, 10) / 10}
        results.append(result(f"c{i}", at, false.tolist(), group=f"{i % 6}", **more))
    return results


@pytest.mark.parametrize("seed", range(8))
def test_a_weight_counts_a_group_as_often(seed):
    """That the plain curves are right is seen in test_naive_scorer.py."""
    rng = np.random.default_rng(seed)
    results, one = random_results(rng), np.ones((1, 6))
    pool, weights = Pool.of(results), rng.multinomial(6, np.full(6, 1 / 6), 5)
    for curve in (lambda p: froc(p, RATES), average_precision, case_auroc):
        for found, often in zip(curve(pool)(weights.astype(float)), weights, strict=True):
            again = Pool.of([r for r in results for _ in range(often[int(r.group)])])
            alone = curve(again)(np.ones((1, len(again.groups))))[0]
            np.testing.assert_allclose(found, alone)
    np.testing.assert_allclose(cpm(pool, RATES)(one)[:, 0], froc(pool, RATES)(one).mean(1))


def test_froc_by_hand():
    cases = [result("a", [0.9, 0.8, 0.5, None], [0.6, 0.85]), *(result(f"{i}") for i in range(7))]
    found = froc(Pool.of(cases), (0.1, 0.125, 0.25, 8))(np.ones((1, 8)))
    assert found.tolist() == [[0.25, 0.5, 0.75, 0.75]]


def test_nothing_found_is_zero_and_without_lesions_curves_are_undefined():
    one, never, free = np.ones((1, 1)), Pool.of([result("a", [None])]), Pool.of([result("a")])
    assert not froc(never, RATES)(one).any()
    assert average_precision(never)(one).item() == 0
    assert np.isnan(froc(free, RATES)(one)).all()
    assert np.isnan(average_precision(free)(one)).all()
