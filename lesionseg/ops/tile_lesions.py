"""The lesions of tiles as a table: ids, labels, sizes and boxes, for losses and targets."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor


class TileLesions(NamedTuple):
    """The lesions of B tiles, m rows a tile in order of id; at least one row, the rest is empty.

    `ids` `[B, m]` int64, 0 in an empty row; `labels` `[B, m]` int64: the label of a lesion's first
    voxel; `counts` `[B, m]` int64: its voxels; `boxes` `[B, m, 2·dims]` float32: starts then stops,
    half-open, 0 in an empty row.
    """

    ids: Int64[Tensor, "b m"]
    labels: Int64[Tensor, "b m"]
    counts: Int64[Tensor, "b m"]
    boxes: Float[Tensor, "b m two_d"]


def lesion_table(
    instances: Integer[Tensor, "b *tile"], labels: Integer[Tensor, "b *tile"]
) -> TileLesions:
    """List the lesions of tiles, given their ids, above 0, and their labels."""
    n_tiles, shape = len(instances), instances.shape[1:]
    flat = instances.flatten()
    voxels = flat.nonzero()[:, 0]
    tile, ids = voxels // shape.numel(), flat[voxels].long()
    width = int(ids.max()) + 1 if len(ids) else 1
    keys, owner = torch.unique(tile * width + ids, return_inverse=True)  # by tile, then id
    per_tile = torch.bincount(keys // width, minlength=n_tiles)
    m = max(int(per_tile.max()) if n_tiles else 0, 1)
    row = keys // width * m + torch.arange(len(keys), device=flat.device)
    row -= (per_tile.cumsum(0) - per_tile)[keys // width]
    rows = row[owner]

    def table(values: Tensor, how: str) -> Tensor:
        """The lowest, highest or sum of each row, 0 in an empty one."""
        empty = torch.zeros(n_tiles * m, dtype=torch.int64, device=flat.device)
        return empty.scatter_reduce_(0, rows, values, how, include_self=False)

    low, high = [], []
    pitch = shape.numel()
    for n in shape:
        pitch //= n
        place = voxels // pitch % n
        low.append(table(place, "amin"))
        high.append(table(place + 1, "amax"))
    counts = table(torch.ones_like(rows), "sum")
    first = table(voxels, "amin")
    return TileLesions(
        table(ids, "amax").view(n_tiles, m),
        torch.where(counts > 0, labels.flatten()[first].long(), 0).view(n_tiles, m),
        counts.view(n_tiles, m),
        torch.stack([*low, *high], dim=1).float().view(n_tiles, m, -1),
    )
