"""What teaches a network: focal loss and its kin, tensors in, numbers or named terms out.

The functions are the losses themselves, the modules what training is configured with.
"""

from lesionseg.losses.base import (
    CustomLoss,
    LossTerms,
    PositiveAverage,
    VoxelLoss,
    count_positives,
    make_loss,
    mask_unannotated,
    region_target,
)
from lesionseg.losses.detection import AnchorTargets, DetectionLoss
from lesionseg.losses.dice import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    dice_loss,
)
from lesionseg.losses.focal import posterior_logits, sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.per_lesion import LesionBalancedLoss, nearest_lesions

__all__ = [
    "AnchorTargets",
    "CrossEntropyLoss",
    "CustomLoss",
    "DetectionLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "FocalLoss",
    "LesionBalancedLoss",
    "LossTerms",
    "PositiveAverage",
    "VoxelLoss",
    "count_positives",
    "dice_loss",
    "make_loss",
    "mask_unannotated",
    "nearest_lesions",
    "posterior_logits",
    "region_target",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
