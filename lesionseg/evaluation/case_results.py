"""Evaluate one case: match its prediction with its reference, and compute every number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    Candidate,
    Geometry,
    Labels,
    Lesions,
    OperatingPoint,
    Prediction,
    Reference,
    Zones,
)
from lesionseg.errors import GeometryError
from lesionseg.evaluation.box_precision import (
    NO_HITS,
    BoxHits,
    BoxPairs,
    find_hits,
    pair_boxes,
)
from lesionseg.evaluation.criteria import (
    ANY_OVERLAP,
    CENTRE_DISTANCE,
    INSTANCES,
    IOU50,
    SIDE_CRITERIA,
    Criterion,
    Preset,
)
from lesionseg.evaluation.matching import NEVER, Match, Outcome, match
from lesionseg.evaluation.measures import NEAR_RESOLUTION_VOXELS, measure_extent, surface_scores
from lesionseg.evaluation.missed import Miss, Misses, WhyMissed
from lesionseg.ops.components import lesion_instances

# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05
IoUs = Mapping[tuple[int, int], float]  # IoU by the rows of an overlapping candidate and lesion


@dataclass(frozen=True, slots=True)
class LesionResult:
    """One reference lesion, found or missed; a line of lesions.csv.

    Attributes:
        lesion: Id of the lesion in the reference.
        label: Label value.
        diameter_mm: Equivalent diameter, in pixels if the pixel size is unknown.
        diameter_percent: Equivalent diameter in per cent of the image width. None in 3-D.
        volume_ml: Volume. None in 2-D and for a box without voxels.
        voxels: Number of voxels. None for a box without voxels.
        slices: Number of slices. None for a box without voxels.
        long_axis_mm: Long axis, as in `Extent`. None for a box without voxels.
        short_axis_mm: Short axis, as in `Extent`. None for a box without voxels.
        near_resolution: True for a lesion whose size is uncertain, as in `Extent`.
        start_vox: First corner of its box in array order.
        stop_vox: Last corner of its box, exclusive.
        centre_mm: Centre in RAS mm.
        detected: True if it is found at the operating point.
        detected_at: The highest score at which it is found. None if it is never found, or if
            candidates have no scores.
        candidate: Id of the candidate that finds it at the operating point.
        iou: IoU of the lesion and that candidate.
        any_overlap: True if it is found under this side criterion at the operating point.
        iou50: The same for this side criterion.
        centre_distance: The same for this side criterion.
        iou10: The same for this side criterion.
        why_missed: The reason why it was missed, empty for a found lesion.
        split: True if several accepted candidates overlap it.
        merged: True if an accepted candidate overlaps this and another lesion.
        zone: Anatomical zone, empty if the evaluation has none.
        covered: The share of it that the accepted candidates cover together. If none of them
            touches it, the share that all retained candidates cover.
        nearest_candidate: Id of the candidate that `why_missed` concerns, as in `Miss`.
        nearest_score: Score of that candidate.
        nearest_iou: IoU of the lesion and that candidate.
        box_iou: The largest IoU of its bounding box and that of an accepted candidate of its
            label, 0 if none overlaps.
    """

    lesion: int
    label: int
    diameter_mm: float
    diameter_percent: float | None
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
    iou10: bool
    why_missed: WhyMissed
    split: bool = False
    merged: bool = False
    zone: str = ""
    covered: float = 0.0
    nearest_candidate: int | None = None
    nearest_score: float | None = None
    nearest_iou: float | None = None
    box_iou: float = 0.0


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate and its outcome; a line of candidates.csv.

    Attributes:
        candidate: Id of the candidate.
        label: Label value.
        score: Score. None if the prediction has no scores.
        probability: Calibrated probability of being a true positive.
        diameter_mm: Equivalent diameter, in pixels if the pixel size is unknown.
        diameter_percent: Equivalent diameter in per cent of the image width. None in 3-D.
        volume_ml: Volume. None in 2-D, and for a box without voxels whose volume is not stated.
        start_vox: First corner of its box in array order.
        stop_vox: Last corner of its box, exclusive.
        centre_mm: Centre in RAS mm.
        accepted: True if it counts at the operating point.
        outcome: Outcome at the operating point.
        lesion: Id of the lesion that it finds, otherwise of the one that it overlaps most.
        iou: IoU of the candidate and that lesion.
        touches_lesion: True if it overlaps a lesion of any label.
        outcome_any: Outcome if all retained candidates are accepted, as in the FROC.
        zone: Anatomical zone, empty if the evaluation has none.
        in_lesions: The share of the candidate that is located in lesions.
    """

    candidate: int
    label: int
    score: float | None
    probability: float | None
    diameter_mm: float
    diameter_percent: float | None
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
    in_lesions: float = 0.0


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One evaluated case; a line of cases.csv.

    Attributes:
        case: Id of the case.
        group: Id of the patient.
        role: Role of the case, such as `test`.
        status: `missing` if the case has no prediction.
        dims: Number of spatial axes.
        lesions: The reference lesions.
        candidates: The retained candidates.
        reference_ml: Volume of all lesions. None in 2-D and with boxes without voxels.
        predicted_ml: Volume of the accepted candidates. None in the same cases.
        n_counted: Number of accepted candidates, without those in the ignored region.
        case_score: The highest score of a candidate that is not ignored, 0 if there is none. None
            without scores.
        has_scores: True if the candidates have scores.
        dice: Dice of all labels together. None without masks or without a lesion.
        surface_dice: Surface Dice. None in the same cases.
        hd95_mm: HD95. None also if one of the masks is empty.
        splits: Number of lesions that several accepted candidates overlap.
        merges: Number of accepted candidates that overlap several lesions.
        dice_by_label: Dice of each label value, empty without masks.
        sides: Lesions found and false positives under each side criterion.
        pair_ious: IoU of each lesion that is found one to one, None if one side has no mask.
            Panoptic quality is computed from this and `n_unpaired`.
        n_unpaired: Number of accepted candidates without such a pair.
        operating_point: The operating point that was applied.
        unit: Unit of lengths: "mm", "mm at the detector" or, without a pixel size, "px".
        seconds: Time of matching and evaluation.
        regions: The result of each region by its name.
        within_labels: The same case with each label matched separately. None if the labels are
            not pooled, or if the case has one label.
        warning: Warning of the input check, empty without one.
        input_score: Score of the input check.
        slice_spacing_mm: Largest spacing of a volume, rounded to 0.1 mm. None in 2-D.
        annotated: As in `core.Reference`. Labels that are not annotated have neither lesions nor
            candidates here.
        box_hits: The candidates that count for the average precision of boxes.
    """

    case: str
    group: str
    role: str
    status: Literal["ok", "missing"]
    dims: int
    lesions: tuple[LesionResult, ...]
    candidates: tuple[CandidateResult, ...]
    reference_ml: float | None
    predicted_ml: float | None
    n_counted: int
    case_score: float | None
    has_scores: bool
    dice: float | None = None
    surface_dice: float | None = None
    hd95_mm: float | None = None
    splits: int = 0
    merges: int = 0
    dice_by_label: Mapping[int, float] = field(default_factory=dict)
    sides: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pair_ious: tuple[float | None, ...] = ()
    n_unpaired: int = 0
    operating_point: OperatingPoint | None = None
    unit: str = "mm"
    seconds: float = 0.0
    regions: Mapping[str, "CaseResult"] = field(default_factory=dict)
    within_labels: "CaseResult | None" = None
    warning: str = ""
    input_score: float | None = None
    slice_spacing_mm: float | None = None
    annotated: Mapping[int, bool] = field(default_factory=dict)
    box_hits: BoxHits = field(default=NO_HITS, compare=False, repr=False)

    @property
    def annotated_share(self) -> float:
        """The share of the labels that a reader looked for. Rates count the case by this share.

        It is 0 if the case has no prediction, because such a case cannot have false positives.
        """
        if self.status == "missing":
            return 0.0
        if not self.annotated:  # without a statement, the reader looked for all labels
            return 1.0
        return sum(self.annotated.values()) / len(self.annotated)

    @property
    def is_lesion_free(self) -> bool:
        """True if a reader looked for all labels and marked nothing, and a prediction exists."""
        return self.status == "ok" and not self.lesions and all(self.annotated.values())

    @property
    def n_detected(self) -> int:
        """Lesions found at the operating point."""
        return sum(lesion.detected for lesion in self.lesions)

    def n_outcome(self, outcome: Outcome) -> int:
        """Count the candidates with that outcome at the operating point."""
        return sum(candidate.outcome == outcome for candidate in self.candidates)

    @property
    def false_positive_ml(self) -> float | None:
        """Volume of the false positives. None in 2-D, or if one of them is a box without voxels."""
        if self.dims == 2:
            return None
        total_ml = 0.0
        for candidate in self.candidates:
            if candidate.outcome != "false_positive":
                continue
            if candidate.volume_ml is None:
                return None
            total_ml += candidate.volume_ml
        return total_ml


@dataclass(frozen=True)
class _Place:
    """The label, size and position of a lesion or candidate."""

    label: int
    diameter_mm: float
    diameter_percent: float | None
    volume_ml: float | None
    start_vox: tuple[float, ...]
    stop_vox: tuple[float, ...]
    centre_mm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The extent of a lesion, None for a box without voxels."""

    voxels: int | None = None
    slices: int | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    near_resolution: bool


