"""One case: reference and prediction in, every number of the case out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    UNION,
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
from lesionseg.evaluation.criteria import INSTANCES, SIDE_CRITERIA, Preset
from lesionseg.evaluation.matching import NEVER, Match, Outcome, match
from lesionseg.evaluation.measures import NEAR_RESOLUTION_VOXELS, measure_extent, surface_scores
from lesionseg.evaluation.missed import Miss, Misses, WhyMissed
from lesionseg.ops.components import lesion_instances

# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05
REGION_LABEL = next(iter(UNION))
IoUs = Mapping[tuple[int, int], float]  # of rows of a candidate and a lesion that overlap


@dataclass(frozen=True, slots=True)
class LesionResult:
    """One reference lesion and whether it was found; a line of lesions.csv.

    `voxels`, `slices` and the axes are None for a bare box, `volume_ml` also in 2-D. `candidate`
    and `iou` are those of the match at the operating point. `detected_at` is the highest score at
    which the lesion is found, None when it never is or candidates have no scores. `any_overlap`,
    `iou50`, `centre_distance` and `iou10`: found under the side criteria at the operating point.
    `why_missed`: empty for a found lesion. `covered`: the share of the lesion that the accepted
    candidates cover together or, if none of them touches it, all retained ones. Of a missed lesion,
    `nearest_candidate`, `nearest_score` and `nearest_iou` belong to the candidate that
    `why_missed` concerns, as in `Miss`. `split`: several accepted candidates overlap it; `merged`:
    one of them overlaps another lesion too. `zone`: the anatomical zone, empty if the evaluation
    has none.
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
    iou10: bool
    why_missed: WhyMissed
    split: bool = False
    merged: bool = False
    zone: str = ""
    covered: float = 0.0
    nearest_candidate: int | None = None
    nearest_score: float | None = None
    nearest_iou: float | None = None


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate and what became of it; a line of candidates.csv.

    `outcome` at the operating point; `outcome_any` when all retained candidates count (the FROC's
    view). `lesion` and `iou`: the lesion of its pair, else the one that it overlaps most.
    `touches_lesion`: overlaps some lesion, of whatever label. `in_lesions`: the share of the
    candidate that is located in lesions.
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
    in_lesions: float = 0.0


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One evaluated case; a line of cases.csv.

    `dice`, `surface_dice` and `hd95_mm` are None where docs/evaluation.md says so. `dice_by_label`
    is empty where there are no masks to compare. `sides`: lesions found and false positives under
    each side criterion. `pair_ious`: of each lesion found one to one, None without both masks, and
    `n_unpaired`: detections of no such pair: what panoptic quality is of. `splits`: lesions
    overlapped by several accepted candidates; `merges`: accepted candidates that overlap several
    lesions. `case_score`: the highest candidate's that is not ignored, 0 without one, None without
    scores. `scored`: whether candidates have scores. `unit`: what lengths are, "mm", "mm at the
    detector" or, without a pixel size, "px". `regions`: each region by name, by itself.
    `within_labels`: the same case with each label by itself, where labels are pooled and there are
    several. `slice_spacing_mm`: the largest spacing of a volume's voxels, to 0.1 mm. `annotated`:
    as in `core.Reference`; what was not has neither lesions nor candidates here.
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
    case_score: float | None
    scored: bool
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

    @property
    def annotated_share(self) -> float:
        """As much of a scan it counts in rates: the share of the labels that a reader looked for.

        0 without a prediction: what failed raises no false alarm.
        """
        if self.status == "missing":
            return 0.0
        return sum(self.annotated.values()) / len(self.annotated) if self.annotated else 1.0

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
        """Volume of the false positives; None in 2-D, and with one that is a bare box."""
        false = [c.volume_ml for c in self.candidates if c.outcome == "false_positive"]
        known = [volume for volume in false if volume is not None]
        return None if self.dims == 2 or len(known) < len(false) else sum(known, 0.0)


