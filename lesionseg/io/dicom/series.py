"""Slices of a DICOM series to a volume: order, uneven spacing, copies, mixed scans, `series=3`.

An image is a folder with one series, an enhanced file, a single slice or a radiograph.

If a folder contains several series, `folder/series=3` names the one with this series number or UID.
Such a path does not exist on disk. Manifests and predictions on a whole study use it to refer to
one series of a folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from functools import cached_property
from itertools import groupby
from math import isclose
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Numbers
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.dicom.elements import Header, ReaderWarnings, element_value, number, numbers, text
from lesionseg.io.dicom.headers import (
    LPS_TO_RAS,
    advice_on_unfit,
    check_image,
    explain_unfit,
    frame_header,
    image_header,
    is_dicom,
    read_header,
    read_series_uid,
    stored_pixels,
)
from lesionseg.io.dicom.radiograph import (
    radiograph_file,
    radiograph_geometry,
    read_radiograph,
    rescale,
)
from lesionseg.io.files import TEXT_SUFFIXES, digest_of
from lesionseg.io.limits import check_grid, convert_read_errors

_PREFIX = "series="
_MAX_UNEVEN = 0.05  # fraction of the slice distance by which a single distance may differ
_SAME_PLACE_MM = 1e-2
# largest difference of directions, and relative difference of pixel sizes, echo times and b-values,
# that rounding explains; it moves the far corner of 512 pixels by a quarter of a pixel
_ROUNDING = 5e-4
# elements that may not differ within a scan; a file that lacks one does not contradict the others
_SAME_TEXTS = ("FrameOfReferenceUID", "ConvolutionKernel", "ComplexImageComponent")
_COMPLEX_PARTS = ("M", "P", "R", "I")  # magnitude, phase, real and imaginary part
# elements that number the passes or times, of classic and of enhanced files
_GROUPS = (
    "AcquisitionNumber", "FrameAcquisitionNumber",
    "TemporalPositionIdentifier", "TemporalPositionIndex",
)  # fmt: skip
# the parts of the vector `DicomSlice.plane`
_PLANE = {"direction": slice(6), "pixel size": slice(6, 8), "number of pixels": slice(8, 10)}
_MIN_LENGTH = 1e-6  # a direction vector that is shorter is not valid
_SEPARATE = (
    "Sort them into separate folders. Convert a file of several frames with dcm2niix, which writes "
    "one NIfTI file per stack of frames."
)
# suffixes of images in other formats, which cannot be slices
_OTHER_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".nii", ".gz", ".nrrd", ".mha")
# largest drift over the whole stack: it is too small to move a voxel to its neighbour
_MAX_DRIFT_PIXELS = 0.5
# elements that distinguish series if the files have no SeriesInstanceUID
_INSTEAD_OF_UID = (
    "StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "Modality", "SeriesNumber",
    "SeriesDescription",
)  # fmt: skip
_UID_DIGITS = 8  # digits of the digest of these elements


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """A slice of a DICOM image, without its pixels: a classic file, or a frame of an enhanced file.

    An enhanced file contains several slices, which DICOM calls frames. The properties raise
    `ReadError` if the element is missing or contains impossible numbers.

    Attributes:
        path: The file.
        frame: The index of the frame from 0. None for a classic file.
        elements: The elements of the file, updated by the functional groups of the frame.
    """

    path: Path
    frame: int | None
    elements: "Header"

    @property
    def name(self) -> str:
        """The name of the file, with the number of the frame (from 1) if it has several."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return int(self.elements.Rows), int(self.elements.Columns)

    @cached_property
    def position(self) -> Numbers:
        """Centre of the pixel in the first row and first column, in LPS millimetres `[3]`."""
        return self._numbers("ImagePositionPatient", 3)

    @cached_property
    def directions(self) -> Numbers:
        """LPS unit vectors along a row and along a column `[2, 3]`."""
        name = "ImageOrientationPatient"
        vectors = self._numbers(name, 6).reshape(2, 3)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if lengths.min() < _MIN_LENGTH:
            self._refuse(name)
        result: Numbers = vectors / lengths
        return result

    @cached_property
    def pixel_mm(self) -> Numbers:
        """Distance between neighbouring rows, and between neighbouring columns, in mm `[2]`."""
        values = self._numbers("PixelSpacing", 2)
        return values if values.min() > 0 else self._refuse("PixelSpacing")

    def _numbers(self, name: str, n: int) -> Numbers:
        """Return the `n` numbers of the element `name`. Raise `ReadError` for any other count."""
        values = numbers(self.elements, name)
        return np.array(values) if len(values) == n else self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        """Raise `ReadError`, because the element `name` does not give the position of the slice."""
        value = text(self.elements, name)[:60] or "missing"
        raise ReadError(
            f"{self.path}: {name} is {value}. The file does not state where its slice is located "
            f"in the patient. {advice_on_unfit(self.elements)}"
        )

    @cached_property
    def plane(self) -> Numbers:
        """The properties that all slices of a stack have in common, as a vector `[10]`.

        The vector contains the 6 numbers of the directions, the logarithms of the pixel size (a
        difference of logarithms is a relative difference), and the shape, as `_PLANE` names them.
        """
        return np.concatenate([self.directions.ravel(), np.log(self.pixel_mm), self.shape])

    @property
    def thickness_mm(self) -> float:
        """Thickness in millimetres, or 0 if the file does not state it."""
        return number(self.elements, "SliceThickness") or 0.0

    @property
    def axes_mm(self) -> Numbers:
        """LPS vectors in millimetres from one row to the next, and from one column to the next.

        The shape is `[2, 3]`.
        """
        # DICOM states the direction along a row first, but the distance between rows first
        return self.directions[::-1] * self.pixel_mm[:, None]


