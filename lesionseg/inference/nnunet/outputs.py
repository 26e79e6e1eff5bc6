"""Candidates from nnU-Net's probabilities (.npz): candidate rule, axis order, fit to the mask.

They are the output of `nnUNetv2_predict --save_probabilities`.

`<case>.npz` contains the probabilities, and the mask `<case>.nii.gz` the geometry. Some of
nnU-Net's readers change the axis order (`NibabelIOWithReorient`). The axis order is therefore
chosen so that the labels of the probabilities agree with the mask.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Geometry, Labels, Prediction
from lesionseg.core.arrays import Integers, Numbers
from lesionseg.errors import ContentError, GeometryError, ReadError
from lesionseg.evaluation.operating_points import DEFAULT_POINT
from lesionseg.inference.candidates import SparseProbabilities
from lesionseg.inference.decision import find_by_rule
from lesionseg.inference.probabilities import SURE, compress_log_odds
from lesionseg.io.grids import GridPair
from lesionseg.io.masks import read_mask
from lesionseg.io.nnunet_probabilities import ProbabilityFile
from lesionseg.io.results.case import PredictionFiles
from lesionseg.plan.plan import CandidateRule

_log = logging.getLogger(__name__)

# nnU-Net's own mask has a label where its probability is above one half. Candidates start at a low
# probability, because networks that learn by Dice give values near 0 or 1 to most voxels. A single
# voxel is a candidate, as it is an object of nnU-Net's mask.
NNUNET_RULE = CandidateRule(extent=0.5, floor=0.01, min_voxels=1)
# voxels of a lower probability belong to no candidate; rounding must not exclude a voxel of it
_LOWEST = NNUNET_RULE.floor / max(NNUNET_RULE.ratio, 1.0) * (1 - 1e-6)
_LABELS = "dataset.json"
_REORIENTING = "WithReorient"  # the names of readers that change the axis order end with this
# log-odds are computed above this; `compress_log_odds` changes those beyond p = 0.99966
_HIGH = 0.999
_SMALLEST_FLOAT32 = 2.0**-149  # above 0; a rest of 0 is treated as this
_ROUNDING = 1e-3  # accepted distance of probabilities from the range 0 to 1
_SUM_TOLERANCE = 0.02  # accuracy of the sum of probabilities saved as 16-bit numbers
_SAME_ORDER = 0.9  # label maps in the same axis order have at least this Dice
_SOME_ORDER = 0.5  # with a lower Dice, the axis orders do not agree


@dataclass(frozen=True)
class AxisOrder:
    """The relation of an array's axes to those of the mask.

    Mask axis `a` runs along array axis `axes[a]`, backwards if `flipped[a]`.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    def shape(self, array_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of an array after its axes are put into the order of the mask."""
        return tuple(array_shape[axis] for axis in self.axes)

    def flat_index(self, index: Integers, array_shape: tuple[int, ...]) -> Integers:
        """Convert flat indices `[n]` of voxels of the array to flat indices of the mask.

        Args:
            index: Flat indices in the array.
            array_shape: Spatial shape of the array.
        """
        position = np.unravel_index(index, array_shape)  # one array of indices per axis
        reordered = [
            array_shape[axis] - 1 - position[axis] if is_flipped else position[axis]
            for axis, is_flipped in zip(self.axes, self.flipped, strict=True)
        ]
        return np.asarray(np.ravel_multi_index(reordered, self.shape(array_shape)), np.int64)


@dataclass(frozen=True, eq=False)
class _Voxels:
    """The voxels that may belong to a candidate: flat indices `[n]`, values `[K, n]` float32."""

    index: Integers
    values: NDArray[np.float32]


def read_probabilities(
    files: PredictionFiles, *, geometry: Geometry | None = None, by_image: bool = False
) -> Prediction:
    """Find the candidates in the probabilities that nnU-Net saved for one case.

    Candidates with a score of at least 0.5 are accepted. A warning is logged if there are more
    candidates than the limit, or if the mask was probably changed after the prediction. If
    nnU-Net's `dataset.json` is missing, the labels are the numbers from 1, without names.

    Args:
        files: The files of the case, with `probabilities` and the `mask` from nnU-Net.
        geometry: Grid of the scan, which the mask must have. None is the grid of the mask.
        by_image: True if two grids of equal shape and spacing are the same grid, even if their
            headers state different positions.

    Raises:
        ReadError: If a file is damaged or contains objects, or if the mask is missing.
        GeometryError: If the mask does not fit the scan or the probabilities.
        ContentError: If the values are not probabilities, or if channels and labels do not fit.
        LesionsegError: If the labels in `dataset.json` are not valid.
    """
    path = files.probabilities
    if path is None or files.mask is None:
        raise ReadError(
            f"{path}: the mask {files.case}.* with the geometry is missing in this folder. Keep "
            "the masks of nnUNetv2_predict in the folder of the probabilities."
        )
    mask_labels, grid = _read_mask_on_grid(files.mask, geometry, by_image=by_image)
    file = ProbabilityFile.open(path)
    dataset_labels = files.read_nnunet_labels()
    labels = dataset_labels
    if labels is None:  # nnU-Net numbers its labels from 1
        labels = Labels.of({k: str(k) for k in range(1, file.shape[0])})
    _require_fitting_channels(file, labels)
    are_regions = bool(labels.regions)
    voxels = _read_voxels(file, are_regions=are_regions)
    # the array's axis order is unknown: it is the one in which its labels agree with the mask
    label_of_voxel = _labels_from_probabilities(voxels, labels)
    is_lesion = label_of_voxel > 0
    shape = _fit_shape(file, grid.dims)
    maps = _LabelMaps(
        shape=shape,
        index=voxels.index[is_lesion],
        label_of_voxel=label_of_voxel[is_lesion],
        mask=mask_labels,
    )
    order = _find_axis_order(file, maps, grid)
    channels = _move_to_mask_grid(voxels, order, shape, are_regions=are_regions)
    prediction = find_by_rule(
        channels, grid, NNUNET_RULE, labels, files.case, keep_from=DEFAULT_POINT.score
    )
    if prediction.n_left_out:
        _log.warning("Case %s: %s", files.case, prediction.left_out_note)
    return with_nnunet_names(prediction, dataset_labels).accept(DEFAULT_POINT)


def with_nnunet_names(prediction: Prediction, labels: Labels | None) -> Prediction:
    """Add the names of labels from nnU-Net's `dataset.json` to a prediction.

    The prediction is returned unchanged if `labels` is None (no `dataset.json`), if the labels are
    regions, or if a candidate has a label that `dataset.json` does not contain.
    """
    if labels is None or labels.regions:
        return prediction
    names = labels.lesion_names
    are_known = all(candidate.label in names for candidate in prediction.candidates)
    return replace(prediction, labels=names) if are_known else prediction


def _read_mask_on_grid(
    path: Path, geometry: Geometry | None, *, by_image: bool
) -> tuple[NDArray[np.integer[Any]], Geometry]:
    """Read the mask that nnU-Net wrote, and check that it is on the grid of the scan.

    Args:
        path: The mask.
        geometry: Grid of the scan. None if the scan is unknown.
        by_image: True if grids of equal shape and spacing are the same grid, whatever position
            their headers state.

    Returns:
        The labels `[*spatial]`, and the grid of the scan, or the grid of the mask if the scan is
        unknown.

    Raises:
        GeometryError: If the mask has another grid than the scan.
    """
    # a PNG mask states no pixel size, so it gets that of the scan
    pixel_mm = geometry.spacing_mm[0] if geometry is not None and geometry.dims == 2 else None
    mask = read_mask(path, pixel_mm=pixel_mm)
    labels = np.asarray(mask.labels)
    grid = mask.geometry
    if geometry is None:
        return labels, grid
    GridPair(path, grid, "the scan", geometry).check(by_image=by_image)
    return labels, geometry


def _require_fitting_channels(file: ProbabilityFile, labels: Labels) -> None:
    """Check that the file has one channel per label, and a channel of background if needed.

    Labels that are not regions need a channel of background, too. Raise `ContentError` if the
    number of channels differs.
    """
    n_channels = file.shape[0]
    expected = len(labels) if labels.regions else len(labels) + 1
    if n_channels != expected:
        raise ContentError(
            f"{file.path}: {n_channels} channels, but the labels of {_LABELS} need {expected}. Put "
            f"the {_LABELS} of the model that predicted this case into the same folder."
        )


def _read_voxels(file: ProbabilityFile, *, are_regions: bool) -> _Voxels:
    """Read the probabilities of the voxels that can belong to a candidate of any label.

    To save memory, the file is read twice: first to find these voxels, then to read their
    probabilities in all channels.

    Args:
        file: The file.
        are_regions: True if the labels are regions, which overlap and have no background channel.

    Raises:
        ContentError: If a number is NaN or not within 0 to 1, or if the channels of labels that are
            not regions do not sum to 1.
    """
    n_per_row = prod(file.shape[2:])
    index = _find_voxels(file, are_regions=are_regions)
    # the ascending indices of a slab's voxels are consecutive in `index`
    values = np.empty((file.shape[0], len(index)), np.float32)
    lowest = np.float32(0)
    highest = np.float32(1)
    for slab in file.slabs():
        # fmin and fmax ignore NaN, which is reported below
        lowest = np.fmin(lowest, slab.values.min())
        highest = np.fmax(highest, slab.values.max())
        start = slab.first_row * n_per_row
        first, last = np.searchsorted(index, [start, start + slab.values.size])
        values[slab.channel, first:last] = slab.values.reshape(-1)[index[first:last] - start]
    if np.isnan(values).any():
        raise ContentError(f"{file.path}: the probabilities contain NaN. Predict this case again.")
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise ContentError(
            f"{file.path}: values from {lowest:.4g} to {highest:.4g} are not "
            "probabilities. Save them with nnUNetv2_predict --save_probabilities."
        )
    if not are_regions and np.abs(values.sum(axis=0) - 1).max(initial=0) > _SUM_TOLERANCE:
        raise ContentError(
            f"{file.path}: the probabilities of the channels do not sum to 1. If the model has "
            f"regions, put its {_LABELS} into the same folder."
        )
    return _Voxels(index, values)


def _find_voxels(file: ProbabilityFile, *, are_regions: bool) -> Integers:
    """Find the voxels that can belong to a candidate, and those that are NaN.

    If the labels are not regions, only the first channel is read. It is the background, which is 1
    minus the sum of all labels: a voxel whose background is nearly 1 cannot belong to a candidate.
    Regions have no background, so all channels are read.

    Args:
        file: The file.
        are_regions: True if the labels are regions.

    Returns:
        The flat indices of the voxels, ascending.
    """
    limit = np.float32(_LOWEST)
    n_per_row = prod(file.shape[2:])
    index_of_slabs: list[Integers] = []
    for slab in file.slabs():
        if slab.channel > 0 and not are_regions:
            break
        flat = slab.values.reshape(-1)
        # NaN is not excluded, so that it is reported
        is_excluded = flat < limit if are_regions else flat > 1 - limit
        index_of_slabs.append(np.flatnonzero(~is_excluded) + slab.first_row * n_per_row)
    return np.unique(np.concatenate(index_of_slabs))


def _labels_from_probabilities(voxels: _Voxels, labels: Labels) -> Integers:
    """Compute the label value `[n]` that nnU-Net writes into its mask for each voxel.

    The result is compared with the mask to find the axis order of the probabilities. For labels
    that are not regions, it is the value of the most probable label, or 0 for background. For
    regions, it is the value of the last region with a probability above 0.5, or 0 if there is none.
    """
    if not labels.regions:
        result: Integers = np.array([0, *labels.values], np.int64)[voxels.values.argmax(axis=0)]
        return result
    painted = np.zeros(len(voxels.index), np.int64)
    for value, p in zip(labels.values, voxels.values, strict=True):
        painted[p > 0.5] = value
    return painted


def _fit_shape(file: ProbabilityFile, dims: int) -> tuple[int, ...]:
    """Return the spatial shape of the probabilities with `dims` axes, as the mask has.

    nnU-Net's probabilities of a 2-D image have an additional axis of length 1, whose position
    depends on the file. The first axis of length 1 is dropped if there are too many axes. An axis
    of length 1 is added in front if there are too few. If no axis has length 1, the shape keeps its
    axes, and the caller finds that it does not fit the mask.
    """
    shape = file.shape[1:]  # without channels
    if len(shape) > dims and 1 in shape:
        flat = shape.index(1)
        shape = shape[:flat] + shape[flat + 1 :]
    if len(shape) < dims:
        shape = (1, *shape)
    return shape


@dataclass(frozen=True, eq=False)
class _LabelMaps:
    """The labels of the probabilities and those of the mask, which may have other axes.

    Attributes:
        shape: Spatial shape of the probabilities.
        index: Flat index of each lesion voxel of the probabilities.
        label_of_voxel: Label of each of these voxels.
        mask: Labels of the mask `[*spatial]`.
    """

    shape: tuple[int, ...]
    index: Integers
    label_of_voxel: Integers
    mask: NDArray[np.integer[Any]]

    @cached_property
    def n_voxels(self) -> tuple[int, int]:
        """The number of lesion voxels in the probabilities, and in the mask."""
        return len(self.index), int(np.count_nonzero(self.mask))

    def dice(self, order: AxisOrder) -> float:
        """Compute the Dice of the probabilities' labels and the mask for an assumed axis order.

        A voxel counts as overlap only if its two labels are equal. The probabilities or the mask
        must have a lesion voxel.
        """
        in_mask = self.mask.flat[order.flat_index(self.index, self.shape)]
        return float(2 * np.count_nonzero(in_mask == self.label_of_voxel) / sum(self.n_voxels))


def _find_axis_order(file: ProbabilityFile, maps: _LabelMaps, geometry: Geometry) -> AxisOrder:
    """Find the axis order in which the labels of the probabilities agree with the mask.

    Only orders that give the shape of the mask are compared, the most probable one first
    (`_list_axis_orders`). The result is

    1. the most probable order if the probabilities or the mask have no lesion voxel, or if its Dice
       is at least 0.9;
    2. otherwise the order with the highest Dice if it is at least 0.5;
    3. otherwise the most probable order, with a warning. The mask was then probably changed.

    Raises:
        GeometryError: If no order fits the shape.
    """
    shape = maps.mask.shape
    fitting = []
    if len(maps.shape) == len(shape):
        orders = _list_axis_orders(file, geometry)
        fitting = [order for order in orders if order.shape(maps.shape) == shape]
    if not fitting:
        raise GeometryError(
            f"{file.path}: probabilities of shape {maps.shape} do not fit the mask's shape "
            f"{shape} in any axis order. Predict this case again."
        )
    expected = fitting[0]
    if 0 in maps.n_voxels:
        return expected
    best = expected
    if maps.dice(expected) < _SAME_ORDER:
        best = max(fitting, key=maps.dice)
    dice = maps.dice(best)
    if dice >= _SOME_ORDER:
        return best
    _log.warning(
        "%s: the Dice of its labels and the mask is only %.2f. The mask may be post-processed. "
        "Candidates come from the probabilities.",
        file.path,
        dice,
    )
    return expected


def _list_axis_orders(file: ProbabilityFile, geometry: Geometry) -> list[AxisOrder]:
    """Return the axis orders in which nnU-Net's readers give arrays, the most probable first.

    They are the order of the mask and, in 3-D, the order S, A, R. The order S, A, R is first if the
    reader that the model's plans name changes the axis order.
    """
    dims = geometry.dims
    orders = [AxisOrder(tuple(range(dims)), (False,) * dims)]
    if dims == 3:
        orders.append(_find_reoriented_order(geometry))
    if file.reader_name().endswith(_REORIENTING):
        orders.reverse()
    return orders


def _find_reoriented_order(geometry: Geometry) -> AxisOrder:
    """Return the relation to the mask of an array whose axes run along +S, +A, +R.

    nnU-Net's readers "…WithReorient" give arrays this axis order.

    Args:
        geometry: Grid of the mask.
    """
    mask_axis_along = geometry.canonical_order  # of S, A, R
    axes = tuple(map(mask_axis_along.index, range(3)))  # of the array, for each mask axis
    flipped = []
    for mask_axis, array_axis in enumerate(axes):
        world_axis = 2 - array_axis  # the rows of the affine are R, A, S
        flipped.append(bool(geometry.affine[world_axis, mask_axis] < 0))
    return AxisOrder(axes, tuple(flipped))


def _move_to_mask_grid(
    voxels: _Voxels, order: AxisOrder, shape: tuple[int, ...], *, are_regions: bool
) -> list[SparseProbabilities]:
    """Convert the voxels to sparse probabilities of each label on the mask's grid.

    Probabilities below `_LOWEST` are dropped, because they cannot belong to a candidate.

    Args:
        voxels: The voxels in the axis order of the array.
        order: The relation between the axes of the array and the axes of the mask.
        shape: Spatial shape of the array.
        are_regions: True if the labels are regions, which have no channel of background.

    Returns:
        One `SparseProbabilities` per label.
    """
    index = order.flat_index(voxels.index, shape)
    # `SparseProbabilities` needs ascending indices, which another axis order changes
    by_index = np.argsort(index, kind="stable")
    first_channel = 0 if are_regions else 1  # channel 0 is otherwise the background
    channels = []
    for channel in range(first_channel, len(voxels.values)):
        p = voxels.values[channel].astype(float)
        p_of_others = 1 - p
        if not are_regions:
            p_of_others = np.delete(voxels.values, channel, axis=0).sum(axis=0, dtype=float)
        chosen = by_index[p[by_index] >= _LOWEST]
        with_ranks = rank_sure(p[chosen], p_of_others[chosen])
        channels.append(SparseProbabilities(order.shape(shape), index[chosen], with_ranks))
    return channels


def rank_sure(p: Numbers, rest: Numbers) -> NDArray[np.float32]:
    """Compress probabilities above 0.99966, so that voxels with a probability of 1 can be ranked.

    float32 has no number between 1 − 6e-8 and 1, but many numbers near 0. Therefore `rest` still
    differs between voxels whose `p` is rounded to 1, and the log-odds are computed from `rest`.

    Args:
        p: Probabilities `[n]` of a label.
        rest: Probabilities `[n]` that the voxels do not belong to the label (all other channels).

    >>> [f"{x:.6f}" for x in rank_sure(np.array([0.5, 1, 1]), np.array([0.5, 1e-10, 1e-20]))]
    ['0.500000', '0.999979', '0.999991']
    """
    ranked = p.copy()
    high = p > _HIGH
    log_odds = np.log(p[high]) - np.log(np.maximum(rest[high], _SMALLEST_FLOAT32))
    compressed = compress_log_odds(torch.from_numpy(log_odds)).sigmoid().numpy()
    ranked[high] = np.where(log_odds > SURE, compressed, p[high])
    return ranked.astype(np.float32)
