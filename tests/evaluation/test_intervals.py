import numpy as np
import pytest

from lesionseg.evaluation import intervals
from lesionseg.evaluation.intervals import design_effect, proportion, rate, ratio

NONE, ONES = "there is nothing", np.ones(6)


def interval(statistic, n_groups, replicates=400, support=None, items=6, seed=1):
    draws = intervals.draw_groups(n_groups, replicates, np.random.default_rng(seed))
    support = np.ones(n_groups) if support is None else support
    return intervals.bootstrap(statistic, draws, support, NONE, items)[0]


def test_replicates_in_chunks_are_the_same():
    statistic = ratio(np.arange(6.0), ONES)
    assert interval(statistic, 6, items=1_000_000) == interval(statistic, 6, items=1)


def test_why_there_is_no_interval():
    only_one = np.array([1.0, 0, 0, 0, 0, 0])
    assert "undefined" in interval(ratio(only_one, only_one), 6).reason
    assert "same number" in interval(ratio(0.7 * ONES, ONES), 6).reason
    assert "5 patients" in interval(ratio(ONES[:4], ONES[:4]), 4).reason
    assert interval(ratio(ONES, ONES), 6, replicates=0).ci95 is None
    nothing = interval(ratio(ONES, 0 * ONES), 6, support=0 * ONES)
    assert (nothing.value, nothing.reason) == (None, NONE)


def test_the_design_effect_is_that_of_leaving_a_group_out():
    hits, totals = np.array([3.0, 1.0, 4.0, 0.0]), np.array([4.0, 3.0, 4.0, 2.0])
    p = hits.sum() / totals.sum()
    without = (hits.sum() - hits) / (totals.sum() - totals)
    variance = 3 / 4 * ((without - p) ** 2).sum()
    assert design_effect(hits, totals) == pytest.approx(variance * totals.sum() / (p * (1 - p)))
    # all or nothing found does not tell: bounded by the groups' sizes
    bound = (totals**2).sum() / totals.sum()
    assert design_effect(totals, totals) == design_effect(0 * totals, totals) == bound
    assert design_effect(np.ones(9), np.ones(9)) == 1


def test_equal_numbers_are_not_certain_and_a_mean_is_within_its_interval():
    assert "certain" in proportion(0.8 * ONES, ONES, NONE, least_deff=0.0).reason
    low, high = proportion(ONES, ONES, NONE, least_deff=0.0).ci95
    assert low < 0.7 < high == 1.0  # as if each were one lesion, found
    values = np.array([0.8, 0.7, 0.9, 0.75, 0.85, 0.8])
    low, high = proportion(values, ONES, NONE, least_deff=0.0).ci95
    assert 0.7 < low < 0.8 < high < 0.9
    # a rate of nothing has an upper end
    low, high = rate(np.zeros(50), np.ones(50), NONE).ci95
    assert low == 0
    assert 0.07 < high < 0.09


# --- do 95 % intervals hold the truth in 95 of 100 studies of clustered patients? ---


@pytest.mark.parametrize("groups", [5, 10, 20, 50])
def test_rates_of_overdispersed_counts_are_covered(groups):
    rng = np.random.default_rng(groups)
    sets = rng.poisson(rng.gamma(0.7, 1 / 0.7, (1500, groups)))
    ends = [rate(s.astype(float), np.ones(groups), NONE).ci95 for s in sets]
    assert np.mean([low <= 1 <= high for low, high in ends]) >= 0.93


INTERVALS = {
    "wilson": lambda hits, n, _: proportion(hits, n, NONE).ci95,
    "mean": lambda hits, n, _: proportion(hits / n, np.ones(len(n)), NONE, least_deff=0.0).ci95,
    "bootstrap": lambda hits, n, i: interval(ratio(hits, n), len(n), support=n, seed=i).ci95,
}


@pytest.mark.parametrize("groups", [5, 10, 20])
@pytest.mark.parametrize("kind", INTERVALS)
def test_intervals_cover_in_93_to_99_of_100_studies(kind, groups):
    """Patients with 1 to 8 lesions and a recall of their own (intraclass correlation 0.2)."""
    rng, studies, recall, held = np.random.default_rng(0), 800, 0.75, 0
    for study in range(studies):
        lesions = rng.integers(1, 9, groups)
        hits = rng.binomial(lesions, rng.beta(4 * recall, 4 * (1 - recall), groups))
        ends = INTERVALS[kind](hits.astype(float), lesions.astype(float), study)
        low, high = ends or (0, 1)
        held += low <= recall <= high
    assert 0.93 <= held / studies <= 0.995
