"""Exit status of `predict`, its printed counts and warnings, JSON record and next command."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesionseg.core import Finding
from lesionseg.errors import NOTHING_RAN, SOME_FAILED, count
from lesionseg.io.results.index import TABLE
from lesionseg.io.results.row import CaseRow
from lesionseg.pipeline.log import command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.predict_outputs import Outputs

_MIN_WITHHELD = 3  # scans of a run without DICOM results; fewer may be chance


@dataclass(frozen=True)
class PredictOutcome(Outcome):
    """The results of one call of `predict`.

    Attributes:
        rows: One row per scan, sorted by case id.
        folder: The output folder.
        left_out: Notes on files that the model cannot read as scans.
        table: The name of the table in the folder. Each shard has its own.
        sent: The cases whose DICOM results were stored in a PACS; None if no PACS was given.
        unsent: The cases for which this failed.
        drifts: A sentence for each drift (`evaluation.drift`) with a scan of this run.
    """

    rows: tuple[CaseRow, ...]
    folder: Path
    left_out: tuple[Finding, ...] = ()
    table: str = TABLE
    sent: tuple[str, ...] | None = None
    unsent: tuple[str, ...] = ()
    drifts: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """The exit status of the process.

        - 3 if a scan failed in this run, results could not be sent, or there is a
          `withheld_warning`. A failure that is unchanged since an earlier run does not count.
        - 1 if all scans were skipped or there were none. A shard never has 1, because the other
          shards may have scans to predict.
        - 0 otherwise.
        """
        failed = any(row.status == "failed" and not row.is_unchanged for row in self.rows)
        if failed or self.unsent or self.withheld_warning:
            return SOME_FAILED
        is_shard = self.table != TABLE
        return 0 if is_shard or any(row.status != "skipped" for row in self.rows) else NOTHING_RAN

    @property
    def withheld_warning(self) -> str:
        """A sentence if the DICOM results of many scans were withheld, otherwise "".

        DICOM results are withheld if a scan is unlike the training scans. Many are at least three
        scans, and at least half of the scans that were predicted in this run.
        """
        new = [row for row in self.rows if row.is_done and not row.is_unchanged]
        # the number of scans whose results were withheld
        n = sum(row.message.startswith(Outputs.WITHHELD) for row in new)
        if n < max(_MIN_WITHHELD, len(new) / 2):
            return ""
        verb = "written" if self.sent is None else "sent"
        return (
            f"{n} of {len(new)} scans are unlike the training scans: no SEG or SR was {verb} for "
            "these."
        )

    def counts(self) -> list[str]:
        """Return lines for the terminal with the number of scans of each kind.

        The kinds are predicted, unchanged, failed, warned, blank, skipped and sent. The last lines
        are the notes on files that are no scans.
        """
        # the number of scans with each status, and that of failures of an earlier run
        n = Counter(row.status for row in self.rows)
        n_old = sum(row.status == "failed" and row.is_unchanged for row in self.rows)
        n_kept = sum(row.is_done and row.is_unchanged for row in self.rows)
        predicted = sum(row.is_done for row in self.rows) - n_kept
        accepted = count(sum(row.n_accepted or 0 for row in self.rows), "candidate")
        old = f", {n_old} failed before and unchanged" if n_old else ""
        lines = [
            f"{count(len(self.rows) - n['skipped'], 'case')}: {predicted} predicted, {n_kept} kept "
            f"from an earlier run, {n['failed'] - n_old} failed{old}; {accepted} accepted."
        ]
        if n["warned"]:
            unlike = count(n["warned"], "scan is", "scans are")
            lines.append(f"Warned: {unlike} unlike the training scans.")
        if n["blank"]:
            blank = count(n["blank"], "scan has", "scans have")
            lines.append(f"Blank: {blank} a channel without contrast, so nothing was detected.")
        if n["failed"]:
            lines.append(
                f"Failed: {self.table} has the reasons; a failed file is tried again after it "
                "changes."
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
        """Return plain data for `--json`: folder, table, the cells of each row, and warnings."""
        return {
            "output": self.folder,
            "table": self.folder / self.table,
            "cases": [row.cells() for row in self.rows],
            "sent": self.sent,
            "unsent": self.unsent,
            "withheld_warning": self.withheld_warning,
            "drifts": self.drifts,
            "left_out": [asdict(note) for note in self.left_out],
        }

    def summary(self) -> list[str]:
        """Return lines for the terminal: counts, warnings of this run, the table, drifts.

        The last line is `withheld_warning`, if it is not empty. If the shard has no scan, only the
        counts and a remark are returned.
        """
        lines = self.counts()
        if not self.rows:
            return [*lines, "No scan of the input belongs to this shard."]
        new = [row for row in self.rows if row.warning and not row.is_unchanged]
        lines += [f"{row.case}: {row.warning}" for row in new]
        wrote = f"Wrote:   {self.folder / self.table}"
        if any(row.is_done for row in self.rows):
            wrote += ", with masks and candidates next to it"
        return [*lines, wrote, *self.drifts, *filter(None, [self.withheld_warning])]

    @property
    def next(self) -> str | None:
        """The command to run next: `evaluate`.

        None if no scan has results, or if DICOM results were withheld (`withheld_warning`), because
        the scans need attention first.
        """
        if self.withheld_warning or not any(row.is_done for row in self.rows):
            return None
        return command_line(
            "evaluate",
            # the user replaces the words in capitals
            {"reference": "MASKS", "prediction": self.folder, "output": "SCORES"},
        )
