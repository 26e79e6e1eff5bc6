"""Random changes to training tiles; image and masks move together.

MONAI's dictionary transforms do the work. All turning, scaling and shearing is one resampling, and
the masks of a tile travel as the channels of one array, so that they are resampled together.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
)
from torch import Tensor

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Plan

TileTensors = dict[str, Tensor]
Augmentation = Callable[[TileTensors, np.random.Generator], TileTensors]

# axes whose spacings differ by more than this do not turn into each other
ANISOTROPY = 2.0
_LINEAR = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class AugmentationSettings:
    """How much tiles are changed, in plain numbers; 0 leaves a change out.

    Probabilities: `flip_probability` for each axis, `spatial_probability` for turning, scaling and
    shearing together, `intensity_probability` for each intensity change. `flip_axes`: array axes
    (0 is z in 3-D); None: all, and none for X-rays, where left is not right and up not down.
    `rotate_degrees`, `scale`, `shear`: drawn from ± the number; only within the plane where the
    slices are thick. In units of the normalised image: `noise_std` (the largest), `brightness`
    (added, ±). `contrast`: factor 1 ± the number. `gamma`: range; not for CT, whose numbers mean
    something. `blur_sigma`: range in voxels. `low_resolution`: range of zoom, at most 1. A pair of
    equal numbers leaves a ranged change out. Raises `ConfigError` for values out of range.
    """

    flip_probability: float = 0.5
    flip_axes: Sequence[int] | None = None
    spatial_probability: float = 0.3
    rotate_degrees: float = 20.0
    scale: float = 0.2
    shear: float = 0.05
    intensity_probability: float = 0.2
    noise_std: float = 0.15
    brightness: float = 0.2
    contrast: float = 0.25
    gamma: Sequence[float] = (0.7, 1.5)
    blur_sigma: Sequence[float] = (0.4, 1.0)
    low_resolution: Sequence[float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        for name in ("flip_probability", "spatial_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                _refuse(name, getattr(self, name), "a probability")
        for name in ("gamma", "blur_sigma", "low_resolution"):
            pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                _refuse(name, pair, "two positive numbers, the smaller first")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                _refuse(field.name, value, "at least 0")
        if self.low_resolution[1] > 1 or self.scale >= 1:
            _refuse("low_resolution, scale", (self.low_resolution, self.scale), "at most 1")


def build_augmentation(settings: AugmentationSettings, plan: Plan) -> Augmentation:
    """A function `(tile, rng) -> tile` that changes tiles of this plan.

    A tile holds `image` `[C, *tile]` float32 and `labels`, `instances`, `valid` `[*tile]`; shapes
    and dtypes stay. Images are interpolated linearly, masks take the nearest voxel; what comes in
    from outside is 0 and not valid. The same generator state gives the same tile. Raises
    `ConfigError` for flip axes the plan does not have.
    """
    transforms = [*_spatial(settings, plan), *_intensity(settings, plan)]
    return _Augmentation(Compose(transforms)) if transforms else _unchanged


@dataclass(frozen=True, eq=False)
class _Augmentation:
    compose: Compose

    def __call__(self, tile: TileTensors, rng: np.random.Generator) -> TileTensors:
        self.compose.set_random_state(seed=int(rng.integers(2**32 - 1)))
        masks = torch.stack([tile[key].float() for key in ("labels", "instances", "valid")])
        changed = self.compose({"image": tile["image"], "masks": masks})
        labels, instances, valid = _plain(changed["masks"]).unbind()
        return {
            "image": _plain(changed["image"]),
            "labels": labels.to(tile["labels"].dtype),
            "instances": instances.to(tile["instances"].dtype),
            "valid": valid > 0.5,
        }


def _unchanged(tile: TileTensors, rng: np.random.Generator) -> TileTensors:
    return tile


def _plain(tensor: Tensor) -> Tensor:
    """Without MONAI's record of transforms, which would be dragged through every batch."""
    plain: Tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain.contiguous()


def _spatial(settings: AugmentationSettings, plan: Plan) -> list[Randomizable]:
    keys = ("image", "masks")
    transforms: list[Randomizable] = []
    if settings.spatial_probability and (settings.rotate_degrees or settings.scale):
        transforms.append(_affine(settings, plan, keys))
    if settings.flip_probability:
        transforms += [
            RandFlipd(keys, prob=settings.flip_probability, spatial_axis=axis)
            for axis in _flip_axes(settings, plan)
        ]
    return transforms


def _affine(settings: AugmentationSettings, plan: Plan, keys: Sequence[str]) -> RandAffined:
    # MONAI's order: 3-D angles turn (y, x), (z, x), (z, y); shears go from axis to axis
    planes = list(itertools.combinations(range(plan.dims), 2))[::-1]
    turn = math.radians(settings.rotate_degrees)
    shears = itertools.permutations(range(plan.dims), 2)
    affine = RandAffined(
        keys,
        prob=settings.spatial_probability,
        rotate_range=tuple(turn * _alike(plan, a, b) for a, b in planes),
        shear_range=tuple(settings.shear * _alike(plan, a, b) for a, b in shears),
        scale_range=(settings.scale,) * plan.dims,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    # the default, float64, takes half as long again for differences no one can see
    affine.rand_affine.resampler.dtype = torch.float32
    return affine


def _alike(plan: Plan, a: int, b: int) -> bool:
    """Whether two axes are sampled alike, so that a turn from one to the other is a turn."""
    first, second = plan.spacing_mm[a], plan.spacing_mm[b]
    return max(first, second) / min(first, second) <= ANISOTROPY


def _flip_axes(settings: AugmentationSettings, plan: Plan) -> tuple[int, ...]:
    if settings.flip_axes is None:
        return () if plan.modality == "xray" else tuple(range(plan.dims))
    axes = tuple(settings.flip_axes)
    if not set(axes) <= set(range(plan.dims)):
        _refuse("flip_axes", axes, f"axes from 0 to {plan.dims - 1}")
    return axes


def _intensity(settings: AugmentationSettings, plan: Plan) -> list[Randomizable]:
    prob = settings.intensity_probability
    if not prob:
        return []
    low, high = settings.blur_sigma
    transforms: list[Randomizable] = []
    if low < high:
        sigma = (low, high)
        transforms.append(
            RandGaussianSmoothd("image", sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, prob=prob)
        )
    if settings.noise_std:
        transforms.append(RandGaussianNoised("image", std=settings.noise_std, prob=prob))
    if settings.contrast:
        transforms.append(
            RandScaleIntensityd("image", factors=settings.contrast, prob=prob, channel_wise=True)
        )
    if settings.brightness:
        transforms.append(
            RandShiftIntensityd("image", offsets=settings.brightness, prob=prob, channel_wise=True)
        )
    return transforms + _coarse(settings, plan, prob)


def _coarse(settings: AugmentationSettings, plan: Plan, prob: float) -> list[Randomizable]:
    transforms: list[Randomizable] = []
    if settings.low_resolution[0] < settings.low_resolution[1]:
        transforms.append(
            RandSimulateLowResolutiond(
                "image",
                prob=prob,
                zoom_range=tuple(settings.low_resolution),
                upsample_mode=_LINEAR[plan.dims],
            )
        )
    if settings.gamma[0] < settings.gamma[1] and plan.modality != "ct":
        transforms.append(
            RandAdjustContrastd("image", prob=prob, gamma=tuple(settings.gamma), retain_stats=True)
        )
    return transforms


def _refuse(name: str, seen: object, expected: str) -> None:
    raise ConfigError(
        "A setting of the augmentation is wrong.", where=name, seen=seen, expected=expected
    )
