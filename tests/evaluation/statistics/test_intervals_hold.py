"""Do 95 % intervals hold the truth in 95 of 100 studies of clustered patients?"""

import numpy as np
import pytest
from scipy.special import ndtri

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.statistics.bootstrap import (
    draw_groups,
    effective_groups,
    percentiles,
    wilson_interval,
)
from lesionseg.evaluation.statistics.detection import ratio
from lesionseg.evaluation.statistics.estimates import Estimator, auroc, difference, proportion
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


@pytest.mark.parametrize("groups", [5, 10, 20])
def test_differences_of_two_equal_models_cover_with_few_patients(groups):
    def of_both(found, lesions, study):
        rng = np.random.default_rng([study, 1])
        other = rng.binomial(lesions.astype(int), rng.beta(3, 1, groups)) / 1.0
        both = [ratio(side, lesions) for side in (found, other)]
        weights = draw_groups(groups, 400, rng).astype(float)
        drawn = (both[0](weights) - both[1](weights))[:, 0]
        # none where both found the same
        low, high = percentiles(drawn, effective_groups(lesions)).ci95 or (0, 0)
        return low + 0.75, high + 0.75  # of a difference the truth is 0

    assert 0.92 <= coverage(of_both, groups, studies=800) <= 0.98


def test_differences_of_subgroups_cover():
    def of_halves(found, lesions, _):
        none = edge_cases.NO_LESION
        halves = [proportion(found[i::2], lesions[i::2], none) for i in (0, 1)]
        low, high = difference(*halves).ci95
        return low + 0.75, high + 0.75  # of a difference the truth is 0

    assert 0.94 <= coverage(of_halves, 20) <= 0.98


def areas(n, cases, auc, studies, alike=0.0, seed=0):
    """AUROCs of n patients, half of them ill; normal scores, of which a share is the patient's."""
    for study in range(studies):
        rng = np.random.default_rng([seed, study])
        own, each = rng.normal(size=(n, 1)), rng.normal(size=(n, cases))
        ill = np.arange(n)[:, None] % 2 == np.zeros(cases)
        scores = np.sqrt(alike) * own + np.sqrt(1 - alike) * each + ill * np.sqrt(2) * ndtri(auc)
        yield auroc(scores.ravel(), ill.ravel(), np.repeat(np.arange(n), cases))


@pytest.mark.parametrize("auc", [0.75, 0.93])
@pytest.mark.parametrize(("n", "cases", "alike"), [(10, 1, 0.0), (20, 1, 0.0), (20, 4, 0.5)])
def test_aurocs_cover_and_none_lacks_an_interval(n, cases, alike, auc):
    ends = [found.ci95 for found in areas(n, cases, auc, 600, alike)]
    assert 0.94 <= np.mean([low <= auc <= high for low, high in ends]) <= 0.99


def test_the_interval_of_an_auroc_by_hand():
    ill, score = np.arange(12) < 6, np.array([9.0, 8, 7, 6, 5, 2, 4, 3, 2, 1, 1, 0])
    found = auroc(score, ill, np.arange(12))
    assert found.value == pytest.approx(33.5 / 36)  # 2 under 3 and 4, and once a tie
    for end in found.ci95:  # Newcombe's equation, of cases of one patient each
        pairs = 1 + 5 * (1 - end) / (2 - end) + 5 * end / (1 + end)
        z = abs(end - found.value) / np.sqrt(end * (1 - end) * pairs / 36)
        assert z >= 1.96 - 1e-3  # wider where patients differ more than Hanley and McNeil's
    back = auroc(-score, ill, np.arange(12))
    assert back.ci95 == pytest.approx([1 - end for end in found.ci95[::-1]])
    sure = auroc(ill.astype(float), ill, np.arange(12))
    assert 0.5 < sure.ci95[0] < 0.8
    assert sure.ci95[1] == 1.0
    alike = auroc(np.tile(ill, 3) / 1.0, np.tile(ill, 3), np.tile(np.arange(12), 3))
    assert alike.ci95 == pytest.approx(sure.ci95, abs=0.03)  # three scans each tell no more
    assert auroc(score[:10], ill[:10], np.arange(10)).reason == edge_cases.TOO_FEW_GROUPS.reason


def test_lesions_that_vary_less_than_independent_ones_have_the_interval_of_those():
    even = np.full(10, 4.0)
    hits = np.tile([3.0, 3.0, 3.0, 3.0, 3.0], 2)  # vary less than independent lesions would
    ends = proportion(hits, even, edge_cases.NO_LESION).ci95
    assert ends == pytest.approx(wilson_interval(30, 40))


def test_equal_numbers_are_not_certain_and_a_mean_is_within_its_interval():
    ones, none = np.ones(6), edge_cases.NO_LESION
    assert mean_share(0.8 * ones, ones, none).reason == edge_cases.COLLAPSED.reason
    low, high = mean_share(ones, ones, none).ci95
    assert low < 0.7 < high == 1.0  # as if each were one lesion, found
    spread = mean_share(np.array([0.8, 0.7, 0.9, 0.75, 0.85, 0.8]), ones, none)
    assert 0.7 < spread.ci95[0] < 0.8 < spread.ci95[1] < 0.9
