"""Preprocessing of a scan as nnU-Net does: transpose, crop, normalise, resize, thick slices.

The order of these steps is that of nnU-Net's `DefaultPreprocessor`. Arrays are resized to whole
numbers of voxels over the same extent. An axis of thick slices is resized separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Flags
from lesionseg.data.preprocess_image import to_canonical
from lesionseg.io.limits import check_resampled
from lesionseg.ops.components import foreground_slices
from lesionseg.ops.interpolation import resize
from lesionseg.plan.nnunet_preprocessing import NnunetNormalisation, NnunetRecipe, NnunetResampling

_SMALLEST_STD = 1e-8
# across the plane of a 2-D image; for PNG and TIFF, nnU-Net also assumes pixels of 1 mm
_SLICE_MM = 999.0


@dataclass(frozen=True, eq=False)
class Resizing:
    """The steps from the voxels of a file to the image of an nnU-Net model.

    `view` is the grid of the file's voxels in the axis order that the model's reader gives them.
    The recipe then transposes these axes to those of the network. `crop` is the part of the
    transposed volume that was kept before resizing, and `spacing` is the spacing of the transposed
    volume.
    """

    view: Geometry
    crop: tuple[slice, ...]
    spacing: tuple[float, ...]


def prepare_scan(
    volume: Volume, recipe: NnunetRecipe, where: str
) -> tuple[NDArray[np.float32], Resizing]:
    """Prepare a volume `[C, *file]` for the networks as nnU-Net does: crop, normalise, resize.

    The scan is cropped to the smallest box around the voxels that are not 0 in at least one
    channel. A scan of zeros is not cropped. `volume` itself is not changed.

    Args:
        volume: The volume.
        recipe: The preprocessing of the model.
        where: Name of the scan in the error message.

    Returns:
        The image `[C, *resized]` in the network's axis order, and the steps that restore the file's
        grid.

    Raises:
        GeometryError: If the resized volume has more voxels than `FileLimits` allows.
    """
    # axes in the order of the network
    view = to_canonical(volume) if recipe.reorients else volume
    array = view.array
    spacing = view.geometry.spacing_mm
    if view.geometry.dims == 2:
        array = array[:, np.newaxis]  # one slice
        pixel_mm = spacing if recipe.uses_pixel_size else (1.0, 1.0)
        spacing = (_SLICE_MM, *pixel_mm)
    array = array.transpose([0] + [1 + axis for axis in recipe.transpose])  # 0: the channels
    spacing = tuple(spacing[axis] for axis in recipe.transpose)
    # crop
    is_not_zero = np.logical_or.reduce(array != 0, axis=0)  # in any channel
    crop = foreground_slices(is_not_zero) or tuple(slice(0, n) for n in is_not_zero.shape)
    cropped = np.array(array[(slice(None), *crop)], np.float32, order="C")
    inside = is_not_zero[crop]
    # normalise and resize channel by channel
    target = network_spacing(recipe, spacing)
    shape = resized_shape(cropped.shape[1:], spacing, target)
    check_resampled(where, shape)
    if any(scheme.use_mask for scheme in recipe.normalisation):
        inside = fill_holes(inside)
    orders, thick_axis = spline_orders(recipe.image_resampling, spacing, target)
    image = torch.empty((len(cropped), *shape), dtype=torch.float32)
    for channel, scheme in enumerate(recipe.normalisation):
        normalise_channel(cropped[channel], scheme, inside)
        values = torch.from_numpy(cropped[channel])
        image[channel] = resize(values, shape, orders, clip_along=thick_axis)
    return image.numpy(), Resizing(view=view.geometry, crop=crop, spacing=spacing)


def network_spacing(recipe: NnunetRecipe, spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the spacing in mm to which a scan is resized before prediction.

    A 2-D network segments slices, so the distance of slices (the first axis) does not change.

    Args:
        recipe: The preprocessing of the model.
        spacing: Spacing of the scan in the network's axis order.
    """
    if recipe.network_dims == 2:
        return (spacing[0], *recipe.spacing)
    return recipe.spacing


