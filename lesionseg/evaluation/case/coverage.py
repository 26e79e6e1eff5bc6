"""What several candidates cover of a lesion between them: the match rule of the default preset.

A candidate is supported when enough of it lies in lesions; a lesion is found when the supported
candidates cover enough of it. Voxels of instances never overlap and add up; boxes may overlap, so
the volume of their union counts.
"""

from bisect import bisect_left
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Lesions
from lesionseg.evaluation.case.overlap import Overlaps

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
