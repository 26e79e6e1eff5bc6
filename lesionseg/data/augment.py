"""Random changes of training tiles; image and masks move together.

Changes are drawn first and carried out afterwards: how a tile is rotated decides how much of the
volume around it is read, so that no empty corners come in. A movement is flips, or one map that
rotates, scales, shears, flips and bends at once. The bend is a cubic B-spline of random
displacements on a coarse grid of knots (Rueckert et al. 1999, IEEE TMI 18:712): smooth, nowhere
larger than its largest knot, and without folds while that is below 0.4 knot distances (Choi and
Lee 2000). A coarser resolution and a blur are one matrix an axis; contrast, brightness and noise
one line; gamma comes last.
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

# axes whose spacings differ by more than this are not rotated into each other
ANISOTROPY = 2.0
# of each flip; up to ± this much scaled and sheared; of the tiles so moved, the share bent too
FLIP_PROBABILITY, SCALE, SHEAR, ELASTIC_SHARE = 0.5, 0.2, 0.05, 0.3
# the largest displacement of a bend, at most 0.4 times the distance of its knots, and that
# distance; both in voxels of the finest axis
ELASTIC_VOXELS, ELASTIC_SPACING = 4.0, 24.0
# Intensities are those of the normalised image: the largest standard deviation of the noise, the
# most that is added or taken away, the factor 1 ± contrast. Blur in voxels.
NOISE_STD, BRIGHTNESS, CONTRAST = 0.15, 0.2, 0.25
GAMMA, BLUR_SIGMA, LOW_RESOLUTION = (0.7, 1.5), (0.4, 1.0), (0.5, 1.0)
_TRUNCATE = 4.0  # standard deviations of a blur


@dataclass(frozen=True, eq=False)
class Bend:
    """Displacements in voxels `[dims, *knots]` and the distance of the knots along each axis."""

    knots: NDArray[np.float32]
    spacing: tuple[float, ...]

    def at(self, positions: Sequence[NDArray[np.float64]]) -> Tensor:
        """Displacement `[dims, *grid]` float32 on the grid of these positions along each axis."""
        rows = zip(positions, self.spacing, self.knots.shape[1:], strict=True)
        weights = [torch.from_numpy(_spline_weights(x, distance, n)) for x, distance, n in rows]
        return along_axes(torch.from_numpy(self.knots), weights)


@dataclass(frozen=True, eq=False)
class Movement:
    """From where in and around a tile its voxels come.

    `flips`: axes reversed. `linear` `[dims, dims]`: a voxel x from the tile's centre is read
    at linear · x from it, then displaced by `bend`, flips included; None: only flips, exactly.
    """

    flips: tuple[int, ...] = ()
    linear: NDArray[np.float64] | None = None
    bend: Bend | None = None

    def matrix(self, tile_shape: Sequence[int]) -> NDArray[np.float64]:
        """`[dims, dims + 1]` from an index of the moved tile to one of the tile as it lies."""
        linear = self.linear
        if linear is None:
            linear = np.diag([-1.0 if a in self.flips else 1.0 for a in range(len(tile_shape))])
        middle = (np.array(tile_shape) - 1) / 2
        return np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1)

    def source(self, tile_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Start and stop along each axis of what is read, counted from the tile's first voxel."""
        if self.linear is None:
            return tuple((0, n) for n in tile_shape)
        matrix = self.matrix(tile_shape)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in tile_shape])))
        reach = corners @ matrix[:, :-1].T + matrix[:, -1]
        bent = 0 if self.bend is None else np.abs(self.bend.knots).max(initial=0)
        low, high = np.floor(reach.min(axis=0) - bent), np.ceil(reach.max(axis=0) + bent)
        return tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))

    def warp(self, tile_shape: Sequence[int], out_shape: Sequence[int]) -> Warp:
        """The warp that reads a tile, on a grid of `out_shape` voxels over it, out of its source.

        `out_shape` equal to `tile_shape` is the tile itself; fewer voxels are a coarser one.
        """
        step = np.array(tile_shape) / np.array(out_shape)
        matrix = self.matrix(tile_shape)
        coarse = matrix.copy()
        coarse[:, :-1] *= step
        coarse[:, -1] += matrix[:, :-1] @ ((step - 1) / 2) - [a for a, _ in self.source(tile_shape)]
        bend = None
        if self.bend is not None:
            places = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(out_shape, step, strict=True)]
            bend = self.bend.at(places)
        return Warp(coarse, tuple(out_shape), bend)


