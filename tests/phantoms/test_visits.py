"""Simulated pairs of visits: what is said to change does, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.ops.components import label_components
from lesionseg.phantoms import VisitSettings, simulate_visits
from lesionseg.phantoms.visits import stable_only

EXACT = VisitSettings(shape=(32, 64, 64), boundary_mm=0.0, n_false=0.0, shift_mm=0.0)


def test_without_errors_the_new_lesions_are_what_the_later_mask_has_more() -> None:
    settings = replace(EXACT, n_lesions=(3, 0, 0, 0, 4), diameter_mm=(4, 7))
    pair = simulate_visits(np.random.default_rng(0), settings)
    np.testing.assert_array_equal(pair.after - pair.before, pair.new)
    assert label_components(pair.new > 0).max() == 3
    before, after = (
        scan.array[0][pair.new > 0].mean() for scan in (pair.before_scan, pair.after_scan)
    )
    assert after > 1.2 * before


def test_lesions_grow_and_shrink_by_the_stated_factor() -> None:
    for fates, factor in (((0, 0, 1, 0, 0), 1.5**3), ((0, 0, 0, 1, 0), 1.5**-3)):
        settings = replace(EXACT, n_lesions=fates, diameter_mm=(9, 10))
        pair = simulate_visits(np.random.default_rng(1), settings)
        assert pair.after.sum() / pair.before.sum() == pytest.approx(factor, rel=0.1)


def test_stable_pairs_are_alike_and_differ_by_errors_alone() -> None:
    exact = simulate_visits(np.random.default_rng(2), stable_only(EXACT))
    np.testing.assert_array_equal(exact.before, exact.after)
    erring = simulate_visits(np.random.default_rng(2), stable_only(VisitSettings(n_false=0.0)))
    assert not erring.new.any()
    both = (erring.before & erring.after).sum()
    assert 0.6 < 2 * both / (erring.before.sum() + erring.after.sum()) < 1


def test_the_same_seed_gives_the_same_pair() -> None:
    one, two = (simulate_visits(np.random.default_rng(3), VisitSettings()) for _ in range(2))
    np.testing.assert_array_equal(one.after, two.after)
    np.testing.assert_array_equal(one.before_scan.array, two.before_scan.array)
