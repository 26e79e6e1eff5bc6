"""Pictures of the predictions for a few tiles during training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lesionseg.core.arrays import Flags
from lesionseg.io.files import atomic_path

# image [C, *tile], reference and predicted masks [*tile], predicted boxes [n, 2·d]
Preview = tuple[NDArray[Any], Flags, Flags, Sequence[NDArray[Any]]]


def draw_previews(path: Path, tiles: Sequence[Preview]) -> None:
    """Write a PNG with one row of two pictures for each tile.

    Both show the slice of the tile with the most lesion voxels. The left picture has the outline
    of the reference. The right picture has the outline of the predicted mask, and the predicted
    boxes that meet the slice.
    """
    figure = Figure(figsize=(6, 3 * len(tiles)), layout="constrained")
    axes = figure.subplots(len(tiles), 2, squeeze=False)
    for (left, right), (image, lesion, marked, boxes) in zip(axes, tiles, strict=True):
        cut = tuple[int, ...]()  # the index of the slice; empty for a 2-D tile
        if lesion.ndim > 2:
            cut = (int(lesion.reshape(len(lesion), -1).sum(1).argmax()),)
        for axis in (left, right):
            axis.imshow(image[0][cut], cmap="gray")
            axis.set_axis_off()
        left.contour(lesion[cut], [0.5], colors="tab:green", linewidths=1)
        if marked[cut].any():
            right.contour(marked[cut], [0.5], colors="tab:orange", linewidths=1)
        for box in boxes:
            start, stop = np.split(box, 2)
            # `cut` has no axis in 2-D, so all boxes are drawn; in 3-D, those that meet the slice
            if all(a <= c < b for a, b, c in zip(start, stop, cut, strict=False)):
                height, width = (stop - start)[-2:]
                corner = (start[-1] - 0.5, start[-2] - 0.5)
                right.add_patch(Rectangle(corner, width, height, fill=False, color="orange"))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
