"""Cases in memory: channels on one grid and the reference that belongs to them."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.errors import ContentError, DatasetError, GeometryError
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.radiograph import read_hidden
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.layouts.case_problems import LACKING
from lesionseg.io.layouts.coco_reference import read_coco_reference
from lesionseg.io.layouts.datalist import read_boxes
from lesionseg.io.layouts.luna16 import read_balls
from lesionseg.io.layouts.nndetection import read_instances
from lesionseg.io.layouts.nnunet_labels import IGNORE
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.ops.components import lesion_instances, present_values

logger = logging.getLogger(__name__)

TOLERANCE_MM = 1e-3


def read_case(files: CaseFiles, dataset: Dataset) -> Case:
    """Read one case: image `[C, *spatial]` float32 and its reference, on the first file's grid.

    The reference is None for an unlabelled case. Masks keep their file's values (1 for all with
    merged labels); voxels of the dataset's ignore label become `Reference.ignore` and background.
    What is marked of labels that the case does not annotate becomes background as well.
    Raises `DatasetError` when channels are missing, `GeometryError` when files lie further than
    0.001 mm apart, `ContentError` for NaN, infinity and mask values that are no label.
    """
    image = _read_image(files, dataset)
    reference = _ignoring(
        _read_reference(files, dataset, image.geometry),
        None if image.valid is None else ~image.valid,
    )
    return Case(case=files.case, image=image, reference=reference, group=files.group)


def read_image(files: CaseFiles, dataset: Dataset) -> Volume:
    """Read the channels of one case alone, as `read_case` does."""
    return _read_image(files, dataset)


def read_grid(files: CaseFiles, dataset: Dataset) -> Geometry:
    """The grid of a case's first file, from its header alone."""
    return read_geometry(files.images[0], raster_mm=files.pixel_mm)


def _read_image(files: CaseFiles, dataset: Dataset) -> Volume:
    check_channels(files, dataset)
    raster_mm = files.pixel_mm
    valid: NDArray[np.bool_] | None = None
    first = read_volume(files.images[0], raster_mm=raster_mm)
    check_dims(files.images[0], first.geometry, dataset.dims)
    n_channels = len(dataset.channel_names)
    array = np.zeros((n_channels, *first.geometry.shape), dtype=np.float32)
    if is_colour(files, n_channels):
        array[:] = first.array  # a grey picture among coloured ones: three times the same
        return Volume(array, first.geometry)
    present = [c for c in range(n_channels) if c not in files.missing]
    for channel, file in zip(present, files.images, strict=True):
        is_first = channel == present[0]
        volume = first if is_first else read_volume(file, raster_mm=raster_mm)
        check_grid(file, volume.geometry, files.images[0], first.geometry)
        if volume.valid is not None:
            valid = volume.valid if valid is None else valid & volume.valid
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
            array[channel] = _grey(file, volume)
        if volume.array.dtype.kind == "f":
            check_finite(file, array[channel])
    return Volume(array, first.geometry, valid, files.missing)


def read_mask(
    path: Path,
    *,
    labels: Collection[int] | None = None,
    ignore_label: int | None = None,
    merged_values: Collection[int] = (),
    united: bool = False,
    raster_mm: float | None = None,
) -> Reference:
    """Read a label mask as a reference on its own grid; its lesions follow from the labels.

    Values must be whole, not negative and, when `labels` are given, among them (or 0 or
    `ignore_label`); any storage type will do. Those in `merged_values` become 1. `united`: what
    touches is one lesion, whatever its values (regions). `ignore` is None where no voxel is
    ignored. Raises `ContentError` naming the file.
    """
    volume = read_volume(path, raster_mm=raster_mm, as_labels=True)
    values = _whole_numbers(path, volume.array[0])
    present = present_values(values)
    allowed = None if labels is None else {0, *labels, *merged_values}
    _check_values(path, present, allowed, ignore_label)
    ignore = None
    if ignore_label is not None and ignore_label in present:
        ignore = values == ignore_label
        values = np.where(ignore, 0, values).astype(values.dtype)
    if merged_values:
        values = (values > 0).astype(np.uint8)
    reference = Reference(volume.geometry, labels=values, ignore=ignore)
    return _united(reference) if united else reference


