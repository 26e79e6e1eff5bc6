"""Subgroups of cases by what tables say, and of lesions by zone. No p-values, on purpose.

A subgroup is found by looking, often at many; a p-value would pretend that it was asked for.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lesionseg.errors import ConfigError
from lesionseg.evaluation.cases import CaseResult

N_QUANTILES = 4
MAX_VALUES = 20
NOT_STATED = "not stated"
ZONE = "zone"

Columns = Mapping[str, Mapping[str, str]]  # what a table says of each case, by column


@dataclass(frozen=True)
class Members:
    """The cases of one value, or range of values, of a column, or all with one zone's lesions."""

    by: str
    value: str
    results: Sequence[CaseResult]


def find_subgroups(
    results: Sequence[CaseResult], columns: Columns, by: Sequence[str] | None = None
) -> Iterator[Members]:
    """Every subgroup of cases, then by zone.

    `by` names columns; None takes every column that divides. Raises `ConfigError` for a column that
    is not there or has too many words.
    """
    cases = [r.case for r in results]
    for name in _dividing(cases, columns) if by is None else by:
        for value, chosen in divide_by(cases, columns, name).items():
            yield Members(name, value, [r for r in results if r.case in chosen])
    items = (x for r in results for part in (r.lesions, r.candidates) for x in part)
    for zone in sorted({x.zone for x in items} - {""}):
        inside = [
            replace(
                r,
                lesions=tuple(x for x in r.lesions if x.zone == zone),
                candidates=tuple(c for c in r.candidates if c.zone == zone),
            )
            for r in results
        ]
        yield Members(ZONE, zone, inside)


def divide_by(cases: Sequence[str], columns: Columns, name: str) -> dict[str, set[str]]:
    """Cases by word, or four ranges of about as many cases where all values are numbers.

    Up to as many different numbers as quantiles are taken as words. An empty cell is "not stated".
    """
    known = sorted({column for case in cases for column in columns.get(case, {})})
    if name not in known:
        raise ConfigError(
            f"subgroups: no table has a column {name!r}; there are {known or 'none'}."
        )
    values = _values(cases, columns, name)
    words = sorted(set(values), key=lambda word: (word == NOT_STATED, word))
    if _is_numeric(words):
        numbers = np.array([np.nan if v == NOT_STATED else float(v) for v in values])
        stated = numbers[~np.isnan(numbers)]
        edges = np.unique(np.quantile(stated, np.linspace(0, 1, N_QUANTILES + 1)))
        ranges = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges.tolist())]
        place = np.searchsorted(edges[1:-1], numbers, side="right")  # [from, to), the last closed
        values = [
            v if v == NOT_STATED else ranges[i] for v, i in zip(values, place.tolist(), strict=True)
        ]
        words = [word for word in (*ranges, NOT_STATED) if word in values]
    if len(words) > MAX_VALUES:
        raise ConfigError(
            f"subgroups: the column {name!r} has {len(words)} different words. "
            f"At most {MAX_VALUES}, or numbers alone, make subgroups."
        )
    return {word: {c for c, v in zip(cases, values, strict=True) if v == word} for word in words}


def _dividing(cases: Sequence[str], columns: Columns) -> list[str]:
    """The columns that have several values, at most 20, and not one per case."""
    names = dict.fromkeys(name for case in cases for name in columns.get(case, {}))
    found = []
    for name in names:
        stated = set(_values(cases, columns, name)) - {NOT_STATED}
        few = len(stated) <= MAX_VALUES and len(stated) < len(cases)
        if len(stated) > 1 and (few or _is_numeric(stated)):
            found.append(name)
    return found


def _values(cases: Sequence[str], columns: Columns, name: str) -> list[str]:
    return [columns.get(case, {}).get(name, "").strip() or NOT_STATED for case in cases]


def _is_numeric(values: Sequence[str] | set[str]) -> bool:
    stated = set(values) - {NOT_STATED}
    try:
        return len(stated) > N_QUANTILES and bool(np.isfinite([float(v) for v in stated]).all())
    except ValueError:
        return False
