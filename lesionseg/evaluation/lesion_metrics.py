"""Lesion-wise scores as metrics of MONAI and torchmetrics, for loops that are not ours.

Batches of masks in; sensitivity, precision, F1 and false positives per scan of all cases out, by
the preset's match rule. `evaluate_case` judges each case, so the numbers are those of `evaluate`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.metrics import CumulativeIterationMetric
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation.one_case import evaluate_case
from lesionseg.evaluation.presets import find_preset
from lesionseg.ops.components import lesion_instances

_COUNTS = ("lesions", "found", "candidates", "true", "cases")


class LesionMetric(CumulativeIterationMetric):  # type: ignore[misc]  # MONAI is untyped
    """Lesion-wise scores as a MONAI metric.

    Called with `y_pred` and `y`, `[B, 1, *spatial]` or lists of `[1, *spatial]`: masks, or label
    maps, or probabilities of which those from `threshold` on are lesion. Returns the counts of
    each case, `[B, 5]`; `aggregate` the scores of all. `spacing_mm` in array order; None: 1 mm.

    >>> metric = LesionMetric()
    >>> mask = torch.zeros(1, 1, 8, 8, 8)
    >>> mask[..., 2:4, 2:4, 2:4] = 1
    >>> counts = metric(y_pred=mask, y=mask)
    >>> metric.aggregate()["lesion_recall"]
    1.0
    """

    def __init__(
        self,
        preset: str = "lesionseg",
        threshold: float = 0.5,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.preset, self.threshold, self.spacing_mm = preset, threshold, spacing_mm

    def _compute_tensor(
        self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any
    ) -> Float[Tensor, "b 5"]:
        return lesion_counts(y_pred, y, self.preset, self.threshold, self.spacing_mm)

    def aggregate(self) -> dict[str, float]:
        """The scores of all cases since `reset`; see `lesion_scores`."""
        counts = self.get_buffer()
        return lesion_scores(torch.zeros(5) if counts is None else counts.sum(0))


class LesionTorchMetric(Metric):
    """The same as a torchmetrics `Metric`: `update(preds, target)`, `compute()` and reduction."""

    full_state_update = False
    counts: Tensor

    def __init__(
        self,
        preset: str = "lesionseg",
        threshold: float = 0.5,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.preset, self.threshold, self.spacing_mm = preset, threshold, spacing_mm
        self.add_state("counts", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch, `[B, 1, *spatial]` each."""
        counts = lesion_counts(preds, target, self.preset, self.threshold, self.spacing_mm)
        self.counts += counts.sum(0).to(self.counts)

    def compute(self) -> dict[str, float]:
        """The scores of all cases since `reset`; see `lesion_scores`."""
        return lesion_scores(self.counts)


def lesion_counts(
    predicted: Tensor,
    reference: Tensor | None,
    preset: str = "lesionseg",
    threshold: float = 0.5,
    spacing_mm: Sequence[float] | None = None,
) -> Float[Tensor, "b 5"]:
    """Of each case: lesions, those found, candidates, true ones among them, and 1.

    Raises `ConfigError` for an unknown preset.
    """
    if reference is None or reference.shape != predicted.shape or predicted.shape[1] != 1:
        raise ValueError("masks [B, 1, *spatial] of one shape are needed, for y_pred and for y")
    pairs = zip(_masks(predicted, threshold), _masks(reference, 0.5), strict=True)
    rows = [_counted(seen, truth, preset, spacing_mm) for seen, truth in pairs]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(_COUNTS))


def lesion_scores(counts: Float[Tensor, " 5"]) -> dict[str, float]:
    """Pooled scores by the names of scores.json; NaN where there is nothing to divide by."""
    lesions, found, candidates, true, cases = counts.double().tolist()
    false = candidates - true
    return {
        "lesion_recall": _ratio(found, lesions),
        "lesion_precision": _ratio(true, candidates),
        "lesion_f1": _ratio(2 * found, found + lesions + false) if lesions else float("nan"),
        "false_positives_per_case": _ratio(false, cases),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _masks(batch: Tensor, threshold: float) -> list[NDArray[np.uint8]]:
    """Each case's labels `[*spatial]`; of floating-point input what reaches the threshold."""
    values = batch.detach()[:, 0].cpu()
    if values.is_floating_point() and bool((values <= 1).all()):
        values = values >= threshold
    return list(values.to(torch.uint8).numpy())


def _counted(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    preset: str,
    spacing_mm: Sequence[float] | None,
) -> Sequence[int]:
    grid = Geometry.from_spacing(truth.shape, spacing_mm or (1.0,) * truth.ndim)
    result = evaluate_case(
        Reference(grid, truth), _prediction(predicted, grid), find_preset(preset), case="case"
    )
    true = result.n_outcome("true_positive")
    judged = true + result.n_outcome("false_positive")
    return len(result.lesions), result.n_detected, judged, true, 1


def _prediction(labels: NDArray[np.uint8], grid: Geometry) -> Prediction:
    """A candidate of score 1 for each component."""
    parts = lesion_instances(labels)
    voxels: Mapping[int, NDArray[np.int64]] = {
        number: np.argwhere(parts.instances == number) for number in range(1, len(parts.labels) + 1)
    }
    candidates = tuple(
        Candidate.from_voxels(number, parts.labels[number - 1], 1.0, where, grid)
        for number, where in voxels.items()
    )
    return Prediction("case", grid, candidates, parts.instances, scored=False)
