import numpy as np
import pytest

from lesionseg.evaluation import intervals
from lesionseg.evaluation.intervals import design_effect, estimate_rate, proportion, ratio

NONE = "there is nothing"
ONES = np.ones(6)


def bootstrap_interval(statistic, n_groups, replicates=400, support=None, items=6, seed=1):
    draws = intervals.draw_groups(n_groups, replicates, np.random.default_rng(seed))
    support = np.ones(n_groups) if support is None else support
    return intervals.bootstrap(statistic, draws, support, NONE, items, ["number"])[0]


def test_size_of_chunks_does_not_change_the_interval():
    statistic = ratio(np.arange(6.0), ONES)
    assert bootstrap_interval(statistic, 6, items=1_000_000) == bootstrap_interval(
        statistic, 6, items=1
    )


@pytest.mark.parametrize(
    ("hits", "totals", "options", "words"),
    [
        (np.eye(6)[0], np.eye(6)[0], {}, "undefined"),
        (0.7 * ONES, ONES, {}, "same number"),
        (ONES[:4], ONES[:4], {}, "5 patients"),
        (ONES, ONES, {"replicates": 0}, "no data sets"),
        (ONES[:4], 0 * ONES[:4], {}, NONE),
        (ONES, 0 * ONES, {}, NONE),
        (ONES, 0 * ONES, {"support": 0 * ONES}, NONE),
    ],
)
def test_missing_interval_has_a_reason(hits, totals, options, words):
    found = bootstrap_interval(ratio(hits, totals), len(hits), **options)
    assert found.ci95 is None
    assert words in found.reason
    assert (found.value is None) == (words == NONE)


@pytest.mark.parametrize(
    ("totals", "has_interval"), [(ONES[:4], False), (ONES[:5], True), ([1, 1, 1, 1, 0, 0], False)]
)
def test_rate_of_fewer_than_five_groups_has_no_interval(totals, has_interval):
    totals = np.array(totals, float)  # groups without a case do not count
    found = estimate_rate(np.ones(len(totals)), totals, NONE)
    assert (found.ci95 is not None) == has_interval


def test_design_effect_equals_that_of_leaving_groups_out():
    hits = np.array([3.0, 1.0, 4.0, 0.0])
    totals = np.array([4.0, 3.0, 4.0, 2.0])
    n = totals.sum()
    p = hits.sum() / n
    without = (hits.sum() - hits) / (n - totals)
    variance = 3 / 4 * ((without - p) ** 2).sum()
    assert design_effect(hits, totals) == pytest.approx(variance * n / (p * (1 - p)))
    # if all or no lesions are found, the sizes of the groups give a bound
    bound = (totals**2).sum() / n
    assert design_effect(totals, totals) == design_effect(0 * totals, totals) == bound
    assert design_effect(np.ones(9), np.ones(9)) == 1


def test_interval_contains_the_mean_and_equal_values_are_not_certain():
    assert "all patients have" in proportion(0.8 * ONES, ONES, NONE, min_deff=0.0).reason
    low, high = proportion(ONES, ONES, NONE, min_deff=0.0).ci95
    assert low < 0.7 < high == 1.0  # like six lesions that are all found
    values = np.array([0.8, 0.7, 0.9, 0.75, 0.85, 0.8])
    low, high = proportion(values, ONES, NONE, min_deff=0.0).ci95
    assert 0.7 < low < 0.8 < high < 0.9
    low, high = estimate_rate(np.zeros(50), np.ones(50), NONE).ci95
    assert (low, high) == (0, pytest.approx(0.08, abs=0.01))  # a rate of 0 has an upper end


@pytest.mark.parametrize("lesions", [[48, 2, 2, 1, 1], [1, 1, 1, 1, 1], [11, 11, 11, 11, 10]])
def test_none_or_all_found_has_the_exact_interval_of_patients(lesions):
    """A patient with most lesions must not reduce the sample to less than one patient."""
    totals = np.array([*lesions, 0], float)  # a patient without lesions does not count
    end = 1 - 0.025 ** (1 / 5)
    assert proportion(0 * totals, totals, NONE).ci95 == pytest.approx((0, end))
    assert proportion(totals, totals, NONE).ci95 == pytest.approx((1 - end, 1))


@pytest.mark.parametrize("recall", [0.05, 0.95])
def test_interval_of_few_patients_covers_a_recall_near_0_or_1(recall):
    """Lesions of one patient are nearly all found or nearly all missed."""
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(400):
        lesions = rng.integers(1, 30, 6)
        found = rng.binomial(lesions, rng.beta(0.1 * recall, 0.1 * (1 - recall), 6))
        ends.append(proportion(found.astype(float), lesions.astype(float), NONE).ci95)
    assert np.mean([low <= recall <= high for low, high in ends]) >= 0.95


# --- coverage of 95 % intervals in simulated studies of clustered patients ---


@pytest.mark.parametrize("groups", [5, 10, 20, 50])
def test_intervals_of_overdispersed_rates_cover_the_truth(groups):
    rng = np.random.default_rng(groups)
    sets = rng.poisson(rng.gamma(0.7, 1 / 0.7, (1500, groups)))
    ends = [estimate_rate(s.astype(float), np.ones(groups), NONE).ci95 for s in sets]
    assert np.mean([low <= 1 <= high for low, high in ends]) >= 0.93


def wilson_ends(hits, totals, _):
    return proportion(hits, totals, NONE).ci95


def mean_ends(hits, totals, _):
    return proportion(hits / totals, np.ones(len(totals)), NONE, min_deff=0.0).ci95


def bootstrap_ends(hits, totals, seed):
    statistic = ratio(hits, totals)
    return bootstrap_interval(statistic, len(totals), support=totals, seed=seed).ci95


INTERVALS = {"wilson": wilson_ends, "mean": mean_ends, "bootstrap": bootstrap_ends}


@pytest.mark.parametrize("groups", [5, 10, 20])
@pytest.mark.parametrize("kind", INTERVALS)
def test_intervals_cover_in_93_to_99_of_100_studies(kind, groups):
    """Draw patients with 1 to 8 lesions and an individual recall (intraclass correlation 0.2)."""
    rng = np.random.default_rng(0)
    studies = 800
    recall = 0.75
    held = 0
    for study in range(studies):
        lesions = rng.integers(1, 9, groups)
        hits = rng.binomial(lesions, rng.beta(4 * recall, 4 * (1 - recall), groups))
        ends = INTERVALS[kind](hits.astype(float), lesions.astype(float), study)
        low, high = ends or (0, 1)
        held += low <= recall <= high
    assert 0.93 <= held / studies <= 0.995


@pytest.mark.parametrize("compute", [proportion, estimate_rate])
@pytest.mark.parametrize(
    ("n_groups", "reason"), [(12, "1 of 12 patients count here"), (4, "fewer than 5 patients")]
)
def test_number_of_one_patient_states_why_it_has_no_interval(compute, n_groups, reason):
    items = np.eye(n_groups)[0]
    found = compute(items, items, "none")
    assert (found.value, found.ci95) == (1.0, None)
    assert found.reason.startswith(reason)
