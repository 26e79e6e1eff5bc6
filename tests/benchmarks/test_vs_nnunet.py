"""The parts of the comparison with nnU-Net that need no nnU-Net: candidates, dataset and table."""

import argparse
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning import vs_nnunet as versus
from benchmarks.learning import vs_nnunet_table as table
from benchmarks.learning.cell_rows import found_at
from benchmarks.learning.held_out import CHOOSING
from lesionseg.core import Geometry, Volume
from lesionseg.io.cases import read_case
from lesionseg.io.text import read_json, write_json
from lesionseg.ops.components import label_components
from lesionseg.phantoms import write_mri_phantoms
from tests.inference.nnunet.probability_files import write_labels
from tests.pipeline.cases import boxes, write_array


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Prepare four tiny heads, one of which is scored."""
    return prepare(tmp_path_factory.mktemp("heads"), 4)


def options_for(output, **changed):
    """Return the command line of 20 minutes."""
    options = {"output": output, "accelerator": "cpu", "overrides": [], "group": None}
    options |= {"minutes": 20.0, "steps": None, "clock": "wall", "choosing_fraction": 0.0}
    return argparse.Namespace(**options | changed)


def prepare(folder, n_cases, **options):
    """Prepare simulated heads, one of which is scored."""
    grid = {"shape": (32, 40, 32), "spacing_mm": (4.0,) * 3}
    write_mri_phantoms(folder / "raw", n_cases, seed=1, n_test=1, **grid)
    return versus.prepare(folder / "raw", options_for(folder / "out", **options))


def test_candidates_are_ranked_by_log_odds_if_probabilities_round_to_1(setting, tmp_path):
    first = boxes((12, 12, 12), (2, 2, 2, 3))
    second = boxes((12, 12, 12), (8, 8, 8, 3))
    nothing = np.full((1, 12, 12, 12), -20, np.float32)
    odds = nothing + 60 * first + 80 * second
    np.save(tmp_path / "empty.npy", nothing)
    np.save(tmp_path / "a.npy", odds)
    assert versus.probabilities(40) == versus.probabilities(60) == 1
    volume = Volume(odds, Geometry((12, 12, 12), np.eye(4)))
    kept = versus.Kept(tmp_path, setting.plan)
    assert kept.predict_volume(volume, "empty").candidates == ()
    found = kept.predict_volume(volume, "a").candidates
    one, other = sorted(found, key=lambda c: c.score, reverse=True)
    assert one.start_vox == (8, 8, 8)
    assert one.score > other.score
    score = versus.score(np.array([10.0] * 8 + [-5.0] * 30))
    assert score == pytest.approx(0.75)  # arctan 1 is a quarter of π
    assert versus.score(np.array([0.0])) == 0.5


def test_threshold_is_chosen_on_patients_on_whom_no_tool_is_trained(tmp_path):
    setting = prepare(tmp_path, 9, choosing_fraction=0.4)
    choosing = setting.found.of_role(CHOOSING)
    learning = setting.found.of_role("train")
    assert (len(setting.scored), len(choosing), len(learning)) == (1, 3, 5)
    job = versus.nnunet_job(setting, "nnunet_cut", tmp_path / "nnunet")
    assert set(job["scans"]) == {files.case for files in (*setting.scored, *choosing)}
    n_lesions = 0
    for files in (*setting.scored, *choosing):
        reference = read_case(files, setting.found.dataset).reference
        mask = reference.labels > 0
        odds = np.where(mask, 20, -20).astype(np.float32)
        n_lesions += files in setting.scored and label_components(mask).max()
        odds[0, 0, 0] = 15 if files in setting.scored else 10  # a false positive
        np.save(tmp_path / f"{files.case}.npy", odds[None])
    chosen = versus.score_chosen(setting, tmp_path)
    assert chosen["choosing_cases"] == 3
    assert [lesion["found"] for lesion in chosen["lesions"]] == [True] * n_lesions
    assert chosen["FP_per_case"] == 1
    assert chosen["dice"] > 0.9


def test_boxes_of_films_are_scored_by_overlap_too(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    mask = np.zeros((96, 96), np.uint8)
    mask[20:40, 30:60] = 1
    for part, case in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        film = rng.integers(0, 255, mask.shape, np.uint8)
        write_array(raw / f"images{part}" / f"{case}_0000.png", film)
        write_array(raw / f"labels{part}" / f"{case}.png", mask)
    write_labels(raw, {"background": 0, "lesion": 1}, file_ending=".png", numTraining=2)
    setting = versus.prepare(raw, options_for(tmp_path / "out"))

    def score_box(columns):
        odds = np.full((1, *mask.shape), -20, np.float32)
        odds[0, 20:40, columns] = 20
        np.save(tmp_path / "c.npy", odds)
        return versus.score_boxes(setting, tmp_path)

    same = score_box(slice(30, 60))
    assert (same["ap"], same["ap40"], same["recall_half_fp"], same["films"]) == (1, 1, 1, 1)
    half = score_box(slice(30, 41))  # 11 of 30 columns: IoU .37
    assert (half["ap"], half["ap40"]) == (1, 0)


def test_nnunet_gets_the_training_cases_and_our_tile_size(setting, tmp_path):
    job = versus.nnunet_job(setting, "nnunet_cut", tmp_path / "nnunet")
    raw = tmp_path / "nnunet" / "raw" / versus.DATASET
    learning = {files.case for files in setting.found.of_role("train")}
    assert {p.name.removesuffix(".nii.gz") for p in (raw / "labelsTr").iterdir()} == learning
    assert set(job["scans"]) == {files.case for files in setting.scored}
    assert job["tile_voxels"] == np.prod(setting.plan.tile_shape)
    described = read_json(raw / "dataset.json")
    assert described["numTraining"] == len(learning) == 3
    assert list(described["channel_names"].values()) == list(setting.plan.channel_names)
    own = replace(setting.own_plan, tile_shape=(16, 16, 16), batch_size=7)
    job = versus.nnunet_job(replace(setting, own_plan=own), "nnunet_tiles", tmp_path / "tiles")
    assert (job["plan"], job["tile"], job["batch"]) == ("tiles", [16, 16, 16], 7)


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
    options = options_for(tmp_path, overrides=["loss.gamma=1"], variant="G", threads=1)
    path = tmp_path / "cells" / f"{setting.name}__lesionseg_G__20min__1t__s0.json"
    cell = {"identity": versus.identity(setting), "overrides": "loss.gamma=1"} | other_part
    write_json(path, cell)
    with pytest.raises(SystemExit, match=message) if message else nullcontext():
        assert versus.make_cell(replace(setting, options=options), "lesionseg", 0) == cell


def make_cell(found):
    """Make the tables of one lesion of 4 mm per patient. `found` has an answer for each patient."""
    owners = [{"case": f"c{i}", "group": f"P{i}"} for i in range(len(found))]
    pairs = list(zip(owners, found, strict=True))
    return {
        "lesions": [{**who, "diameter_mm": 4.0, "found": hit} for who, hit in pairs],
        "cases": [{**who, "dice": 0.1 * i} for i, who in enumerate(owners)],
    }


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
    assert found_at(cell, 1.0, max_mm=5) == 2
    curve = {"froc": {"fp_per_case": [0.5, 4.0], "recall": [0.25, 0.75]}}
    assert (table.recall_at(curve, 4.0), table.recall_at(curve, 1.0)) == (0.75, None)
