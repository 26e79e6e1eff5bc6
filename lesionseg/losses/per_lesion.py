"""Loss with equal weight per lesion: nearest-lesion cells, reach in voxels, share of the weight.

The terms are added to Dice and focal loss of the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.core.arrays import Flags
from lesionseg.errors import GeometryError
from lesionseg.losses.base import LabelTensor, Logits, LossTerms, Valid
from lesionseg.losses.dice import (
    FOCAL,
    DiceFocalLoss,
    dice_of_sums,
    lesion_probabilities,
    require_weight,
)
from lesionseg.losses.focal import (
    Alpha,
    Normaliser,
    check_settings,
    reduce_losses,
    to_signed,
)
from lesionseg.ops.components import group_voxels

_LESION_WEIGHT = 0.5  # of the terms per lesion
CELL_REACH = 10.0  # distance at which a cell ends, in voxels of the finest axis
_N_PARTS = 64  # partial sums of a cell


class LesionBalancedLoss(DiceFocalLoss):
    """Dice and focal loss of the batch, plus terms in which all its lesions have the same weight.

    The cell of a lesion consists of the voxels of its tile that are nearer to it than to any other
    lesion (as in CC-DiceCE, arXiv 2511.17146). Within the cell, Dice is computed for this lesion
    only, and the focal losses of its voxels are averaged. In the means over cells, a lesion of 20
    voxels has the same weight as one of 20 000. A part that the tile cuts off has a cell too. Below
    8 voxels, `smooth` lowers the weight: with 1, a missed lesion of n voxels costs n/(n+1) of
    `lesion_dice`.

    A cell ends 10 voxels from its lesion (voxels of the finest axis, the same distance in mm along
    all axes). Voxels farther away belong only to the terms of the batch, so the terms per lesion do
    not depend on the size of the tile. The focal losses of the background of all cells are divided
    by the normaliser of the batch, so an equal false positive has the same gradient of
    `lesion_focal` next to any lesion. Its gradient of `lesion_dice` is larger next to a small
    lesion.

    The terms are `dice`, `focal`, `lesion_dice` and `lesion_focal`. The first two are those of
    `DiceFocalLoss` with the reduction `per_positive`. The last two are 0 for a batch without
    lesions. If `lesion_weight` is 0, they are left out.

    Args:
        alpha: As in `DiceFocalLoss`, for both focal terms.
        gamma: As in `DiceFocalLoss`, for both focal terms.
        activation: `sigmoid` or `softmax`.
        focal_weight: Factor of both focal terms. At least one of this and `dice_weight` is above 0.
        dice_weight: Factor of both Dice terms.
        lesion_weight: Further factor of `lesion_dice` and `lesion_focal`, at least 0. `auto` is
            0.5, or 0 for a network that has boxes.
        smooth: As in `dice_loss`, for both Dice terms.
        has_boxes: True if the network predicts boxes too, whose loss is added to this one.

    Raises:
        ConfigError: If a setting is outside its range.
    """

    def __init__(
        self,
        alpha: Alpha = 0.5,
        gamma: float = 1.0,
        activation: str = "sigmoid",
        focal_weight: float = 0.06,
        dice_weight: float = 1.0,
        lesion_weight: float | Literal["auto"] = "auto",
        smooth: float = 1.0,
        has_boxes: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            gamma=gamma,
            reduction="per_positive",
            activation=activation,
            focal_weight=focal_weight,
            dice_weight=dice_weight,
            smooth=smooth,
        )
        if lesion_weight == "auto":
            lesion_weight = 0.0 if has_boxes else _LESION_WEIGHT
        require_weight("lesion_weight", lesion_weight)
        self.lesion_weight = lesion_weight
        if lesion_weight != 0:
            # voxels have different weights, for which `posterior_logits` knows no correction
            self.link = None

    @property
    def needs_nearest(self) -> bool:
        """True if the loss has terms per lesion, for which the batch needs nearest lesions."""
        return self.lesion_weight != 0

    def forward(
        self,
        logits: Logits,
        labels: LabelTensor,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
        nearest: Integer[Tensor, "b *spatial"] | None = None,
    ) -> LossTerms:
        """Compute the four terms of a batch (see the class), or two if `lesion_weight` is 0.

        `lesion_dice` is the mean over all pairs of a cell and a class that its lesion has.
        `lesion_focal` is the mean over all lesions plus the term of the background of all cells.

        Args:
            logits: As in `VoxelLoss`.
            labels: As in `VoxelLoss`.
            valid: As in `VoxelLoss`.
            normaliser: Divisor of the term `focal`, and of the background of cells. None uses the
                number of lesion voxels, but at least 1.
            nearest: The id of each voxel's nearest lesion, see `nearest_lesions`; not used if
                `lesion_weight` is 0. The memory grows with the highest id of a tile, so number the
                lesions of each tile from 1. With uint8, the host does not wait for a GPU.

        Returns:
            fp32 scalars by name, with their weights.

        Raises:
            GeometryError: If `nearest` is missing or has another shape.
            ConfigError: If `normaliser` is a number that is not above 0.
        """
        if not self.needs_nearest:
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)
        spatial = (logits.shape[0], *logits.shape[2:])
        if nearest is None or nearest.shape != spatial:
            shape = None if nearest is None else tuple(nearest.shape)
            raise GeometryError(
                f"LesionBalancedLoss needs the nearest lesion of each voxel, of shape {spatial}, "
                f"not {shape}. Pass nearest=nearest_lesions(instances) with the batch's lesion ids."
            )
        alpha = self.voxel_term.alpha
        gamma = self.voxel_term.gamma
        check_settings(alpha, gamma, "per_positive", normaliser)
        p, lesion = lesion_probabilities(logits, labels, self.activation, valid)
        focal = FOCAL[self.activation](
            logits, labels, alpha=alpha, gamma=gamma, reduction="none", valid=valid
        )
        # a sigmoid has one loss per class, a softmax one loss per voxel without a class axis
        if focal.ndim == p.ndim:
            focal = focal.sum(1)
        focal = focal.unsqueeze(1)
        # sums of each cell and class
        cells = _Cells.of(nearest)
        n_voxels = cells.sum_voxels(lesion)
        p_sum = cells.sum_voxels(p)
        hit = cells.sum_voxels(p * lesion)  # the probability within lesions
        focal_sum = cells.sum_voxels(focal)
        # the Dice of the batch
        batch_sums = torch.stack([hit.sum(0), p_sum.sum(0), n_voxels.sum(0)])
        batch_hit, batch_p, batch_voxels = self.sum_processes(batch_sums)
        dice = dice_of_sums(batch_hit, batch_p, batch_voxels, self.smooth)
        # the Dice of each cell
        has_class = (n_voxels > 0) & cells.is_cell
        lesion_dice = self._mean_over_processes(
            dice_of_sums(hit, p_sum, n_voxels, self.smooth), has_class
        )
        # the focal losses of each cell, separately for its lesion and its background
        has_lesion = has_class.any(1, keepdim=True)
        size = n_voxels.sum(1, keepdim=True).clamp_min(1)
        lesion_focal_sum = cells.sum_voxels(focal.where(lesion.any(1, keepdim=True), 0))
        background = (focal_sum - lesion_focal_sum).where(has_lesion, 0).sum()
        # `lesion` contains only valid voxels, so `reduce_losses` needs no mask
        batch_focal, background = (
            reduce_losses(total, lesion, keep=None, reduction="per_positive", normaliser=normaliser)
            for total in (focal_sum.sum(), background)
        )
        lesion_focal = self._mean_over_processes(lesion_focal_sum / size, has_lesion) + background
        return {
            "dice": self.dice_weight * dice.mean(),
            "focal": self.voxel_weight * batch_focal,
            "lesion_dice": self.lesion_weight * self.dice_weight * lesion_dice,
            "lesion_focal": self.lesion_weight * self.voxel_weight * lesion_focal,
        }

    def _mean_over_processes(
        self, values: Float[Tensor, "*n"], is_counted: Bool[Tensor, "*n"]
    ) -> Float[Tensor, ""]:
        """Return the mean of the counted values over all processes, or 0 if no value is counted.

        Args:
            values: One value per cell and class, or per cell.
            is_counted: True for each value that the mean includes.
        """
        local_sums = torch.stack([values.where(is_counted, 0).sum(), is_counted.sum().float()])
        total, n = self.sum_processes(local_sums)
        result: Float[Tensor, ""] = total / n.clamp_min(1)
        return result


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells of all lesions of a batch, as rows of a table, to sum values over each cell.

    Every tile has `n_ids` rows, one per lesion id. Row 0 of a tile collects the voxels that belong
    to no cell.

    Each row has 64 partial sums, which are added at the end. A voxel is added to the partial sum of
    its index along the last axis, modulo 64. With a single sum per row, a large cell would lose
    small values to rounding. A GPU would also be slow, because additions to one address run one
    after the other.

    Attributes:
        part_of_voxel: The number of the partial sum to which each voxel of the batch is added, from
            0 to 64 · `n_rows` − 1.
        n_rows: The number of rows.
        is_cell: False for row 0 of each tile `[rows, 1]`.
    """

    part_of_voxel: Integer[Tensor, " voxels"]
    n_rows: int
    is_cell: Bool[Tensor, "rows 1"]

    @classmethod
    def of(cls, nearest: Integer[Tensor, "b *spatial"]) -> "_Cells":
        """Make the rows of the table from the id of the nearest lesion of each voxel."""
        n_tiles = len(nearest)
        n_ids = _count_ids(nearest)
        n_spatial = nearest.ndim - 1
        tile = torch.arange(n_tiles, device=nearest.device).reshape((-1,) + (1,) * n_spatial)
        # each tile has one row per id, so the row of a voxel is id + n_ids · tile
        row = torch.arange(n_tiles * n_ids, device=nearest.device)
        # voxels that follow each other along the last axis add to different partial sums
        part = torch.arange(nearest.shape[-1], device=nearest.device) % _N_PARTS
        return cls(
            part_of_voxel=((nearest.long() + n_ids * tile) * _N_PARTS + part).flatten(),
            n_rows=n_tiles * n_ids,
            is_cell=(row % n_ids > 0).unsqueeze(1),  # id 0: voxels without a nearest lesion
        )

    def sum_voxels(self, values: Shaped[Tensor, "b k *spatial"]) -> Float[Tensor, "rows k"]:
        """Sum the values over the voxels of each cell, class by class."""
        by_class = values.float().transpose(0, 1).flatten(1)  # [k, voxels of the batch]
        zeros = by_class.new_zeros(len(by_class), self.n_rows * _N_PARTS)
        parts = zeros.scatter_add(1, self.part_of_voxel.expand_as(by_class), by_class)
        # add the partial sums of each row: `[k, rows]`, transposed
        return parts.reshape(len(by_class), self.n_rows, _N_PARTS).sum(2).T


