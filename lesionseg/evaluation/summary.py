"""Scores computed from the tables: recall, F1, Dice, panoptic quality, load; why undefined."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from lesionseg.core import OperatingPoint
from lesionseg.core.arrays import Numbers
from lesionseg.evaluation import curves
from lesionseg.evaluation.box_precision import IOUS, RANGES, BoxHits
from lesionseg.evaluation.calibration import describe_calibration
from lesionseg.evaluation.criteria import SECONDARY_CRITERIA, Preset
from lesionseg.evaluation.intervals import (
    CI,
    NO_LESION,
    NO_PREDICTED_CASE,
    Z95,
    Draws,
    Estimate,
    GroupWeights,
    Statistic,
    bootstrap,
    draw_groups,
    estimate_rate,
    proportion,
    ratio,
)
from lesionseg.evaluation.operating_points import PointInUse, mean_recall
from lesionseg.evaluation.recall_by_size import SizeScale, recall_by_size, size_curve
from lesionseg.evaluation.scores import (
    DEVELOPMENT_ROLES,
    Provenance,
    Scores,
)
from lesionseg.evaluation.subgroups import ZONE, Columns, find_subgroups
from lesionseg.evaluation.tables import Tables
from lesionseg.host_memory import pause_collection

_log = logging.getLogger(__name__)

MIN_CASES_FOR_CPM = 8  # fewer cases cannot show 1/8 false positive per case
NO_LESION_FREE_CASE = "there is no lesion-free case with a prediction"
NO_MASKED_CASE = "no case with a reference lesion has masks to compare"
NO_SURFACES = "no case has accepted voxels and a reference lesion"
NOTHING_ACCEPTED = "no accepted candidate was counted"
NO_VOLUME = "an image of two axes, or a bare box, has no volume"
UNSCORED = "the candidates have no scores, and a score is never invented"
TOO_FEW_CASES_FOR_CPM = "fewer than 8 cases cannot show a rate of 1/8 per case"
ONE_KIND_OF_CASE = "cases with lesions and cases without are needed"
NO_VOXELS = "boxes have no voxels to compare"
ONE_CASE = "a single case shows no limits of agreement"
NO_OPERATING_POINT = "the prediction's own accepted candidates were taken"


class Ratio(NamedTuple):
    """The definition of a score that is a ratio of counts, such as recall.

    Attributes:
        above: Name of the count in `Tables.sums` that is the numerator.
        below: Names of the counts in `Tables.sums` whose sum is the denominator.
        undefined: The reason to state if the denominator is 0.
        is_rate: True for a count per case, which has Garwood's interval instead of Wilson's.
        factor: Factor of the numerator.
    """

    above: str
    below: Sequence[str]
    undefined: str
    is_rate: bool = False
    factor: float = 1.0

    def terms(self, sums: Mapping[str, Numbers]) -> tuple[Numbers, Numbers]:
        """Return numerator and denominator for each group `[groups]` from `Tables.sums`."""
        return self.factor * sums[self.above], np.sum([sums[name] for name in self.below], axis=0)

    def estimate(self, name: str, sums: Mapping[str, Numbers]) -> Estimate:
        """Compute the ratio over all groups, with its interval.

        Not for `lesion_f1`, whose interval needs the bootstrap (`Summary.ratio`). `name` is the
        name of the estimate. `sums` are the counts of `Tables.sums`.
        """
        above, below = self.terms(sums)
        compute = estimate_rate if self.is_rate else proportion
        return compute(above, below, self.undefined, name=name)


RATIOS: Mapping[str, Ratio] = {
    "lesion_recall": Ratio("found", ["lesions"], NO_LESION),
    "lesion_precision": Ratio("true", ["true", "false"], NOTHING_ACCEPTED),
    "lesion_f1": Ratio("found", ["found", "lesions", "false"], NO_LESION, factor=2),
    "false_positives_per_case": Ratio("false", ["cases"], NO_PREDICTED_CASE, is_rate=True),
    "false_positives_per_lesion_free_case": Ratio(
        "false_in_free", ["free"], NO_LESION_FREE_CASE, is_rate=True
    ),
    "specificity": Ratio("clean", ["free"], NO_LESION_FREE_CASE),
}


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """The details of the cases, and the settings of the bootstrap.

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
    """Compute all scores of an evaluation from the tables of its cases.

    Args:
        tables: The evaluated cases. Without cases, all numbers but counts are undefined.
        preset: The match rule by which the cases were matched.
        settings: The role of the cases, the operating point and the bootstrap.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: If a column in `settings.subgroups` is missing or has too many words.
    """
    summary = Summary(tables, preset, settings.replicates, settings.seed)
    scale = SizeScale.of(tables, preset)
    # scores of all cases together, of criteria and of labels
    rows = [
        *summary.counts(),
        *summary.overlap(),
        *(summary.ratio(name) for name in RATIOS),
        mean_recall(tables.sums["found"], tables.lesions_by_group),
        summary.cpm(),
        summary.average_precision(),
        summary.case_auroc(),
        summary.panoptic_quality(),
        *summary.froc(),
        *summary.box_scores(),
        *summary.lesion_load(),
        *recall_by_size(tables, scale),
        *size_curve(tables, summary.draws, scale),
        *summary.calibration(),
        *summary.other_criteria(),
        *summary.by_label(settings.labels),
    ]
    # scores of subgroups
    columns = _with_slice_spacing(tables, settings.columns)
    for name, tables_of_subgroup in find_subgroups(tables, columns, settings.subgroups):
        rows += summary.subgroup(name, tables_of_subgroup)
    bootstrap_settings = {"replicates": settings.replicates, "seed": settings.seed}
    provenance = {**settings.provenance, "preset": preset, "bootstrap": bootstrap_settings}
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
        provenance=Provenance(**provenance),
    )


