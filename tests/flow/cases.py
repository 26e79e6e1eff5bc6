"""Run commands like a user, read their results, and write small datasets for them."""

from contextlib import contextmanager
from unittest import mock

import numpy as np

from lesionseg.cli import run
from lesionseg.core import Geometry
from lesionseg.io.text import read_csv, read_json, write_json
from tests.pipeline.cases import write_array

# sizes of simulated heads
HEADS = {"shape": (16, 18, 16), "spacing_mm": (8.0, 8.0, 8.0)}
FINE_HEADS = {"shape": (32, 40, 32), "spacing_mm": (4.0, 4.0, 4.0)}
TILE = "model.tile_shape=[16,16,16]"
SMALL = [
    "trainer.max_minutes=null",
    "trainer.workers=0",
    "trainer.precision=32-true",
    "model.base_features=4",
    "model.batch_size=2",
    "report.pdf=false",
]


@contextmanager
def quick_pages():
    """Write pages with one picture of each kind, and an empty drawing in place of each chart.

    Drawing all of them takes longer than a training of a few steps. tests/reporting draws them.
    """
    one_each = dict.fromkeys(("N_ON_TOP", "MAX_MISSED", "MAX_FALSE", "MAX_FOUND"), 1)
    with (
        mock.patch.multiple("lesionseg.reporting.write", **one_each),
        mock.patch("lesionseg.reporting.charts.Chart.svg", return_value="<svg></svg>"),
    ):
        yield


def train(raw, run_dir, *overrides, status=0):
    """Run a small training that ends with `status`. Return its folder."""
    settings = [f"data.root={raw}", f"run_dir={run_dir}", *SMALL, *overrides]
    with quick_pages():
        assert run("train", settings) == status
    return run_dir


def predict(bundle, scans, output, *overrides, status=0):
    """Predict scans. Return the rows of predictions.csv by case."""
    settings = [f"bundle={bundle}", f"input={scans}", f"output={output}", *overrides]
    assert run("predict", settings) == status
    table = output / "predictions.csv"
    return {row["case"]: row for row in read_csv(table)} if table.is_file() else {}


def evaluate(reference, prediction, output):
    settings = [f"reference={reference}", f"prediction={prediction}", f"output={output}"]
    assert run("evaluate", [*settings, "replicates=20"]) == 0
    return scores_of(output)


def scores_of(folder):
    return by_name(read_json(folder / "scores.json"))


def by_name(content):
    """Return the content of scores.json with the numbers by their names.

    A count is a number. Another number has the keys `value`, `mean` (the same) and `reason`. The
    numbers of labels are in `per_label`, and `froc` has the keys `fp_per_case` and `recall`.
    """
    found = {**content, "per_label": {}}
    for row in content["scores"]:
        target = found
        if row["label"]:
            target = found["per_label"].setdefault(row["label"], {})
        is_count = row["name"].startswith("n_")
        value = {key: row[key] for key in ("value", "reason")} | {"mean": row["value"]}
        if not row["subset"]:
            target[row["name"]] = row["value"] if is_count else value
    points = [row for row in content["curves"] if row["name"] == "froc"]
    rates, recalls = ([row[key] for row in points] for key in ("at", "value"))
    return found | {"froc": {"fp_per_case": rates, "recall": recalls}}


def plan_of(folder):
    return read_json(folder / "plan.json")


def write(path, array, mm=2.0):
    write_array(path, array, Geometry.from_spacing(array.shape, (mm,) * 3))


def write_raw(root, labels, cases, **facts):
    """Write an nnU-Net raw folder of one channel.

    `cases` contains (Tr or Ts, image, mask) by name.
    """
    for name, (part, image, mask) in cases.items():
        write(root / f"images{part}" / f"{name}_0000.nii.gz", image.astype(np.float32))
        write(root / f"labels{part}" / f"{name}.nii.gz", mask.astype(np.uint8))
    facts |= {"channel_names": {"0": "T1"}, "labels": labels}
    write_json(root / "dataset.json", facts)
    return root
