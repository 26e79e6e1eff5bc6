"""DICOM references: segmentation objects (SEG) and contours (RTSTRUCT), on the image's grid."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Reference
from lesionseg.errors import ContentError, GeometryError, ReadError
from lesionseg.io.dicom.elements import Header
from lesionseg.io.dicom.headers import LPS_TO_RAS, check_scan, read_header, stored_pixels
from lesionseg.io.dicom.series import read_slices
from lesionseg.io.limits import reading
from lesionseg.ops.components import fill_polygon

Drawn = dict[int, NDArray[np.bool_]]  # voxels by the number of a segment or contour set
_OFF_GRID = 0.1  # voxels: how far from a voxel's centre, or slice, a reference may lie


def read_dicom_reference(path: Path, geometry: Geometry, labels: Mapping[int, str]) -> Reference:
    """Read a SEG or RTSTRUCT file as label values on the image's `geometry`.

    Segments and contour sets that have the name of one of `labels`, in upper or lower case and
    with or without a number ("lesion 7"), get its value. The others are left out. A single one with
    a single label needs no name. If two overlap, the later one holds the voxel. Raises
    `ContentError` if no name fits, `GeometryError` for another grid.
    """
    header = read_header(path)
    modality = str(header.get("Modality", ""))
    if modality not in ("SEG", "RTSTRUCT"):
        raise ReadError(
            f"{path}: a reference of modality {modality or '(not stated)'}, expected SEG or "
            "RTSTRUCT. Save a mask that is an ordinary DICOM image as PNG or NIfTI."
        )
    if geometry.dims != 3:
        raise GeometryError(
            f"{path}: a DICOM reference belongs to a volume of slices. Give a radiograph a mask "
            "as PNG, or boxes."
        )
    with reading(path):
        if modality == "SEG":
            names = {int(s.SegmentNumber): s.get("SegmentLabel") for s in header.SegmentSequence}
        else:
            names = {int(r.ROINumber): r.get("ROIName") for r in header.StructureSetROISequence}
        values = {number: _label_of(str(name), labels) for number, name in names.items()}
        if not any(values.values()) and len(names) == len(labels) == 1:
            values = dict(zip(names, labels, strict=True))
        if names and not any(values.values()):
            raise ContentError(
                f"{path}: no segment or contour set is called {', '.join(labels.values())}, only "
                f"{', '.join(sorted(map(str, names.values()))[:10])}. Name it in labels.json."
            )
        drawn = {n: np.zeros(geometry.shape, dtype=bool) for n in values if values[n]}
        draw = _draw_segments if modality == "SEG" else _draw_contours
        draw(path, header, geometry, drawn)
        marked = np.zeros(geometry.shape, dtype=np.min_scalar_type(max(labels)))
        for number, inside in drawn.items():
            marked[inside] = values[number]
    return Reference(geometry, labels=marked)


def _label_of(name: str, labels: Mapping[int, str]) -> int:
    """Return the label that a segment is named after; 0 if none.

    >>> _label_of("Lesion 7", {2: "lesion"}), _label_of("grade 2", {1: "grade", 3: "grade 2"})
    (2, 3)
    """
    by_name = {text.strip().lower(): value for value, text in labels.items()}
    whole = name.strip().lower()
    return by_name.get(whole) or by_name.get(re.sub(r"[\s_]+\d+$", "", whole), 0)


def _draw_segments(path: Path, header: "Header", geometry: Geometry, drawn: Drawn) -> None:
    check_scan(path, header)
    fractional = str(header.get("SegmentationType", "BINARY")) == "FRACTIONAL"
    least = int(header.get("MaximumFractionalValue", 255)) / 2 if fractional else 0.5
    for frame, pixels in zip(read_slices(path, header), stored_pixels(path), strict=True):
        number = int(frame.elements.ReferencedSegmentNumber)
        if number in drawn:
            points = np.argwhere(pixels >= least) @ frame.axes_mm + frame.position
            index = _on_grid(path, geometry.to_index(points @ LPS_TO_RAS[:3, :3]), geometry)
            drawn[number][tuple(index.T)] = True


def _draw_contours(path: Path, header: "Header", geometry: Geometry, drawn: Drawn) -> None:
    for roi in header.get("ROIContourSequence", None) or ():
        if (inside := drawn.get(int(roi.ReferencedROINumber))) is None:
            continue
        for contour in roi.get("ContourSequence", None) or ():
            kind = str(contour.get("ContourGeometricType", ""))
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "POINT"):
                raise ReadError(
                    f"{path}: a contour is not closed ({kind or 'type not stated'}). Export closed "
                    "contours (CLOSED_PLANAR), or a mask as NIfTI."
                )
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            index = geometry.to_index(points @ LPS_TO_RAS[:3, :3])
            slices = _on_grid(path, index[:, :1], geometry)[:, 0]
            if np.ptp(slices):
                raise GeometryError(
                    f"{path}: a contour does not lie in one of the image's slices. Export the "
                    "contours of this series, or a mask as NIfTI."
                )
            # a hole is a second contour within the first: inside both is outside
            inside[slices[0]] ^= fill_polygon(index[:, 1:], geometry.shape[1:])


def _on_grid(path: Path, index: NDArray[np.float64], geometry: Geometry) -> NDArray[np.int64]:
    """Whole voxel indices; the leading axes of `geometry` are those of `index`."""
    whole = np.rint(index).astype(np.int64)
    off = float(np.abs(index - whole).max(initial=0))
    if off > _OFF_GRID or (whole < 0).any() or (whole >= geometry.shape[: index.shape[1]]).any():
        seen = f"{off:.2f} voxels off" if off > _OFF_GRID else "voxels outside it"
        raise GeometryError(
            f"{path}: the reference was not drawn on the image's grid ({seen}). Name the series "
            "that it was drawn on, or resample it onto the image and save it as NIfTI."
        )
    return whole
