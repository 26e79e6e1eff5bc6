"""Cases in memory: channels on one grid and the reference that belongs to them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Labels, Reference, Volume
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io import itk
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.dicom.series import series_headers, split_series
from lesionseg.io.layouts.checks import check_channels, is_colour
from lesionseg.io.layouts.coco import read_coco_reference
from lesionseg.io.layouts.datalist import read_boxes
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.volumes import is_dicom_image, is_raster, read_geometry, read_volume
from lesionseg.io.warn_once import warn_once
from lesionseg.ops.components import lesion_instances, present_values

logger = logging.getLogger(__name__)

TOLERANCE_MM = 1e-3
# Grids that are less than half a voxel apart put every voxel in the same place, whichever is used.
_NEAR_VOXELS = 0.5
_SAME_SPACING = 1e-3  # relative
LUMA = (0.299, 0.587, 0.114)  # brightness of red, green and blue, by ITU-R BT.601


def read_case(files: CaseFiles, dataset: Dataset) -> Case:
    """Read one case: image `[C, *spatial]` float32 and its reference, on the first file's grid.

    The reference is None for an unlabelled case. Masks keep their file's values (1 for all with
    merged labels); voxels of the dataset's ignore label become `Reference.ignore` and background.
    What is marked of labels that the case does not annotate becomes background as well.
    Raises `DatasetError` when channels are missing, `GeometryError` when files are on different
    grids (`check_grid`), `ContentError` for infinity, for NaN unless that is background, and for
    mask values that are no label.
    """
    image = read_image(files, dataset)
    reference = _ignoring(_read_reference(files, dataset, image.geometry), image.valid)
    return Case(files.case, image, reference, files.group)


def read_image(files: CaseFiles, dataset: Dataset) -> Volume:
    """Read the channels of one case alone, as `read_case` does."""
    check_channels(files, dataset)
    first = read_volume(files.images[0], raster_mm=files.pixel_mm)
    check_dims(files.images[0], first.geometry, dataset.dims)
    n_channels = len(dataset.channel_names)
    array = np.zeros((n_channels, *first.geometry.shape), dtype=np.float32)
    if is_colour(files, n_channels):
        array[:] = first.array  # a grey picture among coloured ones: three times the same
        if dataset.nan_background:
            array[:] = np.stack([nan_to_background(channel) for channel in array])
        check_finite(files.images[0], array)
        return Volume(array, first.geometry)
    valid = first.valid
    present = [c for c in range(n_channels) if c not in files.missing]
    for channel, file in zip(present, files.images, strict=True):
        volume = first
        if file != files.images[0]:
            volume = read_volume(file, raster_mm=files.pixel_mm)
            check_grid(
                file,
                volume.geometry,
                files.images[0],
                first.geometry,
                by_image=dataset.grid_of_image,
            )
            if volume.valid is not None:
                valid = volume.valid if valid is None else valid & volume.valid
        values: NDArray[Any] = volume.array
        if len(values) > 1:
            logger.warning("%s is in colour; only its brightness is read.", file)
            values = np.rint(np.tensordot(LUMA, values, axes=1))[np.newaxis]
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, an error below
            array[channel] = values[0]
        if values.dtype.kind == "f":
            if dataset.nan_background:
                array[channel] = nan_to_background(array[channel])
            check_finite(file, array[channel])
    return Volume(array, first.geometry, valid, files.missing)


def read_mask(
    path: Path, raster_mm: float | None = None, *, nan_background: bool = False
) -> Reference:
    """Read a label mask as a reference on its own grid; its lesions follow from the labels.

    Values must be whole and not negative; any storage type will do. Raises `ContentError`. With
    `nan_background` NaN is 0.
    """
    volume = read_volume(path, raster_mm=raster_mm, as_labels=True)
    array = volume.array[0]
    if array.dtype.kind == "f":
        if nan_background:
            array = np.where(np.isnan(array), array.dtype.type(0), array)
        broken = ~(np.isfinite(array) & (array == np.round(array)))
        if broken.any():
            raise ContentError(
                f"{path}: {int(broken.sum())} mask values are not integers, such as "
                f"{array[broken][0]}. Resample masks with nearest-neighbour interpolation."
            )
    lowest, highest = (array.min(), array.max()) if array.size else (0, 0)
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ContentError(f"{path}: mask values are {lowest} to {highest}; labels are 1, 2, …")
    values = array.astype(np.min_scalar_type(int(highest)), copy=False)
    return Reference(volume.geometry, labels=values)


def read_instances(
    path: Path, raster_mm: float | None = None, *, nan_background: bool = False
) -> Reference:
    """Read an instance mask on its own grid: ids become consecutive in ascending order, label 1."""
    reference = read_mask(path, raster_mm, nan_background=nan_background)
    values, inverse = np.unique(np.asarray(reference.labels), return_inverse=True)
    instances = np.cumsum(values > 0).astype(np.int32)[inverse.reshape(reference.geometry.shape)]
    labels, n_lesions = (instances > 0).astype(np.uint8), int(np.count_nonzero(values))
    return Reference(reference.geometry, labels, instances, (1,) * n_lesions)


def read_reference(
    files: CaseFiles, dataset: Dataset, geometry: Geometry | None = None
) -> Reference | None:
    """Read the reference of one case, whose image has the `geometry` (None: its header's).

    What a radiograph's padding hides becomes `ignore`, but for lesions.
    """
    geometry = geometry or read_geometry(files.images[0], raster_mm=files.pixel_mm)
    reference = _read_reference(files, dataset, geometry)
    for file in files.images if reference is not None and geometry.dims == 2 else ():
        if is_dicom_image(file):
            reference = _ignoring(reference, read_volume(file).valid)
    return reference


def _ignoring(reference: Reference | None, valid: NDArray[np.bool_] | None) -> Reference | None:
    """The reference with what is not valid ignored as well; a lesion drawn there is still one."""
    if reference is None or valid is None:
        return reference
    free = ~valid if reference.labels is None else ~valid & (reference.labels == 0)
    return replace(reference, ignore=free if reference.ignore is None else reference.ignore | free)


def _read_reference(files: CaseFiles, dataset: Dataset, geometry: Geometry) -> Reference | None:
    path = files.reference
    if "lesions" in files.annotations:
        reference = read_coco_reference(files, geometry, dataset.labels.merged)
    elif "boxes" in files.annotations:
        reference = read_boxes(files, geometry, merged=bool(dataset.labels.merged))
    elif path is None:
        return None
    elif is_dicom(path):  # whose segments are found by name
        labels = dataset.labels
        left_out = {} if labels.ignore is None else {labels.ignore: IGNORE}
        names = labels.merged or labels.mask_names
        reference = read_dicom_reference(path, geometry, {**names, **left_out})
        reference = _with_labels(path, reference, labels)
    else:
        has_ids = "instances" in files.annotations
        read = read_instances if has_ids else read_mask
        mm = geometry.spacing_mm[0]
        reference = read(path, mm, nan_background=dataset.nan_background)
        if not (is_raster(path) and reference.geometry.shape == geometry.shape):
            check_grid(
                path,
                reference.geometry,
                files.images[0] if files.images else path,
                geometry,
                by_image=dataset.grid_of_image,
            )
        reference = replace(reference, geometry=geometry)
        reference = reference if has_ids else _with_labels(path, reference, dataset.labels)
    if files.annotated:
        names = dataset.labels.mask_names
        annotated = {value: name in files.annotated for value, name in names.items()}
        reference = replace(reference, annotated=annotated)
        if reference.labels is not None:
            unknown = np.isin(reference.labels, reference.unannotated)
            reference = replace(reference, labels=np.where(unknown, 0, reference.labels))
    return reference


def _with_labels(path: Path, reference: Reference, labels: Labels) -> Reference:
    """Apply the dataset's labels to a mask: ignored and merged values, regions as one lesion."""
    values = np.asarray(reference.labels)
    left_out = labels.ignore
    known = {0, left_out, *labels.mask_values, *labels.merged}
    present = present_values(values)
    unknown = [value for value in present if value not in known]
    if unknown and labels.merged:
        text = "%s: the values %s are not among the labels; they count as lesion, as all do."
        warn_once(logger, text, path, unknown[:10])
    elif unknown:
        raise ContentError(
            f"{path}: the values {unknown[:10]} are none of the dataset's labels "
            f"{list(labels.mask_values)}. {_label_advice(present, labels)}"
        )
    if left_out in present:
        reference = replace(reference, ignore=values == left_out)
        values = np.where(values == left_out, 0, values).astype(values.dtype)
    binary = (values > 0).astype(np.uint8)
    reference = replace(reference, labels=binary if labels.merged else values)
    if not labels.regions:
        return reference
    lesions = lesion_instances(binary)
    return replace(reference, instances=lesions.instances, instance_labels=lesions.labels)


def _label_advice(present: list[int], labels: Labels) -> str:
    """Explain what mask values outside the labels may mean: ids, or one label written as 255."""
    marked = [value for value in present if value not in (0, labels.ignore)]
    if len(marked) > max(len(labels.mask_values), 2) and marked == list(range(1, len(marked) + 1)):
        return (
            f"Values 1 to {len(marked)} look like the numbers of lesions: name the masks in the "
            "column instances of a manifest.csv, or take every positive value as lesion by "
            "data.merge_labels=true."
        )
    return (
        "Name them in the labels, or take every positive value as lesion by "
        "data.merge_labels=true (255 often means 1)."
    )


def is_same_grid(seen: Geometry, expected: Geometry, *, by_image: bool = False) -> bool:
    """Return True if voxels with equal indices are at the same place of the patient.

    That is if the corners are less than half a voxel apart; with `by_image` equal shape and spacing
    are enough.
    """
    if seen.shape != expected.shape:
        return False
    is_near = seen.matches(expected, max(TOLERANCE_MM, _NEAR_VOXELS * min(expected.spacing_mm)))
    return is_near or (by_image and _has_same_spacing(seen, expected))


def _has_same_spacing(seen: Geometry, expected: Geometry) -> bool:
    return bool(np.allclose(seen.spacing_mm, expected.spacing_mm, rtol=_SAME_SPACING))


def check_grid(
    path: Path, seen: Geometry, other: Path, expected: Geometry, *, by_image: bool = False
) -> None:
    """Raise `GeometryError` naming both files if they are not on one grid (`is_same_grid`).

    Log a warning if their corners are more than 0.001 mm apart.
    """
    if seen.matches(expected, TOLERANCE_MM):
        return
    if is_same_grid(seen, expected, by_image=by_image):
        text = "%s: its header puts it elsewhere than %s (%s). It is read on the grid of %s."
        warn_once(logger, text, path, other.name, seen.apart_text(expected), other.name)
        return
    advice = "Resample one onto the other."
    if seen.shape == expected.shape and _has_same_spacing(seen, expected):
        advice = (
            "Resample one onto the other or, if they show the same voxels and only the headers "
            "differ, use data.geometry=image (evaluate: geometry=image), as nnU-Net does."
        )
    raise GeometryError(
        f"{path} and {other.name} are not on one grid (shapes {seen.shape} and "
        f"{expected.shape}): {seen.apart_text(expected)}. {advice}"
    )


def check_dims(path: Path, geometry: Geometry, dims: int) -> None:
    """Raise `GeometryError` unless the image has as many axes as the dataset's others."""
    if geometry.dims != dims:
        raise GeometryError(f"{path}: shape {geometry.shape}, but the others have {dims} axes.")


def check_finite(path: Path, values: NDArray[np.float32]) -> None:
    """Raise `ContentError` if voxels are NaN or infinite."""
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if not n_bad:
        return
    n_nan = int(np.count_nonzero(np.isnan(values)))
    if n_nan == n_bad and n_nan < values.size:
        raise ContentError(
            f"{path}: {n_nan} voxels are NaN. Replace them, or, if they are background, train with "
            "data.nan=background; the model then predicts such scans as well."
        )
    raise ContentError(f"{path}: {n_bad} voxels are NaN or infinity. Replace them.")


def nan_to_background(channel: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Replace NaN by the background of a channel: its lowest value, or 0 if that is lower.

    So it is 0 beside magnitudes and air beside Hounsfield units. A channel of NaN alone, or without
    any, is returned as it is.

    >>> nan_to_background(np.array([np.nan, 5.0])), nan_to_background(np.array([np.nan, -9.0]))
    (array([0., 5.]), array([-9., -9.]))
    """
    is_nan = np.isnan(channel)
    if not is_nan.any() or is_nan.all():
        return channel
    background = min(0.0, float(channel[~is_nan].min()))
    return np.where(is_nan, channel.dtype.type(background), channel)


def content_files(path: Path) -> tuple[Path, ...]:
    """The files an image consists of: itself, those of a series, or header and voxels."""
    if split_series(path) is not None:
        return tuple(series_headers(path))
    if path.is_dir():
        return tuple(sorted(file for file in path.iterdir() if is_dicom(file)))
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        return tuple(dict.fromkeys((path, itk.voxel_file(path))))
    return (path,)
