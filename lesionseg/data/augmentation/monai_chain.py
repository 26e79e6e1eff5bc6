"""The augmentation built of MONAI's own transforms, for `augment=monai`."""

from collections.abc import Sequence
from itertools import permutations
from math import radians
from typing import Any

from monai import transforms as mt

from lesionseg.data.augmentation.augment import AugmentationSettings, alike_axes, flip_axes
from lesionseg.data.transforms import MASKS, Transform
from lesionseg.plan.plan import Plan


def monai_chain(
    settings: AugmentationSettings, plan: Plan, masks: Sequence[str] = MASKS
) -> list[Transform]:
    """Our steps and probabilities by MONAI's transforms; `masks` are moved with the image.

    MONAI turns and shears voxels and not millimetres, so that only axes of one spacing are turned
    into each other. Its bend has strengths of its own; lesions are copied as ever.
    """
    p, sigma = settings.intensity_probability, tuple(settings.blur_sigma)
    flips = settings.flip_probability
    return [
        *_movements(settings, plan, ("image", *masks)),
        *(mt.RandFlipd(("image", *masks), flips, axis) for axis in flip_axes(settings, plan)),
        mt.RandSimulateLowResolutiond(
            "image", prob=p, zoom_range=tuple(settings.low_resolution), upsample_mode=_mode(plan)
        ),
        mt.RandGaussianSmoothd("image", sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, prob=p),
        mt.RandScaleIntensityd("image", factors=settings.contrast, prob=p),
        mt.RandShiftIntensityd("image", offsets=settings.brightness, prob=p),
        mt.RandGaussianNoised("image", std=settings.noise_std, prob=p),
        *_gamma(settings, plan),
    ]


def _movements(
    settings: AugmentationSettings, plan: Plan, keys: Sequence[str]
) -> tuple[Transform, Transform]:
    """Rotation, scale and shear, without and with a bend."""
    alike, fine = alike_axes(plan.spacing_mm)
    turn, axes = radians(settings.rotate_degrees), range(plan.dims)
    # about axis i the others are turned into each other
    turns = [turn * alike[(i + 1) % 3, (i + 2) % 3] for i in axes] if plan.dims == 3 else [turn]
    affine: dict[str, Any] = {
        "rotate_range": turns,
        "shear_range": [settings.shear * alike[i, j] for i, j in permutations(axes, 2)],
        "scale_range": [settings.scale * n for n in fine],
        "mode": ("bilinear", *("nearest" for _ in keys[1:])),
        "padding_mode": "zeros",
    }
    bent = settings.spatial_probability * settings.elastic_share
    plain = mt.RandAffined(keys, prob=settings.spatial_probability - bent, **affine)
    if plan.dims == 3:
        strength = {"sigma_range": (5, 8), "magnitude_range": (50, 150)}
        return plain, mt.Rand3DElasticd(keys, prob=bent, **strength, **affine)
    knots = (settings.elastic_spacing,) * 2
    return plain, mt.Rand2DElasticd(keys, knots, (0, settings.elastic_voxels), prob=bent, **affine)


def _gamma(settings: AugmentationSettings, plan: Plan) -> list[Transform]:
    """None for CT, whose numbers mean something."""
    gamma, p = tuple(settings.gamma), settings.intensity_probability
    change = mt.RandAdjustContrastd("image", prob=p, gamma=gamma, retain_stats=True)
    return [] if plan.modality == "ct" else [change]


def _mode(plan: Plan) -> str:
    return "trilinear" if plan.dims == 3 else "bilinear"