@dataclass(frozen=True)
class Intensity:
    """What is done to the image of one tile; None, 0 and 1 do nothing.

    `coarse`: share of the voxels kept along each axis before the image is made up to size again.
    `blur`: standard deviation in voxels along each axis. `contrast`, `brightness`: factor and
    summand of each channel. `noise`: standard deviation of what is added, from `seed`.
    `gamma`: power of the image scaled to 0 … 1; mean and standard deviation stay.
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
    """All that happens to one tile; a few numbers, drawn before the tile is read.

    `missing`: channels that are 0 in the end, as those are of which a case has no file.
    """

    movement: Movement
    intensity: Intensity
    missing: tuple[int, ...] = ()


NO_CHANGE = Change(Movement(), Intensity())


def tile_generator(*key: int) -> torch.Generator:
    """A generator of its own for each key, such as (seed, epoch, index)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class Draw:
    """Takes numbers from a generator in turn."""

    generator: torch.Generator

    def between(self, *shape: int) -> NDArray[np.float64]:
        """Uniform in −1 … 1."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return np.asarray(drawn.mul_(2).sub_(1).numpy())

    def happens(self, probability: float) -> bool:
        """True with that probability."""
        return float(torch.rand((), generator=self.generator)) < probability

    def numbers(
        self, probability: float, limits: Sequence[float], n: int
    ) -> tuple[float, ...] | None:
        """n numbers within `limits`; None: not this time."""
        happens, drawn = self.happens(probability), (self.between(n) + 1) / 2
        low, high = limits
        return tuple(float(v) for v in low + (high - low) * drawn) if happens else None

    def seed(self) -> int:
        """A seed for another generator."""
        return int(torch.randint(2**62, (), generator=self.generator))


def build_augmentation(settings: AugmentConfig, plan: Plan) -> "Augmentation | None":
    """What changes tiles of this plan; None when the settings leave nothing to change.

    Raises `ConfigError` for flip axes the plan does not have.
    """
    augmentation = Augmentation(settings, plan)
    moves = settings.spatial_probability or augmentation.flip_axes
    return augmentation if moves or settings.intensity_probability else None


class Augmentation:
    """Draws changes of tiles and carries them out.

    Without stated `flip_axes` all are flipped, and none of a radiograph, where left is not right
    and up not down. Where slices are thick, tiles are moved only within them. Gamma is not changed
    of a CT, whose numbers mean something.
    Image and masks are moved in one resampling each; what comes in from outside the volume is 0 and
    not valid.
    """

    def __init__(self, settings: AugmentConfig, plan: Plan) -> None:
        self.settings, self.plan = settings, plan
        self.flip_axes = tuple(() if plan.modality == "xray" else range(plan.dims))
        if settings.flip_axes is not None:
            self.flip_axes = tuple(settings.flip_axes)
        if not set(self.flip_axes) <= set(range(plan.dims)):
            raise ConfigError(
                f"augment.flip_axes={list(self.flip_axes)}: axes are 0 to {plan.dims - 1}."
            )

    def draw(self, generator: torch.Generator) -> Change:
        """One tile's changes; the same generator state gives the same."""
        draw = Draw(generator)
        return Change(self._movement(draw), self._intensity(draw))

    def _movement(self, draw: Draw) -> Movement:
        settings, dims = self.settings, self.plan.dims
        flips = tuple(axis for axis in self.flip_axes if draw.happens(FLIP_PROBABILITY))
        if not draw.happens(settings.spatial_probability):
            return Movement(flips)
        spacing = np.array(self.plan.spacing_mm)
        ratio = np.maximum.outer(spacing, spacing) / np.minimum.outer(spacing, spacing)
        together, fine = ratio <= ANISOTROPY, spacing / spacing.min() <= ANISOTROPY
        angles = math.radians(settings.rotate_degrees) * draw.between(dims, dims) * together
        shear = SHEAR * draw.between(dims, dims) * together * ~np.eye(dims, dtype=bool)
        scale = np.diag(1 + SCALE * draw.between(dims) * fine)
        # a rotation in millimetres; back to voxels
        linear = rotation_by(angles) @ (np.eye(dims) + shear) @ scale
        linear = linear * spacing / spacing[:, None]
        linear = linear @ np.diag([-1.0 if axis in flips else 1.0 for axis in range(dims)])
        if not draw.happens(ELASTIC_SHARE):
            return Movement(flips, linear)
        finer = spacing / spacing.min()
        distance = tuple(float(d) for d in (ELASTIC_SPACING / finer).clip(1))
        # knots that determine a cubic B-spline over n voxels
        knots = [
            math.floor((n - 1) / d) + 4 for n, d in zip(self.plan.tile_shape, distance, strict=True)
        ]
        largest = ELASTIC_VOXELS / finer * fine
        bend = (draw.between(dims, *knots).T * largest).T.astype(np.float32)
        return Movement(flips, linear, Bend(bend, distance))

    def _intensity(self, draw: Draw) -> Intensity:
        n_channels, p = len(self.plan.channel_names), self.settings.intensity_probability

        def one(limits: Sequence[float], none: float) -> float:
            return (draw.numbers(p, limits, 1) or (none,))[0]

        return Intensity(
            coarse=one(LOW_RESOLUTION, 1.0),
            blur=draw.numbers(p, BLUR_SIGMA, self.plan.dims),
            contrast=draw.numbers(p, (1 - CONTRAST, 1 + CONTRAST), n_channels),
            brightness=draw.numbers(p, (-BRIGHTNESS, BRIGHTNESS), n_channels),
            noise=one((0, NOISE_STD), 0.0),
            gamma=1.0 if self.plan.modality == "ct" else one(GAMMA, 1.0),
            seed=draw.seed(),
        )


