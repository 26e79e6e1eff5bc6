"""A whole-body CT of 512 x 512 x 1024 passes in 3.2 GB of a computer's memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.plan.plan import Architecture, Normalisation, Plan

_PROGRAM = """
import sys
from pathlib import Path
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

folder = Path(sys.argv[1])
write_bundle(folder / "bundle", Bright(), Plan.from_json((folder / "plan.json").read_text()), "")
mine = {"mine": lambda _: Bright()}
(row,) = predict(folder / "bundle", folder / "a.nii.gz", folder / "out", architectures=mine)
print(row.status, row.n_accepted, row.peak_memory_mb, row.message)
"""


@pytest.mark.slow
def test_a_long_ct_passes_in_three_gigabytes_and_a_bit(tmp_path: Path, repository: Path) -> None:
    shape = (1024, 512, 512)
    rng = np.random.default_rng(0)
    axes = np.ogrid[-1:1:512j, -1:1:512j]
    body = sum((a / 0.8) ** 2 for a in axes) < 1
    noise = rng.integers(-20, 20, shape[1:], np.int16)
    image = np.empty(shape, np.int16)
    image[:] = np.where(body, 40, -1000) + noise
    image[100:110, 200:210, 200:215] = 300
    geometry = Geometry.from_spacing(shape, (1.0, 0.8, 0.8))
    write_volume(tmp_path / "a.nii.gz", Volume(image[None], geometry))
    stages = ((1, 1, 1), (2, 2, 2))
    plan = Plan(
        dims=3,
        modality="ct",
        channel_names=("CT",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 0.75, 0.75),
        normalisation=(Normalisation("dataset", -1000, 1000, 0.0, 100.0),),
        tile_shape=(96, 96, 96),
        batch_size=2,
        architecture=Architecture("mine", (8, 16), stages, ((3, 3, 3),) * 2),
        lesion_fraction=0.001,
    )
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    status, n_accepted, peak_mb, *_ = done.stdout.split()
    assert (status, n_accepted) == ("done", "1")
    # two volumes of the plan's grid in float32 are 2.4 GB, the packages 0.4
    assert int(peak_mb) < 3200
