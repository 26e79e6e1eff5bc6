"""Commands on an nnU-Net model folder: predict and evaluate."""

import shutil
from pickletools import genops
from unittest.mock import Mock

import numpy as np
import pytest

from lesionseg.core import Geometry, Labels
from lesionseg.errors import ConfigError
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.inference.predictor import Predictor
from lesionseg.io.layouts.nnunet import read_nnunet_labels
from lesionseg.io.masks import read_mask
from lesionseg.io.nnunet_probabilities import write_description
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_csv
from tests.commands import evaluate, predict
from tests.inference.nnunet.small_models import SmallModel
from tests.pipeline.cases import boxes, write_array

SHAPE = (12, 16, 18)
GRID = Geometry.from_spacing(SHAPE, (2.4, 1.0, 1.0))


def write_scans(folder, n):
    for i in range(n):
        image = np.random.default_rng(i).normal(80, 30, SHAPE).astype(np.float32)
        write_array(folder / f"P{i}_0000.nii.gz", image, GRID)


def test_predict_takes_a_model_folder_and_keeps_finished_cases(tmp_path):
    model = SmallModel(n_folds=2).write(tmp_path / "results")
    write_scans(tmp_path / "scans", 2)
    for status in ("done", "kept"):
        predict(model, tmp_path / "scans", tmp_path / "found", device="cpu")
        rows = read_csv(tmp_path / "found" / "predictions.csv")
        assert [row["status"] for row in rows] == [status] * 2
    found = find_predictions(tmp_path / "found")
    assert sorted(found) == ["P0", "P1"]
    prediction = found["P0"].read()
    assert prediction.candidates
    assert prediction.geometry.shape == SHAPE


def test_little_memory_gives_the_same_instances_from_a_file(tmp_path, monkeypatch):
    model = SmallModel().write(tmp_path / "results")
    write_scans(tmp_path / "scans", 1)
    infer = Mock(wraps=Predictor.infer)
    monkeypatch.setattr(Predictor, "infer", lambda *given, **options: infer(*given, **options))
    masks = []
    for limit in (None, 1e-6):
        output = tmp_path / f"found_{limit}"
        memory = {"max_memory_gb": limit}
        predict(model, tmp_path / "scans", output, device="cpu", inference=memory)
        masks.append(read_mask(output / "P0_instances.nii.gz").labels)
    folders = [call.kwargs["folder"] for call in infer.call_args_list]
    assert folders == [None, tmp_path / "found_1e-06"]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_written_in_the_format_of_nnunet(tmp_path, regions):
    small = SmallModel(labels={"background": 0, "a": 1, "b": 2})
    if regions:
        labels = {"background": 0, "whole": [1, 2], "core": 2}
        small = SmallModel(labels=labels, regions_class_order=(1, 2))
    model = small.write(tmp_path / "results")
    write_scans(tmp_path / "scans", 1)
    found = tmp_path / "found"
    settings = {"names": "nnunet", "save_probabilities": True}
    predict(model, tmp_path / "scans", found, device="cpu", **settings)
    names = {"P0.nii.gz", "P0.npz", "P0.pkl", "P0_candidates.json", "dataset.json", "plans.json"}
    assert names <= {path.name for path in found.iterdir()}
    masks = [path.name for path in found.glob("*.nii.gz")]
    assert masks == ["P0.nii.gz"]  # nnU-Net treats all of them as masks
    instances = read_mask(found / "P0_instances.nrrd")
    assert instances.geometry.matches(read_mask(found / "P0.nii.gz").geometry, 1e-3)
    p = np.load(found / "P0.npz", allow_pickle=False)["probabilities"]
    assert p.shape == ((2 if regions else 3), *SHAPE)
    if not regions:
        np.testing.assert_allclose(p.astype(np.float32).sum(0), 1, atol=2e-3)
    kinds = {op.name for op, _, _ in genops((found / "P0.pkl").read_bytes())}
    assert not {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ"} & kinds  # plain values
    assert bool(read_nnunet_labels(found / "dataset.json").regions) == regions
    # without the candidate file, the folder is read like one of nnU-Net
    before = find_predictions(found)["P0"].read()
    for file in found.glob("P0_*"):
        file.unlink()
    again = open_prediction(find_predictions(found)["P0"])
    highest = [c.score for c in before.candidates[:3]]
    assert [c.score for c in again.candidates[:3]] == pytest.approx(highest, abs=0.02)


def test_labels_with_gaps_are_refused_for_nnunet(tmp_path):
    with pytest.raises(ConfigError, match="1, 4"):
        write_description(tmp_path, ["CT"], Labels((1, 4), ("a", "b")), ".nii.gz")
    regions = Labels((1, 4), ("a", "b"), regions=((1, 4), (4,)))
    write_description(tmp_path, ["CT"], regions, ".nii.gz")


def test_scores_of_predictions_agree_with_those_of_their_masks(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    write_scans(tmp_path / "scans", 2)
    found = tmp_path / "found"
    predict(model, tmp_path / "scans", found, device="cpu", names="nnunet")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("P0.nii.gz", "P1.nii.gz"):
        write_array(tmp_path / "labels" / name, boxes(SHAPE, (3, 3, 3, 4)), GRID)
        shutil.copy(found / name, bare)
    scores = [
        evaluate(tmp_path / "labels", folder, tmp_path / "scores").scores
        for folder in (found, bare)
    ]
    ours, theirs = scores
    for name in ("n_cases", "n_true_positive", "n_false_positive", "dice"):
        assert ours[name].value == pytest.approx(theirs[name].value)
    assert ours.count("n_cases") == 2
    assert [each.has_froc for each in scores] == [True, False]