def resized_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Return the shape of an array after resizing from `spacing` to the spacing `target`.

    The number of voxels along each axis is rounded (halves to even), and is at least 1.

    >>> resized_shape((10, 9), (3.0, 1.0), (1.0, 2.0))
    (30, 4)
    """
    return tuple(
        max(round(old / new * n), 1) for n, old, new in zip(shape, spacing, target, strict=True)
    )


def spline_orders(
    resampling: NnunetResampling, before: Sequence[float], after: Sequence[float]
) -> tuple[tuple[int, ...], int | None]:
    """Return with which spline order an array is resized along each axis.

    The order is `resampling.order`. If the scan has thick slices, the order across the slices is
    `resampling.order_z`, because splines across thick slices mix distant tissue.

    Args:
        resampling: The resampling of the model.
        before: Spacing before resizing.
        after: Spacing after resizing.

    Returns:
        The order of each axis, and the axis across thick slices, or None if there is none.
    """
    axis = _find_thick_axis(resampling, before, after)
    orders = [resampling.order] * len(before)
    if axis is not None:
        orders[axis] = resampling.order_z
    return tuple(orders), axis


def _find_thick_axis(
    resampling: NnunetResampling, before: Sequence[float], after: Sequence[float]
) -> int | None:
    """Find the axis across thick slices; None if the scan has no thick slices.

    The model's setting `separate_z` decides if there is such an axis:

    - False: there is none.
    - True: the axis with the coarsest spacing `before` resizing.
    - None: as for True if the spacing `before` is anisotropic (`_is_thick`). Otherwise the axis
      with the coarsest spacing `after` resizing, if that spacing is anisotropic.

    In all cases, the result is None if two axes have the coarsest spacing.
    """
    if resampling.separate_z is False:
        return None
    if resampling.separate_z is True or _is_thick(resampling, before):
        return _thickest(before)
    if _is_thick(resampling, after):
        return _thickest(after)
    return None


def _is_thick(resampling: NnunetResampling, spacing: Sequence[float]) -> bool:
    """Return True if a spacing is so anisotropic that its slices count as thick.

    The ratio of the coarsest and the finest spacing must exceed the model's threshold.
    """
    return max(spacing) / min(spacing) > resampling.threshold


def _thickest(spacing: Sequence[float]) -> int | None:
    """Return the axis with the coarsest spacing; None if several axes have the coarsest spacing."""
    coarsest = max(spacing)
    axes = [axis for axis, mm in enumerate(spacing) if coarsest / mm == 1]  # nnU-Net compares so
    return axes[0] if len(axes) == 1 else None


def fill_holes(mask: Flags) -> Flags:
    """Fill the holes of a mask `[z, y, x]`, as nnU-Net does before it normalises inside the mask.

    A hole is background that is not connected to the border of the array by faces of voxels.

    >>> fill_holes(np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]] * 3, bool)).sum()
    np.int64(24)
    >>> fill_holes(np.array([[[1, 1, 1], [1, z != 1, 1], [1, 1, 1]] for z in range(3)], bool)).sum()
    np.int64(27)
    """
    if mask.all():
        return mask
    # a border of background joins all background at the edges of the mask to one component
    background = np.pad(~mask, 1, constant_values=True)
    component = cc3d.connected_components(background, connectivity=6)
    outside = component[(0,) * mask.ndim]  # the component of a corner
    # without the border that was added
    result: Flags = component[tuple(slice(1, -1) for _ in mask.shape)] != outside
    return result


def normalise_channel(
    channel: NDArray[np.float32], scheme: NnunetNormalisation, inside: Flags
) -> None:
    """Normalise the intensities of a cropped channel `[z, y, x]` in place, as nnU-Net does.

    Args:
        channel: The channel.
        scheme: The normalisation of the channel. "NoNormalization" changes nothing.
        inside: Mask of the voxels that are not background. It is used only by a z-score with
            `use_mask`. Mean and standard deviation are then computed inside the mask, and only
            these voxels change.
    """
    if scheme.scheme == "ZScoreNormalization":
        values = channel[inside] if scheme.use_mask else channel
        mean = np.float32(values.mean(dtype=float))
        std = np.float32(max(values.std(dtype=float), _SMALLEST_STD))
        if scheme.use_mask:
            channel[inside] = (values - mean) / std
        else:
            channel -= mean
            channel /= std
    elif scheme.scheme == "CTNormalization":
        np.clip(channel, scheme.lower, scheme.upper, out=channel)
        channel -= np.float32(scheme.mean)
        channel /= np.float32(max(scheme.std, _SMALLEST_STD))
    elif scheme.scheme == "RescaleTo01Normalization":
        channel -= channel.min()
        channel /= max(channel.max(), np.float32(_SMALLEST_STD))
    elif scheme.scheme == "RGBTo01Normalization":
        channel /= np.float32(255)  # the highest value of 8 bits