def _count_ids(nearest: Integer[Tensor, "b *spatial"]) -> int:
    """Return the number of rows that each tile needs: the highest lesion id plus 1.

    On a GPU and while torch.compile traces, uint8 ids give 256 instead. The host would otherwise
    have to wait for the ids, and a compiled graph would end here.
    """
    can_read_ids = nearest.device.type == "cpu" and not torch.compiler.is_compiling()
    if nearest.dtype == torch.uint8 and not can_read_ids:
        return 256  # uint8 has the ids 0 to 255
    return int(to_signed(nearest).max()) + 1 if nearest.numel() else 1


def nearest_lesions(
    instances: Integer[Tensor, "b *spatial"], reach: Sequence[float] | None = None
) -> Integer[Tensor, "b *spatial"]:
    """Return the id of the nearest lesion of each voxel within its tile.

    These ids divide a tile into the cells of `LesionBalancedLoss`. Only the surroundings of each
    lesion are compared, so the time depends on the lesions and not on the size of the tile.

    Args:
        instances: Lesion ids, 0 for background.
        reach: The distance along each axis from which a voxel has no nearest lesion, in voxels.
            Distances are measured in this unit. None: 10 voxels along all axes.

    Returns:
        Ids of the same shape, dtype and device. At equal distances it is the lower id. The id is 0
        throughout a tile without lesions, and for voxels that are not within reach of a lesion.

    >>> nearest_lesions(torch.tensor([[3, 0, 0, 0, 7], [0, 0, 0, 0, 0]]), reach=[1.5]).tolist()
    [[3, 3, 0, 7, 7], [0, 0, 0, 0, 0]]
    """
    tiles = instances.cpu().numpy()
    nearest = np.zeros(tiles.shape, tiles.dtype)
    for out, ids in zip(nearest, tiles, strict=True):
        _write_cell_ids(ids, reach or (CELL_REACH,) * ids.ndim, out)
    return torch.from_numpy(nearest).to(instances.device)


