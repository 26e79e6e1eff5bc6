"""A made-up scan of the model's kind, to try the page without any patient's data."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.serve.uploads import CASE
from lesionseg.plan.plan import Plan

# air, tissue, its standard deviation, and how much brighter lesions are
_LEVELS = {"mri": (0, 300, 30, 150), "ct": (-1000, 40, 15, 60), "xray": (200, 2000, 150, 600)}


def write_example(folder: Path, plan: Plan) -> None:
    """Write an ellipsoid of smooth texture with bright spheres, once for every channel."""
    air, tissue, std, contrast = _LEVELS[plan.modality]
    rng, shape = np.random.default_rng(0), (64, 96, 96) if plan.dims == 3 else (256, 256)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    texture = gaussian_filter(rng.normal(size=shape), 2)
    image = np.where((axes**2).sum(0) < 0.8, tissue + std * texture / texture.std(), air)
    for centre in rng.uniform(-0.45, 0.45, size=(5, plan.dims)):
        distance = np.sqrt(((axes - centre.reshape(-1, *[1] * plan.dims)) ** 2).sum(0))
        image += contrast * np.clip((0.12 - distance) / 0.04, 0, 1)
    image += rng.normal(0, std / 3, shape)
    stored = np.clip(image, 0 if plan.dims == 2 else -1024, 4095).astype(
        np.uint16 if plan.dims == 2 else np.int16
    )
    grid, suffix = (
        Geometry.from_spacing(shape, plan.spacing_mm),
        (".nii.gz", ".png")[plan.dims == 2],
    )
    for channel in range(len(plan.channel_names)):
        name = f"{CASE}_{channel:04d}" if len(plan.channel_names) > 1 else CASE
        write_volume(folder / f"{name}{suffix}", Volume(stored[None], grid))
