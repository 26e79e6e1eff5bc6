"""The DICOM images that a result belongs to: headers, which slice is whose, and made-up UIDs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, LesionsegError, OutputError, pip_install
from lesionseg.io.atomic import atomic_path
from lesionseg.io.dicom.headers import read_header
from lesionseg.io.dicom.series import radiograph_file, series_headers
from lesionseg.io.dicom.slices import read_slices
from lesionseg.io.dicom.stack import stack_slices

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

# what the names of a case's results end in
SEGMENTATION, REPORT = "_seg.dcm", "_sr.dcm"
RESEARCH_ONLY = "For research use only: not a medical device."
# what every object of a study must state, though it may state that it is not known
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_LOCATED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_NO_DATE, _NO_TIME = "19700101", "000000"


@dataclass(frozen=True)
class ResultOrigin:
    """What made a result.

    `version`: lesionseg's; `bundle`: the model's digest; `key`: changes with scan and settings.
    """

    version: str
    bundle: str
    key: str
    operating_point: OperatingPoint | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """What a reader of the result may want to know of it, by name."""
        point = self.operating_point
        chosen_for = (
            {} if point is None else {"operating point": point.name, "score": f"{point.score:g}"}
        )
        return {"bundle": self.bundle, **chosen_for, "use": RESEARCH_ONLY}


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The files of one image, without pixels, and where each of its slices is stored.

    `slices`: of slice z the index into `headers` and, in a file of many, the frame from 0.
    `aligned`: whether predictions lie on these; those of a tilted gantry lie on upright slices.
    """

    headers: tuple["Header", ...]
    slices: tuple[tuple[int, int | None], ...]
    aligned: bool = True

    @property
    def first(self) -> "Header":
        """The header that speaks for patient, study and series."""
        return self.headers[0]

    @property
    def is_radiograph(self) -> bool:
        """Whether it is one image without a third axis."""
        return not self.slices

    @cached_property
    def moment(self) -> tuple[str, str]:
        """Date and time of the series, else of the study, else a date that is plainly none.

        Results carry these and not the clock's, so that the same run gives the same bytes.
        """
        for what in ("Series", "Study"):
            date = _valid(self.first, f"{what}Date")
            if date:
                return date, _valid(self.first, f"{what}Time") or _NO_TIME
        return _NO_DATE, _NO_TIME

    def uid(self, *parts: object) -> str:
        """A UID that follows from the series and `parts`: the same in every run (PS3.5, B.2)."""
        return made_up_uid(self.first.SeriesInstanceUID, *parts)

    def number(self, nth: int) -> int:
        """The number of the nth series made from this one."""
        return min(int(self.first.get("SeriesNumber", None) or 0), 10**6) * 100 + nth


def made_up_uid(*parts: object) -> str:
    """A UID that follows from `parts`."""
    digest = blake2b(repr([str(part) for part in parts]).encode(), digest_size=16).digest()
    return f"2.25.{UUID(bytes=digest, version=4).int}"


def read_source(path: Path) -> SourceSeries:
    """Read the headers of a series' folder or of one file; raises as `read_dicom` does.

    Elements that results must have and the files lack are added, empty where that is allowed.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return SourceSeries((_complete(read_header(radiograph), is_radiograph=True),), ())
    headers = {path: read_header(path)} if path.is_file() else series_headers(path)
    pieces = [piece for file, header in headers.items() for piece in read_slices(file, header)]
    stack = stack_slices(pieces, path)
    index: dict[Path, int] = {}
    slices = [(index.setdefault(p.path, len(index)), p.frame) for p in stack.slices]
    complete = tuple(_complete(headers[file]) for file in index)
    for header in complete:  # what the files say of it is not always so, or not there
        header.SpacingBetweenSlices = float(f"{abs(stack.step @ stack.slices[0].normal):.6g}")
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
    return SourceSeries(complete, tuple(slices), aligned=not stack.is_tilted)


def require_highdicom() -> Any:
    """The package highdicom; raises `ConfigError` where it is not installed."""
    try:
        import highdicom
        import highdicom.sr  # what it shows is imported with it
    except ImportError as error:
        raise ConfigError(
            "DICOM results need packages that are not installed.",
            where="dicom_output",
            seen=error.name,
            remedy=f"{pip_install('dicom')}, or give dicom_output=false.",
        ) from error
    return highdicom


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Quietly: neither warnings nor errors of the libraries get out, as these quote the patient."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LesionsegError:
        raise
    except Exception as error:  # whatever a library says of headers it does not like
        raise OutputError(
            f"Cannot make the DICOM result from the scan's headers ({type(error).__name__}).",
            where=path,
            remedy="give dicom_output=false for masks alone.",
        ) from None


def save_dicom(path: Path, dataset: Any) -> None:
    """Write a DICOM object atomically, without the time at which that was."""
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _complete(header: "Header", *, is_radiograph: bool = False) -> "Header":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _MAY_BE_EMPTY:
            if header.get(name) is None:
                setattr(header, name, "")
        for name in ("PatientBirthDate", "StudyDate", "StudyTime"):
            setattr(header, name, _valid(header, name))
        if str(header.PatientSex) not in ("M", "F", "O"):
            header.PatientSex = ""
        header.Modality = str(header.get("Modality", None) or "OT")
        _complete_uids(header)
        if is_radiograph and not all(name in header for name in _LOCATED):
            header.pop("FrameOfReferenceUID", None)  # of what has no place it says nothing
    return header


def _complete_uids(header: "Header") -> None:
    if not header.get("SeriesInstanceUID"):
        header.SeriesInstanceUID = made_up_uid(header.SOPInstanceUID)
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not header.get(name):
            setattr(header, name, made_up_uid(header.SeriesInstanceUID, name))


def _valid(header: "Header", name: str) -> str:
    """A date or time as DICOM writes it; empty when it is none."""
    from pydicom.valuerep import DA, TM

    text = str(header.get(name, None) or "")
    try:
        return text if (DA if name.endswith("Date") else TM)(text) is not None else ""
    except ValueError:
        return ""