def _write_cell_ids(ids: NDArray[Any], reach: Sequence[float], out: NDArray[Any]) -> None:
    """Write the id of each voxel's nearest lesion of one tile to `out`.

    At equal distances the lower id is written.

    Args:
        ids: Lesion ids of the tile, 0 for background.
        reach: As in `nearest_lesions`.
        out: Receives the ids. It must be 0 everywhere.
    """
    # 1 − d² of the nearest lesion so far, see `_compute_closeness`; 0 is out of reach
    closest = np.zeros(ids.shape, np.float32)
    lesion_ids, voxels, first_rows = group_voxels(ids)
    if not len(lesion_ids):
        return
    # Bounding box of each lesion. `voxels` contains indices, lesion by lesion, and `first_rows` the
    # row of each lesion's first voxel. `reduceat` reduces the rows of each lesion.
    low = np.minimum.reduceat(voxels, first_rows)
    high = np.maximum.reduceat(voxels, first_rows) + 1
    margin = [math.ceil(n) - 1 for n in reach]  # voxels at the distance itself are outside
    squared_distances = [_squared_distances(n, unit) for n, unit in zip(margin, reach, strict=True)]
    # the bounding box enlarged by the reach: voxels outside it cannot belong to the cell
    start = np.maximum(low - margin, 0)
    stop = np.minimum(high + margin, ids.shape)
    for row, lesion_id in enumerate(lesion_ids):
        box = tuple(map(slice, low[row], high[row]))
        around = tuple(map(slice, start[row], stop[row]))
        offset = low[row] - start[row]
        closeness = _compute_closeness(
            is_lesion=ids[box] == lesion_id,
            offset=offset,
            shape=stop[row] - start[row],
            squared_distances=squared_distances,
        )
        is_closer = closeness > closest[around]  # ids ascend, so an equal distance changes nothing
        np.copyto(closest[around], closeness, where=is_closer)
        np.copyto(out[around], lesion_id, where=is_closer)


