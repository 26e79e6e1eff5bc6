"""Lesion-wise scores as a torchmetrics metric, for loops that are not ours.

Batches of masks in; sensitivity, precision, F1 and false positives per scan of all cases out, by
the preset's match rule. `evaluate_case` scores each case, so the numbers are those of `evaluate`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation.cases import evaluate_case
from lesionseg.evaluation.criteria import find_preset
from lesionseg.ops.components import lesion_instances


class LesionMetric(Metric):
    """Lesion-wise scores of batches `[B, 1, *spatial]`, reduced over processes.

    `update(preds, target)` takes masks, label maps, or probabilities of which those from
    `threshold` on are lesion. `spacing_mm` in array order; None: 1 mm. Raises `ConfigError` for an
    unknown preset.

    >>> metric = LesionMetric()
    >>> mask = torch.zeros(1, 1, 8, 8, 8)
    >>> mask[..., 2:4, 2:4, 2:4] = 1
    >>> metric.update(mask, mask)
    >>> metric.compute()["lesion_recall"]
    1.0
    """

    full_state_update = False
    counts: Tensor

    def __init__(
        self,
        preset: str = "lesionseg",
        threshold: float = 0.5,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.preset, self.threshold, self.spacing_mm = find_preset(preset), threshold, spacing_mm
        self.add_state("counts", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch."""
        if target.shape != preds.shape or preds.shape[1] != 1:
            raise ValueError("masks [B, 1, *spatial] of one shape are needed, for both")
        for seen, truth in zip(_masks(preds, self.threshold), _masks(target, 0.5), strict=True):
            grid = Geometry.from_spacing(truth.shape, self.spacing_mm or (1.0,) * truth.ndim)
            reference = Reference(grid, truth)
            result = evaluate_case(reference, _prediction(seen, grid), self.preset, case="case")
            true, false = result.n_outcome("true_positive"), result.n_outcome("false_positive")
            counts = (len(result.lesions), result.n_detected, true, false, 1)
            self.counts += torch.tensor(counts).to(self.counts)

    def compute(self) -> dict[str, float]:
        """Pooled scores by the names of scores.json; NaN where there is nothing to divide by."""
        lesions, found, true, false, cases = self.counts.tolist()

        def ratio(part: float, whole: float) -> float:
            return part / whole if whole else float("nan")

        return {
            "lesion_recall": ratio(found, lesions),
            "lesion_precision": ratio(true, true + false),
            "lesion_f1": ratio(2 * found, found + lesions + false) if lesions else float("nan"),
            "false_positives_per_case": ratio(false, cases),
        }


def _masks(batch: Tensor, threshold: float) -> list[NDArray[np.uint8]]:
    values = batch.detach()[:, 0].cpu()
    if values.is_floating_point() and bool((values <= 1).all()):
        values = values >= threshold
    return list(values.to(torch.uint8).numpy())


def _prediction(labels: NDArray[np.uint8], grid: Geometry) -> Prediction:
    parts = lesion_instances(labels)
    candidates = tuple(
        Candidate.from_voxels(number, label, 1.0, np.argwhere(parts.instances == number), grid)
        for number, label in enumerate(parts.labels, 1)
    )
    return Prediction("case", grid, candidates, parts.instances, scored=False)