def _united(reference: Reference) -> Reference:
    """The reference with the components of all labels together as its lesions, of one label."""
    lesions = lesion_instances((np.asarray(reference.labels) > 0).astype(np.uint8))
    return replace(reference, instances=lesions.instances, instance_labels=lesions.labels)


def mask_mm(files: CaseFiles, image: Geometry) -> float | None:
    """Pixel size of a mask that states none: that of its image; None where pixels are no squares.

    A radiograph in DICOM knows its millimetres, a PNG drawn on it does not.
    """
    square = image.dims == 2 and np.ptp(image.spacing_mm) < TOLERANCE_MM / max(image.shape)
    return image.spacing_mm[0] if square else files.pixel_mm


def is_colour(files: CaseFiles, n_channels: int) -> bool:
    """Whether a case is one picture whose red, green and blue are the dataset's three channels."""
    one = len(files.images) == 1 and n_channels == 3 and not files.missing
    return one and files.images[0].suffix.lower() in RASTERS


def _grey(path: Path, volume: Volume) -> NDArray[Any]:
    """The one channel of a file; of a picture in colour its brightness, by ITU-R BT.601."""
    array: NDArray[Any] = volume.array
    if len(array) == 1:
        return np.asarray(array[0])
    logger.warning("%s is in colour: its brightness alone is read.", path)
    return np.asarray(np.rint(np.tensordot([0.299, 0.587, 0.114], array, axes=1)))


def check_channels(files: CaseFiles, dataset: Dataset) -> None:
    """Raise `DatasetError` unless the case has one file per channel that it may not lack."""
    n_files = len(files.images) + (len(files.missing) if dataset.may_lack else 0)
    if is_colour(files, len(dataset.channel_names)):
        return
    if not files.images or n_files != len(dataset.channel_names):
        raise DatasetError(
            f"The case {files.case!r} does not have one file per channel.",
            where=files.images[0].parent if files.images else None,
            seen=[file.name for file in files.images],
            expected=", ".join(dataset.channel_names),
            remedy=LACKING,
        )


def check_grid(path: Path, seen: Geometry, other: Path, expected: Geometry) -> None:
    """Raise `GeometryError` naming both files when their grids are not the same."""
    distance = seen.distance_mm(expected)
    if distance <= TOLERANCE_MM:
        return
    if seen.shape != expected.shape:
        raise GeometryError(
            f"Two files of a case differ in shape: {path.name} and {other.name}.",
            where=path,
            seen=seen.shape,
            expected=f"{expected.shape} as in {other}",
            remedy="Resample one onto the grid of the other.",
        )
    raise GeometryError(
        f"Two files of a case do not lie on one grid: {path.name} and {other.name}.",
        where=path,
        seen=f"corners up to {distance:.6g} mm apart",
        expected=f"the grid of {other} within {TOLERANCE_MM:g} mm",
        remedy="Register them, or copy the affine if both are known to have the same grid.",
    )


def read_reference(files: CaseFiles, dataset: Dataset, geometry: Geometry) -> Reference | None:
    """Read the reference of one case, whose image has the given `geometry`.

    What a radiograph's padding hides becomes `ignore`, but for lesions.
    """
    reference = _read_reference(files, dataset, geometry)
    for file in files.images if reference is not None and geometry.dims == 2 else ():
        if is_dicom(file):
            reference = _ignoring(reference, read_hidden(file))
    return reference


def _ignoring(reference: Reference | None, hidden: NDArray[np.bool_] | None) -> Reference | None:
    """The reference with hidden voxels ignored as well; a lesion drawn there is still one."""
    if reference is None or hidden is None:
        return reference
    free = hidden if reference.labels is None else hidden & (reference.labels == 0)
    return replace(reference, ignore=free if reference.ignore is None else reference.ignore | free)