def _squared_distances(margin: int, unit: float) -> NDArray[np.float32]:
    """Return the squared distances along one axis, in units of the reach.

    Args:
        margin: The largest difference of indices.
        unit: The reach along this axis, in voxels.

    Returns:
        (difference / unit)² for the differences −`margin` to `margin`.
    """
    return ((np.arange(-margin, margin + 1) / unit) ** 2).astype(np.float32)


def _compute_closeness(
    is_lesion: Flags,
    offset: Sequence[int],
    shape: Sequence[int],
    squared_distances: Sequence[NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return 1 − d² of each voxel; d is its distance from the lesion in units of the reach.

    The closeness is the maximum over lesion voxels of 1 − Σ (difference / reach)², which can be
    computed one axis after the other (Felzenszwalb and Huttenlocher 2012). A result of 0 or less
    means that the voxel is out of reach; its exact value is then not computed.

    Args:
        is_lesion: The lesion within its bounding box.
        offset: Number of voxels of the result in front of the bounding box, along each axis.
        shape: Shape of the result, the bounding box with its surroundings.
        squared_distances: The squared distances along each axis (`_squared_distances`).
    """
    # before the first axis: d is 0 in the lesion, and infinite outside it
    values = np.where(is_lesion, np.float32(1), np.float32(-np.inf))
    for axis in reversed(range(is_lesion.ndim)):  # the first axis last: the result is in C order
        n = shape[axis]
        rows = np.ascontiguousarray(values.swapaxes(0, axis))
        # Spread each row to its neighbours within reach, lowered by the squared distance. `wide` is
        # the result for this axis.
        wide = np.full((n, *rows.shape[1:]), -np.inf, np.float32)
        margin = len(squared_distances[axis]) // 2  # index of the distance 0
        parabola = squared_distances[axis].reshape(-1, *(1,) * (rows.ndim - 1))
        spread = np.empty((2 * margin + 1, *rows.shape[1:]), np.float32)
        for index, row in enumerate(rows, start=offset[axis]):
            start = max(index - margin, 0)
            stop = min(index + margin + 1, n)
            within = parabola[start - index + margin : stop - index + margin]
            np.subtract(row, within, out=spread[: stop - start])
            np.maximum(wide[start:stop], spread[: stop - start], out=wide[start:stop])
        values = wide.swapaxes(0, axis)
    return values
