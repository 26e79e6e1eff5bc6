"""What teaches a network: focal loss and its compounds, tensors in, named terms out.

The functions are the focal loss itself; the modules are what training is configured with.
"""

from lesionseg.losses.compound import CrossEntropyLoss as CrossEntropyLoss
from lesionseg.losses.compound import DiceCrossEntropyLoss as DiceCrossEntropyLoss
from lesionseg.losses.compound import DiceFocalLoss as DiceFocalLoss
from lesionseg.losses.compound import FocalLoss as FocalLoss
from lesionseg.losses.compound import VoxelLoss as VoxelLoss
from lesionseg.losses.dice import dice_loss as dice_loss
from lesionseg.losses.focal import sigmoid_focal_loss as sigmoid_focal_loss
from lesionseg.losses.focal import softmax_focal_loss as softmax_focal_loss
from lesionseg.losses.normaliser import PositiveAverage as PositiveAverage
from lesionseg.losses.normaliser import count_positives as count_positives

__all__ = [
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "FocalLoss",
    "PositiveAverage",
    "VoxelLoss",
    "count_positives",
    "dice_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