def _read_reference(files: CaseFiles, dataset: Dataset, geometry: Geometry) -> Reference | None:
    reference = _read_marked(files, dataset, geometry)
    if reference is None or not files.annotated:
        return reference
    annotated = {value: name in files.annotated for value, name in dataset.labels.items()}
    reference = replace(reference, annotated=annotated)
    if reference.labels is None:
        return reference
    unknown = np.isin(reference.labels, reference.unannotated)
    return replace(reference, labels=np.where(unknown, 0, reference.labels))


def _read_marked(files: CaseFiles, dataset: Dataset, geometry: Geometry) -> Reference | None:
    if "lesions" in files.annotations:
        return read_coco_reference(files, geometry, dataset.merged_values)
    if "boxes" in files.annotations:
        return read_boxes(files, geometry, merged=bool(dataset.merged_values))
    if "balls" in files.annotations:
        return read_balls(files, geometry)
    if "instances" in files.annotations and files.reference is not None:
        reference = read_instances(files, mask_mm(files, geometry), bool(dataset.merged_values))
        check_grid(files.reference, reference.geometry, files.images[0], geometry)
        return replace(reference, geometry=geometry)
    if files.reference is None:
        return None
    if is_dicom(files.reference):
        return _read_named(files.reference, dataset, geometry)
    reference = read_mask(
        files.reference,
        labels=tuple(dataset.labels),
        ignore_label=dataset.ignore_label,
        merged_values=dataset.merged_values,
        united=bool(dataset.regions),
        raster_mm=mask_mm(files, geometry),
    )
    check_grid(files.reference, reference.geometry, files.images[0], geometry)
    return replace(reference, geometry=geometry)


def _read_named(path: Path, dataset: Dataset, geometry: Geometry) -> Reference:
    """A DICOM reference, whose segments are found by name; `ignore` is one where it has a value."""
    names, left_out = dict(dataset.labels), dataset.ignore_label
    if left_out is not None:
        names[left_out] = IGNORE
    reference = read_dicom_reference(path, geometry, names)
    if left_out is not None:
        values = np.asarray(reference.labels)
        ignore = values == left_out
        reference = replace(reference, labels=np.where(ignore, 0, values), ignore=ignore)
    return _united(reference) if dataset.regions else reference


def check_dims(path: Path, geometry: Geometry, dims: int) -> None:
    """Raise `GeometryError` unless the image has as many axes as the dataset's others."""
    if geometry.dims != dims:
        raise GeometryError(
            "The image does not have as many axes as the others of the dataset.",
            where=path,
            seen=geometry.shape,
            expected=f"{dims} spatial axes",
        )


def check_finite(path: Path, values: NDArray[np.float32]) -> None:
    """Raise `ContentError` when voxels are NaN or infinite."""
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise ContentError(
            "The image contains NaN or infinity.",
            where=path,
            seen=f"{n_bad} voxels",
            remedy="Replace them, for example with the value of air, and write the file again.",
        )


def _whole_numbers(path: Path, array: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Mask values in the smallest unsigned integer type that holds them."""
    if array.dtype.kind == "f":
        broken = ~(np.isfinite(array) & (array == np.round(array)))
        if broken.any():
            raise ContentError(
                "The mask contains values that are not integers.",
                where=path,
                seen=f"{int(broken.sum())} voxels, such as {array[broken][0]}",
                remedy="Resample masks with nearest-neighbour interpolation.",
            )
    lowest, highest = (array.min(), array.max()) if array.size else (0, 0)
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ContentError(
            "The mask contains values that cannot be labels.",
            where=path,
            seen=f"{lowest} to {highest}",
            expected="0 for background, then 1, 2, …",
        )
    return array.astype(np.min_scalar_type(int(highest)), copy=False)


def _check_values(
    path: Path, present: Sequence[int], allowed: Collection[int] | None, ignore_label: int | None
) -> None:
    unknown = [v for v in present if allowed is not None and v not in {*allowed, ignore_label}]
    if unknown:
        raise ContentError(
            "The mask contains values that the dataset does not list as labels.",
            where=path,
            seen=unknown[:10],
            expected=sorted(allowed or ()),
            remedy="Name them in the dataset's labels, or change them (255 often means 1).",
        )
