"""Summarise the results of all cases as scores."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint
from lesionseg.evaluation import curves
from lesionseg.evaluation.box_precision import (
    IOUS,
    MAX_PER_CASE,
    RANGES,
    box_average_precision,
    rsna_of_case,
)
from lesionseg.evaluation.calibration import describe_calibration
from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.criteria import SIDE_CRITERIA, Preset
from lesionseg.evaluation.curves import Pool, sums_by_group
from lesionseg.evaluation.intervals import (
    NO_CASE,
    NO_LESION,
    Z95,
    Estimate,
    Statistic,
    Weights,
    bootstrap,
    draw_groups,
    proportion,
    rate,
    ratio,
)
from lesionseg.evaluation.recall_by_size import SizeScale, recall_by_size, size_curve
from lesionseg.evaluation.scores import (
    DEVELOPMENT_ROLES,
    Agreement,
    BoxPrecision,
    CalibrationScores,
    Counts,
    CriterionScores,
    Froc,
    LabelScores,
    LesionLoad,
    MeanEstimate,
    NoCalibration,
    PointInUse,
    Provenance,
    Scores,
    Subgroup,
    SurfaceDice,
    SurfaceDistance,
    Unscored,
)
from lesionseg.evaluation.subgroups import ZONE, Columns, Members, find_subgroups
from lesionseg.host_memory import pause_collection

_log = logging.getLogger(__name__)

MIN_CASES_FOR_CPM = 8  # fewer cases cannot show 1/8 false positive per case
NO_LESION_FREE_CASE = "there is no lesion-free case"
NO_MASKED_CASE = "no case with a reference lesion has masks to compare"
NO_SURFACES = "no case has accepted voxels and a reference lesion"
NOTHING_ACCEPTED = "no accepted candidate was counted"
NO_VOLUME = "an image of two axes, or a bare box, has no volume"
UNSCORED = "the candidates have no scores, and a score is never invented"
TOO_FEW_CASES_FOR_CPM = "fewer than 8 cases cannot show a rate of 1/8 per case"
ONE_KIND_OF_CASE = "cases with lesions and cases without are needed"
BOXES = "boxes have no voxels to compare"
NO_OPERATING_POINT = "the prediction's own accepted candidates were taken"


def _recall_terms(r: CaseResult) -> tuple[float, float]:
    """Return the found and all lesions of a case."""
    return r.n_detected, len(r.lesions)


def _precision_terms(r: CaseResult) -> tuple[float, float]:
    """Return the true positives of a case, and its true and false positives."""
    n_true = r.n_outcome("true_positive")
    return n_true, n_true + r.n_outcome("false_positive")


def _f1_terms(r: CaseResult) -> tuple[float, float]:
    """Return 2·TP and 2·TP + FP + FN of a case."""
    return 2 * r.n_detected, r.n_detected + len(r.lesions) + r.n_outcome("false_positive")


def _false_positive_terms(r: CaseResult) -> tuple[float, float]:
    """Return the false positives of a case and the share by which it counts as a case."""
    return r.n_outcome("false_positive"), r.annotated_share


def _lesion_free_false_positive_terms(r: CaseResult) -> tuple[float, float]:
    """Return the false positives of a case and 1 if it is lesion-free, otherwise zeros."""
    if not r.is_lesion_free:
        return 0, 0
    return r.n_outcome("false_positive"), 1


def _specificity_terms(r: CaseResult) -> tuple[float, float]:
    """Return 1 if a lesion-free case has no false positive, and 1 if the case is lesion-free."""
    if not r.is_lesion_free:
        return 0, 0
    return r.n_outcome("false_positive") == 0, 1


# by name: the numerator and denominator of each case, and the reason if the sum of the latter is 0
RATIOS: Mapping[str, tuple[Callable[[CaseResult], tuple[float, float]], str]] = {
    "lesion_recall": (_recall_terms, NO_LESION),
    "lesion_precision": (_precision_terms, NOTHING_ACCEPTED),
    "lesion_f1": (_f1_terms, NO_LESION),
    "false_positives_per_case": (_false_positive_terms, NO_CASE),
    "false_positives_per_lesion_free_case": (
        _lesion_free_false_positive_terms,
        NO_LESION_FREE_CASE,
    ),
    "specificity": (_specificity_terms, NO_LESION_FREE_CASE),
}
# the ratios that are rates of counts, which have Garwood's interval
_RATES = ("false_positives_per_case", "false_positives_per_lesion_free_case")


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """The facts about the cases, and the settings of the bootstrap.

    Attributes:
        evaluated_on: Role of the cases.
        operating_point: The operating point that was applied. None takes the one that all
            predictions state; masks without candidates state none.
        labels: Names of label values. A label without a name is named by its value.
        split_is_group_safe: False if a patient has both training and evaluated cases. None if this
            is not known.
        replicates: Number of resampled data sets of the bootstrap.
        seed: Seed of the bootstrap.
        provenance: Versions and hashes, which are copied into the scores.
        columns: The cells of a table by case and column. `slice_spacing_mm` is added.
        subgroups: The columns to divide by. None uses every suitable column.
    """

    evaluated_on: str
    operating_point: OperatingPoint | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    split_is_group_safe: bool | None = None
    replicates: int = 1000
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    subgroups: Sequence[str] | None = None


@pause_collection()
def summarise(results: Sequence[CaseResult], preset: Preset, settings: SummarySettings) -> Scores:
    """Summarise the results of the cases as scores.

    Args:
        results: One result per case. Without results, all numbers are undefined.
        preset: The match rule by which the cases were matched.
        settings: The role of the cases, the operating point and the bootstrap.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: if a column in `settings.subgroups` is missing or has too many words.
    """
    whole = Summary(results, preset, settings.replicates, settings.seed)
    counts = whole.counts()
    scale = SizeScale.of(results, preset)
    calibration: CalibrationScores | NoCalibration | Unscored = Unscored(reason=UNSCORED)
    if whole.has_scores:
        calibration = describe_calibration(results)
    columns = _with_slice_spacing(results, settings.columns)
    subgroups = []
    for members in find_subgroups(results, columns, settings.subgroups):
        subgroups.append(whole.subgroup(members))
    point = _find_operating_point(results, settings.operating_point, settings.evaluated_on)
    return Scores(
        evaluated_on=settings.evaluated_on,
        preset=preset.name,
        n_cases=counts.n_cases,
        n_groups=counts.n_groups,
        n_lesion_free_cases=counts.n_lesion_free_cases,
        n_lesions=counts.n_lesions,
        n_candidates=counts.n_candidates,
        n_true_positive=counts.n_true_positive,
        n_false_positive=counts.n_false_positive,
        n_missed=counts.n_missed,
        image_axes=tuple(sorted({r.dims for r in results})),
        dice=whole.dice(),
        surface_dice=whole.surface_dice(),
        hd95_mm=whole.hd95_mm(),
        lesion_recall=whole.ratio("lesion_recall"),
        lesion_precision=whole.ratio("lesion_precision"),
        lesion_f1=whole.ratio("lesion_f1"),
        false_positives_per_case=whole.ratio("false_positives_per_case"),
        false_positives_per_lesion_free_case=whole.ratio("false_positives_per_lesion_free_case"),
        specificity=whole.ratio("specificity"),
        cpm=whole.cpm(),
        average_precision=whole.average_precision(),
        case_auroc=whole.case_auroc(),
        panoptic_quality=whole.panoptic_quality(),
        froc=whole.froc(),
        box_precision=whole.box_precision(),
        lesion_load=whole.lesion_load(),
        recall_by_size=recall_by_size(results, whole.groups, scale),
        size_curve=size_curve(results, whole.groups, whole.draws, scale),
        size_unit=scale.unit,
        calibration=calibration,
        operating_point=point,
        other_criteria=whole.other_criteria(),
        subgroups=tuple(subgroups),
        per_label=_per_label(whole, settings.labels),
        split_is_group_safe=settings.split_is_group_safe,
        missing_predictions=tuple(r.case for r in results if r.status == "missing"),
        provenance=_describe_provenance(preset, settings),
    )


def _describe_provenance(preset: Preset, settings: SummarySettings) -> Provenance:
    """Return the stated provenance with the match rule and the bootstrap."""
    made = {
        **settings.provenance,
        "preset": json.loads(json.dumps(asdict(preset))),  # turns tuples into lists, as in a file
        "bootstrap": {"replicates": settings.replicates, "seed": settings.seed},
    }
    return Provenance(made)


def _with_slice_spacing(results: Sequence[CaseResult], columns: Columns) -> Columns:
    """Add the column `slice_spacing_mm` to the cases that are volumes, as a subgroup.

    A column of this name in the table has priority.
    """
    found: dict[str, Mapping[str, str]] = {}
    for r in results:
        own = columns.get(r.case, {})
        if r.slice_spacing_mm is not None:
            own = {"slice_spacing_mm": f"{r.slice_spacing_mm:g}", **own}
        found[r.case] = own
    return found


class Summary:
    """The numbers of some cases. All intervals resample the same groups."""

    def __init__(
        self, results: Sequence[CaseResult], preset: Preset, replicates: int, seed: int
    ) -> None:
        self.results = results
        self.preset = preset
        self.seed = seed
        self.pool = Pool.of(results)
        self.groups = self.pool.groups
        self.draws = draw_groups(len(self.groups), replicates, np.random.default_rng(seed))
        self.has_scores = all(r.has_scores for r in results)

    def part(self, results: Sequence[CaseResult]) -> "Summary":
        """Return the summary of other results, with the same match rule and bootstrap settings."""
        return Summary(results, self.preset, len(self.draws), self.seed)

    def sums(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Sum a value of each case over the cases of each group `[groups]`."""
        return sums_by_group(self.groups, self.results, values)

    def counts(self) -> Counts:
        """Count cases, lesions and candidates."""
        n_lesions = sum(len(r.lesions) for r in self.results)
        n_found = sum(r.n_detected for r in self.results)
        return Counts(
            n_cases=len(self.results),
            n_groups=len(self.groups),
            n_lesion_free_cases=sum(r.is_lesion_free for r in self.results),
            n_lesions=n_lesions,
            n_candidates=sum(len(r.candidates) for r in self.results),
            n_true_positive=n_found,
            n_false_positive=sum(r.n_outcome("false_positive") for r in self.results),
            n_missed=n_lesions - n_found,
        )

    @cached_property
    def has_boxes_only(self) -> bool:
        """True if no case with a lesion has masks to compare."""
        return has_boxes_only(self.results)

    def dice(self) -> MeanEstimate:
        """Compute the mean Dice of the cases with a lesion."""
        return self.mean([None if self.has_boxes_only else r.dice for r in self.results])

    def surface_dice(self) -> SurfaceDice:
        """Compute the mean surface Dice of the cases with a lesion."""
        found = self.mean([None if self.has_boxes_only else r.surface_dice for r in self.results])
        return SurfaceDice(
            mean=found.mean,
            ci95=found.ci95,
            reason=found.reason,
            median=found.median,
            n=found.n,
            tolerance_mm=self.preset.surface_tolerance_mm,
        )

    def hd95_mm(self) -> SurfaceDistance:
        """Compute the mean HD95 of the cases that have both surfaces."""
        found = self.mean([r.hd95_mm for r in self.results], is_share=False)
        reason = found.reason
        if found.mean is None and self.dice().mean is not None:
            reason = NO_SURFACES
        return SurfaceDistance(
            mean=found.mean,
            ci95=found.ci95,
            reason=reason,
            median=found.median,
            n=found.n,
            n_undefined=sum(bool(r.lesions) and r.hd95_mm is None for r in self.results),
        )

    def cpm(self) -> Estimate:
        """Compute the mean recall of the FROC. It is undefined for fewer than 8 cases."""
        found = self.of_curve(curves.cpm(self.pool, self.preset.fp_per_case))[0]
        if found.value is not None and len(self.results) < MIN_CASES_FOR_CPM:
            return Estimate(None, None, TOO_FEW_CASES_FOR_CPM)
        return found

    def ratio(self, name: str) -> Estimate:
        """Compute one of `RATIOS` over all cases, with the interval that suits it.

        F1 is neither a proportion of independent items nor a rate, so it is bootstrapped.
        """
        of_case, undefined = RATIOS[name]
        terms = [of_case(r) for r in self.results]
        above = self.sums([term[0] for term in terms])
        below = self.sums([term[1] for term in terms])
        if name == "lesion_f1":
            lesions = self.pool.lesions_by_group
            statistic = ratio(above, below)
            return bootstrap(statistic, self.draws, lesions, undefined, len(self.results))[0]
        if name in _RATES:
            return rate(above, below, undefined)
        return proportion(above, below, undefined)

    def mean(self, values: Sequence[float | None], *, is_share: bool = True) -> MeanEstimate:
        """Compute mean and median of the defined values of the cases.

        `is_share`: the values are between 0 and 1, which allows Wilson's interval.
        """
        defined = [v for v in values if v is not None]
        counted = self.sums([v is not None for v in values])
        total = self.sums([v or 0.0 for v in values])
        if is_share:
            estimate = proportion(total, counted, NO_MASKED_CASE, least_deff=0.0)
        else:
            statistic = ratio(total, counted)
            n = len(self.results)
            (estimate,) = bootstrap(
                statistic, self.draws, counted, NO_MASKED_CASE, n, bounds=[None]
            )
        return MeanEstimate(
            mean=estimate.value,
            ci95=estimate.ci95,
            reason=estimate.reason,
            median=float(np.median(defined)) if defined else None,
            n=len(defined),
        )

    def of_curve(self, statistic: Statistic) -> list[Estimate]:
        """Compute a statistic of the pooled scores. It is undefined without scores."""
        if not self.has_scores:
            return [Estimate(None, None, UNSCORED)]
        # the curves accumulate lesions and false positives, from 0
        items = len(self.pool.detected_at) + len(self.pool.false_score) + 1
        support = self.pool.lesions_by_group
        return bootstrap(statistic, self.draws, support, NO_LESION, items)

    def average_precision(self) -> Estimate:
        """Compute the average precision. It is undefined without scores."""
        return self.of_curve(curves.average_precision(self.pool))[0]

    def case_auroc(self) -> Estimate:
        """Compute the chance that a case with a lesion has a higher score than one without."""
        if not self.has_scores:
            return Estimate(None, None, UNSCORED)
        known = ~np.isnan(self.pool.case_score)
        kinds = [
            np.bincount(self.pool.case_group[known & kind], minlength=len(self.groups))
            for kind in (self.pool.case_positive, ~self.pool.case_positive)
        ]
        if not all(kind.any() for kind in kinds):
            return Estimate(None, None, ONE_KIND_OF_CASE)
        # the kind of case with fewer groups decides if an interval is possible
        support = min(kinds, key=np.count_nonzero).astype(np.float64)
        statistic = curves.case_auroc(self.pool)
        return bootstrap(statistic, self.draws, support, ONE_KIND_OF_CASE, len(self.results))[0]

    def froc(self) -> Froc:
        """Compute the recall at the preset's rates of false positives per case."""
        rates = self.preset.fp_per_case
        if not self.has_scores or not len(self.pool.detected_at):
            why = NO_LESION if self.has_scores else UNSCORED
            return Froc(fp_per_case=rates, recall=None, ci95=None, reason=why)
        points = self.of_curve(curves.froc(self.pool, rates))
        return Froc(
            fp_per_case=rates,
            recall=tuple(p.value for p in points),
            ci95=tuple(p.ci95 for p in points),
            reason=next((p.reason for p in points if p.reason), None),
        )

    def box_precision(self) -> BoxPrecision:
        """Compute the average precision of bounding boxes and the RSNA score.

        The precision is the mean over labels. Candidates beyond `MAX_PER_CASE` of a case and label
        are left out and counted.
        """
        n_left_out = sum(sum(r.box_hits.left_out.values()) for r in self.results)
        support = self.pool.lesions_by_group
        if not self.has_scores or not support.any():
            undefined = Estimate(None, None, NO_LESION if self.has_scores else UNSCORED)
            return BoxPrecision(
                iou=IOUS,
                reason=undefined.reason,
                ap_40=undefined,
                ap_50=undefined,
                ap_40_75=undefined,
                ap_50_95=undefined,
                rsna_score=undefined,
                max_per_case=MAX_PER_CASE,
                n_left_out=n_left_out,
            )
        statistic = box_average_precision(
            hits=[r.box_hits for r in self.results],
            lesion_labels=[[x.label for x in r.lesions] for r in self.results],
            case_group=self.pool.case_group,
            n_groups=len(self.groups),
        )
        items = sum(len(r.box_hits.score) for r in self.results) + 1
        estimates = bootstrap(statistic, self.draws, support, NO_LESION, items)
        points = estimates[: len(IOUS)]
        ranges = dict(zip(RANGES, estimates[len(IOUS) :], strict=True))
        by_case = [rsna_of_case(r.box_hits, len(r.lesions)) for r in self.results]
        counted = self.sums([value is not None for value in by_case])
        total = self.sums([value or 0.0 for value in by_case])
        return BoxPrecision(
            iou=IOUS,
            average_precision=tuple(p.value for p in points),
            ci95=tuple(p.ci95 for p in points),
            reason=next((p.reason for p in points if p.reason), None),
            ap_40=ranges["ap_40"],
            ap_50=ranges["ap_50"],
            ap_40_75=ranges["ap_40_75"],
            ap_50_95=ranges["ap_50_95"],
            rsna_score=proportion(total, counted, NO_LESION, least_deff=0.0),
            max_per_case=MAX_PER_CASE,
            n_left_out=n_left_out,
        )

    def panoptic_quality(self) -> Estimate:
        """Compute Σ IoU of one-to-one pairs / (pairs + ½ false positives + ½ missed lesions).

        Kirillov et al. 2019.
        """
        if self.has_boxes_only or any(None in r.pair_ious for r in self.results):
            return Estimate(None, None, BOXES)
        iou = self.sums([sum(one or 0.0 for one in r.pair_ious) for r in self.results])
        found = self.sums([len(r.pair_ious) for r in self.results])
        false = self.sums([r.n_unpaired for r in self.results])
        lesions = self.pool.lesions_by_group
        statistic = ratio(2 * iou, found + lesions + false)
        return bootstrap(statistic, self.draws, lesions, NO_LESION, len(self.results))[0]

    def lesion_load(self) -> LesionLoad:
        """Compute the agreement of the lesion volume and of the number of lesions of a case.

        Cases without a prediction are left out. The volume is undefined in 2-D, and also if a case
        has boxes without voxels: the remaining cases would mostly be those without a detection.
        """
        volumes: list[tuple[float | None, float | None]] = []
        counts: list[tuple[float | None, float | None]] = []
        for r in self.results:
            has_prediction = r.status != "missing"
            volumes.append((r.reference_ml, r.predicted_ml) if has_prediction else (None, None))
            counts.append((len(r.lesions), r.n_counted) if has_prediction else (None, None))
        if any(r.dims == 3 and None in (r.reference_ml, r.predicted_ml) for r in self.results):
            volumes = [(None, None)] * len(self.results)
        return LesionLoad(
            volume_ml=self._measure_agreement(volumes, NO_VOLUME),
            n_lesions=self._measure_agreement(counts, NO_CASE),
        )

    def _measure_agreement(
        self, pairs: Sequence[tuple[float | None, float | None]], undefined: str
    ) -> Agreement:
        """Compute the bias and limits of agreement of pairs (reference, predicted).

        The bias is the mean of predicted minus reference. The limits are ± 1.96 standard deviations
        from it (Bland & Altman 1986).
        """
        errors = [None if x is None or y is None else y - x for x, y in pairs]
        counts = self.sums([0.0 if e is None else 1.0 for e in errors])
        sums = self.sums([0.0 if e is None else e for e in errors])
        squares = self.sums([0.0 if e is None else e**2 for e in errors])

        def statistic(weights: Weights) -> NDArray[np.float64]:
            """Return bias, lower and upper limit `[replicates, 3]`."""
            n = weights @ counts
            with np.errstate(invalid="ignore", divide="ignore"):
                bias = weights @ sums / n
                variance = np.maximum(weights @ squares - n * bias**2, 0.0) / (n - 1)
                reach = Z95 * np.sqrt(variance)
            found = np.stack([bias, bias - reach, bias + reach], axis=1)
            return np.where(n[:, None] > 1, found, np.nan)

        # the statistic holds about six numbers per replicate at once
        bias, lower, upper = bootstrap(
            statistic, self.draws, counts, undefined, items=6, bounds=[None] * 3
        )
        return Agreement(n=int(counts.sum()), bias=bias, lower_limit=lower, upper_limit=upper)

    def other_criteria(self) -> dict[str, CriterionScores]:
        """Compute recall and false positives of the accepted candidates by the side criteria."""
        found = {}
        for criterion in SIDE_CRITERIA:
            of_case = [r.sides[criterion.name] for r in self.results]
            hits = self.sums([n_found for n_found, _ in of_case])
            false = self.sums([n_false for _, n_false in of_case])
            found[criterion.name] = CriterionScores(
                lesion_recall=proportion(hits, self.pool.lesions_by_group, NO_LESION),
                false_positives_per_case=rate(false, self.pool.cases_by_group, NO_CASE),
            )
        return found

    def subgroup(self, members: Members) -> Subgroup:
        """Compute recall, false positives per case and mean Dice of a subgroup.

        A zone has no Dice, because the Dice of a case concerns all of its zones.
        """
        part = self.part(members.results)
        counts = part.counts()
        dice = [r.dice for r in part.results if r.dice is not None]
        if members.by == ZONE or self.has_boxes_only:
            dice = []
        return Subgroup(
            by=members.by,
            value=members.value,
            n_cases=counts.n_cases,
            n_groups=counts.n_groups,
            n_lesions=counts.n_lesions,
            n_detected=counts.n_true_positive,
            lesion_recall=part.ratio("lesion_recall"),
            false_positives_per_case=part.ratio("false_positives_per_case"),
            dice=float(np.mean(dice)) if dice else None,
        )