def read_dicom(path: Path, pixel_mm: float | None = None) -> Volume:
    """Read a DICOM image as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal of the slices, and rescaled by their slopes
    and intercepts. Slice distances are computed from positions, never from the thickness, except
    for a single slice. Files that are not images are left out, with a warning if they might be
    slices. A radiograph has two spatial axes (see `read_radiograph`).

    Args:
        path: A file, a folder with one series, or `folder/series=…`.
        pixel_mm: The pixel size in millimetres of a radiograph that states none. None means 1 mm.

    Raises:
        ReadError: If a file is damaged, or the path names no DICOM image.
        GeometryError: If the slices do not form an even stack.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return read_radiograph(radiograph, pixel_mm)
    warnings = ReaderWarnings()
    slices, geometry = read_stack(path, warnings)
    values = np.empty((1, *geometry.shape), np.float32)
    file = Path()  # no file yet
    pixels = np.empty(0)
    for z, piece in enumerate(slices):
        if piece.path != file:  # the frames of an enhanced file are decoded once
            file = piece.path
            pixels = stored_pixels(file)
        with convert_read_errors(file):
            frame = pixels[piece.frame or 0]  # a classic file has one frame
            values[0, z] = rescale(frame, piece.elements, warnings, file.name)
    warnings.log(path)
    return Volume(values, geometry)


def read_dicom_geometry(path: Path, pixel_mm: float | None = None) -> Geometry:
    """Read the grid of a DICOM image from the headers, without warnings.

    For arguments and errors, see `read_dicom`.
    """
    return read_slices(path, pixel_mm)[1]


def read_slices(path: Path, pixel_mm: float | None = None) -> tuple[list[DicomSlice], Geometry]:
    """Read the slices of a DICOM image, without their pixels, and the grid of the image.

    The slices are in ascending order along their normal. A radiograph is a single slice. For
    arguments and errors, see `read_dicom`.
    """
    radiograph = radiograph_file(path)
    if radiograph is None:
        return read_stack(path)
    header = read_header(radiograph)
    grid = radiograph_geometry(radiograph, header, pixel_mm=pixel_mm)
    return [DicomSlice(radiograph, frame=None, elements=header)], grid


def split_series(path: Path) -> tuple[Path, str] | None:
    """Split a path `folder/series=3`, which names one series of a folder, into folder and series.

    The series is a series number or UID. Such a path does not exist on the disk. Return None for a
    path that exists, has another form, or has a missing folder.
    """
    if path.name.startswith(_PREFIX) and path.parent.is_dir() and not path.exists():
        return path.parent, path.name.removeprefix(_PREFIX)
    return None


def series_headers(path: Path, warnings: ReaderWarnings | None = None) -> dict[Path, "Header"]:
    """Read the headers of the DICOM images in a file, a folder or one series of a folder.

    Files that are not images, and copies of a file (`_leave_out_copies`), are left out.

    Args:
        path: The file, the folder or `folder/series=…`.
        warnings: Receives a warning for each file that is left out and might be a slice.

    Returns:
        The header of each image file, in the order of the file names.

    Raises:
        ReadError: If no image is found, or a file is damaged. One exception: if `path` names a
            series with a readable file, a damaged file that states the UID of another series is
            ignored.
    """
    warnings = warnings or ReaderWarnings()
    folder, wanted_series = split_series(path) or (path, None)
    # read all headers
    headers: dict[Path, Header] = {}
    damaged: dict[Path, ReadError] = {}
    for file in [path] if path.is_file() else sorted(folder.iterdir()):
        try:
            header = image_header(file)
        except ReadError as error:
            damaged[file] = error
            continue
        if header is not None:
            headers[file] = header
        elif _might_be_a_slice(file):
            warnings.add("not a DICOM image, left out", file.name)
    # select the series
    wanted = {
        file: header
        for file, header in headers.items()
        if wanted_series in (None, text(header, "SeriesNumber"), series_key(header))
    }
    _leave_out_copies(wanted, warnings)
    # report a damaged file that may belong to the series
    uids = {series_key(header) for header in wanted.values()}
    for file, problem in damaged.items():
        # without a readable slice of the wanted series, any damaged file may be one
        is_only_series = wanted_series is None or not wanted
        if is_only_series or read_series_uid(file) in ("", *uids):
            raise problem
    if not wanted:
        series_names = sorted(
            {_PREFIX + text(header, "SeriesNumber") for header in headers.values()}
        )
        content = f" The folder contains {', '.join(series_names)}." if series_names else ""
        raise ReadError(
            f"{path}: no DICOM image was found.{content} Name another series or folder."
        )
    return wanted


def _leave_out_copies(headers: dict[Path, "Header"], warnings: ReaderWarnings) -> None:
    """Remove copies of the same file from `headers`, because each slice must occur only once.

    A copy has the SOPInstanceUID (the UID of a file) of an earlier file and equal bytes. Each
    removed file becomes a warning.
    """
    first_file: dict[str, Path] = {}  # by UID
    for file, header in [*headers.items()]:
        first = first_file.setdefault(text(header, "SOPInstanceUID"), file)
        if file != first and cmp(file, first, shallow=False):
            del headers[file]
            warnings.add("a copy of another slice, left out", file.name)


def _might_be_a_slice(file: Path) -> bool:
    """Return True if a file that was not read as an image could be a damaged slice.

    The user then gets a warning about it. These files cannot be slices: folders, hidden files,
    DICOMDIR (the index of a DICOM CD), other DICOM objects, texts, and files with the suffix of
    another image format.
    """
    if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return False
    return not is_dicom(file) and file.suffix.lower() not in (*TEXT_SUFFIXES, *_OTHER_IMAGES)


def read_stack(
    path: Path, warnings: ReaderWarnings | None = None
) -> tuple[list[DicomSlice], Geometry]:
    """Read the slices of a series or file, without their pixels, and the grid of their stack.

    A few images of a series may not belong to its stack, such as the localiser on which the series
    was planned. These images are left out with a warning. The spacing of a single slice along the
    normal is its thickness, or 1 mm if the thickness is unknown.

    Args:
        path: The file, the folder or `folder/series=…`.
        warnings: Receives a warning for everything that is left out or replaced.

    Returns:
        The slices in ascending order along the normal, and their grid.

    Raises:
        ReadError: If a file is damaged or cannot be read as a scan, or the grid is impossible.
        GeometryError: If the slices are of different patients, studies, series, frames of
            reference, kernels, echo times, b-values, passes or times, or do not form an even stack.
    """
    warnings = warnings or ReaderWarnings()
    # the images must be of one series, and their slices of one plane and one contrast
    headers = series_headers(path, warnings)
    identities = {
        file.name: {
            "series": series_key(header),
            "study": text(header, "StudyInstanceUID"),
            "patient": text(header, "PatientID"),
        }
        for file, header in headers.items()
    }
    _refuse_differences(path, identities)
    slices = _select_main_stack(path, _read_fit_slices(headers, warnings), warnings)
    _refuse_differences(path, {piece.name: _contrast(piece) for piece in slices})
    first = slices[0]
    plane = Geometry.from_spacing(first.shape, first.pixel_mm.tolist(), unit="mm in plane")
    check_grid(path, plane)
    # sort the slices along the normal, and compute the vector from one slice to the next
    normal = np.cross(*first.directions)
    slices.sort(key=lambda piece: float(piece.position @ normal))
    _check_groups(path, slices, warnings)
    if len(slices) == 1:
        thickness = max(first.thickness_mm, 0.0) or 1.0  # 1 mm if it is 0 or negative
        warnings.add(
            f"the scan is a single slice; {thickness:g} mm is used as spacing: its thickness, or "
            "1 mm if that is unknown"
        )
        step = normal * thickness
    else:
        try:
            step = _even_step(path, slices, normal)
        except GeometryError as error:
            # one of the files that are left out may be the missing slice
            raise GeometryError(" ".join([str(error), *warnings.lines])) from error
    # LPS affine of the indices (slice, row, column)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1:3] = first.axes_mm.T
    affine[:3, 3] = slices[0].position
    geometry = Geometry((len(slices), *first.shape), LPS_TO_RAS @ affine)
    check_grid(path, geometry)
    return slices, geometry


def series_key(header: "Header") -> str:
    """Return a text that is equal for all files of a series: its SeriesInstanceUID.

    For a file without this UID, the text is a digest of study, patient, date, modality, series
    number and description. The series of two patients therefore differ, but the text does not
    reveal the patient.
    """
    uid = text(header, "SeriesInstanceUID")
    if uid:
        return uid
    identity = repr([text(header, name) for name in _INSTEAD_OF_UID])
    return f"without-uid-{digest_of(identity)[:_UID_DIGITS]}"


def _contrast(piece: DicomSlice) -> dict[str, Any]:
    """Return the properties that must be equal for all slices of one scan, by their names.

    Several scans may have slices at the same positions, such as two echoes. They differ in echo
    time, b-value (diffusion), frame of reference, kernel, or kind of image (such as magnitude or
    phase, the third part of ImageType). A missing echo time or b-value is -1. A missing text has no
    key.
    """
    echo = "EchoTime" if piece.frame is None else "EffectiveEchoTime"
    contrast: dict[str, Any] = {
        "echo time": number(piece.elements, echo, -1.0),
        "b-value": number(piece.elements, "DiffusionBValue", -1.0),
    }
    contrast |= {name: value for name in _SAME_TEXTS if (value := text(piece.elements, name))}
    types = element_value(piece.elements, "FrameType") or element_value(piece.elements, "ImageType")
    kind = next(iter(np.ravel(types)[2:]), "")  # the third value, if there is one
    if kind and (kind in _COMPLEX_PARTS or text(piece.elements, "Modality") == "MR"):
        contrast["ImageType"] = kind
    return contrast


def _refuse_differences(path: Path, properties: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `GeometryError` if two images of a scan differ in a property that both images have.

    Numbers may differ by rounding.

    Args:
        path: The scan, for the message.
        properties: For each image, by the name of its file: its properties by their names.
    """
    first: dict[str, tuple[str, Any]] = {}  # of each property: the first image with it, its value
    for name, properties_of_image in properties.items():
        for key, value in properties_of_image.items():
            other, expected = first.setdefault(key, (name, value))
            is_rounded = isinstance(value, float) and isclose(value, expected, rel_tol=_ROUNDING)
            if value != expected and not is_rounded:
                raise _mixture_error(path, name, other, [key])


