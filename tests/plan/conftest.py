"""A tiny dataset in memory for the planning rules."""

from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Labels, Reference, Volume
from lesionseg.plan import fingerprint_of, measure_case


def take_fingerprint(dataset, cases):
    """Return the statistics of the labelled cases."""
    return fingerprint_of(dataset, [measure_case(c, c.reference) for c in cases if c.reference])


@pytest.fixture
def dataset():
    return Dataset(
        name="toy",
        root=Path("toy"),
        layout="nnunet",
        dims=3,
        channel_names=("FLAIR",),
        labels=Labels.of({1: "lesion"}),
        cases=tuple(CaseFiles(f"c{i}", (Path(f"c{i}.nii.gz"),), group=f"g{i}") for i in range(3)),
    )


@pytest.fixture
def cases():
    """Return three cases with voxels of 2 mm³. c0 has lesions of 8, 8 and 1 voxels."""
    geometry = Geometry.from_spacing((10, 12, 14), (2.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    found = []
    for name in ("c0", "c1", "c2"):
        image = rng.uniform(100, 200, size=(1, *geometry.shape)).astype(np.float32)
        labels = np.zeros(geometry.shape, dtype=np.uint8)
        if name == "c0":
            labels[1:3, 1:3, 1:3] = labels[6:8, 6:8, 6:8] = labels[9, 11, 13] = 1
            image[0][labels > 0] = 300
        found.append(Case(name, Volume(image, geometry), Reference(geometry, labels), group=name))
    return found