def has_boxes_only(results: Sequence[CaseResult]) -> bool:
    """Return True if no predicted case with a lesion has masks to compare.

    The Dice of a case without a prediction is then undefined instead of 0.
    """
    has_dice = [r.dice is not None for r in results if r.status == "ok" and r.lesions]
    return bool(has_dice) and not any(has_dice)


def _per_label(whole: Summary, labels: Mapping[int, str]) -> dict[str, LabelScores]:
    """Compute the numbers of each region or, without regions, of each label.

    Regions need their mask values in every prediction. Boxes and masks of other programs state
    none, so the union of all regions then counts as the only label.
    """
    results = whole.results
    found: dict[str, LabelScores] = {}
    predicted = [r for r in results if r.status == "ok"]
    if results and all(r.regions for r in predicted or results):
        for name in dict.fromkeys(name for r in results for name in r.regions):
            own = [r.regions[name] for r in results if name in r.regions]
            found[name] = _label_scores(whole.part(own), [r.dice for r in own])
        return found
    values = set(labels)
    for r in results:
        values.update(lesion.label for lesion in r.lesions)
        values.update(candidate.label for candidate in r.candidates)
    for label in sorted(values):
        own = [_select_label(r, label) for r in results if r.annotated.get(label, True)]
        dice: list[float | None] = [None] * len(own)
        if not whole.has_boxes_only:
            dice = [r.dice_by_label.get(label) if r.lesions else None for r in own]
        found[labels.get(label, str(label))] = _label_scores(whole.part(own), dice)
    return found


