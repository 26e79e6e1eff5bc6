"""Preparation of images: orientation, resampling to the plan's spacing, normalised intensities.

After clipping, each scheme of `plan.Normalisation` except `local` is the same linear function for
all voxels of a channel. So the air of a brain scan becomes a constant below the tissue, and edges
between air and tissue keep their shape.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume, describe_sides
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.data.transforms import run_on_volume
from lesionseg.errors import ContentError, GeometryError, count
from lesionseg.io.limits import check_resampled
from lesionseg.ops.interpolation import resample_to
from lesionseg.plan.plan import Normalisation, Plan

logger = logging.getLogger(__name__)

# spacings and grids that differ by less than this (millimetres) are the same
SAME_MM = 1e-3
# percentiles of each case that the scheme `range` uses
RANGE_PERCENTILES = (0.5, 99.5)
LOCAL_STD_FLOOR = 0.1  # share of a channel's standard deviation; see `_add_local_contrast`
_SLAB_VOXELS = 1 << 18
# percentiles of larger arrays are computed from evenly spaced voxels, because sorting needs a copy
_MAX_SORTED = 1 << 22
# A larger scan has a wrong spacing if none of its axes has more voxels than this on the plan's
# grid.
_MIN_VOXELS = 2


def prepare_image(
    volume: Volume,
    plan: Plan,
    *,
    where: str | None = None,
    overwrite: bool = False,
    look: Callable[[Volume], None] | None = None,
) -> Volume:
    """Orient, resample and normalise an image.

    1. In 3-D the axes are permuted and flipped, so that they point along +S, +A, +R as closely as
       the file's axes allow. The same scan in another orientation therefore gives the same array.
    2. The image is resampled to `plan.spacing_mm` by linear interpolation. Along an axis that
       becomes coarser, values are means over each voxel. An axis whose spacing differs by at most
       1e-3 mm keeps its spacing.
    3. The channels are normalised.
    4. The plan's further transforms are applied.
    5. A missing channel is set to 0, its mean after normalisation.

    Args:
        volume: Image `[C, *file]` of any dtype.
        plan: The grid, channels and normalisation.
        where: Name of the case in messages.
        overwrite: True allows `volume.array` to be normalised in place if it is on the plan's grid,
            which saves the memory of a copy.
        look: Called with the resampled volume before normalisation, to measure it. It must not keep
            the array, which is then normalised in place.

    Returns:
        The image `[C, *plan]` in float32. Its geometry maps the new indices to the patient's
        millimetres. It has the missing channels, but no `valid` and no remarks.

    Raises:
        ContentError: If the number of channels or axes differs from the plan.
        GeometryError: If the spacing cannot be right, or the plan's grid would have more voxels
            than `FileLimits` allows.
        ConfigError: If a transform of `plan.prepare_extra` fails.
    """
    check_axes(volume, plan, where or "image")
    prepared = _resample_to_plan(volume, plan, where=where, overwrite=overwrite)
    if look is not None:
        look(prepared)
    normalise(prepared.array, plan.normalisation)
    if plan.prepare_extra:
        prepared = run_on_volume(plan.prepare_extra, prepared, where)
    for channel in volume.missing:
        prepared.array[channel] = 0
    return Volume(prepared.array, prepared.geometry, missing=volume.missing)


def check_axes(volume: Volume, plan: Plan, where: str) -> None:
    """Raise `ContentError` if the number of channels or spatial axes differs from the plan.

    `where` is the name of the image in the message.
    """
    n_channels = volume.array.shape[0]
    dims = volume.geometry.dims
    if n_channels != len(plan.channel_names) or dims != plan.dims:
        raise ContentError(
            f"{where}: {n_channels} channels and {dims} spatial axes; this model was trained "
            f"on {len(plan.channel_names)} ({', '.join(plan.channel_names)}) and {plan.dims}. "
            "Give an image with these channels and axes."
        )


def _resample_to_plan(volume: Volume, plan: Plan, *, where: str | None, overwrite: bool) -> Volume:
    """Orient and resample an image to the plan's grid, before it is normalised.

    Args:
        volume: The image.
        plan: The grid.
        where: Name of the case in messages.
        overwrite: True allows the result to share memory with `volume`.

    Returns:
        The image in float32 and C order.

    Raises:
        GeometryError: If at most two voxels of a larger scan would be left along each axis, because
            its spacing must be wrong, or if the plan's grid has more voxels than `FileLimits`
            allows.
    """
    oriented = to_canonical(volume)
    geometry = plan_geometry(oriented.geometry, plan)
    if geometry is oriented.geometry:  # nothing to resample
        array = np.ascontiguousarray(oriented.array, np.float32)
        if not overwrite and np.may_share_memory(array, volume.array):
            array = array.copy()
        return Volume(array, geometry)
    if max(geometry.shape) <= _MIN_VOXELS < max(oriented.geometry.shape):
        spacing = describe_sides(oriented.geometry.spacing_mm)
        raise GeometryError(
            f"{where or 'image'}: with voxels of {spacing} mm, the whole scan has only "
            f"{count(max(geometry.shape), 'voxel')} along its longest axis on the plan's grid. "
            "Correct the spacing or its unit in the file's header, or use a model that was trained "
            "on such scans."
        )
    check_resampled(where or "image", geometry.shape)
    # the plan's grid may extend beyond the volume, where zeros would look like air
    array = resample_to(oriented.array, oriented.geometry, geometry, "mean", edge="extend").numpy()
    return Volume(array, geometry)


def to_canonical(volume: Volume) -> Volume:
    """Return a view of the volume whose axes point along +S, +A, +R (superior, anterior, right).

    Oblique axes are assigned to the closest direction. Strides of the view may be negative. In 3-D,
    the view has only array and geometry. A 2-D volume is returned unchanged.
    """
    if volume.geometry.dims != 3:
        return volume
    geometry = volume.geometry
    cosines = geometry.affine[:3, :3] / geometry.spacing_mm
    old_axes = geometry.canonical_order  # of the new axes z, y and x
    new_to_old = np.zeros((4, 4))  # from an index of the view to one of the file
    new_to_old[3, 3] = 1
    slices = [slice(None)]  # of the channels, which keep their order
    for new, old in enumerate(old_axes):
        # array axes are z, y, x, but rows of the affine are x, y, z
        runs_up = cosines[2 - new, old] > 0
        new_to_old[old, new] = 1 if runs_up else -1
        new_to_old[old, 3] = 0 if runs_up else geometry.shape[old] - 1
        slices.append(slice(None, None, 1 if runs_up else -1))
    view = volume.array.transpose([0, *(1 + axis for axis in old_axes)])[tuple(slices)]
    return Volume(view, Geometry(view.shape[1:], geometry.affine @ new_to_old))


def plan_geometry(oriented: Geometry, plan: Plan) -> Geometry:
    """Return the grid with the plan's spacing that covers the same region as `oriented`.

    Both grids have the same centre. A shear, as of a tilted CT gantry, is removed. An axis keeps
    its spacing if it differs from the plan's by at most 1e-3 mm. If all axes keep their spacings
    and there is no shear, `oriented` itself is returned.
    """
    pairs = zip(oriented.spacing_mm, plan.spacing_mm, strict=True)
    target = [old if abs(old - planned) <= SAME_MM else planned for old, planned in pairs]
    linear = oriented.affine[:-1, :-1]
    axes = linear / np.linalg.norm(linear, axis=0)
    # a shear of 1e-3 moves the last of 500 voxels by half a voxel
    is_sheared = np.abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-3
    if target == list(oriented.spacing_mm) and not is_sheared:
        return oriented
    # Make the directions orthonormal; the direction of the first axis does not change. This is the
    # QR decomposition whose R has a positive diagonal. That of `np.linalg.qr` may have negative
    # signs, which would flip axes.
    upper = np.linalg.cholesky(linear.T @ linear).T
    directions = linear @ np.linalg.inv(upper)
    # the length in mm of `oriented` along each of the new directions
    extent = np.abs(directions.T @ linear) @ np.array(oriented.shape)
    shape = np.maximum(np.rint(extent / target), 1).astype(int)
    affine = np.eye(oriented.dims + 1)
    affine[:-1, :-1] = directions * target
    centre = oriented.to_mm((np.array(oriented.shape) - 1) / 2)
    affine[:-1, -1] = centre - affine[:-1, :-1] @ ((shape - 1) / 2)
    return Geometry(tuple(shape.tolist()), affine)


def normalise(array: NDArray[np.float32], schemes: Sequence[Normalisation]) -> None:
    """Normalise an image `[C, *spatial]` float32 in place, channel c by `schemes[c]`.

    Each channel passes these steps:

    1. The channel is clipped. The limits are `lower` and `upper` of the scheme. With `range` and
       `local`, the limits are the channel's 0.5 and 99.5 percentiles, which are estimated from
       evenly spaced voxels of a large channel.
    2. The mean is subtracted, and the result is divided by the standard deviation. With `dataset`,
       the scheme contains mean and standard deviation. With `zscore`, they are computed from the
       channel's voxels other than 0, and with all other schemes from all voxels.
    3. With `local`, each voxel's difference from its surroundings is added to the channel.

    With `zscore`, `range` and `local`, a channel becomes 0 if it is constant or has no voxel other
    than 0. With `zscore`, a mask whose voxels are 0 or v becomes −v and 0, because its voxels other
    than 0 have no standard deviation to divide by. Such a mask should have the values 0 and 1.
    Temporary arrays of a large channel are smaller than half a channel, except with `local`: it
    needs as much memory as four channels.
    """
    for channel, scheme in zip(array, schemes, strict=True):
        inside = None  # all voxels
        if scheme.scheme == "zscore":
            inside = channel != 0  # before clipping, zero means air
        lower = scheme.lower
        upper = scheme.upper
        if scheme.scheme in ("range", "local"):
            step = math.ceil(channel.size / _MAX_SORTED)
            sample = channel.reshape(-1)[::step]  # evenly spaced voxels
            lower, upper = np.percentile(sample, RANGE_PERCENTILES).tolist()
        if lower is not None or upper is not None:
            np.clip(channel, lower, upper, out=channel)
        mean = scheme.mean
        std = scheme.std
        if scheme.scheme != "dataset":
            mean, std = _measure_moments(channel, inside)
        channel -= np.float32(mean)
        if std > 0:  # 0 for a constant channel
            channel /= np.float32(std)
        if scheme.scheme == "local":
            _add_local_contrast(channel, scheme.sigma)


def _add_local_contrast(channel: NDArray[np.float32], sigma: float) -> None:
    """Add to each voxel its difference from its surroundings, in standard deviations, in place.

    Mean and standard deviation of the surroundings are weighted by about a Gaussian of `sigma`
    voxels. The normalisation scheme `local` uses this for radiographs.

    Schilham et al. 2006 (Medical Image Analysis 10:247) replace a radiograph by its local contrast
    before they search nodules. Here the contrast is added instead, so that the brightness over
    larger distances remains.
    `LOCAL_STD_FLOOR` is added to the deviation, so that noise in a uniform region, such as outside
    the body, is not enlarged.
    """
    mean = _local_mean(channel, sigma)
    variance = _local_mean(np.square(channel), sigma) - np.square(mean)
    contrast = np.subtract(channel, mean, out=mean)
    # Rounding may give negative variances. The floor is a share of the channel's standard
    # deviation, which is 1 here.
    contrast /= np.sqrt(variance.clip(min=0)) + np.float32(LOCAL_STD_FLOOR)
    channel += contrast


def window_of(sigma: float) -> int:
    """Return the window, in voxels, of three successive running means that approximate a Gaussian.

    `sigma` is the Gaussian's standard deviation in voxels. Three means over w voxels together have
    the variance (w² − 1) / 4, so w is √(4σ² + 1), rounded to an odd number (Wells 1986, IEEE PAMI
    8:234). Unlike a Gaussian filter, running means need the same time for any σ.

    >>> window_of(24)
    49
    """
    return 2 * round((math.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1


def _local_mean(channel: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Return the mean of each voxel's surroundings, weighted by about a Gaussian of `sigma` voxels.

    Three running means replace the Gaussian (`window_of`). The channel is mirrored at its edges.
    """
    window = window_of(sigma)
    smoothed = channel
    for _ in range(3):
        smoothed = ndimage.uniform_filter(smoothed, window, mode="reflect")
    return smoothed


