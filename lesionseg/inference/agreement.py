"""The disagreement of the networks of an ensemble on a scan, to choose scans for annotation."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


class EnsembleAgreement:
    """Counts the voxels that all networks mark, and those that at least one network marks.

    A voxel in several tiles counts in each of them, and a voxel with several labels once per label.

    >>> agreement = EnsembleAgreement()
    >>> agreement.add([torch.tensor([True, True, False]), torch.tensor([True, False, False])])
    >>> agreement.disagreement()
    0.5
    """

    def __init__(self) -> None:
        # Voxels marked by all networks, and by any. The counts stay on the device of the tiles,
        # because a GPU should not wait after each tile.
        self._counts: Tensor | None = None

    def add(self, marks: Sequence[Bool[Tensor, "*tiles"]]) -> None:
        """Count the voxels of some tiles. `marks` has the marked voxels of each network."""
        stacked = torch.stack(list(marks))
        counts = torch.stack([stacked.all(dim=0).sum(), stacked.any(dim=0).sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def disagreement(self) -> float | None:
        """Return 1 − |marked by all| / |marked by any|, or None if no tile was counted.

        It is 0 if no network marks a voxel. The ratio is the intersection over union of Roy et al.
        (MICCAI 2018, "Inherent brain segmentation quality control"), of networks instead of
        dropout samples. The scans on which a committee disagrees most are the ones to annotate
        (Seung et al. 1992, "Query by committee").
        """
        if self._counts is None:
            return None
        by_all, by_any = self._counts.tolist()
        return 1 - by_all / by_any if by_any else 0.0
