"""Losses: focal loss, cross-entropy, Dice and their combinations, for voxels and for anchors.

The functions compute a loss from tensors. The modules are configured by the settings `loss.*`.
"""

from lesionseg.losses.base import (
    CustomLoss,
    PositiveAverage,
    VoxelLoss,
    make_loss,
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
    "PositiveAverage",
    "VoxelLoss",
    "dice_loss",
    "make_loss",
    "nearest_lesions",
    "posterior_logits",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
