"""MONAI's transforms with our steps and probabilities, to compare their time."""

from collections.abc import Sequence
from math import radians
from typing import Any

from monai import transforms as mt

from lesionseg.config import AugmentConfig
from lesionseg.data import augment


def monai_chain(settings: AugmentConfig, masks: Sequence[str]) -> list[Any]:
    """Return transforms for 3-D MRI tiles of isotropic voxels. `masks` move with the image."""
    keys = ("image", *masks)
    p = settings.intensity_probability
    sigma = augment.BLUR_SIGMA
    affine: dict[str, Any] = {
        "rotate_range": [radians(settings.rotate_degrees)] * 3,
        "shear_range": [augment.SHEAR] * 6,
        "scale_range": [augment.SCALE] * 3,
        "mode": ("bilinear", *("nearest" for _ in masks)),
        "padding_mode": "zeros",
    }
    elastic = settings.spatial_probability * augment.ELASTIC_SHARE
    return [
        mt.RandAffined(keys, prob=settings.spatial_probability - elastic, **affine),
        mt.Rand3DElasticd(
            keys, prob=elastic, sigma_range=(5, 8), magnitude_range=(50, 150), **affine
        ),
        *(mt.RandFlipd(keys, augment.FLIP_PROBABILITY, axis) for axis in range(3)),
        mt.RandSimulateLowResolutiond(
            "image", prob=p, zoom_range=augment.LOW_RESOLUTION, upsample_mode="trilinear"
        ),
        mt.RandGaussianSmoothd("image", sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, prob=p),
        mt.RandScaleIntensityd("image", factors=augment.CONTRAST, prob=p),
        mt.RandShiftIntensityd("image", offsets=augment.BRIGHTNESS, prob=p),
        mt.RandGaussianNoised("image", std=augment.NOISE_STD, prob=p),
        mt.RandAdjustContrastd("image", prob=p, gamma=augment.GAMMA, retain_stats=True),
    ]
