"""Boxes as offsets from anchors, and back."""

import pytest
import torch
from torch import Tensor

from lesionseg.ops.boxes import decode_boxes, encode_boxes


def _boxes(dims: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((50, dims), generator=generator) * 40 - 4
    return torch.cat([start, start + 0.5 + torch.rand((50, dims), generator=generator) * 9], 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_decoding_undoes_encoding(dims: int) -> None:
    boxes, anchors = _boxes(dims, 0), _boxes(dims, 1)
    back = decode_boxes(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-4)


def test_no_offset_is_the_anchor_and_log_two_doubles_a_side() -> None:
    anchor = torch.tensor([[2.0, 2.0, 6.0, 4.0]])
    assert decode_boxes(torch.zeros((1, 4)), anchor).tolist() == anchor.tolist()
    wide = decode_boxes(torch.tensor([[0.0, 0.0, 0.0, 0.6931472]]), anchor)
    torch.testing.assert_close(wide, torch.tensor([[2.0, 1.0, 6.0, 5.0]]))


def test_wild_outputs_stay_finite() -> None:
    boxes = decode_boxes(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    assert bool(torch.isfinite(boxes).all())


def test_a_box_without_volume_is_encoded_finitely() -> None:
    deltas = encode_boxes(torch.zeros((1, 4)), torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    assert bool(torch.isfinite(deltas).all())


def test_no_box_gives_none() -> None:
    assert decode_boxes(torch.zeros((0, 6)), torch.zeros((0, 6))).shape == (0, 6)
