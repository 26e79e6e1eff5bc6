"""`predictions.csv`: the status and the findings of each scan, one row per scan."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lesionseg.core import Finding, InputCheckResult
from lesionseg.errors import NOTHING_RAN, SOME_FAILED, count
from lesionseg.io.files import (
    TEMPORARY_NAMES,
    printable_id,
    printable_text,
    read_csv,
    read_json,
    write_csv,
)
from lesionseg.io.prediction_folder import PredictionFolder
from lesionseg.io.predictions import CANDIDATES
from lesionseg.io.remote import upload
from lesionseg.io.scans import Scan, ScanSource
from lesionseg.pipeline.log import command_line
from lesionseg.pipeline.outcome import Outcome

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
DONE = ("done", "warned", "blank", "kept")  # the statuses of a case that has results
CONFLICT = "conflict"  # key of a scan whose results would replace those of another scan
_ANY_TABLE = re.compile(r"predictions(_\d+_of_\d+)?\.csv")
_WRITE_SHARE = 0.05  # largest share of the time that is spent on writing the table


@dataclass(frozen=True)
class CaseRow:
    """A scan's line of `predictions.csv`; `amounts` are further columns, named by label and zone.

    Attributes:
        case: id of the case.
        group: patient, from the input's table.
        visit: visit, from the input's table.
        status: done, warned (unlike the training scans), blank (without contrast), kept (done in an
            earlier run), failed or skipped.
        message: the reason if the scan failed or was skipped.
        seconds: duration of the prediction.
        n_candidates: number of candidates.
        n_accepted: number of accepted candidates.
        volume_ml: volume of accepted candidates; None in 2-D and for boxes without masks.
        peak_memory_mb: peak memory of the process up to the end of this scan.
        bundle: digest of the model.
        key: hash of bundle, settings and content; "" if the scan failed for an external reason.
        warning: differences from the training scans, and candidates that are missing.
        input_score: size of these differences; 1 is the limit.
        missing: channels that the scan lacks.
        operating_point: the name of the operating point.
        path: path of the scan below the input.
        study_uid: DICOM UID of the study; empty for files of other formats, like the other UIDs.
        series_uid: DICOM UID of the series.
        instance_uid: DICOM UID of the image.
        digest: hash of the files' content.
        state: see `file_state`.
        finished: time of the result or failure.
        amounts: counts and millilitres, with the columns `count_<label>`, `ml_<label>`,
            `zone_count_<zone>`, `zone_ml_<zone>`.
        is_unchanged: the row is the same as before this run. This is not a column.
    """

    case: str
    group: str = ""
    visit: str = ""
    status: str = ""
    message: str = ""
    seconds: float = 0.0
    n_candidates: int = 0
    n_accepted: int = 0
    volume_ml: float | None = None
    peak_memory_mb: int = 0
    bundle: str = ""
    key: str = ""
    warning: str = ""
    input_score: float | None = None
    missing: str = ""
    operating_point: str = ""
    path: str = ""
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    digest: str = ""
    state: str = ""
    finished: str = ""
    amounts: Mapping[str, Any] = field(default_factory=dict)
    is_unchanged: bool = False

    @property
    def is_done(self) -> bool:
        """True if the case has results."""
        return self.status in DONE

    @property
    def source(self) -> ScanSource:
        """Digest and UIDs of the scan."""
        return ScanSource(self.digest, self.study_uid, self.series_uid, self.instance_uid)

    @property
    def scan_uid(self) -> str:
        """UID of the series, or of the image if the scan is a single DICOM file."""
        return self.instance_uid or self.series_uid

    def with_source(self, source: ScanSource, state: str) -> "CaseRow":
        """Return the row with digest, UIDs and state of its scan."""
        return replace(
            self,
            study_uid=source.study_uid,
            series_uid=source.series_uid,
            instance_uid=source.instance_uid,
            digest=source.digest,
            state=state,
        )

    def as_kept(self) -> "CaseRow":
        """Return the row in a later run: `done` means that the scan was predicted in this run."""
        return replace(self, status="kept") if self.status == "done" else self

    def replaces(self, other: "CaseRow") -> bool:
        """Return True if the row replaces another row of its case.

        A case has at most one row with results. Each scan that failed under the same id has its own
        row. Two such scans differ in their paths or, if one file replaced another under the same
        path, in their sources.
        """
        if other.is_done:
            return self.is_done
        is_of_another_path = bool(other.path) and other.path != self.path
        if is_of_another_path:
            return False
        is_conflict = other.key == CONFLICT and bool(other.digest)
        return not is_conflict or self.source.is_of_same_scan(other.source)

    def cells(self) -> dict[str, Any]:
        """Return the row's cells by column."""
        return {**{name: getattr(self, name) for name in COLUMNS}, **self.amounts}

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> "CaseRow":
        """Make a row from the cells of a table. Missing and wrong cells get their defaults."""
        known: dict[str, Any] = {}
        amounts: dict[str, Any] = {}
        for name, text in cells.items():
            if name not in COLUMNS:
                amounts[name] = _to_number(text)
            elif text or name == "case":  # an empty cell has the default of its column
                known[name] = text
        known["amounts"] = amounts
        try:
            return _ROWS.validate_python(known)
        except ValidationError as error:
            for fault in error.errors():
                column = str(fault["loc"][0])
                known.pop(column, None)
            return _ROWS.validate_python({"case": "", **known})


