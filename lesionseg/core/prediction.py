"""Types `Prediction`, `Candidate`, `Calibration`: accepted candidates, zones, warnings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.core.geometry import Geometry
from lesionseg.core.labels import UNION
from lesionseg.core.lesions import box_centres_mm, box_diameters_mm, equivalent_diameter_mm
from lesionseg.core.operating_point import OperatingPoint
from lesionseg.errors import count


@dataclass(frozen=True)
class Calibration:
    """A map from scores of candidates (or of voxels) to probabilities of a lesion (Platt 1999).

    For the logit x of a score, the probability is 1 / (1 + exp(−(`intercept` + `slope`·x))).
    `fitted_on` is the role of the cases that it was fitted on, such as `validation` or
    `out-of-fold`; None if it is not stated. `n_true` and `n_false` are the numbers of true and
    false positives among their candidates. For a calibration of voxels, they are the numbers of
    lesion and background voxels.

    >>> Calibration(intercept=0.0, slope=1.0).probability([0.25, 0.5]).tolist()
    [0.25, 0.5]
    """

    intercept: float = 0.0
    slope: float = 1.0
    fitted_on: str | None = None
    n_true: Annotated[int, Field(ge=0)] = 0
    n_false: Annotated[int, Field(ge=0)] = 0

    def probability(self, scores: ArrayLike) -> Numbers:
        """Return the probability of being a lesion for each score, in the shape of `scores`.

        The scores are between 0 and 1.
        """
        # clipped to ±500, because `exp` overflows above 709
        return 1 / (1 + np.exp(-np.clip(self.intercept + self.slope * logit(scores), -500, 500)))


def logit(p: ArrayLike) -> Numbers:
    """Compute the logit ln(p / (1 − p)) of probabilities, in any shape.

    p is clipped to [1e-6, 1 − 1e-6] before, so that the result is finite for 0 and 1.
    """
    clipped = np.clip(np.asarray(p, float), 1e-6, 1 - 1e-6)
    result: Numbers = np.log(clipped / (1 - clipped))
    return result


@dataclass(frozen=True)
class Candidate:
    """A predicted lesion with its score, on the grid of the scan's own file.

    Attributes:
        id: Its voxel value in the instance mask, from 1.
        label: Its value in label masks.
        score: Number that ranks the candidates, in [0, 1].
        start_vox: First corner of its half-open box in array order (z, y, x).
        stop_vox: Second corner of the box.
        centre_mm: Centre in RAS millimetres (x, y, z).
        diameter_mm: Equivalent diameter.
        volume_ml: Volume. None in 2-D, and for a box whose volume is unknown.
        has_mask: False for a box without a mask.
        accepted: False if its score is below the operating point, its zone is not kept, or somebody
            rejected it.
        probability: Calibrated probability of being a lesion. None before calibration.
        zone: Anatomical zone. Empty if no zones were requested.
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
        cls, id: int, label: int, score: float, voxels: Integers, geometry: Geometry
    ) -> "Candidate":
        """Build a candidate from its voxels, and measure its box, centre and size.

        Args:
            id: Voxel value of the candidate in the instance mask.
            label: Label value of the candidate.
            score: Score of the candidate.
            voxels: Array indices of the voxels `[v, dims]`, at least one.
            geometry: Grid of the voxels.
        """
        start = voxels.min(axis=0).astype(float)
        stop = voxels.max(axis=0) + 1.0
        volume_mm = len(voxels) * geometry.voxel_size  # mm³, in 2-D mm²
        return cls(
            id=id,
            label=label,
            score=score,
            start_vox=tuple(start.tolist()),
            stop_vox=tuple(stop.tolist()),
            centre_mm=tuple(geometry.to_mm(voxels.mean(axis=0, keepdims=True))[0].tolist()),
            diameter_mm=float(equivalent_diameter_mm(volume_mm, geometry.dims)),
            volume_ml=volume_mm / 1000 if geometry.dims == 3 else None,
        )

    @classmethod
    def from_box(
        cls, id: int, label: int, score: float, box: Sequence[float], geometry: Geometry
    ) -> "Candidate":
        """Build a candidate from a box without a mask, and measure its centre and diameter.

        The diameter is the equivalent diameter of the ellipsoid inscribed in the box. The volume is
        unknown.

        Args:
            id: Id of the candidate.
            label: Label value of the candidate.
            score: Score of the candidate.
            box: The box (starts, then stops; half-open voxels).
            geometry: Grid of the box.
        """
        boxes = np.asarray([box], float)
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

    def at(self, point: OperatingPoint) -> "Candidate":
        """Return the candidate with `accepted` set by an operating point.

        The candidate is accepted if its score is at least that of the operating point.
        """
        return replace(self, accepted=self.score >= point.score)


