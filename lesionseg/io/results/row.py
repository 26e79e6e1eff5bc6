"""Columns of predictions.csv (`CaseRow`), and the same keys in candidate and failure files.

The row of a case is its line in the table.

These are `<case>_candidates.json` for results and `<case>_failed.json` for failures. A candidate
file states the scan, a hash of the settings and everything that `predictions.csv` shows of the
case, apart from values of a single run such as its duration. The same scan, bundle and settings
give the same bytes. Other programs may write candidate files, too.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from lesionseg.config import MaskNames
from lesionseg.errors import ContentError, ReadError, describe_misfits
from lesionseg.io.case_ids import case_id_problem
from lesionseg.io.files import digest_of
from lesionseg.io.results.names import CANDIDATES, FAILED
from lesionseg.io.text import read_json, read_text, write_json

_DONE = ("done", "warned", "blank", "kept")  # the statuses of a case that has results
# the beginning of the list of candidates, as `write_json` writes it
_CANDIDATES_START = '\n "candidates": ['
_SHOWN_DIGITS = 12  # digits of a digest in a message


@dataclass(frozen=True)
class CaseRow:
    """A scan's line of `predictions.csv`; `amounts` are further columns, named by label and zone.

    Attributes:
        case: Id of the case.
        group: Patient, from the input's table; the case id if the table states none.
        visit: Visit, from the input's table.
        status: Done, warned (unlike the training scans), blank (without contrast), kept (done in an
            earlier run), failed or skipped.
        message: The reason if the scan failed or was skipped, or why DICOM results are missing.
        seconds: Duration of the prediction.
        n_candidates: Number of candidates; None without results.
        n_accepted: Number of accepted candidates.
        volume_ml: Volume of accepted candidates; None in 2-D and for boxes without masks.
        peak_memory_mb: Peak memory of the process up to the end of this scan.
        bundle: Digest of the model.
        key: Hash of bundle, settings and content; `CONFLICT` for a scan that would replace results
            of another scan, "fault" for one that cannot be predicted whatever its content; "" if
            the scan failed for an external reason or was left out.
        warning: Differences from the training scans, and candidates that are missing.
        input_score: Size of these differences; 1 is the limit.
        disagreement: 1 − the share of the voxels marked by any network of an ensemble that all its
            networks mark; None for a single network.
        missing: Channels that the scan lacks.
        operating_point: The name of the operating point.
        path: Path of the scan below the input.
        study_uid: DICOM UID of the study; empty for files of other formats, like the other UIDs.
        series_uid: DICOM UID of the series.
        instance_uid: DICOM UID of the image.
        acquired: StudyDate as an ISO date; empty if the scan is not DICOM, or was predicted by an
            earlier version, like `scanner`.
        scanner: Manufacturer, model and station, as far as the DICOM header states them.
        digest: Hash of the files' content, see `content_digest`.
        state: A digest of names, sizes and times of the files, to notice changed files without
            reading them (`file_state`).
        finished: Time at which the scan was predicted, failed or was skipped.
        amounts: Counts and millilitres, with the columns `count_<label>`, `ml_<label>`,
            `zone_count_<zone>`, `zone_ml_<zone>`.
        is_unchanged: The row is the same as before this run. This is not a column.
        names: The names of the case's masks. This is not a column.
    """

    case: str
    group: str = ""
    visit: str = ""
    status: str = ""
    message: str = ""
    seconds: float | None = None
    n_candidates: int | None = None
    n_accepted: int | None = None
    volume_ml: float | None = None
    peak_memory_mb: int | None = None
    bundle: str = ""
    key: str = ""
    warning: str = ""
    input_score: float | None = None
    disagreement: float | None = None
    missing: str = ""
    operating_point: str = ""
    path: str = ""
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    acquired: str = ""
    scanner: str = ""
    digest: str = ""
    state: str = ""
    finished: str = ""
    amounts: Mapping[str, Any] = field(default_factory=dict)
    is_unchanged: bool = False
    names: MaskNames = "lesionseg"

    CONFLICT: ClassVar[str] = "conflict"  # key of a scan that would replace results of another scan
    # values of a single run, which differ between two runs with the same results
    RUN_COLUMNS: ClassVar[tuple[str, ...]] = ("seconds", "peak_memory_mb", "state", "finished")

    @classmethod
    def columns(cls) -> list[str]:
        """Return the column names of `predictions.csv`, without the columns in `amounts`."""
        return [c.name for c in fields(cls) if c.name not in ("amounts", "is_unchanged", "names")]

    @property
    def is_done(self) -> bool:
        """True if the status is one of a case with results: done, warned, blank or kept."""
        return self.status in _DONE

    @property
    def day(self) -> str:
        """The ISO date of the scan: `acquired`, otherwise the date in `finished`.

        The date is "" if neither attribute contains a date.
        """
        for text in (self.acquired, self.finished):
            with suppress(ValueError):
                return date.fromisoformat(text[:10]).isoformat()
        return ""

    @property
    def scan_uid(self) -> str:
        """DICOM UID that identifies the scan, or "" for other formats.

        The UID is that of the image if the scan is a single DICOM file, otherwise that of the
        series.
        """
        return self.instance_uid or self.series_uid

    @property
    def scan_name(self) -> str:
        """Words that identify the scan in a message: its DICOM UID, or the start of the digest.

        `scan_uid` is `instance_uid` if the scan is a single DICOM file, otherwise `series_uid`.
        """
        if self.scan_uid:
            return f"{'instance' if self.instance_uid else 'series'} {self.scan_uid}"
        return f"digest {self.digest[:_SHOWN_DIGITS]}…"

    def is_of_same_scan(self, other: "CaseRow") -> bool:
        """Return True if both rows are known to describe one scan, possibly with changed content.

        - Rows with equal digests describe the same scan.
        - Otherwise single DICOM files are compared by instance UID, because a series may contain
          several single images, such as two views of a chest. Series are compared by series UID.
        - Files without UIDs are different scans if their content differs.
        """
        if self.digest == other.digest:
            return True
        if self.instance_uid or other.instance_uid:
            return self.instance_uid == other.instance_uid
        return bool(self.series_uid) and self.series_uid == other.series_uid

    def as_kept(self) -> "CaseRow":
        """Return the row with status `kept`, for the table of a later run that did not predict it.

        Only the statuses `done`, which means predicted in this run, and "" are changed.
        """
        return replace(self, status="kept") if self.status in ("done", "") else self

    def replaces(self, failure: "CaseRow") -> bool:
        """Return True if this row makes a failure obsolete that was recorded under its case id.

        The row replaces a failure of a scan with the same path. A conflict (`CONFLICT`) must also
        be of the same scan: it stays if another scan was predicted from this path.
        """
        if failure.path != self.path:
            return False
        return failure.key != self.CONFLICT or self.is_of_same_scan(failure)

    def cells(self) -> dict[str, Any]:
        """Return the cells of the row by column of `predictions.csv`, including `amounts`."""
        return {**{name: getattr(self, name) for name in self.columns()}, **self.amounts}


EMPTY: tuple[Any, ...] = ("", None, {}, [])  # values that files leave out
_NOT_WRITTEN = {*CaseRow.RUN_COLUMNS, "is_unchanged", "names"}
_SOURCE = ("digest", "study_uid", "series_uid", "instance_uid")  # what identifies the scan
_ROWS = TypeAdapter(CaseRow)
_FAILURES = TypeAdapter(list[CaseRow])


def read_row(path: Path) -> CaseRow:
    """Read the row of a case from its candidate file, without its candidates.

    Keys that the file lacks have their defaults. A file of another program contains neither digest
    nor key nor status. The case id is the one in the file name.

    Raises:
        ReadError: If the file is missing or not JSON.
        ContentError: If a value has another type.
    """
    content = _read_head(path)
    case = path.name.removesuffix(CANDIDATES)
    keys_outside_row = {"key": content.get("key", ""), "names": content.get("names", "lesionseg")}
    try:
        row = {
            **content.get("row", {}),
            **content.get("source", {}),
            **keys_outside_row,
            "case": case,
        }
        return _ROWS.validate_python(row)
    except TypeError:  # `**` of a text or list
        problem = "row or source is not a group of keys"
    except ValidationError as error:
        problem = describe_misfits(error, row)
    raise ContentError(f"{path}: {problem}. Remove the file, and predict the case again.")


def _read_head(path: Path) -> dict[str, Any]:
    """Return the keys of a candidate file that are written before the list of candidates.

    The keys are parsed without the candidates, because a folder may have many thousand cases with
    hundreds of candidates, and each run reads the rows of all cases. If this is not possible, as in
    a file of another program, all keys are returned. Return {} if the JSON is not an object.
    """
    # the text before the candidates, closed with a brace, is a JSON object
    head, separator, _ = read_text(path).partition(_CANDIDATES_START)
    if separator:
        with suppress(ValueError):
            content: dict[str, Any] = json.loads(head.removesuffix(",") + "}")
            if "row" in content:  # other programs may write keys after the candidates
                return content
    all_keys = read_json(path)
    return all_keys if isinstance(all_keys, dict) else {}


def failed_file(folder: Path, case: str) -> Path:
    """Return the path of the file with the failures of a case, `<case>_failed.json`.

    If the id cannot be a file name, 16 digits of its digest replace it.
    """
    name = digest_of(case)[:16] if case_id_problem(case) else case
    return folder / f"{name}{FAILED}"


def read_failures(path: Path) -> list[CaseRow]:
    """Read the rows of scans that failed under a case id. Return [] without a readable file."""
    with suppress(ReadError, ValidationError):
        return _FAILURES.validate_python(read_json(path))
    return []


def write_failures(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write the rows of scans that failed under a case id. Remove the file if `rows` is empty."""
    if rows:
        write_json(path, [{**_written_fields(row), "finished": row.finished} for row in rows])
    else:
        path.unlink(missing_ok=True)


def row_fields(row: CaseRow) -> dict[str, Any]:
    """Return the keys `source`, `key` and `row` that a row adds to a candidate file.

    `read_row` reads the row from these keys. `source` identifies the scan, and `row` has the
    remaining attributes.
    """
    written = _written_fields(row)
    source = {name: written.pop(name) for name in _SOURCE if name in written}
    key = written.pop("key", "")
    del written["case"]  # `write_candidates` writes it as a key of the file
    return {"source": source, "key": key, "row": written}


def _written_fields(row: CaseRow) -> dict[str, Any]:
    """Return the attributes of a row that are written to a JSON file, without empty attributes.

    Values of a single run, such as its duration, are left out, so that the same results give the
    same file. The names of masks are left out, too.
    """
    return {
        name: value
        for name, value in asdict(row).items()
        if name not in _NOT_WRITTEN and value not in EMPTY
    }
