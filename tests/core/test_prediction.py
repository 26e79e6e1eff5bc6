"""Masks and accepted candidates of predictions."""

from dataclasses import replace

import numpy as np

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction


def _make_candidate(id, label, accepted):
    return Candidate(id, label, 0.5, (0, 0), (1, 1), (0, 0), 1.0, None, accepted=accepted)


def test_mask_contains_labels_of_accepted_candidates_only():
    geometry = Geometry.from_spacing((1, 4), (1, 1))
    candidates = (
        _make_candidate(1, label=2, accepted=True),
        _make_candidate(2, label=1, accepted=False),
        _make_candidate(3, label=1, accepted=True),
    )
    prediction = Prediction("a", geometry, candidates, np.array([[0, 1, 2, 3]], np.int32))
    assert prediction.mask().tolist() == [[0, 2, 0, 1]]


def test_mask_without_candidates_is_empty():
    geometry = Geometry.from_spacing((1, 4), (1, 1))
    for instances in (None, np.zeros((1, 4), np.int32)):
        assert not Prediction("a", geometry, (), instances).mask().any()


def test_operating_point_does_not_accept_candidates_without_scores():
    """Their scores are placeholders."""
    geometry = Geometry.from_spacing((1, 4), (1, 1))
    marked = Prediction("a", geometry, (_make_candidate(1, label=1, accepted=False),), None)
    point = OperatingPoint("score:0.5", 0.5)
    assert marked.accept(point).candidates[0].accepted
    unscored = replace(marked, has_scores=False)
    assert unscored.accept(point) is unscored
