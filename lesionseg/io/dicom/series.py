"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph.

Of several series in one folder, `folder/series=3` names that of number 3, or of that UID. No such
file exists: it is how a manifest, and prediction on a whole study, point into the folder.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.dicom.headers import (
    LPS_TO_RAS,
    SUFFIXES,
    check_scan,
    image_header,
    image_headers,
    is_dicom,
    is_image,
    is_xray,
    read_header,
    stored_pixels,
    unfit,
)
from lesionseg.io.dicom.radiograph import radiograph_geometry, read_radiograph
from lesionseg.io.limits import check_grid, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

_PREFIX = "series="
# by which images of one place differ: group of an enhanced file, its element, a classic file's
_TELLING = {
    "echo time": ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    "b-value": ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    "time": ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    "trigger time": (
        "CardiacSynchronizationSequence",
        "NominalCardiacTriggerDelayTime",
        "TriggerTime",
    ),
}
UNEVEN = 0.05  # share of the slice distance by which a step may differ from the others
_SAME_PLACE_MM = 1e-2
_SAME_DIRECTION = 1e-4
_DRIFT_PIXELS = 0.5  # over the whole stack: less moves no voxel to its neighbour


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: a classic file, or frame `frame` of an enhanced one.

    `position`: centre of the first pixel, LPS millimetres; `across`, `down`: unit vectors along
    rows and columns; `pixel_mm`: (down, across). Values are `slope · stored + intercept`.
    `telling`: what may tell repeated positions apart.
    """

    path: Path
    frame: int | None
    series: str
    shape: tuple[int, int]
    position: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    thickness_mm: float | None
    slope: float
    intercept: float
    telling: Mapping[str, str]

    @property
    def name(self) -> str:
        """File, and frame counted from 1, for messages."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


def read_dicom(path: Path) -> Volume:
    """Read a series' folder or one file as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal and rescaled each by its own slope;
    distances come from positions, never from the thickness. Radiographs (CR, DX, MG) have two
    axes: see `radiograph`. Raises `ReadError` and `GeometryError` naming the file at fault.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return read_radiograph(radiograph)
    slices, geometry = read_stack(path)
    values = np.empty((1, *geometry.shape), dtype=np.float32)
    by_path: dict[Path, list[int]] = {}
    for index, piece in enumerate(slices):
        by_path.setdefault(piece.path, []).append(index)
    for file, indices in by_path.items():
        stored = stored_pixels(file, read_header(file, pixels=True))
        for index in indices:
            piece = slices[index]
            several = stored.ndim == 3 and (piece.frame or 0) < len(stored)
            pixels = stored[piece.frame] if several and piece.frame is not None else stored
            if pixels.shape != piece.shape:
                raise ReadError(f"{file}: pixels {pixels.shape}, the header says {piece.shape}.")
            values[0, index] = pixels.astype(np.float64) * piece.slope + piece.intercept
    return Volume(values, geometry)


def read_dicom_geometry(path: Path) -> Geometry:
    """Read the geometry from the headers alone."""
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return radiograph_geometry(radiograph, read_header(radiograph))
    return read_stack(path)[1]


def split_series(path: Path) -> tuple[Path, str] | None:
    """Folder, and number or UID, of a path that names a series within it; None for any other."""
    if path.name.startswith(_PREFIX) and path.parent.is_dir():
        return path.parent, path.name.removeprefix(_PREFIX)
    return None


def folder_name(folder: Path) -> str:
    """What a folder is called, also where the path to it is `.` or ends in `..`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def series_headers(path: Path) -> dict[Path, "Header"]:
    """Headers of the images of a folder, or of one series in it. Raises `ReadError` for none."""
    series = split_series(path)
    if series is None:
        return image_headers(path)
    folder, name = series
    everything = image_headers(folder)
    headers = {f: h for f, h in everything.items() if name in (_number(h), _uid(h))}
    if not headers:
        known = ", ".join(sorted({_PREFIX + _number(h) for h in everything.values()}))
        raise ReadError(f"{path}: the folder holds no such series, only {known or 'none'}.")
    return headers


