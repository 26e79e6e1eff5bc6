"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph.

If a folder contains several series, `folder/series=3` names the one with this series number or UID.
Such a path does not exist on disk. Manifests and predictions on a whole study use it to refer to
one series of a folder.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError, count, join_names
from lesionseg.io.dicom.elements import Header, Remarks, number, numbers, text, value_of
from lesionseg.io.dicom.headers import (
    LPS_TO_RAS,
    check_scan,
    explain_unfit,
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
from lesionseg.io.files import digest_of
from lesionseg.io.limits import check_grid, convert_read_errors

logger = logging.getLogger(__name__)

_PREFIX = "series="
_ECHO_OF_FRAME = "EffectiveEchoTime"
_ECHO_OF_FILE = "EchoTime"
_MAX_UNEVEN = 0.05  # fraction of the slice distance by which a single distance may differ
_SAME_PLACE_MM = 1e-2
_MIN_LENGTH = 1e-6  # a direction vector that is shorter is not valid
_SEPARATE = (
    "Sort them into separate folders. Convert a file of several frames with dcm2niix, which writes "
    "one NIfTI file per stack of frames."
)
_NO_POSITION_ADVICE = (
    "The file does not state where its slice is located in the patient. Export the series again "
    "as CT or MR images, or leave the file out."
)
# suffixes of files next to slices that cannot be slices themselves
_NOTES = {
    ".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".htm", ".html", ".pdf", ".log", ".ini",
    ".db", ".jpg", ".jpeg", ".png", ".gif", ".nii", ".gz", ".nrrd", ".mha",
}  # fmt: skip
# largest drift over the whole stack: it is too small to move a voxel to its neighbour
_MAX_DRIFT_PIXELS = 0.5
# elements that distinguish series if the files have no SeriesInstanceUID
_INSTEAD_OF_UID = (
    "StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "Modality", "SeriesNumber",
    "SeriesDescription",
)  # fmt: skip
_UID_DIGITS = 8  # digits of the digest of these elements
_MAX_SHOWN = 3  # names in a message


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """A slice: a classic file, or one frame of an enhanced file.

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
        """The name of the file, with the number of the frame, for messages."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return int(self.elements.Rows), int(self.elements.Columns)

    @cached_property
    def position(self) -> NDArray[np.float64]:
        """Centre of the first pixel in LPS millimetres `[3]`."""
        return self._numbers("ImagePositionPatient", 3)

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """LPS unit vectors along a row and along a column `[2, 3]`."""
        rows = self._numbers("ImageOrientationPatient", 6).reshape(2, 3)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if lengths.min() < _MIN_LENGTH:
            raise ReadError(f"{self.path}: ImageOrientationPatient is 0. {_NO_POSITION_ADVICE}")
        return np.asarray(rows / lengths)

    @cached_property
    def pixel_mm(self) -> NDArray[np.float64]:
        """Distance of the rows and of the columns `[2]`."""
        values = self._numbers("PixelSpacing", 2)
        if values.min() <= 0:
            raise ReadError(
                f"{self.path}: PixelSpacing is {values.tolist()}. {_NO_POSITION_ADVICE}"
            )
        return values

    def _numbers(self, name: str, n: int) -> NDArray[np.float64]:
        """Return the `n` numbers of an element. Raise `ReadError` if it does not have them."""
        values = numbers(self.elements, name)
        if len(values) != n:
            stated = value_of(self.elements, name)
            content = "missing" if stated is None else f"{stated!s:.60}, expected {n} numbers"
            raise ReadError(f"{self.path}: {name} is {content}. {_NO_POSITION_ADVICE}")
        return np.asarray(values)

    @property
    def axes_mm(self) -> NDArray[np.float64]:
        """LPS vectors from one row and from one column to the next, in millimetres `[2, 3]`."""
        return self.directions[::-1] * self.pixel_mm[:, None]


def read_dicom(path: Path, raster_mm: float | None = None) -> Volume:
    """Read the folder of a series, or one file, as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal. Each is rescaled by its own slope. Slice
    distances are computed from positions, never from the thickness. Other files of the folder are
    left out with a warning. `raster_mm` is the pixel size of a radiograph that states none.

    Raises:
        ReadError: A file is damaged, or the path names no DICOM image.
        GeometryError: The slices do not form an even stack.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return read_radiograph(radiograph, raster_mm)
    remarks = Remarks(path)
    slices, geometry = read_stack(path, remarks)
    values = np.empty((1, *geometry.shape), dtype=np.float32)
    file = Path()
    pixels = np.empty(0)
    for z, piece in enumerate(slices):
        if piece.path != file:  # the frames of an enhanced file are decoded once
            file = piece.path
            pixels = stored_pixels(file)
        with convert_read_errors(file):
            frame = pixels[piece.frame or 0]
            values[0, z] = rescale(frame, piece.elements, remarks, file)
    remarks.log()
    return Volume(values, geometry)


def read_dicom_geometry(path: Path, raster_mm: float | None = None) -> Geometry:
    """Read the grid from the headers. Arguments and errors are those of `read_dicom`."""
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return radiograph_geometry(radiograph, read_header(radiograph), raster_mm=raster_mm)
    return read_stack(path)[1]


def split_series(path: Path) -> tuple[Path, str] | None:
    """Split a path `folder/series=3` into folder and series. Return None for any other path."""
    if path.name.startswith(_PREFIX) and path.parent.is_dir() and not path.exists():
        return path.parent, path.name.removeprefix(_PREFIX)
    return None


def folder_name(folder: Path) -> str:
    """Return the name of a folder, also if its path is `.` or ends in `..`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def series_headers(path: Path, remarks: Remarks | None = None) -> dict[Path, "Header"]:
    """Read the headers of the images in a file, a folder or one series of a folder.

    Args:
        path: The file, the folder or `folder/series=…`.
        remarks: Receives a remark for each file that might be a slice but is not a DICOM image.

    Returns:
        The headers by file.

    Raises:
        ReadError: No image is found, or a file is damaged. A damaged file is ignored if it states
            another series than the wanted one.
    """
    folder, name = split_series(path) or (path, None)
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
        elif remarks is not None and _might_be_a_slice(file):
            remarks.add(f"{file.name} is not a DICOM image and is left out")
        else:
            logger.debug("%s is left out: it is not a DICOM image.", file)
    wanted: dict[Path, Header] = {}
    for file, header in headers.items():
        is_wanted = name is None or name in (_number(header), series_key(header))
        if is_wanted:
            wanted[file] = header
    _leave_out_copies(wanted, remarks)
    uids = {series_key(header) for header in wanted.values()}
    for file, fault in damaged.items():
        # without a readable slice of the wanted series, any damaged file may be one
        is_only_series = name is None or not wanted
        if is_only_series or read_series_uid(file) in ("", *uids):
            raise fault
    if not wanted:
        known = ", ".join(sorted({_PREFIX + _number(header) for header in headers.values()}))
        content = f" The folder contains {known}." if known else ""
        raise ReadError(
            f"{path}: no DICOM image was found.{content} Name another series or folder."
        )
    return wanted


def _leave_out_copies(headers: dict[Path, "Header"], remarks: Remarks | None) -> None:
    """Remove files that are equal to another file of the series, byte by byte."""
    first_file: dict[str, Path] = {}
    copies: list[str] = []
    for file, header in [*headers.items()]:
        uid = text(header, "SOPInstanceUID")
        first = first_file.setdefault(uid, file)
        if uid and file != first and cmp(file, first, shallow=False):
            del headers[file]
            copies.append(f"{file.name} is a copy of {first.name}")
    if copies and remarks is not None:
        files = count(len(copies), "file")
        remarks.add(f"{files} of the series left out: {join_names(copies, _MAX_SHOWN)}")


def _might_be_a_slice(file: Path) -> bool:
    """Return True if neither content nor name shows that the file is not a slice."""
    if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return False
    return not is_dicom(file) and file.suffix.lower() not in _NOTES


def read_stack(path: Path, remarks: Remarks | None = None) -> tuple[list[DicomSlice], Geometry]:
    """Read the slices of a series or file, without their pixels, and the grid that they form.

    A few images of a series may not belong to its stack, such as the localiser on which it was
    planned. They are left out with a remark.

    Args:
        path: The file, the folder or `folder/series=…`.
        remarks: Receives a remark for everything that is left out or replaced.

    Returns:
        The slices in ascending order along the normal, and their grid.

    Raises:
        ReadError: A file is damaged.
        GeometryError: The slices do not form an even stack.
    """
    headers = series_headers(path, remarks)
    _check_same_series(path, headers)
    slices, left_out = _select_slices(headers)
    first = slices[0]
    for piece in slices:
        if different := _find_differences(piece, first):
            raise GeometryError(
                f"{path}: {piece.name} and {first.name} differ in their {', '.join(different)}. "
                f"{_SEPARATE}"
            )
    note = ""
    if left_out:
        named = [f"{name} ({reason})" for name, reason in left_out.items()]
        images = count(len(left_out), "image")
        note = f"{images} of the series left out: {join_names(named, _MAX_SHOWN)}"
    if note and remarks is not None:
        remarks.add(note)
    check_grid(path, Geometry.from_spacing(first.shape, first.pixel_mm.tolist(), "mm in plane"))
    along_row, along_column = first.directions
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda piece: float(piece.position @ normal))
    if len(slices) == 1:
        step = normal * _thickness(first, remarks)
    else:
        try:
            step = _even_step(path, slices, normal)
        except GeometryError as error:
            # one of these images may be the missing slice
            if not note:
                raise
            raise GeometryError(f"{error} {note}.") from error
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1:3] = first.axes_mm.T
    affine[:3, 3] = slices[0].position
    shape = (len(slices), *first.shape)
    return slices, check_grid(path, Geometry(shape, LPS_TO_RAS @ affine))