def _with_slice_spacing(tables: Tables, columns: Columns) -> Columns:
    """Add the column `slice_spacing_mm` to the columns that divide the cases into subgroups.

    Only volumes get this column. If the table of the user has such a column, its cells are kept.
    The result contains only the evaluated cases.
    """
    with_spacing: dict[str, Mapping[str, str]] = {}
    spacings = tables.cases["slice_spacing_mm"]
    for case, spacing_mm in zip(tables.cases["case"], spacings, strict=True):
        cells = columns.get(case, {})
        if not np.isnan(spacing_mm):  # NaN in 2-D
            cells = {"slice_spacing_mm": f"{spacing_mm:g}", **cells}
        with_spacing[case] = cells
    return with_spacing


@dataclass(frozen=True, eq=False)
class Summary:
    """Computes the scores of a set of cases, of a subgroup or of a label.

    All intervals resample the same groups (patients).

    Attributes:
        tables: The cases.
        preset: The match rule.
        replicates: Number of resampled data sets of the bootstrap.
        seed: Seed of the bootstrap.
    """

    tables: Tables
    preset: Preset
    replicates: int
    seed: int

    @cached_property
    def draws(self) -> Draws:
        """How often each replicate of the bootstrap draws each group `[replicates, groups]`.

        Computed at first use, because most scores need no bootstrap.
        """
        rng = np.random.default_rng(self.seed)
        return draw_groups(len(self.tables.groups), self.replicates, rng)

    def counts(self) -> list[Estimate]:
        """Count cases, groups, lesions, candidates, true and false positives.

        `n_true_positive` is the number of found lesions, not of candidates. A case without a
        prediction counts as lesion-free if its reference has no lesion.
        """
        tables = self.tables
        n_lesions = len(tables.lesions)
        n_found = int(tables.lesions["detected"].sum())
        numbers = {
            "n_cases": len(tables.cases),
            "n_groups": len(tables.groups),
            # `case_share` is 1 if a reader looked for all labels
            "n_lesion_free_cases": int(
                (~tables.has_lesion & ((tables.case_share == 1) | ~tables.is_predicted)).sum()
            ),
            "n_lesions": n_lesions,
            "n_candidates": len(tables.candidates),
            "n_true_positive": n_found,
            "n_false_positive": int(tables.false_by_case.sum()),
            "n_missed": n_lesions - n_found,
        }
        return [Estimate(number, name=name) for name, number in numbers.items()]

    def resample(
        self,
        names: Sequence[str],
        statistic: Statistic,
        support: Numbers,
        undefined: str,
        *,
        bounds: Sequence[CI | None] = (),
    ) -> list[Estimate]:
        """Compute the numbers of a statistic with intervals of the bootstrap.

        The arguments are those of `intervals.bootstrap`. `undefined` is the reason to state for a
        number that is None.
        """
        # An upper limit of the length of the arrays in any statistic: all cases, lesions and
        # candidates. It limits how many replicates are computed at once.
        items = sum(map(len, self.tables.frames)) + 1
        return bootstrap(
            statistic,
            self.draws,
            support,
            undefined=undefined,
            items=items,
            names=names,
            bounds=bounds,
        )

    def overlap(self) -> Iterator[Estimate]:
        """Yield mean and median of Dice, surface Dice and HD95 over the cases with a lesion.

        The last row, `hd95_mm_undefined`, counts the cases with a lesion that have no HD95. Mean
        and median are undefined if lesions are compared only by boxes.
        """
        cases = self.tables.cases
        shares = cases[["dice", "surface_dice"]]
        if self.tables.lacks_masks:
            # the only numbers are the 0 of cases without a prediction; `mask` makes them NaN
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
        """Compute mean and median over cases of a measure such as Dice.

        The median has no interval. Mean and median are None if no case has a value.

        Args:
            name: Name of the mean. The median is called `<name>_median`.
            values: The measure of each case, NaN for cases that do not count.
            is_share: True if the measure is between 0 and 1, which allows Wilson's interval.
                Otherwise the mean is bootstrapped.
        """
        n = int(values.notna().sum())
        counted = self.tables.add_up("cases", values.notna())
        total = self.tables.add_up("cases", values.fillna(0.0))
        if is_share:
            # no lower bound: values between 0 and 1 vary less than hits and misses
            mean = proportion(total, counted, NO_MASKED_CASE, name=name, min_deff=0.0)
        else:
            (mean,) = self.resample(
                [name], ratio(total, counted), counted, NO_MASKED_CASE, bounds=[None]
            )
        median = float(values.median()) if n else None
        reason = None if n else mean.reason
        return replace(mean, n=n), Estimate(median, reason=reason, name=f"{name}_median", n=n)

    def ratio(self, name: str) -> Estimate:
        """Compute the score `name` of `RATIOS` over all cases, with its interval.

        F1 is neither a proportion of independent items nor a rate, so its interval is from the
        bootstrap. `Ratio.estimate` computes the intervals of the other scores.
        """
        kind = RATIOS[name]
        sums = self.tables.sums
        if name == "lesion_f1":
            statistic = ratio(*kind.terms(sums))
            return self.resample([name], statistic, sums["lesions"], kind.undefined)[0]
        return kind.estimate(name, sums)

    def of_curve(self, names: Sequence[str], statistic: Statistic) -> list[Estimate]:
        """Compute numbers of a curve, such as the FROC, with intervals of the bootstrap.

        The numbers are undefined without scores or lesions. `statistic` returns one number per
        name.
        """
        if not self.tables.has_scores:
            return _undefined(names, UNSCORED)
        return self.resample(names, statistic, self.tables.lesions_by_group, NO_LESION)

    def cpm(self) -> Estimate:
        """Compute the CPM: the mean recall at the preset's rates of false positives per case.

        The formula is that of van Ginneken et al. (2010). The CPM is undefined for fewer than 8
        cases, and without scores or lesions.
        """
        (estimate,) = self.of_curve(["cpm"], curves.cpm(self.tables, self.preset.fp_per_case))
        if estimate.value is not None and len(self.tables.cases) < MIN_CASES_FOR_CPM:
            return Estimate(None, reason=TOO_FEW_CASES_FOR_CPM, name="cpm")
        return estimate

    def average_precision(self) -> Estimate:
        """Compute the average precision of candidates, undefined without scores or lesions."""
        return self.of_curve(["average_precision"], curves.average_precision(self.tables))[0]

    def froc(self) -> list[Estimate]:
        """Compute the points of the FROC: the recall at the preset's false positives per case.

        `at` of a row is the rate. The recall is undefined without scores or lesions.
        """
        rates = self.preset.fp_per_case
        points = self.of_curve(["froc"] * len(rates), curves.froc(self.tables, rates))
        return [replace(point, at=at) for point, at in zip(points, rates, strict=True)]

    def case_auroc(self) -> Estimate:
        """Compute the AUROC of detecting cases with lesions by their highest score.

        The AUROC is the probability that a case with a lesion has a higher score than a lesion-free
        case. It is undefined without scores, without cases with lesions and without lesion-free
        cases.
        """
        names = ["case_auroc"]
        tables = self.tables
        kinds = [tables.add_up("cases", tables.has_lesion), tables.sums["free"]]
        if not tables.has_scores:
            return _undefined(names, UNSCORED)[0]
        if not all(kind.any() for kind in kinds):
            return _undefined(names, ONE_KIND_OF_CASE)[0]
        # an interval needs enough groups with lesions and enough with lesion-free cases
        support = min(kinds, key=np.count_nonzero)
        return self.resample(names, curves.case_auroc(tables), support, ONE_KIND_OF_CASE)[0]

    def box_scores(self) -> list[Estimate]:
        """Compute the scores of bounding boxes, which challenges of box detection use.

        The scores are undefined without scores or lesions.

        Returns:
            `box_average_precision` at each IoU of `IOUS` as a curve, the mean over each range of
            IoUs in `RANGES`, and `rsna_score` of the RSNA Pneumonia Detection Challenge. Then
            `box_candidates_left_out`: the number of candidates that do not count, because a case
            and label has more than `MAX_PER_CASE`.
        """
        tables = self.tables
        hits = BoxHits.of(tables)
        support = tables.lesions_by_group
        names = [*["box_average_precision"] * len(IOUS), *RANGES]
        if tables.has_scores and support.any():
            estimates = self.resample(names, hits.average_precision(), support, NO_LESION)
            by_case = hits.rsna_by_case()
            counted = tables.add_up("cases", ~np.isnan(by_case))
            total = tables.add_up("cases", np.nan_to_num(by_case))
            rsna = proportion(total, counted, NO_LESION, name="rsna_score", min_deff=0.0)
        else:
            why = NO_LESION if tables.has_scores else UNSCORED
            *estimates, rsna = _undefined([*names, "rsna_score"], why)
        for index, iou in enumerate(IOUS):
            estimates[index] = replace(estimates[index], at=iou)
        return [*estimates, rsna, Estimate(hits.n_left_out, name="box_candidates_left_out")]

    def panoptic_quality(self) -> Estimate:
        """Compute panoptic quality (Kirillov et al. 2019), which combines detection and overlap.

        The panoptic quality is Σ IoU of one-to-one pairs / (pairs + ½ false positives + ½ missed
        lesions). It is undefined without lesions or masks, or if a lesion or candidate of a pair
        has no voxels.
        """
        names = ["panoptic_quality"]
        tables = self.tables
        cases = tables.cases
        if tables.lacks_masks or cases["pair_iou"].isna().any():
            return _undefined(names, NO_VOXELS)[0]
        iou = tables.add_up("cases", cases["pair_iou"])
        lesions = tables.lesions_by_group
        # twice the denominator: lesions (paired or missed) and candidates (paired or unpaired)
        items = lesions + tables.add_up("cases", cases["n_pairs"] + cases["n_unpaired"])
        return self.resample(names, ratio(2 * iou, items), lesions, NO_LESION)[0]

    def lesion_load(self) -> list[Estimate]:
        """Compare total lesion volume and number of lesions per case with the reference.

        The results are bias and limits of agreement of `volume_ml` and of `n_lesions`. Cases
        without a prediction are left out. The volume is undefined in 2-D. It is also undefined if
        any 3-D case has boxes without voxels, because the remaining cases would mostly be cases
        without a detection.
        """
        cases = self.tables.cases
        volumes = cases["predicted_ml"] - cases["reference_ml"]
        if (volumes.isna() & (cases["axes"] == 3)).any():
            volumes = volumes.mask(volumes.notna())  # all become NaN
        counts = (cases["n_counted"] - cases["n_lesions"]).astype(float)
        return [
            *self._compare_with_reference("volume_ml", volumes, NO_VOLUME),
            *self._compare_with_reference("n_lesions", counts, NO_PREDICTED_CASE),
        ]

    def _compare_with_reference(
        self, name: str, errors: "pd.Series[float]", undefined: str
    ) -> list[Estimate]:
        """Compute bias and limits of agreement (Bland & Altman 1986) of a number per case.

        The bias is the mean difference. The limits are the bias ± 1.96 standard deviations of the
        differences. Bias and limits are undefined for fewer than two cases.

        Args:
            name: Name of the number, such as `volume_ml`.
            errors: Predicted minus reference number of each case, NaN if unknown. Cases without a
                prediction are left out.
            undefined: The reason to state if no predicted case has a difference.

        Returns:
            `<name>_bias`, `<name>_lower_limit` and `<name>_upper_limit`, with intervals.
        """
        errors = errors.where(self.tables.is_predicted)
        counts = self.tables.add_up("cases", errors.notna())
        sums = self.tables.add_up("cases", errors.fillna(0.0))
        squares = self.tables.add_up("cases", errors.fillna(0.0) ** 2)

        def statistic(weights: GroupWeights) -> Numbers:
            """Return bias, lower and upper limit of each replicate `[replicates, 3]`.

            `weights` is how often each group was drawn `[replicates, groups]`.
            """
            # mean and variance from weighted sums and sums of squares
            n = weights @ counts
            with np.errstate(invalid="ignore", divide="ignore"):
                bias = weights @ sums / n
                margin = Z95 * np.sqrt(np.maximum(weights @ squares - n * bias**2, 0.0) / (n - 1))
            agreement = np.stack([bias, bias - margin, bias + margin], axis=1)
            return np.where(n[:, None] > 1, agreement, np.nan)

        if not self.tables.is_predicted.any():
            undefined = NO_PREDICTED_CASE
        elif counts.sum() == 1:
            undefined = ONE_CASE
        names = (f"{name}_bias", f"{name}_lower_limit", f"{name}_upper_limit")
        estimates = self.resample(names, statistic, counts, undefined, bounds=[None] * 3)
        return [replace(estimate, n=int(counts.sum())) for estimate in estimates]

    def calibration(self) -> list[Estimate]:
        """Measure the calibration of the candidates' probabilities (`describe_calibration`).

        Without scores, only `calibration_slope` is returned, as undefined.
        """
        if not self.tables.has_scores:
            return _undefined(["calibration_slope"], UNSCORED)
        return describe_calibration(self.tables)

    def other_criteria(self) -> list[Estimate]:
        """Compute recall and false positives per case by each of the secondary criteria.

        The accepted candidates are the same as for the criterion of the preset. The subset of a row
        is `criterion: ` and the name of the criterion.
        """
        tables = self.tables
        rows = []
        for criterion in SECONDARY_CRITERIA:
            hits = tables.add_up("lesions", tables.lesions[criterion.name])
            false = tables.add_up("cases", tables.cases[f"n_false_{criterion.name}"])
            both = [
                proportion(hits, tables.lesions_by_group, NO_LESION, name="lesion_recall"),
                estimate_rate(
                    false, tables.sums["cases"], NO_PREDICTED_CASE, name="false_positives_per_case"
                ),
            ]
            rows += [replace(row, subset=f"criterion: {criterion.name}") for row in both]
        return rows

    def subgroup(self, name: str, tables: Tables) -> list[Estimate]:
        """Compute counts, recall, false positives per case and mean Dice of a subgroup.

        `name`, such as `site: north`, becomes the subset of the rows. The number of lesion-free
        cases is left out. The mean Dice has no interval. It is left out if no case has a Dice, and
        for a zone (a name that starts with `zone: `), because the Dice of a case concerns all
        zones.
        """
        summary = replace(self, tables=tables)
        rows = [
            *(row for row in summary.counts() if row.name != "n_lesion_free_cases"),
            summary.ratio("lesion_recall"),
            summary.ratio("false_positives_per_case"),
        ]
        dice = tables.cases["dice"].dropna()
        if len(dice) and not self.tables.lacks_masks and not name.startswith(f"{ZONE}: "):
            rows.append(Estimate(float(np.mean(dice)), name="dice", n=len(dice)))
        return [replace(row, subset=name) for row in rows]

    def by_label(self, labels: Mapping[int, str]) -> list[Estimate]:
        """Compute the scores of each region or, without regions, of each label separately.

        The scores of regions need region values in the mask of every prediction. Boxes and masks of
        other programs have no such values. If a prediction has none, the scores of labels are
        computed instead. All lesions then have the same label.

        Args:
            labels: Names of the label values. Label values of lesions and candidates are added; a
                value without a name is named by its number.

        Returns:
            The rows of all regions or labels, with the name of the region or label as `label`.
        """
        tables = self.tables
        # the tables of each region or label by its name
        tables_of = {name: tables.of_region(name) for name in tables.regions}
        predicted = tables.cases["case"][tables.is_predicted]
        cases_with_regions = {case for one in tables_of.values() for case in one.cases["case"]}
        if not tables_of or not cases_with_regions.issuperset(predicted):
            values = {*labels, *tables.lesions["label"], *tables.candidates["label"]}
            tables_of = {labels.get(x, str(x)): tables.of_label(x) for x in sorted(values)}
        rows: list[Estimate] = []
        for name, tables_of_name in tables_of.items():
            summary = replace(self, tables=tables_of_name)
            numbers = [
                *summary.counts(),
                *summary.mean("dice", tables_of_name.cases["dice"]),
                summary.ratio("lesion_recall"),
                summary.ratio("lesion_precision"),
                summary.ratio("false_positives_per_case"),
                summary.average_precision(),
                *summary.box_scores(),
            ]
            rows += [replace(row, label=name) for row in numbers]
        return rows