def group_files(files: Sequence[Path]) -> dict[Path, str]:
    """The images that DICOM files of one folder are, and what to call each.

    A radiograph is a file, called by its name; so is a single other image. A series is its folder,
    called by it, or where there are several `folder/series=<number>`, called `<folder>_<number>`.
    Localisers, secondary captures and the like are left out, and named in the log. A file that is
    damaged counts as an image, so that reading it says so; beside series, reading those does.
    """
    names: dict[Path, str] = {}
    series: dict[str, dict[Path, Header]] = {}
    damaged = []
    for file in files:
        try:
            header = image_header(file)
        except ReadError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            damaged.append(file)
            continue
        if header is None:
            logger.info("%s is left out: it is not a DICOM image.", file)
        elif is_xray(header):
            names[file] = _stem(file)
        else:
            series.setdefault(_uid(header), {})[file] = header
    fit = []
    for headers in series.values():
        reasons = [unfit(header) for header in headers.values()]
        if all(reasons):
            logger.warning(
                "%s (%d files) left out: %s", next(iter(headers)), len(headers), reasons[0]
            )
        else:
            fit.append(headers)
    if not fit:
        names |= {file: _stem(file) for file in damaged}
    if len(series) == len(fit) == 1:
        (headers,) = fit
        file = next(iter(headers))
        one = len(headers) == 1
        return {**names, (file if one else file.parent): _stem(file) if one else _folder(file)}
    numbers = [_number(next(iter(headers.values()))) for headers in fit]
    for number, headers in zip(numbers, fit, strict=True):
        file, header = next(iter(headers.items()))
        key = number if number and numbers.count(number) == 1 else _uid(header)
        called = _folder(file) if len(fit) == 1 else f"{_folder(file)}_{key}"
        names[file.parent / f"{_PREFIX}{key}"] = called
    return names


def radiograph_file(path: Path) -> Path | None:
    """The file when `path` is one radiograph or a folder with just that; None for all else.

    Raises `ReadError` for a folder of several.
    """
    if path.is_file():
        return path if is_dicom(path) and is_xray(read_header(path)) else None
    if not path.is_dir():
        return None
    first = next(
        (h for f in sorted(path.iterdir()) if is_dicom(f) and (h := image_header(f))), None
    )
    if first is None or not is_xray(first):  # a series' other files need not be opened
        return None
    headers = image_headers(path)
    if len(headers) > 1 and all(is_xray(header) for header in headers.values()):
        raise ReadError(f"{path}: {len(headers)} radiographs. Name one file, not the folder.")
    return next(iter(headers)) if len(headers) == 1 else None


def read_stack(path: Path) -> tuple[list[DicomSlice], Geometry]:
    """The slices of a folder's series, or of one file, in ascending order; and their grid.

    Raises `ReadError` and `GeometryError` naming the files at fault: several series, differing
    shapes, directions or pixel sizes, two slices at one place, steps that differ by more than 5 %
    of the slice distance, a tilted gantry.
    """
    headers = {path: read_header(path)} if path.is_file() else series_headers(path)
    if not headers:
        raise ReadError(f"{path}: a folder without a DICOM image.")
    slices: list[DicomSlice] = []
    for file, header in headers.items():
        if not is_image(header):
            raise ReadError(f"{file}: no image ({header.get('Modality')}).")
        check_scan(file, header)
        with reading(file):
            if "PerFrameFunctionalGroupsSequence" not in header:
                slices.append(_slice(file, header, None, ()))
                continue
            shared = header.get("SharedFunctionalGroupsSequence", None) or ()
            for n, frame in enumerate(header.PerFrameFunctionalGroupsSequence):
                slices.append(_slice(file, header, n, (frame, *shared[:1])))
    first = slices[0]
    series = Counter(piece.series for piece in slices)
    if len(series) > 1:
        odd = next(p for p in slices if p.series != series.most_common(1)[0][0])
        raise ReadError(
            f"{path}: {len(series)} DICOM series ({odd.name} is of another than the most). "
            "Sort the files into one folder a series."
        )
    for piece in slices:
        turned = np.abs([piece.across - first.across, piece.down - first.down]).max()
        for differs, what in (
            (turned > _SAME_DIRECTION, "direction"),
            (piece.shape != first.shape, "number of pixels"),
            (not np.allclose(piece.pixel_mm, first.pixel_mm, rtol=1e-4), "pixel size"),
        ):
            if differs:
                raise GeometryError(
                    f"{path}: {piece.name} and {first.name} differ in their {what}. "
                    "Keep the slices of one stack in the folder."
                )
    for what in ("echo time", "b-value"):  # two images, though no place is taken twice
        seen = sorted({piece.telling[what] for piece in slices})
        if len(seen) > 1:
            raise ReadError(
                f"{path}: the series mixes images of different {what} ({', '.join(seen[:6])}). "
                "Sort the files into one folder for each, or name one as its own channel."
            )
    normal = np.cross(first.across, first.down)
    order = sorted(slices, key=lambda piece: float(piece.position @ normal))
    for one, other in pairwise(order):
        if float((other.position - one.position) @ normal) <= _SAME_PLACE_MM:
            differ = [what for what in _TELLING if one.telling[what] != other.telling[what]]
            raise ReadError(
                f"{path}: {one.name} and {other.name} lie at the same place "
                f"({' and '.join(differ) + ' differ' if differ else 'duplicates'}). "
                "Keep one of the two files, or sort them into a folder each."
            )
    if len(order) == 1:
        logger.warning("%s: a single slice; its thickness stands for the slice distance.", path)
        step = normal * (first.thickness_mm or 1.0)
        return order, check_grid(path, _grid(order, step))
    places = np.stack([piece.position for piece in order])
    steps = np.diff(places, axis=0)
    usual = np.median(steps, axis=0)
    off = np.linalg.norm(steps - usual, axis=1) / np.linalg.norm(usual)
    if (off > UNEVEN).any():
        n = int(off.argmax())
        raise GeometryError(
            f"{path}: not evenly spaced: {np.linalg.norm(steps[n]):.4g} mm between "
            f"{order[n].name} and {order[n + 1].name}, elsewhere {np.linalg.norm(usual):.4g} mm. "
            "Copy the missing file, or leave the series out."
        )
    whole = places[-1] - places[0]
    drift = np.array([whole @ first.down, whole @ first.across]) / first.pixel_mm
    if np.abs(drift).max() > _DRIFT_PIXELS:
        angle = np.degrees(np.arccos(np.clip(whole @ normal / np.linalg.norm(whole), -1, 1)))
        raise GeometryError(
            f"{path}: the gantry was tilted by {angle:.1f} degrees. Convert the series with "
            "dcm2niix, which straightens it, and use its NIfTI file."
        )
    return order, check_grid(path, _grid(order, whole / (len(order) - 1)))


