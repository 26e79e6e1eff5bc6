"""`predictions.csv`: an index of the case files, one row per scan, and the outcome of a run."""

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lesionseg.core import Finding
from lesionseg.errors import NOTHING_RAN, SOME_FAILED, ReadError, count
from lesionseg.io.case_file import CaseRow
from lesionseg.io.prediction_folder import PredictionFolder
from lesionseg.io.remote import upload
from lesionseg.io.text import read_csv, write_csv
from lesionseg.pipeline.log import command_line
from lesionseg.pipeline.outcome import Outcome

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
_WRITE_SHARE = 0.05  # largest share of the time that is spent on writing the table
# digests of files that an earlier run has read, by path and state of the scan
Digests = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class PredictOutcome(Outcome):
    """The results of one call of `predict`.

    Attributes:
        rows: one row per scan, sorted by case id.
        folder: the output folder.
        left_out: notes on files that the model cannot read as scans.
        table: the name of the table in the folder. Each shard has its own.
        sent: the cases whose DICOM results were stored in a PACS; None if no PACS was given.
        unsent: the cases for which this failed.
    """

    rows: tuple[CaseRow, ...]
    folder: Path
    left_out: tuple[Finding, ...] = ()
    table: str = TABLE
    sent: tuple[str, ...] | None = None
    unsent: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """3 if a scan failed, except unchanged since an earlier run, or results were not sent.

        Otherwise 1 if all scans were skipped or there were none, and 0 in all other cases. A shard
        never has 1, because the other shards may have scans to predict.
        """
        failed = any(row.status == "failed" and not row.is_unchanged for row in self.rows)
        if failed or self.unsent:
            return SOME_FAILED
        is_shard = self.table != TABLE
        return 0 if is_shard or any(row.status != "skipped" for row in self.rows) else NOTHING_RAN

    def counts(self) -> list[str]:
        """Return lines with the numbers of scans that were predicted, kept, failed and so on.

        The last ones are the notes on files that were left out.
        """
        n = Counter(row.status for row in self.rows)
        known = sum(row.status == "failed" and row.is_unchanged for row in self.rows)
        kept = sum(row.is_done and row.is_unchanged for row in self.rows)
        predicted = sum(row.is_done for row in self.rows) - kept
        accepted = count(sum(row.n_accepted or 0 for row in self.rows), "candidate")
        before = f", {known} failed before and unchanged" if known else ""
        lines = [
            f"{count(len(self.rows) - n['skipped'], 'case')}: {predicted} predicted, {kept} kept "
            f"from an earlier run, {n['failed'] - known} failed{before}; {accepted} accepted."
        ]
        if n["warned"]:
            unlike = count(n["warned"], "scan is", "scans are")
            lines.append(f"Warned: {unlike} unlike the training scans.")
        if n["blank"]:
            blank = count(n["blank"], "scan has", "scans have")
            lines.append(f"Blank: {blank} a channel without contrast, so nothing was detected.")
        if n["failed"]:
            lines.append(
                f"Failed: {self.table} has the reasons; a file that changes is tried again."
            )
        if n["skipped"]:
            lines.append(f"Skipped: {count(n['skipped'], 'scan')}; {self.table} has the reasons.")
        if self.sent is not None:
            lines.append(f"Sent: the DICOM results of {count(len(self.sent), 'case')}.")
        if self.unsent:
            waiting = count(len(self.unsent), "case")
            lines.append(f"Not sent: the DICOM results of {waiting}; the same command tries again.")
        return [*lines, *(f"{note.message}." for note in self.left_out)]

    def record(self) -> dict[str, Any]:
        """Return the paths of folder and table, the cells of each row, and the other attributes."""
        return {
            "output": self.folder,
            "table": self.folder / self.table,
            "cases": [row.cells() for row in self.rows],
            "sent": self.sent,
            "unsent": self.unsent,
            "left_out": [asdict(note) for note in self.left_out],
        }

    def summary(self) -> list[str]:
        """Return the counts, the new warnings, and the files, or that a shard had no scan."""
        lines = self.counts()
        if not self.rows:
            return [*lines, "No scan of the input belongs to this shard."]
        new = [row for row in self.rows if row.warning and not row.is_unchanged]
        lines += [f"{row.case}: {row.warning}" for row in new]
        wrote = f"Wrote:   {self.folder / self.table}"
        if not any(row.is_done for row in self.rows):
            return [*lines, wrote]
        return [*lines, f"{wrote}, with masks and candidates next to it"]

    @property
    def next(self) -> str | None:
        """The command that evaluates the results; None if no scan has any."""
        if not any(row.is_done for row in self.rows):
            return None
        return command_line(
            "evaluate",
            {"reference": "MASKS", "prediction": self.folder, "output": "SCORES"},
        )


