"""Commands as they are typed, what they leave, and small datasets for them."""

import json

import numpy as np

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.io.files import read_csv
from lesionseg.io.volumes import write_volume

TILE = "model.tile_shape=[16,16,16]"
SMALL = [
    "trainer.max_minutes=null",
    "trainer.workers=0",
    "trainer.precision=32-true",
    "model.base_features=4",
    "model.batch_size=2",
    "report.pdf=false",
]


def train(raw, run_dir, *overrides, status=0):
    """A small training, which ends with `status`; returns its folder."""
    given = [f"data.root={raw}", f"run_dir={run_dir}", *SMALL, *overrides]
    assert run("train", given) == status
    return run_dir


def predict(bundle, scans, output, *overrides, status=0):
    """The rows of predictions.csv by case."""
    given = [f"bundle={bundle}", f"input={scans}", f"output={output}", *overrides]
    assert run("predict", given) == status
    table = output / "predictions.csv"
    return {row["case"]: row for row in read_csv(table)} if table.is_file() else {}


def evaluate(reference, prediction, output):
    given = [f"reference={reference}", f"prediction={prediction}", f"output={output}"]
    assert run("evaluate", [*given, "replicates=20"]) == 0
    return scores_of(output)


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text())


def plan_of(folder):
    return json.loads((folder / "plan.json").read_text())


def write(path, array, mm=2.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array[np.newaxis], Geometry.from_spacing(array.shape, (mm,) * 3)))


def write_raw(root, labels, cases, **facts):
    """An nnU-Net raw folder of one channel; `cases`: (Tr or Ts, image, mask) by name."""
    for name, (part, image, mask) in cases.items():
        write(root / f"images{part}" / f"{name}_0000.nii.gz", image.astype(np.float32))
        write(root / f"labels{part}" / f"{name}.nii.gz", mask.astype(np.uint8))
    facts |= {"channel_names": {"0": "T1"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(facts))
    return root