def _grid(slices: Sequence[DicomSlice], step: NDArray[np.float64]) -> Geometry:
    """The grid of slices with `step` (LPS millimetres) from one to the next."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.down * first.pixel_mm[0]
    affine[:3, 2] = first.across * first.pixel_mm[1]
    affine[:3, 3] = first.position
    return Geometry((len(slices), *first.shape), LPS_TO_RAS @ affine)


def _slice(path: Path, header: "Header", frame: int | None, groups: tuple[Any, ...]) -> DicomSlice:
    """A classic file's slice, or a frame's, whose elements lie in functional groups."""
    if frame is None and "ModalityLUTSequence" in header:
        raise ReadError(f"{path}: maps its values by a table, which is not read.")

    def get(sequence: str, name: str) -> Any:
        if frame is None:
            return header.get(name)
        group: Any = next((g.get(sequence)[0] for g in groups if g.get(sequence)), {})
        return group.get(name)

    def numbers(sequence: str, name: str, n: int) -> NDArray[np.float64]:
        value = get(sequence, name)
        values = np.array([] if value in (None, "") else [float(v) for v in np.ravel(value)])
        if len(values) != n or (n == 2 and values.min() <= 0):
            raise ReadError(f"{path}: {name} is {values.tolist()}, expected {n} numbers.")
        return values

    def text(value: Any) -> str:
        if isinstance(value, float):  # DS, FD: the same number is written in many ways
            return f"{value:g}"
        return "none" if value is None else str(value)

    def number(sequence: str, name: str) -> float | None:
        value = get(sequence, name)
        return None if value in (None, "") else float(value)

    directions = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    pixel_mm = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    slope = number("PixelValueTransformationSequence", "RescaleSlope")
    return DicomSlice(
        path=path,
        frame=frame,
        series=_uid(header),
        shape=(int(header.Rows), int(header.Columns)),
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        across=directions[:3] / np.linalg.norm(directions[:3]),
        down=directions[3:] / np.linalg.norm(directions[3:]),
        pixel_mm=(float(pixel_mm[0]), float(pixel_mm[1])),
        thickness_mm=number("PixelMeasuresSequence", "SliceThickness"),
        slope=1.0 if slope is None else slope,
        intercept=number("PixelValueTransformationSequence", "RescaleIntercept") or 0.0,
        telling={
            what: text(get(group, element if frame is not None else classic))
            for what, (group, element, classic) in _TELLING.items()
        },
    )


def _stem(file: Path) -> str:
    return file.stem if file.suffix.lower() in SUFFIXES else file.name


def _folder(file: Path) -> str:
    return folder_name(file.parent)


def _number(header: "Header") -> str:
    return str(header.get("SeriesNumber", None) or "")


def _uid(header: "Header") -> str:
    return str(header.get("SeriesInstanceUID", ""))
