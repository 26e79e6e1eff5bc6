"""The report's tables: rows of cells that carry what is shown and what they sort by."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any, TypeVar

import numpy as np

from lesionseg.evaluation.rows import CandidateRow, CaseRow, LesionRow
from lesionseg.evaluation.score_sections import Scores, SecondReader
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report import text
from lesionseg.report.inputs.study_file import Study
from lesionseg.report.sections.checklists import Checklist, Item

Row = TypeVar("Row")
Order = tuple[Any, ...]
# Rows beyond this make a page slow to open; the omitted number is printed.
MAX_ROWS = 3000


@dataclass(frozen=True)
class TableCell:
    """What is shown, the number it sorts by (None: by its words), and a place in the page.

    `terms`: what the table at that place is searched for, several separated by semicolons.
    """

    shown: str
    key: float | None = None
    link: str = ""
    terms: str = ""


Line = tuple[TableCell, ...]


@dataclass(frozen=True)
class Listing:
    """A table: headings, lines, how many lines were left out, and a note below."""

    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    omitted: int = 0
    note: str = ""

    def first(self, n: int) -> "Listing":
        """The first `n` lines; the rest is counted."""
        omitted = self.omitted + max(0, len(self.lines) - n)
        return replace(self, lines=self.lines[:n], omitted=omitted)


def list_cases(cases: Sequence[CaseRow], unit: str) -> Listing:
    """One line per case, those with most missed lesions first."""
    headings = tuple(heading.format(unit=unit) for heading in text.HEADINGS_CASES)

    def order(case: CaseRow) -> Order:
        return -case.n_missed, -case.n_false_positive, case.case

    return _first(headings, cases, order, _case_line)


def list_lesions(lesions: Sequence[LesionRow], groups: tuple[SizeGroup, ...], unit: str) -> Listing:
    """One line per reference lesion, missed ones first, by descending size."""
    names = [text.size_range(group, unit) for group in groups]

    def order(row: LesionRow) -> Order:
        return row.detected, -row.diameter_mm, row.case

    def line(row: LesionRow) -> Line:
        return _lesion_line(row, names[size_index(row.diameter_mm, groups)], unit)

    return _first(text.HEADINGS_LESIONS, lesions, order, line)


def list_candidates(candidates: Sequence[CandidateRow], unit: str) -> Listing:
    """One line per candidate, by descending score."""

    def order(row: CandidateRow) -> Order:
        return -(row.score or 0.0), row.case, row.candidate

    return _first(text.HEADINGS_CANDIDATES, candidates, order, lambda r: _candidate_line(r, unit))


def _first(
    headings: tuple[str, ...],
    rows: Sequence[Row],
    order: Callable[[Row], Order],
    line: Callable[[Row], Line],
) -> Listing:
    """A table of the first rows in an order; no other becomes cells of text."""
    shown = nsmallest(MAX_ROWS, rows, key=order)
    return Listing(headings, tuple(map(line, shown)), len(rows) - len(shown))


def list_sizes(scores: Scores) -> Listing:
    """One line per size group that has lesions: found of all, sensitivity, CI.

    Linked to the lesions of the group.
    """
    groups = [group for group in scores.recall_by_size if group.n]
    names = [text.size_range(group, scores.size_unit) for group in groups]
    sizes = _size_table(scores, groups, names, link="lesion-table")
    return (
        sizes
        if scores.second_reader is None
        else _with_reader(sizes, scores.second_reader, scores.size_unit)
    )


def _with_reader(sizes: Listing, reader: SecondReader, unit: str) -> Listing:
    """Two columns more: what a second reader finds."""
    there = {line[0].shown for line in sizes.lines}
    own = [one for one in reader.recall_by_size if text.size_range(one, unit) in there]
    groups = zip(sizes.lines, own, strict=True)
    lines = (
        (*line, TableCell(text.of(one.detected, one.n)), TableCell(text.bounds(one.recall)))
        for line, one in groups
    )
    return listing((*sizes.headings, *text.HEADINGS_READER), lines)


def list_quantiles(scores: Scores) -> Listing:
    """Groups of about as many lesions each, of whatever sizes; no line without them."""
    groups = scores.recall_by_quantile if scores.n_lesions else ()
    unit = scores.size_unit
    names = [text.range_words(group.from_mm, group.to_mm, unit, ".3g") for group in groups]
    return _size_table(scores, groups, names)


def list_long_axes(scores: Scores) -> Listing:
    """The same by the long axis, groups without a lesion left out."""
    groups = [group for group in scores.recall_by_long_axis if group.n]
    table = _size_table(scores, groups, [text.size_range(g, scores.size_unit) for g in groups])
    return replace(table, headings=(text.LONG_AXIS, *table.headings[1:]))


def _size_table(
    scores: Scores, groups: Sequence[SizeGroup], names: Sequence[str], link: str = ""
) -> Listing:
    lines = (
        (
            TableCell(name),
            TableCell(
                text.of(group.detected, group.n),
                link=link if group.n else "",
                terms=name if link else "",
            ),
            *recall_cells(group.detected, group.n, group.recall),
        )
        for group, name in zip(groups, names, strict=True)
    )
    headings = (text.size_heading(scores.size_said), *text.HEADINGS_SIZE[1:])
    return listing(headings, lines)


def list_measures(scores: Scores) -> Listing:
    """One line per number of scores.json, linked to its definition."""
    lines = (
        (
            TableCell(
                text.measure_name(key).format(unit=scores.size_unit), link=f"def-{definition}"
            ),
            TableCell(text.measure(scores.estimate(key))),
            TableCell(text.TABLE_NAMES[rows], link=rows),
        )
        for key, (definition, rows) in text.MEASURES.items()
        if key in scores.raw
    )
    return listing(text.HEADINGS_MEASURES, lines)


def list_reasons(lesions: Sequence[LesionRow]) -> Listing:
    """How many missed lesions each reason has, most frequent first."""
    reasons = Counter(text.why_missed(row.why_missed) for row in lesions if not row.detected)
    lines = (
        (
            TableCell(why),
            replace(number_cell(n, 0), link="lesion-table", terms=f"{text.MISSED}; {why}"),
        )
        for why, n in reasons.most_common()
    )
    return listing(text.HEADINGS_WHY, lines)


def list_rules(scores: Scores, lesions: Sequence[LesionRow]) -> Listing:
    """Lesions found and false positives by the page's rule and by others; if all agree a note."""
    own = (
        TableCell(text.OWN_RULE),
        TableCell(text.of(scores.n_detected, scores.n_lesions)),
        TableCell(text.optional_rate(scores.estimate("false_positives_per_case").value)),
    )
    others = [
        (
            TableCell(words),
            TableCell(text.of(sum(getattr(row, rule) for row in lesions), len(lesions))),
            TableCell(text.optional_rate(scores.false_positives_under(rule))),
        )
        for rule, words in text.RULES.items()
        if rule in scores.other_rules
    ]
    differ = len({tuple(cell.shown for cell in line[1:]) for line in (own, *others)}) > 1
    note = text.sharing_sentence(scores)
    if others and not differ and not note:
        agree = text.say("RULES_AGREE", rules="; ".join(line[0].shown for line in others))
        return Listing(text.HEADINGS_RULES, (), note=agree)
    return replace(listing(text.HEADINGS_RULES, [own, *others] if others else []), note=note)


