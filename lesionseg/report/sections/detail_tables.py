"""Tables of the further numbers: size curve, subgroups, calibration, comparison."""

from collections.abc import Sequence

from lesionseg.report import text
from lesionseg.report.inputs.score_details import ContrastCell as Field
from lesionseg.report.inputs.score_details import (
    Difference,
    RegionScores,
    Reliability,
    SizeCurveRow,
    SubgroupScores,
)
from lesionseg.report.sections.table_cells import Line, Listing, TableCell


def list_curve(curve: SizeCurveRow, unit: str) -> Listing:
    """The sizes found with 50 and 90 % probability."""
    rows = ((0.5, curve.d50), (0.9, curve.d90))
    lines = ((TableCell(text.percent(p)), TableCell(text.diameter(size, unit))) for p, size in rows)
    return Listing(text.HEADINGS_CURVE, tuple(lines))


def list_cells(cells: Sequence[Field], unit: str) -> Listing:
    """One line a field of size and contrast that has lesions."""
    lines = (
        (
            TableCell(text.range_words(*cell.size, unit)),
            TableCell(text.range_words(*cell.contrast, "")),
            TableCell(text.of(cell.detected, cell.n)),
            TableCell(text.share(cell.detected, cell.n, cell.recall)),
            TableCell(text.bounds(cell.recall)),
        )
        for cell in cells
        if cell.n
    )
    return Listing(text.HEADINGS_CELLS, tuple(lines))


def list_subgroups(subgroups: Sequence[SubgroupScores]) -> Listing:
    """One line a subgroup; no p-values, on purpose."""
    bare = [g.recall.reason for g in subgroups if g.n_lesions and g.recall.ci95 is None]
    lines = tuple(_subgroup_line(group) for group in subgroups)
    return Listing(text.HEADINGS_SUBGROUPS, lines, note=text.no_intervals(bare))


def _subgroup_line(group: SubgroupScores) -> Line:
    return (
        TableCell(group.by),
        TableCell(group.value),
        TableCell(str(group.n_cases), group.n_cases),
        TableCell(str(group.n_groups), group.n_groups),
        TableCell(text.of(group.detected, group.n_lesions)),
        TableCell(text.share(group.detected, group.n_lesions, group.recall)),
        TableCell(text.bounds(group.recall) if group.n_lesions else text.NO_LESION),
        TableCell(text.optional_rate(group.false_per_case)),
        TableCell(text.number(group.dice)),
    )


def list_regions(regions: Sequence[RegionScores]) -> Listing:
    """One line a region, each judged by itself; no line without regions."""
    bare = [r.recall.reason for r in regions if r.n_lesions and r.recall.ci95 is None]
    lines = tuple(
        (
            TableCell(region.name),
            TableCell(str(region.n_cases), region.n_cases),
            TableCell(text.number(region.dice.value)),
            TableCell(text.of(region.detected, region.n_lesions)),
            TableCell(text.share(region.detected, region.n_lesions, region.recall)),
            TableCell(text.bounds(region.recall) if region.n_lesions else text.NO_LESION),
        )
        for region in regions
    )
    return Listing(text.HEADINGS_REGIONS, lines, note=text.no_intervals(bare))


def list_reliability(reliability: Reliability) -> Listing:
    """Brier score, slope, intercept and expected calibration error."""
    lines = tuple(
        (TableCell(text.CALIBRATION_NUMBERS[name]), TableCell(text.number(value, 3)))
        for name, value in reliability.numbers.items()
    )
    return Listing(text.HEADINGS_PROVENANCE, lines)


def list_differences(differences: Sequence[Difference], names: tuple[str, str]) -> Listing:
    """One line a number: of the one, of the other, and their difference."""
    lines = (
        (
            TableCell(text.measure_name(row.key)),
            TableCell(text.number(row.one)),
            TableCell(text.number(row.other)),
            TableCell(text.difference(row.difference)),
            TableCell(text.p_value(row.p_value)),
        )
        for row in differences
    )
    headings = (text.HEADINGS_MEASURES[0], *names, *text.HEADINGS_DIFFERENCE)
    return Listing(headings, tuple(lines))
