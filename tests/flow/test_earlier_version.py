"""Files of earlier versions open, continue, or are refused with the command that writes them again.

`earlier/version_1_1.zip` has four folders, which commit 3cf5bbb6 wrote for the dataset of
`write_dataset`: `run` (a complete run with its bundle), `half` (a run that was killed after step 80
of 150), `found` (predictions) and `scores` (the evaluation of these).

`earlier/version_2_0_dev.zip` has `run`, `found` and `scores` of commit 84b5a715, the test scan P7
as the DICOM series `series`, and `night`, its predictions with
`dicom_output=all operating_point=score:0.5`. Nothing in it is predicted again.
"""

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry
from lesionseg.inference import bundle_digest
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.text import read_csv, read_json, write_json
from lesionseg.io.volumes import read_volume
from tests.flow.cases import evaluate, predict, scores_of, train
from tests.inference.rounding import change_last_digits
from tests.pipeline.cases import write_array

ARCHIVES = Path(__file__).parent / "earlier"
SHAPE = (16, 20, 20)
SETTINGS = ["model.base_features=1", "model.tile_shape=[16,16,16]"]


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """Return a working directory with the files of version 1.1 and their dataset `raw`."""
    return unpack("version_1_1.zip", tmp_path, monkeypatch)


@pytest.fixture
def earlier_2(tmp_path, monkeypatch):
    """Return a working directory with the files of an early 2.0 and their dataset `raw`."""
    return unpack("version_2_0_dev.zip", tmp_path, monkeypatch)


def unpack(name, folder, monkeypatch):
    """Unpack an archive and write its dataset `raw` into a folder, which becomes the current."""
    with zipfile.ZipFile(ARCHIVES / name) as archive:
        archive.extractall(folder)
    write_dataset(folder / "raw")
    monkeypatch.chdir(folder)  # the runs state their dataset relative to it
    return folder


def write_dataset(root):
    """Write eight scans, six of them for training, with one or two bright lesions each."""
    geometry = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))
    for number in range(8):
        rng = np.random.default_rng(number)
        mask = np.zeros(SHAPE, dtype=np.uint8)
        for _ in range(1 + number % 2):
            z, y, x = rng.integers(2, 11, size=3)
            mask[z : z + 3, y : y + 4, x : x + 4] = 1
        image = (rng.normal(100, 10, SHAPE) + 60 * mask).astype(np.int16)
        part = "Tr" if number < 6 else "Ts"
        write_array(root / f"images{part}" / f"P{number}_0000.nii", image, geometry)
        write_array(root / f"labels{part}" / f"P{number}.nii", mask, geometry)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 6,
        "file_ending": ".nii",
    }
    write_json(root / "dataset.json", description)


def test_bundle_predicts_the_same_masks(earlier):
    rows = predict("run/bundle", "raw/imagesTs", earlier / "again")
    assert [row["status"] for row in rows.values()] == ["done", "done"]
    for case in rows:
        mask = read_volume(earlier / "again" / f"{case}_mask.nii").array
        found = read_volume(earlier / "found" / f"{case}_mask.nii").array
        # another processor may move a voxel at the threshold to the other side
        assert (mask != found).sum() <= 2  # of 47 in one of them


def test_predictions_are_predicted_again_into_the_same_folder(earlier):
    before = {row["case"]: row["n_accepted"] for row in read_csv(Path("found/predictions.csv"))}
    rows = predict("run/bundle", "raw/imagesTs", earlier / "found")
    assert {case: row["status"] for case, row in rows.items()} == {"P6": "done", "P7": "done"}
    assert {case: row["n_accepted"] for case, row in rows.items()} == before


def test_scores_are_refused_with_the_command_that_writes_them_again(run_command, earlier):
    report = ["scores=scores", "output=page", "images=raw/imagesTs", "reference=raw/labelsTs"]
    report += ["prediction=found", "report.pdf=false"]
    assert "evaluate reference=" in run_command("report", report, 1).err
    recall = read_json(Path("scores/scores.json"))["lesion_recall"]["value"]
    again = evaluate("raw/labelsTs", "found", Path("scores"))
    assert again["lesion_recall"]["value"] == recall
    assert run("report", report) == 0


def test_complete_run_is_scored_again_with_the_same_weights(earlier):
    weights = Path("run/bundle/weights.safetensors")
    before = weights.read_bytes()
    assert read_json(Path("run/scores.json"))["schema_version"] == 3
    train("raw", Path("run"), *SETTINGS, "trainer.max_steps=120")
    assert scores_of(Path("run"))["schema_version"] == 4
    assert weights.read_bytes() == before


def test_run_scored_again_on_another_processor_predicts_no_scan_again(earlier):
    score = partial(train, "raw", Path("run"), *SETTINGS, "trainer.max_steps=120")
    score()
    files = BundleFiles(Path("run/bundle"))
    for path in (files.weights, files.selection):
        change_last_digits(path)
    digest = bundle_digest("run")
    predict("run", "raw/imagesTs", earlier / "again")
    Path("run/finished.json").unlink()
    score()
    assert bundle_digest("run") == digest
    rows = predict("run", "raw/imagesTs", earlier / "again")
    assert {case: row["status"] for case, row in rows.items()} == {"P6": "kept", "P7": "kept"}


def test_interrupted_run_continues_at_its_checkpoint(earlier):
    before = read_csv(Path("half/metrics.csv"))
    train("raw", Path("half"), *SETTINGS, "trainer.max_steps=150")
    after = read_csv(Path("half/metrics.csv"))
    assert [row["loss"] for row in after[: len(before)]] == [row["loss"] for row in before]
    assert 80 < int(after[len(before)]["step"]) < 90  # the step after the checkpoint
    assert int(after[-1]["step"]) == 149
    assert predict("half", "raw/imagesTs", earlier / "again")["P6"]["status"] == "done"


def test_second_start_over_results_of_an_early_2_0_predicts_no_case(earlier_2):
    rows = predict("run/bundle", "raw/imagesTs", earlier_2 / "found")
    assert {case: row["status"] for case, row in rows.items()} == {"P6": "kept", "P7": "kept"}
    before = {file: file.read_bytes() for file in Path("night").glob("series_*")}
    settings = ["dicom_output=all", "operating_point=score:0.5"]
    (row,) = predict("run/bundle", "series", earlier_2 / "night", *settings).values()
    assert row["status"] == "kept"
    assert {file: file.read_bytes() for file in Path("night").glob("series_*")} == before
    assert {"night/series_seg.dcm", "night/series_sr.dcm"} <= {str(file) for file in before}


def test_complete_run_of_an_early_2_0_stays_complete(earlier_2):
    before = {name: Path("run", name).read_bytes() for name in ("scores.json", "selection.json")}
    train("raw", Path("run"), *SETTINGS, "trainer.max_steps=120")
    assert {name: Path("run", name).read_bytes() for name in before} == before


def test_scores_of_an_early_2_0_are_read_and_found_again(earlier_2):
    images = ["images=raw/imagesTs", "reference=raw/labelsTs", "prediction=found"]
    assert run("report", ["scores=scores", "output=page", *images, "report.pdf=false"]) == 0
    before = scores_of(Path("scores"))
    after = evaluate("raw/labelsTs", "found", Path("again"))
    assert values_of(after).items() >= values_of(before).items()  # later versions add scores


def values_of(scores):
    """Return the values of a scores.json by name, label, subset and threshold."""
    return {
        tuple(str(row[key]) for key in ("name", "label", "subset", "at")): row["value"]
        for row in scores["scores"]
    }
