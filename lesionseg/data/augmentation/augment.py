"""Random changes to training tiles; image and masks move together.

Changes are drawn first and carried out afterwards: how a tile is rotated decides how much of the
volume around it has to be read, so that no empty corners are turned in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.data.augmentation.draws import Draw
from lesionseg.data.augmentation.intensity import Intensity, Slices, change_intensity
from lesionseg.data.augmentation.movement import MAX_BEND, Bend, Movement, n_knots, rotation_by
from lesionseg.data.augmentation.pasting import Pasting
from lesionseg.data.tiling import read_tile
from lesionseg.data.transforms import Spec, build, checked
from lesionseg.errors import ConfigError, one_of
from lesionseg.ops.warp import warp_linear, warp_nearest
from lesionseg.plan.plan import Plan, ThickSlices

TileTensors = dict[str, Tensor]

# axes whose spacings differ by more than this are not rotated into each other
ANISOTROPY = 2.0
_PROBABILITIES = (
    "flip_probability",
    "spatial_probability",
    "elastic_share",
    "intensity_probability",
    "paste_probability",
    "thick_slice_probability",
)


@dataclass(frozen=True)
class AugmentationSettings:
    """How much tiles are changed, in plain numbers; 0 leaves a change out.

    Probabilities: `flip_probability` for each axis, `spatial_probability` for rotation, scaling and
    shearing together, `intensity_probability` for each intensity change. `flip_axes`: array axes
    (0 is z in 3-D); None: all, and none for X-rays, where left is not right and up not down.
    `rotate_degrees`, `scale`, `shear`: drawn from ± the number; only within the plane where the
    slices are thick. `elastic_voxels`: the largest displacement, at knots `elastic_spacing` apart,
    both in voxels of the finest axis; no farther than 0.4 spacings, so that nothing folds. In
    units of the normalised image: `noise_std` (the largest), `brightness` (added, ±). `contrast`:
    factor 1 ± the number. `gamma`: range; not for CT, whose numbers mean something. `blur_sigma`:
    range in voxels. `low_resolution`: range of zoom, at most 1. A pair of equal numbers leaves a
    ranged change out. `paste_probability`: of copying lesions of any case into a tile, 1 to
    `paste_most` of them, their difference from the tissue around them times a number within
    `paste_contrast` (see `pasting.py`). `thick_slice_probability`: of a tile that looks as if the
    scan had slices of `thick_slice_mm`; None: those of the plan, where it has any. `library`:
    `monai` builds the same steps of MONAI's transforms (`monai_chain.py`). `extra`: dictionary
    transforms of `image` and `label` that come after (`lesionseg.data.transforms`). Raises
    `ConfigError` for values out of range and transforms that cannot be built.
    """

    flip_probability: float = 0.5
    flip_axes: Sequence[int] | None = None
    spatial_probability: float = 0.3
    rotate_degrees: float = 20.0
    scale: float = 0.2
    shear: float = 0.05
    elastic_share: float = 0.3
    elastic_voxels: float = 4.0
    elastic_spacing: float = 24.0
    intensity_probability: float = 0.2
    noise_std: float = 0.15
    brightness: float = 0.2
    contrast: float = 0.25
    gamma: Sequence[float] = (0.7, 1.5)
    blur_sigma: Sequence[float] = (0.4, 1.0)
    low_resolution: Sequence[float] = (0.5, 1.0)
    paste_probability: float = 0.0
    paste_most: int = 3
    paste_contrast: Sequence[float] = (0.6, 1.2)
    thick_slice_probability: float = 0.0
    thick_slice_mm: Sequence[float] | None = None
    library: Literal["lesionseg", "monai"] = "lesionseg"
    extra: Sequence[Spec] = ()

    def __post_init__(self) -> None:
        one_of("library", self.library, ("lesionseg", "monai"), where="augment.library")
        object.__setattr__(self, "extra", checked(self.extra, "augment.extra"))
        for spec in self.extra:  # to be refused before cases are prepared
            build(spec, "augment.extra")
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                _refuse(name, getattr(self, name), "a probability")
        for name in ("gamma", "blur_sigma", "low_resolution", "paste_contrast", "thick_slice_mm"):
            if name == "thick_slice_mm" and self.thick_slice_mm is None:
                continue
            pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                _refuse(name, pair, "two positive numbers, the smaller first")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                _refuse(field.name, value, "at least 0")
        if self.elastic_voxels > MAX_BEND * self.elastic_spacing:
            _refuse("elastic_voxels", self.elastic_voxels, f"{MAX_BEND} elastic_spacing at most")
        if self.paste_most < 1:
            _refuse("paste_most", self.paste_most, "at least 1")
        if self.low_resolution[1] > 1 or self.scale >= 1:
            _refuse("low_resolution, scale", (self.low_resolution, self.scale), "at most 1")


def build_augmentation(settings: AugmentationSettings, plan: Plan) -> "Augmentation | None":
    """What changes tiles of this plan; None when the settings leave nothing to change.

    With another library lesions are copied and slices made thick here, and the rest is
    `monai_chain`'s. Raises `ConfigError` for flip axes the plan does not have, and for thick slices
    of pictures.
    """
    if settings.library != "lesionseg":
        settings = replace(
            settings,
            flip_probability=0.0,
            spatial_probability=0.0,
            intensity_probability=0.0,
            extra=(),
        )
    augmentation = Augmentation(settings, plan)
    moves = settings.spatial_probability or (settings.flip_probability and augmentation.flip_axes)
    changes = moves or settings.intensity_probability or settings.paste_probability
    slices = augmentation.thick_slices and settings.thick_slice_probability
    return augmentation if changes or slices else None


@dataclass(frozen=True, eq=False)
class Change:
    """All that happens to one tile; a few numbers, drawn before the tile is read.

    `missing`: channels that are 0 in the end, as those are of which a case has no file.
    """

    movement: Movement
    intensity: Intensity
    pasting: Pasting | None = None
    missing: tuple[int, ...] = ()


NO_CHANGE = Change(Movement(), Intensity())


class Augmentation:
    """Draws changes of tiles and carries them out, on the device where the tile is.

    Image and masks are moved in one resampling each; what comes in from outside the volume is 0 and
    not valid. Tiles of one batch differ in what they undergo and in how much of the volume they
    are read from, so each is done by itself: a tile is large enough to fill a GPU.
    """

    def __init__(self, settings: AugmentationSettings, plan: Plan) -> None:
        self.settings, self.plan = settings, plan
        self.flip_axes = flip_axes(settings, plan)
        self.thick_slices = thick_slices(settings, plan)

    def draw(self, generator: torch.Generator) -> Change:
        """One tile's changes; the same generator state gives the same."""
        draw = Draw(generator)
        return Change(self._movement(draw), self._intensity(draw), self._pasting(draw))

    def __call__(self, tile: TileTensors, generator: torch.Generator) -> TileTensors:
        """Change a tile of which only itself is at hand: beyond its edge all is 0, and no lesion is
        copied into it."""
        change = self.draw(generator)
        shape = tuple(tile["labels"].shape)
        source = change.movement.source(shape)
        starts, sizes = [a for a, _ in source], [b - a for a, b in source]
        piece = {key: read_tile(t.numpy(), starts, sizes) for key, t in tile.items()}
        return apply({key: torch.from_numpy(p) for key, p in piece.items()}, change, shape)

    def _movement(self, draw: Draw) -> Movement:
        settings, plan = self.settings, self.plan
        flips = tuple(axis for axis in self.flip_axes if draw.happens(settings.flip_probability))
        if not draw.happens(settings.spatial_probability):
            return Movement(flips)
        dims, spacing = plan.dims, np.array(plan.spacing_mm)
        together, fine = alike_axes(plan.spacing_mm)
        rotation = rotation_by(
            math.radians(settings.rotate_degrees) * draw.between(dims, dims) * together
        )
        shear = np.eye(dims) + settings.shear * draw.between(dims, dims) * together * ~np.eye(
            dims, dtype=bool
        )
        scale = np.diag(1 + settings.scale * draw.between(dims) * fine)
        # a rotation in millimetres; back to voxels
        linear = (rotation @ shear @ scale) * spacing / spacing[:, None]
        linear = linear @ np.diag([-1.0 if axis in flips else 1.0 for axis in range(dims)])
        return Movement(flips, linear, self._bend(draw, fine))

    def _bend(self, draw: Draw, fine: NDArray[np.bool_]) -> Bend | None:
        settings, plan = self.settings, self.plan
        if not draw.happens(settings.elastic_share) or not settings.elastic_voxels:
            return None
        finer = np.array(plan.spacing_mm) / min(plan.spacing_mm)
        distance = tuple(float(d) for d in (settings.elastic_spacing / finer).clip(1))
        knots = [n_knots(n, d) for n, d in zip(plan.tile_shape, distance, strict=True)]
        largest = settings.elastic_voxels / finer * fine
        return Bend((draw.between(plan.dims, *knots).T * largest).T.astype(np.float32), distance)

    def _intensity(self, draw: Draw) -> Intensity:
        settings, n_channels = self.settings, len(self.plan.channel_names)
        p = settings.intensity_probability
        return Intensity(
            coarse=draw.number(p, settings.low_resolution),
            blur=draw.numbers(p, settings.blur_sigma, self.plan.dims),
            contrast=draw.numbers(p, (1 - settings.contrast, 1 + settings.contrast), n_channels),
            brightness=draw.numbers(p, (-settings.brightness, settings.brightness), n_channels),
            noise=draw.number(p, (0, settings.noise_std)) or 0.0,
            gamma=None if self.plan.modality == "ct" else draw.number(p, settings.gamma),
            seed=draw.seed(),
            slices=self._slices(draw),
        )

    def _slices(self, draw: Draw) -> Slices | None:
        """None too where they would be no thicker than the plan's."""
        known = self.thick_slices
        if known is None or not draw.happens(self.settings.thick_slice_probability):
            return None
        place, offset = (draw.between(2) + 1) / 2
        thin, (least, most) = self.plan.spacing_mm[known.axis], known.spacing_mm
        voxels = float(least + (most - least) * place) / thin
        return Slices(known.axis, voxels, float(offset)) if voxels > 1 else None

    def _pasting(self, draw: Draw) -> Pasting | None:
        settings = self.settings
        if not draw.happens(settings.paste_probability):
            return None
        low, high = settings.paste_contrast
        n = 1 + draw.seed() % settings.paste_most
        return Pasting(n, (low, high), self.flip_axes, draw.seed())


