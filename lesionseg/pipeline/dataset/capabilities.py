"""What only some networks can do: refused for the others before anything is written."""

import logging

from torch import nn

from lesionseg.errors import DatasetError
from lesionseg.losses import DetectionLoss, DiceFocalLoss
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.plan.candidate_rule import sources_of

log = logging.getLogger(__name__)


def require_masks(survey: Survey, architecture: str) -> None:
    """Raise `DatasetError` for a network that learns voxels where a reference has boxes alone.

    Filled boxes would be taken for the lesions' outlines.
    """
    if "segmentation" not in sources_of(architecture) or not survey.boxed:
        return
    case, n_boxes = next(iter(survey.boxed.items()))
    raise DatasetError(
        f"The reference has boxes, and model={architecture} learns from masks.",
        where=f"{case}: lesion 1",
        seen=f"{n_boxes} boxes and no mask; so in {len(survey.boxed)} case(s)",
        remedy="train a detector, model=retinanet, or add masks.",
    )


def warn_of_unused_loss(architecture: str, loss: nn.Module, detection: DetectionLoss) -> None:
    """Say what teaches a network without voxels where a loss of voxels was chosen for it.

    The default loss was not chosen.
    """
    if "segmentation" not in sources_of(architecture) and type(loss) is not DiceFocalLoss:
        log.warning(
            "model=%s has no voxels: %s is not used. Its anchors learn by detection.alpha=%s and "
            "detection.gamma=%s.",
            architecture,
            type(loss).__name__,
            detection.alpha,
            detection.gamma,
        )
