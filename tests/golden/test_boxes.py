"""What suppression and clustering keep of random boxes."""

import numpy as np
import pytest
import torch

from lesionseg.ops import box_iou, nms, weighted_box_clustering
from tests.golden.common import check


@pytest.mark.parametrize("dims", [2, 3])
def test_boxes(dims):
    rng = np.random.default_rng(dims)
    middle = rng.uniform(0, 60, (25, dims))[rng.integers(0, 25, 200)]
    start = middle + rng.normal(0, 2, (200, dims))
    boxes = np.concatenate([start, start + rng.uniform(6, 14, (200, dims))], 1)
    boxes = torch.from_numpy(boxes.astype(np.float32))
    scores = torch.from_numpy((rng.integers(1, 150, 200) / 150).astype(np.float32))  # with ties
    weights = torch.from_numpy(rng.uniform(0.2, 1, 200).astype(np.float32))
    expected = torch.from_numpy(rng.uniform(0.5, 8, 200).astype(np.float32))
    found = {"iou": box_iou(boxes[:12], boxes[100:112])}
    for threshold in (0.1, 0.3, 0.5):
        found[f"nms {threshold}"] = nms(boxes, scores, threshold)
        for name, more in (
            ("", {}),
            (" weighed", {"weights": weights}),
            (" counted", {"weights": weights, "expected": expected}),
        ):
            merged = weighted_box_clustering(boxes, scores, threshold, **more)
            found[f"clusters {threshold}{name}"] = {
                "boxes": merged.boxes[:20],
                "scores": merged.scores,
                "leader": merged.leader,
                "size": merged.size,
            }
    check(f"boxes_{dims}d", found)
