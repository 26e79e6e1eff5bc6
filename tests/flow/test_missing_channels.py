"""Scans without a channel: a network trained to do without, scored so, and what it says of them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lesionseg
from lesionseg.cli import run
from lesionseg.core import Volume
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import Plan
from tests.flow.test_end_to_end import SMALL

SETTINGS = [*SMALL, "trainer.max_steps=4", "trainer.accelerator=cpu", "model.tile_shape=[16,16,16]"]


def _second_channel(folder: Path) -> None:
    """Beside each FLAIR a T1 in which lesions are dark."""
    for first in folder.glob("*_0000.nii.gz"):
        volume = read_volume(first)
        dark = np.where(volume.array > 0, 1000 - volume.array, 0).astype(np.float32)
        second = Volume(dark, volume.geometry)
        write_volume(first.with_name(first.name.replace("_0000", "_0001")), second)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated heads of two channels, of which some that teach, validate or test lack one."""
    folder = tmp_path_factory.mktemp("channels") / "raw"
    write_mri_phantoms(folder, 8, seed=0, n_test=2, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    for part in ("imagesTr", "imagesTs"):
        _second_channel(folder / part)
    facts = json.loads((folder / "dataset.json").read_text())
    facts["channel_names"] = {"0": "FLAIR", "1": "T1"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def trained(raw: Path) -> Path:
    for lacking in ("imagesTr/SIM_000_0001", "imagesTr/SIM_005_0001", "imagesTs/SIM_007_0000"):
        (raw / f"{lacking}.nii.gz").unlink()
    validation = ["SIM_003", "SIM_004", "SIM_005"]
    splits = [{"train": ["SIM_000", "SIM_001", "SIM_002"], "val": validation}]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    folder = raw.parent / "run"
    overrides = [f"data.root={raw}", f"run_dir={folder}", "data.channel_dropout=0.5", *SETTINGS]
    assert run("train", overrides) == 0
    return folder


def _plan(folder: Path) -> Plan:
    return Plan.from_json((folder / "bundle" / "plan.json").read_text())


def test_cases_that_lack_a_channel_are_scored_with_the_others(trained: Path) -> None:
    assert _plan(trained).may_lack
    for folder, cases in (
        ("test", ["SIM_006", "SIM_007"]),
        ("", ["SIM_003", "SIM_004", "SIM_005"]),
    ):
        with (trained / folder / "cases.csv").open() as stream:
            assert [row["case"] for row in csv.DictReader(stream)] == cases
        point = json.loads((trained / folder / "scores.json").read_text())["operating_point"]
        assert point["score"] == _plan(trained).operating_points[0].score


def test_a_scan_without_a_channel_is_predicted_and_said(trained: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(trained.parent / "raw" / "imagesTs", scans)
    for unused in ("SIM_006_0001", "SIM_007_0001"):
        (scans / f"{unused}.nii.gz").unlink()
    output = tmp_path / "out"
    assert run("predict", [f"bundle={trained}", f"input={scans}", f"output={output}"]) == 0
    with (output / "predictions.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    point = _plan(trained).operating_points[0]
    assert (row["missing"], row["operating_point"]) == ("T1", point.name)
    assert row["warning"].startswith("Predicted without T1: expect lower sensitivity.")
    assert "empty" not in row["warning"].lower()
    written = json.loads(next(output.glob("*_candidates.json")).read_text())
    assert written["operating_point"]["score"] == point.score
    assert written["input_check"]["missing"] == ["T1"]


def test_an_empty_cell_and_an_array_lack_the_same_channel(trained: Path, tmp_path: Path) -> None:
    flair = trained.parent / "raw" / "imagesTs" / "SIM_006_0000.nii.gz"
    table = tmp_path / "list.csv"
    table.write_text(f"case,image,image_0001\na,{flair},\n")
    output = tmp_path / "out"
    assert run("predict", [f"bundle={trained}", f"input={table}", f"output={output}"]) == 0
    listed = json.loads((output / "a_candidates.json").read_text())
    predictor = lesionseg.Predictor(trained)
    volume = read_volume(flair)
    array = predictor(volume.array, volume.geometry.affine, missing=["T1"])
    scores = [candidate.score for candidate in array.candidates]
    assert scores == pytest.approx([c["score"] for c in listed["candidates"]])
    assert predictor(flair, missing=["T1"]).operating_point == array.operating_point
    with pytest.raises(ConfigError, match="none of"):
        predictor(flair, missing=["T2"])
    nothing = Volume(volume.array.repeat(2, 0), volume.geometry, missing=(0, 1))
    with pytest.raises(DatasetError, match=r"no FLAIR, T1.*may lack one channel"):
        predictor.predict_volume(nothing, "a")


def test_who_was_not_trained_for_it_refuses_by_name(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle" / "plan.json"
    shutil.copytree(trained / "bundle", path.parent)
    path.write_text(_plan(trained).with_(may_lack=False).to_json())
    flair = trained.parent / "raw" / "imagesTs" / "SIM_006_0000.nii.gz"
    output = tmp_path / "out"
    assert run("predict", [f"bundle={path.parent}", f"input={flair}", f"output={output}"]) == 1
    with (output / "predictions.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == "failed"
    assert "no T1" in row["message"]
    both = lesionseg.Predictor([trained, path.parent])  # may lack what both may
    with pytest.raises(DatasetError, match="no T1"):
        both(flair, missing=["T1"])


def test_a_case_without_a_channel_is_refused_where_none_is_left_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trained.parent / "raw"
    assert run("train", [f"data.root={raw}", f"run_dir={tmp_path / 'run'}", *SETTINGS]) == 1
    said = capsys.readouterr().err
    assert "SIM_000" in said
    assert "data.channel_dropout" in said