def series_key(header: "Header") -> str:
    """Return the UID of the series, or a text that takes its place if the file has no UID.

    This text is made of study, patient, number and description, so that the series of two patients
    differ. It does not contain them.
    """
    uid = text(header, "SeriesInstanceUID")
    if uid:
        return uid
    identity = repr([text(header, name) for name in _INSTEAD_OF_UID])
    return f"without-uid-{digest_of(identity)[:_UID_DIGITS]}"


def _check_same_series(path: Path, headers: Mapping[Path, "Header"]) -> None:
    """Raise `GeometryError` if the files belong to several series, studies or patients."""
    first_file, first = next(iter(headers.items()))
    for file, header in headers.items():
        is_same = {
            "series": series_key(header) == series_key(first),
            "study": text(header, "StudyInstanceUID") == text(first, "StudyInstanceUID"),
            "patient": text(header, "PatientID") == text(first, "PatientID"),
        }
        different = [name for name, same in is_same.items() if not same]
        if different:
            raise GeometryError(
                f"{path}: {file.name} and {first_file.name} differ in their "
                f"{', '.join(different)}. Sort them into separate folders."
            )


def _select_slices(headers: Mapping[Path, "Header"]) -> tuple[list[DicomSlice], dict[str, str]]:
    """Select the slices that form the stack of a series.

    An image is left out if it is not a slice, such as a localiser, or if its direction, pixel size
    or number of pixels differs from that of more than half of the slices. If there is no such
    majority, nothing is left out, and the caller reports the difference.

    Returns:
        The slices, and the reasons for the images that are left out by name.
    """
    reason_of: dict[Path, str] = {}
    for file, header in headers.items():
        with convert_read_errors(file):
            reason_of[file] = explain_unfit(header)
    n_unfit = sum(reason != "" for reason in reason_of.values())
    are_few = 2 * n_unfit < len(headers)
    left_out: dict[str, str] = {}
    slices: list[DicomSlice] = []
    for file, header in headers.items():
        if reason_of[file] and are_few:
            left_out[file.name] = reason_of[file].partition(". ")[0]  # without the advice
            continue
        with convert_read_errors(file):
            check_scan(file, header)
            slices += read_slices(file, header)
    stacks = _group_stacks(slices)
    largest = max(stacks, key=len)
    if 2 * len(largest) <= len(slices):
        return slices, left_out
    for stack in stacks:
        if stack is not largest:
            different = " and ".join(_find_geometry_differences(stack[0], largest[0]))
            left_out |= {piece.name: f"another {different}" for piece in stack}
    return largest, left_out


