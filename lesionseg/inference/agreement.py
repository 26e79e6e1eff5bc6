"""The number `disagreement` of an ensemble on a scan, to choose scans for annotation."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


class EnsembleAgreement:
    """Counts the voxels that all networks of an ensemble mark as lesion, and that any marks.

    `disagreement` computes from both counts how much the networks differ on one scan. A voxel that
    several tiles contain is counted once per tile, and a voxel of several labels once per label.

    >>> agreement = EnsembleAgreement()
    >>> agreement.add([torch.tensor([True, True, False]), torch.tensor([True, False, False])])
    >>> agreement.disagreement()
    0.5
    """

    def __init__(self) -> None:
        # [voxels that all networks mark, voxels that at least one marks]; None before the first
        # tile. The counts stay on the device of the tiles, so that a GPU needs no wait per tile.
        self._counts: Tensor | None = None

    def add(self, marks: Sequence[Bool[Tensor, "*tiles"]]) -> None:
        """Count the voxels in tiles that all networks mark, and those that at least one marks.

        Args:
            marks: One boolean array per network, all of the same shape. It is True for the voxels
                that the network marks as lesion.
        """
        stacked = torch.stack(list(marks))
        counts = torch.stack([stacked.all(dim=0).sum(), stacked.any(dim=0).sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def disagreement(self) -> float | None:
        """Return how much the networks differ: 1 − n(marked by all) / n(marked by any network).

        The result is 0 if no network marks a voxel, and None if no tile was counted. The fraction
        is the intersection over union of Roy et al. (MICCAI 2018, "Inherent brain segmentation
        quality control"), computed over networks instead of dropout samples. The scans on which
        the networks disagree most should be annotated next (Seung et al. 1992, "Query by
        committee").
        """
        if self._counts is None:
            return None
        by_all, by_any = self._counts.tolist()
        return 1 - by_all / by_any if by_any else 0.0
