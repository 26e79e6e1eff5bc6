"""Match the prediction of one case with its reference, and write the rows of the three tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

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
from lesionseg.evaluation.box_precision import BoxPairs, encode_hits, pair_boxes
from lesionseg.evaluation.criteria import INSTANCES, SIDE_CRITERIA, Criterion, Preset
from lesionseg.evaluation.matching import Match, Outcome, match
from lesionseg.evaluation.measures import NEAR_RESOLUTION_VOXELS, measure_extent, surface_scores
from lesionseg.evaluation.missed import Miss, Misses, WhyMissed
from lesionseg.evaluation.tables import (
    BY_LABEL,
    MISSING,
    NEVER,
    POOLED,
    CaseRows,
    Row,
    region_part,
)
from lesionseg.ops.components import lesion_instances

# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05
IoUs = Mapping[tuple[int, int], float]  # IoU by the rows of an overlapping candidate and lesion


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
        split: True for lesions `[lesions]` that several accepted candidates overlap.
        merged: True for lesions `[lesions]` that share an accepted candidate with another lesion.
        merging: True for accepted candidates `[n]` that overlap several lesions.
    """

    accepted: NDArray[np.bool_]
    found_by: NDArray[np.int64]
    outcomes: Sequence[Outcome]
    sides: Mapping[Criterion, tuple[NDArray[np.int64], list[Outcome]]]
    iou_of: IoUs
    misses: Misses
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
        status: `MISSING` if the case has no prediction, otherwise ok.
        regions: The matched case of each region by its name.
        seconds: Time of matching.
        zones: The anatomical zone of each lesion, empty if it has none.
        annotated: As in `core.Reference`.
        box_pairs: The pairs of bounding boxes.
        box_hits: The column `box_hits` of the candidates.
        unannotated: The candidates of labels that the reference does not annotate. None without
            such candidates.
    """

    prediction: Prediction
    match: Match
    preset: Preset
    case: str
    group: str
    role: str
    status: str
    regions: Mapping[str, "MatchedCase"]
    seconds: float
    zones: Sequence[str]
    annotated: Mapping[int, bool]
    box_pairs: BoxPairs
    box_hits: Sequence[int | None]
    unannotated: Unannotated | None = None

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

    def rows(
        self, operating_point: OperatingPoint | None = None, *, surface: bool = True
    ) -> CaseRows:
        """Return the rows of the tables, which contain every number of the case.

        Args:
            operating_point: Candidates with at least its score are accepted. If it is None, or if
                the candidates have no scores, those that the prediction marks are accepted.
            surface: False leaves out surface Dice and HD95, which take the most time. The choice of
                an operating point does not need them.
        """
        begin = perf_counter()
        # a score is never invented
        point = operating_point if self.prediction.has_scores else None
        by_label = self.match.within_labels
        decision = self._accept(point)
        own: Row = {"case": self.case, "group": self.group or self.case, "part": ""}
        case = own | self._describe_case(decision)
        case |= self._measure_overlap(decision.accepted, surface)
        case["operating_point"] = point or self.prediction.operating_point
        found = CaseRows([case])
        for label, dice in self._measure_dice_by_label(decision.accepted).items():
            found.cases.append({**own, "part": BY_LABEL, "label": label, "dice": dice})
        self._add_items(found, decision, own | {"part": "" if by_label is None else POOLED})
        if by_label is not None:
            separate = replace(self, match=by_label)
            separate._add_items(found, separate._accept(point), own | {"part": BY_LABEL})
        for name, region in self.regions.items():
            found.add(region.rows(operating_point, surface=surface), part=region_part(name))
        case["seconds"] = round(self.seconds + perf_counter() - begin, 4)
        return found

    def _add_items(self, found: CaseRows, decision: _Decision, own: Row) -> None:
        """Add the rows of the lesions and candidates, each with the cells `own`."""
        found.lesions.extend(own | row for row in self._describe_lesions(decision))
        found.candidates.extend(own | row for row in self._describe_candidates(decision))

    def _describe_case(self, decision: _Decision) -> Row:
        """Return the row of the case, without the agreement of masks."""
        match = self.match
        lesions = match.lesions
        given = self.prediction
        n_lesions = len(lesions)
        n_detected = int((decision.found_by >= 0).sum())
        false_by_criterion = {
            f"n_false_{rule.name}": outcomes.count("false_positive")
            for rule, (_, outcomes) in decision.sides.items()
        }
        return {
            "role": self.role,
            "status": self.status,
            "n_lesions": n_lesions,
            "n_candidates": len(match.candidates),
            "n_detected": n_detected,
            "n_missed": n_lesions - n_detected,
            "n_false_positive": decision.outcomes.count("false_positive"),
            "n_ignored": decision.outcomes.count("ignored"),
            "reference_ml": _sum_ml(lesions, np.ones(n_lesions, dtype=np.bool_)),
            "predicted_ml": _sum_ml(match.candidates, decision.accepted & ~match.lost),
            "false_positive_ml": self._sum_false_positives(decision),
            "splits": int(decision.split.sum()),
            "merges": int(decision.merging.sum()),
            "case_score": self._find_highest_score(),
            "warning": given.input.warning if given.input else "",
            "input_score": given.input.score if given.input else None,
            "slice_spacing_mm": _find_slice_spacing(lesions.geometry),
            "annotated_share": self._annotated_share,
            "message": "",
            "axes": lesions.geometry.dims,
            "size_unit": lesions.geometry.size_unit,
            "n_counted": int((decision.accepted & ~match.ignored).sum()),
            "unannotated": [label for label, known in self.annotated.items() if not known],
            **self._measure_pairs(decision),
            **false_by_criterion,
        }

    @property
    def _annotated_share(self) -> float:
        """The share of the labels that a reader looked for. Rates count the case by this share.

        It is 0 if the case has no prediction, because such a case cannot have false positives.
        """
        if self.status == MISSING:
            return 0.0
        if not self.annotated:  # without a statement, the reader looked for all labels
            return 1.0
        return sum(self.annotated.values()) / len(self.annotated)

    def _sum_false_positives(self, decision: _Decision) -> float | None:
        """Return the volume of the false positives. None in 2-D, or if one has no volume."""
        volumes = [
            self._measure_volume(row)
            for row, outcome in enumerate(decision.outcomes)
            if outcome == "false_positive"
        ]
        if None in volumes or self.geometry.dims == 2:
            return None
        total_ml = 0.0
        for volume_ml in volumes:
            total_ml += volume_ml or 0.0
        return total_ml

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
        accepted = _flag_accepted(self.prediction.candidates, match, point)
        found_by, outcomes = match.decide_outcomes(accepted)
        pairs = match.overlaps
        rows = zip(pairs.candidate.tolist(), pairs.lesion.tolist(), strict=True)
        split, merged, merging = self._find_split_and_merged(accepted)
        return _Decision(
            accepted=accepted,
            found_by=found_by,
            outcomes=outcomes,
            sides={rule: match.decide_outcomes(accepted, rule) for rule in SIDE_CRITERIA},
            iou_of=dict(zip(rows, pairs.iou.tolist(), strict=True)),
            misses=self._collect_misses(accepted, outcomes, point),
            split=split,
            merged=merged,
            merging=merging,
        )

    def _measure_pairs(self, decision: _Decision) -> Row:
        """Measure the lesions that are found one to one, as panoptic quality needs them.

        The preset `instances` pairs lesions and candidates, unless the rule of the case is one to
        one.
        """
        lesions = self.match.lesions
        found_by = decision.found_by
        if self.preset.criterion.assignment != "every_threshold":
            found_by, _ = decision.sides[INSTANCES]
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
        return {
            "n_pairs": len(ious),
            "pair_iou": None if None in ious else float(sum(one or 0.0 for one in ious)),
            "n_unpaired": int(is_unpaired.sum()),
        }

    def _find_split_and_merged(
        self, accepted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Find the lesions and accepted candidates that overlap several of the other side.

        Return the flags `split`, `merged` and `merging` of `_Decision`.
        """
        match = self.match
        pairs = match.overlaps
        n_lesions = len(match.lesions)
        counted = match.comparable & accepted[pairs.candidate]
        # a lesion or candidate that occurs in several pairs overlaps several of the other side
        split = np.bincount(pairs.lesion[counted], minlength=n_lesions) > 1
        merging = np.bincount(pairs.candidate[counted], minlength=len(match.candidates)) > 1
        merged = np.zeros(n_lesions, dtype=np.bool_)
        merged[pairs.lesion[match.comparable & merging[pairs.candidate]]] = True
        return split, merged, merging

    def _describe_lesions(self, decision: _Decision) -> Iterator[Row]:
        """Yield the row of each lesion."""
        match = self.match
        has_scores = self.prediction.has_scores
        n_lesions = len(match.lesions)
        box_ious = self.box_pairs.best_of_lesions(decision.accepted, n_lesions)
        for row in range(n_lesions):
            miss = self._explain_miss(row, decision)
            finder = int(decision.found_by[row])
            is_found = finder >= 0
            highest_score = float(match.detected_at[row])
            is_ever_found = highest_score > NEVER
            found_by_criterion = {
                rule.name: bool(found_by[row] >= 0)
                for rule, (found_by, _) in decision.sides.items()
            }
            yield {
                "lesion": int(match.lesions.ids[row]),
                **_describe_place(match.lesions, row),
                "volume_ml": match.lesions.volume_ml(row),
                **_measure_size(match.lesions, row),
                "detected": is_found,
                "detected_at": highest_score if has_scores and is_ever_found else None,
                "candidate": int(match.candidates.ids[finder]) if is_found else None,
                # a candidate that finds the lesion by its centre need not overlap it
                "iou": decision.iou_of.get((finder, row), 0.0) if is_found else None,
                **found_by_criterion,
                "why_missed": str(miss.why),
                "split": bool(decision.split[row]),
                "merged": bool(decision.merged[row]),
                "zone": self.zones[row],
                "covered": miss.covered,
                "nearest_candidate": miss.candidate,
                "nearest_score": miss.score if has_scores else None,
                "nearest_iou": miss.iou,
                "box_iou": float(box_ious[row]),
            }

    def _explain_miss(self, row: int, decision: _Decision) -> Miss:
        """Explain why the lesion in this row was missed, or state that it was found."""
        if decision.found_by[row] >= 0:
            return Miss(WhyMissed.FOUND, float(decision.misses.covered_by_accepted[row]))
        if self.status == MISSING:
            return Miss(WhyMissed.CASE_FAILED)
        return decision.misses.explain(row)

    def _measure_dice_by_label(self, accepted: NDArray[np.bool_]) -> dict[int, float]:
        """Compute the Dice of each label that the case has. It is empty without masks."""
        lesions = self.match.lesions.labels
        candidates = self.match.candidates.labels
        by_label: dict[int, float] = {}
        if not self.match.has_masks:
            return by_label
        for label in sorted({*lesions.tolist(), *candidates.tolist()}):
            dice = self._compute_dice(lesions == label, accepted & (candidates == label))
            if dice is not None:
                by_label[label] = dice
        return by_label

    def _measure_overlap(self, accepted: NDArray[np.bool_], surface: bool) -> Row:
        """Compute Dice, surface Dice and HD95 of all labels together.

        They are undefined without masks and without a lesion.
        """
        lesions = self.match.lesions
        candidates = self.match.candidates
        if not self.match.has_masks or len(lesions) == 0:
            return {}
        dice = self._compute_dice(np.ones(len(lesions), dtype=np.bool_), accepted)
        if not surface:
            return {"dice": dice}
        surfaces = surface_scores(
            lesions.voxels.astype(np.int64),
            candidates.voxels[np.repeat(accepted, candidates.n_voxels)].astype(np.int64),
            lesions.geometry.spacing_mm,
            self.preset.surface_tolerance_mm,
        )
        surface_dice, hd95_mm = surfaces or (0.0, None)
        # without an accepted voxel, surface Dice is 0 and HD95 is undefined
        return {"dice": dice, "surface_dice": surface_dice, "hd95_mm": hd95_mm}

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
        others_accepted = None
        if others is not None:
            others_accepted = _flag_accepted(others.candidates, others.match, point)
        return Misses(
            match=match,
            accepted=accepted,
            true=np.array([outcome == "true_positive" for outcome in outcomes], dtype=np.bool_),
            least=least,
            removed=self.prediction.removed,
            unannotated=None if others is None else others.match,
            unannotated_accepted=others_accepted,
        )

    def _describe_candidates(self, decision: _Decision) -> Iterator[Row]:
        """Yield the row of each candidate."""
        match = self.match
        pairs = match.overlaps
        # at the lowest threshold of the FROC curve, all candidates are accepted
        accept_all = np.ones_like(decision.accepted)
        _, outcomes_any = match.decide_outcomes(accept_all)
        lesion_of = self._find_lesion_of_candidates(decision).tolist()
        touched = np.bincount(pairs.candidate, minlength=len(match.candidates)) > 0
        for row, given in enumerate(self.prediction.candidates):
            lesion = lesion_of[row]
            yield {
                "candidate": given.id,
                **_describe_place(match.candidates, row),
                "score": given.score if self.prediction.has_scores else None,
                "probability": given.probability,
                "volume_ml": self._measure_volume(row),
                "accepted": bool(decision.accepted[row]),
                "outcome": decision.outcomes[row],
                "lesion": int(match.lesions.ids[lesion]) if lesion >= 0 else None,
                "iou": decision.iou_of.get((row, lesion), 0.0) if lesion >= 0 else None,
                "touches_lesion": bool(touched[row]),
                "outcome_any": outcomes_any[row],
                "zone": given.zone,
                "in_lesions": float(decision.misses.in_lesions[row]),
                "box_hits": self.box_hits[row],
            }

    def _measure_volume(self, row: int) -> float | None:
        """Return the volume of a candidate. None in 2-D, or if it is unknown."""
        volume_ml = self.match.candidates.volume_ml(row)
        if volume_ml is None and self.geometry.dims == 3:
            # without its mask, a candidate still states the volume that `predict` measured
            return self.prediction.candidates[row].volume_ml
        return volume_ml

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
        The matched case. `rows` returns its rows at an operating point.

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
        status=MISSING if prediction is None else "ok",
        regions=matched_regions,
        seconds=perf_counter() - begin,
        zones=zones_of_lesions,
        annotated=reference.annotated,
        box_pairs=box_pairs,
        box_hits=encode_hits(matched.candidates, box_pairs, matched.scores, ignored),
        unannotated=unannotated,
    )


