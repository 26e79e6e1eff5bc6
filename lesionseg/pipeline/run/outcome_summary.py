"""What a verb prints when it is done: a table a person can read, and where the rest lies."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lesionseg.pipeline.train.recipe import TrainOutcome


def lines_of(outcome: object) -> list[str]:
    """The closing lines of any recipe's outcome."""
    if isinstance(outcome, TrainOutcome):
        return list(_train_lines(outcome))
    if isinstance(outcome, Mapping):
        return scores_lines({str(outcome.get("evaluated_on")): outcome})
    if isinstance(outcome, Path):
        return [f"Report: {outcome}"]
    summary = getattr(outcome, "summary", None)
    return list(summary()) if callable(summary) else []


def _train_lines(outcome: TrainOutcome) -> Iterator[str]:
    yield from scores_lines(outcome.scores)
    yield ""
    yield from outcome.notes
    yield f"Finished in {outcome.seconds / 60:.1f} minutes."
    yield f"Bundle:  {outcome.run_dir / 'bundle'}"
    if outcome.report is not None:
        yield f"Report:  {outcome.report}"
    else:
        yield "No case was left to validate on, so there are no scores and no report."


def scores_lines(by_role: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One column a role, one row a number; what is undefined is a dash.

    >>> scores_lines({})
    []
    """
    if not by_role:
        return []
    rows = {name: [_cell(s, name) for s in by_role.values()] for name in ROWS}
    table = [["", *by_role], *([name, *cells] for name, cells in rows.items())]
    return aligned(table)


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of equal columns, the first to the left, the others to the right.

    >>> aligned([["", "a"], ["recall", "0.5"]])
    ['          a', 'recall  0.5']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [_line(row, widths) for row in table]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([row[0].ljust(len(first)), *others]).rstrip()


ROWS: Mapping[str, tuple[str, ...]] = {
    "cases": ("n_cases",),
    "of them lesion-free": ("n_lesion_free_cases",),
    "lesions": ("n_lesions",),
    "found": ("n_true_positive",),
    "lesion recall": ("lesion_recall", "value"),
    "false positives a case": ("false_positives_per_case",),
    "lesion precision": ("lesion_precision",),
    "Dice, mean": ("dice", "mean"),
    "Dice, median": ("dice", "median"),
    "surface Dice, mean": ("surface_dice", "mean"),
    "average precision": ("average_precision",),
    "CPM": ("cpm",),
    "accepted from score": ("operating_point", "score"),
}


def _cell(scores: Mapping[str, Any], name: str) -> str:
    value: Any = scores
    for key in ROWS[name]:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
