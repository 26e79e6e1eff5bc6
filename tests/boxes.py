"""References and predictions of boxes without masks."""

import numpy as np

from lesionseg.core import Candidate, Prediction, Reference


def reference_of_boxes(geometry, *boxes, **more):
    """Return a reference of boxes (starts, stops; half-open voxels) with label 1."""
    table = np.array(boxes, dtype=np.float32).reshape(-1, 2 * geometry.dims)
    return Reference(geometry, boxes=table, box_labels=(1,) * len(table), **more)


def predict_boxes(geometry, *boxes, score=0.9):
    """Return a prediction of boxes with label 1 and the same score."""
    rows = [Candidate.from_box(n, 1, score, box, geometry) for n, box in enumerate(boxes, 1)]
    return Prediction("a", geometry, tuple(rows), None)
