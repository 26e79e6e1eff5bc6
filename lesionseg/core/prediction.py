"""A prediction: the candidates of one case, their masks and the calibration of their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from lesionseg.core.geometry import Geometry
from lesionseg.core.lesions import box_centres_mm, box_diameters_mm, equivalent_diameter_mm
from lesionseg.core.operating_point import OperatingPoint


@dataclass(frozen=True)
class Calibration:
    """Map from score to probability (Platt 1999), by the logit x of the score.

    The probability is 1 / (1 + exp(−(`intercept` + `slope`·x))). `fitted_on`: the role of the
    cases it was fitted on, `validation` or `out-of-fold`. `n_true` and `n_false`: their candidates.

    >>> Calibration(intercept=0.0, slope=1.0).probability([0.25, 0.5]).tolist()
    [0.25, 0.5]
    """

    intercept: float = 0.0
    slope: float = 1.0
    fitted_on: str | None = None
    n_true: Annotated[int, Field(ge=0)] = 0
    n_false: Annotated[int, Field(ge=0)] = 0

    def probability(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the chance of being a lesion of each score in [0, 1]."""
        return 1 / (1 + np.exp(-np.clip(self.intercept + self.slope * logit(scores), -500, 500)))


def logit(p: ArrayLike) -> NDArray[np.float64]:
    """ln(p/(1−p)), with p kept a millionth off 0 and 1."""
    clipped = np.clip(np.asarray(p, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)), dtype=np.float64)


@dataclass(frozen=True)
class Candidate:
    """One predicted instance, on the grid of the scan's own file.

    `id` is its voxel value in the instance mask (from 1). `score` in [0, 1] ranks candidates;
    `probability` is the calibrated chance of being a lesion, None before calibration.
    `start_vox`, `stop_vox`: half-open box in array order (z, y, x). `centre_mm`: RAS millimetres
    (x, y, z). `diameter_mm`: equivalent diameter; `volume_ml` is None in 2-D and for bare boxes.
    `zone`: the anatomical zone, empty where none was asked for.
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
    zone: str = ""

    @classmethod
    def from_voxels(
        cls, id: int, label: int, score: float, voxels: NDArray[np.int64], geometry: Geometry
    ) -> "Candidate":
        """The candidate of the array indices `voxels` `[v, dims]`, at least one, of `geometry`."""
        low, high = voxels.min(axis=0).astype(float), voxels.max(axis=0) + 1.0
        centre = geometry.to_mm(voxels.mean(axis=0, keepdims=True))[0]
        volume_mm = len(voxels) * geometry.voxel_size
        diameter = float(equivalent_diameter_mm(volume_mm, geometry.dims))
        volume_ml = volume_mm / 1000 if geometry.dims == 3 else None
        box = tuple(low.tolist()), tuple(high.tolist())
        return cls(id, label, score, *box, tuple(centre.tolist()), diameter, volume_ml)

    @classmethod
    def from_box(
        cls, id: int, label: int, score: float, box: Sequence[float], geometry: Geometry
    ) -> "Candidate":
        """The candidate of a bare box (starts, stops): the ellipsoid inscribed in it."""
        boxes, dims = np.asarray([box], dtype=np.float64), geometry.dims
        centre = tuple(box_centres_mm(boxes, geometry)[0].tolist())
        diameter, start, stop = box_diameters_mm(boxes, geometry)[0], box[:dims], box[dims:]
        shown = (tuple(start), tuple(stop), centre, float(diameter))
        return cls(id, label, score, *shown, volume_ml=None, has_mask=False)


@dataclass(frozen=True)
class InputCheckResult:
    """Whether a scan is like those that the network was trained on.

    `score`: its distance from them as a share of the limit, so that above 1 it is unlike them; None
    where nothing was compared. `warning`: a sentence that says what is unlike, or "". `missing`:
    names of the channels that it lacks. `blank`: names of the channels without contrast; nothing is
    detected if there is one.
    """

    score: float | None = None
    warning: str = ""
    missing: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """All retained candidates of a case, on the grid of the scan's own file.

    `candidates` are sorted by descending score, ties by id. `instances` `[*spatial]` int32 holds
    candidate ids, 0 elsewhere; None with boxes only. `scored` is False for bare masks of another
    program: their candidates' scores are a placeholder and FROC, CPM and AP are null. `values`
    `[*spatial]` holds the mask values of all candidates where they differ within one (regions);
    None: a candidate's voxels all hold its label. `removed`: what would be candidates but for
    their size, boxes without masks, with ids of their own; only to tell why a lesion was missed.
    `input`: whether the scan is like the training scans; None for another program's. `n_left_out`:
    candidates (of a detector: anchors) of the lowest scores that a limit left out.
    """

    case: str
    geometry: Geometry
    candidates: tuple[Candidate, ...]
    instances: NDArray[np.int32] | None
    operating_point: OperatingPoint | None = None
    scored: bool = True
    values: NDArray[np.uint8] | None = None
    removed: tuple[Candidate, ...] = ()
    input: InputCheckResult | None = None
    n_left_out: int = 0

    @property
    def left_out_note(self) -> str:
        """A sentence about the candidates that the limit left out, "" if there are none."""
        if not self.n_left_out:
            return ""
        return (
            f"The limit on candidates was reached: the {self.n_left_out} of the lowest scores were "
            "left out."
        )

    def without_labels(self, labels: Sequence[int]) -> "Prediction":
        """The prediction without the candidates of some labels."""
        candidates = tuple(c for c in self.candidates if c.label not in labels)
        if self.instances is None or len(candidates) == len(self.candidates):
            return replace(self, candidates=candidates)
        inside = np.isin(self.instances, [c.id for c in candidates])
        return replace(self, candidates=candidates, instances=np.where(inside, self.instances, 0))

    def mask(self) -> NDArray[np.uint8]:
        """Label values `[*spatial]` of the accepted candidates; zeros when there is none."""
        if self.instances is None:
            return np.zeros(self.geometry.shape, dtype=np.uint8)
        label_of = np.zeros(max([c.id for c in self.candidates], default=0) + 1, dtype=np.uint8)
        for candidate in self.candidates:
            label_of[candidate.id] = candidate.label if candidate.accepted else 0
        labels = label_of[self.instances]
        return labels if self.values is None else np.where(labels > 0, self.values, np.uint8(0))
