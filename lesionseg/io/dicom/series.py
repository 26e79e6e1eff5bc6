"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph.

Of several series in one folder, `folder/series=3` names that of number 3, or of that UID. No such
file exists: it is how a manifest, and prediction on a whole study, point into the folder.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError, count
from lesionseg.io.dicom.headers import (
    LPS_TO_RAS,
    SUFFIXES,
    Header,
    check_scan,
    image_header,
    is_xray,
    read_header,
    stored_pixels,
    unfit,
)
from lesionseg.io.dicom.radiograph import radiograph_file, radiograph_geometry, read_radiograph
from lesionseg.io.limits import check_grid, reading

logger = logging.getLogger(__name__)

_PREFIX = "series="
_ECHO = ("EffectiveEchoTime", "EchoTime")  # of an enhanced frame, of a classic file
_UNEVEN = 0.05  # share of the slice distance by which a step may differ from the others
_SAME_PLACE_MM = 1e-2
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
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    @cached_property
    def pixel_mm(self) -> NDArray[np.float64]:
        """Down, across."""
        return self._numbers("PixelSpacing", 2)

    def _numbers(self, name: str, n: int) -> NDArray[np.float64]:
        with reading(self.path):
            value = self.elements.get(name)
            values = np.array([] if value in (None, "") else [float(v) for v in np.ravel(value)])
        if len(values) != n or (name == "PixelSpacing" and values.min() <= 0):
            raise ReadError(f"{self.path}: {name} is {values.tolist()}, expected {n} numbers.")
        return values

    @property
    def axes_mm(self) -> NDArray[np.float64]:
        """Millimetres from a row, and from a column, to the next one `[2, 3]`."""
        return self.directions[::-1] * self.pixel_mm[:, None]


def read_dicom(path: Path) -> Volume:
    """Read a series' folder or one file as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal and rescaled each by its own slope;
    distances come from positions, never from the thickness.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if (radiograph := radiograph_file(path)) is not None:
        return read_radiograph(radiograph)
    slices, geometry = read_stack(path)
    values = np.empty((1, *geometry.shape), dtype=np.float32)
    file, pixels = Path(), np.empty(0)
    for z, piece in enumerate(slices):
        if piece.path != file:
            file, pixels = piece.path, stored_pixels(piece.path)
        with reading(file):
            values[0, z] = apply_modality_lut(pixels[piece.frame or 0], piece.elements)
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


def series_headers(path: Path) -> dict[Path, "Header"]:
    """Headers of the images that a file, a folder or a series in it holds, by file."""
    folder, name = split_series(path) or (path, None)
    headers: dict[Path, Header] = {}
    for file in [path] if path.is_file() else sorted(folder.iterdir()):
        if (header := image_header(file)) is not None:
            headers[file] = header
        else:
            logger.info("%s is left out: it is not a DICOM image.", file)
    wanted = {f: h for f, h in headers.items() if name in (None, _number(h), _uid(h))}
    if not wanted:
        known = ", ".join(sorted({_PREFIX + _number(h) for h in headers.values()}))
        raise ReadError(f"{path}: there is no DICOM image{known and f', only {known}'}.")
    return wanted


def group_files(files: Sequence[Path]) -> dict[Path, str]:
    """The images that DICOM files of one folder are, and what to call each.

    A radiograph is a file, called by its name; so is a single other image. A series is its folder,
    called by it, or where there are several `folder/series=<number>`, called `<folder>_<number>`.
    A damaged file counts as an image, so that reading it says so; beside series, those say it.
    """
    images: dict[Path, str] = {}
    damaged: dict[Path, str] = {}
    series: dict[str, dict[Path, Header]] = defaultdict(dict)
    for file in files:
        try:
            header = image_header(file)
        except ReadError:
            damaged[file] = _stem(file)
            continue
        if header is None:
            logger.info("%s is left out: it is not a DICOM image.", file)
        elif is_xray(header):
            images[file] = _stem(file)
        else:
            series[_uid(header)][file] = header
    fit = []
    for headers in series.values():
        file, header = next(iter(headers.items()))
        if all(map(unfit, headers.values())):
            logger.warning("%s: %s left out: %s", file, count(len(headers), "file"), unfit(header))
        else:
            fit.append((file, header, len(headers)))
    if not fit:
        return {**images, **damaged}
    numbers = [_number(next(iter(headers.values()))) for headers in series.values()]
    for file, header, n_files in fit:
        number, name = _number(header), folder_name(file.parent)
        if len(series) > 1:  # also beside series that are left out
            key = number if number and numbers.count(number) == 1 else _uid(header)
            images[file.parent / f"{_PREFIX}{key}"] = name if len(fit) == 1 else f"{name}_{key}"
        elif n_files > 1:
            images[file.parent] = name
        else:
            images[file] = _stem(file)
    return images


def read_stack(path: Path) -> tuple[list[DicomSlice], Geometry]:
    """The slices of a folder's series, or of one file, in ascending order; and their grid."""
    slices: list[DicomSlice] = []
    for file, header in series_headers(path).items():
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
            "echo time": len({p.elements.get(_ECHO[p.frame is None]) for p in (piece, first)}) == 1,
            "b-value": len({p.elements.get("DiffusionBValue") for p in (piece, first)}) == 1,
        }
        if not all(same.values()):
            what = ", ".join(what for what, is_same in same.items() if not is_same)
            raise GeometryError(
                f"{path}: {piece.name} and {first.name} differ in their {what}. Sort them apart."
            )
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
        logger.warning("%s: the scan is a single slice; its thickness is used as spacing.", path)
        step = normal * float(first.elements.get("SliceThickness") or 1)
    else:
        usual, whole = np.median(steps, axis=0), places[-1] - places[0]
        distance, step = float(np.linalg.norm(usual)), whole / len(steps)
        off = np.linalg.norm(steps - usual, axis=1)
        if off.max() > _UNEVEN * distance:
            n = int(off.argmax())
            raise GeometryError(
                f"{path}: the slices are not evenly spaced: {np.linalg.norm(steps[n]):.4g} mm "
                f"between {slices[n].name} and {slices[n + 1].name}, elsewhere {distance:.4g} mm."
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


def _stem(file: Path) -> str:
    return file.stem if file.suffix.lower() in SUFFIXES else file.name


def _number(header: "Header") -> str:
    return str(header.get("SeriesNumber", None) or "")


def _uid(header: "Header") -> str:
    return str(header.get("SeriesInstanceUID", ""))
