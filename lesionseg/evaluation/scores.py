"""scores.json: every number of an evaluation, from the results of its cases.

A number is a mapping of `value` (a mean over cases: `mean` and `median`) and `ci95`; where one of
them is null, `reason` says why.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint, joint_unit
from lesionseg.evaluation import curves
from lesionseg.evaluation.calibration import describe_calibration
from lesionseg.evaluation.cases import CaseResult
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
from lesionseg.evaluation.subgroups import (
    ZONE,
    Columns,
    Members,
    find_subgroups,
    recall_by_size,
    size_curve,
)
from lesionseg.ops.host_memory import without_collection

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
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

# of a case: numerator and denominator; and why there may be none
RATIOS: Mapping[str, tuple[Callable[[CaseResult], tuple[float, float]], str]] = {
    "lesion_recall": (lambda r: (r.n_detected, len(r.lesions)), NO_LESION),
    "lesion_precision": (
        lambda r: (
            r.n_outcome("true_positive"),
            r.n_outcome("true_positive") + r.n_outcome("false_positive"),
        ),
        NOTHING_ACCEPTED,
    ),
    "lesion_f1": (
        lambda r: (
            2 * r.n_detected,
            r.n_detected + len(r.lesions) + r.n_outcome("false_positive"),
        ),
        NO_LESION,
    ),
    "false_positives_per_case": (
        lambda r: (r.n_outcome("false_positive"), r.annotated_share),
        NO_CASE,
    ),
    "false_positives_per_lesion_free_case": (
        lambda r: (r.is_lesion_free * r.n_outcome("false_positive"), r.is_lesion_free),
        NO_LESION_FREE_CASE,
    ),
    "specificity": (
        lambda r: (r.is_lesion_free and not r.n_outcome("false_positive"), r.is_lesion_free),
        NO_LESION_FREE_CASE,
    ),
}


@without_collection()
def summarise(
    results: Sequence[CaseResult],
    preset: Preset,
    *,
    evaluated_on: str,
    operating_point: OperatingPoint | None = None,
    labels: Mapping[int, str] | None = None,
    split_is_group_safe: bool | None = None,
    replicates: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    subgroups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The content of scores.json, as docs/evaluation.md describes it.

    No result at all gives nulls throughout.

    Args:
        results: one per case.
        preset: the match rule that they were matched by.
        evaluated_on: the role of the cases.
        operating_point: None for the one that all predictions state; bare masks have none.
        labels: names of label values; others are named by their value.
        split_is_group_safe: whether no patient is on both sides of the split; None: not known.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        provenance: versions and hashes, copied.
        columns: what a table says of each case, by case and column; `slice_spacing_mm` is added.
        subgroups: the columns to divide by; None for all that divide.
    """
    whole = Summary(results, preset, replicates, seed)
    spaced = {
        r.case: {"slice_spacing_mm": f"{r.slice_spacing_mm:g}", **(columns or {}).get(r.case, {})}
        if r.slice_spacing_mm is not None
        else (columns or {}).get(r.case, {})
        for r in results
    }
    point = _operating_point(results, operating_point, evaluated_on)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluated_on": evaluated_on,
        "preset": preset.name,
        **whole.counts(),
        **whole.numbers(),
        "recall_by_size": recall_by_size(results, whole.groups, preset.size_edges_mm),
        "size_curve": size_curve(results, whole.groups, whole.draws),
        "size_unit": joint_unit(r.unit for r in results),
        "calibration": describe_calibration(results) if whole.scored else {"reason": UNSCORED},
        "operating_point": point,
        "other_criteria": whole.other_criteria(),
        "subgroups": [
            whole.subgroup(members) for members in find_subgroups(results, spaced, subgroups)
        ],
        "per_label": _per_label(whole, labels or {}),
        "split_is_group_safe": split_is_group_safe,
        "missing_predictions": [r.case for r in results if r.status == "missing"],
        "provenance": {
            **(provenance or {}),
            "preset": json.loads(json.dumps(asdict(preset))),  # lists, as when read back
            "bootstrap": {"replicates": replicates, "seed": seed},
        },
    }


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
        """The same of other results."""
        return Summary(results, self.preset, len(self.draws), self.seed)

    def sums(self, values: Sequence[float]) -> NDArray[np.float64]:
        """A value by case, summed by group."""
        return sums_by_group(self.groups, self.results, values)

    def counts(self) -> dict[str, int]:
        """The counts of cases, lesions and candidates."""
        n_lesions = sum(len(r.lesions) for r in self.results)
        n_found = sum(r.n_detected for r in self.results)
        return {
            "n_cases": len(self.results),
            "n_groups": len(self.groups),
            "n_lesion_free_cases": sum(r.is_lesion_free for r in self.results),
            "n_lesions": n_lesions,
            "n_candidates": sum(len(r.candidates) for r in self.results),
            "n_true_positive": n_found,
            "n_false_positive": sum(r.n_outcome("false_positive") for r in self.results),
            "n_missed": n_lesions - n_found,
        }

    def numbers(self) -> dict[str, Any]:
        """Every number that has an interval."""
        drawn = [r.dice is not None for r in self.results if r.status == "ok" and r.lesions]
        all_boxes = bool(drawn) and not any(drawn)  # beside which a failed case is no 0
        surface = self.mean([None if all_boxes else r.surface_dice for r in self.results])
        n_undefined = sum(bool(r.lesions) and r.hd95_mm is None for r in self.results)
        distance = self.mean([r.hd95_mm for r in self.results], is_share=False)
        cpm = self.of_curve(curves.cpm(self.pool, self.preset.fp_per_case))[0]
        if cpm.value is not None and len(self.results) < MIN_CASES_FOR_CPM:
            cpm = Estimate(None, None, TOO_FEW_CASES_FOR_CPM)
        return {
            "dice": self.mean([None if all_boxes else r.dice for r in self.results]),
            "surface_dice": {**surface, "tolerance_mm": self.preset.surface_tolerance_mm},
            "hd95_mm": {**distance, "n_undefined": n_undefined},
            **{name: self.ratio(name).to_json() for name in RATIOS},
            "cpm": cpm.to_json(),
            "average_precision": self.average_precision().to_json(),
            "case_auroc": self.case_auroc().to_json(),
            "panoptic_quality": self.panoptic_quality().to_json(),
            "froc": self.froc(),
            "lesion_load": self.lesion_load(),
        }

    def ratio(self, name: str) -> Estimate:
        """One of `RATIOS` of all cases: a rate, F1 by the bootstrap, else a share."""
        of_case, undefined = RATIOS[name]
        above, below = (self.sums([of_case(r)[k] for r in self.results]) for k in (0, 1))
        if name == "lesion_f1":
            lesions = self.pool.lesions_by_group
            statistic = ratio(above, below)
            return bootstrap(statistic, self.draws, lesions, undefined, len(self.results))[0]
        if name.startswith("false_positives"):
            return rate(above, below, undefined)
        return proportion(above, below, undefined)

    def mean(self, values: Sequence[float | None], *, is_share: bool = True) -> dict[str, Any]:
        """Mean and median of the defined values of cases; shares lie between 0 and 1."""
        defined = [v for v in values if v is not None]
        counted = self.sums([v is not None for v in values])
        total = self.sums([v or 0.0 for v in values])
        if is_share:
            estimate = proportion(total, counted, NO_MASKED_CASE, least_deff=0.0)
        else:
            statistic = ratio(total, counted)
            n = len(self.results)
            estimate = bootstrap(statistic, self.draws, counted, NO_MASKED_CASE, n)[0]
        median = float(np.median(defined)) if defined else None
        return {**estimate.to_json("mean"), "median": median, "n": len(defined)}

    def of_curve(self, statistic: Statistic) -> list[Estimate]:
        """Statistics of the pooled scores; undefined without any."""
        if not self.scored:
            return [Estimate(None, None, UNSCORED)]
        items = len(self.pool.detected_at) + len(self.pool.false_score) + 1
        support = self.pool.lesions_by_group
        return bootstrap(statistic, self.draws, support, NO_LESION, items)

    def average_precision(self) -> Estimate:
        """Average precision; undefined without scores."""
        return self.of_curve(curves.average_precision(self.pool))[0]

    def case_auroc(self) -> Estimate:
        """Chance that a case with a lesion scores above one without."""
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

    def froc(self) -> dict[str, Any]:
        """The curve at the preset's rates."""
        rates = list(self.preset.fp_per_case)
        if not self.scored or not len(self.pool.detected_at):
            why = NO_LESION if self.scored else UNSCORED
            return {"fp_per_case": rates, "recall": None, "ci95": None, "reason": why}
        points = self.of_curve(curves.froc(self.pool, rates))
        reason = next((p.reason for p in points if p.reason), None)
        return {
            "fp_per_case": rates,
            "recall": [p.value for p in points],
            "ci95": [None if p.ci95 is None else list(p.ci95) for p in points],
            **({"reason": reason} if reason else {}),
        }

    def panoptic_quality(self) -> Estimate:
        """Σ IoU of one-to-one pairs / (pairs + ½ false positives + ½ missed; Kirillov 2019)."""
        if any(iou is None for r in self.results for iou in r.pair_ious):
            return Estimate(None, None, BOXES)
        iou, found, false = (
            self.sums(values)
            for values in (
                [sum(filter(None, r.pair_ious)) for r in self.results],
                [len(r.pair_ious) for r in self.results],
                [r.n_unpaired for r in self.results],
            )
        )
        lesions = self.pool.lesions_by_group
        statistic = ratio(2 * iou, found + lesions + false)
        return bootstrap(statistic, self.draws, lesions, NO_LESION, len(self.results))[0]

    def lesion_load(self) -> dict[str, Any]:
        """Agreement of volume (ml; None in 2-D) and of number of lesions by case."""
        volumes = [(r.reference_ml, r.predicted_ml) for r in self.results]
        counts = [(len(r.lesions), sum(c.accepted for c in r.candidates)) for r in self.results]
        return {
            "volume_ml": self._agreement(volumes, NO_VOLUME),
            "n_lesions": self._agreement(counts, NO_CASE),
        }

    def _agreement(
        self, pairs: Sequence[tuple[float | None, float | None]], undefined: str
    ) -> dict[str, Any]:
        """Mean of predicted minus reference, ± 1.96 standard deviations (Bland & Altman 1986)."""
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

        found = bootstrap(statistic, self.draws, n, undefined, 6)
        names = ("bias", "lower_limit", "upper_limit")
        return {
            "n": int(n.sum()),
            **{name: one.to_json() for name, one in zip(names, found, strict=True)},
        }

    def other_criteria(self) -> dict[str, Any]:
        """Recall and false positives of the accepted candidates under the side criteria."""
        found = {}
        for name in (criterion.name for criterion in SIDE_CRITERIA):
            hits, false = (self.sums([r.sides[name][i] for r in self.results]) for i in (0, 1))
            recall = proportion(hits, self.pool.lesions_by_group, NO_LESION)
            false_positives = rate(false, self.pool.cases_by_group, NO_CASE)
            found[name] = {
                "lesion_recall": recall.to_json(),
                "false_positives_per_case": false_positives.to_json(),
            }
        return found

    def subgroup(self, members: Members) -> dict[str, Any]:
        """Recall and false positives per case with intervals, and mean Dice, of a subgroup."""
        part = self.part(members.results)
        counts = part.counts()
        dice = [r.dice for r in part.results if r.dice is not None and members.by != ZONE]
        return {
            "by": members.by,
            "value": members.value,
            **{name: counts[name] for name in ("n_cases", "n_groups", "n_lesions")},
            "n_detected": counts["n_true_positive"],
            "lesion_recall": part.ratio("lesion_recall").to_json(),
            "false_positives_per_case": part.ratio("false_positives_per_case").to_json(),
            "dice": float(np.mean(dice)) if dice else None,
        }


