"""What every command shows and returns: a bar on the terminal, lines to print, an exit status."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesionseg.pipeline.log import Advance as Advance
from lesionseg.pipeline.log import bar as bar


class CommandOutcome:
    """What a command leaves. A recipe's own outcome says more; a server that was stopped, nothing.

    `exit_status` is that of the process: 0, or 1 where something failed.
    """

    @property
    def exit_status(self) -> int:
        """0 unless the outcome knows better."""
        return 0

    def summary(self) -> list[str]:
        """The closing lines, for a person."""
        return []


def scores_lines(by_role: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One column per role, one row per number; what is undefined is a dash.

    >>> scores_lines({})
    []
    """
    if not by_role:
        return []
    rows = {name: [_cell(s, name) for s in by_role.values()] for name in ROWS}
    table = [["", *by_role], *([name, *cells] for name, cells in rows.items())]
    return aligned(table)


def score_cells(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of `scores_lines` for one role: what, and how much."""
    return [(name, _cell(scores, name)) for name in ROWS]


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
    "false positives per case": ("false_positives_per_case", "value"),
    "lesion precision": ("lesion_precision", "value"),
    "Dice, mean": ("dice", "mean"),
    "Dice, median": ("dice", "median"),
    "surface Dice, mean": ("surface_dice", "mean"),
    "average precision": ("average_precision", "value"),
    "CPM": ("cpm", "value"),
    "accepted from score": ("operating_point", "score"),
}


def _cell(scores: Mapping[str, Any], name: str) -> str:
    value: Any = scores
    for key in ROWS[name]:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
