"""Lists whose length depends on values, such as the lesions of a tile, without asking a GPU for it.

On a CPU they are as long as need be. Elsewhere they have a fixed number of rows, of which the last
ones are empty, so that the host never waits for the device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

MOST_LESIONS = 128  # of a tile
MOST_IDS = 2**16 - 1  # what a lesion's id may be; higher ones pass for this one
_SPARE = 1024  # rows that background is spread over: atomic additions to a single one would queue


def readable(values: Tensor) -> bool:
    """Whether the host can look at values without waiting for a device."""
    return values.is_cpu


def at_most(count: Tensor, limit: int) -> int:
    """The 0-d count where it can be read, `limit` elsewhere."""
    return int(count) if readable(count) else limit


def first_places(
    mask: Bool[Tensor, " n"], rows: int
) -> tuple[Int64[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Where the mask is True for the first times, and which of the places are real.

    `rows` of them, empty ones being 0 and not real; on a CPU no more than there are.
    """
    if readable(mask):
        places = mask.nonzero()[:rows, 0]
        return places, torch.ones_like(places, dtype=torch.bool)
    number = mask.cumsum(0)
    slot = torch.where(mask & (number <= rows), number - 1, rows)
    nth_place = torch.zeros(rows + 1, dtype=torch.int64, device=mask.device)
    nth_place = nth_place.scatter_(0, slot, torch.arange(len(mask), device=mask.device))[:rows]
    real = torch.arange(rows, device=mask.device) < number[-1:]
    return torch.where(real, nth_place, 0), real


class TileLesions(NamedTuple):
    """The lesions of B tiles, m rows a tile in order of id; at least one row, the rest is empty.

    `ids` `[B, m]` int64, 0 in an empty row; `labels` `[B, m]` int64: the label of a lesion's first
    voxel; `counts` `[B, m]` int64: its voxels; `boxes` `[B, m, 2·dims]` float32: starts then stops,
    half-open, 0 in an empty row. `voxels` `[p]` int64: places in the flat tiles, all lesions' among
    them; `rows` `[p]` int64: the flat row of each, B · m and more for what has none.
    """

    ids: Int64[Tensor, "b m"]
    labels: Int64[Tensor, "b m"]
    counts: Int64[Tensor, "b m"]
    boxes: Float[Tensor, "b m two_d"]
    voxels: Int64[Tensor, " p"]
    rows: Int64[Tensor, " p"]

    def listed(self) -> Bool[Tensor, " p"]:
        """Which of the voxels belong to a lesion that has a row."""
        return self.rows < self.ids.numel()

    def at_voxels(self, values: Tensor) -> Tensor:
        """For each of the voxels `[p]` its lesion's value of `[B, m]`, 0 for the others."""
        flat = values.flatten()
        return torch.where(self.listed(), flat[self.rows.clamp(max=len(flat) - 1)], 0)


def lesion_table(
    instances: Integer[Tensor, "b *tile"], labels: Integer[Tensor, "b *tile"]
) -> TileLesions:
    """List the lesions of tiles, given their ids, above 0, and their labels.

    Off a CPU at most `MOST_LESIONS` a tile, those of the lowest ids.
    """
    n_tiles, shape = len(instances), instances.shape[1:]
    size = shape.numel()
    flat = instances.flatten()
    voxels = flat.nonzero()[:, 0] if readable(flat) else torch.arange(len(flat), device=flat.device)
    tile, ids = voxels // size, flat[voxels].long().clamp(0, MOST_IDS)
    width = at_most(ids.max(), MOST_IDS) + 1 if len(ids) else 1
    key = tile * width + ids
    here = torch.zeros(n_tiles * width, dtype=torch.int64, device=flat.device)
    here = here.scatter_(0, key, 1).view(n_tiles, width)
    here = torch.cat([torch.zeros_like(here[:, :1]), here[:, 1:]], dim=1)
    number = here.cumsum(1) * here  # 1, 2 … by id
    m = max(at_most(number.max(), MOST_LESIONS), 1)
    number = torch.where(number <= m, number, 0)

    row = number.flatten()[key]
    spare = n_tiles * m + torch.arange(len(voxels), device=flat.device) % _SPARE
    rows = torch.where(row > 0, tile * m + row - 1, spare)
    n_rows = n_tiles * m + _SPARE
    known = torch.zeros((n_tiles, m + 1), dtype=torch.int64, device=flat.device)
    known = known.scatter_(1, number, torch.arange(width, device=flat.device).expand_as(number))
    counts = torch.zeros(n_rows, dtype=torch.int64, device=flat.device)
    counts = counts.scatter_add_(0, rows, torch.ones_like(rows))[: n_tiles * m]
    low, high = [], []
    found = _extreme(rows, voxels, n_rows, "amin")[: n_tiles * m]
    pitch = size
    for n in shape:
        pitch //= n
        place = voxels // pitch % n
        low.append(_extreme(rows, place, n_rows, "amin"))
        high.append(_extreme(rows, place + 1, n_rows, "amax"))
    boxes = torch.stack([*low, *high], dim=1)[: n_tiles * m].float()
    full = counts > 0
    return TileLesions(
        torch.where(full.view(n_tiles, m), known[:, 1:], 0),
        torch.where(full, labels.flatten()[found].long(), 0).view(n_tiles, m),
        counts.view(n_tiles, m),
        boxes.view(n_tiles, m, -1),
        voxels,
        rows,
    )


def _extreme(rows: Tensor, values: Tensor, n_rows: int, which: str) -> Tensor:
    """The lowest or highest value of each row, 0 in an empty one."""
    empty = torch.zeros(n_rows, dtype=values.dtype, device=values.device)
    return empty.scatter_reduce_(0, rows, values, which, include_self=False)
