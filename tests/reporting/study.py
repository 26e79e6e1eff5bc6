"""Scans with a large and a small lesion, and predictions of them, for pages of an evaluation."""

import numpy as np

from lesionseg.core import Geometry, OperatingPoint
from tests.evaluation.hand_cases import prediction_of
from tests.pipeline.cases import write_array, write_scan

GRID = Geometry.from_spacing((16, 32, 32), (2.0, 1.0, 1.0))
POINT = OperatingPoint("score:0.5", 0.5, "validation")
# box and score of candidates: on the large lesion, at a place without lesion, on the small lesion
CANDIDATES = {
    "lesion": (np.s_[3:6, 4:9, 5:10], 0.9),
    "false": (np.s_[10:12, 4:7, 25:28], 0.6),
    "other": (np.s_[8:9, 18:21, 18:21], 0.95),
}


def predict(case, *names):
    """Return the prediction of a case with some of the CANDIDATES."""
    found = np.zeros(GRID.shape, np.int32)
    scores = []
    for number, name in enumerate(names, start=1):
        box, score = CANDIDATES[name]
        found[box] = number
        scores.append(score)
    return prediction_of(found, scores, GRID, case=case, operating_point=POINT)


def write_cases(root, cases, n_ill):
    """Write the scans and masks of cases. The first `n_ill` have both lesions."""
    for k, case in enumerate(cases):
        truth = np.zeros(GRID.shape, np.uint8)
        if k < n_ill:
            truth[3:6, 4:10, 4:10] = truth[8:9, 20:22, 20:22] = 1
        write_scan(root / f"scans/{case}.nii.gz", GRID, seed=k)
        write_array(root / f"masks/{case}.nii.gz", truth, GRID)
