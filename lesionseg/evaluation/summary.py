"""Sum up the results of the cases as scores."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint, joint_unit
from lesionseg.evaluation import curves
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
from lesionseg.evaluation.scores import (
    Agreement,
    Counts,
    CriterionScores,
    Froc,
    LabelScores,
    LesionLoad,
    MeanEstimate,
    PointInUse,
    Provenance,
    Scores,
    Subgroup,
    SurfaceDice,
    SurfaceDistance,
    Unscored,
)
from lesionseg.evaluation.subgroups import (
    ZONE,
    Columns,
    Members,
    find_subgroups,
    recall_by_size,
    size_curve,
)
from lesionseg.host_memory import pause_collection

_log = logging.getLogger(__name__)

MIN_CASES_FOR_CPM = 8  # 1/8 false positive per case cannot be seen in fewer
DEVELOPMENT_ROLES = ("train", "validation")
NO_LESION_FREE_CASE = "there is no lesion-free case"
NO_MASKED_CASE = "no case with a reference lesion has masks to compare"
NOTHING_ACCEPTED = "no accepted candidate was counted"
NO_VOLUME = "an image of two axes, or a bare box, has no volume"
UNSCORED = "the candidates have no scores, and a score is never invented"
TOO_FEW_CASES_FOR_CPM = "fewer than 8 cases cannot show a rate of 1/8 per case"
ONE_KIND_OF_CASE = "cases with lesions and cases without are needed"
BOXES = "boxes have no voxels to compare"
NO_OPERATING_POINT = "the prediction's own accepted candidates were taken"


def _of_lesions(r: CaseResult) -> tuple[float, float]:
    return r.n_detected, len(r.lesions)


def _of_accepted(r: CaseResult) -> tuple[float, float]:
    n_true = r.n_outcome("true_positive")
    return n_true, n_true + r.n_outcome("false_positive")


def _f1(r: CaseResult) -> tuple[float, float]:
    return 2 * r.n_detected, r.n_detected + len(r.lesions) + r.n_outcome("false_positive")


def _false_per_case(r: CaseResult) -> tuple[float, float]:
    return r.n_outcome("false_positive"), r.annotated_share


def _false_per_lesion_free_case(r: CaseResult) -> tuple[float, float]:
    return r.is_lesion_free * r.n_outcome("false_positive"), r.is_lesion_free


def _without_false_positive(r: CaseResult) -> tuple[float, float]:
    return r.is_lesion_free and not r.n_outcome("false_positive"), r.is_lesion_free


# the numerator and denominator of a case, and why there may be none
RATIOS: Mapping[str, tuple[Callable[[CaseResult], tuple[float, float]], str]] = {
    "lesion_recall": (_of_lesions, NO_LESION),
    "lesion_precision": (_of_accepted, NOTHING_ACCEPTED),
    "lesion_f1": (_f1, NO_LESION),
    "false_positives_per_case": (_false_per_case, NO_CASE),
    "false_positives_per_lesion_free_case": (_false_per_lesion_free_case, NO_LESION_FREE_CASE),
    "specificity": (_without_false_positive, NO_LESION_FREE_CASE),
}


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """The facts about the cases, and the settings of the bootstrap.

    Args:
        evaluated_on: the role of the cases.
        operating_point: None for the one that all predictions state; bare masks have none.
        labels: names of label values; others are named by their value.
        split_is_group_safe: False if a patient is on both sides of the split; None if not known.
        replicates: number of resampled data sets of the bootstrap.
        seed: of the bootstrap.
        provenance: versions and hashes, copied.
        columns: the cells of a table by case and column; `slice_spacing_mm` is added.
        subgroups: the columns to divide by; None for all that divide.
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
    """Sum up the results of the cases as scores. Without results all numbers are undefined.

    Args:
        results: one per case.
        preset: the match rule that they were matched by.
        settings: the role of the cases, the operating point and the bootstrap.
    """
    whole = Summary(results, preset, settings.replicates, settings.seed)
    counts = whole.counts()
    made = {
        **settings.provenance,
        "preset": json.loads(json.dumps(asdict(preset))),  # lists, as when read back
        "bootstrap": {"replicates": settings.replicates, "seed": settings.seed},
    }
    columns = _with_slice_spacing(results, settings.columns)
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
        lesion_load=whole.lesion_load(),
        recall_by_size=recall_by_size(results, whole.groups, preset.size_edges_mm),
        size_curve=size_curve(results, whole.groups, whole.draws),
        size_unit=joint_unit(r.unit for r in results),
        calibration=describe_calibration(results) if whole.scored else Unscored(reason=UNSCORED),
        operating_point=_operating_point(results, settings.operating_point, settings.evaluated_on),
        other_criteria=whole.other_criteria(),
        subgroups=tuple(
            whole.subgroup(members)
            for members in find_subgroups(results, columns, settings.subgroups)
        ),
        per_label=_per_label(whole, settings.labels),
        split_is_group_safe=settings.split_is_group_safe,
        missing_predictions=tuple(r.case for r in results if r.status == "missing"),
        provenance=Provenance(made),
    )


