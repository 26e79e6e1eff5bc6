"""The stages of a training whose tiles grow."""

import pytest

from lesionseg.errors import ConfigError
from lesionseg.plan.growing_tiles import growing_stages
from lesionseg.plan.plan import AnchorPlan
from tests.models.plans import plan_of


@pytest.mark.parametrize(
    ("tile", "n_tiles", "stride", "expected"),
    [
        ((64,) * 3, 2, (16,) * 3, [(16, (32,) * 3), (5, (48,) * 3), (2, (64,) * 3)]),
        ((128,) * 3, 2, (32,) * 3, [(16, (64,) * 3), (5, (96,) * 3), (2, (128,) * 3)]),
        ((56,) * 3, 3, (8,) * 3, [(16, (32,) * 3), (8, (40,) * 3), (3, (56,) * 3)]),
        ((320,) * 2, 4, (64,) * 2, [(11, (192,) * 2), (6, (256,) * 2), (4, (320,) * 2)]),
        # an axis of two strides, or of less, keeps its length
        ((8, 64, 64), 2, (4, 8, 8), [(8, (8, 32, 32)), (4, (8, 48, 48)), (2, (8, 64, 64))]),
        ((4, 64, 64), 2, (4, 8, 8), [(8, (4, 32, 32)), (4, (4, 48, 48)), (2, (4, 64, 64))]),
    ],
)
def test_tiles_grow_to_the_plan_at_equal_voxels_per_step(tile, n_tiles, stride, expected):
    dims = len(tile)
    strides = ((1,) * dims, stride)
    plan = plan_of(dims=dims, strides=strides, tile_shape=tile, batch_size=n_tiles)
    stages = growing_stages(plan)
    assert [(stage.batch_size, stage.tile_shape) for stage in stages] == expected
    assert stages[-1] == plan


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(anchors=AnchorPlan(stages=(1,), sizes=(((4.0, 4.0),),))),
        plan_of(table={"network": {"_target_": "package.Network"}}),
    ],
)
def test_detectors_and_own_networks_are_refused(plan):
    with pytest.raises(ConfigError, match="growing_tiles"):
        growing_stages(plan)