@dataclass(frozen=True, eq=False)
class Unannotated:
    """The candidates whose labels the reference does not annotate, matched with its lesions.

    They count nowhere. They only explain why a lesion was missed.
    """

    candidates: tuple[Candidate, ...]
    match: Match

    def decide(self, by_id: Mapping[int, Candidate]) -> "Unannotated":
        """Return the same with the flags of other candidates of the same ids."""
        return replace(self, candidates=tuple(by_id[c.id] for c in self.candidates))

    def accepted(self, point: OperatingPoint | None) -> NDArray[np.bool_]:
        """Return the flags `[n]`: by the score of a point or, without one, as the files state."""
        if point is not None:
            return np.asarray(self.match.scores >= point.score)
        return np.array([c.accepted for c in self.candidates], dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class MatchedCase:
    """A case whose candidates were matched with its lesions, once, whichever are accepted.

    It holds no volume, so that the cases of a dataset fit into memory together: `prediction` has
    the candidates alone. `zones` are the lesions'. `regions`: each region by itself. `annotated`:
    as in `core.Reference`. `unannotated`: None if the reference annotates all labels. The rest:
    see `match_case`.
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
    unannotated: "Unannotated | None" = None

    @property
    def geometry(self) -> Geometry:
        """The grid of the reference."""
        return self.match.lesions.geometry

    def decide(self, prediction: Prediction) -> "MatchedCase":
        """Return the match with the flags, probabilities and operating point of `prediction`.

        It has the candidates that were matched. Nothing is matched again.
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
        unannotated = self.unannotated and self.unannotated.decide(by_id)
        return replace(self, prediction=decided, regions=regions, unannotated=unannotated)

    def result(
        self, operating_point: OperatingPoint | None = None, *, surface: bool = True
    ) -> CaseResult:
        """Compute every number of the case.

        Candidates of at least the operating point's score are accepted; without a point, or
        without scores, those that the prediction marks as accepted. Without `surface` the distances
        between surfaces are left out: they take the longest, and nothing is chosen by them.
        """
        begin = perf_counter()
        given, match = self.prediction, self.match
        lesions, candidates = match.lesions, match.candidates
        point = operating_point if given.scored else None  # a score is never invented
        accepted = np.array([c.accepted for c in given.candidates], dtype=np.bool_)
        if point is not None:
            accepted = match.scores >= point.score
        found_by, outcomes = match.of_accepted(accepted)
        sides = {rule.name: match.of_accepted(accepted, rule) for rule in SIDE_CRITERIA}
        sides_of: list[dict[str, Any]] = [
            {name: bool(by[row] >= 0) for name, (by, _) in sides.items()}
            for row in range(len(lesions))
        ]
        joint = self.preset.criterion.assignment == "jointly"
        pairs_of = sides[INSTANCES.name][0] if joint else found_by
        unpaired = accepted & ~match.ignored
        unpaired[pairs_of[pairs_of >= 0]] = False
        pairs = match.overlaps
        ends = zip(pairs.candidate.tolist(), pairs.lesion.tolist(), strict=True)
        iou_of: IoUs = dict(zip(ends, pairs.iou.tolist(), strict=True))
        masked = (
            lesions.has_voxels & candidates.has_voxels[pairs_of]
            if len(candidates)
            else lesions.has_voxels
        )
        several = match.comparable & accepted[pairs.candidate]
        split = np.bincount(pairs.lesion[several], minlength=len(lesions)) > 1
        merging = np.bincount(pairs.candidate[several], minlength=len(candidates)) > 1
        merged = np.zeros(len(lesions), dtype=np.bool_)
        merged[pairs.lesion[match.comparable & merging[pairs.candidate]]] = True
        misses = self._misses(accepted, outcomes, point)
        rows = []
        for row, by in enumerate(found_by.tolist()):
            at = float(match.detected_at[row])
            if by >= 0:
                miss = Miss(WhyMissed.FOUND, float(misses.covered_by_accepted[row]))
            elif self.status == "missing":
                miss = Miss(WhyMissed.CASE_FAILED)
            else:
                miss = misses.explain(row)
            rows.append(
                LesionResult(
                    lesion=int(lesions.ids[row]),
                    **_place(lesions, row),
                    **_extent(lesions, row),
                    detected=by >= 0,
                    detected_at=at if given.scored and at > NEVER else None,
                    candidate=int(candidates.ids[by]) if by >= 0 else None,
                    iou=iou_of.get((by, row), 0.0) if by >= 0 else None,
                    **sides_of[row],
                    why_missed=miss.why,
                    split=bool(split[row]),
                    merged=bool(merged[row]),
                    zone=self.zones[row],
                    covered=miss.covered,
                    nearest_candidate=miss.candidate,
                    nearest_score=miss.score if given.scored else None,
                    nearest_iou=miss.iou,
                )
            )
        return CaseResult(
            case=self.case,
            group=self.group or self.case,
            role=self.role,
            status=self.status,
            dims=lesions.geometry.dims,
            lesions=tuple(rows),
            candidates=self._candidates(accepted, found_by, outcomes, iou_of, misses.in_lesions),
            **self._overlap(accepted, surface),
            reference_ml=_summed_ml(lesions, np.ones(len(lesions), dtype=np.bool_)),
            predicted_ml=_summed_ml(candidates, accepted & ~match.lost),
            case_score=float(match.scores[~match.ignored].max(initial=0.0))
            if given.scored
            else None,
            scored=given.scored,
            splits=int(split.sum()),
            merges=int(merging.sum()),
            sides={
                name: (int((by >= 0).sum()), became.count("false_positive"))
                for name, (by, became) in sides.items()
            },
            pair_ious=tuple(
                iou_of.get((by, row), 0.0) if masked[row] else None
                for row, by in enumerate(pairs_of.tolist())
                if by >= 0
            ),
            n_unpaired=int(unpaired.sum()),
            operating_point=point or given.operating_point,
            unit=lesions.geometry.size_unit,
            regions={
                name: part.result(operating_point, surface=surface)
                for name, part in self.regions.items()
            },
            within_labels=None
            if match.within_labels is None
            else replace(self, match=match.within_labels, regions={}).result(
                operating_point, surface=False
            ),
            seconds=self.seconds + perf_counter() - begin,
            warning=given.input.warning if given.input else "",
            input_score=given.input.score if given.input else None,
            slice_spacing_mm=round(max(lesions.geometry.spacing_mm), 1)
            if lesions.geometry.dims == 3
            else None,
            annotated=self.annotated,
        )

    def _overlap(self, accepted: NDArray[np.bool_], surface: bool) -> dict[str, Any]:
        """Compute Dice, surface Dice and HD95 of all labels together, and Dice by label."""
        lesions, candidates, pairs = self.match.lesions, self.match.candidates, self.match.overlaps
        if not self.match.has_masks:
            return {}

        def dice(of_lesion: NDArray[np.bool_], of_candidate: NDArray[np.bool_]) -> float | None:
            both = of_candidate[pairs.candidate] & of_lesion[pairs.lesion]
            sizes = lesions.n_voxels[of_lesion].sum() + candidates.n_voxels[of_candidate].sum()
            return float(2 * pairs.voxels[both].sum() / sizes) if sizes else None

        labels = sorted({*lesions.labels.tolist(), *candidates.labels.tolist()})
        by_label = (
            (label, dice(lesions.labels == label, accepted & (candidates.labels == label)))
            for label in labels
        )
        found: dict[str, Any] = {
            "dice_by_label": {label: value for label, value in by_label if value is not None}
        }
        if len(lesions) == 0:
            return found
        found["dice"] = dice(np.ones(len(lesions), dtype=np.bool_), accepted)
        if surface:
            surfaces = surface_scores(
                lesions.voxels.astype(np.int64),
                candidates.voxels[np.repeat(accepted, candidates.n_voxels)].astype(np.int64),
                lesions.geometry.spacing_mm,
                self.preset.surface_tolerance_mm,
            )
            # a missed case counts 0
            found["surface_dice"], found["hd95_mm"] = surfaces or (0.0, None)
        return found

    def _misses(
        self,
        accepted: NDArray[np.bool_],
        outcomes: Sequence[Outcome],
        point: OperatingPoint | None,
    ) -> Misses:
        """Return what explains the missed lesions when some candidates are accepted."""
        match, limit = self.match, point or self.prediction.operating_point
        least = limit.score if limit else float(match.scores[accepted].min(initial=1.0))
        others = self.unannotated
        return Misses(
            match,
            accepted,
            np.array([outcome == "true_positive" for outcome in outcomes], dtype=np.bool_),
            least,
            self.prediction.removed,
            None if others is None else others.match,
            None if others is None else others.accepted(point),
        )

    def _candidates(
        self,
        accepted: NDArray[np.bool_],
        found_by: NDArray[np.int64],
        outcomes: Sequence[Outcome],
        iou_of: IoUs,
        in_lesions: NDArray[np.float64],
    ) -> tuple[CandidateResult, ...]:
        match, candidates, pairs = self.match, self.match.candidates, self.match.overlaps
        dims = candidates.geometry.dims
        _, outcomes_any = match.of_accepted(np.ones_like(accepted))
        joint = self.preset.criterion.assignment == "jointly"
        # the lesion that it overlaps most, the first of equals; of its pair where there are pairs
        lesion_of = np.full(len(candidates), -1, dtype=np.int64)
        measure = np.where(pairs.voxels > 0, pairs.voxels, pairs.iou) if joint else pairs.iou
        order = np.flatnonzero(match.comparable)[::-1]
        order = order[np.argsort(measure[order], kind="stable")]
        lesion_of[pairs.candidate[order]] = pairs.lesion[order]
        if not joint:
            found = np.flatnonzero(found_by >= 0)[::-1]
            lesion_of[found_by[found]] = found
        touched = np.bincount(pairs.candidate, minlength=len(candidates)) > 0
        rows = []
        for row, (given, lesion) in enumerate(
            zip(self.prediction.candidates, lesion_of.tolist(), strict=True)
        ):
            place = _place(candidates, row)
            if place["volume_ml"] is None and dims == 3:
                place["volume_ml"] = given.volume_ml
            rows.append(
                CandidateResult(
                    candidate=given.id,
                    **place | {"label": given.label},
                    score=given.score if self.prediction.scored else None,
                    probability=given.probability,
                    accepted=bool(accepted[row]),
                    outcome=outcomes[row],
                    lesion=int(match.lesions.ids[lesion]) if lesion >= 0 else None,
                    iou=iou_of.get((row, lesion), 0.0) if lesion >= 0 else None,
                    touches_lesion=bool(touched[row]),
                    outcome_any=outcomes_any[row],
                    zone=given.zone,
                    in_lesions=float(in_lesions[row]),
                )
            )
        return tuple(rows)


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

    Candidates of labels that the reference does not annotate are left out. Raises `GeometryError`
    for a prediction on another grid.

    Args:
        reference: the lesions that a reader marked.
        prediction: on the reference's grid; None where there is none: every lesion is missed.
        preset: the match rule.
        case: the case's id.
        group: its patient; the case itself where nothing is known.
        role: `train`, `validation`, `test`, `external` or nothing.
        labels: the dataset's. If they have regions, each is scored by itself too, and all
            candidates have the label of their union.
        zones: anatomical zones, on any grid; None: lesions and candidates are in none.
    """
    begin = perf_counter()
    unannotated = None
    if prediction is not None:
        if labels is not None and labels.regions:
            prediction = _as_union(prediction)
        grid, other = reference.geometry, prediction.geometry
        if not grid.matches(other, _GRID_TOLERANCE * min(grid.spacing_mm)):
            raise GeometryError(
                f"Case {case}: the prediction {describe_grid(other)} is not on the grid of its "
                f"reference {describe_grid(grid)}: {grid.describe_difference(other)}. Resample it "
                "onto the reference's grid."
            )
        unannotated = _unannotated(prediction, reference, preset)
        prediction = prediction.without_labels(reference.unannotated)
    empty = np.zeros(reference.geometry.shape, dtype=np.int32)
    given = prediction or Prediction(case, reference.geometry, (), empty)
    matched = match(reference, given, preset.criterion)
    if zones is not None:
        within = zip(given.candidates, zones.of(matched.candidates), strict=True)
        given = replace(given, candidates=tuple(replace(c, zone=zone) for c, zone in within))
    regions: dict[str, tuple[int, ...]] = {}
    # boxes and bare masks do not say which region a voxel belongs to
    has_values = prediction is None or prediction.values is not None
    if labels is not None and labels.regions and has_values:
        regions = dict(zip(labels.names, labels.regions, strict=True))
    return MatchedCase(
        replace(given, instances=None, values=None),
        matched,
        preset,
        case,
        group,
        role,
        status="missing" if prediction is None else "ok",
        regions={
            name: match_case(
                _reference_of(reference, values),
                None if prediction is None else _prediction_of(prediction, values),
                preset,
                case=case,
                group=group,
                role=role,
            )
            for name, values in regions.items()
        },
        seconds=perf_counter() - begin,
        zones=zones.of(matched.lesions) if zones else [""] * len(matched.lesions),
        annotated=reference.annotated,
        unannotated=unannotated,
    )


def _unannotated(
    prediction: Prediction, reference: Reference, preset: Preset
) -> Unannotated | None:
    """Match the candidates whose labels a reference does not annotate; None without any."""
    labels = {candidate.label for candidate in prediction.candidates}
    others = prediction.without_labels([x for x in labels if x not in reference.unannotated])
    if not others.candidates:
        return None
    return Unannotated(others.candidates, match(reference, others, preset.criterion))


def describe_grid(geometry: Geometry) -> str:
    """Describe shape, spacing and place (RAS) of a grid in the order of files, x first."""
    origin = tuple(float(x) for x in geometry.affine[:-1, -1].round(3))
    spacing = tuple(round(s, 4) for s in reversed(geometry.spacing_mm))
    shape = tuple(reversed(geometry.shape))
    return f"of shape {shape}, spacing {spacing} mm, first voxel at {origin} mm"


def _place(instances: Lesions, row: int) -> dict[str, Any]:
    box, dims = instances.boxes[row], instances.geometry.dims
    return {
        "label": int(instances.labels[row]),
        "diameter_mm": float(instances.diameters_mm[row]),
        "volume_ml": instances.volume_ml(row),
        "start_vox": tuple(box[:dims].tolist()),
        "stop_vox": tuple(box[dims:].tolist()),
        "centre_mm": tuple(instances.centres_mm[row].tolist()),
    }


def _extent(lesions: Lesions, row: int) -> dict[str, Any]:
    n_voxels, dims = int(lesions.n_voxels[row]), lesions.geometry.dims
    if n_voxels:
        voxels = lesions.voxels_of(row).astype(np.int64)
        return {"voxels": n_voxels, **vars(measure_extent(voxels, lesions.geometry.spacing_mm))}
    sides = lesions.boxes[row][dims:] - lesions.boxes[row][:dims]
    bare = dict.fromkeys(("voxels", "slices", "long_axis_mm", "short_axis_mm"))
    return {**bare, "near_resolution": float(np.prod(sides)) < NEAR_RESOLUTION_VOXELS}


def _summed_ml(instances: Lesions, rows: NDArray[np.bool_]) -> float | None:
    if instances.geometry.dims == 2 or not instances.has_voxels[rows].all():
        return None
    return int(instances.n_voxels[rows].sum()) * instances.geometry.voxel_size / 1000


def _as_union(prediction: Prediction) -> Prediction:
    candidates = tuple(replace(c, label=REGION_LABEL) for c in prediction.candidates)
    return replace(prediction, candidates=candidates)


def _reference_of(reference: Reference, values: Sequence[int]) -> Reference:
    """Return the lesions of a region: the connected components of its mask values."""
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


def _prediction_of(prediction: Prediction, values: Sequence[int]) -> Prediction | None:
    """Cut the candidates to a region's mask values; those without such voxels are left out.

    Return None if the prediction has no mask values.
    """
    if prediction.values is None or prediction.instances is None:
        return None
    inside = np.isin(prediction.values, values)
    instances = np.where(inside, prediction.instances, 0)
    present = set(np.unique(instances).tolist())
    kept = tuple(c for c in _as_union(prediction).candidates if c.id in present)
    return replace(prediction, candidates=kept, instances=instances, values=None)
