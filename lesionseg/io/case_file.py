"""The JSON files of a case: `<case>_candidates.json` (results) and `<case>_failed.json` (failures).

`<case>_sent.json` states where its DICOM results were stored.

A candidate file states the scan, a hash of the settings and everything that `predictions.csv` shows
of the case, apart from facts of a single run such as its duration. The same scan, bundle and
settings give the same bytes. Other programs may write candidate files, too.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from lesionseg.config import MaskNames
from lesionseg.core import Candidate, Geometry, InputCheckResult, OperatingPoint, Prediction
from lesionseg.core.labels import LabelValue
from lesionseg.errors import ContentError, GeometryError, ReadError, describe_misfits
from lesionseg.io.case_ids import case_id_fault
from lesionseg.io.files import digest_of
from lesionseg.io.result_names import CANDIDATES, FAILED
from lesionseg.io.text import read_json, read_text, write_json

_DONE = ("done", "warned", "blank", "kept")  # the statuses of a case that has results
_LIST = '\n "candidates": ['  # the beginning of the candidates, as `write_json` writes it
_SHOWN_DIGITS = 12  # digits of a digest in a message


@dataclass(frozen=True)
class ScanSource:
    """The scan that a result was computed from. It contains no name and no PatientID.

    Attributes:
        digest: The SHA-256 of the files, see `content_digest`.
        study_uid: The UID of a DICOM study, otherwise "".
        series_uid: The UID of a DICOM series, otherwise "".
        instance_uid: The UID of the instance if the scan is a single DICOM file, otherwise "".
    """

    digest: str
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""

    def is_of_same_scan(self, other: "ScanSource") -> bool:
        """Return True if both are known to be the same scan, possibly with changed content.

        Files without UIDs are the same scan only if their content is equal. Single DICOM files are
        compared by instance UID instead of series UID, because a series may contain several single
        images, such as two views of a chest.
        """
        if self.digest == other.digest:
            return True
        if self.instance_uid or other.instance_uid:
            return self.instance_uid == other.instance_uid
        return bool(self.series_uid) and self.series_uid == other.series_uid

    def __str__(self) -> str:
        """Return a phrase with the instance or series UID, otherwise the start of the digest."""
        if self.instance_uid:  # two images of one series are different scans
            return f"instance {self.instance_uid}"
        if self.series_uid:
            return f"series {self.series_uid}"
        return f"digest {self.digest[:_SHOWN_DIGITS]}…"


@dataclass(frozen=True)
class CaseRow:
    """A scan's line of `predictions.csv`; `amounts` are further columns, named by label and zone.

    Attributes:
        case: id of the case.
        group: patient, from the input's table; the case id if the table states none.
        visit: visit, from the input's table.
        status: done, warned (unlike the training scans), blank (without contrast), kept (done in an
            earlier run), failed or skipped.
        message: the reason if the scan failed or was skipped, or why DICOM results are missing.
        seconds: duration of the prediction.
        n_candidates: number of candidates; None without results.
        n_accepted: number of accepted candidates.
        volume_ml: volume of accepted candidates; None in 2-D and for boxes without masks.
        peak_memory_mb: peak memory of the process up to the end of this scan.
        bundle: digest of the model.
        key: hash of bundle, settings and content; `CONFLICT` for a scan that would replace results
            of another scan, "fault" for one that cannot be predicted whatever its content; "" if
            the scan failed for an external reason or was left out.
        warning: differences from the training scans, and candidates that are missing.
        input_score: size of these differences; 1 is the limit.
        disagreement: 1 − the share of the voxels marked by any network of an ensemble that all its
            networks mark; None for a single network.
        missing: channels that the scan lacks.
        operating_point: the name of the operating point.
        path: path of the scan below the input.
        study_uid: DICOM UID of the study; empty for files of other formats, like the other UIDs.
        series_uid: DICOM UID of the series.
        instance_uid: DICOM UID of the image.
        digest: hash of the files' content.
        state: see `file_state`.
        finished: time at which the scan was predicted, failed or was skipped.
        amounts: counts and millilitres, with the columns `count_<label>`, `ml_<label>`,
            `zone_count_<zone>`, `zone_ml_<zone>`.
        is_unchanged: the row is the same as before this run. This is not a column.
        names: the names of the case's masks. This is not a column.
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
    digest: str = ""
    state: str = ""
    finished: str = ""
    amounts: Mapping[str, Any] = field(default_factory=dict)
    is_unchanged: bool = False
    names: MaskNames = "lesionseg"

    CONFLICT: ClassVar[str] = "conflict"  # key of a scan that would replace results of another scan
    # facts of a single run, which differ between two runs with the same results
    OF_RUN: ClassVar[tuple[str, ...]] = ("seconds", "peak_memory_mb", "state", "finished")

    @classmethod
    def columns(cls) -> list[str]:
        """Return the columns of `predictions.csv`, without those of `amounts`."""
        return [c.name for c in fields(cls) if c.name not in ("amounts", "is_unchanged", "names")]

    @property
    def is_done(self) -> bool:
        """True if the case has results."""
        return self.status in _DONE

    @property
    def source(self) -> ScanSource:
        """Digest and UIDs of the scan."""
        return ScanSource(self.digest, self.study_uid, self.series_uid, self.instance_uid)

    @property
    def scan_uid(self) -> str:
        """UID of the image if the scan is a single DICOM file, otherwise of the series, or ""."""
        return self.instance_uid or self.series_uid

    def as_kept(self) -> "CaseRow":
        """Return the row for a later run, with the status `kept` instead of `done` or "".

        Other statuses stay. `done` means that the scan was predicted in this run.
        """
        return replace(self, status="kept") if self.status in ("done", "") else self

    def replaces(self, failure: "CaseRow") -> bool:
        """Return True if the row replaces a failure that was recorded under its case id.

        It replaces failures of the same path. A conflict is only replaced by a row of the same
        scan: it stays if another scan at this path is predicted.
        """
        if failure.path != self.path:
            return False
        return failure.key != self.CONFLICT or self.source.is_of_same_scan(failure.source)

    def cells(self) -> dict[str, Any]:
        """Return the row's cells by column, including those of `amounts`."""
        return {**{name: getattr(self, name) for name in self.columns()}, **self.amounts}


