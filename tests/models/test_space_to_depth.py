"""A space-to-depth stem: voxels as channels and back, and every network with one."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, pixel_unshuffle

from lesionseg.models import build_network
from lesionseg.models.blocks import depth_to_space, space_to_depth
from lesionseg.models.transfer import take_weights
from lesionseg.ops.anchors import grid_anchors
from lesionseg.plan.anchor_rules import fit_anchors
from lesionseg.plan.plan import Architecture, Normalisation, Plan


def plan_of(
    dims: int, name: str = "unet", *, n_labels: int = 2, pi: float = 0.02, block: int = 2
) -> Plan:
    architecture = Architecture(
        name,
        (8, 12, 12),
        ((block,) * dims, (2,) * dims, (2,) * dims),
        ((3,) * dims,) * 3,
        n_supervised=2,
        encoder_blocks=(1, 1, 2) if name == "residual_unet" else (),
    )
    detects = name.startswith("retina")
    return Plan(
        dims=dims,
        modality="mri",
        channel_names=("a", "b"),
        label_values=tuple(range(1, n_labels + 1)),
        label_names=tuple("xyz"[:n_labels]),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),) * 2,
        tile_shape=(16,) * dims,
        batch_size=2,
        architecture=architecture,
        lesion_fraction=pi,
        anchors=fit_anchors([(3.0,) * dims, (9.0,) * dims], architecture).value
        if detects
        else None,
    )


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_a_block_becomes_channels_in_c_order() -> None:
    x = torch.arange(16).reshape(1, 1, 4, 4)
    expected = [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]
    assert space_to_depth(x, (2, 2))[0].tolist() == expected
    assert space_to_depth(x, (1, 2))[0, :, 0].tolist() == [[0, 2], [1, 3]]
    assert depth_to_space(torch.tensor(expected)[None], (2, 2)).tolist() == x.tolist()


def test_in_two_dimensions_it_is_torchs_pixel_unshuffle(noise) -> None:
    x = torch.randn(2, 3, 6, 8, generator=noise)
    assert torch.equal(space_to_depth(x, (2, 2)), pixel_unshuffle(x, 2))


@pytest.mark.parametrize(
    "block", [(2,), (2, 2), (1, 2), (1, 1), (2, 2, 2), (1, 2, 2), (3, 1, 2)], ids=str
)
def test_depth_to_space_undoes_space_to_depth(block, noise) -> None:
    x = torch.randn(2, 3, *(6,) * len(block), generator=noise)
    small = space_to_depth(x, block)
    assert small.shape == (2, 3 * np.prod(block), *(6 // side for side in block))
    assert torch.equal(depth_to_space(small, block), x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["unet", "residual_unet"])
def test_levels_are_at_full_resolution_and_halves_of_it(dims, name, noise) -> None:
    network = build_network(plan_of(dims, name))
    image = torch.randn(2, 2, *(16,) * dims, generator=noise)
    fine, coarse = network(image)
    assert fine.shape == (2, 2, *(16,) * dims)
    assert coarse.shape == (2, 2, *(8,) * dims)
    (only,) = network.eval()(image)
    assert torch.equal(only, fine)
    assert network.encoder(image)[0].shape == (2, 8, *(8,) * dims)
    assert network.encoder.total_stride == (8,) * dims


@pytest.mark.parametrize("name", ["unet", "residual_unet"])
def test_every_voxel_of_a_block_first_predicts_the_prior(name, noise) -> None:
    network = build_network(plan_of(2, name, n_labels=2, pi=0.02))
    for head in network.heads:
        torch.testing.assert_close(head.conv.bias.sigmoid(), torch.full((8,), 0.01))
    for logits in network(torch.randn(2, 2, 16, 16, generator=noise)):
        assert logits.sigmoid().mean((0, 2, 3)).tolist() == pytest.approx([0.01] * 2, rel=0.1)


def test_a_softmax_keeps_background_and_labels_apart(noise) -> None:
    network = build_network(plan_of(2, pi=0.04).with_(activation="softmax"))
    shares = network(torch.randn(1, 2, 16, 16, generator=noise))[0].softmax(1).mean((0, 2, 3))
    assert shares.tolist() == pytest.approx([0.96, 0.02, 0.02], rel=0.1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["retinanet", "retina_unet"])
def test_a_detector_has_an_anchor_at_every_cell_and_full_resolution_voxels(dims, name) -> None:
    plan = plan_of(dims, name)
    assert plan.anchors is not None
    assert plan.anchors.stages[0] == 0  # every second voxel, as with the full stem
    output = build_network(plan)(torch.zeros(2, 2, *(16,) * dims))
    levels = plan.anchors.levels(plan.architecture.strides, plan.tile_shape)
    n = len(grid_anchors(levels))
    assert output.class_logits.shape == (2, n, 2)
    if name == "retina_unet":
        sides = [tuple(x.shape[2:]) for x in output.segmentation]
        assert sides == [(16,) * dims, (8,) * dims]


def test_tiles_do_not_see_each_other_and_a_shift_by_the_block_is_a_shift_by_one(noise) -> None:
    network = build_network(plan_of(2)).eval()
    x = torch.randn(2, 2, 16, 16, generator=noise)
    torch.testing.assert_close(network(x)[0][1:], network(x[1:])[0])
    assert torch.equal(space_to_depth(x.roll(2, -1), (2, 2)), space_to_depth(x, (2, 2)).roll(1, -1))


def test_a_full_and_a_space_to_depth_plan_exchange_only_what_fits(noise) -> None:
    full, half = plan_of(2, block=1), plan_of(2)
    done = take_weights(build_network(half), half, build_network(full), full)
    assert "encoder.stages.0.0.conv.weight" in done.fresh
    assert {n for n in done.fresh if "heads" in n} == {
        f"heads.{i}.conv.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_a_plan_of_a_full_stem_reads_as_before() -> None:
    for block, stem in ((1, "full"), (2, "space_to_depth")):
        plan = plan_of(3, block=block)
        assert plan.architecture.stem == stem
        assert Plan.from_json(plan.to_json()) == plan
        assert '"stem"' not in plan.to_json()  # the first stride says it


def test_it_fits_a_lesion_of_one_voxel_by_heart(noise) -> None:
    network = build_network(plan_of(2, n_labels=1, pi=0.05)).train()
    image = torch.randn(1, 2, 16, 16, generator=noise)
    target = torch.zeros(1, 1, 16, 16)
    target[..., 11, 7] = target[..., 5:8, 2:5] = 1
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(network(image)[0], target)
        loss.backward()
        optimiser.step()
    assert torch.equal(network.eval()(image)[0] > 0, target > 0.5)
