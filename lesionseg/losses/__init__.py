"""What teaches a network: focal loss and its kin, tensors in, numbers or named terms out.

The functions are the losses themselves, the modules what training is configured with.
"""

from lesionseg.losses.compound import CrossEntropyLoss as CrossEntropyLoss
from lesionseg.losses.compound import DiceCrossEntropyLoss as DiceCrossEntropyLoss
from lesionseg.losses.compound import DiceFocalLoss as DiceFocalLoss
from lesionseg.losses.compound import FocalLoss as FocalLoss
from lesionseg.losses.compound import dice_loss as dice_loss
from lesionseg.losses.focal import posterior_logits as posterior_logits
from lesionseg.losses.focal import sigmoid_focal_loss as sigmoid_focal_loss
from lesionseg.losses.focal import softmax_focal_loss as softmax_focal_loss
from lesionseg.losses.instance_wise import InstanceWise as InstanceWise
from lesionseg.losses.instance_wise import LesionWiseFocalLoss as LesionWiseFocalLoss
from lesionseg.losses.monai_losses import CustomLoss as CustomLoss
from lesionseg.losses.monai_losses import MonaiFocalLoss as MonaiFocalLoss
from lesionseg.losses.monai_losses import completed as completed
from lesionseg.losses.quality import quality_focal_loss as quality_focal_loss
from lesionseg.losses.quality import varifocal_loss as varifocal_loss
from lesionseg.losses.trimmed import MinedCrossEntropyLoss as MinedCrossEntropyLoss
from lesionseg.losses.trimmed import TrimmedFocalLoss as TrimmedFocalLoss
from lesionseg.losses.tversky import FocalTverskyLoss as FocalTverskyLoss
from lesionseg.losses.tversky import UnifiedFocalLoss as UnifiedFocalLoss
from lesionseg.losses.voxel_loss import PositiveAverage as PositiveAverage
from lesionseg.losses.voxel_loss import VoxelLoss as VoxelLoss
from lesionseg.losses.voxel_loss import count_positives as count_positives

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
