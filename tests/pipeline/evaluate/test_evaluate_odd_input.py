"""What others' folders hold: no masks, one case, nothing, scores that are none, two readers."""

import csv
import gzip
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.api import report
from lesionseg.core import Geometry
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.predictions import write_prediction
from lesionseg.pipeline.evaluate.recipe import evaluate
from tests.evaluation.hand_cases import prediction_of
from tests.pipeline.evaluate.test_evaluate_recipe import (
    GEOMETRY,
    folders,
    lesions,
    rows,
    write_mask,
)

__all__ = ["folders"]  # a fixture

PLAIN = ReportSettings(pdf=False)


def write_boxes(folder, case, boxes):
    """Candidates alone, as any program may write them."""
    folder.mkdir(exist_ok=True)
    entries = [
        {"score": score, "start_vox": list(box[:3]), "stop_vox": list(box[3:])}
        for score, box in boxes
    ]
    (folder / f"{case}_candidates.json").write_text(json.dumps({"candidates": entries}))


def test_candidates_without_masks_are_judged_by_their_boxes(folders, tmp_path):
    found = [(0.9, (2, 1, 2, 4, 4, 6)), (0.2, (7, 7, 7, 9, 9, 9))]
    write_boxes(tmp_path / "boxes", "a", found)
    with pytest.raises(DatasetError):
        evaluate(folders[0], tmp_path / "nothing", folders[2])
    scores = evaluate(folders[0], tmp_path / "boxes", folders[2], replicates=5).scores
    assert (scores["n_true_positive"], scores["n_false_positive"]) == (1, 1)
    assert scores["missing_predictions"] == ["b", "c"]
    assert [row["dice"] for row in rows(folders[2] / "cases.csv")] == ["", "0.0", ""]
    assert "boxes have no voxels" in str(scores["dice"]) or scores["dice"]["n"] == 1


@pytest.mark.parametrize("score", [1.5, -0.1, None, "high", True])
def test_scores_outside_0_to_1_are_refused_and_the_file_named(folders, tmp_path, score):
    write_boxes(tmp_path / "boxes", "a", [(score, (2, 1, 2, 4, 4, 6))])
    with pytest.raises(ContentError, match=r"a_candidates\.json.*from 0 to 1"):
        evaluate(folders[0], tmp_path / "boxes", folders[2])
    assert not folders[2].exists()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_c2_a_prediction_that_points_at_the_reference_is_refused(folders, suffix):
    """Review C2: such headers scored 1.000, the reference's own voxels behind them."""
    reference, prediction, output = folders
    for path in prediction.iterdir():
        path.unlink()
    for case in ("a", "b", "c"):
        target = reference / f"{case}.nii.gz"
        raw = target.with_suffix("").with_suffix(".raw")
        raw.write_bytes(gzip.decompress(target.read_bytes())[352:])
        sizes = " ".join(str(n) for n in GEOMETRY.shape[::-1])
        if suffix == ".nrrd":
            header = (
                f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 3\n"
                f"encoding: gzip\nbyte skip: 352\ndata file: {target}\n\n"
            )
        else:
            header = (
                f"NDims = 3\nDimSize = {sizes}\nElementSpacing = 1 1 3\n"
                f"ElementType = MET_UCHAR\nElementDataFile = ../reference/{raw.name}\n"
            )
        (prediction / f"{case}{suffix}").write_text(header)
    with pytest.raises(ReadError, match="points out of its folder"):
        evaluate(reference, prediction, output)
    assert not output.exists()


@pytest.mark.parametrize("which", [0, 1])
def test_an_empty_folder_is_an_error(folders, which):
    for path in folders[which].iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"No (mask|prediction) found"):
        evaluate(*folders)
    assert not folders[2].exists()


def test_one_case_has_numbers_and_no_intervals_and_says_so(folders):
    for folder in folders[:2]:
        for path in folder.iterdir():
            if not path.name.startswith("b"):
                path.unlink()
    scores = evaluate(*folders, replicates=50).scores
    assert scores["n_cases"] == 1
    assert scores["lesion_recall"]["value"] == pytest.approx(1 / 3)
    for number in (scores["lesion_recall"], scores["dice"], scores["case_sensitivity"]):
        assert number["ci95"] is None
        assert "5 groups" in number["reason"]
    assert set(scores["ci95"].values()) == {None}


