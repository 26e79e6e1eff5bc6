"""Boxes of any number of axes: `[n, 2·dims]`, all starts then all stops, half-open, in voxels."""

import torch
from jaxtyping import Float
from torch import Tensor

from lesionseg.ops.components import mask_boxes as mask_boxes


def box_volume(boxes: Float[Tensor, "n two_d"]) -> Float[Tensor, " n"]:
    """Volume (2-D: area) of each box in voxels; a box whose stop lies before its start has 0."""
    start, stop = boxes.chunk(2, dim=-1)
    return _product((stop - start).clamp(min=0))


def box_iou(a: Float[Tensor, "n two_d"], b: Float[Tensor, "m two_d"]) -> Float[Tensor, "n m"]:
    """Intersection over union of each box in `a` with each in `b`, in [0, 1].

    Boxes are `[n, 2·dims]`, starts then stops, half-open. Half precision is raised to float32,
    since volumes overflow it. Empty boxes have IoU 0; no boxes give an empty matrix.

    >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> box_iou(a, torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 6.0, 6.0]])).tolist()
    [[0.3333333432674408, 0.0]]
    """
    a, b = _at_least_float32(a), _at_least_float32(b)
    start_a, stop_a = a.chunk(2, dim=-1)
    start_b, stop_b = b.chunk(2, dim=-1)
    start = torch.maximum(start_a[:, None], start_b[None])  # [n, m, d]
    stop = torch.minimum(stop_a[:, None], stop_b[None])
    shared = _product((stop - start).clamp(min=0))
    union = box_volume(a)[:, None] + box_volume(b)[None] - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


def _product(sides: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Product over the last axis, from left to right: the order in which `nms` multiplies."""
    product = sides[..., 0]
    for axis in range(1, sides.shape[-1]):
        product = product * sides[..., axis]
    return product


def _at_least_float32(boxes: Tensor) -> Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))