def _to_number(text: str) -> Any:
    """Convert a text to a number if it is one. Return None for an empty text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text or None


COLUMNS = tuple(c.name for c in fields(CaseRow) if c.name not in ("amounts", "is_unchanged"))
_ROWS = TypeAdapter(CaseRow)


@dataclass(frozen=True)
class PredictOutcome(Outcome):
    """The rows of one call, one per scan, sorted by case id, and the output folder.

    `left_out`: files that the model cannot read as scans. `table`: the name of the table in the
    folder, which each shard has for itself.
    """

    rows: tuple[CaseRow, ...]
    folder: Path
    left_out: tuple[Finding, ...] = ()
    table: str = TABLE

    @property
    def exit_status(self) -> int:
        """3 if a scan failed for the first time, 1 if no scan was to be predicted, otherwise 0.

        A shard is not 1, because the other shards may have scans to predict.
        """
        failed = any(row.status == "failed" and not row.is_unchanged for row in self.rows)
        if failed:
            return SOME_FAILED
        is_shard = self.table != TABLE
        return 0 if is_shard or any(row.status != "skipped" for row in self.rows) else NOTHING_RAN

    def counts(self) -> list[str]:
        """Return the numbers of scans that were predicted, kept, failed and skipped."""
        n = Counter(row.status for row in self.rows)
        known = sum(row.status == "failed" and row.is_unchanged for row in self.rows)
        kept = sum(row.is_done and row.is_unchanged for row in self.rows)
        predicted = sum(row.is_done for row in self.rows) - kept
        accepted = count(sum(row.n_accepted for row in self.rows), "candidate")
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
        return [*lines, *(f"{note.message}." for note in self.left_out)]

    def summary(self) -> list[str]:
        """Return the counts, the new warnings, and the files of the results."""
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
        """The command that evaluates the results; None without results."""
        if not any(row.is_done for row in self.rows):
            return None
        return command_line(
            "evaluate",
            {"reference": "MASKS", "prediction": self.folder, "output": "SCORES"},
        )


def begun_row(scan: Scan, bundle: str = "") -> CaseRow:
    """Make the first row of a scan, with only the facts that the input states."""
    dicom = scan.dicom
    return CaseRow(
        case=printable_id(scan.case),
        group=printable_text(scan.files.group),
        visit=scan.files.columns.get("visit", ""),
        bundle=bundle,
        path=scan.path,
        study_uid=dicom.study_uid if dicom else "",
        series_uid=dicom.series_uid if dicom else "",
        instance_uid=dicom.instance_uid if dicom else "",
    )


def left_out_row(note: Finding) -> CaseRow:
    """Make the row of files of one kind that the model cannot read as scans."""
    return CaseRow(case=note.file, status="skipped", message=f"{note.message}.")


def rebuilt_row(results: PredictionFolder, case: str) -> CaseRow | None:
    """Make a row from the result files of a case; None if these do not state their source.

    It is needed if the table was deleted, or a program was killed before it wrote the row.
    """
    source = results.source(case)
    if source is None:
        return None
    content = read_json(results.path / f"{case}{CANDIDATES}")
    candidates = [entry for entry in content.get("candidates", ()) if isinstance(entry, dict)]
    accepted = [entry for entry in candidates if entry.get("accepted", True)]
    stated = [entry.get("volume_ml") for entry in accepted]
    volumes = [volume for volume in stated if isinstance(volume, int | float)]
    has_all_volumes = len(volumes) == len(accepted)
    checked = content.get("input_check") or {}
    stated_score = checked.get("score")
    score = stated_score if isinstance(stated_score, int | float) else None
    status = "kept"
    if checked.get("blank"):
        status = "blank"
    elif InputCheckResult(score, empty=tuple(checked.get("empty") or ())).is_warned:
        status = "warned"
    row = CaseRow(
        case=case,
        group=case,
        status=status,
        warning=str(checked.get("warning", "")),
        input_score=score,
        message="This row was made from the results, as the table had none.",
        n_candidates=len(candidates),
        n_accepted=len(accepted),
        volume_ml=round(sum(volumes), 6) if has_all_volumes else None,
    )
    # the state of the scan's files is unknown, so the next run reads them to compare their hash
    return row.with_source(source, state="")


def _read_rows(table: Path) -> dict[str, list[CaseRow]]:
    """Read the rows of a table by case."""
    rows: dict[str, list[CaseRow]] = {}
    for cells in read_csv(table):
        row = CaseRow.from_cells(cells)
        if row.case and row.status:
            rows.setdefault(row.case, []).append(row)
    return rows


def _last(rows: Iterable[CaseRow]) -> datetime:
    """Return the latest time at which one of the rows finished. Rows without a time are old."""
    latest = datetime.min.replace(tzinfo=UTC)
    for row in rows:
        with suppress(ValueError, TypeError):  # an edited cell; TypeError: without a time zone
            latest = max(latest, datetime.fromisoformat(row.finished))
    return latest


class PredictionTable:
    """`predictions.csv` in an output folder: the rows of earlier runs and of this run.

    Each shard has its own table, which keeps the cases of earlier runs. `earlier` contains the rows
    of all tables by case. If several tables contain a case, the rows are those that finished last.
    A run without shards writes the union of all tables. The file is always replaced as a whole, in
    the first `put` and in `close`. Further calls of `put` write it only if less than a twentieth of
    the time is spent on writing.
    """

    def __init__(self, path: Path, url: str = "") -> None:
        self.path = path
        self.earlier: dict[str, list[CaseRow]] = {}
        self._url = url
        # a run that was killed may have left an incomplete table under a temporary name
        temporary_names = TEMPORARY_NAMES.removesuffix("*") + path.name
        for incomplete in path.parent.glob(temporary_names):
            incomplete.unlink(missing_ok=True)
        tables = [file for file in path.parent.iterdir() if _ANY_TABLE.fullmatch(file.name)]
        own: set[str] = set()
        for table in sorted(tables, key=lambda file: file.stat().st_mtime_ns):
            read = _read_rows(table)
            if path.name in (TABLE, table.name):
                own.update(read)
            for case, rows in read.items():
                # of equal times, the rows of the later table are kept
                if case not in self.earlier or _last(rows) >= _last(self.earlier[case]):
                    self.earlier[case] = rows
        self._rows = {
            case: [row.as_kept() for row in rows]
            for case, rows in self.earlier.items()
            if case in own
        }
        self._next_write = 0.0
        self._is_written = all(
            row.status != "done" for case in self._rows for row in self.earlier[case]
        )

    def put(self, row: CaseRow) -> None:
        """Add or replace a row. A failure to write is only a warning, as `close` tries again."""
        others = self._rows.get(row.case, self.earlier.get(row.case, []))
        self._rows[row.case] = [*(other for other in others if not row.replaces(other)), row]
        self._is_written = False
        if perf_counter() >= self._next_write:
            try:
                self.close()
            except Exception as error:
                logger.warning("The table is written later: %s", error)

    @property
    def rows(self) -> list[CaseRow]:
        """The rows, sorted by case."""
        return [row for case in sorted(self._rows) for row in self._rows[case]]

    def forget(self, is_obsolete: Callable[[CaseRow], bool]) -> None:
        """Remove the rows for which `is_obsolete` returns True."""
        for case, rows in self._rows.items():
            kept = [row for row in rows if not is_obsolete(row)]
            if len(kept) < len(rows):
                self._rows[case] = kept
                self._is_written = False

    def close(self) -> None:
        """Write the table if it has unwritten rows.

        Raises:
            OutputError: if it cannot be written.
        """
        if self._is_written:
            return
        begin = perf_counter()
        rows = self.rows
        further = sorted({name for row in rows for name in row.amounts})
        write_csv(self.path, (row.cells() for row in rows), [*COLUMNS, *further])
        upload([self.path], self.path.parent, self._url)
        now = perf_counter()
        self._next_write = now + (now - begin) / _WRITE_SHARE
        self._is_written = True
