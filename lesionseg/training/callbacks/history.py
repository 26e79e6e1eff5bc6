"""The history of a training: metrics.csv, one row each few steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lesionseg.errors import ReadError
from lesionseg.evaluation.table_row import TableRow
from lesionseg.io.atomic import append_csv, read_csv, write_csv

MIN_SECONDS_BETWEEN_WRITES = 2.0
WRITING_SHARE = 0.02  # of the time of training that writing may take


@dataclass(frozen=True)
class HistoryRow(TableRow):
    """One line of metrics.csv: means since the line before, and scores where it was validated."""

    more: ClassVar[Mapping[str, Any]] = {
        "loss_.+": float | None,
        "positives": float | None,
        "skipped": float | None,
        "validation_.+": float | None,
    }

    step: int
    minutes: float
    epoch: int | None = None
    lr: float | None = None
    loss: float | None = None


class History:
    """Rows of metrics.csv: appended, so that a long training writes no more than a short one.

    Columns: `first` (step, minutes, epoch, lr, loss), then whatever the rows bring
    (`loss_<term>`, positives, skipped, `validation_<name>`), in order of appearance. A new column
    replaces the file as a whole. A line that was cut off is dropped when training goes on.
    """

    def __init__(
        self, path: Path, upto_step: int = 0, first: Sequence[str] = HistoryRow.columns()
    ) -> None:
        """Begin with the rows that `path` already holds up to `upto_step`: later ones were lost."""
        self.path, self.first = path, tuple(first)
        self.rows = [row for row in _old_rows(path) if int(row["step"]) <= upto_step]
        self._columns: list[str] = []  # of the file as this process wrote it
        self._next_write = 0.0

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row and write it, unless one was written a moment ago."""
        self.rows.append({name: _text(value) for name, value in row.items()})
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        """Write now what is not yet in the file."""
        if not self._columns or any(set(row) - set(self._columns) for row in self.rows):
            self._replace()
        else:
            append_csv(self.path, self.rows, self._columns)
        self.rows = []
        self._next_write = time.monotonic() + MIN_SECONDS_BETWEEN_WRITES

    def _replace(self) -> None:
        rows = [*(_old_rows(self.path) if self._columns else ()), *self.rows]
        seen = (name for row in rows for name in row)
        self._columns = list(dict.fromkeys((*(self._columns or self.first), *seen)))
        write_csv(self.path, rows, self._columns)


def _old_rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_csv(path)
        whole = rows if path.read_bytes().endswith(b"\n") else rows[:-1]
    except (OSError, ReadError):  # none yet
        return []
    return [row for row in whole if row.get("step", "").isdigit()]


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
