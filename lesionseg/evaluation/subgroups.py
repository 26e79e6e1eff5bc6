"""Subgroups: columns that divide the cases, quartiles, maximum of values; lesions by zone.

Subgroups deliberately have no p-values. Many are looked at, and a p-value is only valid for a
comparison that was planned before.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles, numbers_first
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.tables import Tables
from lesionseg.io.text import read_csv

N_QUANTILES = 4
MAX_VALUES = 20
NOT_STATED = "not stated"
ZONE = "zone"

Columns = Mapping[str, Mapping[str, str]]  # the cells of a table by case and column


def read_columns(cases: Sequence[CaseFiles], table: Path | None) -> Columns:
    """Read the metadata by which the cases can be divided into subgroups, such as the scanner.

    Args:
        cases: The cases. Their dataset may state further columns.
        table: A CSV file with a column `case`, or None. Its cells replace those of the dataset.
            Rows of other cases are ignored.

    Returns:
        The cells of each case by column.

    Raises:
        DatasetError: If the table has no column `case`, or no row of one of the cases. An empty
            list of cases is not checked.
    """
    columns = {files.case: dict(files.columns) for files in cases}
    if table is None:
        return columns
    rows = read_csv(table)
    if columns and not any(row.get("case") in columns for row in rows):
        content = f"Its columns are: {', '.join(rows[0])}" if rows else "It has no rows"
        raise DatasetError(
            f"{table}: no row names a case of the dataset, such as {next(iter(columns))}, in "
            f"the column case. {content}."
        )
    for row in rows:
        if row.get("case") in columns:
            columns[row["case"]] |= {key: value for key, value in row.items() if key != "case"}
    return columns


def find_subgroups(
    tables: Tables, columns: Columns, by: Sequence[str] | None = None
) -> Iterator[tuple[str, Tables]]:
    """Divide the evaluated cases into subgroups, and the lesions into anatomical zones.

    If there are lesions, but no lesion has a zone, no zones are yielded: the recall of a zone could
    not be computed.

    Args:
        tables: The evaluated cases.
        columns: The cells of a table by case and column.
        by: Names of the columns to divide by. None uses every suitable column.

    Yields:
        The name of a subgroup of cases, such as `site: north`, and the tables of its cases. Then
        the name of a zone, such as `zone: Brainstem`, and the tables of all cases with only the
        lesions and candidates of the zone.

    Raises:
        ConfigError: If a column in `by` is missing or has too many different words.
    """
    cases = tables.cases["case"].tolist()
    if by is None:
        by = _find_dividing_columns(cases, columns, tables.cases["group"].tolist())
    for name in by:
        for value, chosen in divide_by(cases, columns, name).items():
            yield f"{name}: {value}", tables.of_cases(chosen)
    zones_of_lesions = {*tables.lesions["zone"]}
    if zones_of_lesions == {""}:  # evaluated without `zones=`; `predict` may have had it
        return
    zones = (zones_of_lesions | {*tables.candidates["zone"]}) - {""}
    for zone in sorted(zones, key=numbers_first):
        yield f"{ZONE}: {zone}", tables.of_zone(zone)


def divide_by(cases: Sequence[str], columns: Columns, name: str) -> dict[str, set[str]]:
    """Divide cases by the cells of a column: by each different word, or by quartiles of numbers.

    Quartiles are used if all cells are numbers and more than four of them differ. Empty cells form
    the subgroup "not stated", which comes last.

    Args:
        cases: Ids of the cases.
        columns: The cells of a table by case and column.
        name: The name of the column.

    Returns:
        The cases of each word or quartile, such as {"GE": {"c1", "c3"}, "Siemens": {"c2"}}. Empty
        if there are no cases.

    Raises:
        ConfigError: If the column is missing or has too many different words.
    """
    all_columns = sorted({column for case in cases for column in columns.get(case, {})})
    if not cases:
        return {}
    if name not in all_columns:
        raise ConfigError(
            f"subgroups: no table has a column {name!r}. The columns are: {all_columns or 'none'}."
        )
    values = _read_cells(cases, columns, name)
    words = sorted(set(values), key=lambda word: (word == NOT_STATED, numbers_first(word)))
    if _is_numeric(words):
        values, ranges = _replace_by_quartiles(values)
        words = [word for word in (*ranges, NOT_STATED) if word in values]
    if len(words) > MAX_VALUES:
        raise ConfigError(
            f"subgroups: the column {name!r} has {len(words)} different words. Choose a column of "
            f"at most {MAX_VALUES} words, or of numbers only."
        )
    cases_of: dict[str, set[str]] = {word: set() for word in words}
    for case, word in zip(cases, values, strict=True):
        cases_of[word].add(case)
    return cases_of


def _replace_by_quartiles(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace each number of a column by the range of its quartile, such as "0.5 to 1.2".

    A quartile contains its lower bound but not its upper bound; only the last quartile contains
    both. If many numbers are equal, there are fewer than four quartiles. `NOT_STATED` is not
    replaced.

    Args:
        values: The cells of the column: numbers as text, or `NOT_STATED`. The caller has checked
            (`_is_numeric`) that more than four numbers differ, so there are at least two edges.

    Returns:
        The range of each cell, and the list of all ranges in ascending order.
    """
    numbers = np.array([np.nan if v == NOT_STATED else float(v) for v in values])
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, N_QUANTILES + 1)))
    ranges = [f"{low:.12g} to {high:.12g}" for low, high in itertools.pairwise(edges.tolist())]
    # only the edges between two quartiles, so that minimum and maximum belong to a quartile
    quartile = np.searchsorted(edges[1:-1], numbers, side="right")
    return np.where(np.isnan(numbers), NOT_STATED, np.array(ranges)[quartile]).tolist(), ranges


def _find_dividing_columns(
    cases: Sequence[str], columns: Columns, groups: Sequence[str]
) -> list[str]:
    """Return the names of the columns by which the cases are divided if the user names none.

    A column of numbers is suitable if more than four of them differ. Any other column is suitable
    if it has 2 to 20 different words, and at least one word belongs to several patients. A column
    with a different word for each case or patient, such as a name, is therefore not suitable.
    `groups` is the patient of each case.
    """
    names = []
    for name in dict.fromkeys(name for case in cases for name in columns.get(case, {})):
        cells = _read_cells(cases, columns, name)
        words = set(cells) - {NOT_STATED}
        has_few_words = len(words) <= MAX_VALUES and len(words) < len(cases)
        # there are more pairs than words if a word belongs to several patients
        pairs = {pair for pair in zip(cells, groups, strict=True) if pair[0] != NOT_STATED}
        has_common_word = len(pairs) > len(words)
        divides = (has_few_words and has_common_word) or _is_numeric(words)
        if divides and len(words) > 1:
            names.append(name)
    return names


def _read_cells(cases: Sequence[str], columns: Columns, name: str) -> list[str]:
    """Return the cell of each case in a column; `NOT_STATED` for an empty or missing cell."""
    return [columns.get(case, {}).get(name, "").strip() or NOT_STATED for case in cases]


def _is_numeric(values: Sequence[str] | set[str]) -> bool:
    """Return True if a column should be divided by quartiles instead of by words.

    All cells except `NOT_STATED` must be finite numbers, and more than four of them must differ.
    """
    try:
        numbers = {float(value) for value in values if value != NOT_STATED}
    except ValueError:
        return False
    return len(numbers) > N_QUANTILES and bool(np.isfinite([*numbers]).all())
