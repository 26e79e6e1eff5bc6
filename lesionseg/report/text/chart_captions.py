"""Captions of the charts, and the words that stand for them."""

from collections.abc import Iterable, Mapping, Sequence

from lesionseg.evaluation.rows import CaseRow
from lesionseg.evaluation.score_sections import FrocPoint, Scores
from lesionseg.evaluation.statistics.score_parts import (
    CalibrationScores,
    ContrastCell,
    Difference,
    SizeCurveScores,
    SubgroupScores,
)
from lesionseg.report.text.amounts import (
    count,
    difference,
    percent,
    range_words,
    rate,
    signed,
    size_range,
)
from lesionseg.report.text.definitions import measure_name
from lesionseg.report.text.frame import SECTIONS
from lesionseg.report.text.table_words import ABSENT, FOUND, MISSED

SIZE_TEXT = (
    "Bars: sensitivity (share of reference lesions found), with 95 % CI where there is one; hollow "
    "where lesions are too few for a percentage. Counts below the sizes. Hatched: lesions near the "
    "resolution of the scan (under 8 voxels or on one slice), where size and outline are uncertain "
    "themselves."
)
FROC_TEXT = (
    "Lowering the score from which a candidate counts finds more lesions, at more false positives. "
    "The curve shows what each choice would give; the large dot is the one used in this report. "
    "Each division to the right doubles the false positives, after a place for none."
)
FROC_BEYOND = "Dotted: no further candidates."
FROC_BAND = "Band: pointwise 95 % intervals, each of one rate alone."
FROC_TARGET = "Upright dotted line: the target."
FROC_EXPECTED = "Ring: what choosing the score let expect."
FROC_READER = "Square: a second reader against the same reference, with 95 % intervals."
SECOND_READER = "second reader"
FROC_NONE = "No curve: the candidates have no scores, or the curve is not defined."
OVERLAP_TEXT = (
    "Dice coefficient of all lesion voxels of a scan (0: no overlap, 1: identical), for scans with "
    "a reference lesion. A scan whose every lesion was missed counts as 0."
)
OVERLAP_NONE = "No figure: no scan has a Dice coefficient."
CURVE_TEXT = (
    "A curve fitted to all lesions: the probability of detection by equivalent diameter. Band: "
    "95 % CI, where there is one. Tick marks above: lesions found; below: lesions missed. Orange "
    "dots: the sizes found with 50 and 90 % probability, where these lie within the sizes there "
    "are."
)
CELLS_TEXT = (
    "Found of all, by size and by contrast to the tissue around: how far the lesion's median grey "
    "value lies from it, in standard deviations of the noise there. Lighter: higher sensitivity; "
    "grey where they are too few for a share."
)
RELIABILITY_TEXT = (
    "Of the candidates that were given about the same chance, how many were lesions? On the "
    "dotted line a stated chance is right; below it, it promises too much. The larger a dot, the "
    "more candidates. Bars: how many."
)
SUBGROUPS_TEXT = (
    "Sensitivity and false positives per scan in each group of scans or lesions, with 95 % CI; "
    "hollow where there are too few patients for one. Dotted: all scans."
)
FROC_BOTH_TEXT = (
    "Both on the same scans. Large dots: the score used for each. One without scores, such as a "
    "reader, has a dot alone."
)
SIZES_BOTH_TEXT = "Sensitivity of each for the same lesions, with 95 % CI where there is one."
TRAINING_TEXT = "The loss during training. A lower loss is no measure of the lesions found."

# in this order on paper
CHART_TITLES: Mapping[str, str] = {
    "size": SECTIONS["size"],
    "size_curve": ABSENT["size_curve"],
    "contrast": ABSENT["recall_by_size_and_contrast"],
    "froc": SECTIONS["froc"],
    "differences": f"{SECTIONS['comparison']}: differences",
    "froc_pair": f"{SECTIONS['comparison']}: FROC",
    "sizes_pair": f"{SECTIONS['comparison']}: by size",
    "subgroups": SECTIONS["subgroups"],
    "calibration": SECTIONS["calibration"],
    "overlap": SECTIONS["overlap"],
    "training": SECTIONS["training"],
    "balance": SECTIONS["balance"],
    "curves": "Where the loss was",
    "anchors": SECTIONS["anchors"],
}

