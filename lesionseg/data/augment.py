"""Augmentation of tiles: rotation, scale, flips, elastic, noise, blur, contrast, gamma.

Image and masks are warped together.

Changes are drawn before a tile is read, because a rotated tile needs voxels from around it.
Otherwise its corners would be empty.

A spatial transform is either a set of flips, or one map that rotates, scales, shears, flips and
deforms. The deformation is a cubic B-spline of random displacements at the knots of a coarse grid
(Rueckert et al. 1999, IEEE TMI 18:712). The spline is smooth and nowhere exceeds the largest
displacement of a knot. It has no folds if these displacements are below 0.4 times the distance of
the knots (Choi and Lee 2000).

Intensities then change in this order: lower resolution and blur, contrast, brightness, noise,
gamma.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.config import AugmentConfig
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import ConfigError
from lesionseg.ops.interpolation import multiply_along
from lesionseg.ops.warp import Warp, warp_linear, warp_nearest
from lesionseg.plan.plan import Plan

TileTensors = dict[str, Tensor]

# Axes are not rotated into each other if the ratio of their spacings is above this.
ANISOTROPY = 2.0
# A tile is thin along an axis if another one covers more than this many times its millimetres.
# nnU-Net warps tiles that are as anisotropic as this only in their plane.
THINNESS = 3.0
FLIP_PROBABILITY = 0.5  # for each axis
SCALE = 0.2  # largest relative change of size
SHEAR = 0.05  # largest displacement per unit of distance along another axis
ELASTIC_SHARE = 0.3  # share of the rotated tiles that are also deformed
# The largest displacement of a deformation and the distance of its knots, both in voxels of the
# finest axis. The displacement must be below 0.4 times the distance.
ELASTIC_VOXELS = 4.0
ELASTIC_SPACING = 24.0
# The following values are for the normalised image.
NOISE_STD = 0.15  # largest standard deviation
BRIGHTNESS = 0.2  # largest summand
CONTRAST = 0.25  # largest difference of the factor from 1
GAMMA = (0.7, 1.5)
BLUR_SIGMA = (0.4, 1.0)  # voxels
LOW_RESOLUTION = (0.5, 1.0)  # share of the voxels along each axis that are kept
_TRUNCATE = 4.0  # the kernel of a blur ends at so many standard deviations


@dataclass(frozen=True, eq=False)
class ElasticDeformation:
    """A smooth random displacement, given at the knots of a grid.

    Attributes:
        knots: Displacement in voxels at each knot, `[dims, *grid]`.
        spacing: Distance of the knots in voxels along each axis.
    """

    knots: NDArray[np.float32]
    spacing: tuple[float, ...]

    def interpolate(self, positions: Sequence[Numbers]) -> Tensor:
        """Return the displacement in voxels at each point of a grid, `[dims, *out]` float32.

        Args:
            positions: For each axis, the coordinates of the grid points, in voxels from the second
                knot. The first knot is outside the tile.
        """
        axes = zip(positions, self.spacing, self.knots.shape[1:], strict=True)
        # the spline is separable: one matrix `[out, knots]` per axis
        weights = [torch.from_numpy(_spline_weights(x, distance, n)) for x, distance, n in axes]
        return multiply_along_axes(torch.from_numpy(self.knots), weights)


@dataclass(frozen=True, eq=False)
class SpatialTransform:
    """A map from each voxel of a warped tile to its source, which may be outside the tile.

    A voxel at x from the centre of the tile is read at linear · x from the centre, plus the
    displacement of `deformation`.

    Attributes:
        flips: Reversed axes.
        linear: Matrix `[dims, dims]` in voxels, which includes the flips. None for a tile that is
            only flipped, without interpolation.
        deformation: Displacement in addition to `linear`.
    """

    flips: tuple[int, ...] = ()
    linear: Numbers | None = None
    deformation: ElasticDeformation | None = None

    def matrix(self, tile_shape: Sequence[int]) -> Numbers:
        """Return the map from voxels of the warped tile to the voxels that they are read from.

        Both voxel indices are counted from the first voxel of the tile. The centre of the tile is
        fixed. `deformation` is not included.

        Returns:
            Matrix and offset as one array `[dims, dims + 1]`, the offset as the last column.
        """
        linear = self.linear
        if linear is None:
            linear = np.diag([-1.0 if a in self.flips else 1.0 for a in range(len(tile_shape))])
        # the offset maps the centre to itself
        middle = (np.array(tile_shape) - 1) / 2
        return np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1)

    def source(self, tile_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return start and stop, along each axis, of the region that contains all voxels to read.

        Start and stop are counted from the tile's first voxel: a start may be negative, and a stop
        may be beyond the tile. Without `linear`, the region is the tile, because flips only reorder
        its voxels.
        """
        if self.linear is None:
            return tuple((0, n) for n in tile_shape)
        matrix = self.matrix(tile_shape)
        # an affine map reaches its extremes at the corners
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in tile_shape])))
        corners_read = corners @ matrix[:, :-1].T + matrix[:, -1]
        # a spline never exceeds its largest knot
        margin = 0 if self.deformation is None else np.abs(self.deformation.knots).max(initial=0)
        low = np.floor(corners_read.min(axis=0) - margin)
        high = np.ceil(corners_read.max(axis=0) + margin)
        return tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))

    def warp(self, tile_shape: Sequence[int], out_shape: Sequence[int]) -> Warp:
        """Return the warp that computes the warped tile from an array of the region `source`.

        `out_shape` is the shape of the output. If it is smaller than `tile_shape`, the output
        covers the same region at a lower resolution.
        """
        step = np.array(tile_shape) / np.array(out_shape)  # voxels of the tile per output voxel
        matrix = self.matrix(tile_shape)
        # Input indices now count from the start of the region. Output voxel 0 has its centre at
        # (step − 1) / 2 voxels of the tile.
        scaled = matrix.copy()
        scaled[:, :-1] *= step
        starts = [start for start, _ in self.source(tile_shape)]
        scaled[:, -1] += matrix[:, :-1] @ ((step - 1) / 2) - starts
        deformation = None
        if self.deformation is not None:
            centres = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(out_shape, step, strict=True)]
            deformation = self.deformation.interpolate(centres)
        return Warp(scaled, tuple(out_shape), deformation)