def _undefined(names: Iterable[str], reason: str) -> list[Estimate]:
    """Return an undefined estimate, with the reason, for each of these names of numbers."""
    return [Estimate(None, reason=reason, name=name) for name in names]


def _find_operating_point(
    tables: Tables, applied: OperatingPoint | None, evaluated_on: str
) -> PointInUse:
    """Find the operating point that decided which candidates were accepted, for scores.json.

    The result is the operating point that the evaluation applied, or the one that the predictions
    state. The result has no name and no score in these cases:

    - There is no operating point, or the predictions state different ones, with a warning.
    - The operating point of the predictions does not explain which candidates are accepted, because
      a person or a filter of zones changed this later.

    The result is optimistic if an evaluated case has a role on which the operating point was
    chosen, or a role of the development of the model (`DEVELOPMENT_ROLES`: train, validation). A
    warning lists the cases without scores, in which `applied` has no effect.

    Args:
        tables: The evaluated cases.
        applied: The operating point that the evaluation applied, or None.
        evaluated_on: Role of the cases.
    """
    predicted = tables.cases[tables.is_predicted]
    unscored = predicted["case"][predicted["case_score"].isna()]
    if applied and len(unscored):
        _log.warning(
            "Cases without scores, whose candidates are all accepted: %s.", ", ".join(unscored)
        )
    point = applied
    # the applied point has no effect if all cases lack scores
    if applied is None or 0 < len(unscored) == len(predicted):
        points = set(predicted["operating_point"])
        if len(points) > 1:
            _log.warning("The predictions state different operating points; none is reported.")
        point = points.pop() if len(points) == 1 else None
    roles = {evaluated_on, *tables.cases["role"]} - {""}
    is_developed_on = not roles.isdisjoint(DEVELOPMENT_ROLES)
    scored = tables.candidates[tables.candidates["score"].notna()]
    if point is not None and applied is None:
        # somebody may have accepted or rejected candidates after the point was applied
        is_above = scored["score"] >= point.score
        if (scored["accepted"] != is_above).any():
            point = None
    if point is None:
        return PointInUse(optimistic=is_developed_on, reason=NO_OPERATING_POINT)
    # `chosen_on` is a role, or several joined by a plus sign, such as "validation+test"
    is_chosen_here = not roles.isdisjoint((point.chosen_on or "").split("+"))
    content = {**asdict(point), "optimistic": is_developed_on or is_chosen_here}
    # `PointInUse` has only some fields of `OperatingPoint`, and pydantic ignores the other ones
    return TypeAdapter(PointInUse).validate_python(content)
