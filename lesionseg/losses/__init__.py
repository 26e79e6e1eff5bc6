"""What teaches a network: focal loss and its kin, tensors in, numbers or named terms out.

The functions are the losses themselves, the modules what training is configured with.
"""

from lesionseg.losses.compound import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    dice_loss,
)
from lesionseg.losses.focal import posterior_logits, sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.instance_wise import InstanceWise, LesionWiseFocalLoss
from lesionseg.losses.monai_losses import CustomLoss, MonaiFocalLoss, completed
from lesionseg.losses.quality import quality_focal_loss, varifocal_loss
from lesionseg.losses.trimmed import MinedCrossEntropyLoss, TrimmedFocalLoss
from lesionseg.losses.tversky import FocalTverskyLoss, UnifiedFocalLoss
from lesionseg.losses.voxel_loss import PositiveAverage, VoxelLoss, count_positives

__all__ = [
    "CrossEntropyLoss",
    "CustomLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "InstanceWise",
    "LesionWiseFocalLoss",
    "MinedCrossEntropyLoss",
    "MonaiFocalLoss",
    "PositiveAverage",
    "TrimmedFocalLoss",
    "UnifiedFocalLoss",
    "VoxelLoss",
    "completed",
    "count_positives",
    "dice_loss",
    "posterior_logits",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]
