"""Reading of a case: channels on one grid, reference, NaN, mask values that are no labels."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Labels, Reference, Volume
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io.channels import check_channels, is_colour
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.grids import GridPair
from lesionseg.io.layouts.annotated_lesions import LESIONS_KEY
from lesionseg.io.layouts.drawn_lesions import read_annotated_reference
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.masks import read_instances, read_mask, require_exact_values
from lesionseg.io.raster import is_reoriented
from lesionseg.io.volumes import is_dicom_image, is_raster, read_geometry, read_volume
from lesionseg.io.warn_once import collect_warnings, warn_once
from lesionseg.io.worker import run_in_worker
from lesionseg.ops.components import fill_boxes, lesion_instances, present_values

logger = logging.getLogger(__name__)

_MERGE_LABELS = (
    "data.merge_labels=true (evaluate merge_labels=true), which makes every positive value a lesion"
)


def read_case(files: CaseFiles, dataset: Dataset) -> Case:
    """Read the image and the reference (ground truth) of one case.

    - Image and reference are on the grid of the first image file.
    - The image is `[C, *spatial]` float32. Missing channels are 0, see `Volume.missing`.
    - The mask keeps the label values of its file. With merged labels, each lesion voxel is 1.
    - Voxels with the dataset's ignore label are set in `Reference.ignore` and become background.
    - The padding of a radiograph is set in `Reference.ignore`, except for lesions drawn in it.
    - Lesions of labels that are not annotated in this case become background.

    Args:
        files: The files of the case.
        dataset: The dataset that the case belongs to.

    Returns:
        The case. Its reference is None if the case is unlabelled.

    Raises:
        DatasetError: If the files do not fit the dataset's channels, see `check_channels`.
        ReadError: If a file is damaged.
        GeometryError: If files are on different grids, see `GridPair.check`, or the image has
            another number of axes than the dataset.
        ContentError: If voxels are infinite, voxels are NaN although the dataset does not treat NaN
            as background, or a mask value is not a label.
    """
    image = read_image(files, dataset)
    reference = _ignore_invalid(_read_stored_reference(files, dataset, image.geometry), image.valid)
    return Case(files.case, image, reference, files.group)


def read_image(files: CaseFiles, dataset: Dataset, *, is_input: bool = False) -> Volume:
    """Read the image of one case without its reference.

    Warnings of the readers are logged, and are also stored in `Volume.warnings`, with file names
    instead of paths.

    Args:
        files: The files of the case.
        dataset: The dataset that the case belongs to.
        is_input: True if a trained model predicts the case. The channels of a trained model cannot
            be changed, so no message advises to change a setting of the training.

    Raises:
        LesionsegError: If the image cannot be used, see `read_case`.
    """
    check_channels(files, dataset)
    with collect_warnings() as warnings:
        image = _read_channels(files, dataset, is_input=is_input)
    for file in files.images:
        warnings = [text.replace(str(file), file.name) for text in warnings]
    return replace(image, warnings=tuple(warnings))


def _read_channels(files: CaseFiles, dataset: Dataset, *, is_input: bool) -> Volume:
    """Read the image files of one case as channels on the grid of the first file.

    Missing channels are 0. If the dataset's channels are red, green and blue, one picture gives all
    three channels, and the channels of a grey picture are equal. Otherwise each picture gives one
    channel, its brightness, with a warning if the picture is in colour.
    """
    first = read_volume(files.images[0], pixel_mm=files.pixel_mm)
    check_dims(files.images[0], first.geometry, dataset.dims, is_input=is_input)
    n_channels = len(dataset.channel_names)
    if is_colour(files, n_channels):
        colours = finite_values(files.images[0], first.array, nan_background=dataset.nan_background)
        # a grey picture gets equal channels
        array = np.repeat(colours, n_channels // len(colours), axis=0)
        return replace(first, array=array.astype(np.float32))
    array = np.zeros((n_channels, *first.geometry.shape), np.float32)  # 0 if missing
    valid = first.valid  # True outside the padding of a radiograph, or None
    present = [c for c in range(n_channels) if c not in files.missing]
    for channel, file in zip(present, files.images, strict=True):
        volume = first
        if file != files.images[0]:
            volume = read_volume(file, pixel_mm=files.pixel_mm)
            grids = GridPair(
                path=file,
                seen=volume.geometry,
                other=files.images[0],
                expected=first.geometry,
            )
            grids.check(by_image=dataset.grid_of_image)
            if volume.valid is not None:
                valid = volume.valid if valid is None else valid & volume.valid
        values: NDArray[Any] = volume.array
        if len(values) > 1:
            if n_channels > 1 or is_input:
                logger.warning("%s is in colour. Only its brightness is used.", file)
            else:  # the text is the same for all cases, so that it is shown once
                warn_once(
                    logger,
                    "%s: pictures are in colour. Only their brightness is used. Set "
                    "data.colour=true to use their three colours.",
                    dataset.root,
                )
            brightness = volume.brightness()
            # floating point is not rounded: the values may be from 0 to 1
            is_whole = values.dtype.kind in "iu"
            values = (np.rint(brightness) if is_whole else brightness)[np.newaxis]
        array[channel] = finite_values(file, values, nan_background=dataset.nan_background)[0]
    return Volume(array, first.geometry, valid, files.missing)


def read_reference(
    files: CaseFiles, dataset: Dataset, geometry: Geometry | None = None
) -> Reference | None:
    """Read the reference of one case as `read_case` does, without the voxels of the image.

    Only the pixels of a DICOM radiograph are read, because its padding is set in
    `Reference.ignore`.

    Args:
        files: The files of the case.
        dataset: The dataset that the case belongs to.
        geometry: The grid of the image. None reads it from the first file.

    Returns:
        The reference, or None if the case is unlabelled.

    Raises:
        LesionsegError: If the reference cannot be used, see `read_case`.
    """
    geometry = geometry or read_geometry(files.images[0], pixel_mm=files.pixel_mm)
    reference = _read_stored_reference(files, dataset, geometry)
    if reference is not None and geometry.dims == 2:
        for file in files.images:
            if is_dicom_image(file):
                reference = _ignore_invalid(reference, read_volume(file).valid)
    return reference


def _ignore_invalid(reference: Reference | None, valid: Flags | None) -> Reference | None:
    """Add the pixels outside `valid` to `Reference.ignore`, except for the pixels of lesions.

    `Reference.ignore` contains pixels that are neither learned nor scored. `valid` is False in the
    padding of a radiograph; None means that all pixels are valid. A reference of None is returned
    unchanged.
    """
    if reference is None or valid is None:
        return reference
    ignore = ~valid
    if reference.labels is not None:
        ignore &= reference.labels == 0
    elif reference.boxes is not None:
        ignore &= ~fill_boxes(reference.boxes, reference.geometry.shape)
    if reference.ignore is not None:
        ignore |= reference.ignore
    return replace(reference, ignore=ignore)


def _read_stored_reference(
    files: CaseFiles, dataset: Dataset, geometry: Geometry
) -> Reference | None:
    """Read the reference from COCO annotations, boxes of a table, a DICOM file or a mask.

    The reference of a case may annotate only some labels of the dataset. Lesions of the other
    labels become background. Return None if the case is unlabelled. Warn if the orientation tag of
    the picture says that viewers turn it.
    """
    labels = dataset.labels
    _warn_of_turn(files, dataset)
    reference = None
    if LESIONS_KEY in files.annotations:  # COCO annotations, or boxes of a table
        reference = read_annotated_reference(files, geometry, labels.merged)
    elif files.reference is not None:
        reference = _read_mask_file(files, dataset, geometry, files.reference)
    if reference is None:
        return None
    if files.annotated:  # the names of the annotated labels; if it is empty, all are annotated
        annotated = {value: name in files.annotated for value, name in labels.mask_names.items()}
        reference = replace(reference, annotated=annotated)
        if reference.labels is not None:
            is_unannotated = np.isin(reference.labels, reference.unannotated)
            reference = replace(reference, labels=np.where(is_unannotated, 0, reference.labels))
            if reference.instances is not None:
                reference = replace(
                    reference, instances=np.where(is_unannotated, 0, reference.instances)
                )
    return reference


def _warn_of_turn(files: CaseFiles, dataset: Dataset) -> None:
    """Warn if viewers turn the first picture of a labelled case, according to its orientation tag.

    Pictures are read upright, so masks and boxes must refer to the upright picture. The text is the
    same for all cases of a dataset, so that it is shown once.
    """
    is_picture = bool(files.images) and is_raster(files.images[0])
    # in the worker process, because a hostile file may crash or block the decoder
    if files.is_labelled and is_picture and run_in_worker(is_reoriented, files.images[0]):
        text = (
            "%s: pictures state a turn (the orientation tag of EXIF or TIFF) and are read upright, "
            "as viewers show them. Boxes and masks refer to the upright picture. If they were "
            "drawn on the stored one, remove the tag from the pictures."
        )
        warn_once(logger, text, dataset.root)


def _read_mask_file(
    files: CaseFiles, dataset: Dataset, geometry: Geometry, path: Path
) -> Reference:
    """Read the mask of a case in any format, and interpret its values by the dataset's labels.

    An instance mask, whose values are lesion ids, gives label 1 to all lesions. The reference gets
    the grid of the image, `geometry`, so that rounding in the header of the mask does not matter.
    Raise `GeometryError` if the mask is on another grid.
    """
    labels = dataset.labels
    if is_dicom(path):
        names = dict(labels.merged or labels.mask_names)  # of the segments, by mask value
        if labels.ignore is not None:
            names[labels.ignore] = IGNORE
        scans = list(filter(is_dicom_image, files.images))
        return _apply_labels(path, read_dicom_reference(path, geometry, names, scans), labels)
    has_ids = "instances" in files.annotations  # the mask is an instance mask
    read = read_instances if has_ids else read_mask
    pixel_mm = geometry.spacing_mm[0]  # for a picture, whose pixels are square
    reference = read(path, pixel_mm, nan_background=dataset.nan_background)
    image = files.images[0] if files.images else path
    GridPair(path, reference.geometry, image, geometry).check(by_image=dataset.grid_of_image)
    reference = replace(reference, geometry=geometry)
    return reference if has_ids else _apply_labels(path, reference, labels)


def _apply_labels(path: Path, reference: Reference, labels: Labels) -> Reference:
    """Interpret the values of a mask by the dataset's labels.

    - Voxels of the ignore value are set in `Reference.ignore` and become 0.
    - With merged labels, every other positive value becomes label 1. Unknown values count as
      lesion, too, with a warning.
    - With regions (labels that may overlap), each connected component of all regions together is a
      lesion instance.

    Raise `ContentError` if a value is unknown and labels are not merged, or if unknown values
    probably come from compression or interpolation (`require_exact_values`).
    """
    values = np.asarray(reference.labels)
    ignore_value = labels.ignore
    known = {0, ignore_value, *labels.mask_values, *labels.merged}
    present = present_values(values)
    unknown = [value for value in present if value not in known]
    if unknown:
        require_exact_values(path, values)
    if unknown and labels.merged:
        text = "%s: the values %s are not among the labels. They count as lesion, like all values."
        warn_once(logger, text, path, unknown[:10])
    elif unknown:
        raise ContentError(
            f"{path}: the values {unknown[:10]} are not among the dataset's labels "
            f"{list(labels.mask_values)}. {_label_advice(present, labels)}"
        )
    if ignore_value in present:
        reference = replace(reference, ignore=values == ignore_value)
        values = np.where(values == ignore_value, 0, values).astype(values.dtype)
    binary = (values > 0).astype(np.uint8)
    reference = replace(reference, labels=values)
    if labels.merged:
        one_label = (1,) * len(reference.instance_labels)
        reference = replace(reference, labels=binary, instance_labels=one_label)
    if not labels.regions:
        return reference
    instances, instance_labels = lesion_instances(binary)
    return replace(reference, instances=instances, instance_labels=instance_labels)


def _label_advice(present: list[int], labels: Labels) -> str:
    """Return the advice for the message about mask values that are not labels of the dataset.

    If the positive values are 1 to n, with n above 2 and above the number of labels, they are
    probably lesion ids. Otherwise the advice is to add the values to the labels or to merge labels.

    Args:
        present: The values in the mask.
        labels: The labels of the dataset.
    """
    marked = [value for value in present if value not in (0, labels.ignore)]
    are_consecutive = marked == list(range(1, len(marked) + 1))
    are_many = len(marked) > max(len(labels.mask_values), 2)
    if are_consecutive and are_many:
        return (
            f"Values 1 to {len(marked)} look like the numbers of lesions: name the masks in the "
            f"column instances of a manifest.csv, or set {_MERGE_LABELS}."
        )
    return f"Add them to the labels, or set {_MERGE_LABELS} (255 often means 1)."


def check_dims(path: Path, geometry: Geometry, dims: int, *, is_input: bool = False) -> None:
    """Raise `GeometryError` if an image has another number of axes than the dataset or the model.

    Args:
        path: The file of the image, for the message.
        geometry: The grid of the image.
        dims: The expected number of spatial axes.
        is_input: True if `dims` is the number of axes of a trained model. The message then speaks
            of the model instead of the dataset.
    """
    if geometry.dims == dims:
        return
    others = f"the other images of the dataset have {dims} axes. Remove it, or make two datasets."
    if is_input:
        others = f"the model reads images with {dims} axes. Leave it out, or use another model."
    raise GeometryError(f"{path}: the image has the shape {geometry.shape}, but {others}")


def read_finite(
    path: Path, grid: Geometry | None = None, *, matrix: Numbers | None = None
) -> Volume:
    """Read an image file, replace NaN by background, and resample the image onto another grid.

    For NaN, see `nan_to_background`.

    Args:
        path: The file.
        grid: The grid onto which the image is resampled linearly. None keeps the file's grid.
        matrix: Affine in RAS mm by which the image is transformed before it is resampled. None
            transforms nothing.

    Returns:
        The image. Channels that were resampled are float32, and 0 outside the file's grid.

    Raises:
        ReadError: If the file is damaged.
        ContentError: If a voxel is infinite, or all voxels are NaN.
    """
    volume = read_volume(path)
    array = finite_values(path, volume.array, nan_background=True)
    file_grid = volume.geometry if matrix is None else volume.geometry.move(matrix)
    if grid is None or file_grid.matches(grid):
        return replace(volume, array=array, geometry=file_grid)
    from lesionseg.ops import resample_to  # torch is imported only if it is needed

    return Volume(resample_to(array, file_grid, grid, "linear").numpy(), grid)


def finite_values(path: Path, stored: NDArray[Any], *, nan_background: bool) -> NDArray[Any]:
    """Convert floating-point channels to float32, and check that all voxels are finite.

    Channels of integers are returned unchanged.

    Args:
        path: The file, for messages.
        stored: The channels `[C, *spatial]` in the dtype of the file.
        nan_background: True replaces NaN, see `nan_to_background`. False makes NaN an error.

    Raises:
        ContentError: If a voxel is NaN, infinite or beyond the range of float32.
    """
    if stored.dtype.kind != "f":  # integers are always finite
        return stored
    with np.errstate(over="ignore"):  # too large values become infinite, which is reported below
        values: NDArray[Any] = stored.astype(np.float32, copy=False)
    if nan_background:
        values = np.stack([nan_to_background(channel) for channel in values])
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if not n_bad:
        return values
    n_large = int((np.isinf(values) & np.isfinite(stored)).sum())
    if n_large:
        raise ContentError(
            f"{path}: {n_large} voxels are beyond ±3.4e38, the range of 32-bit numbers. Divide all "
            "voxels by a constant."
        )
    n_nan = int(np.count_nonzero(np.isnan(values)))
    if n_nan == n_bad and n_nan < values.size:
        raise ContentError(
            f"{path}: {n_nan} voxels are NaN. Replace them. If they are background, train with "
            "data.nan=background, so that the model can also predict such scans."
        )
    raise ContentError(f"{path}: {n_bad} voxels are NaN or infinity. Replace them.")


def nan_to_background(channel: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Replace NaN in a channel by the value of the background: its lowest value, but at most 0.

    The background of a magnitude image (all values positive) is 0. The background of a CT is its
    lowest Hounsfield unit, air. A channel without NaN, or of only NaN, is returned unchanged.

    >>> nan_to_background(np.array([np.nan, 5.0])), nan_to_background(np.array([np.nan, -9.0]))
    (array([0., 5.]), array([-9., -9.]))
    """
    is_nan = np.isnan(channel)
    if not is_nan.any() or is_nan.all():
        return channel
    return np.where(is_nan, channel.dtype.type(min(0.0, float(channel[~is_nan].min()))), channel)
