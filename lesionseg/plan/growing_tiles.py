"""Tiles that grow during a training, at a constant number of voxels per step."""

from math import floor, prod

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Plan, total_stride

SHARES = (0.5, 0.75, 1.0)  # sides of the tiles of each stage, as shares of the planned sides


def growing_stages(plan: Plan) -> tuple[Plan, ...]:
    """Return the plans of the stages of a training: many small tiles first, the planned ones last.

    Each side is the share of the planned side that `SHARES` gives, rounded to a multiple of the
    network's total stride. It has at least two voxels at the coarsest stage of the network, but is
    never longer than the planned side. A step of each stage has about as many voxels as a step of
    the plan.

    Source: Fischer et al. 2024, arXiv 2407.07853, who begin with the smallest tile of the network
    and keep the number of tiles, or raise it while the tiles are small.

    Raises:
        ConfigError: for a detector, whose anchors are computed for one tile shape, and for a user's
            own network, whose total stride is not known.
    """
    if plan.has_boxes or plan.architecture.network:
        raise ConfigError(
            "model.growing_tiles: only model=unet and model=residual_unet accept tiles of several "
            "sizes. Leave out model.growing_tiles."
        )
    stages = []
    for share in SHARES:
        tile = []
        for side, stride in zip(plan.tile_shape, total_stride(plan.architecture), strict=True):
            nearest = floor(share * side / stride + 0.5) * stride  # ties: the longer side
            tile.append(min(max(nearest, 2 * stride), side))
        n_tiles = max(round(plan.batch_size * prod(plan.tile_shape) / prod(tile)), 1)
        stages.append(plan.with_(tile_shape=tuple(tile), batch_size=n_tiles))
    return tuple(stages)
