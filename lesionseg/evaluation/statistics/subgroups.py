"""Numbers of subgroups of cases and of lesions, by what tables say. No p-values, on purpose.

A subgroup is found by looking, often at many; a p-value would pretend that it was asked for. How
far its recall lies from that of all other lesions has an interval.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from lesionseg.errors import ConfigError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.statistics.detection import pool_results, sums_by_group
from lesionseg.evaluation.statistics.estimates import Estimate, difference, proportion
from lesionseg.evaluation.statistics.pooled import PooledResults
from lesionseg.evaluation.statistics.score_parts import SubgroupScores

N_QUANTILES = 4
MAX_VALUES = 20
NOT_STATED = "not stated"
ZONE = "zone"  # what subgroups of lesions, not of cases, are said to be made by

Member = TypeVar("Member", bound=Hashable)
Named = Mapping[str, str]  # what a table says, by column
Columns = Mapping[str, Named]  # of each case
LesionColumns = Mapping[tuple[str, int], Named]  # of each lesion of a case, by its id


@dataclass(frozen=True)
class Subgroup(Generic[Member]):
    """The members, cases or lesions, of one value, or range of values, of a column."""

    by: str
    value: str
    members: frozenset[Member]


def subgroup_numbers(
    summary: PooledResults,
    columns: Columns,
    by: Sequence[str] | None = None,
    lesion_columns: LesionColumns | None = None,
) -> list[dict[str, Any]]:
    """Recall and false positives per case with intervals, and mean Dice, of every subgroup.

    Of lesions recall alone: a false positive has no such value. `by` names columns; None takes
    every column that divides. Raises `ConfigError` for a column that is not there or does not
    divide.
    """
    known = {name for row in (lesion_columns or {}).values() for name in row}
    of_cases = None if by is None else [name for name in by if name not in known]
    of_lesions = None if by is None else [name for name in by if name in known]
    cases = [r.case for r in summary.results]
    lesions = [(r.case, x.lesion) for r in summary.results for x in r.lesions]
    return [
        *(
            _numbers(summary, _cases_of(summary, group), group.by, group.value)
            for group in _all_subgroups(cases, columns, of_cases)
        ),
        *(
            _numbers(summary, _lesions_of(summary, group), group.by, group.value, of_lesions=True)
            for group in _all_subgroups(lesions, lesion_columns or {}, of_lesions)
        ),
    ]


def _all_subgroups(
    members: Sequence[Member],
    columns: Mapping[Member, Named],
    by: Sequence[str] | None,
) -> list[Subgroup[Member]]:
    chosen = dividing_columns(members, columns) if by is None else by
    return [group for name in chosen for group in make_subgroups(members, columns, name)]


def zone_numbers(summary: PooledResults) -> list[dict[str, Any]]:
    """The same by anatomical zone: its lesions and candidates in all cases; no Dice.

    Empty where no lesion or candidate is in a zone.
    """
    zones = {x.zone for r in summary.results for x in r.lesions}
    zones |= {c.zone for r in summary.results for c in r.candidates}
    return [_zone_numbers(summary, zone) for zone in sorted(zones - {""})]


def _zone_numbers(summary: PooledResults, zone: str) -> dict[str, Any]:
    results = [
        replace(
            r,
            lesions=tuple(x for x in r.lesions if x.zone == zone),
            candidates=tuple(c for c in r.candidates if c.zone == zone),
            dice=None,
        )
        for r in summary.results
    ]
    return _numbers(summary, _part(summary, results), ZONE, zone)


def dividing_columns(members: Sequence[Member], columns: Mapping[Member, Named]) -> list[str]:
    """The columns that have several values, at most 20, and not one per member."""
    names = list(dict.fromkeys(name for member in members for name in columns.get(member, {})))
    return [name for name in names if _divides(_values(members, columns, name))]


def make_subgroups(
    members: Sequence[Member], columns: Mapping[Member, Named], name: str
) -> list[Subgroup[Member]]:
    """One subgroup per word, or four of about as many members where all values are numbers.

    Up to as many different numbers as quantiles are taken as words. An empty cell is "not stated".
    """
    known = sorted({column for member in members for column in columns.get(member, {})})
    if name not in known:
        raise ConfigError(
            f"No table has a column {name!r}.",
            where="subgroups",
            expected=", ".join(known) or "a manifest with further columns, or columns=table.csv",
        )
    values = _values(members, columns, name)
    if _is_numeric(values):
        return _quantiles(members, name, values)
    words = sorted(set(values), key=lambda word: (word == NOT_STATED, word))
    if len(words) > MAX_VALUES:
        raise ConfigError(
            f"The column {name!r} makes no subgroups.",
            where="subgroups",
            seen=f"{len(words)} different words",
            expected=f"at most {MAX_VALUES}, or numbers alone",
        )
    return [
        Subgroup(
            name, word, frozenset(m for m, v in zip(members, values, strict=True) if v == word)
        )
        for word in words
    ]


def _values(members: Sequence[Member], columns: Mapping[Member, Named], name: str) -> list[str]:
    return [columns.get(member, {}).get(name, "").strip() or NOT_STATED for member in members]


def _divides(values: Sequence[str]) -> bool:
    n = len(set(values) - {NOT_STATED})
    return n > 1 and (_is_numeric(values) or (n <= MAX_VALUES and n < len(values)))


def _is_numeric(values: Sequence[str]) -> bool:
    stated = {v for v in values if v != NOT_STATED}
    return len(stated) > N_QUANTILES and all(_number(v) is not None for v in stated)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _quantiles(
    members: Sequence[Member], name: str, values: Sequence[str]
) -> list[Subgroup[Member]]:
    """`[from, to)`, the last one closed."""
    numbers = np.array([np.nan if v == NOT_STATED else float(v) for v in values])
    stated = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(stated, np.linspace(0, 1, N_QUANTILES + 1)))
    place = np.searchsorted(edges[1:-1], numbers, side="right")
    found = []
    for i, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        of_bin = (place == i) & ~np.isnan(numbers)
        found.append(Subgroup(name, f"{low:g} to {high:g}", _chosen(members, of_bin)))
    rest = np.isnan(numbers)
    return [*found, Subgroup(name, NOT_STATED, _chosen(members, rest))] if rest.any() else found


def _chosen(
    members: Sequence[Member], kept: np.ndarray[Any, np.dtype[np.bool_]]
) -> frozenset[Member]:
    return frozenset(member for member, keep in zip(members, kept, strict=True) if keep)


def _numbers(
    summary: PooledResults, part: PooledResults, by: str, value: str, *, of_lesions: bool = False
) -> dict[str, Any]:
    counts, recall = part.counts(), part.recall()
    apart = difference(recall, _recall_of_rest(summary, part))
    false = Estimate(None) if of_lesions else part.false_positives_per_case()
    dices = [r.dice for r in part.results if r.dice is not None]
    has_dice = dices or of_lesions or by == ZONE
    why = recall.reason or (None if has_dice else edge_cases.NO_MASKED_CASE.reason)
    return SubgroupScores(
        by,
        value,
        counts["n_cases"],
        counts["n_groups"],
        counts["n_lesions"],
        counts["n_true_positive"],
        replace(recall, reason=why),
        false.value,
        float(np.mean(dices)) if dices else None,
        false.ci95,
        apart.value,
        apart.ci95,
    ).to_json()


def _recall_of_rest(summary: PooledResults, part: PooledResults) -> Estimate:
    """Of all lesions that are not in the part."""
    groups, results = summary.pool.groups, part.results
    hits, totals = summary.lesion_sums
    found = sums_by_group(groups, results, [r.n_detected for r in results])
    present = sums_by_group(groups, results, [len(r.lesions) for r in results])
    return proportion(hits - found, totals - present, edge_cases.NO_LESION)


def _cases_of(summary: PooledResults, group: Subgroup[str]) -> PooledResults:
    return _part(summary, [r for r in summary.results if r.case in group.members])


def _lesions_of(summary: PooledResults, group: Subgroup[tuple[str, int]]) -> PooledResults:
    """These lesions alone, in the cases that have any."""
    kept = (
        (r, tuple(x for x in r.lesions if (r.case, x.lesion) in group.members))
        for r in summary.results
    )
    return _part(summary, [replace(r, lesions=x, candidates=(), dice=None) for r, x in kept if x])


def _part(summary: PooledResults, results: Sequence[CaseResult]) -> PooledResults:
    """Some of the cases; only what needs no resampling can be asked of it."""
    return PooledResults(
        tuple(results), summary.preset, pool_results(results), summary.estimator, summary.scored
    )
