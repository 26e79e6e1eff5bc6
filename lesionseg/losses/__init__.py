"""Losses: focal loss, cross-entropy, Dice and their combinations, for voxels and for anchors.

The functions compute a loss from tensors. The modules are configured by the settings `loss.*`.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.losses.base import CustomLoss as CustomLoss
    from lesionseg.losses.base import PositiveAverage as PositiveAverage
    from lesionseg.losses.base import VoxelLoss as VoxelLoss
    from lesionseg.losses.base import make_loss as make_loss
    from lesionseg.losses.detection import AnchorTargets as AnchorTargets
    from lesionseg.losses.detection import DetectionLoss as DetectionLoss
    from lesionseg.losses.dice import CrossEntropyLoss as CrossEntropyLoss
    from lesionseg.losses.dice import DiceCrossEntropyLoss as DiceCrossEntropyLoss
    from lesionseg.losses.dice import DiceFocalLoss as DiceFocalLoss
    from lesionseg.losses.dice import FocalLoss as FocalLoss
    from lesionseg.losses.dice import dice_loss as dice_loss
    from lesionseg.losses.focal import posterior_logits as posterior_logits
    from lesionseg.losses.focal import sigmoid_focal_loss as sigmoid_focal_loss
    from lesionseg.losses.focal import softmax_focal_loss as softmax_focal_loss
    from lesionseg.losses.per_lesion import LesionBalancedLoss as LesionBalancedLoss
    from lesionseg.losses.per_lesion import nearest_lesions as nearest_lesions

_HOMES = {
    "AnchorTargets": "detection",
    "CrossEntropyLoss": "dice",
    "CustomLoss": "base",
    "DetectionLoss": "detection",
    "DiceCrossEntropyLoss": "dice",
    "DiceFocalLoss": "dice",
    "FocalLoss": "dice",
    "LesionBalancedLoss": "per_lesion",
    "PositiveAverage": "base",
    "VoxelLoss": "base",
    "dice_loss": "dice",
    "make_loss": "base",
    "nearest_lesions": "per_lesion",
    "posterior_logits": "focal",
    "sigmoid_focal_loss": "focal",
    "softmax_focal_loss": "focal",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