@dataclass(frozen=True)
class InputCheckResult:
    """The comparison of a scan with the training scans.

    Attributes:
        score: Distance from the training scans divided by the limit, so the scan is unlike them if
            it is above 1. None if the scan was not compared.
        warning: Sentences that describe the difference, and the warnings of the file's reader.
            Empty if there are none.
        missing: Names of missing channels.
        blank: Names of channels without contrast. If there is one, nothing is detected.
        empty: Names of channels without contrast in a scan that was predicted nonetheless, because
            it is unknown whether the training scans have such channels.
    """

    score: float | None = None
    warning: str = ""
    missing: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @property
    def is_warned(self) -> bool:
        """True if a warning is due: the scan is unlike the training scans, or may be damaged.

        A scan may be damaged if channels are `empty`.
        """
        return (self.score is not None and self.score > 1) or bool(self.empty)

    def with_warnings(self, warnings: Sequence[str]) -> "InputCheckResult":
        """Return the result with more sentences at the end of `warning`."""
        return replace(self, warning=" ".join(filter(None, (self.warning, *warnings))))


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """All retained candidates of a case, on the grid of the scan's own file.

    Attributes:
        case: Id of the case.
        geometry: Grid of the scan's file.
        candidates: Sorted by descending score, ties by id.
        instances: `[*spatial]` int32, candidate ids, 0 for background. None if all candidates are
            boxes.
        operating_point: The operating point that accepted candidates.
        has_scores: False for masks of another program without scores. The scores of their
            candidates are placeholders, so FROC, CPM and AP are null.
        values: `[*spatial]` mask values of all candidates if they differ within a candidate
            (regions). None if all voxels of a candidate have its label.
        removed: Objects that were too small to be candidates, as boxes without masks, with their
            own ids. They only serve to explain why a lesion was missed.
        input: The comparison with the training scans. None for predictions of other programs.
        n_left_out: Number of candidates (for a detector: anchors) that a limit left out. These
            have the lowest scores.
        labels: The names of the model's labels by their values. Empty if the predicting
            program states none.
        n_outside: Number of candidates that reach the operating point, but are not accepted because
            they are located outside the zones to keep.
        n_off_grid: Number of candidates that were left out because they are located outside the
            grid of the reference.
        disagreement: Disagreement of the networks of an ensemble, from 0 to 1. None for a single
            network, for a network without voxels, and for a scan that was not predicted.
    """

    case: str
    geometry: Geometry
    candidates: tuple[Candidate, ...]
    instances: NDArray[np.int32] | None
    operating_point: OperatingPoint | None = None
    has_scores: bool = True
    values: NDArray[np.integer[Any]] | None = None
    removed: tuple[Candidate, ...] = ()
    input: InputCheckResult | None = None
    n_left_out: int = 0
    labels: Mapping[int, str] = field(default_factory=dict)
    n_outside: int = 0
    n_off_grid: int = 0
    disagreement: float | None = None

    @property
    def accepted(self) -> Flags:
        """True for each accepted candidate `[n]`."""
        return np.array([candidate.accepted for candidate in self.candidates], bool)

    def __repr__(self) -> str:
        """Return three lines: the case, its candidates, and its grid. Arrays are left out."""
        n_accepted = sum(candidate.accepted for candidate in self.candidates)
        return (
            f"{type(self).__name__} of case {self.case!r}\n"
            f"  {len(self.candidates)} candidates, {n_accepted} accepted\n"
            f"  grid {self.geometry.describe()}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings about the prediction, each as text, for the terminal and the results.

        The warnings are the warning of the input check (with those of the file reader), a sentence
        about candidates that a limit left out, and a sentence about candidates outside the zones to
        keep. Warnings without a cause are left out.
        """
        checked = "" if self.input is None else self.input.warning
        return tuple(filter(None, (checked, self.left_out_note, self.outside_note)))

    @property
    def left_out_note(self) -> str:
        """A sentence about candidates that the limit on their number left out; "" if none was."""
        if not self.n_left_out:
            return ""
        return (
            f"The limit on candidates was reached, so the {self.n_left_out} with the lowest scores "
            "were left out."
        )

    @property
    def outside_note(self) -> str:
        """A sentence about candidates rejected outside the zones to keep; "" if none was."""
        if not self.n_outside:
            return ""
        place = "outside the kept zones"
        rejected = count(self.n_outside, f"candidate {place} was", f"candidates {place} were")
        return f"{rejected} not accepted."

    def keep(self, candidates: Sequence[Candidate]) -> "Prediction":
        """Return the prediction with only some of its candidates.

        The voxels of all other candidates become background in `instances`.

        Args:
            candidates: Candidates of this prediction, in the order of the result.
        """
        instances = self.instances
        if instances is not None and len(candidates) < len(self.candidates):
            is_kept = np.isin(instances, [candidate.id for candidate in candidates])
            instances = np.where(is_kept, instances, np.int32(0))  # the result stays int32
        return replace(self, candidates=tuple(candidates), instances=instances)

    def without_labels(self, labels: Sequence[int]) -> "Prediction":
        """Return the prediction without the candidates that have one of these label values."""
        return self.keep([c for c in self.candidates if c.label not in labels])

    def with_one_label(self) -> "Prediction":
        """Return the prediction with label 1 for all candidates, to match them without labels.

        The mask values of regions (`values`) stay as they are.
        """
        candidates = tuple(replace(candidate, label=1) for candidate in self.candidates)
        removed = tuple(replace(candidate, label=1) for candidate in self.removed)
        return replace(self, candidates=candidates, removed=removed, labels=UNION)

    def with_labels(self, value_of: Mapping[int, int]) -> "Prediction":
        """Return the prediction with other label values, such as those of another dataset.

        The mask values of regions (`values`) stay as they are.

        Args:
            value_of: The new label value for each old label value. It must contain the labels of
                all candidates, not only those with a name.
        """
        return replace(
            self,
            candidates=tuple(replace(c, label=value_of[c.label]) for c in self.candidates),
            removed=tuple(replace(c, label=value_of[c.label]) for c in self.removed),
            labels={value_of[value]: name for value, name in self.labels.items()},
        )

    def merge_labels(self) -> "Prediction":
        """Return the prediction with label 1 for all candidates and voxels.

        Unlike `with_one_label`, it also drops the mask values of regions (`values`).
        """
        return replace(self.with_one_label(), values=None)

    def accept(self, point: OperatingPoint, calibration: Calibration | None = None) -> "Prediction":
        """Accept the candidates with at least the score of an operating point, and reject others.

        With a calibration, candidates also get their `probability`. Their order does not change.
        An earlier rejection by zones (`reject_outside_zones`) is undone, so `n_outside` becomes 0.

        Args:
            point: The operating point.
            calibration: Map from scores to probabilities, or None.

        Returns:
            The prediction with these candidates. It stays as it is if its scores are placeholders
            (`has_scores` is False).
        """
        if not self.has_scores:
            return self
        candidates = tuple(candidate.at(point) for candidate in self.candidates)
        if calibration is not None and candidates:
            chances = calibration.probability([c.score for c in candidates]).tolist()
            pairs = zip(candidates, chances, strict=True)
            candidates = tuple(replace(c, probability=p) for c, p in pairs)
        return replace(self, candidates=candidates, operating_point=point, n_outside=0)

    def with_zones(self, zones: Sequence[str]) -> "Prediction":
        """Return the prediction with an anatomical zone for each candidate.

        `zones` has the name of the zone of each candidate, in the order of `candidates`.
        """
        pairs = zip(self.candidates, zones, strict=True)
        return replace(self, candidates=tuple(replace(c, zone=zone) for c, zone in pairs))

    def reject_outside_zones(self, kept: Collection[str]) -> "Prediction":
        """Return the prediction in which no candidate outside some anatomical zones is accepted.

        `kept` are the names of the zones whose candidates do not change. `n_outside` of the result
        is the number of candidates that are no longer accepted.
        """
        candidates = tuple(
            replace(c, accepted=c.accepted and c.zone in kept) for c in self.candidates
        )
        n_outside = sum(c.accepted and c.zone not in kept for c in self.candidates)
        return replace(self, candidates=candidates, n_outside=n_outside)

    def mask(self) -> NDArray[np.uint8]:
        """Return the mask `[*spatial]` uint8 with the label values of accepted candidates.

        If the labels are regions, the voxels have the mask values of the regions (`values`). All
        voxels are 0 if no candidate is accepted, or if candidates are boxes. The axes are those of
        `geometry`: z, y, x for a file. nibabel's order is x, y, z, so compare its arrays with
        `mask().T`.
        """
        if self.instances is None:
            return np.zeros(self.geometry.shape, np.uint8)
        # label value by candidate id, 0 for a rejected candidate
        label_of = np.zeros(max([c.id for c in self.candidates], default=0) + 1, np.uint8)
        for candidate in self.candidates:
            label_of[candidate.id] = candidate.label if candidate.accepted else 0
        labels = label_of[self.instances]
        return labels if self.values is None else np.where(labels > 0, self.values, np.uint8(0))