def _per_label(whole: Summary, labels: Mapping[int, str]) -> dict[str, Any]:
    """The numbers of each label within itself or, where there are any, of each region."""
    results = whole.results
    parts: dict[str, tuple[list[CaseResult], list[float | None]]] = {}
    for name in dict.fromkeys(name for r in results for name in r.regions):
        part = [r.regions[name] for r in results if name in r.regions]
        parts[name] = part, [r.dice for r in part]
    if not parts:
        seen = {x.label for r in results for items in (r.lesions, r.candidates) for x in items}
        for label in sorted(seen | set(labels)):
            part = [_of_label(r, label) for r in results if r.annotated.get(label, True)]
            dice = [r.dice_by_label.get(label) if r.lesions else None for r in part]
            parts[labels.get(label, str(label))] = part, dice
    found: dict[str, Any] = {}
    for name, (part, dice) in parts.items():
        one = whole.part(part)
        ratios = ("lesion_recall", "lesion_precision", "false_positives_per_case")
        found[name] = one.counts() | {
            "dice": one.mean(dice),
            **{ratio: one.ratio(ratio).to_json() for ratio in ratios},
            "average_precision": one.average_precision().to_json(),
        }
    return found


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
) -> dict[str, Any]:
    """The point, and whether choosing it on these cases, or developing on them, flatters.

    With what its choice led to expect of unseen cases, where that is known.
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
    chosen_on = point.chosen_on if point else None
    chosen_here = chosen_on is not None and evaluated_on in chosen_on.split("+")
    found = {
        "name": point.name if point else None,
        "score": point.score if point else None,
        "chosen_on": chosen_on,
        "optimistic": evaluated_on in DEVELOPMENT_ROLES or chosen_here,
    }
    if point is None:
        return {**found, "reason": NO_OPERATING_POINT}
    if point.is_default:
        found["is_default"] = True
    expected = ("expected_false_positives_per_case", "confidence")
    return {**found, **{name: v for name in expected if (v := getattr(point, name)) is not None}}
