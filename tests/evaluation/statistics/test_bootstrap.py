import numpy as np
import pytest

from lesionseg.evaluation.edge_cases import NO_CASE
from lesionseg.evaluation.statistics.bootstrap import (
    design_effect,
    draw_groups,
    effective_groups,
    few_groups_factor,
    percentile_intervals,
    pooled_design_effect,
    value_of,
    wilson_interval,
)
from lesionseg.evaluation.statistics.detection import ratio
from lesionseg.evaluation.statistics.estimates import rate


def test_draws_have_as_many_groups_as_there_are_and_depend_on_the_seed_alone():
    a = draw_groups(7, 100, np.random.default_rng(1))
    assert (a.sum(1) == 7).all()
    np.testing.assert_array_equal(a, draw_groups(7, 100, np.random.default_rng(1)))


def test_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(10, 2, 200)
    statistic = ratio(values, np.ones(200))
    weights = draw_groups(200, 2000, np.random.default_rng(1))
    low, high = percentile_intervals(statistic, weights, 200)[0].ci95
    error = values.std() / np.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    assert value_of(statistic, 200) == [pytest.approx(values.mean())]


def test_replicates_in_chunks_are_the_same():
    statistic = ratio(np.arange(6.0), np.ones(6))
    weights = draw_groups(6, 50, np.random.default_rng(1))
    whole = percentile_intervals(statistic, weights, 1)
    assert percentile_intervals(statistic, weights, 1_000_000) == whole


def test_undefined_replicates_are_counted():
    only_one = np.array([1.0, 0, 0, 0, 0, 0])
    weights = draw_groups(6, 1000, np.random.default_rng(1))
    found = percentile_intervals(ratio(only_one, only_one), weights, 6)[0]
    assert found.n_undefined == (weights[:, 0] == 0).sum()
    assert (found.ci95, found.collapsed) == (None, False)  # a third of them is too many
    never = percentile_intervals(ratio(only_one, np.zeros(6)), weights, 6)[0]
    assert (never.ci95, never.n_undefined) == (None, 1000)


def test_a_group_with_most_of_the_lesions_counts_for_few():
    even, uneven = np.full(6, 4.0), np.array([19.0, 1, 1, 1, 1, 1])
    assert effective_groups(even) == pytest.approx(6)
    assert effective_groups(uneven) == pytest.approx(24**2 / (19**2 + 5))
    assert few_groups_factor(effective_groups(uneven)) > few_groups_factor(6)


def test_the_design_effect_is_that_of_leaving_a_group_out():
    hits, totals = np.array([3.0, 1.0, 4.0, 0.0]), np.array([4.0, 3.0, 4.0, 2.0])
    p, without = hits.sum() / totals.sum(), []
    for out in range(4):
        rest = np.arange(4) != out
        without.append(hits[rest].sum() / totals[rest].sum())
    variance = 3 / 4 * ((np.array(without) - p) ** 2).sum()
    assert design_effect(hits, totals) == pytest.approx(variance * totals.sum() / (p * (1 - p)))


def test_no_replicates():
    weights = draw_groups(6, 0, np.random.default_rng(1))
    assert percentile_intervals(ratio(np.ones(6), np.ones(6)), weights, 6)[0].ci95 is None


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (3, 7)])
def test_wilson_holds_the_proportion(hits, total):
    low, high = wilson_interval(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    wide = wilson_interval(hits, total, deff=3)
    assert wide[1] - wide[0] > high - low


def test_design_effect_of_independent_and_of_identical_lesions():
    rng = np.random.default_rng(0)
    totals = np.full(500, 4.0)
    independent = rng.binomial(4, 0.5, 500).astype(float)
    assert design_effect(independent, totals) == pytest.approx(1, abs=0.2)
    identical = 4.0 * rng.binomial(1, 0.5, 500)
    assert design_effect(identical, totals) == pytest.approx(4, rel=0.1)


def test_design_effect_of_all_found_is_bounded_by_the_group_sizes():
    totals = np.array([4.0, 4.0, 4.0, 4.0, 1.0])
    bound = (totals**2).sum() / totals.sum()
    assert design_effect(totals, totals) == design_effect(0 * totals, totals) == bound
    assert design_effect(totals, totals, pooled=1.5) == 1.5
    assert design_effect(totals, totals, pooled=99) == bound
    assert design_effect(np.ones(9), np.ones(9)) == 1


def test_pooled_design_effect_leaves_degenerate_proportions_out():
    hits, totals = np.array([2.0, 0.0, 2.0, 0.0]), np.full(4, 2.0)
    alone = design_effect(hits, totals)
    assert pooled_design_effect([hits, totals], [totals, totals]) == pytest.approx(alone)
    assert pooled_design_effect([totals], [totals]) is None


@pytest.mark.parametrize("same", [0.0, 0.7, 1.0])
def test_an_interval_without_width_is_none(same):
    weights = draw_groups(9, 200, np.random.default_rng(1))
    found = percentile_intervals(ratio(np.full(9, same), np.ones(9)), weights, 9)[0]
    assert (found.ci95, found.collapsed, found.n_undefined) == (None, True, 0)


@pytest.mark.parametrize(("groups", "least"), [(5, 0.92), (10, 0.94), (20, 0.94), (50, 0.94)])
def test_rates_of_overdispersed_counts_are_covered(groups, least):
    rng = np.random.default_rng(groups)
    sets = rng.poisson(rng.gamma(0.7, 1 / 0.7, (1500, groups)))
    ends = [rate(s.astype(float), np.ones(groups), NO_CASE).ci95 for s in sets]
    covered = np.mean([low <= 1 <= high for low, high in ends])
    assert covered >= least


def test_a_rate_of_nothing_has_an_upper_end():
    low, high = rate(np.zeros(50), np.ones(50), NO_CASE).ci95
    assert low == 0
    assert 0.07 < high < 0.09
