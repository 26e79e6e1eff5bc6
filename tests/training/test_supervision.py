"""Targets of the coarse levels."""

from itertools import product

import pytest
import torch

from lesionseg.plan.plan import Architecture
from lesionseg.training.supervision import Targets, coarsen, level_weights, supervised_strides


def targets(labels, valid=None):
    labels = torch.as_tensor(labels, dtype=torch.uint8)[None]
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid[None]
    batch = {"labels": labels, "instances": labels.int() * 7, "valid": valid}
    return Targets.of(batch)


def test_a_lesion_of_one_voxel_survives_at_every_level():
    labels = torch.zeros(16, 16, 16)
    labels[5, 10, 3] = 1
    coarse = coarsen(targets(labels), (4, 8, 8))
    assert coarse.labels.shape == (1, 4, 2, 2)
    assert coarse.labels.nonzero().tolist() == [[0, 1, 1, 0]]
    assert coarse.instances[0, 1, 1, 0] == 7


@pytest.mark.parametrize("stride", [(2, 4), (1, 2), (1, 1)])
def test_coarse_labels_are_the_highest_of_their_block(stride):
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (8, 8), generator=noise)
    coarse = coarsen(targets(labels), stride).labels[0]
    sy, sx = stride
    for y, x in product(range(8 // sy), range(8 // sx)):
        assert coarse[y, x] == labels[y * sy : (y + 1) * sy, x * sx : (x + 1) * sx].max()


def test_an_invalid_voxel_makes_its_block_invalid_unless_a_lesion_is_known_there():
    labels, valid = torch.zeros(2, 6), torch.ones(2, 6, dtype=torch.bool)
    labels[0, 2] = 1
    valid[1, 0] = valid[1, 3] = False
    coarse = coarsen(targets(labels, valid), (2, 2))
    assert coarse.valid.tolist() == [[[False, True, True]]]
    assert coarse.labels.tolist() == [[[0, 1, 0]]]


def test_an_invalid_voxel_carries_no_label():
    labels, valid = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)
    valid[0, 0] = False
    assert targets(labels, valid).labels.tolist() == [[[0, 1], [1, 1]]]


def test_weights_halve_from_level_to_level_and_sum_to_one():
    assert level_weights(3) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert level_weights(1) == (1.0,)


def test_strides_accumulate_over_the_supervised_stages_only():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    table = Architecture("unet", (4,) * 4, strides, ((3, 3, 3),) * 4, n_supervised=3)
    assert supervised_strides(table) == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
