"""Lesion-wise scores as a torchmetrics metric."""

import math

import torch
from torch import Tensor

from lesionseg.evaluation.metric import LesionMetric


def cases() -> tuple[Tensor, Tensor]:
    """Two scans: one of two lesions is found, with a false positive; the second scan is empty."""
    reference, predicted = torch.zeros(2, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16)
    reference[0, 0, 2:5, 2:5, 2:5] = 1
    reference[0, 0, 10:13, 10:13, 10:13] = 1
    predicted[0, 0, 2:5, 2:5, 3:6] = 0.9
    predicted[0, 0, 2:4, 12:14, 2:4] = 0.8
    predicted[1, 0, 8:10, 8:10, 8:10] = 0.4  # under the threshold
    return predicted, reference


EXPECTED = {
    "lesion_recall": 0.5,
    "lesion_precision": 0.5,
    "lesion_f1": 0.5,
    "false_positives_per_case": 0.5,
}


def test_as_a_metric_of_torchmetrics() -> None:
    metric = LesionMetric()
    for predicted, reference in zip(*cases(), strict=True):
        metric.update(predicted[None], reference[None])
    assert metric.compute() == EXPECTED
    assert metric(*cases()) == EXPECTED


def test_nothing_to_judge_is_no_number() -> None:
    empty = torch.zeros(1, 1, 8, 8)
    metric = LesionMetric()
    metric.update(empty, empty)
    assert math.isnan(metric.compute()["lesion_recall"])
    assert metric.compute()["false_positives_per_case"] == 0
