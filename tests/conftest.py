"""What every test may use: one thread, a seeded generator, a toy case, a plan."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.plan.plan import Architecture, Normalisation, Plan


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def toy_case(rng: np.random.Generator) -> Case:
    """One 24 x 32 x 28 volume of noise with two bright boxes, marked as two lesions."""
    geometry = Geometry.from_spacing((24, 32, 28), (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[4:8, 5:9, 6:10] = 1
    labels[14:20, 18:24, 15:21] = 1
    image = rng.normal(100, 5, geometry.shape).astype(np.float32) + 60 * labels
    return Case("toy", Volume(image[None], geometry), Reference(geometry, labels))


@pytest.fixture
def plan() -> Plan:
    """A 3-D plan of two stages, small enough for a test."""
    return Plan(
        dims=3,
        modality="mri",
        channel_names=("T1",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(16, 16, 16),
        batch_size=2,
        architecture=Architecture(
            "unet", (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), 1, 2
        ),
        lesion_fraction=0.01,
    )


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