def _mixture_error(path: Path, name: str, other: str, different: Sequence[str]) -> GeometryError:
    """Return the error that a folder mixes images of different scans.

    Args:
        path: The folder or file.
        name: The name of an image.
        other: The name of an image that differs from it.
        different: The names of the properties in which the two images differ.
    """
    return GeometryError(
        f"{path}: {name} and {other} differ in their {', '.join(different)}. {_SEPARATE}"
    )


def _read_fit_slices(
    headers: Mapping[Path, "Header"], warnings: ReaderWarnings
) -> list[DicomSlice]:
    """Return the slices of the images of a series that can be read as a scan.

    Images that cannot (`explain_unfit`), such as a localiser, are left out with a warning if they
    are less than half of the images. Otherwise raise `ReadError`.
    """
    unfit = {file: reason for file, header in headers.items() if (reason := explain_unfit(header))}
    if 2 * len(unfit) >= len(headers):
        unfit = {}  # `check_image` below raises the error for the first of these images
    slices: list[DicomSlice] = []
    for file, header in headers.items():
        if file in unfit:
            warnings.add(f"{unfit[file]}, left out", file.name)
            continue
        with convert_read_errors(file):
            check_image(file, header)
            slices += slices_of_file(file, header)
    return slices


def _select_main_stack(
    path: Path, slices: Sequence[DicomSlice], warnings: ReaderWarnings
) -> list[DicomSlice]:
    """Return the slices that form the main stack of a series.

    More than half of the slices must have the same direction, pixel size and number of pixels
    (`DicomSlice.plane`). Other slices are left out with a warning. Raise `GeometryError` if no such
    majority exists.
    """
    planes = np.stack([piece.plane for piece in slices])
    # if more than half of the slices have equal numbers, the medians are these numbers
    is_same = np.abs(planes - np.median(planes, axis=0)) <= _ROUNDING
    has_main = 2 * is_same.all(axis=1).sum() > len(slices)
    if not has_main:
        is_same = np.abs(planes - planes[0]) <= _ROUNDING
    stack = []
    for piece, same in zip(slices, is_same, strict=True):
        different = [name for name, entries in _PLANE.items() if not same[entries].all()]
        if not different:
            stack.append(piece)
        elif has_main:
            warnings.add(f"another {' and '.join(different)}, left out", piece.name)
        else:
            raise _mixture_error(path, piece.name, slices[0].name, different)
    return stack