_EMPTY: tuple[Any, ...] = ("", None, {}, [])  # values that files leave out
_NOT_STATED = {*CaseRow.OF_RUN, "is_unchanged", "names"}
_SOURCE = tuple(c.name for c in fields(ScanSource))
_ROWS = TypeAdapter(CaseRow)
_FAILURES = TypeAdapter(list[CaseRow])


def read_row(path: Path) -> CaseRow:
    """Read the row of a candidate file, without its candidates.

    What the file does not state has its default. A file of another program states neither digest
    nor key nor status. The case id is that of the file name.

    Raises:
        ReadError: The file is missing or not JSON.
        ContentError: A value has another type.
    """
    content = _read_head(path)
    case = path.name.removesuffix(CANDIDATES)
    stated = {"key": content.get("key", ""), "names": content.get("names", "lesionseg")}
    try:
        row = {**content.get("row", {}), **content.get("source", {}), **stated, "case": case}
        return _ROWS.validate_python(row)
    except TypeError:
        fault = "row or source is not a group of keys"
    except ValidationError as error:
        fault = describe_misfits(error, row)
    raise ContentError(f"{path}: {fault}. Remove the file, and predict the case again.")


def _read_head(path: Path) -> dict[str, Any]:
    """Read the keys before the candidates, or all keys if `row` is not among these.

    `predict` writes the candidates last, because an output folder may have many thousand cases with
    hundreds of candidates, and each run reads what their files state. A file that contains JSON
    other than an object has no keys.
    """
    head, mark, _ = read_text(path).partition(_LIST)
    if mark:
        with suppress(ValueError):
            content: dict[str, Any] = json.loads(head.removesuffix(",") + "}")
            if "row" in content:
                return content
    whole = read_json(path)
    return whole if isinstance(whole, dict) else {}


