"""Scans without a channel: training, scores, prediction, and warnings."""

import shutil

import numpy as np
import pytest

import lesionseg
from lesionseg.core import Volume
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.inference.bundle import bundle_selection
from lesionseg.io.text import read_csv, read_json, write_json
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import Plan
from tests.flow.cases import HEADS, TILE, predict, scores_of, train

SETTINGS = [TILE, "trainer.max_steps=4", "trainer.accelerator=cpu"]
FLAIR = "raw/imagesTs/SIM_006_0000.nii.gz"


def write_channels(raw):
    """Write simulated heads of two channels. A training, a validation and a test case lack one."""
    write_mri_phantoms(raw, 8, seed=0, n_test=2, **HEADS)
    for first in list(raw.glob("images*/*_0000.nii.gz")):  # add a T1 with dark lesions
        flair = read_volume(first)
        dark = np.where(flair.array > 0, 1000 - flair.array, 0).astype(np.float32)
        second = first.with_name(first.name.replace("_0000", "_0001"))
        write_volume(second, Volume(dark, flair.geometry))
    facts = read_json(raw / "dataset.json")
    facts["channel_names"] = {"0": "FLAIR", "1": "T1"}
    write_json(raw / "dataset.json", facts)
    for lacking in ("imagesTr/SIM_000_0001", "imagesTr/SIM_005_0001", "imagesTs/SIM_007_0000"):
        (raw / f"{lacking}.nii.gz").unlink()
    roles = {"train": ["SIM_000", "SIM_001", "SIM_002"], "val": ["SIM_003", "SIM_004", "SIM_005"]}
    write_json(raw / "splits_final.json", [roles])


@pytest.fixture(scope="session")
def folder(once):
    def make(folder):
        write_channels(folder / "raw")
        train(folder / "raw", folder / "run", "data.channel_dropout=0.5", *SETTINGS)

    return once("missing_channels", make)


@pytest.fixture
def plan(folder):
    return Plan.from_json((folder / "run" / "bundle" / "plan.json").read_text())


def test_cases_without_a_channel_are_scored_like_all_cases(folder, plan):
    assert plan.may_lack
    for part, numbers in (("run/test", (6, 7)), ("run", (3, 4, 5))):
        cases = [row["case"] for row in read_csv(folder / part / "cases.csv")]
        assert cases == [f"SIM_00{n}" for n in numbers]
        point = scores_of(folder / part)["operating_point"]
        assert point["score"] == bundle_selection(folder / "run").point.score


def test_scan_without_a_channel_is_predicted_with_a_warning(folder, plan, tmp_path):
    (tmp_path / "scans").mkdir()
    shutil.copy(folder / FLAIR, tmp_path / "scans")
    (row,) = predict(folder / "run", tmp_path / "scans", tmp_path / "out").values()
    point = bundle_selection(folder / "run").point
    assert (row["missing"], row["operating_point"]) == ("T1", point.name)
    assert "without T1" in row["warning"]
    assert "empty" not in row["warning"].lower()
    (file,) = (tmp_path / "out").glob("*_candidates.json")
    assert read_json(file)["input_check"]["missing"] == ["T1"]


def test_empty_cell_and_array_without_a_channel_give_equal_results(folder, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"case,image,image_0001\na,{folder / FLAIR},\n")
    predict(folder / "run", table, tmp_path / "out")
    listed = read_json(tmp_path / "out" / "a_candidates.json")["candidates"]
    predictor = lesionseg.Predictor(folder / "run")
    volume = read_volume(folder / FLAIR)
    array = predictor(volume.array, volume.geometry.affine, missing=["T1"])
    scores = [candidate.score for candidate in array.candidates]
    assert scores == pytest.approx([c["score"] for c in listed])
    assert predictor(folder / FLAIR, missing=["T1"]).operating_point == array.operating_point
    with pytest.raises(ConfigError, match="T2"):
        predictor(folder / FLAIR, missing=["T2"])


def test_model_without_channel_dropout_refuses_missing_channels(folder, plan, tmp_path, capsys):
    bundle = shutil.copytree(folder / "run" / "bundle", tmp_path / "bundle")
    (bundle / "plan.json").write_text(plan.with_(may_lack=False).to_json())
    (row,) = predict(bundle, folder / FLAIR, tmp_path / "out", status=3).values()
    assert row["status"] == "failed"
    assert "no T1" in row["message"]
    both = lesionseg.Predictor([folder / "run", bundle])  # only one model accepts missing channels
    with pytest.raises(DatasetError, match="no T1"):
        both(folder / FLAIR, missing=["T1"])
    train(folder / "raw", tmp_path / "run", *SETTINGS, status=1)
    assert "data.channel_dropout" in capsys.readouterr().err