def _group_stacks(slices: Sequence[DicomSlice]) -> list[list[DicomSlice]]:
    """Group slices of the same direction, pixel size and number of pixels."""
    stacks: list[list[DicomSlice]] = []
    for piece in slices:
        for stack in stacks:
            if not _find_geometry_differences(piece, stack[0]):
                stack.append(piece)
                break
        else:
            stacks.append([piece])
    return stacks


def _find_geometry_differences(piece: DicomSlice, first: DicomSlice) -> list[str]:
    """Name the properties of a slice's plane that differ from those of another slice."""
    is_same = {
        "direction": np.allclose(piece.directions, first.directions, atol=1e-4),
        "pixel size": np.allclose(piece.pixel_mm, first.pixel_mm, rtol=1e-4),
        "number of pixels": piece.shape == first.shape,
    }
    return [name for name, same in is_same.items() if not same]


def _find_differences(piece: DicomSlice, first: DicomSlice) -> list[str]:
    """Name the properties because of which two slices cannot belong to the same stack."""
    echo = _ECHO_OF_FILE if piece.frame is None else _ECHO_OF_FRAME
    different = _find_geometry_differences(piece, first)
    if not _have_same_number(piece, first, echo):
        different.append("echo time")
    if not _have_same_number(piece, first, "DiffusionBValue"):
        different.append("b-value")
    return different