# what stands in the charts themselves
AXIS_SENSITIVITY, AXIS_LESIONS, AXIS_CANDIDATES = "sensitivity", "lesions", "candidates"
AXIS_FALSE = "false positives per scan"
AXIS_DICE, AXIS_VOLUME, AXIS_SCANS = "Dice", "lesion volume of the scan (ml)", "scans, sorted"
AXIS_LOSS, AXIS_STEP = "loss", "optimiser step"
AXIS_CHANCE = "probability of detection"
AXIS_CONTRAST = "contrast-to-noise ratio of the lesion"
AXIS_TRUE = "share that are lesions"
AXIS_DIFFERENCE, AXIS_DIFFERENCE_FALSE = "difference", "difference (per scan)"
NO_BAR, NO_BARS_HAVE, USED_HERE, MEDIAN = (
    "none",
    "no CI: page 1 says why",
    "used here",
    "median",
)

# the slider below the FROC curve; {…} are filled in by the page's script as it moves
SLIDER = "Score from which a candidate counts"
SLIDER_TEXT = (
    "Move the score to see what another choice would have given on these same scans. Only the "
    "operating point of the report has an interval; a score picked by looking here would flatter."
)
SLIDER_BACK = "Back to the operating point"
SLIDER_MISSES = "Missed at this score"
SLIDER_NONE = "No slider: the candidates have no scores, or no operating point is stated."
HEADINGS_SLIDER_SIZES = ("Equivalent diameter", "Found")
HEADINGS_SLIDER_MISSES = ("Scan", "Lesion", "Equivalent diameter", "Found from score")
SLIDER_SUMMARY = (
    "Score ≥ {score}: sensitivity {share} ({found}/{lesions}), false positives per scan {rate} "
    "({false} in all){free}."
)
SLIDER_FREE = "; per lesion-free scan {rate}"
SLIDER_NEVER = "never"
SLIDER_OF = "{found} of {n}"


def axis_sizes(unit: str) -> str:
    """Below the bars by size."""
    where = "" if unit in ("mm", "px") else f" ({unit})"
    return f"equivalent diameter{where}; found of all"


def axis_diameter(unit: str) -> str:
    """Below the curve along the size."""
    return f"equivalent diameter ({unit})"


def axis_stated(of: str) -> str:
    """Below the reliability curve: what was taken for a chance."""
    stated = of == "probability"
    return "chance stated by the model" if stated else "score, taken for a chance"


def bar_key(*, detected: bool, near: bool) -> str:
    """What a part of a bar counts."""
    return (FOUND if detected else MISSED) + (", near resolution" if near else "")


def found_at(share: float, diameter: float, unit: str) -> str:
    """Beside a point of the curve along the size.

    >>> found_at(0.5, 6.21, "mm")
    '50\xa0% at 6.2 mm'
    """
    return f"{percent(share)} at {rate(diameter)} {unit}"


def of(found: int, n: int) -> str:
    """A count of a count."""
    return f"{found} of {n}"


def alt_sizes(scores: Scores) -> str:
    """The chart of recall by size in words."""
    groups = scores.recall_by_size
    return "Sensitivity by size: " + "; ".join(
        f"{size_range(group, scores.size_unit)}: {group.detected} of {group.n}" for group in groups
    )


def alt_froc(points: Sequence[FrocPoint]) -> str:
    """The ends of the FROC curve in words."""
    first, last = points[0], points[-1]
    return (
        f"FROC curve from a sensitivity of {percent(first.recall)} at {rate(first.fp_per_case)} "
        f"false positives per scan to {percent(last.recall)} at {rate(last.fp_per_case)}."
    )