def _check_groups(path: Path, slices: Sequence[DicomSlice], warnings: ReaderWarnings) -> None:
    """Check that the slices are from one pass of the scanner and one time.

    Elements such as AcquisitionNumber number the passes or times of a series (`_GROUPS`).

    - If slices of two passes alternate along the normal, raise `GeometryError`.
    - If the passes follow each other along the normal, add a warning, because they may still form
      one scan.
    - If each slice has a number that no other slice has, the numbers do not mean passes.
    - Slices without a number are ignored.

    Args:
        path: The scan, for messages.
        slices: The slices in ascending order along the normal.
        warnings: Receives the warning.
    """
    for name in _GROUPS:
        values = filter(None, (text(piece.elements, name) for piece in slices))
        runs = [value for value, _ in groupby(values)]  # one value per run of equal numbers
        n_groups = len(set(runs))
        if len(runs) > n_groups:
            raise GeometryError(
                f"{path}: slices that differ in their {name} overlap, so they belong to several "
                f"passes or times. {_SEPARATE}"
            )
        if 1 < n_groups < len(slices):
            warnings.add(
                f"{name} has {n_groups} values, one after the other along the stack. Sort the "
                "slices into separate folders if these are different passes or times"
            )


def _even_step(path: Path, slices: Sequence[DicomSlice], normal: Numbers) -> Numbers:
    """Return the LPS vector in mm from one slice to the next, as the mean over all slices.

    Raise `GeometryError` if two slices have the same position, if a distance differs from the usual
    distance by more than 5 %, or if the gantry of a CT was tilted. In this last case the slices are
    shifted against each other, so that the stack is not a box.

    Args:
        path: The scan, for messages.
        slices: The slices in ascending order along the normal. There are at least two.
        normal: The LPS unit vector perpendicular to the slices.
    """
    positions = np.stack([piece.position for piece in slices])
    steps = np.diff(positions, axis=0)
    # the two closest slices along the normal
    n = int((steps @ normal).argmin())
    if steps[n] @ normal <= _SAME_PLACE_MM:
        raise GeometryError(
            f"{path}: {slices[n].name} and {slices[n + 1].name} are at the same place. They may be "
            f"duplicates, or belong to two times or acquisitions. {_SEPARATE}"
        )
    lengths = np.linalg.norm(steps, axis=1)
    # the lower median occurs in the stack, even if half of the distances are doubled
    usual = steps[np.argsort(lengths)[(len(steps) - 1) // 2]]
    distance = np.linalg.norm(usual)
    deviation = np.linalg.norm(steps - usual, axis=1)
    n = int(deviation.argmax())
    if deviation[n] > _MAX_UNEVEN * distance:
        raise GeometryError(
            f"{path}: the slices are not evenly spaced: {lengths[n]:.4g} mm between "
            f"{slices[n].name} and {slices[n + 1].name}, elsewhere {distance:.4g} mm. "
            "If slices are missing, copy the series again; otherwise convert it with dcm2niix."
        )
    extent = positions[-1] - positions[0]
    # the component of the extent that is parallel to the slices, in pixels along columns and rows;
    # reversed, because DICOM states the direction along a row first, but the distance of rows first
    drift = slices[0].directions[::-1] @ extent / slices[0].pixel_mm
    if np.abs(drift).max() > _MAX_DRIFT_PIXELS:
        raise GeometryError(
            f"{path}: the gantry was tilted. Convert the series with dcm2niix, which "
            "straightens it, and use its NIfTI file."
        )
    result: Numbers = extent / len(steps)
    return result


def slices_of_file(path: Path, header: "Header") -> Iterator[DicomSlice]:
    """Yield the slices of a DICOM file: one of a classic file, one per frame of an enhanced file.

    The elements in the functional groups of a frame are copied into the header of the slice
    (`frame_header`), so that slices of both kinds of files are read in the same way.
    """
    frames = header.get("PerFrameFunctionalGroupsSequence", None)
    if not frames:
        yield DicomSlice(path, frame=None, elements=header)
        return
    for n in range(len(frames)):
        yield DicomSlice(path, frame=n, elements=frame_header(header, n))
