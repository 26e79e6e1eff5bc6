"""The one-pass matching against trying everything."""

from itertools import combinations, permutations

import numpy as np
import pytest

from lesionseg.evaluation.case.matching import Links, detection_scores, match
from lesionseg.evaluation.results import NEVER


def random_links(rng, n_candidates, n_lesions, density=0.4):
    weight = rng.integers(10, 100, (n_candidates, n_lesions)) / 100
    weight[rng.random(weight.shape) > density] = 0
    return links_of(weight), weight


def links_of(weight, assignment="every_threshold"):
    candidate, lesion = np.nonzero(weight)
    shape = np.shape(weight)
    return Links(*shape, candidate, lesion, np.asarray(weight)[candidate, lesion], assignment)


def best_by_trying(weight):
    """Largest number of pairs, then largest sum, over all one-to-one assignments."""
    n_candidates, n_lesions = weight.shape
    best = (0, 0.0)
    for size in range(1, min(weight.shape) + 1):
        for rows in combinations(range(n_candidates), size):
            for columns in permutations(range(n_lesions), size):
                chosen = weight[list(rows), list(columns)]
                if (chosen > 0).all():
                    best = max(best, (size, round(float(chosen.sum()), 6)))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_maximum_at_every_threshold_and_a_found_lesion_stays_found(seed):
    rng = np.random.default_rng(seed)
    links, weight = random_links(rng, 5, 4)
    scores = rng.integers(1, 5, 5) / 5  # with ties
    found_at = detection_scores(links, scores)
    for threshold in np.unique(scores):
        present = scores >= threshold
        n_best, sum_best = best_by_trying(weight[present])
        found = found_at >= threshold
        assert found.sum() == n_best
        candidate_of = match(links.among(present), found)
        matched = candidate_of >= 0
        assert round(weight[candidate_of[matched], np.flatnonzero(matched)].sum(), 6) == sum_best
        assert len(set(candidate_of[matched])) == matched.sum()
        # the match of largest IoU finds the very lesions that the curve counts
        np.testing.assert_array_equal(matched, found)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    links, weight = random_links(rng, 6, 5)
    scores = rng.permutation(6) / 6
    order = rng.permutation(6)
    np.testing.assert_array_equal(
        detection_scores(links, scores), detection_scores(links_of(weight[order]), scores[order])
    )


def test_many_to_many_takes_the_highest_score_and_the_best_fit():
    links = links_of(np.array([[0.2, 0.3], [0.5, 0.0]]), assignment="all")
    np.testing.assert_array_equal(detection_scores(links, np.array([0.9, 0.4])), [0.9, 0.9])
    np.testing.assert_array_equal(match(links, np.zeros(2, bool)), [1, 0])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_no_links(shape):
    links = links_of(np.zeros(shape))
    found_at = detection_scores(links, np.full(shape[0], 0.5))
    assert found_at.tolist() == [NEVER] * shape[1]
    assert match(links, np.zeros(shape[1], bool)).tolist() == [-1] * shape[1]


def test_a_crowd_is_fast():
    rng = np.random.default_rng(0)
    links, _ = random_links(rng, 200, 60, density=0.05)
    found_at = detection_scores(links, rng.random(200))
    assert (found_at > NEVER).sum() == 60
