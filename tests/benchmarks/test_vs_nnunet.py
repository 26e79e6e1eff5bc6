"""The parts of the comparison with nnU-Net that need no nnU-Net: candidates, dataset and table."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.learning import vs_nnunet as versus
from benchmarks.learning import vs_nnunet_table as table
from benchmarks.learning.cell_rows import found_at
from lesionseg.core import Geometry, Volume
from lesionseg.io.text import read_json, write_json
from lesionseg.phantoms import write_mri_phantoms


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Prepare four tiny heads, one of which is scored."""
    grid = {"shape": (32, 40, 32), "spacing_mm": (4.0,) * 3}
    folder = tmp_path_factory.mktemp("heads")
    write_mri_phantoms(folder / "raw", 4, seed=1, n_test=1, **grid)
    return versus.prepare(folder / "raw", options_for(folder / "out"))


def options_for(output):
    """Return the command line of 20 minutes."""
    options = {"output": output, "accelerator": "cpu", "overrides": [], "group": None}
    options |= {"minutes": 20.0, "steps": None, "clock": "wall"}
    return argparse.Namespace(**options)


def test_candidates_are_ranked_by_log_odds_if_probabilities_round_to_1(setting, tmp_path):
    odds = np.full((1, 12, 12, 12), -20, np.float32)
    np.save(tmp_path / "empty.npy", odds)
    odds[0, 2:5, 2:5, 2:5] = 40
    odds[0, 8:11, 8:11, 8:11] = 60
    np.save(tmp_path / "a.npy", odds)
    assert versus.probabilities(40) == versus.probabilities(60) == 1
    volume = Volume(odds, Geometry((12, 12, 12), np.eye(4)))
    kept = versus.Kept(tmp_path, setting.plan)
    assert kept.predict_volume(volume, "empty").candidates == ()
    found = kept.predict_volume(volume, "a").candidates
    first, second = sorted(found, key=lambda c: c.score, reverse=True)
    assert first.start_vox == (8, 8, 8)
    assert first.score > second.score
    score = versus.score(np.array([10.0] * 8 + [-5.0] * 30))
    assert score == pytest.approx(0.75)  # arctan 1 is a quarter of π
    assert versus.score(np.array([0.0])) == 0.5


def test_boxes_of_films_are_scored_by_overlap_too(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((96, 96), np.uint8)
    mask[20:40, 30:60] = 1
    for part, case in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        for folder, name, film in (
            ("images", f"{case}_0000", rng.integers(0, 255, mask.shape, np.uint8)),
            ("labels", case, mask),
        ):
            path = tmp_path / "raw" / f"{folder}{part}" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film).save(path)
    labels = {"background": 0, "lesion": 1}
    described = {"channel_names": {"0": "film"}, "labels": labels, "file_ending": ".png"}
    write_json(tmp_path / "raw" / "dataset.json", described | {"numTraining": 2})
    setting = versus.prepare(tmp_path / "raw", options_for(tmp_path / "out"))

    def score_box(rows, columns):
        odds = np.full((1, *mask.shape), -20, np.float32)
        odds[0, rows, columns] = 20
        np.save(tmp_path / "c.npy", odds)
        return versus.score_boxes(setting, tmp_path)

    same = score_box(slice(20, 40), slice(30, 60))
    assert (same["ap"], same["ap40"], same["recall_half_fp"], same["films"]) == (1, 1, 1, 1)
    half = score_box(slice(20, 40), slice(30, 41))  # 11 of 30 columns: IoU .37
    assert (half["ap"], half["ap40"]) == (1, 0)


def test_nnunet_gets_the_training_cases_and_our_tile_size(setting, tmp_path):
    job = versus.nnunet_job(setting, "nnunet_cut", tmp_path / "nnunet")
    raw = tmp_path / "nnunet" / "raw" / versus.DATASET
    learning = {files.case for files in setting.found.of_role("train")}
    assert {p.name.removesuffix(".nii.gz") for p in (raw / "labelsTr").iterdir()} == learning
    assert set(job["scans"]) == {files.case for files in setting.scored}
    assert not learning & set(job["scans"])
    assert job["tile_voxels"] == np.prod(setting.plan.tile_shape)
    described = read_json(raw / "dataset.json")
    assert described["numTraining"] == len(learning) == 3
    assert list(described["channel_names"].values()) == list(setting.plan.channel_names)


