"""nnU-Net's logits resized to probabilities on the file's grid, in slabs, crop undone."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lesionseg.inference.nnunet.scan import Resizing, network_spacing, spline_orders
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.stitch import Store
from lesionseg.ops.interpolation import LINEAR, find_interpolation_neighbours, resize
from lesionseg.plan.nnunet_preprocessing import NnunetRecipe
from lesionseg.plan.plan import Plan

_SLAB_VOXELS = 1 << 21  # voxels of all channels in a slab


def restore_probabilities(
    logits: Store, scan: Resizing, recipe: NnunetRecipe, plan: Plan, store: Store
) -> None:
    """Convert an nnU-Net model's logits to probabilities on the file's grid, slab by slab.

    The logits are resized to the part of the scan that was cropped before prediction (`scan.crop`).
    They are then converted to probabilities of the plan's labels and transposed back. Outside the
    cropped part, probabilities stay 0.

    Args:
        logits: Logits on the network's grid. Their memory is freed.
        scan: How the scan was prepared.
        recipe: The preprocessing of the model.
        plan: Plan of the networks.
        store: Receives the probabilities `[K, *view]`, 0 before the call.
    """
    # for each axis of the view, the axis of the network
    network_axes = [recipe.transpose.index(axis) for axis in range(3)]
    for first_row, values in _resize_slabs(logits, scan, recipe):
        p = label_probabilities(values[None], plan)[0]  # with an axis of the batch
        start = scan.crop[0].start + first_row
        part = (slice(start, start + p.shape[1]), *scan.crop[1:])
        p = p.permute([0] + [1 + axis for axis in network_axes])  # axis 0 has the channels
        part_of_view = tuple(part[axis] for axis in network_axes)
        if scan.view.dims == 2:  # a 2-D image has no first axis
            p = p[:, 0]
            part_of_view = part_of_view[1:]
        store.write(part_of_view, p)
    logits.close()


def _resize_slabs(
    logits: Store, scan: Resizing, recipe: NnunetRecipe
) -> Iterator[tuple[int, Float[Tensor, "k rows y x"]]]:
    """Resize the logits to the grid of the cropped scan, slab by slab to save memory.

    For linear or nearest interpolation, a slab needs only the logits of neighbouring rows. Splines
    of higher orders need the entire volume, which is then yielded as one slab.

    Yields:
        The number of the slab's first row (plane along the first axis), and the slab.
    """
    network_grid_spacing = network_spacing(recipe, scan.spacing)
    orders, _ = spline_orders(recipe.logit_resampling, network_grid_spacing, scan.spacing)
    shape = tuple(part.stop - part.start for part in scan.crop)
    n_channels, n_rows = logits.values.shape[:2]
    rows_at_once = max(1, _SLAB_VOXELS // max(n_channels * shape[1] * shape[2], 1))
    if max(orders) > LINEAR:
        yield 0, torch.stack([resize(logits.decode(c), shape, orders) for c in logits.values])
        return
    row_neighbours = find_interpolation_neighbours(n_rows, shape[0], orders[0])
    for first in range(0, shape[0], rows_at_once):
        rows = slice(first, min(first + rows_at_once, shape[0]))
        needed = row_neighbours.reach(rows)  # the rows of the logits from which `rows` are computed
        rows_of_logits = logits.decode(logits.values[:, needed])
        logits.release()
        # first within the planes of the input rows (order 0 leaves channels and rows unchanged, as
        # their numbers do not change), then between the rows
        resized_planes = (n_channels, rows_of_logits.shape[1], *shape[1:])
        in_plane = resize(rows_of_logits, resized_planes, (0, 0, *orders[1:]))
        yield first, row_neighbours.within(rows, needed.start).apply(in_plane, axis=1)
