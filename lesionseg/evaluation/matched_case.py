"""Cells of one case for cases.csv, lesions.csv and candidates.csv; check of its two grids.

The prediction is matched with its reference once, for any operating point.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    Calibration,
    Candidate,
    Geometry,
    Labels,
    Lesions,
    OperatingPoint,
    Prediction,
    Reference,
    Zones,
)
from lesionseg.core.arrays import Flags
from lesionseg.errors import GeometryError
from lesionseg.evaluation.criteria import INSTANCES, PRESETS, SECONDARY_CRITERIA, Preset
from lesionseg.evaluation.matching import (
    Match,
    Outcomes,
    Rows,
    match,
    sum_shares,
)
from lesionseg.evaluation.measures import (
    NEAR_RESOLUTION_VOXELS,
    measure_extent,
    surface_scores,
    through_plane_axis,
)
from lesionseg.evaluation.missed import Miss, Misses, WhyMissed, find_fitting
from lesionseg.evaluation.tables import (
    BY_LABEL,
    MISSING,
    NEVER_FOUND,
    POOLED,
    CaseRows,
    RowCells,
    region_part,
)
from lesionseg.ops.components import lesion_instances

_log = logging.getLogger(__name__)
# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05
Cells = Mapping[str, Any]  # the cells `[rows]` of each column


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
        status: `MISSING` if the case has no prediction, otherwise `ok`.
        regions: The matched case of each region by its name.
        seconds: Time of matching.
        zones: The anatomical zone of each lesion, empty if it has none.
        annotated: As in `core.Reference`.
        unannotated: The candidates whose labels the reference does not annotate, each with the rows
            of the lesions that the candidate would find. These candidates do not count in any
            score. They only explain why a lesion was missed.
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
    unannotated: Sequence[tuple[Candidate, Rows]]

    @property
    def geometry(self) -> Geometry:
        """The grid of the reference."""
        return self.match.lesions.geometry

    def accept(
        self, point: OperatingPoint | None, calibration: Calibration | None = None
    ) -> "MatchedCase":
        """Accept the candidates with at least the score of an operating point, and reject others.

        The match is not computed again. The regions and the candidates of unannotated labels are
        treated in the same way.

        Args:
            point: The operating point. If it is None, or if the candidates have no scores, the case
                stays as it is, with the candidates that the prediction states as accepted.
            calibration: Map from scores to probabilities, or None.

        Returns:
            The case with other accepted candidates, and with probabilities if there is a
            calibration.
        """
        if point is None or not self.prediction.has_scores:  # a score is never invented
            return self
        return replace(
            self,
            prediction=self.prediction.accept(point, calibration),
            regions={n: region.accept(point, calibration) for n, region in self.regions.items()},
            unannotated=[(candidate.at(point), rows) for candidate, rows in self.unannotated],
        )

    def rows(self, *, surface: bool = True) -> CaseRows:
        """Compute the rows of the case for the three tables, from which all scores are computed.

        The rows have a part (see `tables`): all labels together, each label separately, or one
        region. The result has rows of each part.

        Args:
            surface: False leaves out surface Dice and HD95, which take the most time. The choice of
                an operating point does not need them.
        """
        begin = perf_counter()
        by_label = self.match.within_labels
        accepted = self.prediction.accepted
        # these criteria compare equal labels, so pooled and separate labels have the same result
        secondary = {
            rule.name: self.match.decide_outcomes(accepted, rule) for rule in SECONDARY_CRITERIA
        }
        all_labels = _Accepted(self, self.match, accepted, secondary)
        # the table of cases: one row of all labels together, and a row with the Dice of each label
        keys: RowCells = {"case": self.case, "group": self.group or self.case, "part": ""}
        case = keys | all_labels.describe_case() | all_labels.measure_overlap(surface=surface)
        case["operating_point"] = self.prediction.operating_point
        tables = CaseRows([case])
        for label, dice in all_labels.measure_dice_by_label().items():
            tables.cases.append({**keys, "part": BY_LABEL, "label": label, "dice": dice})
        # the tables of lesions and candidates
        parts = {"": all_labels}
        if by_label is not None:
            parts = {POOLED: all_labels, BY_LABEL: _Accepted(self, by_label, accepted, secondary)}
        for part, decided in parts.items():
            keys = keys | {"part": part}
            tables.lesions.extend(keys | row for row in decided.describe_lesions())
            tables.candidates.extend(keys | row for row in decided.describe_candidates())
        for name, region in self.regions.items():
            tables.add(region.rows(surface=surface), part=region_part(name))
        case["seconds"] = round(self.seconds + perf_counter() - begin, 4)
        return tables

    @property
    def annotated_share(self) -> float:
        """The fraction of the labels of the dataset that a reader looked for in this case.

        Rates such as false positives per case count the case by this fraction. It is 1 if the
        reference does not state which labels were looked for. It is 0 if the case has no
        prediction, because such a case cannot have false positives.
        """
        if self.status == MISSING:
            return 0.0
        if not self.annotated:
            return 1.0
        return sum(self.annotated.values()) / len(self.annotated)


class _Accepted:
    """A matched case after some of its candidates were accepted.

    Attributes:
        case: The matched case.
        match: Its match, with pooled or with separate labels.
        accepted: True for accepted candidates `[n]`.
        found_by: Row of the candidate that finds each lesion `[lesions]`, −1 for a missed lesion.
        outcomes: Outcome of each candidate `[n]`.
        secondary: `found_by` and `outcomes` under each of `SECONDARY_CRITERIA`, by its name.
    """

    def __init__(
        self,
        case: MatchedCase,
        match: Match,
        accepted: Flags,
        secondary: Mapping[str, tuple[Rows, Outcomes]],
    ) -> None:
        """Decide which lesions the accepted candidates find. The class describes the arguments."""
        self.case = case
        self.match = match
        self.accepted = accepted
        self.found_by, self.outcomes = match.decide_outcomes(accepted)
        self.secondary = secondary
        pairs = match.overlaps
        rows = zip(pairs.candidate.tolist(), pairs.lesion.tolist(), strict=True)
        self._iou_of = dict(zip(rows, pairs.iou.tolist(), strict=True))

    def describe_case(self) -> RowCells:
        """Compute the cells of the case for the table of cases, except Dice and surface distances.

        The cells that identify the case are added by `MatchedCase.rows`.
        """
        match = self.match
        lesions = match.lesions
        prediction = self.case.prediction
        is_false = self.outcomes == "false_positive"
        n_false_by = {
            f"n_false_{name}": int((outcomes == "false_positive").sum())
            for name, (_, outcomes) in self.secondary.items()
        }
        is_in_2d = lesions.geometry.dims == 2
        false_ml = [self._volumes_ml[row] for row in np.flatnonzero(is_false)]
        is_unknown = is_in_2d or None in false_ml
        case_score = float(match.scores[~match.ignored].max(initial=0.0))
        return {
            "role": self.case.role,
            "status": self.case.status,
            "n_lesions": len(lesions),
            "n_candidates": len(match.candidates),
            "n_detected": int((self.found_by >= 0).sum()),  # −1: the lesion is missed
            "n_missed": int((self.found_by < 0).sum()),
            "n_false_positive": int(is_false.sum()),
            "n_ignored": int((self.outcomes == "ignored").sum()),
            "n_outside": prediction.n_outside + prediction.n_off_grid,
            "reference_ml": _sum_ml(lesions, counted=np.ones(len(lesions), bool)),
            # `lost` candidates have no voxel outside the ignored region
            "predicted_ml": _sum_ml(match.candidates, self.accepted & ~match.lost),
            # `or 0.0` only satisfies the type checker: no volume is None here
            "false_positive_ml": None if is_unknown else sum((ml or 0.0 for ml in false_ml), 0.0),
            "splits": int(self._is_split.sum()),
            "merges": int(self._is_merging.sum()),
            "case_score": case_score if prediction.has_scores else None,
            "warning": prediction.input.warning if prediction.input else "",
            "input_score": prediction.input.score if prediction.input else None,
            "slice_spacing_mm": None if is_in_2d else round(max(lesions.geometry.spacing_mm), 1),
            "annotated_share": self.case.annotated_share,
            "message": "",
            "axes": lesions.geometry.dims,
            "size_unit": lesions.geometry.size_unit,
            "n_counted": int((self.accepted & ~match.ignored).sum()),
            "unannotated": [label for label, known in self.case.annotated.items() if not known],
            **self._measure_pairs(),
            **n_false_by,
        }

    def describe_lesions(self) -> list[RowCells]:
        """Compute the cells of each lesion for the table of lesions, one row for each."""
        match = self.match
        lesions = match.lesions
        n_lesions = len(lesions)
        has_scores = self.case.prediction.has_scores
        is_known = (match.detected_at > NEVER_FOUND) & has_scores
        columns = {
            "lesion": lesions.ids,
            **_describe_places(lesions),
            "volume_ml": [lesions.volume_ml(row) for row in range(n_lesions)],
            "detected": self.found_by >= 0,
            # empty for a lesion that is never found, and if scores are placeholders
            "detected_at": _pick_values(
                match.detected_at, np.where(is_known, np.arange(n_lesions), -1)
            ),
            "candidate": _pick_values(match.candidates.ids, self.found_by),
            "iou": self._find_ious(self.found_by, np.arange(n_lesions)),
            **{name: found_by >= 0 for name, (found_by, _) in self.secondary.items()},
            "split": self._is_split,
            "merged": self._is_merged,
            "zone": self.case.zones,
            "box_iou": self.case.match.box_pairs.best_of_lesions(self.accepted, n_lesions),
        }
        rows = _list_rows(columns)
        for number, row in enumerate(rows):
            row |= _measure_size(lesions, number)
            row |= self._explain_miss(number)._asdict()
            if not has_scores:  # the scores are placeholders
                row["nearest_score"] = None
        return rows

    def describe_candidates(self) -> list[RowCells]:
        """Compute the cells of each candidate for the table of candidates, one row for each."""
        match = self.match
        pairs = match.overlaps
        prediction = self.case.prediction
        # at the lowest threshold of the FROC curve, all candidates are accepted
        _, outcomes_any = match.decide_outcomes(np.ones_like(self.accepted))
        lesion_of = self._find_lesions_of_candidates()
        n_candidates = len(match.candidates)
        columns = {
            "candidate": match.candidates.ids,
            **_describe_places(match.candidates),
            "score": match.scores if prediction.has_scores else [None] * n_candidates,
            "probability": [candidate.probability for candidate in prediction.candidates],
            "volume_ml": self._volumes_ml,
            "accepted": self.accepted,
            "outcome": self.outcomes,
            "lesion": _pick_values(match.lesions.ids, lesion_of),
            "iou": self._find_ious(np.arange(n_candidates), lesion_of),
            "touches_lesion": np.bincount(pairs.candidate, minlength=n_candidates) > 0,
            "outcome_any": outcomes_any,
            "zone": [candidate.zone for candidate in prediction.candidates],
            # the fraction of the candidate that is located in lesions
            "in_lesions": sum_shares(
                row=pairs.candidate,
                n_rows=n_candidates,
                share=pairs.of_candidate,
                common=pairs.common,
            ),
            "box_hits": self.case.match.box_hits,
        }
        return _list_rows(columns)

    @cached_property
    def _volumes_ml(self) -> list[float | None]:
        """The volume of each candidate in ml. None in 2-D, and for an unknown volume.

        The volume of a candidate without voxels is the one that the prediction states.
        """
        volumes = [self.match.candidates.volume_ml(row) for row in range(len(self.accepted))]
        if self.case.geometry.dims == 2:
            return volumes
        # the prediction states the volume that `predict` measured, even if the mask is missing
        pairs = zip(volumes, self.case.prediction.candidates, strict=True)
        return [predicted.volume_ml if volume is None else volume for volume, predicted in pairs]

    @cached_property
    def _is_accepted_pair(self) -> Flags:
        """True for overlapping pairs `[pairs]` of accepted candidates whose labels may match."""
        return self.match.comparable & self.accepted[self.match.overlaps.candidate]

    @cached_property
    def _is_split(self) -> Flags:
        """True for lesions that several accepted candidates overlap `[lesions]`."""
        overlapped = self.match.overlaps.lesion[self._is_accepted_pair]
        return np.bincount(overlapped, minlength=len(self.match.lesions)) > 1

    @cached_property
    def _is_merging(self) -> Flags:
        """True for candidates that are accepted and overlap several lesions `[n]`."""
        overlapping = self.match.overlaps.candidate[self._is_accepted_pair]
        return np.bincount(overlapping, minlength=len(self.accepted)) > 1

    @property
    def _is_merged(self) -> Flags:
        """True for lesions `[lesions]` that share an accepted candidate with another lesion."""
        pairs = self.match.overlaps
        is_merged = np.zeros(len(self.match.lesions), bool)
        # pairs whose labels may match, and whose candidate overlaps several lesions
        has_merging_candidate = self.match.comparable & self._is_merging[pairs.candidate]
        is_merged[pairs.lesion[has_merging_candidate]] = True
        return is_merged

    def _find_ious(self, candidates: Rows, lesions: Rows) -> list[float | None]:
        """Return the IoU of each pair of a candidate and a lesion, for the column `iou`.

        `candidates` and `lesions` are the rows of each pair `[pairs]`; the row −1 means none. The
        IoU is None if a row of the pair is −1. It is 0 without an overlap, because a candidate may
        find a lesion by the distance of their centres.
        """
        pairs = zip(candidates.tolist(), lesions.tolist(), strict=True)
        return [None if min(pair) < 0 else self._iou_of.get(pair, 0.0) for pair in pairs]

    def _measure_pairs(self) -> RowCells:
        """Compute the cells of the case from which panoptic quality is computed.

        Panoptic quality needs one-to-one pairs of lesions and accepted candidates. The match rule
        of the case makes the pairs if it is one to one, otherwise the secondary criterion `iou10`.

        Returns:
            `n_pairs`: number of pairs. `pair_iou`: sum of their IoUs, None if a lesion or candidate
            of a pair has no mask. `n_unpaired`: number of accepted candidates without a pair,
            except candidates in the ignored region.
        """
        found_by = self.found_by
        if not self.case.preset.criterion.is_one_to_one:
            found_by, _ = self.secondary[INSTANCES.name]
        lesion = np.flatnonzero(found_by >= 0)
        candidate = found_by[lesion]
        is_unpaired = self.accepted & ~self.match.ignored
        is_unpaired[candidate] = False
        has_masks = self.match.lesions.has_voxels[lesion]
        has_masks &= self.match.candidates.has_voxels[candidate]
        ious = self._find_ious(candidate, lesion)
        return {
            "n_pairs": len(ious),
            # `or 0.0` only satisfies the type checker: both rows of a pair exist
            "pair_iou": sum((iou or 0.0 for iou in ious), 0.0) if has_masks.all() else None,
            "n_unpaired": int(is_unpaired.sum()),
        }

    @cached_property
    def _misses(self) -> Misses:
        """The data from which `Misses.explain` derives why a lesion was missed.

        The threshold (`minimum`) is that of the operating point. If neither the evaluation nor the
        prediction states an operating point, it is the lowest score of an accepted candidate, or 1
        if no candidate is accepted.
        """
        lowest_accepted = float(self.match.scores[self.accepted].min(initial=1.0))
        point = self.case.prediction.operating_point
        # rows of the lesions that each accepted candidate of an unannotated label would find
        lesion_rows = [rows for candidate, rows in self.case.unannotated if candidate.accepted]
        return Misses(
            match=self.match,
            accepted=self.accepted,
            true=self.outcomes == "true_positive",
            minimum=lowest_accepted if point is None else point.score,
            removed=self.case.prediction.removed,
            unannotated=frozenset(row for rows in lesion_rows for row in rows.tolist()),
        )

    def _explain_miss(self, row: int) -> Miss:
        """Return the cells that explain why the lesion in this row was missed.

        The reason is `FOUND` for a found lesion, and `CASE_FAILED` in a case without a prediction.
        """
        if self.found_by[row] >= 0:
            return Miss(WhyMissed.FOUND, float(self._misses.covered_by_accepted[row]))
        if self.case.status == MISSING:
            return Miss(WhyMissed.CASE_FAILED)
        return self._misses.explain(row)

    def measure_dice_by_label(self) -> dict[int, float]:
        """Compute the Dice of each label value that occurs in lesions or accepted candidates.

        Labels are compared only with equal labels. The result is empty without masks.
        """
        lesions = self.match.lesions.labels
        candidates = self.match.candidates.labels
        by_label: dict[int, float] = {}
        if not self.match.has_masks:
            return by_label
        for label in np.union1d(lesions, candidates).tolist():
            dice = self.match.compute_dice(lesions == label, self.accepted & (candidates == label))
            if dice is not None:
                by_label[label] = dice
        return by_label

    def measure_overlap(self, *, surface: bool) -> RowCells:
        """Compute the cells `dice`, `surface_dice` and `hd95_mm` of all labels together.

        All lesions are compared with all accepted candidates. Without an accepted voxel, surface
        Dice is 0 and HD95 is None. Without masks or without a lesion, there are no cells.

        Args:
            surface: False leaves out surface Dice and HD95, which need the most time.
        """
        lesions = self.match.lesions
        candidates = self.match.candidates
        if not self.match.has_masks or len(lesions) == 0:
            return {}
        dice = self.match.compute_dice(np.ones(len(lesions), bool), self.accepted)
        if not surface:
            return {"dice": dice}
        surfaces = surface_scores(
            lesions.voxels.astype(np.int64),
            candidates.voxels[np.repeat(self.accepted, candidates.n_voxels)].astype(np.int64),
            lesions.geometry.spacing_mm,
            self.case.preset.surface_tolerance_mm,
        )
        surface_dice, hd95_mm = surfaces or (0.0, None)
        return {"dice": dice, "surface_dice": surface_dice, "hd95_mm": hd95_mm}

    def _find_lesions_of_candidates(self) -> Rows:
        """Return the row of the lesion that candidates.csv names for each candidate `[n]`.

        If candidates do not find lesions jointly, a candidate that finds a lesion gets this lesion.
        Any other candidate gets the lesion of a matching label that it overlaps most. Of several
        lesions with equal overlap, the first one counts. The row is −1 without such a lesion.
        """
        pairs = self.match.overlaps
        is_joint = self.match.criterion.assignment == "jointly"
        overlap = pairs.iou
        if is_joint:  # shared voxels; boxes have none, so their IoU counts
            overlap = np.where(pairs.voxels > 0, pairs.voxels, pairs.iou)
        # numpy keeps the last of several values for a candidate. Pairs are therefore assigned by
        # ascending overlap, and those of equal overlap in reverse, so that the first lesion is last
        order = np.flatnonzero(self.match.comparable)[::-1]
        order = order[np.argsort(overlap[order], kind="stable")]
        lesion_of = np.full(len(self.accepted), -1, np.int64)
        lesion_of[pairs.candidate[order]] = pairs.lesion[order]
        if not is_joint:
            # also in reverse, so that a candidate that finds several lesions gets the first one
            found_lesions = np.flatnonzero(self.found_by >= 0)[::-1]
            lesion_of[self.found_by[found_lesions]] = found_lesions
        return lesion_of


def match_case(
    reference: Reference,
    prediction: Prediction | None,
    preset: Preset = PRESETS["lesionseg"],
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
        prediction: The prediction on the reference's grid. If it is None, every lesion is missed,
            and the status of the case is `MISSING`.
        preset: The match rule.
        case: Id of the case.
        group: Id of the patient. If it is empty, the case is its own group.
        role: `train`, `validation`, `test`, `external`, or empty.
        labels: Labels of the dataset. Candidates of other labels find no lesion. If there are
            regions, each is also scored separately, and all candidates get the label of the union.
        zones: Anatomical zones, on any grid. None leaves the zones of lesions empty, and those of
            candidates as predicted.

    Returns:
        The matched case. `rows` returns its rows at an operating point.

    Raises:
        GeometryError: If the prediction is on another grid.
    """
    begin = perf_counter()
    unannotated: Sequence[tuple[Candidate, Rows]] = ()
    if prediction is not None:
        if labels is not None and labels.regions:
            # regions overlap and do not divide lesions, so a candidate belongs to no single one
            prediction = _keep_known_values(prediction.with_one_label(), labels)
        _require_same_grid(case, reference.geometry, prediction.geometry)
        # candidates of unannotated labels are matched first: one may explain a missed lesion
        unannotated = _match_unannotated(prediction, reference, preset)
        prediction = prediction.without_labels(reference.unannotated)
    matched_prediction = prediction
    if matched_prediction is None:  # match a prediction without candidates
        grid = reference.geometry
        matched_prediction = Prediction(
            case=case, geometry=grid, candidates=(), instances=np.zeros(grid.shape, np.int32)
        )
    lesion_names = None if labels is None else labels.lesion_names
    matched = match(reference, matched_prediction, preset.criterion, lesion_names)
    zones_of_lesions: Sequence[str] = [""] * len(matched.lesions)
    if zones is not None:
        matched_prediction = matched_prediction.with_zones(zones.of(matched.candidates))
        zones_of_lesions = zones.of(matched.lesions)
    # Each region is scored like a case of one label. Without `labels`, these calls do not recurse.
    matched_regions = {
        name: match_case(
            _reference_of_region(reference, values),
            _prediction_of_region(prediction, values),
            preset,
            case=case,
            group=group,
            role=role,
        )
        for name, values in _scorable_regions(labels, prediction).items()
    }
    # the maps are left out, because all cases stay in memory
    return MatchedCase(
        prediction=replace(matched_prediction, instances=None, values=None),
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
        unannotated=unannotated,
    )


