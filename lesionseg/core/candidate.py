"""A candidate: one predicted lesion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry
from lesionseg.core.lesions import box_centres_mm, box_diameters_mm, equivalent_diameter_mm


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

    @classmethod
    def from_voxels(
        cls, id: int, label: int, score: float, voxels: NDArray[np.int64], geometry: Geometry
    ) -> "Candidate":
        """The candidate of the array indices `voxels` `[v, dims]`, at least one, of `geometry`."""
        volume_mm = len(voxels) * geometry.voxel_size
        return cls(
            id=id,
            label=label,
            score=score,
            start_vox=tuple(voxels.min(axis=0).astype(float).tolist()),
            stop_vox=tuple((voxels.max(axis=0) + 1).astype(float).tolist()),
            centre_mm=tuple(geometry.to_mm(voxels.mean(axis=0, keepdims=True))[0].tolist()),
            diameter_mm=float(equivalent_diameter_mm(volume_mm, geometry.dims)),
            volume_ml=volume_mm / 1000 if geometry.dims == 3 else None,
        )

    @classmethod
    def from_box(
        cls, id: int, label: int, score: float, box: Sequence[float], geometry: Geometry
    ) -> "Candidate":
        """The candidate of a bare box (starts, stops): the ellipsoid inscribed in it."""
        boxes = np.asarray([box], dtype=np.float64)
        return cls(
            id=id,
            label=label,
            score=score,
            start_vox=tuple(box[: geometry.dims]),
            stop_vox=tuple(box[geometry.dims :]),
            centre_mm=tuple(box_centres_mm(boxes, geometry)[0].tolist()),
            diameter_mm=float(box_diameters_mm(boxes, geometry)[0]),
            volume_ml=None,
            has_mask=False,
        )


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
