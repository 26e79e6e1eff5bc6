"""Boxes as offsets from anchors, and back."""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from lesionseg.ops.boxes import split_box

LARGEST_RATIO = log(1000 / 16)  # of sides, in logarithms: keeps exp finite (Fast R-CNN's clamp)


def encode_boxes(
    boxes: Float[Tensor, "n two_d"], anchors: Float[Tensor, "n two_d"]
) -> Float[Tensor, "n two_d"]:
    """Offsets of boxes from their anchors: shifts of the centre, then logarithms of side ratios.

    shift = (centre − anchor's centre) / anchor's side, ratio = log(side / anchor's side) (Girshick
    et al. 2014, appendix C). Sides under 10⁻³ voxels count as that. No boxes give none.

    >>> anchor = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    >>> encode_boxes(torch.tensor([[0.0, 1.0, 4.0, 5.0]]), anchor).tolist()
    [[0.0, 0.25, 0.0, 0.0]]
    """
    centre, side = split_box(boxes)
    anchor_centre, anchor_side = split_box(anchors)
    ratio = side.clamp(min=1e-3) / anchor_side
    return torch.cat([(centre - anchor_centre) / anchor_side, ratio.log()], dim=-1)


def decode_boxes(
    deltas: Float[Tensor, "*n two_d"], anchors: Float[Tensor, "*m two_d"]
) -> Float[Tensor, "*n two_d"]:
    """The boxes that offsets from anchors mean; the inverse of `encode_boxes`, in fp32.

    Logarithms of ratios are clamped to log(1000/16), so that no output overflows; NaN stays NaN.
    """
    shift, ratio = deltas.float().chunk(2, dim=-1)
    anchor_centre, anchor_side = split_box(anchors)
    centre = anchor_centre + shift * anchor_side
    half = ratio.clamp(max=LARGEST_RATIO).exp() * anchor_side / 2
    return torch.cat([centre - half, centre + half], dim=-1)
