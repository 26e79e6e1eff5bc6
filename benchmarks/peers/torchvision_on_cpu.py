"""Make torchvision's models importable together with a torch without CUDA.

torchvision's wheels are linked against CUDA. With the CPU build of torch, its compiled operators do
not load and the import fails. RetinaNet needs only one of them, NMS. It gets our NMS, which is
faster on a CPU, so the comparison does not favour us. Import this before torchvision or
`monai.apps`.
"""

import torch
from torch import Tensor

from lesionseg.ops.suppression import nms


def supply_nms() -> None:
    """Define `torchvision::nms` if the compiled operators are missing."""
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _KEPT.append(library)
    import torchvision.extension
    import torchvision.ops.boxes

    torchvision.extension._has_ops = lambda: True
    torchvision.ops.boxes._assert_has_ops = lambda: None


_KEPT: list[torch.library.Library] = []  # an operator lives as long as its library


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return nms(boxes, scores, iou_threshold)