def _label_scores(part: Summary, dice: Sequence[float | None]) -> LabelScores:
    """Compute the numbers of one label. `dice` has the Dice of each case."""
    counts = part.counts()
    return LabelScores(
        n_cases=counts.n_cases,
        n_groups=counts.n_groups,
        n_lesion_free_cases=counts.n_lesion_free_cases,
        n_lesions=counts.n_lesions,
        n_candidates=counts.n_candidates,
        n_true_positive=counts.n_true_positive,
        n_false_positive=counts.n_false_positive,
        n_missed=counts.n_missed,
        dice=part.mean(dice),
        lesion_recall=part.ratio("lesion_recall"),
        lesion_precision=part.ratio("lesion_precision"),
        false_positives_per_case=part.ratio("false_positives_per_case"),
        average_precision=part.average_precision(),
        box_precision=part.box_precision(),
    )


def _select_label(result: CaseResult, label: int) -> CaseResult:
    """Return the result with the lesions and candidates of one label.

    `annotated` is cleared, so that the case counts fully. The caller leaves out the cases in which
    the label is not annotated.
    """
    part = result.within_labels or result
    return replace(
        result,
        annotated={},
        lesions=tuple(x for x in part.lesions if x.label == label),
        candidates=tuple(c for c in part.candidates if c.label == label),
        box_hits=result.box_hits.of_label(label),
    )


