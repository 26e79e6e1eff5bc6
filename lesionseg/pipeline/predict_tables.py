"""`predictions.csv`: what became of every case, and how much was found in it, one row each."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import count
from lesionseg.io.files import HALF, printable_id, read_csv, write_csv
from lesionseg.io.remote import upload
from lesionseg.pipeline.log import typed

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
_ANY_TABLE = re.compile(r"predictions(_\d+_of_\d+)?\.csv")
_WRITE_SECONDS = 5.0

# one line of `predictions.csv`; behind these columns lie `count_<label>`, `ml_<label>`,
# `zone_count_<zone>` and `zone_ml_<zone>`
Row = dict[str, Any]
COLUMNS: Mapping[str, Any] = {
    "case": "",
    "group": "",  # as the input's table has it
    "visit": "",
    "status": "",  # done now, kept from an earlier run, or failed
    "message": "",  # why it failed
    "seconds": 0.0,  # of work on this case when it was done
    "n_candidates": 0,
    "n_accepted": 0,
    "volume_ml": None,  # of accepted candidates; none in 2-D and of bare boxes
    "peak_memory_mb": 0,  # the most that the process had held until then
    "bundle": "",
    "key": "",  # changes with bundle, settings and files
    "warning": "",  # in what the scan is unlike the training scans
    "input_score": None,  # how much; 1 is the limit
    "missing": "",  # channels that it lacks
    "operating_point": "",  # what accepted its candidates
}


@dataclass(frozen=True)
class PredictOutcome:
    """The rows of one call, one per case, in order of case id, and the folder they went to."""

    rows: tuple[Row, ...]
    folder: Path

    @property
    def exit_status(self) -> int:
        """1 when a case failed, else 0."""
        return int(any(row["status"] == "failed" for row in self.rows))

    def summary(self) -> list[str]:
        """How many cases were done, kept and failed and why, where results lie, what is next."""
        n = Counter(row["status"] for row in self.rows)
        accepted = count(sum(int(row["n_accepted"]) for row in self.rows), "candidate")
        then = {"reference": "MASKS", "prediction": self.folder, "output": "SCORES"}
        wrote, following = f"Wrote:   {self.folder / TABLE}", list[str]()
        if n["done"] + n["kept"]:
            wrote += ", and masks and candidates beside it"
            following = [f"Next:    {typed('evaluate', **then)}"]
        return [
            f"{count(len(self.rows), 'case')}: {n['done']} predicted, {n['kept']} kept from an "
            f"earlier run, {n['failed']} failed; {accepted} accepted.",
            *(f"{row['case']}: {row['message']}" for row in self.rows if row["status"] == "failed"),
            *(f"{row['case']}: {row['warning']}" for row in self.rows if row["warning"]),
            wrote,
            *following,
        ]


def begun_row(files: CaseFiles) -> Row:
    """The row of a case of which nothing is known but what the input says of it."""
    named = {"case": printable_id(files.case), "group": files.group}
    return {**COLUMNS, **named, "visit": files.columns.get("visit", "")}


class PredictionTable:
    """`predictions.csv` in an output folder: the rows of earlier runs, and this run's.

    Each shard has a table of its own; `earlier` is the rows of all tables by case, of the same case
    those of the youngest one. What is written without shards is their union. The file is always
    whole. It is written with the first row that is `put`, then every few seconds, and by `close`;
    a run killed in between predicts again the cases whose rows it lost.
    """

    def __init__(self, path: Path, url: str = "") -> None:
        self.path, self._url = path, url
        self.earlier: dict[str, Row] = {}
        for half in path.parent.glob(HALF[:-1] + path.name):  # of a run that was killed
            half.unlink(missing_ok=True)
        tables = [file for file in path.parent.iterdir() if _ANY_TABLE.fullmatch(file.name)]
        for table in sorted(tables, key=lambda file: file.stat().st_mtime_ns):
            self.earlier |= {
                row["case"]: row for row in read_csv(table) if row.keys() >= COLUMNS.keys()
            }
        self._rows = dict(self.earlier) if path.name == TABLE else {}
        self._next_write, self._is_written = 0.0, True

    def put(self, row: Row) -> None:
        """Add or replace a row; a disk that is full now may have room at the end."""
        self._rows[row["case"]] = row
        self._is_written = False
        if perf_counter() >= self._next_write:
            try:
                self.close()
            except Exception as error:
                logger.warning("%s cannot be written yet: %r", self.path.name, error)

    def close(self) -> None:
        """Write what is not written yet. Raises `OutputError`."""
        if self._is_written:
            return
        self._next_write = perf_counter() + _WRITE_SECONDS
        rows = [self._rows[case] for case in sorted(self._rows)]
        further = sorted({name for row in rows for name in row} - COLUMNS.keys())
        write_csv(self.path, rows, [*COLUMNS, *further])
        upload([self.path], self.path.parent, self._url)
        self._is_written = True