def _measure_moments(channel: NDArray[np.float32], inside: Flags | None) -> tuple[float, float]:
    """Return mean and standard deviation of the voxels for which `inside` is True.

    All voxels count if `inside` is None. The standard deviation of a constant channel is 0. Mean
    and standard deviation are 0 if no voxel counts. The channel is read in slabs, so that no copy
    in float64 is as large as the channel.
    """
    n_voxels = 0
    total = 0.0
    for values in _iterate_slabs(channel, inside):
        n_voxels += values.size
        total += float(values.sum())
    if n_voxels == 0:
        return 0.0, 0.0
    mean = total / n_voxels
    squares = 0.0
    for values in _iterate_slabs(channel, inside):
        squares += float(np.square(values - mean).sum())
    std = float(np.sqrt(squares / n_voxels))
    # float32 rounds the mean, so a constant channel differs a little from it
    is_varying = std > 1e-6 * abs(mean)
    return mean, (std if is_varying else 0.0)


def _iterate_slabs(channel: NDArray[np.float32], inside: Flags | None) -> Iterator[Numbers]:
    """Yield the intensities for which `inside` is True in float64, some rows at a time.

    If `inside` is None, all intensities are yielded. The rows of a slab have about `_SLAB_VOXELS`
    voxels.
    """
    # `size / len` are the voxels of a row
    n_rows = max(1, _SLAB_VOXELS * len(channel) // max(channel.size, 1))
    for start in range(0, len(channel), n_rows):
        slab = channel[start : start + n_rows]
        yield (slab if inside is None else slab[inside[start : start + n_rows]]).astype(float)
