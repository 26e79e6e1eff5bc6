"""Tables of the further numbers, and of those that are absent."""

from collections.abc import Iterator, Mapping, Sequence

from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.score_parts import (
    CalibrationScores,
    ContrastCell,
    Difference,
    PartScores,
    SizeCurveScores,
    SizeQuality,
    SubgroupScores,
)
from lesionseg.report import text
from lesionseg.report.figures.detail_figures import contrasts_differ
from lesionseg.report.result_tables import Tables
from lesionseg.report.sections.table_cells import (
    Line,
    Listing,
    TableCell,
    list_pairs,
    recall_cells,
)


def list_curve(curve: SizeCurveScores, unit: str) -> Listing:
    """The sizes found with 50 and 90 % probability."""
    rows = ((0.5, curve.d50, curve.d50_outside), (0.9, curve.d90, curve.d90_outside))
    lines = (
        (TableCell(text.percent(p)), TableCell(text.diameter(size, unit, curve.observed_mm, side)))
        for p, size, side in rows
    )
    return Listing(text.HEADINGS_CURVE, tuple(lines))


def list_cells(cells: Sequence[ContrastCell], unit: str) -> Listing:
    """One line a field of size and contrast that has lesions."""
    lines = (
        (
            TableCell(text.range_words(*cell.size, unit)),
            TableCell(text.range_words(*cell.contrast, "")),
            TableCell(text.of(cell.detected, cell.n)),
            *recall_cells(cell.detected, cell.n, cell.recall),
        )
        for cell in cells
        if cell.n
    )
    return Listing(text.HEADINGS_CELLS, tuple(lines))


def list_quality(scores: Scores, quality: Sequence[SizeQuality]) -> Listing:
    """One line a size group that has lesions: PQ, RQ, SQ, lesions split and merged."""
    groups = {group.from_mm: group for group in scores.recall_by_size}
    lines = (
        (
            TableCell(text.size_range(group, scores.size_unit)),
            TableCell(text.measure(row.panoptic_quality)),
            TableCell(text.number(row.recognition_quality.value)),
            TableCell(text.number(row.segmentation_quality.value)),
            TableCell(text.of(group.split, group.n)),
            TableCell(text.of(group.merged, group.n)),
        )
        for row in quality
        if (group := groups.get(row.from_mm)) is not None and group.n
    )
    return Listing(text.HEADINGS_QUALITY, tuple(lines))


def list_subgroups(subgroups: Sequence[SubgroupScores]) -> Listing:
    """One line a subgroup; no p-values, on purpose."""
    lines = tuple(_subgroup_line(group) for group in subgroups)
    return Listing(text.HEADINGS_SUBGROUPS, lines)


def _subgroup_line(group: SubgroupScores) -> Line:
    return (
        TableCell(group.by),
        TableCell(group.value),
        TableCell(str(group.n_cases), group.n_cases),
        TableCell(str(group.n_groups), group.n_groups),
        TableCell(text.of(group.detected, group.n_lesions)),
        *recall_cells(group.detected, group.n_lesions, group.recall),
        TableCell(text.rate_interval(group.false_positives_per_case, group.false_positives_ci95)),
        TableCell(text.points(group.recall_difference, group.difference_ci95)),
    )


def list_regions(regions: Mapping[str, PartScores]) -> Listing:
    """One line a region, each judged by itself; no line without regions."""
    lines = tuple(
        (
            TableCell(name),
            TableCell(str(region.n_cases), region.n_cases),
            TableCell(text.number(region.dice.value)),
            TableCell(text.of(region.n_detected, region.n_lesions)),
            *recall_cells(region.n_detected, region.n_lesions, region.lesion_recall),
        )
        for name, region in regions.items()
    )
    return Listing(text.HEADINGS_REGIONS, lines)


def list_reliability(calibration: CalibrationScores) -> Listing:
    """Slope, intercept, observed over expected, calibration error, Brier score."""
    lines = tuple(
        (TableCell(text.CALIBRATION_NUMBERS[name]), TableCell(text.measure(value)))
        for name, value in calibration.numbers.items()
    )
    return Listing(text.HEADINGS_PROVENANCE, lines)


def list_differences(differences: Mapping[str, Difference], names: tuple[str, str]) -> Listing:
    """One line a number: of the one, of the other, and their difference."""
    lines = (
        (
            TableCell(text.measure_name(key)),
            TableCell(text.number(row.one)),
            TableCell(text.number(row.other)),
            TableCell(text.difference(row.difference)),
            TableCell(text.p_value(row.p_value)),
            TableCell(text.PRIMARY if row.primary else text.p_value(row.p_holm)),
        )
        for key, row in differences.items()
    )
    headings = (text.HEADINGS_MEASURES[0], *names, *text.HEADINGS_DIFFERENCE)
    return Listing(headings, tuple(lines))


def list_absences(tables: Tables, compared: bool) -> Listing:
    """One line for each part that these scores do not allow, with the reason."""
    return list_pairs(text.HEADINGS_ABSENT, _absent(tables, compared))


def _absent(tables: Tables, compared: bool) -> Iterator[tuple[str, str]]:
    details, raw = tables.details, tables.scores.raw
    there = {
        "size_curve": details.size_curve is not None,
        "recall_by_size_and_contrast": contrasts_differ(details.cells),
        "subgroups": bool(details.subgroups),
        "calibration": details.calibration is not None,
    }
    for key, present in there.items():
        if not present:
            alike = key == "recall_by_size_and_contrast" and details.cells
            why = text.ALIKE if alike else text.reason_words(details.reasons[key])
            yield text.ABSENT[key], why
    reader = tables.scores.second_reader
    if not compared and not details.differences and reader is None:
        yield text.ABSENT["comparison"], text.NO_COMPARISON
    if not raw.get("adjudication") and tables.scores.n_false_positive:
        yield text.ABSENT["adjudication"], text.NOT_ADJUDICATED
