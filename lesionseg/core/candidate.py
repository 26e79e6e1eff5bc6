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
    it was chosen on (`validation`, or `out-of-fold`), None for a score given by hand.
    `lesion_recall` and `false_positives_per_case` are what those cases gave, with 95 % intervals
    that resample groups. The `expected_` ones are what the same choice gives where it may not look:
    every fold accepted by the score that the others choose. `attainable_recall` is the highest
    recall that any score gave.
    """

    name: str
    score: float
    chosen_on: str | None = None
    lesion_recall: float | None = None
    false_positives_per_case: float | None = None
    lesion_recall_ci95: tuple[float, float] | None = None
    false_positives_per_case_ci95: tuple[float, float] | None = None
    expected_recall: float | None = None
    expected_false_positives_per_case: float | None = None
    attainable_recall: float | None = None
