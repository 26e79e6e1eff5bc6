"""Summarise the tables of all cases as scores."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint
from lesionseg.evaluation import curves
from lesionseg.evaluation.box_precision import IOUS, RANGES, BoxHits
from lesionseg.evaluation.calibration import describe_calibration
from lesionseg.evaluation.criteria import SECONDARY_CRITERIA, Preset
from lesionseg.evaluation.intervals import (
    NO_CASE,
    NO_LESION,
    Z95,
    Draws,
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
    PointInUse,
    Provenance,
    Scores,
)
from lesionseg.evaluation.subgroups import ZONE, Columns, find_subgroups
from lesionseg.evaluation.tables import Tables
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

Terms = tuple[NDArray[np.float64], NDArray[np.float64]]


def _recall_terms(tables: Tables) -> Terms:
    """Return the found and all lesions of each group."""
    return tables.count_lesions(tables.lesions["detected"]), tables.lesions_by_group


def _precision_terms(tables: Tables) -> Terms:
    """Return the true positives of each group, and its true and false positives."""
    true = tables.count_candidates(tables.has_outcome("true_positive"))
    return true, true + tables.sum_cases(tables.false_by_case)


def _f1_terms(tables: Tables) -> Terms:
    """Return 2·TP and 2·TP + FP + FN of each group."""
    found, lesions = _recall_terms(tables)
    return 2 * found, found + lesions + tables.sum_cases(tables.false_by_case)


def _false_positive_terms(tables: Tables) -> Terms:
    """Return the false positives of each group and its number of cases."""
    return tables.sum_cases(tables.false_by_case), tables.cases_by_group


def _lesion_free_false_positive_terms(tables: Tables) -> Terms:
    """Return the false positives in lesion-free cases of each group and their number."""
    false = tables.false_by_case * tables.is_lesion_free
    return tables.sum_cases(false), tables.sum_cases(tables.is_lesion_free)


def _specificity_terms(tables: Tables) -> Terms:
    """Return the lesion-free cases without a false positive and all lesion-free cases."""
    is_clean = (tables.false_by_case == 0) & tables.is_lesion_free
    return tables.sum_cases(is_clean), tables.sum_cases(tables.is_lesion_free)


# by name: numerator and denominator of each group, and the reason if the sum of the latter is 0
RATIOS: Mapping[str, tuple[Callable[[Tables], Terms], str]] = {
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
def summarise(tables: Tables, preset: Preset, settings: SummarySettings) -> Scores:
    """Summarise the tables of the cases as scores.

    Args:
        tables: The evaluated cases. Without cases, all numbers are undefined.
        preset: The match rule by which the cases were matched.
        settings: The role of the cases, the operating point and the bootstrap.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: if a column in `settings.subgroups` is missing or has too many words.
    """
    whole = Summary(tables, preset, settings.replicates, settings.seed)
    scale = SizeScale.of(tables, preset)
    rows = [
        *whole.counts(),
        *whole.overlap(),
        *(whole.ratio(name) for name in RATIOS),
        whole.cpm(),
        whole.average_precision(),
        whole.case_auroc(),
        whole.panoptic_quality(),
        *whole.froc(),
        *whole.box_precision(),
        *whole.lesion_load(),
        *recall_by_size(tables, scale),
        *size_curve(tables, whole.draws, scale),
        *whole.calibration(),
        *whole.other_criteria(),
        *whole.by_label(settings.labels),
    ]
    columns = _with_slice_spacing(tables, settings.columns)
    for name, part in find_subgroups(tables, columns, settings.subgroups):
        rows += whole.subgroup(name, part)
    made = {
        **settings.provenance,
        "preset": json.loads(json.dumps(asdict(preset))),  # turns tuples into lists, as in a file
        "bootstrap": {"replicates": settings.replicates, "seed": settings.seed},
    }
    cases = tables.cases
    return Scores(
        rows=tuple(rows),
        evaluated_on=settings.evaluated_on,
        preset=preset.name,
        image_axes=tuple(sorted(set(cases["axes"].tolist()))),
        size_unit=scale.unit,
        operating_point=_find_operating_point(
            tables, settings.operating_point, settings.evaluated_on
        ),
        split_is_group_safe=settings.split_is_group_safe,
        missing_predictions=tuple(cases["case"][~tables.is_predicted]),
        provenance=Provenance(made),
    )


def _with_slice_spacing(tables: Tables, columns: Columns) -> Columns:
    """Add the column `slice_spacing_mm` to the cases that are volumes, as a subgroup.

    A column of this name in the table has priority.
    """
    found: dict[str, Mapping[str, str]] = {}
    spacings = tables.cases["slice_spacing_mm"]
    for case, spacing_mm in zip(tables.cases["case"], spacings, strict=True):
        own = columns.get(case, {})
        if not np.isnan(spacing_mm):
            own = {"slice_spacing_mm": f"{spacing_mm:g}", **own}
        found[case] = own
    return found


class Summary:
    """The numbers of some cases. All intervals resample the same groups."""

    def __init__(self, tables: Tables, preset: Preset, replicates: int, seed: int) -> None:
        self.tables = tables
        self.preset = preset
        self.replicates = replicates
        self.seed = seed
        self.has_scores = tables.has_scores
        self.n_cases = len(tables.cases)

    @cached_property
    def draws(self) -> Draws:
        """The groups that each replicate draws. Numbers without a bootstrap do not need them."""
        rng = np.random.default_rng(self.seed)
        return draw_groups(len(self.tables.groups), self.replicates, rng)

    def part(self, tables: Tables) -> "Summary":
        """Return the summary of other tables, with the same match rule and bootstrap settings."""
        return Summary(tables, self.preset, self.replicates, self.seed)

    def counts(self) -> list[Estimate]:
        """Count cases, lesions and candidates."""
        tables = self.tables
        n_lesions = len(tables.lesions)
        n_found = int(tables.lesions["detected"].sum())
        numbers = {
            "n_cases": self.n_cases,
            "n_groups": len(tables.groups),
            "n_lesion_free_cases": int(tables.is_lesion_free.sum()),
            "n_lesions": n_lesions,
            "n_candidates": len(tables.candidates),
            "n_true_positive": n_found,
            "n_false_positive": int(tables.false_by_case.sum()),
            "n_missed": n_lesions - n_found,
        }
        return [Estimate(number, name=name) for name, number in numbers.items()]

    def overlap(self) -> Iterator[Estimate]:
        """Yield mean and median of Dice, surface Dice and HD95 of the cases with a lesion."""
        cases = self.tables.cases
        shares = cases[["dice", "surface_dice"]]
        if self.tables.lacks_masks:
            shares = shares.mask(shares.notna())
        yield from self.mean("dice", shares["dice"])
        yield from self.mean("surface_dice", shares["surface_dice"])
        mean, median = self.mean("hd95_mm", cases["hd95_mm"], is_share=False)
        if mean.value is None and shares["dice"].notna().any():
            mean = replace(mean, reason=NO_SURFACES)
        n_undefined = int((self.tables.has_lesion & cases["hd95_mm"].isna()).sum())
        yield from (mean, median, Estimate(n_undefined, name="hd95_mm_undefined"))

    def mean(
        self, name: str, values: "pd.Series[float]", *, is_share: bool = True
    ) -> tuple[Estimate, Estimate]:
        """Compute mean and median of the defined values of the cases.

        `is_share`: the values are between 0 and 1, which allows Wilson's interval.
        """
        defined = values.dropna()
        counted = self.tables.sum_cases(values.notna())
        total = self.tables.sum_cases(values.fillna(0.0))
        if is_share:
            mean = proportion(total, counted, NO_MASKED_CASE, least_deff=0.0)
        else:
            statistic = ratio(total, counted)
            (mean,) = bootstrap(
                statistic, self.draws, counted, NO_MASKED_CASE, self.n_cases, bounds=[None]
            )
        n = len(defined)
        median = float(np.median(defined)) if n else None
        return (
            replace(mean, name=name, n=n),
            Estimate(median, reason=None if n else mean.reason, name=f"{name}_median", n=n),
        )

    def ratio(self, name: str) -> Estimate:
        """Compute one of `RATIOS` over all cases, with the interval that suits it.

        F1 is neither a proportion of independent items nor a rate, so it is bootstrapped.
        """
        terms_of, undefined = RATIOS[name]
        above, below = terms_of(self.tables)
        if name == "lesion_f1":
            lesions = self.tables.lesions_by_group
            statistic = ratio(above, below)
            (found,) = bootstrap(statistic, self.draws, lesions, undefined, self.n_cases)
        elif name in _RATES:
            found = rate(above, below, undefined)
        else:
            found = proportion(above, below, undefined)
        return replace(found, name=name)

    def of_curve(self, statistic: Statistic) -> list[Estimate]:
        """Compute a statistic of the pooled scores. It is undefined without scores."""
        if not self.has_scores:
            return [Estimate(None, None, UNSCORED)]
        # the curves accumulate lesions and false positives, from 0
        items = len(self.tables.detected_at) + len(self.tables.false_score) + 1
        support = self.tables.lesions_by_group
        return bootstrap(statistic, self.draws, support, NO_LESION, items)

    def cpm(self) -> Estimate:
        """Compute the mean recall of the FROC. It is undefined for fewer than 8 cases."""
        (found,) = self.of_curve(curves.cpm(self.tables, self.preset.fp_per_case))
        if found.value is not None and self.n_cases < MIN_CASES_FOR_CPM:
            found = Estimate(None, None, TOO_FEW_CASES_FOR_CPM)
        return replace(found, name="cpm")

    def average_precision(self) -> Estimate:
        """Compute the average precision. It is undefined without scores."""
        (found,) = self.of_curve(curves.average_precision(self.tables))
        return replace(found, name="average_precision")

    def froc(self) -> list[Estimate]:
        """Compute the recall at the preset's rates of false positives per case."""
        rates = self.preset.fp_per_case
        points = self.of_curve(curves.froc(self.tables, rates))
        if not self.has_scores:
            points *= len(rates)
        pairs = zip(points, rates, strict=True)
        return [replace(point, name="froc", at=at) for point, at in pairs]

    def case_auroc(self) -> Estimate:
        """Compute the chance that a case with a lesion has a higher score than one without."""
        if not self.has_scores:
            return Estimate(None, None, UNSCORED, name="case_auroc")
        tables = self.tables
        kinds = [tables.sum_cases(tables.has_lesion), tables.sum_cases(tables.is_lesion_free)]
        found = Estimate(None, None, ONE_KIND_OF_CASE)
        if all(kind.any() for kind in kinds):
            # the kind of case with fewer groups decides if an interval is possible
            support = min(kinds, key=np.count_nonzero)
            statistic = curves.case_auroc(tables)
            (found,) = bootstrap(statistic, self.draws, support, ONE_KIND_OF_CASE, self.n_cases)
        return replace(found, name="case_auroc")

    def box_precision(self) -> list[Estimate]:
        """Compute the average precision of bounding boxes and the RSNA score.

        The precision is the mean over labels. Candidates beyond `MAX_PER_CASE` of a case and label
        are left out and counted.
        """
        tables = self.tables
        hits = BoxHits.of(tables)
        support = tables.lesions_by_group
        if self.has_scores and support.any():
            statistic = hits.average_precision(tables)
            items = len(hits.rows) + 1
            estimates = bootstrap(statistic, self.draws, support, NO_LESION, items)
            by_case = hits.rsna_by_case(tables)
            counted = tables.sum_cases(~np.isnan(by_case))
            total = tables.sum_cases(np.nan_to_num(by_case))
            rsna = proportion(total, counted, NO_LESION, least_deff=0.0)
        else:
            rsna = Estimate(None, None, NO_LESION if self.has_scores else UNSCORED)
            estimates = [rsna] * (len(IOUS) + len(RANGES))
        at_iou = zip(estimates, IOUS, strict=False)
        in_range = zip(estimates[len(IOUS) :], RANGES, strict=True)
        return [
            *(replace(one, name="box_average_precision", at=iou) for one, iou in at_iou),
            *(replace(one, name=name) for one, name in in_range),
            replace(rsna, name="rsna_score"),
            Estimate(hits.n_left_out, name="box_candidates_left_out"),
        ]

    def panoptic_quality(self) -> Estimate:
        """Compute Σ IoU of one-to-one pairs / (pairs + ½ false positives + ½ missed lesions).

        Kirillov et al. 2019.
        """
        tables = self.tables
        cases = tables.cases
        if tables.lacks_masks or cases["pair_iou"].isna().any():
            return Estimate(None, None, BOXES, name="panoptic_quality")
        iou = tables.sum_cases(cases["pair_iou"])
        found = tables.sum_cases(cases["n_pairs"])
        false = tables.sum_cases(cases["n_unpaired"])
        lesions = tables.lesions_by_group
        statistic = ratio(2 * iou, found + lesions + false)
        (quality,) = bootstrap(statistic, self.draws, lesions, NO_LESION, self.n_cases)
        return replace(quality, name="panoptic_quality")

    def lesion_load(self) -> list[Estimate]:
        """Compute the agreement of the lesion volume and of the number of lesions of a case.

        Cases without a prediction are left out. The volume is undefined in 2-D, and also if a case
        has boxes without voxels: the remaining cases would mostly be those without a detection.
        """
        cases = self.tables.cases
        is_predicted = self.tables.is_predicted
        volumes = cases["predicted_ml"] - cases["reference_ml"]
        if (volumes.isna() & (cases["axes"] == 3)).any():
            volumes = volumes.mask(volumes.notna())
        counts = (cases["n_counted"] - cases["n_lesions"]).astype(np.float64)
        return [
            *self._measure_agreement("volume_ml", volumes.where(is_predicted), NO_VOLUME),
            *self._measure_agreement("n_lesions", counts.where(is_predicted), NO_CASE),
        ]

    def _measure_agreement(
        self, name: str, errors: "pd.Series[float]", undefined: str
    ) -> list[Estimate]:
        """Compute the bias and limits of agreement of predicted minus reference values.

        The bias is the mean. The limits are ± 1.96 standard deviations from it (Bland & Altman
        1986).
        """
        counts = self.tables.sum_cases(errors.notna())
        sums = self.tables.sum_cases(errors.fillna(0.0))
        squares = self.tables.sum_cases(errors.fillna(0.0) ** 2)

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
        estimates = bootstrap(statistic, self.draws, counts, undefined, items=6, bounds=[None] * 3)
        names = (f"{name}_bias", f"{name}_lower_limit", f"{name}_upper_limit")
        n = int(counts.sum())
        pairs = zip(estimates, names, strict=True)
        return [replace(one, name=name_of_one, n=n) for one, name_of_one in pairs]

    def calibration(self) -> list[Estimate]:
        """Measure the calibration of the scores. It is undefined without scores."""
        if not self.has_scores:
            return [Estimate(None, reason=UNSCORED, name="calibration_slope")]
        return describe_calibration(self.tables)

    def other_criteria(self) -> list[Estimate]:
        """Compute recall and false positives of accepted candidates by the secondary criteria."""
        tables = self.tables
        rows = []
        for criterion in SECONDARY_CRITERIA:
            hits = tables.count_lesions(tables.lesions[criterion.name])
            false = tables.sum_cases(tables.cases[f"n_false_{criterion.name}"])
            recall = proportion(hits, tables.lesions_by_group, NO_LESION)
            false_rate = rate(false, tables.cases_by_group, NO_CASE)
            subset = f"criterion: {criterion.name}"
            rows.append(replace(recall, name="lesion_recall", subset=subset))
            rows.append(replace(false_rate, name="false_positives_per_case", subset=subset))
        return rows

    def subgroup(self, name: str, tables: Tables) -> list[Estimate]:
        """Compute recall, false positives per case and mean Dice of a subgroup.

        A zone has no Dice, because the Dice of a case concerns all of its zones.
        """
        part = self.part(tables)
        rows = [
            *(one for one in part.counts() if one.name != "n_lesion_free_cases"),
            part.ratio("lesion_recall"),
            part.ratio("false_positives_per_case"),
        ]
        dice = tables.cases["dice"].dropna()
        if len(dice) and not self.tables.lacks_masks and not name.startswith(f"{ZONE}: "):
            rows.append(Estimate(float(np.mean(dice)), name="dice", n=len(dice)))
        return [replace(row, subset=name) for row in rows]

    def by_label(self, labels: Mapping[int, str]) -> list[Estimate]:
        """Compute the numbers of each region or, without regions, of each label.

        Regions need their mask values in every prediction. Boxes and masks of other programs state
        none, so the union of all regions then counts as the only label.
        """
        tables = self.tables
        parts = {name: tables.of_region(name) for name in tables.regions}
        predicted = tables.cases["case"][tables.is_predicted]
        has_regions = {case for part in parts.values() for case in part.cases["case"]}
        if not parts or not has_regions.issuperset(predicted):
            values = {*labels, *tables.lesions["label"], *tables.candidates["label"]}
            parts = {labels.get(x, str(x)): tables.of_label(x) for x in sorted(values)}
        rows: list[Estimate] = []
        for name, part in parts.items():
            own = self.part(part)
            numbers = [
                *own.counts(),
                *own.mean("dice", part.cases["dice"]),
                own.ratio("lesion_recall"),
                own.ratio("lesion_precision"),
                own.ratio("false_positives_per_case"),
                own.average_precision(),
                *own.box_precision(),
            ]
            rows += [replace(row, label=name) for row in numbers]
        return rows


