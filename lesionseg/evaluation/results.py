"""What judging one case gives: its lesions, its candidates, its numbers and those of scorers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lesionseg.core import OperatingPoint

NEVER = -np.inf  # the score at which a lesion is found that no candidate finds


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


Outcome = Literal["true_positive", "false_positive", "ignored", "not_accepted"]
WhyMissed = Literal[
    "",
    "no_response",
    "below_operating_point",
    "overlap_too_small",
    "merged",
    "removed_by_size",
    "wrong_label",
    "case_failed",
]
Status = Literal["ok", "missing"]


@dataclass(frozen=True, slots=True)
class LesionResult:
    """One reference lesion and whether it was found.

    `voxels`, `slices` and the axes are None for a bare box, `volume_ml` also in 2-D. `candidate`
    and `iou` are those of the match at the operating point. `detected_at` is the highest score at
    which the lesion is found, None when it never is or candidates have no scores. `any_overlap`,
    `iou50`, `centre_distance` and `iou10`: found under the side criteria at the operating point.
    `contrast` to the tissue around it (`case.lesion_measures`): None without an image. `split`:
    several accepted candidates overlap it; `merged`: one of them overlaps another lesion too.
    `zone`: the anatomical zone, empty where none was asked for.
    """

    lesion: int
    label: int
    diameter_mm: float
    volume_ml: float | None
    voxels: int | None
    slices: int | None
    long_axis_mm: float | None
    short_axis_mm: float | None
    near_resolution: bool
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...]
    detected: bool
    detected_at: float | None
    candidate: int | None
    iou: float | None
    any_overlap: bool
    iou50: bool
    centre_distance: bool
    why_missed: WhyMissed
    contrast: float | None = None
    iou10: bool = False
    split: bool = False
    merged: bool = False
    zone: str = ""

    @property
    def dice(self) -> float | None:
        """Dice of the lesion with the candidate that finds it; None when missed or a bare box."""
        if self.iou is None or self.voxels is None:
            return None
        return 2 * self.iou / (1 + self.iou)


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate and what became of it.

    `outcome` at the operating point; `outcome_any` when all retained candidates count (the FROC's
    view). `lesion` and `iou`: the lesion of its pair, else the one that it overlaps most.
    `touches_lesion`: overlaps some lesion, of whatever label.
    """

    candidate: int
    label: int
    score: float | None
    probability: float | None
    diameter_mm: float
    volume_ml: float | None
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...]
    accepted: bool
    outcome: Outcome
    lesion: int | None
    iou: float | None
    touches_lesion: bool
    outcome_any: Outcome
    zone: str = ""


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Counts of one case under one criterion at the operating point."""

    true_positive: int
    false_positive: int
    ignored: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """One case's lesions and accepted candidates, one to one at the operating point.

    `found_mm` are diameters of the lesions found and `ious` their IoU with their candidate, None
    without both masks; `false_mm` are diameters of the false positives.
    """

    found_mm: tuple[float, ...] = ()
    ious: tuple[float | None, ...] = ()
    false_mm: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One judged case.

    `dice`, `surface_dice` and `hd95_mm` are None where docs/evaluation.md says so. `counts` holds
    voxels by label, all labels as one under 0, and is empty where there are no masks to compare.
    `sides` holds the counts under the side criteria, `pairs` those of the preset's pairs, version
    1's where it has none: what panoptic quality is of. `splits`: lesions overlapped by several
    accepted candidates; `merges`: accepted candidates that overlap several lesions. `case_score`:
    the highest judged candidate's, 0 without one, None without scores. `scored`: whether
    candidates have scores. `unit`: what lengths are, "mm", "mm at the detector" or, without a pixel
    size, "px". `regions`: each
    region by name, judged by itself. `within_labels`: the same case with each label judged by
    itself, where the labels are pooled and there are several. `warning` and `input_score`: of
    `core.InputVerdict`. `slice_spacing_mm`: the largest spacing of a volume's voxels, to 0.1 mm.
    `annotated`: as in `core.Reference`; what was not has neither lesions nor candidates here.
    """

    case: str
    group: str
    role: str
    status: Status
    dims: int
    lesions: tuple[LesionResult, ...]
    candidates: tuple[CandidateResult, ...]
    dice: float | None
    surface_dice: float | None
    hd95_mm: float | None
    reference_ml: float | None
    predicted_ml: float | None
    case_score: float | None
    scored: bool
    splits: int = 0
    merges: int = 0
    counts: Mapping[int, VoxelCounts] = field(default_factory=dict)
    sides: Mapping[str, OutcomeCounts] = field(default_factory=dict)
    pairs: Pairs = Pairs()
    operating_point: OperatingPoint | None = None
    unit: str = "mm"
    seconds: float = 0.0
    regions: Mapping[str, "CaseResult"] = field(default_factory=dict)
    within_labels: "CaseResult | None" = None
    warning: str = ""
    input_score: float | None = None
    slice_spacing_mm: float | None = None
    annotated: Mapping[int, bool] = field(default_factory=dict)

    @property
    def annotated_share(self) -> float:
        """Share of the labels that a reader looked for: as much of a scan it counts in rates."""
        return sum(self.annotated.values()) / len(self.annotated) if self.annotated else 1.0

    @property
    def is_ill(self) -> bool:
        """Whether there is any lesion."""
        return bool(self.lesions)

    @property
    def is_lesion_free(self) -> bool:
        """Whether a reader looked for all labels and marked nothing."""
        return not self.lesions and all(self.annotated.values())

    @property
    def n_detected(self) -> int:
        """Lesions found at the operating point."""
        return sum(lesion.detected for lesion in self.lesions)

    @property
    def iou(self) -> float | None:
        """IoU of all lesions with all accepted candidates; None where `dice` is."""
        return None if self.dice is None or 0 not in self.counts else self.counts[0].iou

    @property
    def volume_error_ml(self) -> float | None:
        """Predicted minus reference volume; None in 2-D and without masks."""
        if self.reference_ml is None or self.predicted_ml is None:
            return None
        return self.predicted_ml - self.reference_ml

    @property
    def is_called(self) -> bool:
        """Whether any candidate is accepted and judged: the case is called positive."""
        return any(c.accepted and c.outcome != "ignored" for c in self.candidates)

    def n_outcome(self, outcome: Outcome) -> int:
        """Candidates of that outcome at the operating point."""
        return sum(candidate.outcome == outcome for candidate in self.candidates)

    @property
    def false_positive_ml(self) -> float | None:
        """Volume of the false positives; None in 2-D."""
        if self.dims == 2:
            return None
        false = (c for c in self.candidates if c.outcome == "false_positive")
        return sum((c.volume_ml or 0.0 for c in false), 0.0)
