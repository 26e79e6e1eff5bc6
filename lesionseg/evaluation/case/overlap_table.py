"""How much candidates and lesions overlap: one sparse table per case, and Dice from it.

The default preset asks what several candidates cover of a lesion between them. A candidate is
supported when enough of it lies in lesions; a lesion is found when the supported candidates cover
enough of it. Voxels of instances never overlap and add up; boxes may overlap, so the volume of
their union counts.
"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Lesions
from lesionseg.evaluation.results import VoxelCounts
from lesionseg.ops.boxes import box_iou


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The pairs of a candidate and a lesion that overlap; all arrays `[pairs]`.

    `candidate` and `lesion` are rows. `voxels` counts the shared voxels, 0 where one of the two
    has no mask; `iou` is mask–mask where both have masks, else box–box. Pairs of different labels
    are listed too.
    """

    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    voxels: NDArray[np.int64]
    iou: NDArray[np.float64]

    def among(self, candidates: NDArray[np.bool_]) -> "Overlaps":
        """The pairs of the chosen candidates."""
        return self.where(candidates[self.candidate])

    def where(self, kept: NDArray[np.bool_]) -> "Overlaps":
        """The chosen pairs `[pairs]`."""
        return Overlaps(self.candidate[kept], self.lesion[kept], self.voxels[kept], self.iou[kept])


