"""How far each candidate lies in what is not judged: voxels the reference says to ignore."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Lesions, Prediction, Reference

# a candidate with a larger share in what is not judged is neither true nor false
MOSTLY = 0.5


@dataclass(frozen=True, eq=False)
class SetAside:
    """All arrays by row of the candidates.

    `share`: of the candidate's voxels, or of a bare box, that is not judged; `of_box`: the same of
    the box around any candidate; `wholly`: it has a mask, and nothing of it is left.
    """

    share: NDArray[np.float64]
    of_box: NDArray[np.float64]
    wholly: NDArray[np.bool_]

    @property
    def mostly(self) -> NDArray[np.bool_]:
        """Candidates to be ignored."""
        return self.share > MOSTLY


def find_set_aside(reference: Reference, prediction: Prediction, candidates: Lesions) -> SetAside:
    """Look up the prediction's candidates in the reference's `ignore`."""
    none = np.zeros(len(candidates))
    ignore = reference.ignore
    if ignore is None or len(candidates) == 0:
        return SetAside(none, none, none > 0)
    lost = none
    if prediction.instances is not None:
        highest = int(candidates.ids.max())
        found = np.bincount(prediction.instances[ignore].reshape(-1), minlength=highest + 1)
        lost = found[candidates.ids].astype(np.float64)
    of_box = np.array(
        [_share_of_box(ignore, c.start_vox, c.stop_vox) for c in prediction.candidates]
    )
    drawn = lost + candidates.n_voxels
    share = np.where(drawn > 0, lost / np.maximum(drawn, 1), of_box)
    return SetAside(share, of_box, (lost > 0) & (candidates.n_voxels == 0))


def _share_of_box(
    ignore: NDArray[np.bool_], start: tuple[float, ...], stop: tuple[float, ...]
) -> float:
    inside = tuple(
        slice(max(int(np.floor(a)), 0), int(np.ceil(b))) for a, b in zip(start, stop, strict=True)
    )
    part = ignore[inside]
    return float(part.mean()) if part.size else 0.0