@dataclass(frozen=True)
class Intensity:
    """Changes of the intensities of one tile. The default values change nothing.

    Attributes:
        coarse: Share of the voxels along each axis that are kept. The image is then enlarged to its
            former size.
        blur: Standard deviation in voxels along each axis.
        contrast: Factor of each channel.
        brightness: Number that is added to each channel.
        noise: Standard deviation of the noise.
        gamma: Exponent that is applied to each channel scaled to 0 … 1. Mean and standard deviation
            of the channel are kept.
        seed: Seed of the noise.
    """

    coarse: float = 1.0
    blur: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    brightness: tuple[float, ...] | None = None
    noise: float = 0.0
    gamma: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class AugmentationParams:
    """All changes of one tile: a few numbers, which are drawn before the tile is read.

    `missing` contains the channels that are set to zero at the end, like channels without a file.
    """

    spatial: SpatialTransform
    intensity: Intensity
    missing: tuple[int, ...] = ()


NO_AUGMENTATION = AugmentationParams(SpatialTransform(), Intensity())


def tile_generator(*key: int) -> torch.Generator:
    """Return a random generator whose state depends only on the key, such as (seed, epoch, index).

    A tile thus has the same random changes in every process and order.
    """
    # a hash of the key, so that neighbouring tiles have unrelated states
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class RandomDraws:
    """The kinds of draws from a random number generator. Each draw advances the generator."""

    generator: torch.Generator

    def uniform(self, *shape: int) -> Numbers:
        """Draw an array of `shape` of random numbers, uniform in −1 … 1."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return drawn.mul_(2).sub_(1).numpy()  # torch draws in 0 … 1

    def happens(self, probability: float) -> bool:
        """Draw a random decision: True with `probability`, otherwise False."""
        return float(torch.rand((), generator=self.generator)) < probability

    def numbers(
        self, probability: float, bounds: Sequence[float], n: int
    ) -> tuple[float, ...] | None:
        """Draw `n` random numbers with `probability`, otherwise return None.

        Args:
            probability: Probability that numbers are returned.
            bounds: Lower and upper bound. The numbers are uniform between these bounds.
            n: How many numbers are drawn.
        """
        # The numbers are always drawn, so that later draws do not depend on the probability.
        happens = self.happens(probability)
        shares = (self.uniform(n) + 1) / 2  # 0 … 1
        low, high = bounds
        return tuple(map(float, low + (high - low) * shares)) if happens else None

    def seed(self) -> int:
        """Draw an integer in 0 … 2**62 − 1, used as the seed of another random generator."""
        return int(torch.randint(2**62, (), generator=self.generator))


def build_augmentation(settings: AugmentConfig, plan: Plan) -> "Augmentation | None":
    """Build the augmentation of this plan's tiles. Return None if the settings change nothing.

    Settings change nothing if the probabilities of spatial and of intensity changes are 0 and no
    axis is flipped. Raise `ConfigError` if the plan does not have an axis of `settings.flip_axes`.
    """
    augmentation = Augmentation(settings, plan)
    is_spatial = settings.spatial_probability or augmentation.flip_axes
    return augmentation if is_spatial or settings.intensity_probability else None


class Augmentation:
    """A source of random changes of tiles.

    By default, tiles are flipped along the axes that the plan allows. If slices are thick or the
    tile is thin, tiles are rotated only within the slices. CT has no gamma, because its values are
    physical quantities. Image and masks are each warped at most once. Voxels from outside the
    volume are 0 before the intensities change, and not valid.

    Args:
        settings: Probabilities and ranges. `flip_axes` replaces the axes that the plan allows.
        plan: Tile shape, spacing, channels and modality.

    Raises:
        ConfigError: If the plan does not have the flip axes.
    """

    def __init__(self, settings: AugmentConfig, plan: Plan) -> None:
        self.settings = settings
        self.plan = plan
        self.flip_axes = plan.allowed_flips  # unless the settings name other axes
        if settings.flip_axes is not None:
            self.flip_axes = tuple(settings.flip_axes)
        if not set(self.flip_axes) <= set(range(plan.dims)):
            raise ConfigError(
                f"augment.flip_axes={list(self.flip_axes)}: the plan has the axes 0 to "
                f"{plan.dims - 1}. Choose among them."
            )

    def draw(self, generator: torch.Generator) -> AugmentationParams:
        """Draw the changes of one tile, before the tile is read.

        The same state of the generator gives the same changes.
        """
        draw = RandomDraws(generator)
        return AugmentationParams(self._draw_spatial(draw), self._draw_intensity(draw))

    def _draw_spatial(self, draw: RandomDraws) -> SpatialTransform:
        """Draw the spatial changes of one tile.

        Each axis of `flip_axes` is reversed with `FLIP_PROBABILITY`. With
        `settings.spatial_probability`, the tile is also rotated, sheared and scaled, and a share of
        `ELASTIC_SHARE` of such tiles is also deformed.
        """
        settings = self.settings
        dims = self.plan.dims
        flips = tuple(axis for axis in self.flip_axes if draw.happens(FLIP_PROBABILITY))
        if not draw.happens(settings.spatial_probability):
            return SpatialTransform(flips)
        spacing = np.array(self.plan.spacing_mm)
        extent = spacing * self.plan.tile_shape
        # Thick slices and thin tiles are warped only within their plane: pairs of axes turn and
        # shear only if their spacings and extents are similar. An axis is scaled and deformed only
        # if its spacing is fine, and if the tile is not thin along it. Otherwise, most voxels of a
        # thin volume would be read from outside it.
        is_similar = _ratios(spacing) <= ANISOTROPY  # for each pair of axes `[dims, dims]`
        is_similar &= _ratios(extent) <= THINNESS
        is_fine = spacing / spacing.min() <= ANISOTROPY
        may_deform = is_fine & (extent[is_fine].max() / extent <= THINNESS)
        angles = math.radians(settings.rotate_degrees) * draw.uniform(dims, dims) * is_similar
        shear = SHEAR * draw.uniform(dims, dims) * is_similar * ~np.eye(dims, dtype=bool)
        scale = np.diag(1 + SCALE * draw.uniform(dims) * may_deform)
        # the matrix in millimetres, then in voxels: an index times its spacing is a distance
        linear_mm = rotation_matrix(angles) @ (np.eye(dims) + shear) @ scale
        linear = linear_mm * spacing / spacing[:, None]
        linear = linear @ np.diag([-1.0 if axis in flips else 1.0 for axis in range(dims)])
        if not draw.happens(ELASTIC_SHARE):
            return SpatialTransform(flips, linear)
        return SpatialTransform(flips, linear, self._draw_deformation(draw, may_deform))

    def _draw_deformation(self, draw: RandomDraws, may_deform: Flags) -> ElasticDeformation:
        """Draw the random displacements at the knots of an elastic deformation.

        The distance of the knots and the largest displacement are equal in millimetres along all
        axes, so they are fewer voxels along a coarse axis. The distance is at least one voxel.

        Args:
            draw: The random draws of the tile.
            may_deform: True for the axes `[dims]` along which voxels are displaced.
        """
        spacing = np.array(self.plan.spacing_mm)
        coarseness = spacing / spacing.min()  # 1 for the finest axis
        knot_distance = tuple(map(float, (ELASTIC_SPACING / coarseness).clip(1)))
        # a cubic B-spline needs 3 knots more than intervals, of which a started one counts, too
        lengths = np.subtract(self.plan.tile_shape, 1)
        n_knots = (np.floor(lengths / knot_distance) + 4).astype(int).tolist()
        largest = ELASTIC_VOXELS / coarseness * may_deform  # of each component, in voxels
        shares = draw.uniform(len(spacing), *n_knots)  # from −1 to 1
        # transposed, because `largest` belongs to the first axis
        return ElasticDeformation((shares.T * largest).T.astype(np.float32), knot_distance)

    def _draw_intensity(self, draw: RandomDraws) -> Intensity:
        """Draw the changes of the intensities of one tile.

        Each change is drawn independently with `settings.intensity_probability`. CT has no gamma.
        """
        n_channels = len(self.plan.channel_names)
        p = self.settings.intensity_probability

        def draw_one(bounds: Sequence[float], unchanged: float) -> float:
            """Draw a number within `bounds` with probability `p`, otherwise return `unchanged`."""
            numbers = draw.numbers(p, bounds, n=1)
            return unchanged if numbers is None else numbers[0]

        return Intensity(
            coarse=draw_one(LOW_RESOLUTION, unchanged=1.0),
            blur=draw.numbers(p, BLUR_SIGMA, self.plan.dims),
            contrast=draw.numbers(p, (1 - CONTRAST, 1 + CONTRAST), n_channels),
            brightness=draw.numbers(p, (-BRIGHTNESS, BRIGHTNESS), n_channels),
            noise=draw_one((0, NOISE_STD), unchanged=0.0),
            # the values of CT are physical quantities
            gamma=1.0 if self.plan.modality == "ct" else draw_one(GAMMA, unchanged=1.0),
            seed=draw.seed(),
        )


def apply_augmentation(
    piece: TileTensors, change: AugmentationParams, shape: tuple[int, ...]
) -> TileTensors:
    """Compute an augmented tile from the region of the volume that the tile is read from.

    Images are interpolated linearly. Masks get the nearest voxel and keep their dtype. The channels
    `change.missing` become 0.

    Args:
        piece: `image` `[C, *source]` (any float) and masks `[*source]` of the region. The region
            is `change.spatial.source(shape)`, relative to the start of the tile.
        change: The changes, drawn by `Augmentation.draw`.
        shape: Shape of the tile.

    Returns:
        The tile: `image` `[C, *shape]` float32 and the masks `[*shape]` under the keys of `piece`.
    """
    spatial = change.spatial
    keys = [key for key in piece if key != "image"]
    masks = [piece[key] for key in keys]
    if spatial.linear is not None:  # `linear` includes the flips
        masks = warp_nearest(masks, spatial.warp(tile_shape=shape, out_shape=shape))
    elif spatial.flips:  # without `linear`, the region has the shape of the tile
        masks = [mask.flip(spatial.flips) for mask in masks]
    image = _change_intensity(
        _warp_and_blur(piece["image"], spatial, change.intensity, shape), change.intensity
    )
    for channel in change.missing:
        image[channel] = 0
    return {"image": image, **dict(zip(keys, masks, strict=True))}


def _warp_and_blur(
    image: Tensor, spatial: SpatialTransform, change: Intensity, shape: tuple[int, ...]
) -> Tensor:
    """Apply the spatial changes, the lower resolution and the blur of an augmentation to an image.

    A lower resolution needs no second warp: the image is warped to a coarse grid, and then one
    matrix per axis enlarges and blurs the image.

    Args:
        image: Image `[C, *source]` of the region to read.
        spatial: The spatial changes.
        change: The changes of intensities. Only `coarse` and `blur` are applied here.
        shape: Shape of the tile.

    Returns:
        A new image `[C, *shape]` in float32.
    """
    coarse_shape = tuple(max(1, round(n * change.coarse)) for n in shape)
    if spatial.linear is not None or coarse_shape != shape:
        image = warp_linear(image, spatial.warp(tile_shape=shape, out_shape=coarse_shape))
    elif spatial.flips:
        image = image.flip([1 + axis for axis in spatial.flips]).float()  # axis 0: channels
    else:
        image = image.to(torch.float32, copy=True)  # intensities are changed in place
    if change.blur is not None or coarse_shape != shape:
        sigmas = change.blur or (0.0,) * len(shape)  # σ 0 means no blur
        weights = [
            torch.from_numpy(
                (_blur_matrix(n, sigma) @ _enlarge_matrix(n, n_coarse)).astype(np.float32)
            )
            for n, n_coarse, sigma in zip(shape, coarse_shape, sigmas, strict=True)
        ]
        image = multiply_along_axes(image, weights)
    return image


def _change_intensity(image: Tensor, change: Intensity) -> Tensor:
    """Change contrast, brightness, noise and gamma of an image `[C, *shape]`, in this order.

    Return the changed image. The input may be overwritten. Other changes are not applied.
    """
    per_channel = [-1] + [1] * (image.ndim - 1)  # a shape that broadcasts against the image
    if change.contrast is not None:
        image = image.mul_(torch.tensor(change.contrast).reshape(per_channel))
    if change.brightness is not None:
        image = image.add_(torch.tensor(change.brightness).reshape(per_channel))
    if change.noise:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(change.seed))
        image = image.add_(noise, alpha=change.noise)
    if change.gamma == 1:
        return image
    # Scale each channel to 0 … 1, raise it to the power gamma, and restore mean and deviation.
    flat = image.flatten(1)
    low = flat.amin(1, keepdim=True)
    high = flat.amax(1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    # the standard deviation times a constant, which cancels in the quotient below
    std = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)
    # 1e-7 avoids a division by 0 for a constant channel
    curved = flat.sub_(low).div_((high - low).clamp_min(1e-7))
    curved.pow_(change.gamma)
    curved.sub_(curved.mean(1, keepdim=True))
    curved_std = torch.linalg.vector_norm(curved, dim=1, keepdim=True)
    return curved.mul_(std / curved_std.clamp_min(1e-7)).add_(mean).view(image.shape)


def _ratios(values: Numbers) -> Numbers:
    """Return the ratio of the larger to the smaller number for each pair of `values`, `[n, n]`.

    Used to test whether two axes have similar spacings or extents.
    """
    return np.maximum.outer(values, values) / np.minimum.outer(values, values)


def rotation_matrix(angles: Numbers) -> Numbers:
    """Return the matrix `[n, n]` that rotates each plane of two axes by its angle.

    The plane of the axes a < b is rotated by `angles[a, b]` radians from axis a towards axis b. The
    planes are rotated one after another, in the order of (a, b). Other entries of `angles` have no
    effect.
    """
    rotation = np.eye(len(angles))
    for a, b in itertools.combinations(range(len(angles)), 2):
        plane = np.eye(len(angles))
        cos = math.cos(angles[a, b])
        sin = math.sin(angles[a, b])
        plane[a, a] = cos
        plane[b, b] = cos
        plane[a, b] = -sin
        plane[b, a] = sin
        rotation = plane @ rotation
    return rotation


def multiply_along_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply an array `[C, *inp]` by one matrix `[out, inp]` per spatial axis.

    Return the product `[C, *out]`. Used for changes that are separable, such as a blur.
    """
    for axis, matrix in enumerate(matrices, start=1):
        array = multiply_along(array, axis, matrix)
    return array


