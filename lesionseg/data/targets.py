"""What a network is taught about a tile: its lesions as boxes, beside the label map."""

from dataclasses import dataclass

from jaxtyping import Float, Int64, Integer
from torch import Tensor

from lesionseg.ops.fixed_rows import lesion_table


@dataclass(frozen=True, eq=False)
class LesionTargets:
    """The lesions of one tile, in order of id, on the tile's device.

    `boxes` `[n, 2·dims]` float32: starts then stops, half-open voxels of the tile. `labels` `[n]`
    int64: the tile's label there, k for the plan's k-th. `ids` `[n]` int64: the lesions' ids in the
    case.
    """

    boxes: Float[Tensor, "n two_d"]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]


def lesion_targets(
    instances: Integer[Tensor, "*tile"], labels: Integer[Tensor, "*tile"], *, min_voxels: int = 1
) -> LesionTargets:
    """Boxes of the lesions that reach into a tile `[*tile]`, after augmentation.

    A box holds the part of the lesion inside the tile; parts of fewer than `min_voxels` are left
    out. `labels` is the tile's label map; a lesion has that of its first voxel. The cost grows with
    the lesions' voxels. No lesion gives arrays of length 0.

    >>> import torch
    >>> tile = torch.tensor([[0, 7, 7], [0, 0, 7]])
    >>> lesions = lesion_targets(tile, tile.sign())
    >>> lesions.boxes.tolist(), lesions.labels.tolist(), lesions.ids.tolist()
    ([[0.0, 1.0, 2.0, 3.0]], [1], [7])
    """
    table = lesion_table(instances[None], labels[None])
    kept = table.counts[0] >= max(min_voxels, 1)
    return LesionTargets(table.boxes[0][kept], table.labels[0][kept], table.ids[0][kept])