def _has_edited_flags(result: CaseResult, score: float) -> bool:
    """Return True if a candidate was accepted or rejected against the operating point."""
    return any(c.score is not None and c.accepted != (c.score >= score) for c in result.candidates)


def _find_operating_point(
    results: Sequence[CaseResult], given: OperatingPoint | None, evaluated_on: str
) -> PointInUse:
    """Find the operating point in use: the given one, or that of the predictions.

    Its name is None if there is none, if the predictions state different ones, or if somebody
    accepted or rejected candidates after it was applied. It is optimistic if it was chosen on these
    cases, or if the program was developed on them.
    """
    predicted = [r for r in results if r.status == "ok"]
    unscored = [r.case for r in predicted if not r.has_scores]
    if given and unscored:
        _log.warning(
            "Cases without scores, whose candidates are all accepted: %s.", ", ".join(unscored)
        )
    # a given point has no effect if all cases lack scores
    is_applied = not unscored or len(unscored) < len(predicted)
    point = given
    if given is None or not is_applied:
        stated = {r.operating_point for r in predicted}
        if len(stated) > 1:
            _log.warning("The predictions state different operating points; none is reported.")
        point = stated.pop() if len(stated) == 1 else None
    roles = {evaluated_on, *(r.role for r in results)} - {""}
    is_developed_on = not roles.isdisjoint(DEVELOPMENT_ROLES)
    if point is None:
        return PointInUse(optimistic=is_developed_on, reason=NO_OPERATING_POINT)
    if given is None and any(_has_edited_flags(r, point.score) for r in predicted):
        return PointInUse(optimistic=is_developed_on, reason=NO_OPERATING_POINT)
    is_chosen_here = not roles.isdisjoint((point.chosen_on or "").split("+"))
    return PointInUse(
        name=point.name,
        score=point.score,
        chosen_on=point.chosen_on,
        optimistic=is_developed_on or is_chosen_here,
        is_default=point.is_default,
        expected_false_positives_per_case=point.expected_false_positives_per_case,
        confidence=point.confidence,
        n_cases=point.n_cases,
        n_patients=point.n_patients,
        n_false_positives=point.n_false_positives,
    )