def _with_slice_spacing(results: Sequence[CaseResult], columns: Columns) -> Columns:
    """Return the columns of each case, with the spacing of its slices if it is a volume."""
    found: dict[str, Mapping[str, str]] = {}
    for r in results:
        own = columns.get(r.case, {})
        if r.slice_spacing_mm is not None:
            own = {"slice_spacing_mm": f"{r.slice_spacing_mm:g}", **own}
        found[r.case] = own
    return found


class Summary:
    """The numbers of some cases; every interval resamples the same groups."""

    def __init__(
        self, results: Sequence[CaseResult], preset: Preset, replicates: int, seed: int
    ) -> None:
        self.results, self.preset, self.seed = results, preset, seed
        self.pool = Pool.of(results)
        self.groups = self.pool.groups
        self.draws = draw_groups(len(self.groups), replicates, np.random.default_rng(seed))
        self.scored = all(r.scored for r in results)

    def part(self, results: Sequence[CaseResult]) -> "Summary":
        """Return the summary of other results, with the same rule and bootstrap."""
        return Summary(results, self.preset, len(self.draws), self.seed)

    def sums(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Sum a value by case over the cases of each group `[groups]`."""
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
    def _has_boxes_only(self) -> bool:
        """True if no case with a lesion has masks to compare. A failed case is no 0 then."""
        drawn = [r.dice is not None for r in self.results if r.status == "ok" and r.lesions]
        return bool(drawn) and not any(drawn)

    def dice(self) -> MeanEstimate:
        """Compute the mean Dice of the cases with a lesion."""
        return self.mean([None if self._has_boxes_only else r.dice for r in self.results])

    def surface_dice(self) -> SurfaceDice:
        """Compute the mean surface Dice of the cases with a lesion."""
        found = self.mean([None if self._has_boxes_only else r.surface_dice for r in self.results])
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
        return SurfaceDistance(
            mean=found.mean,
            ci95=found.ci95,
            reason=found.reason,
            median=found.median,
            n=found.n,
            n_undefined=sum(bool(r.lesions) and r.hd95_mm is None for r in self.results),
        )

    def cpm(self) -> Estimate:
        """Compute the mean recall of the FROC; undefined for few cases."""
        found = self.of_curve(curves.cpm(self.pool, self.preset.fp_per_case))[0]
        if found.value is not None and len(self.results) < MIN_CASES_FOR_CPM:
            return Estimate(None, None, TOO_FEW_CASES_FOR_CPM)
        return found

    def ratio(self, name: str) -> Estimate:
        """Compute one of `RATIOS` of all cases, with the interval for a rate, an F1 or a share."""
        of_case, undefined = RATIOS[name]
        above, below = (self.sums([of_case(r)[k] for r in self.results]) for k in (0, 1))
        if name == "lesion_f1":
            lesions = self.pool.lesions_by_group
            statistic = ratio(above, below)
            return bootstrap(statistic, self.draws, lesions, undefined, len(self.results))[0]
        if name.startswith("false_positives"):
            return rate(above, below, undefined)
        return proportion(above, below, undefined)

    def mean(self, values: Sequence[float | None], *, is_share: bool = True) -> MeanEstimate:
        """Compute mean and median of the defined values of cases; shares are in 0 to 1."""
        defined = [v for v in values if v is not None]
        counted = self.sums([v is not None for v in values])
        total = self.sums([v or 0.0 for v in values])
        if is_share:
            estimate = proportion(total, counted, NO_MASKED_CASE, least_deff=0.0)
        else:
            statistic = ratio(total, counted)
            n = len(self.results)
            estimate = bootstrap(statistic, self.draws, counted, NO_MASKED_CASE, n)[0]
        return MeanEstimate(
            mean=estimate.value,
            ci95=estimate.ci95,
            reason=estimate.reason,
            median=float(np.median(defined)) if defined else None,
            n=len(defined),
        )

    def of_curve(self, statistic: Statistic) -> list[Estimate]:
        """Compute statistics of the pooled scores; undefined without scores."""
        if not self.scored:
            return [Estimate(None, None, UNSCORED)]
        items = len(self.pool.detected_at) + len(self.pool.false_score) + 1
        support = self.pool.lesions_by_group
        return bootstrap(statistic, self.draws, support, NO_LESION, items)

    def average_precision(self) -> Estimate:
        """Compute the average precision; undefined without scores."""
        return self.of_curve(curves.average_precision(self.pool))[0]

    def case_auroc(self) -> Estimate:
        """Compute the chance that a case with a lesion scores above one without."""
        if not self.scored:
            return Estimate(None, None, UNSCORED)
        known = ~np.isnan(self.pool.case_score)
        kinds = [
            np.bincount(self.pool.case_group[known & kind], minlength=len(self.groups))
            for kind in (self.pool.case_positive, ~self.pool.case_positive)
        ]
        if not all(kind.any() for kind in kinds):
            return Estimate(None, None, ONE_KIND_OF_CASE)
        support = min(kinds, key=np.count_nonzero).astype(np.float64)  # the rarer kind decides
        statistic = curves.case_auroc(self.pool)
        return bootstrap(statistic, self.draws, support, ONE_KIND_OF_CASE, len(self.results))[0]

    def froc(self) -> Froc:
        """Compute the recall at the preset's rates of false positives per case."""
        rates = self.preset.fp_per_case
        if not self.scored or not len(self.pool.detected_at):
            why = NO_LESION if self.scored else UNSCORED
            return Froc(fp_per_case=rates, recall=None, ci95=None, reason=why)
        points = self.of_curve(curves.froc(self.pool, rates))
        return Froc(
            fp_per_case=rates,
            recall=tuple(p.value for p in points),
            ci95=tuple(p.ci95 for p in points),
            reason=next((p.reason for p in points if p.reason), None),
        )

    def panoptic_quality(self) -> Estimate:
        """Compute Σ IoU of one-to-one pairs / (pairs + ½ false positives + ½ missed lesions).

        Kirillov et al. 2019.
        """
        if any(iou is None for r in self.results for iou in r.pair_ious):
            return Estimate(None, None, BOXES)
        iou = self.sums([sum(filter(None, r.pair_ious)) for r in self.results])
        found = self.sums([len(r.pair_ious) for r in self.results])
        false = self.sums([r.n_unpaired for r in self.results])
        lesions = self.pool.lesions_by_group
        statistic = ratio(2 * iou, found + lesions + false)
        return bootstrap(statistic, self.draws, lesions, NO_LESION, len(self.results))[0]

    def lesion_load(self) -> LesionLoad:
        """Compute the agreement of volume (undefined in 2-D) and of number of lesions by case."""
        volumes = [(r.reference_ml, r.predicted_ml) for r in self.results]
        counts = [(len(r.lesions), sum(c.accepted for c in r.candidates)) for r in self.results]
        return LesionLoad(
            volume_ml=self._agreement(volumes, NO_VOLUME),
            n_lesions=self._agreement(counts, NO_CASE),
        )

    def _agreement(
        self, pairs: Sequence[tuple[float | None, float | None]], undefined: str
    ) -> Agreement:
        """Compute the mean of predicted minus reference, ± 1.96 standard deviations.

        Bland & Altman 1986.
        """
        errors = [None if x is None or y is None else y - x for x, y in pairs]
        n, d, d2 = (
            self.sums([0.0 if e is None else e**power for e in errors]) for power in (0, 1, 2)
        )

        def statistic(weights: Weights) -> NDArray[np.float64]:
            count, total, squares = weights @ n, weights @ d, weights @ d2
            with np.errstate(invalid="ignore", divide="ignore"):
                bias = total / count
                reach = Z95 * np.sqrt(np.maximum(squares - count * bias**2, 0.0) / (count - 1))
            found = np.stack([bias, bias - reach, bias + reach], axis=1)
            return np.where(count[:, None] > 1, found, np.nan)

        bias, lower, upper = bootstrap(statistic, self.draws, n, undefined, 6)
        return Agreement(n=int(n.sum()), bias=bias, lower_limit=lower, upper_limit=upper)

    def other_criteria(self) -> dict[str, CriterionScores]:
        """Compute recall and false positives of the accepted candidates by the side criteria."""
        found = {}
        for name in (criterion.name for criterion in SIDE_CRITERIA):
            hits, false = (self.sums([r.sides[name][i] for r in self.results]) for i in (0, 1))
            found[name] = CriterionScores(
                lesion_recall=proportion(hits, self.pool.lesions_by_group, NO_LESION),
                false_positives_per_case=rate(false, self.pool.cases_by_group, NO_CASE),
            )
        return found

    def subgroup(self, members: Members) -> Subgroup:
        """Compute recall, false positives per case and mean Dice of a subgroup."""
        part = self.part(members.results)
        counts = part.counts()
        dice = [r.dice for r in part.results if r.dice is not None and members.by != ZONE]
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


def _per_label(whole: Summary, labels: Mapping[int, str]) -> dict[str, LabelScores]:
    """Compute the numbers of each label by itself or, if there are regions, of each region."""
    results = whole.results
    found: dict[str, LabelScores] = {}
    for name in dict.fromkeys(name for r in results for name in r.regions):
        own = [r.regions[name] for r in results if name in r.regions]
        found[name] = _label_scores(whole.part(own), [r.dice for r in own])
    if found:
        return found
    seen = {x.label for r in results for items in (r.lesions, r.candidates) for x in items}
    for label in sorted(seen | set(labels)):
        own = [_of_label(r, label) for r in results if r.annotated.get(label, True)]
        dice = [r.dice_by_label.get(label) if r.lesions else None for r in own]
        found[labels.get(label, str(label))] = _label_scores(whole.part(own), dice)
    return found


def _label_scores(part: Summary, dice: Sequence[float | None]) -> LabelScores:
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
    )