def _list_rows(columns: Cells) -> list[RowCells]:
    """Convert columns to rows, each with the cells by column name.

    Cells get Python's types instead of numpy's.
    """
    cells = [np.asarray(values).tolist() for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _pick_values(values: NDArray[Any], rows: Rows) -> list[Any]:
    """Return `values[row]` for each of `rows`, and None for the row −1, which means none."""
    cells = [*values.tolist(), None]  # `cells[-1]` is None
    return [cells[row] for row in rows.tolist()]


def _require_same_grid(case: str, grid: Geometry, other: Geometry) -> None:
    """Check that a prediction is on the grid of its reference, so that voxels can be compared.

    Corners of the grids may differ by a twentieth of the smallest voxel spacing.

    Args:
        case: Id of the case, for the error message.
        grid: The grid of the reference.
        other: The grid of the prediction.

    Raises:
        GeometryError: If the grids differ.
    """
    if not grid.matches(other, _GRID_TOLERANCE * min(grid.spacing_mm)):
        raise GeometryError(
            f"Case {case}: the prediction {other.describe()} is not on the grid of its "
            f"reference {grid.describe()}: {grid.describe_difference(other)}. Resample it "
            "onto the reference's grid."
        )


def _scorable_regions(
    labels: Labels | None, prediction: Prediction | None
) -> dict[str, tuple[int, ...]]:
    """Return the mask values of each region that is scored separately, by the name of the region.

    The result is empty if the labels are not regions. It is also empty for a prediction of boxes,
    or of masks without region values, because such a prediction does not tell the region of a
    voxel. Without a prediction, all regions are returned, and all of their lesions are missed.
    """
    if labels is None or not labels.regions:
        return {}
    if prediction is not None and prediction.values is None:
        return {}
    return dict(zip(labels.names, labels.regions, strict=True))


def _match_unannotated(
    prediction: Prediction, reference: Reference, preset: Preset
) -> list[tuple[Candidate, Rows]]:
    """Return the candidates of unannotated labels, each with the rows of the lesions that it fits.

    A candidate fits a lesion if it would find the lesion with the right label (`find_fitting`).
    Such a candidate may explain why the lesion was missed.
    """
    annotated = {c.label for c in prediction.candidates} - set(reference.unannotated)
    others = prediction.without_labels(sorted(annotated))
    if not others.candidates:
        return []
    matched = match(reference, others, preset.criterion)
    pairs = matched.overlaps.where(find_fitting(matched))
    return [(c, pairs.lesion[pairs.candidate == row]) for row, c in enumerate(others.candidates)]


def _describe_places(instances: Lesions) -> Cells:
    """Return the columns that the tables of lesions and candidates have in common.

    The columns are label, diameters, box and centre; each column has one cell per row of
    `instances`. In 2-D there are no columns for the axis z. In 3-D `diameter_percent` is None.
    """
    grid = instances.geometry
    dims = grid.dims
    percent: Any = [None] * len(instances)
    if dims == 2:  # relative to the image width; the last array axis is x
        percent = 100 * instances.diameters_mm / (grid.shape[-1] * grid.spacing_mm[-1])
    axes = "zyx"[3 - dims :]  # only y and x in 2-D
    ends = [f"{end}_{axis}_vox" for end in ("start", "stop") for axis in axes]
    centres = [f"centre_{axis}_mm" for axis in "xyz"[:dims]]
    return {
        "label": instances.labels,
        "diameter_mm": instances.diameters_mm,
        "diameter_percent": percent,
        **dict(zip(ends, instances.boxes.T, strict=True)),
        **dict(zip(centres, instances.centres_mm.T, strict=True)),
    }


def _measure_size(lesions: Lesions, row: int) -> RowCells:
    """Return the columns of a lesion that state its size: `voxels`, and the fields of `Extent`.

    A lesion with only a box, which has 0 voxels, gets just the column `near_resolution`. It is True
    for a lesion of fewer than `NEAR_RESOLUTION_VOXELS` voxels or of one slice, because its size is
    uncertain.
    """
    n_voxels = int(lesions.n_voxels[row])
    dims = lesions.geometry.dims
    if n_voxels:  # the lesion has a mask
        voxels = lesions.voxels_of(row).astype(np.int64)
        extent = measure_extent(voxels, lesions.geometry.spacing_mm)
        return {"voxels": n_voxels, **extent._asdict()}
    # only a box, whose voxels are counted instead
    sides = lesions.boxes[row][dims:] - lesions.boxes[row][:dims]
    has_few_voxels = bool(np.prod(sides) < NEAR_RESOLUTION_VOXELS)
    has_one_slice = dims == 3 and bool(sides[through_plane_axis(lesions.geometry.spacing_mm)] <= 1)
    return {"near_resolution": has_few_voxels or has_one_slice}


def _sum_ml(instances: Lesions, counted: Flags) -> float | None:
    """Sum the volumes in ml of the lesions or candidates that are True in `counted` `[n]`.

    Return None in 2-D, or if one of these lesions or candidates has no voxels.
    """
    if instances.geometry.dims == 2 or not instances.has_voxels[counted].all():
        return None
    return int(instances.n_voxels[counted].sum()) * instances.geometry.voxel_size / 1000


def _reference_of_region(reference: Reference, values: Sequence[int]) -> Reference:
    """Return the reference of a region, so that the region is scored like a separate case.

    A region is several mask values that count as one label. Its lesions are the connected
    components of the voxels whose mask value is one of `values`. A reference without a mask has no
    lesion in a region.
    """
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


def _keep_known_values(prediction: Prediction, labels: Labels) -> Prediction:
    """Remove predicted voxels whose mask value belongs to no region of the dataset, and warn.

    Candidates without a remaining voxel are removed too. Without such values, the prediction stays
    as it is.
    """
    values = prediction.values
    # 0 is the background. A prediction without mask values has no unknown value
    unknown = np.setdiff1d(0 if values is None else values, (0, *labels.mask_values)).tolist()
    if not unknown:
        return prediction
    _log.warning(
        "Case %s: the predicted values %s belong to no region of the reference and do not count. "
        "Correct them, or set merge_labels=true to score all values as one label.",
        prediction.case,
        unknown,
    )
    # the union of all regions; `or prediction` applies to a prediction of boxes
    of_union = _prediction_of_region(prediction, labels.mask_values) or prediction
    return replace(of_union, values=values)


def _prediction_of_region(
    prediction: Prediction | None, region_values: Sequence[int]
) -> Prediction | None:
    """Return the prediction for a region, so that the region is scored like a separate case.

    Only voxels whose mask value is in `region_values` stay in the mask, and only candidates with
    such voxels stay candidates. They all get the label 1. Their scores, boxes and sizes do not
    change. Return None if there is no prediction, or if it does not state the region of each voxel.
    """
    if prediction is None or prediction.values is None or prediction.instances is None:
        return None
    instances = np.where(np.isin(prediction.values, region_values), prediction.instances, 0)
    present = set(np.unique(instances).tolist())
    remaining = tuple(c for c in prediction.with_one_label().candidates if c.id in present)
    return replace(prediction, candidates=remaining, instances=instances, values=None)
