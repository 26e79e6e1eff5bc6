"""DICOM references SEG and RTSTRUCT: label by segment name, contours drawn, other scan, gaps."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lesionseg.core import Geometry, Reference
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import ContentError, GeometryError, ReadError, count, join_names
from lesionseg.io.dicom.elements import Header, element_value, text
from lesionseg.io.dicom.headers import LPS_TO_RAS, check_image, read_header, stored_pixels
from lesionseg.io.dicom.series import series_headers, slices_of_file
from lesionseg.io.limits import convert_read_errors
from lesionseg.io.warn_once import warn_once
from lesionseg.ops.components import (
    fill_polygons,
    foreground_slices,
    label_components,
    lesion_instances,
)

logger = logging.getLogger(__name__)

Masks = dict[int, Flags]  # by the number of a segment or contour set
_MAX_SHOWN = 10  # names in a message
# elements that reference and scan share; another value of the first two is an error
_ORIGIN = {
    "FrameOfReferenceUID": "frame of reference",
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "PatientID": "patient",
}
_OFF_GRID = 0.1  # voxels: largest distance of a reference's points from voxel centres or slices


def read_dicom_reference(
    path: Path, geometry: Geometry, labels: Mapping[int, str], scans: Sequence[Path] = ()
) -> Reference:
    """Read a DICOM segmentation (SEG) or contours (RTSTRUCT) as a mask on the grid of the image.

    A SEG file contains segments, an RTSTRUCT file sets of contours (ROIs). Both have names and
    numbers.

    Args:
        path: The file.
        geometry: The grid of the image, with three axes.
        scans: The DICOM images of the case.
        labels: The name of each label value. A segment or contour set gets the label value with the
            same name, in upper or lower case and with or without a number ("lesion 7"). Segments
            with other names are left out, with a warning. If there is only one segment and only one
            label, the name does not matter.

    Returns:
        The reference, with label values on `geometry`. A voxel of two segments gets the label of
        the later one. Segments and contour sets that are numbered lesions (`_select_lesions`)
        become instances.

    Raises:
        ReadError: If the file is damaged or of another kind, or a contour is not closed.
        ContentError: If the file has segments, but none with the name of a label.
        GeometryError: If the file was drawn on another grid, frame of reference or series, or the
            image has two axes.
    """
    header = read_header(path)
    modality = text(header, "Modality")
    if modality not in ("SEG", "RTSTRUCT"):
        raise ReadError(
            f"{path}: the modality of the reference is {modality or 'not stated'}, expected SEG or "
            "RTSTRUCT. Save a mask that is an ordinary DICOM image as PNG or NIfTI."
        )
    if geometry.dims != 3:
        raise GeometryError(
            f"{path}: a DICOM reference needs a volume of slices, but the image has two axes. Save "
            "the mask of a radiograph as PNG, or give boxes."
        )
    with convert_read_errors(path):
        _check_origin(path, header, scans)
        names = _segment_names(header)
        label_of_segment = _match_labels(path, names, labels)
        masks = {number: np.zeros(geometry.shape, bool) for number in label_of_segment}
        if modality == "SEG":
            _draw_segments(path, header, geometry, masks)
        else:
            _draw_contours(path, header, geometry, masks)
        values = np.zeros(geometry.shape, np.min_scalar_type(max(labels)))
        for number, inside in masks.items():
            values[inside] = label_of_segment[number]
    # instances: each numbered lesion is one, and so is each connected component of other segments
    lesions = _select_lesions(header, names, label_of_segment)
    if not lesions:
        return Reference(geometry, labels=values)
    others = values.copy()
    for number in lesions:
        masks[number] &= values == label_of_segment[number]  # without later segments
        others[masks[number]] = 0
    instances, instance_labels = lesion_instances(others)
    for number in lesions:
        instance_labels += (label_of_segment[number],)
        instances[masks[number]] = len(instance_labels)  # the next id
    return Reference(geometry, values, instances, instance_labels)


def _check_origin(path: Path, header: "Header", scans: Sequence[Path]) -> None:
    """Check that a reference was drawn on the scans of its case.

    The elements of `_ORIGIN` are compared. The frame of reference is the coordinate system of a
    scanner session.

    - Another frame of reference or series is a `GeometryError`.
    - Another study or patient gives a warning.
    - An element that the reference or the scans do not contain is not compared.
    - The series of contours is not compared, because contours are also used on other series of
      their frame of reference.
    """
    headers = [header for scan in scans for header in series_headers(scan).values()]
    # the reference is itself a series; only the UIDs of the series that it refers to remain. Those
    # of contours are in deeper items, which are not read
    header.pop("SeriesInstanceUID", None)
    parts_of_reference = [header]
    for name in ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"):
        parts_of_reference += element_value(header, name) or ()
    for keyword, what in _ORIGIN.items():
        values_of_scans = {text(scan, keyword) for scan in headers} - {""}
        values_of_reference = {text(item, keyword) for item in parts_of_reference} - {""}
        if (
            values_of_scans
            and values_of_reference
            and values_of_scans.isdisjoint(values_of_reference)
        ):
            message = f"{path}: the reference belongs to another {what} than the scan."
            if what not in ("study", "patient"):
                raise GeometryError(f"{message} Name the scan that it was drawn on.")
            warn_once(logger, "%s Check if they are a pair.", message)


def _select_lesions(
    header: "Header", names: Mapping[int, str], labels: Mapping[int, int]
) -> list[int]:
    """Return the numbers of the segments or contour sets that are one lesion each.

    Some programs store each lesion as a segment with a numbered name, such as "lesion 7". A segment
    counts as one lesion if its name ends with a digit, and at least one other such segment has the
    same label and the same property type (a code for the kind of tissue).

    Args:
        header: The elements of the SEG or RTSTRUCT file.
        names: The name of each segment or contour set, by its number.
        labels: The label value of each segment or contour set that is read, by its number.
    """
    type_of_segment = {
        int(segment.SegmentNumber): str(segment.get("SegmentedPropertyTypeCodeSequence"))
        for segment in header.get("SegmentSequence", ())
    }
    groups = defaultdict(list)
    for number, label in labels.items():
        if names[number].strip()[-1:].isdigit():
            groups[label, type_of_segment.get(number)].append(number)
    return [number for group in groups.values() if len(group) > 1 for number in group]


def _segment_names(header: "Header") -> dict[int, str]:
    """Return the name of each segment of a SEG file, or contour set of an RTSTRUCT file.

    The keys are the numbers of the segments or contour sets. The background has no entry.
    """
    names = {
        int(segment.SegmentNumber): str(segment.get("SegmentLabel"))
        for segment in header.get("SegmentSequence", ())
    }
    names.pop(0, None)  # the background of a LABELMAP
    rois = header.get("StructureSetROISequence", ())
    return names | {int(roi.ROINumber): str(roi.get("ROIName")) for roi in rois}


def _match_labels(
    path: Path, names: Mapping[int, str], labels: Mapping[int, str]
) -> dict[int, int]:
    """Return the label value of each segment or contour set whose name is that of a label.

    If there is only one segment and only one label, the name does not matter. Otherwise segments
    with other names are left out, with a warning.

    Args:
        path: The file, for messages.
        names: The name of each segment or contour set, by its number.
        labels: The name of each label value.

    Returns:
        The label value by the number of the segment or contour set.

    Raises:
        ContentError: If there are segments, and all of them are left out.
    """
    values = {n: value for n, name in names.items() if (value := _label_of(name, labels))}
    left_out = sorted(names[number] for number in names.keys() - values)
    if not values and len(names) == len(labels) == 1:  # the only segment gets the only label
        return dict(zip(names, labels, strict=True))
    if left_out and not values:
        raise ContentError(
            f"{path}: no segment or contour set is called {', '.join(labels.values())}, only "
            f"{join_names(left_out, _MAX_SHOWN)}. Add its name to labels.json."
        )
    if left_out:
        # the text is the same for all files with these names, so that it is shown once
        warn_once(
            logger,
            "Segments and contour sets with names of no label are left out: %s. Add their names to "
            "labels.json if they are lesions.",
            join_names(left_out),
        )
    return values


def _label_of(name: str, labels: Mapping[int, str]) -> int:
    """Return the label value with the name of a segment, or 0 if no label has this name.

    Upper and lower case are equal. If no label has the complete name, the number at its end is
    ignored.

    >>> _label_of("Lesion 7", {2: "lesion"}), _label_of("grade 2", {1: "grade", 3: "grade 2"})
    (2, 3)
    >>> _label_of("GTV-2", {1: "gtv"}), _label_of("lesion3", {1: "lesion"})
    (1, 1)
    """
    value_of_name = {text.strip().lower(): value for value, text in labels.items()}
    # first the complete name, then the name without its number and the separators before it
    full = name.strip().lower()
    return value_of_name.get(full, 0) or value_of_name.get(re.sub(r"[\s_-]*\d+$", "", full), 0)


def _draw_segments(path: Path, header: "Header", geometry: Geometry, masks: Masks) -> None:
    """Draw the segments of a SEG file into their masks.

    Each frame of the file is one slice of one segment. In a LABELMAP, it is one slice of all
    segments, whose pixels are segment numbers. Frames may have another order and orientation than
    the image, so pixels are located by their positions in the patient. A pixel of a FRACTIONAL
    segment is inside from half of the maximum.

    Args:
        path: The file.
        header: The elements of the file.
        geometry: The grid of the image.
        masks: The mask of each segment by its number, which this function changes.

    Raises:
        GeometryError: If pixels are not on the grid of the image.
    """
    check_image(path, header)
    threshold = 0.5
    kind = text(header, "SegmentationType")
    if kind == "FRACTIONAL":
        threshold = int(header.get("MaximumFractionalValue", 255)) / 2
    for frame, pixels in zip(slices_of_file(path, header), stored_pixels(path), strict=True):
        numbers_to_draw = set(masks)
        if kind != "LABELMAP":  # otherwise, each pixel is the number of its segment
            numbers_to_draw &= {int(frame.elements.ReferencedSegmentNumber)}
        for number in numbers_to_draw:
            inside = pixels == number if kind == "LABELMAP" else pixels >= threshold
            # positions (x, y, z) in the patient of the pixels (row, column)
            points_lps = np.argwhere(inside) @ frame.axes_mm + frame.position
            index = _round_to_grid(path, points_lps, geometry, n_axes=3).astype(np.int64)
            masks[number][tuple(index.T)] = True


def _draw_contours(path: Path, header: "Header", geometry: Geometry, masks: Masks) -> None:
    """Draw the contour sets of an RTSTRUCT file into their masks.

    The contours of a set in one slice are combined by exclusive or: a contour inside another one
    cuts a hole, and so does an overlap. A contour that the file repeats is drawn once. Warn about a
    set without voxels, and about empty slices between contours that overlap.

    Args:
        path: The file, for messages.
        header: The elements of the file.
        geometry: The grid of the image.
        masks: The mask of each contour set by its number, which this function changes.

    Raises:
        ReadError: If a contour is not closed.
        GeometryError: If a contour is not within one slice of the image.
    """
    for roi in header.get("ROIContourSequence", None) or ():
        number = int(roi.ReferencedROINumber)
        if number not in masks:
            continue
        # polygons by slice and content: exclusive or would delete a contour that the file repeats
        polygons: dict[int, dict[bytes, Numbers]] = defaultdict(dict)
        for contour in roi.get("ContourSequence", None) or ():
            kind = text(contour, "ContourGeometricType")
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "POINT"):
                raise ReadError(
                    f"{path}: a contour is not closed ({kind or 'type not stated'}). Export closed "
                    "contours (CLOSED_PLANAR), or a mask as NIfTI."
                )
            points_lps = np.array(contour.ContourData, float).reshape(-1, 3)
            index = _round_to_grid(path, points_lps, geometry, n_axes=1)
            if np.ptp(index[:, 0]):  # points in more than one slice
                raise GeometryError(
                    f"{path}: a contour is not within one slice of the image. Export the "
                    "contours of this series, or a mask as NIfTI."
                )
            polygons[int(index[0, 0])][index.round(3).tobytes()] = index[:, 1:]
        for z, of_slice in polygons.items():
            masks[number][z] ^= fill_polygons(list(of_slice.values()), geometry.shape[1:])
        _warn_of_gaps(path, masks[number])
    empty = [mask for mask in masks.values() if not mask.any()]
    if empty:
        logger.warning(
            "%s: nothing is drawn for %s, because contours are missing.",
            path,
            count(len(empty), "contour set"),
        )


def _warn_of_gaps(path: Path, mask: Flags) -> None:
    """Warn if contours that probably belong to one lesion are separated by slices without it.

    Programs may store contours only in some slices. A gap is an empty voxel that has voxels of the
    mask at the same position in an earlier and in a later slice. The warning is logged if filling
    the gaps would join components of the mask. It states the number of slices with a gap, which may
    contain other lesions.
    """
    mask = mask[foreground_slices(mask) or ()]  # an empty mask is not cropped
    # `accumulate` is True from the first voxel of the mask on; reversed twice, up to the last one
    is_after_mask = np.logical_or.accumulate(mask)
    gaps = is_after_mask & np.logical_or.accumulate(mask[::-1])[::-1] & ~mask
    # the highest label is the number of components
    if label_components(mask | gaps).max() < label_components(mask).max():
        text = (
            "%s: %d empty slices are between contours that overlap, so that they count as several "
            "lesions. If they are one, interpolate them in the program that drew them."
        )
        warn_once(logger, text, path, np.count_nonzero(gaps.any(axis=(1, 2))))


def _round_to_grid(path: Path, points_lps: Numbers, geometry: Geometry, *, n_axes: int) -> Numbers:
    """Convert points to voxel indices `[n, 3]`, and round them along the first `n_axes` axes.

    Segment pixels are rounded along all axes. The points of a contour are in a slice, but between
    the pixels, so only the index of the slice is rounded.

    Args:
        path: The file, for messages.
        points_lps: The points `[n, 3]` in LPS millimetres.
        geometry: The grid of the image.
        n_axes: The number of axes that are rounded, 1 to 3.

    Raises:
        GeometryError: If rounding changes an index by more than 0.1 voxels, or if a rounded index
            is outside the grid.
    """
    index = geometry.to_index(points_lps @ LPS_TO_RAS[:3, :3])
    rounded = np.rint(index[:, :n_axes])
    max_change = float(np.abs(index[:, :n_axes] - rounded).max(initial=0))
    if max_change > _OFF_GRID or (rounded < 0).any() or (rounded >= geometry.shape[:n_axes]).any():
        difference = (
            f"{max_change:.2f} voxels off" if max_change > _OFF_GRID else "voxels outside it"
        )
        raise GeometryError(
            f"{path}: the reference was not drawn on the image's grid ({difference}). Name the "
            "series that it was drawn on, or resample it onto the image and save it as NIfTI."
        )
    index[:, :n_axes] = rounded
    return index
