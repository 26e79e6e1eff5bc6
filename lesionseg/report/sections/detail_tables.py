"""Tables of the further numbers: size curve, subgroups, calibration, comparison."""

from collections.abc import Sequence

from lesionseg.report import text
from lesionseg.report.inputs.score_details import Cell as Field
from lesionseg.report.inputs.score_details import (
    Difference,
    Region,
    Reliability,
    SizeCurve,
    Subgroup,
)
from lesionseg.report.sections.table_cells import Cell, Line, Listing


def list_curve(curve: SizeCurve, unit: str) -> Listing:
    """The sizes found with 50 and 90 % probability."""
    rows = ((0.5, curve.d50), (0.9, curve.d90))
    lines = ((Cell(text.percent(p)), Cell(text.diameter(size, unit))) for p, size in rows)
    return Listing(text.HEADINGS_CURVE, tuple(lines))


def list_cells(cells: Sequence[Field], unit: str) -> Listing:
    """One line a field of size and contrast that has lesions."""
    lines = (
        (
            Cell(text.range_words(*cell.size, unit)),
            Cell(text.range_words(*cell.contrast, "")),
            Cell(text.of(cell.detected, cell.n)),
            Cell(text.share(cell.detected, cell.n, cell.recall)),
            Cell(text.bounds(cell.recall)),
        )
        for cell in cells
        if cell.n
    )
    return Listing(text.HEADINGS_CELLS, tuple(lines))


def list_subgroups(subgroups: Sequence[Subgroup]) -> Listing:
    """One line a subgroup; no p-values, on purpose."""
    bare = [g.recall.reason for g in subgroups if g.n_lesions and g.recall.ci95 is None]
    lines = tuple(_subgroup_line(group) for group in subgroups)
    return Listing(text.HEADINGS_SUBGROUPS, lines, note=text.no_intervals(bare))


def _subgroup_line(group: Subgroup) -> Line:
    return (
        Cell(group.by),
        Cell(group.value),
        Cell(str(group.n_cases), group.n_cases),
        Cell(str(group.n_groups), group.n_groups),
        Cell(text.of(group.detected, group.n_lesions)),
        Cell(text.share(group.detected, group.n_lesions, group.recall)),
        Cell(text.bounds(group.recall) if group.n_lesions else text.NO_LESION),
        Cell(text.optional_rate(group.false_per_case)),
        Cell(text.number(group.dice)),
    )


def list_regions(regions: Sequence[Region]) -> Listing:
    """One line a region, each judged by itself; no line without regions."""
    bare = [r.recall.reason for r in regions if r.n_lesions and r.recall.ci95 is None]
    lines = tuple(
        (
            Cell(region.name),
            Cell(str(region.n_cases), region.n_cases),
            Cell(text.number(region.dice.value)),
            Cell(text.of(region.detected, region.n_lesions)),
            Cell(text.share(region.detected, region.n_lesions, region.recall)),
            Cell(text.bounds(region.recall) if region.n_lesions else text.NO_LESION),
        )
        for region in regions
    )
    return Listing(text.HEADINGS_REGIONS, lines, note=text.no_intervals(bare))


def list_reliability(reliability: Reliability) -> Listing:
    """Brier score, slope, intercept and expected calibration error."""
    lines = tuple(
        (Cell(text.CALIBRATION_NUMBERS[name]), Cell(text.number(value, 3)))
        for name, value in reliability.numbers.items()
    )
    return Listing(text.HEADINGS_PROVENANCE, lines)


def list_differences(differences: Sequence[Difference], names: tuple[str, str]) -> Listing:
    """One line a number: of the one, of the other, and their difference."""
    lines = (
        (
            Cell(text.measure_name(row.key)),
            Cell(text.number(row.one)),
            Cell(text.number(row.other)),
            Cell(text.difference(row.difference)),
            Cell(text.p_value(row.p_value)),
        )
        for row in differences
    )
    headings = (text.HEADINGS_MEASURES[0], *names, *text.HEADINGS_DIFFERENCE)
    return Listing(headings, tuple(lines))
