"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph.

Of several series in one folder, `folder/series=3` names that of number 3, or of that UID. No such
file exists: it is how a manifest, and prediction on a whole study, point into the folder.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.dicom.elements import Header, Remarks, number, numbers, text, value_of
from lesionseg.io.dicom.headers import (
    LPS_TO_RAS,
    check_scan,
    image_header,
    is_dicom,
    read_header,
    stated_series,
    stored_pixels,
)
from lesionseg.io.dicom.radiograph import (
    radiograph_file,
    radiograph_geometry,
    read_radiograph,
    rescaled,
)
from lesionseg.io.limits import check_grid, reading

logger = logging.getLogger(__name__)

_PREFIX = "series="
_ECHO = ("EffectiveEchoTime", "EchoTime")  # of an enhanced frame, of a classic file
_UNEVEN = 0.05  # share of the slice distance by which a step may differ from the others
_SAME_PLACE_MM = 1e-2
_LEAST_LENGTH = 1e-6  # of a direction
_NO_PLACE_ADVICE = (
    "The file does not state where its slice is located in the patient. Export the series again "
    "as CT or MR images, or leave the file out."
)
# files beside slices that nobody takes for one
_NOTES = {
    *(".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".htm", ".html", ".pdf", ".log", ".ini"),
    *(".db", ".jpg", ".jpeg", ".png", ".gif", ".nii", ".gz", ".nrrd", ".mha"),
}
_DRIFT_PIXELS = 0.5  # over the whole stack: less moves no voxel to its neighbour


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: a classic file, or frame `frame` of an enhanced one.

    `elements`: the file's, with those of the frame's functional groups.
    """

    path: Path
    frame: int | None
    elements: "Header"

    @property
    def name(self) -> str:
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.elements.Rows), int(self.elements.Columns)

    @cached_property
    def position(self) -> NDArray[np.float64]:
        """Centre of the first pixel, LPS millimetres."""
        return self._numbers("ImagePositionPatient", 3)

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors along rows and columns `[2, 3]`."""
        rows = self._numbers("ImageOrientationPatient", 6).reshape(2, 3)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if lengths.min() < _LEAST_LENGTH:
            raise ReadError(f"{self.path}: ImageOrientationPatient is 0. {_NO_PLACE_ADVICE}")
        return np.asarray(rows / lengths)

    @cached_property
    def pixel_mm(self) -> NDArray[np.float64]:
        """Down, across."""
        values = self._numbers("PixelSpacing", 2)
        if values.min() <= 0:
            raise ReadError(f"{self.path}: PixelSpacing is {values.tolist()}. {_NO_PLACE_ADVICE}")
        return values

    def _numbers(self, name: str, n: int) -> NDArray[np.float64]:
        values = numbers(self.elements, name)
        if len(values) != n:
            stated = value_of(self.elements, name)
            seen = "missing" if stated is None else f"{stated!s:.60}, expected {n} numbers"
            raise ReadError(f"{self.path}: {name} is {seen}. {_NO_PLACE_ADVICE}")
        return np.asarray(values)

    @property
    def axes_mm(self) -> NDArray[np.float64]:
        """Millimetres from a row, and from a column, to the next one `[2, 3]`."""
        return self.directions[::-1] * self.pixel_mm[:, None]


def read_dicom(path: Path) -> Volume:
    """Read a series' folder or one file as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal and rescaled each by its own slope.
    Distances come from positions, never from the thickness. Files of the folder that are no DICOM
    images are left out with a warning.
    """
    if (radiograph := radiograph_file(path)) is not None:
        return read_radiograph(radiograph)
    remarks = Remarks(path)
    slices, geometry = read_stack(path, remarks)
    values = np.empty((1, *geometry.shape), dtype=np.float32)
    file, pixels = Path(), np.empty(0)
    for z, piece in enumerate(slices):
        if piece.path != file:
            file, pixels = piece.path, stored_pixels(piece.path)
        with reading(file):
            frame = pixels[piece.frame or 0]
            values[0, z] = rescaled(frame, piece.elements, remarks, file)
    remarks.log()
    return Volume(values, geometry)


def read_dicom_geometry(path: Path) -> Geometry:
    if (radiograph := radiograph_file(path)) is not None:
        return radiograph_geometry(radiograph, read_header(radiograph))
    return read_stack(path)[1]


def split_series(path: Path) -> tuple[Path, str] | None:
    """Folder, and number or UID, of a path that names a series within it; None for any other."""
    if path.name.startswith(_PREFIX) and path.parent.is_dir() and not path.exists():
        return path.parent, path.name.removeprefix(_PREFIX)
    return None


def folder_name(folder: Path) -> str:
    """What a folder is called, also where the path to it is `.` or ends in `..`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def series_headers(path: Path, remarks: Remarks | None = None) -> dict[Path, "Header"]:
    """Return the headers of the images in a file, a folder or a series of it, by file.

    Files of the folder that are no DICOM images, and might be slices, are noted in `remarks`.
    Raises `ReadError` for a damaged file, unless it states that it is of another series.
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
    wanted = {f: h for f, h in headers.items() if name in (None, _number(h), _uid(h))}
    uids = {_uid(header) for header in wanted.values()}
    for file, fault in damaged.items():
        if name is None or not wanted or stated_series(file) in ("", *uids):
            raise fault
    if not wanted:
        known = ", ".join(sorted({_PREFIX + _number(h) for h in headers.values()}))
        raise ReadError(
            f"{path}: there is no such DICOM image{known and f', only {known}'}. Name another "
            "series or folder."
        )
    return wanted


def _might_be_a_slice(file: Path) -> bool:
    """Return True for a file whose name does not say that it is something else."""
    if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return False
    return not is_dicom(file) and file.suffix.lower() not in _NOTES


def read_stack(path: Path, remarks: Remarks | None = None) -> tuple[list[DicomSlice], Geometry]:
    """Return the slices of a folder's series, or of one file, in ascending order; and their grid.

    What is left out or replaced is noted in `remarks`.
    """
    slices: list[DicomSlice] = []
    for file, header in series_headers(path, remarks).items():
        with reading(file):
            check_scan(file, header)
            slices += read_slices(file, header)
    first = slices[0]
    for piece in slices:
        same = {
            "direction": np.allclose(piece.directions, first.directions, atol=1e-4),
            "pixel size": np.allclose(piece.pixel_mm, first.pixel_mm, rtol=1e-4),
            "number of pixels": piece.shape == first.shape,
            "series": _uid(piece.elements) == _uid(first.elements),
            "echo time": _same_number(piece, first, _ECHO[piece.frame is None]),
            "b-value": _same_number(piece, first, "DiffusionBValue"),
        }
        if not all(same.values()):
            what = ", ".join(what for what, is_same in same.items() if not is_same)
            raise GeometryError(
                f"{path}: {piece.name} and {first.name} differ in their {what}. Sort them apart."
            )
    check_grid(path, Geometry.from_spacing(first.shape, first.pixel_mm.tolist(), "mm in plane"))
    normal = np.cross(*first.directions)
    slices.sort(key=lambda piece: float(piece.position @ normal))
    places = np.stack([piece.position for piece in slices])
    steps = np.diff(places, axis=0)
    for n in np.flatnonzero(steps @ normal <= _SAME_PLACE_MM)[:1]:
        one, two = slices[n], slices[n + 1]
        raise GeometryError(
            f"{path}: {one.name} and {two.name} lie at the same place: duplicates, or two times or "
            "acquisitions. Sort them into a folder each."
        )
    if len(slices) == 1:
        thickness = number(first.elements, "SliceThickness") or 0.0
        stated = f"its thickness, {thickness:g} mm," if thickness > 0 else "1 mm"
        if remarks is not None:
            remarks.add(f"the scan is a single slice; {stated} is used as spacing")
        step = normal * (thickness if thickness > 0 else 1.0)
    else:
        lengths = np.linalg.norm(steps, axis=1)
        # the lower median: a distance that occurs, also if half of them are double
        usual = steps[np.argsort(lengths)[(len(steps) - 1) // 2]]
        whole = places[-1] - places[0]
        distance = float(np.linalg.norm(usual))
        step = whole / len(steps)
        off = np.linalg.norm(steps - usual, axis=1)
        if off.max() > _UNEVEN * distance:
            n = int(off.argmax())
            raise GeometryError(
                f"{path}: the slices are not evenly spaced: {np.linalg.norm(steps[n]):.4g} mm "
                f"between {slices[n].name} and {slices[n + 1].name}, elsewhere {distance:.4g} mm. "
                "If slices are missing, copy the series again; otherwise convert it with dcm2niix."
            )
        drift = np.abs(first.directions[::-1] @ whole / first.pixel_mm)
        if drift.max() > _DRIFT_PIXELS:
            raise GeometryError(
                f"{path}: the gantry was tilted. Convert the series with dcm2niix, which "
                "straightens it, and use its NIfTI file."
            )
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1:3] = first.axes_mm.T
    affine[:3, 3] = places[0]
    shape = (len(slices), *first.shape)
    return slices, check_grid(path, Geometry(shape, LPS_TO_RAS @ affine))


def read_slices(path: Path, header: "Header") -> Iterator[DicomSlice]:
    """A classic file's slice, or those of an enhanced one, whose elements lie in groups."""
    from pydicom.dataset import Dataset

    shared = header.get("SharedFunctionalGroupsSequence", None) or ()
    frames = header.get("PerFrameFunctionalGroupsSequence", None)
    for n, frame in enumerate(frames or [Dataset()]):
        elements = header
        if frames:
            elements = Dataset()
            elements.update(header)
            for sequence in (s for group in (*shared[:1], frame) for s in group):
                if sequence.VR == "SQ" and sequence.value and not sequence.tag.is_private:
                    elements.update(sequence.value[0])
        yield DicomSlice(path, n if frames else None, elements)


def _same_number(one: DicomSlice, other: DicomSlice, name: str) -> bool:
    return numbers(one.elements, name) == numbers(other.elements, name)


def _number(header: "Header") -> str:
    return text(header, "SeriesNumber")


def _uid(header: "Header") -> str:
    return text(header, "SeriesInstanceUID")