def _flag_accepted(
    candidates: Sequence[Candidate], matched: Match, point: OperatingPoint | None
) -> NDArray[np.bool_]:
    """Flag the candidates `[n]` that the point accepts or, for None, those that are marked."""
    if point is not None:
        return np.asarray(matched.scores >= point.score)
    return np.array([c.accepted for c in candidates], dtype=np.bool_)


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


def _describe_place(instances: Lesions, row: int) -> Row:
    """Return the label, size and position of a lesion or candidate."""
    grid = instances.geometry
    dims = grid.dims
    box = instances.boxes[row].tolist()
    diameter_mm = float(instances.diameters_mm[row])
    width_mm = grid.shape[-1] * grid.spacing_mm[-1]
    place: Row = {
        "label": int(instances.labels[row]),
        "diameter_mm": diameter_mm,
        "diameter_percent": 100 * diameter_mm / width_mm if dims == 2 else None,
    }
    for axis, start, stop in zip("zyx"[3 - dims :], box[:dims], box[dims:], strict=True):
        place[f"start_{axis}_vox"] = start
        place[f"stop_{axis}_vox"] = stop
    for axis, centre in zip("xyz", instances.centres_mm[row].tolist(), strict=False):
        place[f"centre_{axis}_mm"] = centre
    return place


def _measure_size(lesions: Lesions, row: int) -> Row:
    """Measure the extent of a lesion by its voxels, or by its box if it has none."""
    n_voxels = int(lesions.n_voxels[row])
    dims = lesions.geometry.dims
    if n_voxels:
        voxels = lesions.voxels_of(row).astype(np.int64)
        extent = measure_extent(voxels, lesions.geometry.spacing_mm)
        return {"voxels": n_voxels, **extent._asdict()}
    sides = lesions.boxes[row][dims:] - lesions.boxes[row][:dims]
    return {"near_resolution": float(np.prod(sides)) < NEAR_RESOLUTION_VOXELS}


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