def list_labels(scores: Scores) -> Listing:
    """One line per kind of lesion; no line at all when there is only one kind."""
    labels = scores.labels if len(scores.labels) > 1 else {}
    lines = (
        (
            TableCell(name),
            # older files do not say in how many scans a label was looked for: in all
            TableCell(str(part.n_cases or scores.n_cases), part.n_cases or scores.n_cases),
            TableCell(
                text.of(part.n_detected, part.n_lesions),
                link="lesion-table" if part.n_lesions else "",
                terms=name,
            ),
            *recall_cells(part.n_detected, part.n_lesions, part.lesion_recall),
            TableCell(text.optional_rate(part.false_positives_per_case.value)),
        )
        for name, part in labels.items()
    )
    return listing(text.HEADINGS_LABELS, lines)


def recall_cells(detected: int, n: int, recall: Estimate) -> Line:
    """A share of lesions and its interval."""
    return (
        TableCell(text.share(detected, n, recall)),
        TableCell(text.bounds(recall) if n else text.NO_LESION),
    )


def list_pairs(headings: tuple[str, str], pairs: Iterable[tuple[str, str]]) -> Listing:
    """Words in two columns, one pair per line."""
    return listing(headings, ((TableCell(left), TableCell(right)) for left, right in pairs))


def list_items(checklist: Checklist, study: Study, sections: Iterable[str]) -> Listing:
    """A guideline's items, whether they are answered, and where."""
    there = frozenset(sections)
    lines = (
        (TableCell(item.number), TableCell(checklist.asks(item)), *_state_cells(item, study, there))
        for item in checklist.items
    )
    return listing(text.HEADINGS_CHECKLIST, lines)