def left_out_row(note: Finding) -> CaseRow:
    """Return the row of files of one kind that the model cannot read as scans."""
    return CaseRow(case=note.file, status="skipped", message=f"{note.message}.")


class PredictionIndex:
    """`predictions.csv` in an output folder: the rows of its case files and of this run.

    The table of a shard has only the rows of its run. Earlier tables are read because no case file
    states durations, or the states of files, by which unchanged files are recognised (`digests`).
    Without digests, the files are read again.

    The table is always replaced as a whole, in the first `put` and in `close`. Further calls of
    `put` write it only if less than a twentieth of the time is spent on writing.

    A table that a killed run has left under a temporary name is removed.

    Args:
        path: the table.
        results: the output folder.
        url: the output in the settings. The table is uploaded to it if it is a URL.

    Attributes:
        digests: the digests of files that an earlier run has read.
    """

    def __init__(self, path: Path, results: PredictionFolder, url: str = "") -> None:
        self.path = path
        self.results = results
        self._url = url
        self._is_whole = path.name == TABLE
        self._new: list[CaseRow] = []  # the rows of this run
        self._next_write = 0.0
        # a run that was killed may have left an incomplete table under a temporary name
        results.remove_incomplete(path.name)
        self._earlier: dict[tuple[str, ...], dict[str, str]] = {}  # cells, by `_result_of`
        tables = path.parent.glob("predictions*.csv")
        for table in sorted(tables, key=lambda file: file.stat().st_mtime_ns):
            with suppress(ReadError):  # a damaged table is written again
                self._earlier |= {_result_of(cells): cells for cells in read_csv(table)}
        self.digests: Digests = {
            (cells.get("path", ""), cells.get("state", "")): cells.get("digest", "")
            for cells in self._earlier.values()
        }

    def put(self, row: CaseRow) -> None:
        """Add the row of a scan. A failure to write is only a warning, as `close` tries again."""
        self._new.append(row)
        if perf_counter() < self._next_write:
            return
        try:
            self.write()
        except Exception as error:
            logger.warning("The table is written later: %s", error)

    def has_earlier(self, row: CaseRow) -> bool:
        """Return True if an earlier table has the row with the same status and message."""
        cells = self._earlier.get(_result_of(row.cells()), {})
        return (cells.get("status"), cells.get("message")) == (row.status, row.message)

    def rows(self) -> list[CaseRow]:
        """Return the rows of the table, sorted by case.

        Besides the rows of this run, these are the rows of the case files and of earlier failures
        that no row of this run replaces. The table of a shard has only those of this run.
        """
        rows = [*self._new]
        if self._is_whole:
            done = {row.case for row in rows if row.is_done}
            of_place = {(row.case, row.path): row for row in rows}
            rows += [row.as_kept() for row in self.results.rows() if row.case not in done]
            for failure in self.results.all_failures():
                newer = of_place.get((failure.case, failure.path))
                if newer is None or not newer.replaces(failure):
                    rows.append(failure)
        return sorted(rows, key=lambda row: (row.case, not row.is_done, row.path))

    def _cells(self, row: CaseRow) -> dict[str, Any]:
        """Return a row's cells. Empty ones of `CaseRow.OF_RUN` come from an earlier table."""
        cells = row.cells()
        earlier = self._earlier.get(_result_of(cells), {})
        for name in CaseRow.OF_RUN:
            cells[name] = earlier.get(name) if cells[name] in ("", None) else cells[name]
        return cells

    def write(self) -> None:
        """Write the table with the rows so far, unless there are none, and upload it to the URL.

        Raises:
            OutputError: if it cannot be written.
        """
        begin = perf_counter()
        rows = [self._cells(row) for row in self.rows()]
        if not rows:  # a shard without scans
            return
        columns = CaseRow.columns()
        further = sorted({name for cells in rows for name in cells} - {*columns})
        write_csv(self.path, rows, [*columns, *further])
        upload([self.path], self.path.parent, self._url)
        now = perf_counter()
        self._next_write = now + (now - begin) / _WRITE_SHARE

    close = write  # for `closing`


def _result_of(cells: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells that are equal in two tables if a row is of the same result or failure."""
    return tuple(cells.get(name, "") for name in ("case", "path", "digest", "key"))
