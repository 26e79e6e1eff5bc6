"""Listing all faults of a case. Reading a case, by contrast, stops at the first fault."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lesionseg.core import Case, CaseFiles, Dataset, Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import (
    check_dims,
    check_finite,
    check_grid,
    content_files,
    nan_to_background,
    read_case,
    read_reference,
)
from lesionseg.io.dicom.headers import is_dicom, is_secondary_capture, read_header
from lesionseg.io.layouts.checks import check_channels
from lesionseg.io.limits import convert_read_errors
from lesionseg.io.nifti import SUFFIXES as NIFTI
from lesionseg.io.nifti import states_orientation
from lesionseg.io.volumes import read_volume
from lesionseg.io.warn_once import collect_warnings


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of reading one case: the case, or its faults.

    Attributes:
        case: The case. None if there is a fault.
        faults: Kind and error of each fault. The kind is `unreadable`, `geometry`, `not_finite`,
            `labels` or `channels`.
        patient: A hash of the patient's identifier in DICOM files, or "".
        burned_in: True if text may be burned into the image: a DICOM file states it, or it is a
            screenshot and does not state the opposite.
        oriented: True if all NIfTI files state the orientation of the patient.
        remarks: The warnings of the readers.
    """

    case: Case | None
    faults: tuple[tuple[str, LesionsegError], ...]
    patient: str
    burned_in: bool
    oriented: bool
    remarks: tuple[str, ...]


def inspect_case(files: CaseFiles, dataset: Dataset) -> Inspection:
    """Read a case. If that fails, check each of its files separately and list every fault."""
    case = None
    faults = list[tuple[str, LesionsegError]]()
    oriented = True
    with collect_warnings(silent=True) as remarks:  # the page of the check may show file names
        try:
            case = read_case(files, dataset)
            nifti = [file for file in files.images if file.name.lower().endswith(NIFTI)]
            oriented = all(states_orientation(file) for file in nifti)
        except LesionsegError as error:
            faults = _find_faults(files, dataset) or [("unreadable", error)]
    patient, burned_in = _read_dicom_facts(files.images)
    return Inspection(
        case=case,
        faults=tuple(faults),
        patient=patient,
        burned_in=burned_in,
        oriented=oriented,
        remarks=tuple(remarks),
    )


def _find_faults(files: CaseFiles, dataset: Dataset) -> list[tuple[str, LesionsegError]]:
    """Check channels, every image and the reference. Return kind and error of every fault."""
    faults: list[tuple[str, LesionsegError]] = []

    @contextmanager
    def collect(kind: str) -> Iterator[None]:
        """Add an error to the faults. `kind` is used if the error's type does not imply a kind."""
        try:
            yield
        except GeometryError as error:
            faults.append(("geometry", error))
        except ReadError as error:
            faults.append(("unreadable", error))
        except LesionsegError as error:
            faults.append((kind, error))

    with collect("channels"):
        check_channels(files, dataset)
    readable: list[Path] = []
    grid: Geometry | None = None  # of the first readable image
    for file in files.images:
        with collect("unreadable"):
            volume = read_volume(file, raster_mm=files.pixel_mm)
            readable.append(file)
            grid = grid or volume.geometry
            with collect("not_finite"):
                values = volume.array.astype("float32", copy=False)
                if dataset.nan_background:
                    values = np.stack([nan_to_background(channel) for channel in values])
                check_finite(file, values, volume.array)
            check_dims(file, volume.geometry, dataset.dims)
            check_grid(
                file,
                volume.geometry,
                readable[0],
                grid,
                by_image=dataset.grid_of_image,
            )
    if grid is not None:
        with collect("labels"):
            # messages about the reference name the first image, whose grid it must have
            read_reference(replace(files, images=tuple(readable)), dataset, grid)
    return faults


def _read_dicom_facts(images: tuple[Path, ...]) -> tuple[str, bool]:
    """Return `patient` and `burned_in` of an `Inspection` from the headers of DICOM images.

    Only the first file of a series is read, because both facts are the same in all of them. A
    secondary capture, such as a screenshot, usually has text in its pixels.
    """
    patient = ""
    burned_in = False
    for image in images:
        with suppress(LesionsegError):  # the list of faults already contains this error
            file = next(iter(content_files(image)), image)
            if not is_dicom(file):
                continue
            header = read_header(file)
            with convert_read_errors(file):
                patient_id = str(header.get("PatientID", "") or "").strip()
                stated = str(header.get("BurnedInAnnotation", "") or "").upper()
                has_text = stated == "YES"
                if not stated:
                    has_text = is_secondary_capture(header)
                burned_in = burned_in or has_text
            if patient_id and not patient:
                patient = hashlib.sha256(patient_id.encode()).hexdigest()
    return patient, burned_in
