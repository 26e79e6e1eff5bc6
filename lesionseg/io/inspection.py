"""Everything that is wrong with one case at once, where reading it stops at the first."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import BufferingHandler
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
from lesionseg.io.limits import reading
from lesionseg.io.nifti import SUFFIXES as NIFTI
from lesionseg.io.nifti import states_orientation
from lesionseg.io.volumes import read_volume
from lesionseg.io.warn_once import warning_again


@dataclass(frozen=True, eq=False)
class Inspected:
    """A case that can be used, or its faults; `case` is None exactly when there are any.

    `faults`: the kind (`unreadable`, `geometry`, `not_finite`, `labels`, `channels`) and error of
    each. `patient`: a hash of the identifier, or ""; `burned_in`: the files say that letters are
    burned into the picture, or are screen shots that do not deny it; `oriented`: they say how the
    patient lay. `remarks`: what the readers warned about.
    """

    case: Case | None
    faults: tuple[tuple[str, LesionsegError], ...]
    patient: str
    burned_in: bool
    oriented: bool
    remarks: tuple[str, ...]


def inspect_case(files: CaseFiles, dataset: Dataset) -> Inspected:
    """Read a case; where that fails, look at each of its files by itself and list every fault."""
    case, faults, oriented = None, list[tuple[str, LesionsegError]](), True
    log, collector = logging.getLogger("lesionseg.io"), BufferingHandler(10**6)
    collector.setLevel(logging.WARNING)
    log.addHandler(collector)
    before, log.propagate = log.propagate, False  # warnings name files: they go into the page
    try:
        with warning_again():
            case = read_case(files, dataset)
        nifti = [file for file in files.images if file.name.lower().endswith(NIFTI)]
        oriented = all(states_orientation(file) for file in nifti)
    except LesionsegError as error:
        faults = _all_faults(files, dataset) or [("unreadable", error)]
    finally:
        log.propagate = before
        log.removeHandler(collector)
    remarks = tuple(dict.fromkeys(record.getMessage() for record in collector.buffer))
    return Inspected(case, tuple(faults), *_dicom_facts(files.images), oriented, remarks)


def _all_faults(files: CaseFiles, dataset: Dataset) -> list[tuple[str, LesionsegError]]:
    faults: list[tuple[str, LesionsegError]] = []

    @contextmanager
    def noted(kind: str) -> Iterator[None]:
        try:
            yield
        except LesionsegError as error:
            kinds = {GeometryError: "geometry", ReadError: "unreadable"}
            faults.append((kinds.get(type(error), kind), error))

    with noted("channels"):
        check_channels(files, dataset)
    grid: Geometry | None = None
    for file in files.images:
        with noted("unreadable"):
            volume = read_volume(file, raster_mm=files.pixel_mm)
            grid = grid or volume.geometry
            with noted("not_finite"):
                values = volume.array.astype("float32", copy=False)
                if dataset.nan_background:
                    values = np.stack([nan_to_background(channel) for channel in values])
                check_finite(file, values)
            check_dims(file, volume.geometry, dataset.dims)
            check_grid(
                file,
                volume.geometry,
                files.images[0],
                grid,
                by_image=dataset.grid_of_image,
            )
    if grid is not None:
        with noted("labels"):
            read_reference(files, dataset, grid)
    return faults


def _dicom_facts(images: tuple[Path, ...]) -> tuple[str, bool]:
    patient, burned_in = "", False
    for image in images:
        with suppress(LesionsegError):  # noted already
            file = next(iter(content_files(image)), image)
            if not is_dicom(file):
                continue
            header = read_header(file)
            with reading(file):
                name = str(header.get("PatientID", "") or "").strip()
                stated = str(header.get("BurnedInAnnotation", "") or "").upper()
                burned_in |= stated == "YES" or (not stated and is_secondary_capture(header))
            patient = patient or (hashlib.sha256(name.encode()).hexdigest() if name else "")
    return patient, burned_in