def alt_dice(cases: Iterable[CaseRow], median: float | None) -> str:
    """The chart of Dice per case in words."""
    values = [case.dice for case in cases if case.dice is not None]
    middle = "" if median is None else f", median {median:.2f}"
    ends = f"from {min(values):.2f} to {max(values):.2f}{middle}" if values else "none"
    return f"Dice of {count(len(values), 'scan')}: {ends}."


def alt_curve(curve: SizeCurveScores, unit: str) -> str:
    """The curve along the size in words."""
    ends = (
        f"{percent(recall)} at {rate(diameter)} {unit}"
        for recall, diameter in (
            (curve.recall[0], curve.diameters_mm[0]),
            (curve.recall[-1], curve.diameters_mm[-1]),
        )
    )
    return f"Probability of detection by diameter, from {' to '.join(ends)}."


def alt_cells(cells: Iterable[ContrastCell], unit: str) -> str:
    """Fields of size and contrast in words."""
    said = (
        f"{range_words(*cell.size, unit)}, contrast {range_words(*cell.contrast, '')}: "
        f"{of(cell.detected, cell.n)}"
        for cell in cells
        if cell.n
    )
    return f"Lesions found by size and contrast. {'; '.join(said)}."


def alt_reliability(calibration: CalibrationScores) -> str:
    """The reliability curve in words."""
    said = (
        f"stated {percent(b.mean_probability)}, true {percent(b.true_share)}"
        for b in calibration.bins
        if b.n
    )
    return f"Reliability of {count(calibration.n, 'candidate')}: {'; '.join(said)}."


def alt_subgroups(subgroups: Iterable[SubgroupScores]) -> str:
    """The forest of subgroups in words."""
    said = (f"{g.by} {g.value}: {of(g.detected, g.n_lesions)}" for g in subgroups)
    return f"Lesions found by subgroup. {'; '.join(said)}."


NON_INFERIOR = {
    True: "shown. The whole 95 % CI of the difference lies above {low}.",
    False: "not shown. The 95 % CI of the difference reaches {low} or below.",
    None: "not shown, as the difference has no CI.",
}


def differences_text(name: str, other: str) -> str:
    """Below the differences: which side is whose."""
    return (
        f"{name} minus {other}, compared patient by patient, with 95 % CI. Right of the line "
        f"{name} has the higher number; for false positives the higher number is the worse."
    )


def margin_sentence(differences: Mapping[str, Difference], names: tuple[str, str]) -> str:
    """Whether the one is not inferior by the margin stated for the primary endpoint; else empty."""
    for key, row in differences.items():
        if row.margin is not None:
            words = NON_INFERIOR[row.non_inferior].format(low=signed(-row.margin))
            return (
                f"Non-inferiority of {names[0]} to {names[1]} in {measure_name(key).lower()}, "
                f"margin {row.margin:g}: {words}"
            )
    return ""


def alt_differences(differences: Mapping[str, Difference]) -> str:
    """The differences in words."""
    said = (f"{measure_name(k)}: {difference(row.difference)}" for k, row in differences.items())
    return f"Differences between the two. {'; '.join(said)}."


def alt_froc_pair(both: Iterable[Scores], names: Iterable[str]) -> str:
    """The operating points of both in words."""
    said = []
    for scores, name in zip(both, names, strict=True):
        recall = scores.estimate("lesion_recall").value
        false = scores.estimate("false_positives_per_case").value
        if recall is not None and false is not None:
            said.append(
                f"{name}: sensitivity {percent(recall)} at {rate(false)} false positives per scan"
            )
    return f"FROC curves of both. {'; '.join(said)}."


def alt_sizes_pair(both: Iterable[Scores], names: Iterable[str]) -> str:
    """Recall by size of both in words."""
    said = (
        f"{name}, {alt_sizes(scores)[0].lower()}{alt_sizes(scores)[1:]}"
        for scores, name in zip(both, names, strict=True)
    )
    return ". ".join(said) + "."


def alt_training(names: Iterable[str]) -> str:
    """The chart of the training in words."""
    return f"Course of {', '.join(names)} during training."