def test_nnunet_gets_our_own_tiles(setting, tmp_path):
    plan = replace(setting.own_plan, tile_shape=(16, 16, 16), batch_size=7)
    job = versus.nnunet_job(replace(setting, own_plan=plan), "nnunet_tiles", tmp_path / "nnunet")
    assert (job["plan"], job["tile"], job["batch"]) == ("tiles", [16, 16, 16], 7)
    resenc = versus.nnunet_job(setting, "nnunet_resenc", tmp_path / "resenc")
    assert (resenc["plan"], resenc["planner"]) == ("cut", "nnUNetPlannerResEncM")


@pytest.mark.parametrize(
    ("other_part", "message"),
    [
        ({}, None),
        ({"overrides": "loss.gamma=2"}, "has other overrides: give the variant another name"),
        ({"identity": ["other"]}, "scored other cases"),
    ],
)
def test_a_finished_cell_is_read_unless_it_is_of_another_training(
    setting, tmp_path, other_part, message
):
    asked = {"output": tmp_path, "overrides": ["loss.gamma=1"], "variant": "G", "threads": 1}
    options = argparse.Namespace(**vars(setting.options) | asked)
    path = tmp_path / "cells" / f"{setting.name}__lesionseg_G__20min__1t__s0.json"
    path.parent.mkdir()
    cell = {"identity": versus.identity(setting), "overrides": "loss.gamma=1"} | other_part
    write_json(path, cell)
    asked_for = replace(setting, options=options)
    if message is None:
        assert versus.make_cell(asked_for, "lesionseg", 0) == cell
    else:
        with pytest.raises(SystemExit, match=message):
            versus.make_cell(asked_for, "lesionseg", 0)


def make_cell(found):
    """Make the tables of one lesion of 4 mm per patient. `found` has an answer for each patient."""
    lesions = []
    cases = []
    for i, hit in enumerate(found):
        who = {"case": f"c{i}", "group": f"P{i}"}
        lesions.append({**who, "diameter_mm": 4.0, "found": hit})
        cases.append({**who, "dice": 0.1 * i})
    return {"lesions": lesions, "cases": cases}


def test_interval_is_paired_by_patient():
    answers = [True, False] * 5
    found = table.small_found
    same = table.paired_interval([make_cell(answers)], [make_cell(answers)], found)
    assert same == (0, 0, 0)  # the differences between patients cancel
    better = table.paired_interval([make_cell([True] * 10)], [make_cell(answers)], found)
    assert better[0] == pytest.approx(0.5)
    assert 0 < better[1] < 0.5 < better[2]
    few = [make_cell([True] * 4)]
    assert table.paired_interval(few, few, found) is None


def test_lesions_are_counted_at_a_rate_of_false_positives():
    lesions = [(4.0, 0.9), (4.0, 0.6), (8.0, 0.5), (8.0, 0.2), (3.0, None)]
    cell = {
        "cases": [{}, {}],
        "false_positives": [0.8, 0.6, 0.4],
        "lesions": [
            {"diameter_mm": size, "detected_at": score, "found": score is not None and score > 0.3}
            for size, score in lesions
        ],
    }
    assert found_at(cell, 0) == 1  # above 0.8
    assert found_at(cell, 0.5) == 1  # one false positive; the next one has the score of a lesion
    assert found_at(cell, 1.0) == 3
    assert found_at(cell, 2.0) == 3  # false positives below the operating point are not known
    assert found_at(cell, 1.0, most_mm=5) == 2


def test_recall_is_read_from_the_froc_curve():
    cell = {"froc": {"fp_per_case": [0.5, 4.0], "recall": [0.25, 0.75]}}
    assert table.recall_at(cell, 4.0) == 0.75
    assert table.recall_at(cell, 1.0) is None
