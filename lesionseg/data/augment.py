"""Augmentation: random changes of training tiles. Image and masks move together.

Changes are drawn before a tile is read, because its rotation determines how much of the volume
around it is read. So a rotated tile has no empty corners. A movement is either a set of flips, or
one map that rotates, scales, shears, flips and bends. The bend is a cubic B-spline of random
displacements on a coarse grid of knots (Rueckert et al. 1999, IEEE TMI 18:712). It is smooth and
never larger than its largest knot, and it has no folds if that knot is below 0.4 knot distances
(Choi and Lee 2000). Intensities then change in this order: lower resolution and blur, contrast,
brightness, noise, gamma.
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
from lesionseg.errors import ConfigError
from lesionseg.ops.warp import Warp, warp_linear, warp_nearest
from lesionseg.plan.plan import Plan

TileTensors = dict[str, Tensor]

# Axes are not rotated into each other if the ratio of their spacings is above this.
ANISOTROPY = 2.0
FLIP_PROBABILITY = 0.5  # for each axis
SCALE = 0.2  # largest relative change of size
SHEAR = 0.05  # largest shear
ELASTIC_SHARE = 0.3  # share of the rotated tiles that are also bent
# The largest displacement of a bend and the distance of its knots, both in voxels of the finest
# axis. The displacement must be at most 0.4 times the distance.
ELASTIC_VOXELS = 4.0
ELASTIC_SPACING = 24.0
# Intensities refer to the normalised image.
NOISE_STD = 0.15  # largest standard deviation
BRIGHTNESS = 0.2  # largest summand
CONTRAST = 0.25  # largest difference of the factor from 1
GAMMA = (0.7, 1.5)
BLUR_SIGMA = (0.4, 1.0)  # voxels
LOW_RESOLUTION = (0.5, 1.0)  # share of the voxels that are kept along each axis
_TRUNCATE = 4.0  # a blur ends at so many standard deviations


@dataclass(frozen=True, eq=False)
class Bend:
    """A smooth random displacement, given at knots.

    `knots` `[dims, *knots]` contains displacements in voxels. `spacing` is the distance of the
    knots along each axis in voxels.
    """

    knots: NDArray[np.float32]
    spacing: tuple[float, ...]

    def interpolate(self, positions: Sequence[NDArray[np.float64]]) -> Tensor:
        """Return the displacement `[dims, *grid]` float32 at these positions along each axis."""
        rows = zip(positions, self.spacing, self.knots.shape[1:], strict=True)
        weights = [torch.from_numpy(_spline_weights(x, distance, n)) for x, distance, n in rows]
        return multiply_along_axes(torch.from_numpy(self.knots), weights)


@dataclass(frozen=True, eq=False)
class Movement:
    """The source position of each voxel of a moved tile, in and around the tile.

    `flips` contains the reversed axes. With `linear` `[dims, dims]`, the voxel at x from the tile's
    centre is read at linear · x from the centre, plus the displacement of `bend`. `linear` includes
    the flips. If it is None, the tile is only flipped, without interpolation.
    """

    flips: tuple[int, ...] = ()
    linear: NDArray[np.float64] | None = None
    bend: Bend | None = None

    def matrix(self, tile_shape: Sequence[int]) -> NDArray[np.float64]:
        """Return the matrix `[dims, dims + 1]` from an index of the moved tile to its source.

        The source is counted from the first voxel of the tile in the volume.
        """
        linear = self.linear
        if linear is None:
            linear = np.diag([-1.0 if a in self.flips else 1.0 for a in range(len(tile_shape))])
        middle = (np.array(tile_shape) - 1) / 2
        return np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1)

    def source(self, tile_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return start and stop of the region to read, counted from the tile's first voxel."""
        if self.linear is None:
            return tuple((0, n) for n in tile_shape)
        matrix = self.matrix(tile_shape)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in tile_shape])))
        reached = corners @ matrix[:, :-1].T + matrix[:, -1]
        margin = 0 if self.bend is None else np.abs(self.bend.knots).max(initial=0)
        low = np.floor(reached.min(axis=0) - margin)
        high = np.ceil(reached.max(axis=0) + margin)
        return tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))

    def warp(self, tile_shape: Sequence[int], out_shape: Sequence[int]) -> Warp:
        """Return the warp from the region `source` to the moved tile.

        `out_shape` is the number of output voxels over the tile. If it is smaller than
        `tile_shape`, the output is a coarser tile.
        """
        step = np.array(tile_shape) / np.array(out_shape)
        matrix = self.matrix(tile_shape)
        coarse = matrix.copy()
        coarse[:, :-1] *= step
        first = [start for start, _ in self.source(tile_shape)]
        coarse[:, -1] += matrix[:, :-1] @ ((step - 1) / 2) - first
        bend = None
        if self.bend is not None:
            places = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(out_shape, step, strict=True)]
            bend = self.bend.interpolate(places)
        return Warp(coarse, tuple(out_shape), bend)