def apply(piece: TileTensors, change: Change, shape: tuple[int, ...]) -> TileTensors:
    """The changed tile of `shape` out of the piece of volume that its movement asks for.

    `piece`: `image` `[C, *source]` (any float) and masks `[*source]`, read at the tile's start plus
    `change.movement.source(shape)`. Images are interpolated linearly, masks take the nearest
    voxel and keep their dtype.
    """
    movement, keys = change.movement, [key for key in piece if key != "image"]
    image, masks = piece["image"], [piece[key] for key in keys]
    wanted = change.intensity.coarse_shape(shape)
    if movement.linear is not None:
        masks = warp_nearest(masks, movement.warp(shape, shape, image.device))
    elif movement.flips:
        masks = [mask.flip(movement.flips) for mask in masks]
    if movement.linear is not None or wanted != shape:
        image = warp_linear(image, movement.warp(shape, wanted, image.device))
    elif movement.flips:
        image = image.flip([1 + axis for axis in movement.flips]).float()
    else:
        image = image.to(torch.float32, copy=True)
    image = change_intensity(image, change.intensity, shape)
    for channel in change.missing:
        image[channel] = 0
    return {"image": image, **dict(zip(keys, masks, strict=True))}


def alike_axes(spacing_mm: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which axes may be rotated into each other `[dims, dims]`, and which are fine `[dims]`."""
    spacing = np.array(spacing_mm)
    alike = np.maximum.outer(spacing, spacing) / np.minimum.outer(spacing, spacing)
    return alike <= ANISOTROPY, spacing / spacing.min() <= ANISOTROPY


def flip_axes(settings: AugmentationSettings, plan: Plan) -> tuple[int, ...]:
    """Array axes along which tiles are flipped; `ConfigError` for one the plan does not have."""
    if settings.flip_axes is None:
        return () if plan.modality == "xray" else tuple(range(plan.dims))
    axes = tuple(settings.flip_axes)
    if not set(axes) <= set(range(plan.dims)):
        _refuse("flip_axes", axes, f"axes from 0 to {plan.dims - 1}")
    return axes


def thick_slices(settings: AugmentationSettings, plan: Plan) -> ThickSlices | None:
    """Slices that tiles are given; across the plan's coarsest axis where the plan has none."""
    if settings.thick_slice_mm is None:
        return plan.thick_slices
    if plan.dims != 3:
        _refuse("thick_slice_mm", settings.thick_slice_mm, "null: pictures have no slices")
    axis = plan.thick_slices.axis if plan.thick_slices else int(np.argmax(plan.spacing_mm))
    least, most = settings.thick_slice_mm
    return ThickSlices(axis, (least, most))


def _refuse(name: str, seen: object, expected: str) -> None:
    raise ConfigError(
        "A setting of the augmentation is wrong.", where=name, seen=seen, expected=expected
    )