def _thickness(piece: DicomSlice, remarks: Remarks | None) -> float:
    """Return the thickness of a scan's only slice in millimetres, or 1 if it is not stated."""
    thickness = number(piece.elements, "SliceThickness") or 0.0
    stated = f"its thickness, {thickness:g} mm," if thickness > 0 else "1 mm"
    if remarks is not None:
        remarks.add(f"the scan is a single slice; {stated} is used as spacing")
    return thickness if thickness > 0 else 1.0


def _even_step(
    path: Path, slices: Sequence[DicomSlice], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the LPS vector from one slice to the next.

    Raise `GeometryError` if two slices are at the same place, if the distances differ, or if the
    gantry was tilted.
    """
    first = slices[0]
    places = np.stack([piece.position for piece in slices])
    steps = np.diff(places, axis=0)
    repeated = np.flatnonzero(steps @ normal <= _SAME_PLACE_MM)
    if repeated.size:
        n = int(repeated[0])
        raise GeometryError(
            f"{path}: {slices[n].name} and {slices[n + 1].name} are at the same place. They may be "
            f"duplicates, or belong to two times or acquisitions. {_SEPARATE}"
        )
    lengths = np.linalg.norm(steps, axis=1)
    # the lower median occurs in the stack, even if half of the distances are doubled
    usual = steps[np.argsort(lengths)[(len(steps) - 1) // 2]]
    distance = float(np.linalg.norm(usual))
    deviation = np.linalg.norm(steps - usual, axis=1)
    if deviation.max() > _MAX_UNEVEN * distance:
        n = int(deviation.argmax())
        raise GeometryError(
            f"{path}: the slices are not evenly spaced: {np.linalg.norm(steps[n]):.4g} mm "
            f"between {slices[n].name} and {slices[n + 1].name}, elsewhere {distance:.4g} mm. "
            "If slices are missing, copy the series again; otherwise convert it with dcm2niix."
        )
    whole = places[-1] - places[0]
    # the part of the way that is parallel to the slices, in pixels along columns and rows
    drift = np.abs(first.directions[::-1] @ whole / first.pixel_mm)
    if drift.max() > _MAX_DRIFT_PIXELS:
        raise GeometryError(
            f"{path}: the gantry was tilted. Convert the series with dcm2niix, which "
            "straightens it, and use its NIfTI file."
        )
    return np.asarray(whole / len(steps))


def read_slices(path: Path, header: "Header") -> Iterator[DicomSlice]:
    """Yield the slice of a classic file, or those of an enhanced file.

    An enhanced frame has its elements, such as its position, in functional groups: sequences with
    one item each. Elements in shared groups apply to all frames, those of a frame's own groups
    replace them. The items are copied into one flat header, so that both kinds of files look alike.
    """
    from pydicom.dataset import Dataset

    shared = header.get("SharedFunctionalGroupsSequence", None) or ()  # one item, or none
    frames = header.get("PerFrameFunctionalGroupsSequence", None)
    if not frames:
        yield DicomSlice(path, None, header)
        return
    for n, frame in enumerate(frames):
        elements = Dataset()
        elements.update(header)
        for group in (*shared[:1], frame):
            for sequence in group:
                if sequence.VR == "SQ" and sequence.value and not sequence.tag.is_private:
                    elements.update(sequence.value[0])
        yield DicomSlice(path, n, elements)


def _have_same_number(one: DicomSlice, other: DicomSlice, name: str) -> bool:
    return numbers(one.elements, name) == numbers(other.elements, name)


def _number(header: "Header") -> str:
    return text(header, "SeriesNumber")