@dataclass(frozen=True, kw_only=True)
class _Overlap:
    """The agreement of the masks of a case, undefined without masks."""

    dice: float | None = None
    surface_dice: float | None = None
    hd95_mm: float | None = None
    dice_by_label: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Decision:
    """The matching of a case after some of its candidates were accepted.

    Attributes:
        accepted: True for accepted candidates `[n]`.
        found_by: Row of the candidate that finds each lesion `[lesions]`, −1 for a missed lesion.
        outcomes: Outcome of each candidate.
        sides: `found_by` and `outcomes` under each side criterion, by its name.
        iou_of: IoU of each candidate and lesion that overlap.
        misses: The facts that explain the missed lesions.
    """

    accepted: NDArray[np.bool_]
    found_by: NDArray[np.int64]
    outcomes: Sequence[Outcome]
    sides: Mapping[str, tuple[NDArray[np.int64], list[Outcome]]]
    iou_of: IoUs
    misses: Misses

    def is_found_under(self, criterion: Criterion, lesion: int) -> bool:
        """Return True if a side criterion finds the lesion in this row."""
        found_by, _ = self.sides[criterion.name]
        return bool(found_by[lesion] >= 0)

    def count_sides(self) -> dict[str, tuple[int, int]]:
        """Count the lesions found and the false positives under each side criterion."""
        counts = {}
        for name, (found_by, outcomes) in self.sides.items():
            counts[name] = (int((found_by >= 0).sum()), outcomes.count("false_positive"))
        return counts


