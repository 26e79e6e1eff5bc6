"""Pseudonyms: what cases and patients are called on a page that others may see."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lesionseg.evaluation.rows import CandidateRow, CaseRow, LesionRow
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.report import text
from lesionseg.report.inputs.result_tables import Tables

Named = TypeVar("Named", CaseRow, LesionRow, CandidateRow)
# Shorter names would be found by chance in any text.
MIN_SEARCHED = 4


@dataclass(frozen=True)
class PseudonymRow(TableRow):
    """One line of pseudonyms.csv: what a case and its patient are called on the page."""

    pseudonym: str
    case: str
    patient_pseudonym: str
    group: str


@dataclass(frozen=True)
class Names:
    """The shown name of each case and each group."""

    cases: Mapping[str, str]
    groups: Mapping[str, str]

    def real_case(self, shown: str) -> str:
        """The case behind a shown name."""
        return next(case for case, name in self.cases.items() if name == shown)


def make_pseudonyms(tables: Tables) -> Names:
    """`case 1`, `patient 1` and so on, in the order of cases.csv."""
    return Names(
        _numbered((row.case for row in tables.cases), text.PSEUDONYM_CASE),
        _numbered((row.group for row in tables.cases), text.PSEUDONYM_PATIENT),
    )


def rename(tables: Tables, names: Names) -> Tables:
    """The same tables with the shown names; rows of unlisted cases keep no name at all.

    A subgroup that is one case or patient has its shown name too.
    """

    def shown(row: Named) -> Named:
        case, group = names.cases.get(row.case), names.groups.get(row.group)
        return replace(row, case=case or text.NONE, group=group or text.NONE)

    real = {**names.groups, **names.cases}
    subgroups = tuple(
        replace(group, value=real.get(group.value, group.value))
        for group in tables.details.subgroups
    )
    return replace(
        tables,
        details=replace(tables.details, subgroups=subgroups),
        cases=tuple(map(shown, tables.cases)),
        lesions=tuple(map(shown, tables.lesions)),
        candidates=tuple(map(shown, tables.candidates)),
    )


def write_pseudonyms(path: Path, tables: Tables, names: Names) -> None:
    """Write which case each pseudonym stands for: a file to keep, not to pass on."""
    rows = [
        PseudonymRow(names.cases[row.case], row.case, names.groups[row.group], row.group)
        for row in tables.cases
    ]
    write_table(path, rows, PseudonymRow)


def names_in(page: str, names: Names) -> tuple[str, ...]:
    """Real names of cases and groups that stand in a page's text, pictures left out."""
    words = re.sub(r"data:image/[^\"']*", "", page)
    real = {*names.cases, *names.groups} - {*names.cases.values(), *names.groups.values()}
    return tuple(
        name
        for name in sorted(real)
        # the plain search first: it is many times faster, and nearly always finds nothing
        if len(name) >= MIN_SEARCHED
        and name in words
        and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words)
    )


def _numbered(values: Iterable[str], word: str) -> dict[str, str]:
    return {value: f"{word} {n}" for n, value in enumerate(dict.fromkeys(values), start=1)}
