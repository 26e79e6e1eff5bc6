"""The lesions or the candidates of one case, as lists of voxels: all that judging needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Prediction, Reference
from lesionseg.errors import ContentError
from lesionseg.ops.components import lesion_voxels, nonzero_voxels
from lesionseg.ops.kernels import sparse_numba
from lesionseg.ops.lesion_size import equivalent_diameter_mm


@dataclass(frozen=True, eq=False)
class Instances:
    """Lesions or candidates, one row each, and the voxels of those that have a mask.

    `ids` and `labels` `[n]`; `boxes` `[n, 2·dims]` (starts, stops; half-open voxels);
    `centres_mm` `[n, dims]` (mean of the voxels, or middle of the box); `diameters_mm` `[n]`.
    `voxels` `[v, dims]` are array indices, those of row i at `first[i]:first[i + 1]`; a row
    without any has only its box. `map_` `[*spatial]` is a candidate map that the ids stand in.
    """

    geometry: Geometry
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    centres_mm: NDArray[np.float64]
    diameters_mm: NDArray[np.float64]
    voxels: NDArray[np.int64]
    first: NDArray[np.int64]
    map_: NDArray[np.integer[Any]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def n_voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each row; 0 for a bare box."""
        return np.diff(self.first)

    @cached_property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return self.geometry.voxel_size / 1000

    @property
    def masked(self) -> NDArray[np.bool_]:
        """Which rows have a mask."""
        return self.n_voxels > 0

    def voxels_of(self, row: int) -> NDArray[np.int64]:
        """Array indices `[v, dims]` of one row's voxels, in C order."""
        return self.voxels[self.first[row] : self.first[row + 1]]

    def voxels_where(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Array indices `[v, dims]` of the voxels of the chosen rows."""
        return self.voxels[np.repeat(rows, self.n_voxels)]

    def volume_ml(self, row: int) -> float | None:
        """Volume in ml; None in 2-D and for a bare box."""
        n = int(self.n_voxels[row])
        return n * self.voxel_ml if self.geometry.dims == 3 and n else None


def reference_instances(reference: Reference) -> Instances:
    """The lesions of a reference: its instances, else the components of its labels, else boxes.

    Voxels to be ignored are taken out first. A lesion that has neither voxels nor a box is left
    out. Lesion-free gives no rows. Raises `ContentError` for an instance without a label.
    """
    if reference.instances is None and reference.labels is not None:
        return _components(reference)
    map_, labels, boxes = reference.instances, reference.instance_labels, reference.boxes
    if map_ is None:
        labels = reference.box_labels
    if boxes is not None and len(boxes) != len(labels):
        boxes = None  # boxes of something else than these lesions
    ids = np.arange(1, len(labels) + 1)
    voxels = _voxels(ids, map_, reference.ignore)
    return _instances(reference.geometry, ids, labels, boxes, voxels)


def candidate_instances(prediction: Prediction, ignore: NDArray[np.bool_] | None) -> Instances:
    """The candidates of a prediction, in its order; voxels to be ignored are taken out.

    Raises `ContentError` when the instance mask holds an id that no candidate has.
    """
    candidates = prediction.candidates
    boxes = np.array([(*c.start_vox, *c.stop_vox) for c in candidates], dtype=np.float64)
    boxes = boxes.reshape(-1, 2 * prediction.geometry.dims)
    ids = np.array([c.id for c in candidates], dtype=np.int64)
    labels = [c.label for c in candidates]
    voxels = _voxels(ids, prediction.instances, ignore)
    found = _instances(prediction.geometry, ids, labels, boxes, voxels)
    return replace(found, map_=prediction.instances)


@dataclass(frozen=True, eq=False)
class _Voxels:
    """Flat indices `[v]` of all voxels, row by row and ascending within; row i's are
    `first[i]:first[i + 1]`."""

    flat: NDArray[np.int64]
    first: NDArray[np.int64]


def _components(reference: Reference) -> Instances:
    """The components of the labels."""
    labels = reference.labels
    if labels is None:
        raise ContentError("The reference has no label map.")
    if reference.ignore is not None:
        labels = np.where(reference.ignore, 0, labels)
    found = lesion_voxels(labels)
    ids = np.arange(1, len(found.labels) + 1)
    voxels = _grouped(found.index, found.owner, len(ids))
    return _instances(reference.geometry, ids, found.labels, None, voxels)


def _instances(
    geometry: Geometry,
    ids: NDArray[np.int64],
    labels: Sequence[int],
    boxes: NDArray[Any] | None,
    voxels: _Voxels,
) -> Instances:
    counts = np.diff(voxels.first)
    # a row without voxels keeps its given box; without one there is nothing to find
    kept = np.ones(len(ids), dtype=np.bool_) if boxes is not None else counts > 0
    first = np.concatenate([[0], np.cumsum(counts[kept])])
    drawn = np.zeros((len(first) - 1, 2 * geometry.dims))
    if boxes is not None:
        drawn[:] = boxes
    places = np.stack(np.unravel_index(voxels.flat, geometry.shape), axis=1)
    _draw_boxes(drawn, places, first)
    return Instances(
        geometry,
        ids[kept],
        np.asarray(labels, dtype=np.int64)[kept],
        drawn,
        _centres_mm(geometry, places, first, drawn),
        _diameters_mm(geometry, counts[kept], drawn),
        places,
        first,
    )


def _voxels(
    ids: NDArray[np.int64],
    map_: NDArray[np.integer[Any]] | None,
    ignore: NDArray[np.bool_] | None,
) -> _Voxels:
    """The voxels of an instance map, those to be ignored left out."""
    if map_ is None:
        return _Voxels(np.zeros(0, dtype=np.int64), np.zeros(len(ids) + 1, dtype=np.int64))
    flat = nonzero_voxels(map_)
    owner = _rows(ids, map_.reshape(-1)[flat])
    if ignore is not None:
        judged = ~ignore.reshape(-1)[flat]
        flat, owner = flat[judged], owner[judged]
    return _grouped(flat, owner, len(ids))


def _grouped(flat: NDArray[np.int64], owner: NDArray[np.int64], n: int) -> _Voxels:
    order, first = sparse_numba.grouped(owner, n)
    return _Voxels(flat[order], first)


def _rows(ids: NDArray[np.int64], found: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The row of each voxel's id."""
    row_of = np.full(int(max(ids.max(initial=0), found.max(initial=0))) + 1, -1, dtype=np.int64)
    row_of[ids] = np.arange(len(ids))
    rows: NDArray[np.int64] = row_of[found]
    if (rows < 0).any():
        raise ContentError(
            "The instance mask holds ids that are not listed.",
            seen=np.unique(found[rows < 0])[:10].tolist(),
            expected=f"the {len(ids)} listed ones",
            remedy="write the list and the mask together, with the same ids.",
        )
    return rows


def _draw_boxes(
    boxes: NDArray[np.float64], voxels: NDArray[np.int64], first: NDArray[np.int64]
) -> None:
    """Replace the boxes of the rows that have voxels by those around the voxels."""
    masked = np.flatnonzero(np.diff(first))
    if len(masked):
        dims = voxels.shape[1]
        boxes[masked, :dims] = np.minimum.reduceat(voxels, first[masked], axis=0)
        boxes[masked, dims:] = np.maximum.reduceat(voxels, first[masked], axis=0) + 1


def _centres_mm(
    geometry: Geometry,
    voxels: NDArray[np.int64],
    first: NDArray[np.int64],
    boxes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mean of the voxels' centres; of a bare box its middle (half-open: half a voxel lower)."""
    centres = (boxes[:, : geometry.dims] + boxes[:, geometry.dims :]) / 2 - 0.5
    masked = np.flatnonzero(np.diff(first))
    if len(masked):
        sums = np.add.reduceat(voxels, first[masked], axis=0)
        centres[masked] = sums / np.diff(first)[masked, None]
    return geometry.to_mm(centres)


def _diameters_mm(
    geometry: Geometry, counts: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Equivalent diameter; a bare box counts as the ellipsoid (ellipse) that fits into it."""
    sides = np.maximum(boxes[:, geometry.dims :] - boxes[:, : geometry.dims], 0)
    inscribed = (np.prod(sides, axis=1) * geometry.voxel_size) ** (1 / geometry.dims)
    drawn = equivalent_diameter_mm(counts * geometry.voxel_size, geometry.dims)
    return np.where(counts > 0, drawn, inscribed)
