"""A candidate: one predicted lesion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One predicted instance, on the grid of the scan's own file.

    `id` is its voxel value in the instance mask (from 1). `score` in [0, 1] ranks candidates;
    `probability` is the calibrated chance of being a lesion, None before calibration.
    `start_vox`, `stop_vox`: half-open box in array order (z, y, x). `centre_mm`: RAS millimetres
    (x, y, z). `diameter_mm`: equivalent diameter; `volume_ml` is None in 2-D and for bare boxes.
    """

    id: int
    label: int
    score: float
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...]
    diameter_mm: float
    volume_ml: float | None
    has_mask: bool = True
    accepted: bool = True
    probability: float | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which a candidate is accepted, and what it was chosen for.

    `name`: `fp_per_case:1`, `sensitivity:0.9` or `score:0.37`. `chosen_on`: the role of the cases
    it was chosen on, None for a score given by hand. `lesion_recall` and
    `false_positives_per_case` are what those cases gave.
    """

    name: str
    score: float
    chosen_on: str | None = None
    lesion_recall: float | None = None
    false_positives_per_case: float | None = None