def _find_operating_point(
    tables: Tables, given: OperatingPoint | None, evaluated_on: str
) -> PointInUse:
    """Find the operating point in use: the given one, or that of the predictions.

    Its name is None if there is none, if the predictions state different ones, or if somebody
    accepted or rejected candidates after it was applied. It is optimistic if it was chosen on these
    cases, or if the program was developed on them.
    """
    predicted = tables.cases[tables.is_predicted]
    unscored = predicted["case"][predicted["case_score"].isna()]
    if given and len(unscored):
        _log.warning(
            "Cases without scores, whose candidates are all accepted: %s.", ", ".join(unscored)
        )
    # a given point has no effect if all cases lack scores
    is_applied = len(unscored) == 0 or len(unscored) < len(predicted)
    point = given
    if given is None or not is_applied:
        stated = set(predicted["operating_point"])
        if len(stated) > 1:
            _log.warning("The predictions state different operating points; none is reported.")
        point = stated.pop() if len(stated) == 1 else None
    roles = {evaluated_on, *tables.cases["role"]} - {""}
    is_developed_on = not roles.isdisjoint(DEVELOPMENT_ROLES)
    scored = tables.candidates[tables.candidates["score"].notna()]
    if point is not None and given is None:
        # somebody may have accepted or rejected candidates after the point was applied
        is_above = scored["score"] >= point.score
        if (scored["accepted"] != is_above).any():
            point = None
    if point is None:
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
