"""Everything that is wrong with one case at once, where reading it stops at the first."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Volume
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import (
    check_channels,
    check_dims,
    check_finite,
    check_grid,
    mask_mm,
    read_case,
    read_reference,
    tilt_of,
)
from lesionseg.io.dicom.headers import is_dicom, is_secondary_capture, read_header
from lesionseg.io.formats.guard import reading
from lesionseg.io.formats.nifti import SUFFIXES as NIFTI
from lesionseg.io.formats.nifti import states_orientation
from lesionseg.io.local_files import content_files, fetch_images
from lesionseg.io.volumes import read_geometry, read_volume

FaultKind = Literal["unreadable", "geometry", "not_finite", "labels", "channels"]


@dataclass(frozen=True, eq=False)
class Fault:
    """Why a case cannot be used: what kind of fault, and the error that says so in full."""

    kind: FaultKind
    error: LesionsegError


@dataclass(frozen=True, eq=False)
class Inspected:
    """A case that can be used, or its faults; `case` is None exactly when there are any.

    `patient` is a hash of the patient's identifier where the files hold one, None elsewhere;
    `burned_in`: the files say that letters are burned into the picture, or are screen shots that
    do not deny it; `oriented` is False when the files leave open how the patient lay. `remarks`:
    what the readers warned about.
    """

    case: Case | None
    faults: tuple[Fault, ...] = ()
    patient: str | None = None
    burned_in: bool = False
    oriented: bool = True
    remarks: tuple[str, ...] = ()


def inspect_case(files: CaseFiles, dataset: Dataset) -> Inspected:
    """Read a case; where that fails, look at each of its files by itself and list every fault."""
    with _warnings() as remarks:
        inspected = _read(files, dataset)
    patient, burned_in = _dicom_facts(files.images)
    return replace(
        inspected, patient=patient, burned_in=burned_in, remarks=tuple(dict.fromkeys(remarks))
    )


def _read(files: CaseFiles, dataset: Dataset) -> Inspected:
    try:
        case = read_case(files, dataset)
    except LesionsegError as error:
        faults = _all_faults(files, dataset)
        return Inspected(None, faults or (Fault("unreadable", error),))
    oriented = [states_orientation(f) for f in files.images if f.name.lower().endswith(NIFTI)]
    return Inspected(case, oriented=all(oriented))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the readers warn about, in place of their log: it names files."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, collector = logging.getLogger("lesionseg.io"), Collector(logging.WARNING)
    before = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.propagate = before
        logger.removeHandler(collector)


@contextmanager
def _noted(faults: list[Fault], kind: FaultKind) -> Iterator[None]:
    """Note what is raised within; `kind` is that of errors which do not tell their own."""
    try:
        yield
    except GeometryError as error:
        faults.append(Fault("geometry", error))
    except ReadError as error:
        faults.append(Fault("unreadable", error))
    except LesionsegError as error:
        faults.append(Fault(kind, error))


def _all_faults(files: CaseFiles, dataset: Dataset) -> tuple[Fault, ...]:
    faults: list[Fault] = []
    with _noted(faults, "channels"):
        check_channels(files, dataset)
    first: tuple[Path, Geometry] | None = None
    for file in files.images:
        geometry = _check_image(file, files, dataset, faults)
        if geometry is not None and first is not None:
            with _noted(faults, "geometry"):
                check_grid(file, geometry, *first)
        first = first or (None if geometry is None else (file, geometry))
    _check_reference(files, dataset, first, faults)
    return tuple(faults)


def _check_image(
    path: Path, files: CaseFiles, dataset: Dataset, faults: list[Fault]
) -> Geometry | None:
    """Note the faults of one image file; its geometry when it can be read."""
    volume: Volume | None = None
    with _noted(faults, "unreadable"):
        fetch_images([path])
        volume = read_volume(path, raster_mm=files.pixel_mm, tilt=tilt_of(dataset))
    if volume is None:
        return None
    with _noted(faults, "geometry"):
        check_dims(path, volume.geometry, dataset.dims)
    with _noted(faults, "not_finite"):
        check_finite(path, volume.array.astype("float32", copy=False))
    return volume.geometry


def _check_reference(
    files: CaseFiles, dataset: Dataset, image: tuple[Path, Geometry] | None, faults: list[Fault]
) -> None:
    """Note the faults of the reference: its values even where its grid is wrong."""
    own = _own_geometry(files)
    if image is not None and own is not None and files.reference is not None:
        with _noted(faults, "geometry"):
            check_grid(files.reference, own, *image)
    geometry = own or (image[1] if image else None)
    if geometry is None and files.reference is None:
        return
    of_values: list[Fault] = []
    with _noted(of_values, "labels"):
        read_reference(files, dataset, geometry or read_geometry(files.images[0]))
    # on its own grid the values are judged alone; a wrong grid is noted above
    faults += [f for f in of_values if own is None or f.kind != "geometry"]


def _own_geometry(files: CaseFiles) -> Geometry | None:
    """The grid a mask states itself; None for DICOM references, tables and unreadable files."""
    if files.reference is None:
        return None
    with suppress(LesionsegError):  # reading the reference says so
        fetch_images([files.reference])
    if "lesions" in files.annotations or is_dicom(files.reference):
        return None
    mm = None
    with suppress(LesionsegError):
        mm = files.pixel_mm
        image = read_geometry(files.images[0], raster_mm=mm, tilt="resample")
        mm = mask_mm(files, image)
    with suppress(LesionsegError):
        return read_geometry(files.reference, raster_mm=mm)
    return None


def _dicom_facts(images: tuple[Path, ...]) -> tuple[str | None, bool]:
    """Hash of the patient's identifier, and whether letters are burned in."""
    patient, burned_in = None, False
    for image in images:
        try:
            file = next(iter(content_files(image)), image)
            if not is_dicom(file):
                continue
            header = read_header(file)
            with reading(file):
                name = str(header.get("PatientID", "") or "").strip()
                stated = str(header.get("BurnedInAnnotation", "") or "").upper()
                captured = is_secondary_capture(header)
        except LesionsegError:  # noted already
            continue
        patient = patient or (hashlib.sha256(name.encode()).hexdigest() if name else None)
        burned_in |= stated == "YES" or (not stated and captured)
    return patient, burned_in
