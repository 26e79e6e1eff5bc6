"""Do 95 % intervals hold the truth in 95 of 100 studies of clustered patients?"""

import numpy as np
import pytest

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.statistics.detection import ratio
from lesionseg.evaluation.statistics.estimates import Estimator, proportion
from lesionseg.evaluation.statistics.pooled import mean_share


def coverage(interval_of, groups, studies=1500, recall=0.75, seed=0):
    """Patients with 1 to 8 lesions and a recall of their own (intraclass correlation 0.2)."""
    rng, held = np.random.default_rng(seed), 0
    for study in range(studies):
        lesions = rng.integers(1, 9, groups)
        own = rng.beta(4 * recall, 4 * (1 - recall), groups)
        found = rng.binomial(lesions, own)
        low, high = interval_of(found.astype(float), lesions.astype(float), study)
        held += low <= recall <= high
    return held / studies


def wilson(found, lesions, _):
    return proportion(found, lesions, edge_cases.NO_LESION).ci95


def bootstrap(found, lesions, study):
    estimator = Estimator.seeded(len(found), 400, study)
    return estimator.bootstrapped(ratio(found, lesions), lesions, edge_cases.NO_LESION, 1)[0].ci95


@pytest.mark.slow
@pytest.mark.parametrize("groups", [20, 35, 50])
@pytest.mark.parametrize("interval_of", [wilson, bootstrap], ids=["wilson", "bootstrap"])
def test_intervals_cover_in_93_to_97_of_100_studies(interval_of, groups):
    assert 0.93 <= coverage(interval_of, groups) <= 0.97


@pytest.mark.parametrize("groups", [5, 10, 20])
def test_means_of_shares_cover_with_few_patients(groups):
    def of_patients(found, lesions, _):
        return mean_share(found / lesions, np.ones(groups), edge_cases.NO_LESION).ci95

    assert 0.94 <= coverage(of_patients, groups) <= 0.98


def test_equal_numbers_are_not_certain_and_a_mean_is_within_its_interval():
    ones, none = np.ones(6), edge_cases.NO_LESION
    assert mean_share(0.8 * ones, ones, none).reason == edge_cases.COLLAPSED.reason
    low, high = mean_share(ones, ones, none).ci95
    assert low < 0.7 < high == 1.0  # as if each were one lesion, found
    spread = mean_share(np.array([0.8, 0.7, 0.9, 0.75, 0.85, 0.8]), ones, none)
    assert 0.7 < spread.ci95[0] < 0.8 < spread.ci95[1] < 0.9