def apply(piece: TileTensors, change: Change, shape: tuple[int, ...]) -> TileTensors:
    """The changed tile of `shape` out of the piece of volume that its movement asks for.

    `piece`: `image` `[C, *source]` (any float) and masks `[*source]`, read at the tile's start plus
    `change.movement.source(shape)`. Images are interpolated linearly, masks take the nearest
    voxel and keep their dtype.
    """
    movement, keys = change.movement, [key for key in piece if key != "image"]
    masks = [piece[key] for key in keys]
    if movement.linear is not None:
        masks = warp_nearest(masks, movement.warp(shape, shape))
    elif movement.flips:
        masks = [mask.flip(movement.flips) for mask in masks]
    image = _moved(piece["image"], movement, change.intensity, shape)
    image = _recoloured(image, change.intensity)
    for channel in change.missing:
        image[channel] = 0
    return {"image": image, **dict(zip(keys, masks, strict=True))}


def _moved(image: Tensor, movement: Movement, change: Intensity, shape: tuple[int, ...]) -> Tensor:
    """The image `[C, *shape]` float32, in memory of its own, at its resolution and sharpness."""
    wanted = tuple(max(1, round(n * change.coarse)) for n in shape)
    if movement.linear is not None or wanted != shape:
        image = warp_linear(image, movement.warp(shape, wanted))
    elif movement.flips:
        image = image.flip([1 + axis for axis in movement.flips]).float()
    else:
        image = image.to(torch.float32, copy=True)
    if change.blur is not None or wanted != shape:
        sides = zip(shape, wanted, change.blur or (0.0,) * len(shape), strict=True)
        matrices = [_gaussian(n, sigma) @ _stretch(n, m) for n, m, sigma in sides]
        image = along_axes(image, [torch.from_numpy(m.astype(np.float32)) for m in matrices])
    return image


def _recoloured(image: Tensor, change: Intensity) -> Tensor:
    """Contrast, brightness, noise and gamma of an image `[C, *shape]`, which may be overwritten."""
    ones = (1,) * (image.ndim - 1)
    if change.contrast is not None:
        image = image.mul_(torch.tensor(change.contrast).reshape(-1, *ones))
    if change.brightness is not None:
        image = image.add_(torch.tensor(change.brightness).reshape(-1, *ones))
    if change.noise:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(change.seed))
        image = image.add_(noise, alpha=change.noise)
    if change.gamma == 1:
        return image
    # each channel to a power between its extremes, with its mean and deviation restored
    flat = image.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    std = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)  # times a constant
    curved = flat.sub_(low).div_((high - low).clamp_min(1e-7))
    curved.pow_(change.gamma)
    curved.sub_(curved.mean(1, keepdim=True))
    own_std = torch.linalg.vector_norm(curved, dim=1, keepdim=True)
    return curved.mul_(std / own_std.clamp_min(1e-7)).add_(mean).view(image.shape)


def rotation_by(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation by angles[a, b] (radians, a < b) from axis a towards b, one plane after another."""
    rotation = np.eye(len(angles))
    for a, b in itertools.combinations(range(len(angles)), 2):
        plane = np.eye(len(angles))
        cos, sin = math.cos(angles[a, b]), math.sin(angles[a, b])
        plane[a, a], plane[b, b], plane[a, b], plane[b, a] = cos, cos, -sin, sin
        rotation = plane @ rotation
    return rotation


def along_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply `[C, *inp]` by a matrix `[out, inp]` along each spatial axis."""
    for axis, matrix in enumerate(matrices[:-1], start=1):
        shape = array.shape
        flat = array.reshape(*shape[: axis + 1], -1)
        array = torch.matmul(matrix, flat).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return torch.matmul(array, matrices[-1].T)


def _spline_weights(x: NDArray[np.float64], spacing: float, n: int) -> NDArray[np.float32]:
    """Weight of each of `n` knots at each position: the uniform cubic B-spline."""
    t = np.abs(x[:, None] / spacing + 1 - np.arange(n))
    inner, outer = 2 / 3 - t**2 + t**3 / 2, (2 - t).clip(0) ** 3 / 6
    return np.where(t < 1, inner, outer).astype(np.float32)


def _gaussian(n: int, sigma: float) -> NDArray[np.float64]:
    """Each row the weights of a Gaussian about its voxel, cut off at 4 σ; rows sum to 1."""
    if sigma <= 0:
        return np.eye(n)
    away = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.exp(-0.5 * (away / sigma) ** 2) * (away <= max(1.0, _TRUNCATE * sigma))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _stretch(n: int, m: int) -> NDArray[np.float64]:
    if n == m:
        return np.eye(n)
    x = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
    return np.asarray((1 - np.abs(x[:, None] - np.arange(m))).clip(0))