def _of_label(result: CaseResult, label: int) -> CaseResult:
    part = result.within_labels or result
    return replace(
        result,
        annotated={},
        lesions=tuple(x for x in part.lesions if x.label == label),
        candidates=tuple(c for c in part.candidates if c.label == label),
    )


def _operating_point(
    results: Sequence[CaseResult], given: OperatingPoint | None, evaluated_on: str
) -> PointInUse:
    """Return the point that decided, and whether it is optimistic on these cases.

    It is if it was chosen on them, or if the program was developed on them.
    """
    predicted = [r for r in results if r.status == "ok"]
    unscored = [r.case for r in predicted if not r.scored]
    if given and unscored:
        _log.warning("No scores, so all their candidates stay accepted: %s", ", ".join(unscored))
    applies = given is not None and (not unscored or len(unscored) < len(predicted))
    stated = {given} if applies else {r.operating_point for r in predicted}
    if len(stated) > 1:
        _log.warning("The predictions state different operating points; none is reported.")
    point = stated.pop() if len(stated) == 1 else None
    is_developed_on = evaluated_on in DEVELOPMENT_ROLES
    if point is None:
        return PointInUse(optimistic=is_developed_on, reason=NO_OPERATING_POINT)
    is_chosen_here = point.chosen_on is not None and evaluated_on in point.chosen_on.split("+")
    return PointInUse(
        name=point.name,
        score=point.score,
        chosen_on=point.chosen_on,
        optimistic=is_developed_on or is_chosen_here,
        is_default=point.is_default,
        expected_false_positives_per_case=point.expected_false_positives_per_case,
        confidence=point.confidence,
    )
