"""Targets of the coarse levels."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from lesionseg.training.objective import (
    LevelTargets,
    coarsen,
    make_objective,
    select_middle_voxels,
)
from tests.gpu.plans import card_config, card_plan


def make_targets(labels, valid=None):
    labels = torch.as_tensor(labels, dtype=torch.uint8)[None]
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid[None]
    return LevelTargets.of({"labels": labels, "instances": labels.int() * 7, "valid": valid})


def test_lesion_of_one_voxel_is_kept_at_a_coarse_level():
    labels = torch.zeros(16, 16, 16)
    labels[5, 10, 3] = 1
    finest = make_targets(labels)
    finest = replace(finest, nearest=torch.full_like(finest.instances, 3))
    coarse = coarsen(finest, (4, 8, 8))
    assert coarse.labels.shape == (1, 4, 2, 2)
    assert coarse.labels.nonzero().tolist() == [[0, 1, 1, 0]]
    assert coarse.nearest[0, 1, 1, 0] == 7  # the block gets its lesion, not the value in its middle
    assert (coarse.nearest == 3).sum() == 15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_lesion_of_a_block_has_the_label_of_the_block(dtype):
    """Lesion 1 has label 2, lesion 5 has label 1, and they touch."""
    labels = torch.tensor([[2, 1, 0, 0], [1, 1, 0, 1]])
    instances = torch.tensor([[[1, 5, 0, 0], [5, 5, 0, 5]]], dtype=dtype)
    finest = replace(make_targets(labels), instances=instances, nearest=instances)
    coarse = coarsen(finest, (2, 2))
    assert coarse.labels.tolist() == [[[2, 1]]]
    assert coarse.instances.tolist() == coarse.nearest.tolist() == [[[1, 5]]]
    assert coarse.instances.dtype == coarse.nearest.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_lesion_of_a_block_of_regions_is_the_highest(dtype):
    instances = torch.tensor([[[1, 5, 0, 0], [5, 5, 0, 3]]], dtype=dtype)
    valid = torch.ones_like(instances, dtype=torch.bool)
    batch = {"labels": (instances > 0).byte(), "instances": instances, "valid": valid}
    finest = LevelTargets.of({**batch, "nearest": instances}, regions=((1, 2), (2,)))
    coarse = coarsen(finest, (2, 2))
    assert coarse.instances.tolist() == coarse.nearest.tolist() == [[[5, 3]]]


@pytest.mark.parametrize("stride", [(2, 4), (1, 2), (1, 1)])
def test_coarse_labels_are_the_highest_of_their_block(stride):
    labels = torch.randint(0, 4, (8, 8), generator=torch.Generator().manual_seed(0))
    coarse = coarsen(make_targets(labels), stride).labels[0]
    sy, sx = stride
    assert coarse.tolist() == labels.reshape(8 // sy, sy, 8 // sx, sx).amax((1, 3)).tolist()


def test_block_with_an_invalid_voxel_is_valid_only_if_it_has_a_lesion():
    labels = torch.zeros(2, 6)
    valid = torch.ones(2, 6, dtype=torch.bool)
    labels[0, 2] = 1
    valid[1, 0] = valid[1, 3] = False
    coarse = coarsen(make_targets(labels, valid), (2, 2))
    assert coarse.valid.tolist() == [[[False, True, True]]]
    assert coarse.labels.tolist() == [[[0, 1, 0]]]


def test_regions_overlap_at_every_level():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0] = 3
    labels[0, 1, 1] = 1
    labels[0, 3, 3] = 2
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[0, 2, 0] = valid[0, 0, 1] = False
    labels[0, 2, 0] = 3  # an invalid voxel
    batch = {"labels": labels, "instances": labels.int(), "valid": valid}
    finest = LevelTargets.of(batch, regions=((1, 2, 3), (2, 3), (3,)))
    assert finest.labels.shape == (1, 3, 4, 4)
    assert finest.labels.sum(dim=(0, 2, 3)).tolist() == [3, 2, 1]
    coarse = coarsen(finest, (2, 2))
    # a block belongs to the regions of all its voxels, so the highest label is not enough
    assert coarse.labels[0].int().tolist() == [[[1, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 0]]]
    assert coarse.valid[0].tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("regions", [(), ((1, 2), (2,))])
def test_invalid_voxels_change_no_level(regions):
    noise = torch.Generator().manual_seed(3)
    valid = torch.rand((2, 8, 8), generator=noise) > 0.3
    known = torch.randint(0, 3, (2, 8, 8), generator=noise, dtype=torch.uint8)
    levels = []
    for hidden in (0, 1, 2):
        labels = known.masked_fill(~valid, hidden)
        batch = {"labels": labels, "instances": labels.int(), "valid": valid}
        levels.append(coarsen(LevelTargets.of(batch, regions), (2, 4)))
    for name in ("labels", "instances", "valid"):
        first, *others = (getattr(level, name) for level in levels)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (4, 1), (2, 4)])
def test_middle_voxels_equal_nearest_exact_interpolation(stride):
    """A lesion next to the middle of a block is lost, like in nnU-Net."""
    labels = torch.randint(0, 3, (8, 12), generator=torch.Generator().manual_seed(4))
    shape = [n // s for n, s in zip(labels.shape, stride, strict=True)]
    nearest = interpolate(labels[None, None].float(), shape, mode="nearest-exact")[0]
    found = select_middle_voxels(make_targets(labels), stride)
    assert torch.equal(found.labels, nearest.to(torch.uint8))
    assert torch.equal(found.instances, found.labels.int() * 7)
    assert found.valid.all()


@pytest.mark.parametrize(
    ("model", "settings", "needed"),
    [
        ("unet", [], True),
        ("unet", ["loss=dice_focal"], False),
        ("unet", ["loss.lesion_weight=0"], False),
        ("retina_unet", [], False),
        ("retina_unet", ["loss.lesion_weight=0.5"], True),
        ("retinanet", ["loss.lesion_weight=0.5"], False),
    ],
)
def test_nearest_lesions_are_computed_only_for_terms_per_lesion(model, settings, needed):
    cfg = card_config(f"model={model}", *settings)
    objective = make_objective(card_plan(model), cfg.loss, cfg.detection)
    assert objective.batch_targets.nearest == needed
