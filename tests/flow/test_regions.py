"""End to end on a dataset whose labels are regions, part of it to be ignored: train to evaluate."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import read_volume, write_volume
from tests.flow.test_end_to_end import SMALL

SHAPE = (24, 24, 24)
LABELS = {"background": 0, "whole tumor": [1, 2], "core": 2, "ignore": 3}
SETTINGS = [
    *SMALL,
    "trainer.max_steps=60",
    "trainer.ema_decay=null",
    "model.tile_shape=[16,16,16]",
    "optim.lr=0.02",
    "loss=dice_focal",
    "augment=none",
    "operating_point=score:0.3",
]


def _ball(centre: np.ndarray, radius: float) -> np.ndarray:
    grid = np.stack(np.indices(SHAPE), axis=-1)
    return np.linalg.norm(grid - centre, axis=-1) <= radius


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright balls with a brighter core; in the far corner bright ones that are to be ignored."""
    root = tmp_path_factory.mktemp("regions") / "raw"
    rng = np.random.default_rng(0)
    facts = {"channel_names": {"0": "T1"}, "labels": LABELS, "regions_class_order": [1, 2]}
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps(facts))
    for number in range(5):
        centre = rng.integers(7, 12, size=3)
        whole, core = _ball(centre, 5), _ball(centre + 1, 2.5)
        unsure = _ball(np.array((20, 20, 20)), 3)
        image = rng.normal(size=SHAPE) + 4 * whole + 4 * core + 8 * unsure + 10
        mask = np.where(unsure, 3, whole.astype(np.uint8) + core).astype(np.uint8)
        geometry = Geometry.from_spacing(SHAPE, (2.0, 2.0, 2.0))
        part = "Ts" if number == 4 else "Tr"
        name = f"case{number}"
        for folder, end, array in (("images", "_0000", image), ("labels", "", mask)):
            file = root / f"{folder}{part}" / f"{name}{end}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            dtype = np.uint8 if folder == "labels" else np.float32
            write_volume(file, Volume(array.astype(dtype)[np.newaxis], geometry))
    return root


@pytest.fixture(scope="module")
def trained(raw: Path) -> Path:
    folder = raw.parent / "run"
    assert run("train", [f"data.root={raw}", f"run_dir={folder}", *SETTINGS]) == 0
    return folder


def test_the_plan_and_the_card_know_the_regions(trained: Path) -> None:
    plan = json.loads((trained / "bundle" / "plan.json").read_text())
    assert plan["regions"] == [[1, 2], [2]]
    assert plan["label_values"] == [1, 2]
    assert plan["label_names"] == ["whole tumor", "core"]
    card = (trained / "bundle" / "model_card.md").read_text()
    assert "region whole tumor: mask values 1, 2, painted as 1" in card


def test_regions_are_scored_by_name_and_a_lesion_is_one(trained: Path) -> None:
    for scores in (trained / "scores.json", trained / "test" / "scores.json"):
        found = json.loads(scores.read_text())
        assert found["n_lesions"] == found["n_cases"] == 1
        assert list(found["per_label"]) == ["whole tumor", "core"]
        assert found["per_label"]["core"]["n_lesions"] == 1
        assert found["n_true_positive"] == 1
        assert found["dice"]["mean"] > 0.3
        assert found["per_label"]["whole tumor"]["dice"]["mean"] == found["dice"]["mean"]
        # what is to be ignored shines brighter than any lesion, and yet is no false positive
        assert found["n_false_positive"] == 0
    with (trained / "cases.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["dice_core"]) >= 0
    assert row["n_lesions_whole_tumor"] == "1"


def test_the_mask_holds_the_files_values(trained: Path, raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "predicted"
    scans = [f"bundle={trained}", f"input={raw / 'imagesTs'}", f"output={output}"]
    assert run("predict", scans) == 0
    mask = read_volume(output / "case4_mask.nii.gz").array[0]
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert (mask == 1).any()
    truth = read_volume(raw / "labelsTs" / "case4.nii.gz").array[0]
    mask = np.where(truth == 3, 0, mask)
    core = 2 * ((mask == 2) & (truth == 2)).sum() / ((mask == 2).sum() + (truth == 2).sum())
    # the same files scored again, and then the bare mask as another program's
    ours = json.loads((trained / "test" / "scores.json").read_text())
    assert ours["per_label"]["core"]["dice"]["mean"] == pytest.approx(core)
    for name in ("all", "bare"):
        scored = [f"reference={raw}", f"prediction={output}", f"output={tmp_path / name}"]
        assert run("evaluate", [*scored, "replicates=20"]) == 0
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        assert scores["per_label"]["core"]["n_cases"] == scores["n_cases"]
        assert scores["n_lesions"] == scores["n_cases"]
        for file in output.glob("*_*"):
            if not file.name.endswith("_mask.nii.gz"):
                file.unlink()


def test_a_softmax_is_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"data.root={raw}", f"run_dir={tmp_path / 'run'}", *SETTINGS]
    assert run("train", [*asked, "model.activation=softmax", "+loss.activation=softmax"]) == 2
    assert "regions overlap" in capsys.readouterr().err