def _state_cells(item: Item, study: Study, there: frozenset[str]) -> Line:
    state, section = item.state(study, there), item.section(study, there)
    where = text.SECTIONS[section] if section else ""
    return TableCell(text.STATES[state]), TableCell(where, link=section)


def size_index(diameter_mm: float, groups: Sequence[SizeGroup]) -> int:
    """Which size group a diameter belongs to."""
    edges = [group.from_mm for group in groups][1:]
    return int(np.searchsorted(edges, diameter_mm, side="right"))


def listing(headings: tuple[str, ...], lines: Iterable[Line]) -> Listing:
    """A table of the first lines, and how many are left out."""
    kept = tuple(lines)
    return Listing(headings, kept[:MAX_ROWS], max(0, len(kept) - MAX_ROWS))


def _case_line(case: CaseRow) -> Line:
    status = case.status or "ok"
    return (
        TableCell(case.case),
        TableCell(case.group),
        TableCell(case.warning or text.STATUS.get(status, status)),
        *(number_cell(n, 0) for n in (case.n_lesions, case.n_detected, case.n_missed)),
        number_cell(case.n_false_positive, 0),
        number_cell(case.dice, 2),
        number_cell(case.surface_dice, 2),
        number_cell(case.hd95_mm, 1),
        number_cell(case.reference_ml, 2),
        number_cell(case.predicted_ml, 2),
    )


def _lesion_line(row: LesionRow, size: str, unit: str) -> Line:
    return (
        TableCell(row.case),
        number_cell(row.lesion, 0),
        TableCell(row.label),
        size_cell(row.diameter_mm, unit),
        size_cell(row.long_axis_mm, unit),
        TableCell(size),
        TableCell(text.FOUND if row.detected else text.MISSED),
        TableCell(text.ANSWERS[True] if row.near_resolution else ""),
        number_cell(row.detected_at if row.detected else None, 2),
        number_cell(row.iou if row.detected else None, 2),
        TableCell("" if row.detected else text.why_missed(row.why_missed)),
    )


def _candidate_line(row: CandidateRow, unit: str) -> Line:
    return (
        TableCell(row.case),
        number_cell(row.candidate, 0),
        TableCell(row.label),
        number_cell(row.score, 3),
        number_cell(row.probability, 2),
        size_cell(row.diameter_mm, unit),
        TableCell(text.OUTCOMES.get(row.outcome, row.outcome)),
        TableCell(text.ANSWERS[True] if row.touches_lesion else ""),
    )


def size_cell(mm: float | None, unit: str) -> TableCell:
    """A diameter, and what it sorts by."""
    if mm is None:
        return TableCell(text.NONE, float("-inf"))
    return TableCell(f"{text.size(mm)} {unit}", mm)


def number_cell(value: float | None, digits: int) -> TableCell:
    """A number, and what it sorts by."""
    if value is None:
        return TableCell(text.NONE, float("-inf"))  # undefined sorts below everything
    return TableCell(text.number(value, digits), float(value))
