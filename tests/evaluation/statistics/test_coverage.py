"""Do 95 % intervals hold the truth in 95 of 100 studies of clustered patients?"""

import numpy as np
import pytest

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.statistics.detection import ratio
from lesionseg.evaluation.statistics.estimates import Estimator, proportion


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
