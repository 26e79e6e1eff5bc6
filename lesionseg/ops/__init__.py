"""Functions from arrays to arrays, which know neither cases nor files.

Names are imported when they are first used, so that `lesionseg.ops.components` needs no torch.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.ops.anchors import grid_anchors as grid_anchors
    from lesionseg.ops.boxes import box_iou as box_iou
    from lesionseg.ops.boxes import box_volume as box_volume
    from lesionseg.ops.boxes import decode_boxes as decode_boxes
    from lesionseg.ops.components import candidates_of as candidates_of
    from lesionseg.ops.components import label_components as label_components
    from lesionseg.ops.components import lesion_instances as lesion_instances
    from lesionseg.ops.components import present_values as present_values
    from lesionseg.ops.interpolation import resample_slabs as resample_slabs
    from lesionseg.ops.interpolation import resample_to as resample_to
    from lesionseg.ops.suppression import batched_nms as batched_nms
    from lesionseg.ops.suppression import cluster_boxes as cluster_boxes
    from lesionseg.ops.suppression import nms as nms

_HOMES = {
    "batched_nms": "suppression",
    "box_iou": "boxes",
    "box_volume": "boxes",
    "candidates_of": "components",
    "cluster_boxes": "suppression",
    "decode_boxes": "boxes",
    "grid_anchors": "anchors",
    "label_components": "components",
    "lesion_instances": "components",
    "nms": "suppression",
    "present_values": "components",
    "resample_slabs": "interpolation",
    "resample_to": "interpolation",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
