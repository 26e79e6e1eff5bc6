"""The losses, tried on one tile before a run is begun: do their settings fit the labels?"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss
from lesionseg.models.heads import DetectorOutput
from lesionseg.plan.plan import Plan
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.step.detection_objective import DetectionObjective
from lesionseg.training.step.objective import VoxelObjective

_REMEDY = (
    "give one number, or one a class in the order of the labels (with softmax the background "
    "first); detection.alpha is that of the anchors."
)


def check_losses(plan: Plan, loss: nn.Module, detection: DetectionLoss) -> None:
    """Raise `ConfigError` naming the setting that does not fit the plan's labels.

    Some faults show only with the labels, such as a number of α that is not that of the classes.
    They would else be refused at the first step, when the run already belongs to it.
    """
    batch = some_batch(plan, 1, torch.device("cpu"))
    if plan.has_voxels:
        with _named("loss"):
            _try_voxels(VoxelObjective(deepcopy(loss), plan), plan, batch)
    if plan.has_boxes:
        with _named("detection"):
            _try_anchors(DetectionObjective(detection, plan, None), plan, batch)


@torch.no_grad()
def _try_voxels(objective: VoxelObjective, plan: Plan, batch: dict[str, Tensor]) -> None:
    n_logits = len(plan.label_values) + (plan.activation == "softmax")
    targets = objective.targets(batch)
    logits = torch.zeros((1, n_logits, *plan.tile_shape))
    objective.terms([logits], targets, torch.ones_like(targets.counts()))


@torch.no_grad()
def _try_anchors(objective: DetectionObjective, plan: Plan, batch: dict[str, Tensor]) -> None:
    targets = objective.targets(batch)
    n_anchors = targets.labels.shape[1]
    scores = torch.zeros((1, n_anchors, len(plan.lesion_labels)))
    boxes = torch.zeros((1, n_anchors, 2 * plan.dims))
    objective.terms(DetectorOutput(scores, boxes), targets, torch.ones_like(targets.counts()))


@contextmanager
def _named(group: str) -> Iterator[None]:
    """Errors name the setting as the command line has it: `loss.alpha`, not `alpha`."""
    try:
        yield
    except ConfigError as error:
        where = f"{group}.{error.where}" if error.where else group
        raise ConfigError(
            error.what,
            where=where,
            seen=error.seen,
            expected=error.expected,
            remedy=_REMEDY if error.where == "alpha" else error.remedy,
        ) from error
