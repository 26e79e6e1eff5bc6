"""References and predictions of boxes without masks."""

import numpy as np
import torch

from lesionseg.core import Candidate, Prediction, Reference


def draw_boxes(seed, shape, limit, minimum, maximum):
    """Draw boxes `[n, dims]` that begin before `limit`, with sides from `minimum` to `maximum`."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(shape, generator=generator) * limit
    side = minimum + torch.rand(shape, generator=generator) * (maximum - minimum)
    return torch.cat([start, start + side], dim=1)


def reference_of_boxes(geometry, *boxes, **more):
    """Return a reference of boxes (starts, stops; half-open voxels) with label 1."""
    table = np.array(boxes, dtype=np.float32).reshape(-1, 2 * geometry.dims)
    return Reference(geometry, boxes=table, box_labels=(1,) * len(table), **more)


def predict_boxes(geometry, *boxes, score=0.9):
    """Return a prediction of boxes with label 1 and the same score."""
    rows = [Candidate.from_box(n, 1, score, box, geometry) for n, box in enumerate(boxes, 1)]
    return Prediction("a", geometry, tuple(rows), None)