def failed_file(folder: Path, case: str) -> Path:
    """Return the file of a case's failures. An id that cannot be a file name becomes a digest."""
    name = digest_of(case)[:16] if case_id_fault(case) else case
    return folder / f"{name}{FAILED}"


def read_failures(path: Path) -> list[CaseRow]:
    """Read the scans that failed under a case id. A missing or damaged file has none."""
    with suppress(ReadError, ValidationError):
        return _FAILURES.validate_python(read_json(path))
    return []


def write_failures(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write the scans that failed under a case id, or remove the file if there are none."""
    if rows:
        write_json(path, [{**_stated(row), "finished": row.finished} for row in rows])
    else:
        path.unlink(missing_ok=True)


def read_sent(path: Path) -> dict[str, list[str]]:
    """Return the UIDs of the stored results by address. A missing or damaged file has none."""
    with suppress(ReadError, ValidationError):
        return TypeAdapter(dict[str, list[str]]).validate_python(read_json(path))
    return {}


def _stated(row: CaseRow) -> dict[str, Any]:
    """Return the attributes of a row that a file states, without empty ones.

    Facts of a single run, such as its duration, and the names of masks are left out.
    """
    return {
        name: value
        for name, value in asdict(row).items()
        if name not in _NOT_STATED and value not in _EMPTY
    }


class _Entry(BaseModel):
    """A candidate as its file states it."""

    model_config = ConfigDict(strict=True)

    score: Annotated[FiniteFloat, Field(ge=0, le=1)]
    start_vox: list[FiniteFloat]
    stop_vox: list[FiniteFloat]
    id: PositiveInt | None = None
    label: LabelValue = 1
    centre_mm: list[FiniteFloat] | None = None
    diameter_mm: FiniteFloat | None = None
    volume_ml: FiniteFloat | None = None
    has_mask: bool = False
    accepted: bool = True
    probability: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    zone: str = ""

    def to_candidate(self, place: int, geometry: Geometry) -> Candidate:
        """Make the candidate and compute the values that the file does not state.

        Args:
            place: The number of the candidate in the file, from 1. It is the id if the file does
                not state one.
            geometry: The grid of the scan.

        Raises:
            ValueError: The numbers do not describe a box with the axes of this grid.
        """
        stated = self.model_dump(exclude_none=True)
        for name, value in stated.items():
            if isinstance(value, list):
                stated[name] = tuple(value)
        for name in ("start_vox", "stop_vox", "centre_mm"):
            if name in stated and len(stated[name]) != geometry.dims:
                raise ValueError(f"{name} {stated[name]} does not have {geometry.dims} numbers")
        if not all(a < b for a, b in zip(self.start_vox, self.stop_vox, strict=True)):
            raise ValueError(f"stop_vox {self.stop_vox} is not above start_vox {self.start_vox}")
        box = (*self.start_vox, *self.stop_vox)
        computed = Candidate.from_box(place, self.label, self.score, box, geometry)
        return replace(computed, **stated)


class CaseContent(BaseModel):
    """The content of a candidate file.

    The keys are attributes of `Prediction`, in which `scored` is called `has_scores`, and
    `input_check` is called `input`. `shape` is that of the scan.
    """

    schema_version: Literal[1] = 1
    shape: list[PositiveInt] | None = None
    labels: dict[LabelValue, str] = {}
    candidates: list[_Entry]
    removed: list[_Entry] = []
    operating_point: OperatingPoint | None = None
    scored: bool = True
    input_check: InputCheckResult | None = None
    n_left_out: NonNegativeInt = 0
    n_outside: NonNegativeInt = 0


def write_candidates(
    path: Path,
    prediction: Prediction,
    *,
    names: MaskNames = "lesionseg",
    row: CaseRow | None = None,
) -> None:
    """Write the candidate file of a case. Optional keys are left out if they are empty.

    Args:
        path: The file.
        prediction: The prediction.
        names: The names of the masks next to it.
        row: The facts of the scan and the run that the file states as `source`, `key` and `row`.
            None states none of them.
    """
    point = prediction.operating_point
    stated = {} if row is None else _stated(row)
    optional: dict[str, Any] = {
        "source": {name: stated.pop(name) for name in _SOURCE if name in stated},
        "key": stated.pop("key", ""),
        "row": {name: value for name, value in stated.items() if name != "case"},
        "names": "" if names == "lesionseg" else names,
        "labels": {str(value): name for value, name in prediction.labels.items()},
        "input_check": None if prediction.input is None else asdict(prediction.input),
        "removed": list(map(_entry_json, prediction.removed)),
        "n_left_out": prediction.n_left_out or None,
        "n_outside": prediction.n_outside or None,
        # False if the predicting program states no scores, so all of them are 1
        "scored": None if prediction.has_scores else False,
    }
    content = {
        "schema_version": 1,
        "case": prediction.case,
        "shape": list(prediction.geometry.shape),
        "size_unit": prediction.geometry.size_unit,
        "operating_point": None if point is None else asdict(point),
        **{name: value for name, value in optional.items() if value not in _EMPTY},
        "candidates": list(map(_entry_json, prediction.candidates)),  # last, see `_read_head`
    }
    write_json(path, content)


def _entry_json(candidate: Candidate) -> dict[str, Any]:
    """Return the attributes of a candidate, without an empty zone."""
    entry = asdict(candidate)
    if not candidate.zone:
        del entry["zone"]
    return entry


def read_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of the scan that a candidate file states, or None if it states none.

    Raises:
        ReadError: The file is missing or not JSON.
        ContentError: The shape is not a list of positive numbers.
    """
    content = read_json(path)
    stated = content.get("shape") if isinstance(content, dict) else None
    if stated is None:
        return None
    try:
        return tuple(TypeAdapter(list[PositiveInt]).validate_python(stated))
    except ValidationError as error:
        raise ContentError(
            f"{path}: shape is {str(stated)[:100]}, not a list of positive numbers. Correct it."
        ) from error


def read_candidates(
    path: Path, grid: Geometry
) -> tuple[CaseContent, list[Candidate], list[Candidate]]:
    """Read a candidate file. Return its content, its candidates and its removed candidates.

    Other programs may write an operating point with a score only. It is named after its score.

    Args:
        path: The file.
        grid: The grid of the scan. Values that a candidate does not state are computed on it.

    Raises:
        ReadError: The file is missing or not JSON.
        GeometryError: The file states another shape than that of the grid.
        ContentError: A key or a candidate is not valid, or has a label without a name.
    """
    content = read_json(path)
    point = content.get("operating_point") if isinstance(content, dict) else None
    if isinstance(point, dict) and "name" not in point:
        content["operating_point"] = {"name": f"score:{point.get('score')}", **point}
    try:
        stated = CaseContent.model_validate(content)
        if stated.shape not in (None, [*grid.shape]):
            raise GeometryError(
                f"{path}: the candidates belong to a scan of {stated.shape} voxels, but the scan "
                f"has {[*grid.shape]}. Predict this scan."
            )
        kept = [entry.to_candidate(n, grid) for n, entry in enumerate(stated.candidates, 1)]
        removed = [entry.to_candidate(n, grid) for n, entry in enumerate(stated.removed, 1)]
        _check_labels(stated.labels, [*kept, *removed])
    except ValidationError as error:
        raise ContentError(f"{path}: {describe_misfits(error, content)[:300]}.") from error
    except ValueError as error:
        raise ContentError(f"{path}: {error}. Correct the candidate.") from error
    return stated, kept, removed


def _check_labels(names: Mapping[int, str], candidates: Sequence[Candidate]) -> None:
    """Raise `ValueError` if a file names its labels, but not that of a candidate."""
    for candidate in candidates:
        if names and candidate.label not in names:
            raise ValueError(f"labels has no name for the label {candidate.label}")
