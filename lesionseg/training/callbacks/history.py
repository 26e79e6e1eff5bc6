"""The history of a training: metrics.csv, one row each few steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lesionseg.errors import ReadError
from lesionseg.evaluation.table_row import TableRow
from lesionseg.io.atomic import read_csv, write_csv

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
    """Rows of metrics.csv, which is replaced as a whole, so that it is never cut off mid-line.

    Columns: `first` (step, minutes, epoch, lr, loss), then whatever the rows bring
    (`loss_<term>`, positives, skipped, `validation_<name>`), in order of appearance.
    """

    def __init__(
        self, path: Path, upto_step: int = 0, first: Sequence[str] = HistoryRow.columns()
    ) -> None:
        """Begin with the rows that `path` already holds up to `upto_step`: later ones were lost."""
        self.path, self.first = path, tuple(first)
        self.rows = [row for row in _old_rows(path) if int(row["step"]) <= upto_step]
        self._next_write = 0.0

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row and write the file, unless it was written a moment ago."""
        self.rows.append({name: _text(value) for name, value in row.items()})
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        started = time.monotonic()
        seen = (name for row in self.rows for name in row)
        write_csv(self.path, self.rows, list(dict.fromkeys((*self.first, *seen))))
        ended = time.monotonic()
        pause = max(MIN_SECONDS_BETWEEN_WRITES, (ended - started) / WRITING_SHARE)
        self._next_write = ended + pause


def _old_rows(path: Path) -> list[dict[str, str]]:
    try:
        return [row for row in read_csv(path) if row.get("step", "").isdigit()]
    except ReadError:  # none yet
        return []


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
