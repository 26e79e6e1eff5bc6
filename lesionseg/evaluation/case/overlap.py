"""How much candidates and lesions overlap: one sparse table per case, and Dice from it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Lesions
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


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of the reference, of the prediction and of both."""

    reference: int
    predicted: int
    shared: int

    @property
    def dice(self) -> float | None:
        """`2·|A∩B| / (|A|+|B|)`; None when both are empty."""
        total = self.reference + self.predicted
        return 2 * self.shared / total if total else None

    @property
    def iou(self) -> float | None:
        """`|A∩B| / |A∪B|`; None when both are empty."""
        union = self.reference + self.predicted - self.shared
        return self.shared / union if union else None


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