@dataclass(frozen=True)
class Intensity:
    """Changes of the intensities of one tile. The default values change nothing.

    Attributes:
        coarse: share of the voxels that are kept along each axis, before the image is enlarged to
            its size again.
        blur: standard deviation in voxels along each axis.
        contrast: factor of each channel.
        brightness: summand of each channel.
        noise: standard deviation of the noise, which is drawn from `seed`.
        gamma: exponent of the image scaled to 0 … 1. Mean and standard deviation stay.
        seed: determines the noise.
    """

    coarse: float = 1.0
    blur: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    brightness: tuple[float, ...] | None = None
    noise: float = 0.0
    gamma: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Change:
    """All changes of one tile: a few numbers, which are drawn before the tile is read.

    `missing` contains the channels that are set to zero at the end, like channels without a file.
    """

    movement: Movement
    intensity: Intensity
    missing: tuple[int, ...] = ()


NO_CHANGE = Change(Movement(), Intensity())


def tile_generator(*key: int) -> torch.Generator:
    """Return a generator that depends only on the key, such as (seed, epoch, index)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class Draw:
    """A source of random numbers of several kinds from one generator."""

    generator: torch.Generator

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Draw an array of `shape`, uniform in −1 … 1."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return np.asarray(drawn.mul_(2).sub_(1).numpy())

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return float(torch.rand((), generator=self.generator)) < probability

    def numbers(
        self, probability: float, limits: Sequence[float], n: int
    ) -> tuple[float, ...] | None:
        """Draw `n` numbers within `limits` with this probability, otherwise return None."""
        # always draw the numbers, so that the following ones do not depend on the outcome
        happens = self.happens(probability)
        drawn = (self.uniform(n) + 1) / 2
        low, high = limits
        return tuple(float(v) for v in low + (high - low) * drawn) if happens else None

    def seed(self) -> int:
        """Draw a seed for another generator."""
        return int(torch.randint(2**62, (), generator=self.generator))


def build_augmentation(settings: AugmentConfig, plan: Plan) -> "Augmentation | None":
    """Return the augmentation of tiles of this plan, or None if the settings change nothing.

    Raises `ConfigError` if the plan does not have the flip axes.
    """
    augmentation = Augmentation(settings, plan)
    moves = settings.spatial_probability or augmentation.flip_axes
    return augmentation if moves or settings.intensity_probability else None


class Augmentation:
    """A source of random changes of tiles.

    Without `flip_axes` in the settings all axes are flipped, except those of a radiograph, in which
    left and right, top and bottom differ. If slices are thick, tiles are rotated only within them.
    The gamma of a CT does not change, because its values are physical quantities. Image and masks
    are each resampled once. Voxels from outside of the volume are 0 and not valid.
    """

    def __init__(self, settings: AugmentConfig, plan: Plan) -> None:
        self.settings = settings
        self.plan = plan
        self.flip_axes = tuple(() if plan.modality == "xray" else range(plan.dims))
        if settings.flip_axes is not None:
            self.flip_axes = tuple(settings.flip_axes)
        if not set(self.flip_axes) <= set(range(plan.dims)):
            raise ConfigError(
                f"augment.flip_axes={list(self.flip_axes)}: the plan has the axes 0 to "
                f"{plan.dims - 1}. Choose among them."
            )

    def draw(self, generator: torch.Generator) -> Change:
        """Draw the changes of one tile. The same generator state gives the same changes."""
        draw = Draw(generator)
        return Change(self._movement(draw), self._intensity(draw))

    def _movement(self, draw: Draw) -> Movement:
        """Draw the flips, and perhaps rotation, shear, scale and bend."""
        settings = self.settings
        dims = self.plan.dims
        flips = tuple(axis for axis in self.flip_axes if draw.happens(FLIP_PROBABILITY))
        if not draw.happens(settings.spatial_probability):
            return Movement(flips)
        spacing = np.array(self.plan.spacing_mm)
        ratio = np.maximum.outer(spacing, spacing) / np.minimum.outer(spacing, spacing)
        is_similar = ratio <= ANISOTROPY
        is_fine = spacing / spacing.min() <= ANISOTROPY
        angles = math.radians(settings.rotate_degrees) * draw.uniform(dims, dims) * is_similar
        shear = SHEAR * draw.uniform(dims, dims) * is_similar * ~np.eye(dims, dtype=bool)
        scale = np.diag(1 + SCALE * draw.uniform(dims) * is_fine)
        # the map in millimetres, then converted to voxels
        linear = rotation_matrix(angles) @ (np.eye(dims) + shear) @ scale
        linear = linear * spacing / spacing[:, None]
        linear = linear @ np.diag([-1.0 if axis in flips else 1.0 for axis in range(dims)])
        if not draw.happens(ELASTIC_SHARE):
            return Movement(flips, linear)
        finer = spacing / spacing.min()
        distance = tuple(float(d) for d in (ELASTIC_SPACING / finer).clip(1))
        # the number of knots that determine a cubic B-spline over n voxels
        n_knots = []
        for n, d in zip(self.plan.tile_shape, distance, strict=True):
            n_knots.append(math.floor((n - 1) / d) + 4)
        largest = ELASTIC_VOXELS / finer * is_fine
        bend = (draw.uniform(dims, *n_knots).T * largest).T.astype(np.float32)
        return Movement(flips, linear, Bend(bend, distance))

    def _intensity(self, draw: Draw) -> Intensity:
        """Draw the changes of intensities, each with the probability of the settings."""
        n_channels = len(self.plan.channel_names)
        p = self.settings.intensity_probability

        def draw_one(limits: Sequence[float], otherwise: float) -> float:
            return (draw.numbers(p, limits, 1) or (otherwise,))[0]

        return Intensity(
            coarse=draw_one(LOW_RESOLUTION, 1.0),
            blur=draw.numbers(p, BLUR_SIGMA, self.plan.dims),
            contrast=draw.numbers(p, (1 - CONTRAST, 1 + CONTRAST), n_channels),
            brightness=draw.numbers(p, (-BRIGHTNESS, BRIGHTNESS), n_channels),
            noise=draw_one((0, NOISE_STD), 0.0),
            gamma=1.0 if self.plan.modality == "ct" else draw_one(GAMMA, 1.0),
            seed=draw.seed(),
        )


def apply(piece: TileTensors, change: Change, shape: tuple[int, ...]) -> TileTensors:
    """Apply a change to a piece of the volume, and return the changed tile of `shape`.

    `piece` contains `image` `[C, *source]` (any float) and masks `[*source]`, read at the tile's
    start plus `change.movement.source(shape)`. Images are interpolated linearly. Masks take the
    nearest voxel and keep their dtype.
    """
    movement = change.movement
    keys = [key for key in piece if key != "image"]
    masks = [piece[key] for key in keys]
    if movement.linear is not None:
        masks = warp_nearest(masks, movement.warp(shape, shape))
    elif movement.flips:
        masks = [mask.flip(movement.flips) for mask in masks]
    image = _move(piece["image"], movement, change.intensity, shape)
    image = _change_intensity(image, change.intensity)
    for channel in change.missing:
        image[channel] = 0
    return {"image": image, **dict(zip(keys, masks, strict=True))}


def _move(image: Tensor, movement: Movement, change: Intensity, shape: tuple[int, ...]) -> Tensor:
    """Move an image and lower its resolution. Return a new array `[C, *shape]` in float32."""
    coarse = tuple(max(1, round(n * change.coarse)) for n in shape)
    if movement.linear is not None or coarse != shape:
        image = warp_linear(image, movement.warp(shape, coarse))
    elif movement.flips:
        image = image.flip([1 + axis for axis in movement.flips]).float()
    else:
        image = image.to(torch.float32, copy=True)
    if change.blur is not None or coarse != shape:
        sides = zip(shape, coarse, change.blur or (0.0,) * len(shape), strict=True)
        matrices = [_gaussian(n, sigma) @ _stretch(n, m) for n, m, sigma in sides]
        weights = [torch.from_numpy(m.astype(np.float32)) for m in matrices]
        image = multiply_along_axes(image, weights)
    return image


def _change_intensity(image: Tensor, change: Intensity) -> Tensor:
    """Change contrast, brightness, noise and gamma of an image `[C, *shape]`, maybe in place."""
    per_channel = [-1] + [1] * (image.ndim - 1)
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
    std = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)  # times a constant
    curved = flat.sub_(low).div_((high - low).clamp_min(1e-7))
    curved.pow_(change.gamma)
    curved.sub_(curved.mean(1, keepdim=True))
    own_std = torch.linalg.vector_norm(curved, dim=1, keepdim=True)
    return curved.mul_(std / own_std.clamp_min(1e-7)).add_(mean).view(image.shape)


def rotation_matrix(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation by angles[a, b] (radians, a < b) from axis a towards axis b.

    The planes are rotated one after another, in the order of (a, b).
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
    """Multiply `[C, *inp]` by a matrix `[out, inp]` along each spatial axis."""
    for axis, matrix in enumerate(matrices[:-1], start=1):
        before = list(array.shape[:axis])
        after = list(array.shape[axis + 1 :])
        flat = array.reshape([*before, array.shape[axis], -1])
        array = torch.matmul(matrix, flat).reshape([*before, -1, *after])
    return torch.matmul(array, matrices[-1].T)


def _spline_weights(x: NDArray[np.float64], spacing: float, n: int) -> NDArray[np.float32]:
    """Return the weight of each of `n` knots at each position, for a uniform cubic B-spline."""
    t = np.abs(x[:, None] / spacing + 1 - np.arange(n))
    inner = 2 / 3 - t**2 + t**3 / 2
    outer = (2 - t).clip(0) ** 3 / 6
    return np.where(t < 1, inner, outer).astype(np.float32)


def _gaussian(n: int, sigma: float) -> NDArray[np.float64]:
    """Return a matrix that blurs `n` voxels: a Gaussian in each row, cut off at 4 σ, with sum 1."""
    if sigma <= 0:
        return np.eye(n)
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= max(1.0, _TRUNCATE * sigma))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _stretch(n: int, m: int) -> NDArray[np.float64]:
    """Return the matrix `[n, m]` that interpolates `m` voxels linearly to `n` voxels."""
    if n == m:
        return np.eye(n)
    x = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
    return np.asarray((1 - np.abs(x[:, None] - np.arange(m))).clip(0))
