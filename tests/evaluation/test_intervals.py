import numpy as np
import pytest

from lesionseg.evaluation.intervals import (
    bootstrap,
    design_effect,
    draw_groups,
    effective_groups,
    few_groups_factor,
    proportion,
    rate,
    ratio,
)

NONE = "there is nothing"


def interval(statistic, n_groups, seed, replicates=400):
    draws = draw_groups(n_groups, replicates, np.random.default_rng(seed))
    return bootstrap(statistic, draws, np.ones(n_groups), NONE, n_groups)[0]


def test_replicates_in_chunks_are_the_same():
    statistic, draws = (
        ratio(np.arange(6.0), np.ones(6)),
        draw_groups(6, 50, np.random.default_rng(1)),
    )
    whole = bootstrap(statistic, draws, np.ones(6), NONE, 1)
    assert bootstrap(statistic, draws, np.ones(6), NONE, 1_000_000) == whole


def test_why_there_is_no_interval():
    only_one, ones = np.array([1.0, 0, 0, 0, 0, 0]), np.ones(6)
    assert "undefined" in interval(ratio(only_one, only_one), 6, 1).reason
    assert "same number" in interval(ratio(0.7 * ones, ones), 6, 1).reason
    assert "5 groups" in interval(ratio(ones[:4], ones[:4]), 4, 1).reason
    assert interval(ratio(ones, ones), 6, 1, replicates=0).ci95 is None
    nothing = bootstrap(
        ratio(ones, 0 * ones), draw_groups(6, 9, np.random.default_rng(0)), 0 * ones, NONE, 6
    )
    assert (nothing[0].value, nothing[0].reason) == (None, NONE)


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


def test_design_effect_of_all_found_is_bounded_by_the_group_sizes():
    totals = np.array([4.0, 4.0, 4.0, 4.0, 1.0])
    bound = (totals**2).sum() / totals.sum()
    assert design_effect(totals, totals) == design_effect(0 * totals, totals) == bound
    assert design_effect(np.ones(9), np.ones(9)) == 1


def test_equal_numbers_are_not_certain_and_a_mean_is_within_its_interval():
    ones = np.ones(6)
    assert "certain" in proportion(0.8 * ones, ones, NONE, least_deff=0.0).reason
    low, high = proportion(ones, ones, NONE, least_deff=0.0).ci95
    assert low < 0.7 < high == 1.0  # as if each were one lesion, found
    values = np.array([0.8, 0.7, 0.9, 0.75, 0.85, 0.8])
    low, high = proportion(values, ones, NONE, least_deff=0.0).ci95
    assert 0.7 < low < 0.8 < high < 0.9


@pytest.mark.parametrize("groups", [5, 10, 20, 50])
def test_rates_of_overdispersed_counts_are_covered(groups):
    rng = np.random.default_rng(groups)
    sets = rng.poisson(rng.gamma(0.7, 1 / 0.7, (1500, groups)))
    ends = [rate(s.astype(float), np.ones(groups), NONE).ci95 for s in sets]
    assert np.mean([low <= 1 <= high for low, high in ends]) >= 0.93


def test_a_rate_of_nothing_has_an_upper_end():
    low, high = rate(np.zeros(50), np.ones(50), NONE).ci95
    assert low == 0
    assert 0.07 < high < 0.09


# --- do 95 % intervals hold the truth in 95 of 100 studies of clustered patients? ---


def coverage(interval_of, groups, studies=800, recall=0.75):
    """Patients with 1 to 8 lesions and a recall of their own (intraclass correlation 0.2)."""
    rng, held = np.random.default_rng(0), 0
    for study in range(studies):
        lesions = rng.integers(1, 9, groups)
        found = rng.binomial(lesions, rng.beta(4 * recall, 4 * (1 - recall), groups))
        low, high = interval_of(found.astype(float), lesions.astype(float), study)
        held += low <= recall <= high
    return held / studies


def wilson(found, lesions, _):
    return proportion(found, lesions, NONE).ci95


def mean_of_shares(found, lesions, _):
    return proportion(found / lesions, np.ones(len(found)), NONE, least_deff=0.0).ci95


def of_replicates(found, lesions, study):
    draws = draw_groups(len(found), 400, np.random.default_rng(study))
    found = bootstrap(ratio(found, lesions), draws, lesions, NONE, 1)[0]
    return found.ci95 or (0, 1)


@pytest.mark.parametrize("groups", [5, 10, 20])
@pytest.mark.parametrize("interval_of", [wilson, mean_of_shares, of_replicates])
def test_intervals_cover_in_93_to_99_of_100_studies(interval_of, groups):
    assert 0.93 <= coverage(interval_of, groups) <= 0.995
