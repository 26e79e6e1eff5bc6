"""All errors of one case for `prepare check=true`; patient and text in DICOM images.

Reading a case, by contrast, stops at the first error.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import Case, CaseFiles, Dataset, Finding, Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import (
    check_dims,
    finite_values,
    read_case,
    read_reference,
)
from lesionseg.io.channels import check_channels
from lesionseg.io.contents import content_files
from lesionseg.io.dicom.elements import text
from lesionseg.io.dicom.headers import is_dicom, is_secondary_capture, read_header
from lesionseg.io.files import digest_of
from lesionseg.io.grids import GridPair
from lesionseg.io.nifti import SUFFIXES as NIFTI
from lesionseg.io.nifti import has_orientation
from lesionseg.io.volumes import read_volume
from lesionseg.io.warn_once import collect_warnings


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is known about a case after each of its files was read.

    Attributes:
        case: The case, or None if it has an error.
        findings: Their kinds are `unreadable`, `geometry`, `not_finite`, `labels` and `channels`
            for errors, `unoriented` if a NIfTI file does not state the orientation of the patient,
            and `remark` for a warning of a reader.
        patient: A hash of the patient's identifier in the DICOM headers, or "".
        has_text: True if text, such as the patient's name, may be burned into the pixels of an
            image. A DICOM file states this, or it is a secondary capture (such as a screenshot)
            that does not state the opposite.
        axes: The direction of each array axis of a volume as a letter, such as `SAR`. "" if the
            case has an error or two axes.
    """

    case: Case | None
    findings: tuple[Finding, ...]
    patient: str
    has_text: bool
    axes: str = ""


def inspect_case(files: CaseFiles, dataset: Dataset) -> Inspection:
    """Read a case for the check of a dataset, and return every error and remark about its files.

    If the case cannot be read, each of its files is checked separately, so that all errors are
    found and not only the first one. Warnings of the readers become findings and are not logged. A
    NIfTI file that does not state the orientation of the patient is a finding, too.
    """
    case = None
    findings: list[Finding] = []
    with collect_warnings(silent=True) as warnings:  # the page of the check may show file names
        try:
            case = read_case(files, dataset)
            for file in files.images:
                if file.name.lower().endswith(NIFTI) and not has_orientation(file):
                    text = (
                        f"{file}: the file does not state the orientation: left and right may be "
                        "swapped."
                    )
                    findings.append(Finding(kind="unoriented", message=text, case=files.case))
        except LesionsegError as error:
            unexplained = Finding.of(error, files.case, kind="unreadable")
            findings = _find_errors(files, dataset) or [unexplained]
    findings += [
        Finding(kind="remark", message=text, case=files.case, severity="note") for text in warnings
    ]
    patient, has_text = _read_dicom_fields(files.images)
    axes = ""
    if case is not None and dataset.dims == 3:
        from nibabel.orientations import aff2axcodes  # letters such as ("S", "A", "R")

        axes = "".join(aff2axcodes(case.image.geometry.affine))
    return Inspection(case, tuple(findings), patient, has_text, axes)


def _find_errors(files: CaseFiles, dataset: Dataset) -> list[Finding]:
    """Check the channels, every image and the reference of a case, and return all errors.

    The checks are the channels, each image and the reference. An error ends only the check in which
    it occurs, so there is at most one error per check. The reference is checked only if an image is
    readable, because it must have the grid of the first readable image.
    """
    findings: list[Finding] = []

    @contextmanager
    def collect(kind: str) -> Iterator[None]:
        """Suppress an error within the context, and add it to `findings`.

        A `GeometryError` has the kind `geometry`, a `ReadError` the kind `unreadable`, and any
        other error the given `kind`.
        """
        try:
            yield
        except LesionsegError as error:
            if isinstance(error, GeometryError):
                kind = "geometry"
            elif isinstance(error, ReadError):
                kind = "unreadable"
            findings.append(Finding.of(error, files.case, kind=kind))

    with collect("channels"):
        check_channels(files, dataset)
    readable: list[Path] = []
    grid: Geometry | None = None  # of the first readable image
    for file in files.images:
        with collect("unreadable"):
            volume = read_volume(file, pixel_mm=files.pixel_mm)
            readable.append(file)
            grid = grid or volume.geometry
            with collect("not_finite"):
                finite_values(file, volume.array, nan_background=dataset.nan_background)
            check_dims(file, volume.geometry, dataset.dims)
            grids = GridPair(path=file, seen=volume.geometry, other=readable[0], expected=grid)
            grids.check(by_image=dataset.grid_of_image)
    if grid is not None:
        with collect("labels"):
            # messages about the reference name the first image, whose grid it must have
            read_reference(replace(files, images=tuple(readable)), dataset, grid)
    return findings


def _read_dicom_fields(images: tuple[Path, ...]) -> tuple[str, bool]:
    """Return `Inspection.patient` and `Inspection.has_text`, read from the DICOM images of a case.

    The first is a hash of the first PatientID that an image states, or "". The second is True if an
    image states burned-in text, or is a secondary capture and does not state the opposite. Only the
    first file of each series is read, because these elements are equal in all files of a series.
    Damaged images and other formats are skipped.
    """
    patient = ""
    has_text = False
    for image in images:
        with suppress(LesionsegError):  # the findings of the case already contain this error
            file = next(iter(content_files(image)), image)
            if is_dicom(file):
                header = read_header(file)
                patient = patient or text(header, "PatientID")
                burned_in = text(header, "BurnedInAnnotation").upper()
                has_text |= burned_in == "YES" or (not burned_in and is_secondary_capture(header))
    return patient and digest_of(patient), has_text
