"""DICOM references: segmentation objects (SEG) and contours (RTSTRUCT), on the image's grid."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Reference
from lesionseg.errors import ContentError, GeometryError, ReadError
from lesionseg.io.dicom.headers import LPS_TO_RAS, read_header
from lesionseg.io.dicom.pixels import fill_polygon, stored_pixels
from lesionseg.io.formats.guard import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

_OFF_GRID = 0.1  # voxels: how far from a voxel's centre, or slice, a reference may lie


def read_dicom_reference(path: Path, geometry: Geometry, labels: Mapping[int, str]) -> Reference:
    """Read a SEG or RTSTRUCT file as label values on the image's `geometry`.

    Segments and contour sets are taken by name: those called as one of `labels` (upper and lower
    case alike) get its value, others are left out; a single one with a single label needs no name.
    Where two overlap the later label holds the voxel. Raises `ContentError` when no name fits and
    `GeometryError` when the file was drawn on another grid.
    """
    header = read_header(path, pixels=True)
    modality = str(header.get("Modality", ""))
    if modality not in ("SEG", "RTSTRUCT"):
        raise ReadError(
            "The DICOM file is not a reference.",
            where=path,
            seen=modality,
            expected="SEG, RTSTRUCT",
        )
    if geometry.dims != 3:
        raise GeometryError("A DICOM reference belongs to a volume of slices.", where=path)
    with reading(path):
        draw = _segments(path, header) if modality == "SEG" else _contours(path, header)
        names = {number: name for number, name, _ in draw}
        value_of = _values(path, names, labels)
        values = np.zeros(geometry.shape, dtype=np.min_scalar_type(max(labels)))
        for number, _, paint in draw:
            if number in value_of:
                values[_paint(path, paint, geometry)] = value_of[number]
    return Reference(geometry, labels=values)


# a segment as voxel centres [n, 3], contours as a list of polygons [n, 3]; RAS millimetres
_Points = NDArray[np.float64]
_Drawn = _Points | Sequence[_Points]


def _values(path: Path, names: Mapping[int, str], labels: Mapping[int, str]) -> dict[int, int]:
    """Label value of each segment number whose name is a label's."""
    by_name = {name.strip().lower(): value for value, name in labels.items()}
    value_of = {
        n: by_name[s.strip().lower()] for n, s in names.items() if s.strip().lower() in by_name
    }
    if not value_of and len(names) == len(labels) == 1:
        return dict(zip(names, labels, strict=True))
    if names and not value_of:
        raise ContentError(
            "No segment or contour set has the name of a label.",
            where=path,
            seen=sorted(set(names.values()))[:10],
            expected=sorted(labels.values()),
            remedy="Name it in labels.json next to the manifest.",
        )
    return value_of


def _segments(path: Path, header: "Header") -> list[tuple[int, str, _Drawn]]:
    """Number, name and voxel centres of each segment."""
    stored = stored_pixels(path, header)
    frames = stored[np.newaxis] if stored.ndim == 2 else stored
    fractional = str(header.get("SegmentationType", "BINARY")) == "FRACTIONAL"
    least = int(header.get("MaximumFractionalValue", 255)) / 2 if fractional else 0.5
    points: dict[int, list[_Points]] = {}
    for pixels, (number, affine) in zip(frames, _frame_places(path, header), strict=True):
        rows, columns = np.nonzero(pixels >= least)
        index = np.stack([rows, columns, np.ones_like(rows)], axis=1).astype(np.float64)
        points.setdefault(number, []).append(index @ affine.T)
    return [
        (
            int(segment.SegmentNumber),
            str(segment.get("SegmentLabel", "")),
            np.concatenate([np.zeros((0, 3)), *points.get(int(segment.SegmentNumber), [])]),
        )
        for segment in header.SegmentSequence
    ]


def _frame_places(path: Path, header: "Header") -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Segment number of each frame and what maps (row, column, 1) to RAS millimetres."""
    shared: Any = next(iter(header.get("SharedFunctionalGroupsSequence", None) or ()), {})

    def group(frame: Any, name: str) -> Any:
        items = frame.get(name) or shared.get(name)
        if not items:
            raise ReadError("The segmentation does not say where its frames lie.", where=path)
        return items[0]

    for frame in header.PerFrameFunctionalGroupsSequence:
        down_mm, across_mm = (float(v) for v in group(frame, "PixelMeasuresSequence").PixelSpacing)
        orientation = group(frame, "PlaneOrientationSequence").ImageOrientationPatient
        across, down = np.array(orientation, dtype=float).reshape(2, 3)
        origin = np.array(group(frame, "PlanePositionSequence").ImagePositionPatient, dtype=float)
        number = group(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber
        affine = np.stack([down * down_mm, across * across_mm, origin], axis=1)
        yield int(number), LPS_TO_RAS[:3, :3] @ affine


def _contours(path: Path, header: "Header") -> list[tuple[int, str, _Drawn]]:
    """Number, name and closed polygons of each contour set."""
    names = {int(r.ROINumber): str(r.get("ROIName", "")) for r in header.StructureSetROISequence}
    contours: dict[int, list[_Points]] = {number: [] for number in names}
    for roi in header.get("ROIContourSequence", None) or ():
        for contour in roi.get("ContourSequence", None) or ():
            kind = str(contour.get("ContourGeometricType", ""))
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "POINT"):
                raise ReadError("A contour is not closed.", where=path, seen=kind)
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            contours[int(roi.ReferencedROINumber)].append(points @ LPS_TO_RAS[:3, :3])
    return [(number, name, contours[number]) for number, name in names.items()]


def _paint(path: Path, drawn: _Drawn, geometry: Geometry) -> NDArray[np.bool_]:
    inside = np.zeros(geometry.shape, dtype=bool)
    if isinstance(drawn, np.ndarray):
        inside[tuple(_on_grid(path, geometry.to_index(drawn), geometry).T)] = True
        return inside
    for polygon in drawn:
        index = geometry.to_index(polygon)
        slices = _on_grid(path, index[:, :1], geometry)[:, 0]
        if len(set(slices.tolist())) > 1:
            raise GeometryError("A contour does not lie in one of the image's slices.", where=path)
        # a hole is a second contour within the first: inside both is outside
        inside[slices[0]] ^= fill_polygon(index[:, 1:], geometry.shape[1:])
    return inside


def _on_grid(path: Path, index: NDArray[np.float64], geometry: Geometry) -> NDArray[np.int64]:
    """Whole voxel indices; the leading axes of `geometry` are those of `index`."""
    whole = np.rint(index).astype(np.int64)
    shape = np.array(geometry.shape[: index.shape[1]])
    off = float(np.abs(index - whole).max(initial=0))
    if off > _OFF_GRID or (whole < 0).any() or (whole >= shape).any():
        raise GeometryError(
            "The reference was not drawn on the image's grid.",
            where=path,
            seen=f"{off:.2f} voxels off" if off > _OFF_GRID else "voxels outside it",
            remedy="Take the series that the reference was drawn on.",
        )
    return whole