@dataclass(frozen=True, eq=False)
class _SplitAndMerged:
    """The lesions and candidates that overlap several of the other side.

    Attributes:
        split: True for lesions `[lesions]` that several accepted candidates overlap.
        merged: True for lesions `[lesions]` that share an accepted candidate with another lesion.
        merging: True for accepted candidates `[n]` that overlap several lesions.
    """

    split: NDArray[np.bool_]
    merged: NDArray[np.bool_]
    merging: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Unannotated:
    """The candidates whose labels the reference does not annotate, matched with its lesions.

    They are not counted in any score. They only explain why a lesion was missed.
    """

    candidates: tuple[Candidate, ...]
    match: Match

    def decide(self, by_id: Mapping[int, Candidate]) -> "Unannotated":
        """Replace the candidates by those of the same ids, which may have other flags.

        A candidate without a counterpart stays: `MatchedCase.prediction` has none of them.
        """
        return replace(self, candidates=tuple(by_id.get(c.id, c) for c in self.candidates))

    def flag_accepted(self, point: OperatingPoint | None) -> NDArray[np.bool_]:
        """Flag the candidates `[n]` that the point or, for None, the files accept."""
        if point is not None:
            return np.asarray(self.match.scores >= point.score)
        return np.array([c.accepted for c in self.candidates], dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class MatchedCase:
    """A case whose candidates are matched with its lesions once, for any operating point.

    It contains no volumes, so that all cases of a dataset fit into memory.

    Attributes:
        prediction: The candidates, without their voxels.
        match: The possible pairs of candidates and lesions.
        preset: The match rule.
        case: Id of the case.
        group: Id of the patient.
        role: Role of the case, such as `test`.
        status: `missing` if the case has no prediction.
        regions: The matched case of each region by its name.
        seconds: Time of matching.
        zones: The anatomical zone of each lesion, empty if it has none.
        annotated: As in `core.Reference`.
        box_pairs: The pairs of bounding boxes.
        box_hits: The candidates that count for the average precision of boxes.
        unannotated: The candidates of labels that the reference does not annotate. None without
            such candidates.
    """

    prediction: Prediction
    match: Match
    preset: Preset
    case: str
    group: str
    role: str
    status: Literal["ok", "missing"]
    regions: Mapping[str, "MatchedCase"]
    seconds: float
    zones: Sequence[str]
    annotated: Mapping[int, bool]
    box_pairs: BoxPairs
    box_hits: BoxHits
    unannotated: "Unannotated | None" = None

    @property
    def geometry(self) -> Geometry:
        """The grid of the reference."""
        return self.match.lesions.geometry

    def decide(self, prediction: Prediction) -> "MatchedCase":
        """Apply the flags, probabilities and operating point of `prediction`.

        This is called if an operating point is chosen after the cases were matched. `prediction`
        must have the candidates that were matched. Nothing is matched again. The candidates keep
        their labels and zones, because `match_case` sets these.
        """
        by_id = {c.id: c for c in prediction.candidates}
        decided = replace(
            self.prediction,
            candidates=tuple(
                replace(by_id[c.id], label=c.label, zone=c.zone) for c in self.prediction.candidates
            ),
            operating_point=prediction.operating_point,
        )
        regions = {name: part.decide(prediction) for name, part in self.regions.items()}
        unannotated = None
        if self.unannotated is not None:
            unannotated = self.unannotated.decide(by_id)
        return replace(self, prediction=decided, regions=regions, unannotated=unannotated)

    def result(
        self, operating_point: OperatingPoint | None = None, *, surface: bool = True
    ) -> CaseResult:
        """Compute every number of the case.

        Args:
            operating_point: Candidates with at least its score are accepted. If it is None, or if
                the candidates have no scores, those that the prediction marks are accepted.
            surface: False leaves out surface Dice and HD95, which take the most time. The choice of
                an operating point does not need them.
        """
        begin = perf_counter()
        given = self.prediction
        match = self.match
        lesions = match.lesions
        point = operating_point if given.has_scores else None  # a score is never invented
        decision = self._accept(point)
        pair_ious, n_unpaired = self._measure_pairs(decision)
        several = self._find_split_and_merged(decision.accepted)
        overlap = self._measure_overlap(decision.accepted, surface)
        regions = {}
        for name, part in self.regions.items():
            regions[name] = part.result(operating_point, surface=surface)
        return CaseResult(
            case=self.case,
            group=self.group or self.case,
            role=self.role,
            status=self.status,
            dims=lesions.geometry.dims,
            lesions=self._describe_lesions(decision, several),
            candidates=self._describe_candidates(decision),
            reference_ml=_sum_ml(lesions, np.ones(len(lesions), dtype=np.bool_)),
            predicted_ml=_sum_ml(match.candidates, decision.accepted & ~match.lost),
            n_counted=int((decision.accepted & ~match.ignored).sum()),
            case_score=self._find_highest_score(),
            has_scores=given.has_scores,
            dice=overlap.dice,
            surface_dice=overlap.surface_dice,
            hd95_mm=overlap.hd95_mm,
            splits=int(several.split.sum()),
            merges=int(several.merging.sum()),
            dice_by_label=overlap.dice_by_label,
            sides=decision.count_sides(),
            pair_ious=pair_ious,
            n_unpaired=n_unpaired,
            operating_point=point or given.operating_point,
            unit=lesions.geometry.size_unit,
            regions=regions,
            within_labels=self._compute_within_labels(operating_point),
            seconds=self.seconds + perf_counter() - begin,
            warning=given.input.warning if given.input else "",
            input_score=given.input.score if given.input else None,
            slice_spacing_mm=_find_slice_spacing(lesions.geometry),
            annotated=self.annotated,
            box_hits=self.box_hits.accept(decision.accepted),
        )

    def _compute_within_labels(self, operating_point: OperatingPoint | None) -> CaseResult | None:
        """Compute the result with each label matched separately, if labels were pooled."""
        within_labels = self.match.within_labels
        if within_labels is None:
            return None
        by_label = replace(self, match=within_labels, regions={})
        return by_label.result(operating_point, surface=False)

    def _find_highest_score(self) -> float | None:
        """Return the highest score of a candidate that is not ignored, 0 if there is none.

        Return None if the candidates have no scores.
        """
        if not self.prediction.has_scores:
            return None
        return float(self.match.scores[~self.match.ignored].max(initial=0.0))

    def _accept(self, point: OperatingPoint | None) -> _Decision:
        """Accept candidates by the score of a point or, for None, as the prediction marks them."""
        match = self.match
        accepted = np.array([c.accepted for c in self.prediction.candidates], dtype=np.bool_)
        if point is not None:
            accepted = match.scores >= point.score
        found_by, outcomes = match.decide_outcomes(accepted)
        pairs = match.overlaps
        rows = zip(pairs.candidate.tolist(), pairs.lesion.tolist(), strict=True)
        return _Decision(
            accepted=accepted,
            found_by=found_by,
            outcomes=outcomes,
            sides={rule.name: match.decide_outcomes(accepted, rule) for rule in SIDE_CRITERIA},
            iou_of=dict(zip(rows, pairs.iou.tolist(), strict=True)),
            misses=self._collect_misses(accepted, outcomes, point),
        )

    def _measure_pairs(self, decision: _Decision) -> tuple[tuple[float | None, ...], int]:
        """Return the IoU of each lesion that is found one to one, and the number left unpaired.

        The number counts accepted candidates. Panoptic quality needs both. It is defined for
        one-to-one pairs, so the preset `instances` pairs unless the rule of the case is one to one.
        """
        lesions = self.match.lesions
        found_by = decision.found_by
        if self.preset.criterion.assignment != "every_threshold":
            found_by, _ = decision.sides[INSTANCES.name]
        is_unpaired = decision.accepted & ~self.match.ignored
        is_unpaired[found_by[found_by >= 0]] = False
        ious: list[float | None] = []
        for lesion, candidate in enumerate(found_by.tolist()):
            if candidate < 0:  # the lesion is missed
                continue
            if lesions.has_voxels[lesion] and self.match.candidates.has_voxels[candidate]:
                ious.append(decision.iou_of.get((candidate, lesion), 0.0))
            else:
                ious.append(None)
        return tuple(ious), int(is_unpaired.sum())

    def _find_split_and_merged(self, accepted: NDArray[np.bool_]) -> _SplitAndMerged:
        """Find the lesions and accepted candidates that overlap several of the other side."""
        match = self.match
        pairs = match.overlaps
        n_lesions = len(match.lesions)
        counted = match.comparable & accepted[pairs.candidate]
        # a lesion or candidate that occurs in several pairs overlaps several of the other side
        split = np.bincount(pairs.lesion[counted], minlength=n_lesions) > 1
        merging = np.bincount(pairs.candidate[counted], minlength=len(match.candidates)) > 1
        merged = np.zeros(n_lesions, dtype=np.bool_)
        merged[pairs.lesion[match.comparable & merging[pairs.candidate]]] = True
        return _SplitAndMerged(split=split, merged=merged, merging=merging)

    def _describe_lesions(
        self, decision: _Decision, several: _SplitAndMerged
    ) -> tuple[LesionResult, ...]:
        """Return the lines of lesions.csv."""
        n_lesions = len(self.match.lesions)
        box_ious = self.box_pairs.best_of_lesions(decision.accepted, n_lesions)
        lines = []
        for row in range(n_lesions):
            lines.append(self._describe_lesion(row, decision, several, float(box_ious[row])))
        return tuple(lines)

    def _describe_lesion(
        self, row: int, decision: _Decision, several: _SplitAndMerged, box_iou: float
    ) -> LesionResult:
        """Return the line of the lesion in this row."""
        match = self.match
        place = _describe_place(match.lesions, row)
        size = _measure_size(match.lesions, row)
        miss = self._explain_miss(row, decision)
        finder = int(decision.found_by[row])
        is_found = finder >= 0
        candidate = None
        iou = None
        if is_found:
            candidate = int(match.candidates.ids[finder])
            # a candidate that finds the lesion by its centre need not overlap it
            iou = decision.iou_of.get((finder, row), 0.0)
        has_scores = self.prediction.has_scores
        highest_score = float(match.detected_at[row])
        is_ever_found = highest_score > NEVER
        return LesionResult(
            lesion=int(match.lesions.ids[row]),
            label=place.label,
            diameter_mm=place.diameter_mm,
            diameter_percent=place.diameter_percent,
            volume_ml=place.volume_ml,
            voxels=size.voxels,
            slices=size.slices,
            long_axis_mm=size.long_axis_mm,
            short_axis_mm=size.short_axis_mm,
            near_resolution=size.near_resolution,
            start_vox=place.start_vox,
            stop_vox=place.stop_vox,
            centre_mm=place.centre_mm,
            detected=is_found,
            detected_at=highest_score if has_scores and is_ever_found else None,
            candidate=candidate,
            iou=iou,
            any_overlap=decision.is_found_under(ANY_OVERLAP, row),
            iou50=decision.is_found_under(IOU50, row),
            centre_distance=decision.is_found_under(CENTRE_DISTANCE, row),
            iou10=decision.is_found_under(INSTANCES, row),
            why_missed=miss.why,
            split=bool(several.split[row]),
            merged=bool(several.merged[row]),
            zone=self.zones[row],
            covered=miss.covered,
            nearest_candidate=miss.candidate,
            nearest_score=miss.score if has_scores else None,
            nearest_iou=miss.iou,
            box_iou=box_iou,
        )

    def _explain_miss(self, row: int, decision: _Decision) -> Miss:
        """Explain why the lesion in this row was missed, or state that it was found."""
        if decision.found_by[row] >= 0:
            return Miss(WhyMissed.FOUND, float(decision.misses.covered_by_accepted[row]))
        if self.status == "missing":
            return Miss(WhyMissed.CASE_FAILED)
        return decision.misses.explain(row)

    def _measure_overlap(self, accepted: NDArray[np.bool_], surface: bool) -> _Overlap:
        """Compute Dice, surface Dice and HD95 of all labels together, and Dice by label.

        All are undefined without masks. Without a lesion, only Dice by label is defined.
        """
        lesions = self.match.lesions
        candidates = self.match.candidates
        if not self.match.has_masks:
            return _Overlap()
        by_label: dict[int, float] = {}
        for label in sorted({*lesions.labels.tolist(), *candidates.labels.tolist()}):
            of_label = self._compute_dice(
                lesions.labels == label, accepted & (candidates.labels == label)
            )
            if of_label is not None:
                by_label[label] = of_label
        if len(lesions) == 0:
            return _Overlap(dice_by_label=by_label)
        dice = self._compute_dice(np.ones(len(lesions), dtype=np.bool_), accepted)
        if not surface:
            return _Overlap(dice=dice, dice_by_label=by_label)
        surfaces = surface_scores(
            lesions.voxels.astype(np.int64),
            candidates.voxels[np.repeat(accepted, candidates.n_voxels)].astype(np.int64),
            lesions.geometry.spacing_mm,
            self.preset.surface_tolerance_mm,
        )
        surface_dice, hd95_mm = surfaces or (0.0, None)
        # without an accepted voxel, surface Dice is 0 and HD95 is undefined
        return _Overlap(
            dice=dice, surface_dice=surface_dice, hd95_mm=hd95_mm, dice_by_label=by_label
        )

    def _compute_dice(
        self, is_in_reference: NDArray[np.bool_], is_in_prediction: NDArray[np.bool_]
    ) -> float | None:
        """Compute the Dice of flagged lesions `[lesions]` and candidates `[n]`.

        It follows from the counted voxels, so that no mask is needed. Return None if both sides are
        empty.
        """
        pairs = self.match.overlaps
        is_counted = is_in_prediction[pairs.candidate] & is_in_reference[pairs.lesion]
        n_common = pairs.voxels[is_counted].sum()
        n_reference = self.match.lesions.n_voxels[is_in_reference].sum()
        n_predicted = self.match.candidates.n_voxels[is_in_prediction].sum()
        if n_reference + n_predicted == 0:
            return None
        return float(2 * n_common / (n_reference + n_predicted))

    def _collect_misses(
        self,
        accepted: NDArray[np.bool_],
        outcomes: Sequence[Outcome],
        point: OperatingPoint | None,
    ) -> Misses:
        """Collect the facts that explain the missed lesions if these candidates are accepted.

        Without an operating point, the lowest score of an accepted candidate is the limit.
        """
        match = self.match
        limit = point or self.prediction.operating_point
        lowest_accepted = float(match.scores[accepted].min(initial=1.0))
        least = lowest_accepted if limit is None else limit.score
        others = self.unannotated
        return Misses(
            match=match,
            accepted=accepted,
            true=np.array([outcome == "true_positive" for outcome in outcomes], dtype=np.bool_),
            least=least,
            removed=self.prediction.removed,
            unannotated=None if others is None else others.match,
            unannotated_accepted=None if others is None else others.flag_accepted(point),
        )

    def _describe_candidates(self, decision: _Decision) -> tuple[CandidateResult, ...]:
        """Return the lines of candidates.csv; `CandidateResult` explains the columns."""
        match = self.match
        candidates = match.candidates
        pairs = match.overlaps
        # at the lowest threshold of the FROC curve, all candidates are accepted
        accept_all = np.ones_like(decision.accepted)
        _, outcomes_any = match.decide_outcomes(accept_all)
        lesion_of = self._find_lesion_of_candidates(decision)
        touched = np.bincount(pairs.candidate, minlength=len(candidates)) > 0
        rows = []
        for row, (given, lesion) in enumerate(
            zip(self.prediction.candidates, lesion_of.tolist(), strict=True)
        ):
            place = _describe_place(candidates, row)
            volume_ml = place.volume_ml
            if volume_ml is None and candidates.geometry.dims == 3:
                # without its mask, a candidate still states the volume that `predict` measured
                volume_ml = given.volume_ml
            rows.append(
                CandidateResult(
                    candidate=given.id,
                    label=given.label,
                    score=given.score if self.prediction.has_scores else None,
                    probability=given.probability,
                    diameter_mm=place.diameter_mm,
                    diameter_percent=place.diameter_percent,
                    volume_ml=volume_ml,
                    start_vox=place.start_vox,
                    stop_vox=place.stop_vox,
                    centre_mm=place.centre_mm,
                    accepted=bool(decision.accepted[row]),
                    outcome=decision.outcomes[row],
                    lesion=int(match.lesions.ids[lesion]) if lesion >= 0 else None,
                    iou=decision.iou_of.get((row, lesion), 0.0) if lesion >= 0 else None,
                    touches_lesion=bool(touched[row]),
                    outcome_any=outcomes_any[row],
                    zone=given.zone,
                    in_lesions=float(decision.misses.in_lesions[row]),
                )
            )
        return tuple(rows)

    def _find_lesion_of_candidates(self, decision: _Decision) -> NDArray[np.int64]:
        """Return the row of the lesion that candidates.csv names for each candidate, −1 for none.

        It is the lesion that the candidate overlaps most, or the first of several that it overlaps
        equally. Unless candidates find lesions jointly, a candidate that finds a lesion gets this
        lesion instead.
        """
        pairs = self.match.overlaps
        is_joint = self.preset.criterion.assignment == "jointly"
        overlap = pairs.iou
        if is_joint:  # shared voxels; boxes have none, so their IoU counts
            overlap = np.where(pairs.voxels > 0, pairs.voxels, pairs.iou)
        # numpy keeps the last of several values for a candidate. Pairs are therefore assigned by
        # ascending overlap, and those of equal overlap in reverse, so that the first lesion is last
        order = np.flatnonzero(self.match.comparable)[::-1]
        order = order[np.argsort(overlap[order], kind="stable")]
        lesion_of = np.full(len(self.match.candidates), -1, dtype=np.int64)
        lesion_of[pairs.candidate[order]] = pairs.lesion[order]
        if is_joint:
            return lesion_of
        # also in reverse, so that a candidate that finds several lesions gets the first one
        found_lesions = np.flatnonzero(decision.found_by >= 0)[::-1]
        finders = decision.found_by[found_lesions]
        lesion_of[finders] = found_lesions
        return lesion_of


def match_case(
    reference: Reference,
    prediction: Prediction | None,
    preset: Preset,
    *,
    case: str,
    group: str = "",
    role: str = "",
    labels: Labels | None = None,
    zones: Zones | None = None,
) -> MatchedCase:
    """Match the prediction of one case with its reference.

    Candidates of labels that the reference does not annotate are left out.

    Args:
        reference: The lesions that a reader marked.
        prediction: The prediction on the reference's grid. If it is None, every lesion is missed.
        preset: The match rule.
        case: Id of the case.
        group: Id of the patient. If it is empty, the case is its own group.
        role: `train`, `validation`, `test`, `external`, or empty.
        labels: Labels of the dataset. If they have regions, each region is also scored separately,
            and all candidates get the label of the union.
        zones: Anatomical zones, on any grid. None leaves the zones empty.

    Returns:
        The matched case. `result` computes its numbers at an operating point.

    Raises:
        GeometryError: if the prediction is on another grid.
    """
    begin = perf_counter()
    unannotated = None
    if prediction is not None:
        if labels is not None and labels.regions:
            # regions overlap and do not divide lesions, so a candidate belongs to no single one
            prediction = prediction.with_one_label()
        _require_same_grid(case, reference.geometry, prediction.geometry)
        # they are matched separately first: one of them may explain a missed lesion
        unannotated = _match_unannotated(prediction, reference, preset)
        prediction = prediction.without_labels(reference.unannotated)
    given = _predict_nothing(case, reference.geometry) if prediction is None else prediction
    matched = match(reference, given, preset.criterion)
    zones_of_lesions: Sequence[str] = [""] * len(matched.lesions)
    if zones is not None:
        given = given.with_zones(zones.of(matched.candidates))
        zones_of_lesions = zones.of(matched.lesions)
    # Each region is scored like a case of one label. The calls get no labels and end there.
    matched_regions = {}
    for name, values in _scorable_regions(labels, prediction).items():
        matched_regions[name] = match_case(
            _cut_reference(reference, values),
            None if prediction is None else _cut_prediction(prediction, values),
            preset,
            case=case,
            group=group,
            role=role,
        )
    box_pairs = pair_boxes(matched.candidates, matched.lesions)
    ignored = matched.ignored | matched.lost
    # the maps are left out, because all cases stay in memory
    return MatchedCase(
        prediction=replace(given, instances=None, values=None),
        match=matched,
        preset=preset,
        case=case,
        group=group,
        role=role,
        status="missing" if prediction is None else "ok",
        regions=matched_regions,
        seconds=perf_counter() - begin,
        zones=zones_of_lesions,
        annotated=reference.annotated,
        box_pairs=box_pairs,
        box_hits=find_hits(matched.candidates, box_pairs, matched.scores, ignored),
        unannotated=unannotated,
    )


def _require_same_grid(case: str, grid: Geometry, other: Geometry) -> None:
    """Raise `GeometryError` if a prediction is not on the grid of its reference."""
    if not grid.matches(other, _GRID_TOLERANCE * min(grid.spacing_mm)):
        raise GeometryError(
            f"Case {case}: the prediction {other.describe()} is not on the grid of its "
            f"reference {grid.describe()}: {grid.describe_difference(other)}. Resample it "
            "onto the reference's grid."
        )


def _predict_nothing(case: str, geometry: Geometry) -> Prediction:
    """Return a prediction without candidates for a case whose prediction is missing."""
    return Prediction(case, geometry, (), np.zeros(geometry.shape, dtype=np.int32))


def _scorable_regions(
    labels: Labels | None, prediction: Prediction | None
) -> dict[str, tuple[int, ...]]:
    """Return the mask values of the regions that are scored separately, by their names.

    There are none if the labels are not regions. There are none either for boxes and bare masks,
    because these do not say which region a voxel belongs to.
    """
    if labels is None or not labels.regions:
        return {}
    if prediction is not None and prediction.values is None:
        return {}
    return dict(zip(labels.names, labels.regions, strict=True))


def _match_unannotated(
    prediction: Prediction, reference: Reference, preset: Preset
) -> Unannotated | None:
    """Match the candidates whose labels the reference does not annotate; None if there are none."""
    annotated = {c.label for c in prediction.candidates} - set(reference.unannotated)
    unannotated = prediction.without_labels(sorted(annotated))
    if not unannotated.candidates:
        return None
    return Unannotated(unannotated.candidates, match(reference, unannotated, preset.criterion))


def _find_slice_spacing(geometry: Geometry) -> float | None:
    """Return the largest spacing of a volume, rounded to 0.1 mm; None for an image of two axes."""
    return round(max(geometry.spacing_mm), 1) if geometry.dims == 3 else None


def _describe_place(instances: Lesions, row: int) -> _Place:
    """Return the fields that a lesion and a candidate have in common."""
    box = instances.boxes[row]
    grid = instances.geometry
    dims = grid.dims
    diameter_mm = float(instances.diameters_mm[row])
    width_mm = grid.shape[-1] * grid.spacing_mm[-1]
    return _Place(
        label=int(instances.labels[row]),
        diameter_mm=diameter_mm,
        diameter_percent=100 * diameter_mm / width_mm if dims == 2 else None,
        volume_ml=instances.volume_ml(row),
        start_vox=tuple(box[:dims].tolist()),
        stop_vox=tuple(box[dims:].tolist()),
        centre_mm=tuple(instances.centres_mm[row].tolist()),
    )


def _measure_size(lesions: Lesions, row: int) -> _Size:
    """Measure a lesion by its voxels, or by its box if it has none."""
    n_voxels = int(lesions.n_voxels[row])
    dims = lesions.geometry.dims
    if n_voxels:
        voxels = lesions.voxels_of(row).astype(np.int64)
        extent = measure_extent(voxels, lesions.geometry.spacing_mm)
        return _Size(
            voxels=n_voxels,
            slices=extent.slices,
            long_axis_mm=extent.long_axis_mm,
            short_axis_mm=extent.short_axis_mm,
            near_resolution=extent.near_resolution,
        )
    sides = lesions.boxes[row][dims:] - lesions.boxes[row][:dims]
    return _Size(near_resolution=float(np.prod(sides)) < NEAR_RESOLUTION_VOXELS)


def _sum_ml(instances: Lesions, rows: NDArray[np.bool_]) -> float | None:
    """Sum the volumes of some rows; None in 2-D, or if one of them has no voxels."""
    if instances.geometry.dims == 2 or not instances.has_voxels[rows].all():
        return None
    return int(instances.n_voxels[rows].sum()) * instances.geometry.voxel_size / 1000


def _cut_reference(reference: Reference, values: Sequence[int]) -> Reference:
    """Return the lesions of a region, which are the connected components of its mask values."""
    if reference.labels is None:
        return Reference(reference.geometry, ignore=reference.ignore)
    inside = np.isin(reference.labels, values).astype(np.uint8)
    instances, labels = lesion_instances(inside)
    return Reference(
        reference.geometry,
        labels=inside,
        instances=instances,
        instance_labels=labels,
        ignore=reference.ignore,
    )


def _cut_prediction(prediction: Prediction, values: Sequence[int]) -> Prediction | None:
    """Cut the candidates to the mask values of a region, and leave out those without such voxels.

    Return None if the prediction has no mask values.
    """
    if prediction.values is None or prediction.instances is None:
        return None
    inside = np.isin(prediction.values, values)
    instances = np.where(inside, prediction.instances, 0)
    present = set(np.unique(instances).tolist())
    kept = tuple(c for c in prediction.with_one_label().candidates if c.id in present)
    return replace(prediction, candidates=kept, instances=instances, values=None)