def _spline_weights(x: Numbers, spacing: float, n: int) -> NDArray[np.float32]:
    """Return the weights `[len(x), n]` of `n` knots of a uniform cubic B-spline at positions `x`.

    The positions and `spacing`, the distance of the knots, are in voxels. The second knot is at
    position 0, so that the spline is complete at the first voxel.
    """
    t = np.abs(x[:, None] / spacing + 1 - np.arange(n))  # distance from the knot, in knots
    # the two polynomials of a cubic B-spline: within 1 knot, and from 1 to 2 knots
    inner = 2 / 3 - t**2 + t**3 / 2
    outer = (2 - t).clip(0) ** 3 / 6  # 0 for knots that are at least 2 knots away
    return np.where(t < 1, inner, outer).astype(np.float32)


def _blur_matrix(n: int, sigma: float) -> Numbers:
    """Return a matrix `[n, n]` that blurs `n` voxels along an axis with a Gaussian.

    `sigma` is the standard deviation in voxels. Each row has the sum 1. Weights beyond 4 σ are 0,
    except for the adjacent voxels, so that a small σ blurs, too. If `sigma` is not above 0, the
    matrix is the identity.
    """
    if sigma <= 0:
        return np.eye(n)
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= max(1.0, _TRUNCATE * sigma))
    result: Numbers = weights / weights.sum(axis=1, keepdims=True)
    return result


def _enlarge_matrix(n: int, m: int) -> Numbers:
    """Return a matrix `[n, m]` that enlarges `m` voxels of an axis to `n` by linear interpolation.

    The `m` and the `n` voxels cover the same extent. Beyond the centre of an outermost voxel, its
    intensity continues.
    """
    if n == m:
        return np.eye(n)
    # the centres of the `n` voxels, in indices of the `m` voxels
    x = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
    return (1 - np.abs(x[:, None] - np.arange(m))).clip(0)