def test_instances_that_overlap_in_their_boxes_stay_apart(tmp_path):
    # an L and the block in its corner: boxes overlap, voxels do not
    reference = np.zeros((4, 8, 8), np.int32)
    reference[1:3, 1:7, 1:3] = reference[1:3, 5:7, 1:7] = 1
    reference[1:3, 2:4, 4:6] = 2
    geometry = Geometry.from_spacing(reference.shape, (1.0, 1.0, 1.0))
    write_mask(tmp_path / "reference" / "a.nii.gz", reference > 0, geometry)
    found = prediction_of(reference, (0.9, 0.8), geometry, case="a")
    write_prediction(tmp_path / "prediction", found)
    paths = [tmp_path / name for name in ("reference", "prediction", "out")]
    scores = evaluate(*paths, replicates=5).scores
    assert (scores["n_true_positive"], scores["n_false_positive"]) == (2, 0)
    assert scores["segmentation_quality"]["value"] == 1.0
    assert (scores["splits"], scores["merges"]) == (0, 0)


def test_boxes_that_overlap_find_a_lesion_each(folders, tmp_path):
    pair = [(0.9, (2, 1, 2, 4, 4, 6)), (0.8, (2, 1, 2, 4, 5, 7)), (0.7, (2, 4, 2, 4, 8, 6))]
    write_boxes(tmp_path / "boxes", "a", pair)
    evaluate(folders[0], tmp_path / "boxes", folders[2], replicates=5)
    found = [row for row in rows(folders[2] / "candidates.csv") if row["case"] == "a"]
    assert [row["outcome"] for row in found] == ["true_positive"] * 3
    evaluate(folders[0], tmp_path / "boxes", folders[2], preset="instances", replicates=5)
    found = [row for row in rows(folders[2] / "candidates.csv") if row["case"] == "a"]
    assert [row["outcome"] for row in found] == ["true_positive", "ignored", "true_positive"]


@pytest.mark.parametrize("dims", [2, 3])
def test_two_and_three_axes(tmp_path, dims):
    shape = (6, 9, 9)[-dims:]
    mask = np.zeros(shape, np.uint8)
    mask[(slice(1, 4),) * dims] = 1
    suffix = ".png" if dims == 2 else ".nii.gz"
    geometry = Geometry.from_spacing(shape, (1.0,) * dims)
    for name in ("reference", "prediction"):
        write_mask(tmp_path / name / f"a{suffix}", mask, geometry)
    paths = [tmp_path / name for name in ("reference", "prediction", "out")]
    scores = evaluate(*paths, replicates=5).scores
    assert scores["dice"]["mean"] == scores["surface_dice"]["mean"] == 1.0
    assert scores["size_unit"] == ("px" if dims == 2 else "mm")
    assert (rows(paths[2] / "cases.csv")[0]["reference_ml"] == "") == (dims == 2)


def test_a_second_reader_is_reported_like_a_model(folders, tmp_path):
    scores = evaluate(folders[0], folders[1], folders[2], replicates=5).scores
    assert scores["froc"] is None
    assert scores["reasons"]["froc"]
    page = report(folders[2], tmp_path / "report", report=PLAIN).page
    assert page.is_file()


def test_verdicts_survive_the_walk_through_the_report(folders, tmp_path, caplog):
    before = evaluate(*folders, replicates=5).scores
    report(folders[2], tmp_path / "report", report=PLAIN)
    path = tmp_path / "report" / "adjudicate.csv"
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == before["n_false_positive"] == 1
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows([{**row, "verdict": "Lesion"} for row in table])
    with caplog.at_level(logging.WARNING):
        after = evaluate(*folders, adjudication=path, replicates=5).scores["adjudication"]
    assert (after["n_lesion"], after["n_stale"], after["n_open"]) == (1, 0, 0)
    assert after["adjudicated"]["n_false_positive"] == 0
    assert after["adjudicated"]["n_lesions"] == before["n_lesions"] + 1


def test_candidates_keep_their_place_on_an_oblique_grid(tmp_path):
    turned = GEOMETRY.affine.copy()
    c, s = np.cos(0.4), np.sin(0.4)
    turned[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ turned[:3, :3]
    geometry = replace(GEOMETRY, affine=turned)
    for name in ("reference", "prediction"):
        write_mask(tmp_path / name / "a.nii.gz", lesions(2), geometry)
    paths = [tmp_path / name for name in ("reference", "prediction", "out")]
    scores = evaluate(*paths, replicates=5).scores
    assert scores["n_true_positive"] == 2
    assert scores["hd95_mm"]["mean"] == 0.0
