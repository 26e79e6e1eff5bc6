"""What a network is taught about a tile: its lesions as boxes, beside the label map."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.components import mask_boxes


@dataclass(frozen=True, eq=False)
class LesionTargets:
    """The lesions of one tile, in order of id.

    `boxes` `[n, 2·dims]` float32: starts then stops, half-open voxels of the tile. `labels` `[n]`
    int64: k for the plan's k-th label. `ids` `[n]` int64: the lesions' ids in the case.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


def lesion_targets(
    instances: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], *, min_voxels: int = 1
) -> LesionTargets:
    """Boxes of the lesions that reach into a tile `[*tile]`, after augmentation.

    A box holds the part of the lesion inside the tile; parts of fewer than `min_voxels` are left
    out. `labels` is the tile's label map. No lesion gives arrays of length 0.

    >>> tile = np.array([[0, 7, 7], [0, 0, 7]])
    >>> found = lesion_targets(tile, np.sign(tile))
    >>> found.boxes.tolist(), found.labels.tolist(), found.ids.tolist()
    ([[0.0, 1.0, 2.0, 3.0]], [1], [7])
    """
    where = np.flatnonzero(instances)
    ids, first, inverse, voxels = np.unique(
        instances.reshape(-1)[where], return_index=True, return_inverse=True, return_counts=True
    )
    numbered = np.zeros(instances.size, dtype=np.int32)
    numbered[where] = inverse + 1
    boxes = mask_boxes(numbered.reshape(instances.shape), len(ids))
    kept = voxels >= min_voxels
    return LesionTargets(
        boxes=boxes[kept],
        labels=labels.reshape(-1)[where[first]][kept].astype(np.int64),
        ids=ids[kept].astype(np.int64),
    )