def overlap_table(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """All overlapping pairs of a case, sorted by candidate, then lesion; none gives no rows."""
    by_mask = _mask_pairs(candidates, lesions)
    bare = ~np.outer(candidates.masked, lesions.masked)
    if not bare.any():
        return by_mask
    by_box = _box_pairs(candidates, lesions, bare)
    order = np.lexsort(
        (
            np.concatenate([by_mask.lesion, by_box.lesion]),
            np.concatenate([by_mask.candidate, by_box.candidate]),
        )
    )
    columns = ("candidate", "lesion", "voxels", "iou")
    return Overlaps(
        *(np.concatenate([getattr(by_mask, c), getattr(by_box, c)])[order] for c in columns)
    )


def voxel_counts(
    candidates: Lesions,
    lesions: Lesions,
    overlaps: Overlaps,
    accepted: NDArray[np.bool_],
    label: int | None = None,
) -> VoxelCounts:
    """Voxels of the lesions, of the accepted candidates and of both; all labels taken as one.

    With `label`, only what has that label.
    """
    of_candidate = accepted if label is None else accepted & (candidates.labels == label)
    of_lesion = np.ones(len(lesions), dtype=np.bool_)
    if label is not None:
        of_lesion = lesions.labels == label
    both = of_candidate[overlaps.candidate] & of_lesion[overlaps.lesion]
    return VoxelCounts(
        int(lesions.n_voxels[of_lesion].sum()),
        int(candidates.n_voxels[of_candidate].sum()),
        int(overlaps.voxels[both].sum()),
    )


def box_ious(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU `[n, m]` of boxes `[n, 2·dims]` and `[m, 2·dims]`."""
    found: NDArray[np.float64] = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return found


def _mask_pairs(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """Count the pairs by looking up the candidate at every lesion voxel."""
    n = len(lesions)
    found = np.zeros(0, dtype=np.int64)
    if candidates.instances is not None and len(candidates) and len(lesions.voxels):
        row_of = np.full(int(candidates.ids.max()) + 1, -1, dtype=np.int64)
        row_of[candidates.ids] = np.arange(len(candidates))
        row = row_of[candidates.instances[tuple(lesions.voxels.T)]]
        owner = np.repeat(np.arange(n), lesions.n_voxels)
        found = (row * n + owner)[row >= 0]
    pairs, shared = np.unique(found, return_counts=True)
    candidate, lesion = np.divmod(pairs, max(n, 1))
    union = candidates.n_voxels[candidate] + lesions.n_voxels[lesion] - shared
    return Overlaps(candidate, lesion, shared.astype(np.int64), shared / np.maximum(union, 1))


def _box_pairs(candidates: Lesions, lesions: Lesions, bare: NDArray[np.bool_]) -> Overlaps:
    iou = box_ious(candidates.boxes, lesions.boxes)
    candidate, lesion = np.nonzero(bare & (iou > 0))
    return Overlaps(candidate, lesion, np.zeros_like(candidate), iou[candidate, lesion])


_ROUNDING = 1e-9  # shares are sums of fractions
Boxes = NDArray[np.float64] | None


def covering_pairs(
    candidates: Lesions, lesions: Lesions, overlaps: Overlaps, enough: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64], Boxes]:
    """Which pairs `[pairs]` have a supported candidate, what of the lesion each covers, and where.

    The places are the boxes `[pairs, 2·dims]` that both sides share, 0 for pairs of two masks;
    None without any bare box. `enough` is the least share of a supported candidate's volume.
    """
    candidate, lesion = overlaps.candidate, overlaps.lesion
    shared, of_candidate, of_lesion = (
        overlaps.voxels.astype(np.float64),
        candidates.n_voxels[candidate].astype(np.float64),
        lesions.n_voxels[lesion].astype(np.float64),
    )
    bare = shared == 0
    common = None
    if bare.any():
        common = _common(candidates.boxes[candidate], lesions.boxes[lesion]) * bare[:, None]
        shared[bare] = _volumes(common[bare])
        of_candidate[bare] = _volumes(candidates.boxes[candidate[bare]])
        of_lesion[bare] = _volumes(lesions.boxes[lesion[bare]])
    supported = covered(candidate, len(candidates), shared / of_candidate, common, enough)
    return supported[candidate], shared / of_lesion, common


def covered(
    row: NDArray[np.int64], n_rows: int, share: NDArray[np.float64], common: Boxes, enough: float
) -> NDArray[np.bool_]:
    """Of which rows `[n_rows]` their pairs `[pairs]` cover at least `enough` between them."""
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        doubtful = np.flatnonzero(
            (total >= enough - _ROUNDING) & (np.bincount(row, minlength=n_rows) > 1)
        )
        for one in doubtful:
            total[one] = _together(share[row == one], common[row == one])
    reached: NDArray[np.bool_] = total >= enough - _ROUNDING
    return reached


def score_of_cover(
    scores: NDArray[np.float64], share: NDArray[np.float64], common: Boxes, enough: float
) -> float | None:
    """The highest score from which pairs `[pairs]` cover `enough` of one lesion; None: never."""
    if share.sum() < enough - _ROUNDING:
        return None
    levels = np.unique(scores)[::-1]

    def suffices(place: int) -> bool:
        accepted = scores >= levels[place]
        part = None if common is None else common[accepted]
        return _together(share[accepted], part) >= enough - _ROUNDING

    place = bisect_left(range(len(levels)), True, key=suffices)
    return float(levels[place]) if place < len(levels) else None


def _together(share: NDArray[np.float64], common: Boxes) -> float:
    """The share of one row that its pairs cover between them."""
    boxed = np.zeros(len(share), dtype=np.bool_) if common is None else _volumes(common) > 0
    if common is None or np.count_nonzero(boxed) < 2:
        return float(share.sum())
    by_volume = share[boxed][0] / _volumes(common[boxed])[0]
    return float(share[~boxed].sum() + by_volume * union_volume(common[boxed]))


def union_volume(boxes: NDArray[np.float64]) -> float:
    """Volume of what any of the boxes `[n, 2·dims]` covers.

    Of three axes slab by slab, so that memory stays small; of two, the cells between all edges.

    >>> union_volume(np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]))
    7.0
    """
    if len(boxes) == 0:
        return 0.0
    dims = boxes.shape[1] // 2
    edges = [np.unique(boxes[:, [axis, axis + dims]]) for axis in range(dims)]
    if dims > 2:
        flat = np.delete(boxes, [0, dims], axis=1)
        slabs = [(a, b, (boxes[:, 0] <= a) & (boxes[:, dims] >= b)) for a, b in pairwise(edges[0])]
        return float(sum((b - a) * union_volume(flat[across]) for a, b, across in slabs))
    inside = np.zeros([len(edge) - 1 for edge in edges], dtype=np.bool_)
    for box in boxes:
        ends = zip(edges, box[:dims], box[dims:], strict=True)
        inside[tuple(slice(*np.searchsorted(edge, (a, b))) for edge, a, b in ends)] = True
    return float(inside @ np.diff(edges[1]) @ np.diff(edges[0]))


def _common(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The intersections `[n, 2·dims]` of overlapping boxes, pair by pair."""
    dims = a.shape[1] // 2
    start = np.maximum(a[:, :dims], b[:, :dims])
    return np.hstack([start, np.minimum(a[:, dims:], b[:, dims:])])


def _volumes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    dims = boxes.shape[1] // 2
    return np.asarray(np.prod(boxes[:, dims:] - boxes[:, :dims], axis=1))
