"""Sections for numbers that only some evaluations have, printed whatever their exact keys are.

An official scorer's numbers and those after adjudication are mappings, lists of mappings, or both
nested; every number in them is a plain one or one with its interval.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.report import text
from lesionseg.report.result_tables import Tables
from lesionseg.report.sections.table_cells import Listing, TableCell, size_index

# lesions and false positives that the slider moves over: 4 MB of the page at most
MOST_MOVED = 100_000
# section of the page: keys of scores.json that it prints
KEYS: Mapping[str, tuple[str, ...]] = {
    "official": ("official",),
    "adjudication": ("adjudication",),
}
# They belong to the number beside them.
SIDE_KEYS = ("ci95", "reason", "reasons", "ci95_reason")


@dataclass(frozen=True)
class Extra:
    """A section: its sentence, and its tables with a title each."""

    sentence: str
    tables: tuple[tuple[str, Listing], ...]


def make_extras(scores: Scores) -> dict[str, Extra]:
    """The sections for which the scores hold something, by key of `text.SECTIONS`."""
    found = {}
    for section, keys in KEYS.items():
        tables = [t for key in keys for t in _tables(_words(key), scores.raw.get(key))]
        if tables:
            found[section] = Extra(text.EXTRAS[section], tuple(tables))
    return found


def _tables(title: str, node: Any) -> list[tuple[str, Listing]]:
    """The tables of a node and of what is nested in it, outer ones first."""
    if isinstance(node, Mapping) and not _is_number(node):
        if _is_table(node.values()):
            return [(title, _table(node.keys(), list(node.values())))]
        plain = {k: v for k, v in node.items() if k not in SIDE_KEYS and _is_plain(v)}
        own = [(title, _pairs(plain, node))] if plain else []
        nested = ((k, v) for k, v in node.items() if k not in (*plain, *SIDE_KEYS))
        return [*own, *(t for k, v in nested for t in _tables(f"{title}: {_words(k)}", v))]
    if isinstance(node, Sequence) and not isinstance(node, str) and _is_table(node):
        return [(title, _table(None, list(node)))]
    return []


def _is_number(node: Any) -> bool:
    return isinstance(node, Mapping) and bool({"value", "mean"} & set(node)) and "ci95" in node


def _is_plain(node: Any) -> bool:
    if isinstance(node, Mapping):
        return _is_number(node)
    return not isinstance(node, list | tuple) or not any(isinstance(x, Mapping) for x in node)


def _is_table(rows: Iterable[Any]) -> bool:
    kept = list(rows)
    return bool(kept) and all(isinstance(r, Mapping) and not _is_number(r) for r in kept)


def _pairs(plain: Mapping[str, Any], beside: Mapping[str, Any]) -> Listing:
    lines = tuple((TableCell(_words(key)), TableCell(_value(beside, key))) for key in plain)
    return Listing(text.HEADINGS_MEASURES[:2], lines)


def _table(names: Iterable[str] | None, rows: Sequence[Mapping[str, Any]]) -> Listing:
    columns = list(dict.fromkeys(k for row in rows for k in row if k not in SIDE_KEYS))
    columns = [k for k in columns if all(_is_plain(row.get(k)) for row in rows)]
    cells = [[TableCell(_value(row, k)) for k in columns] for row in rows]
    headings = tuple(_words(k) for k in columns)
    if names is None:
        return Listing(headings, tuple(map(tuple, cells)))
    lines = ((TableCell(_words(name)), *line) for name, line in zip(names, cells, strict=True))
    return Listing(("", *headings), tuple(lines))


def _value(row: Mapping[str, Any], key: str) -> str:
    """A number with its interval, whichever of the two shapes it has; other values as they are."""
    value = row.get(key)
    if isinstance(value, bool) or value is None:
        reason = Estimate.from_json(row, key).reason if key in (row.get("reasons") or {}) else ""
        words = text.NONE if value is None else str(text.ANSWERS[value])
        return f"{words} ({text.reason_words(reason)})" if reason else words
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in value) or text.NONE
    return text.measure(Estimate.from_json(row, key))


def _words(key: str) -> str:
    return str(text.EXTRA_WORDS.get(key, str(key).replace("_", " ")))


def slider_json(tables: Tables) -> str:
    """The columns as JSON, safe inside a script element.

    Empty where there is nothing to move, or more than a page should carry.
    """
    sweep, scores = tables.sweep, tables.scores
    if sweep is None or len(tables.lesions) + len(sweep.false_score) > MOST_MOVED:
        return ""
    free = {case.case for case in tables.cases if not case.n_lesions}
    false = [row for row in tables.candidates if row.outcome_any == "false_positive"]
    content: dict[str, Any] = {
        "cases": sweep.n_cases,
        "free_cases": len(free),
        "start": scores.operating_point.score,
        "lesions": [
            [
                row.detected_at,
                size_index(row.diameter_mm, scores.recall_by_size),
                row.case,
                row.lesion,
                float(text.size(row.diameter_mm)),
            ]
            for row in tables.lesions
        ],
        "false": sweep.false_score.tolist(),
        "free": [row.score for row in false if row.case in free],
        "sizes": [text.size_range(group, scores.size_unit) for group in scores.recall_by_size],
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
