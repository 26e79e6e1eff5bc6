import numpy as np

from lesionseg.core import Candidate, Geometry, Prediction


def _candidate(id: int, label: int, accepted: bool) -> Candidate:
    return Candidate(id, label, 0.5, (0, 0), (1, 1), (0, 0), 1.0, None, accepted=accepted)


def test_mask_holds_labels_of_accepted_candidates_only() -> None:
    geometry = Geometry.from_spacing((1, 4), (1, 1))
    candidates = (_candidate(1, 2, True), _candidate(2, 1, False), _candidate(3, 1, True))
    prediction = Prediction("a", geometry, candidates, np.array([[0, 1, 2, 3]], np.int32))
    assert prediction.mask().tolist() == [[0, 2, 0, 1]]
    for instances in (None, np.zeros((1, 4), np.int32)):
        assert not Prediction("a", geometry, (), instances).mask().any()
