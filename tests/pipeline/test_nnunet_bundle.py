"""Commands on an nnU-Net model folder: predict, export, and operating points."""

import shutil
from dataclasses import replace
from pickletools import genops

import numpy as np
import pytest
import torch

from lesionseg.core import Geometry, Labels, Volume
from lesionseg.errors import ConfigError, OutputError
from lesionseg.inference.bundle import bundle_plan, bundle_selection, read_bundle, write_bundle
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.io.layouts.nnunet import read_nnunet_labels
from lesionseg.io.masks import read_mask
from lesionseg.io.nnunet_output import write_description
from lesionseg.io.predictions import find_predictions
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from tests.commands import evaluate, export, predict
from tests.inference.networks import Bright, make_bright
from tests.inference.nnunet.probability_files import blobs, softmax_of, write_outputs
from tests.inference.nnunet.small_models import SmallModel
from tests.models.plans import plan_of
from tests.pipeline.cases import boxes, write_array

SHAPE = (12, 16, 18)


def write_scans(folder, n):
    for i in range(n):
        image = np.random.default_rng(i).normal(80, 30, SHAPE).astype(np.float32)
        volume = Volume(image[None], Geometry.from_spacing(SHAPE, (2.4, 1.0, 1.0)))
        write_volume(folder / f"P{i}_0000.nii.gz", volume)


def test_predict_takes_a_model_folder_and_keeps_finished_cases(tmp_path):
    model = SmallModel(n_folds=2).write(tmp_path / "results")
    write_scans(tmp_path / "scans", 2)
    paths = model, tmp_path / "scans", tmp_path / "found"
    predict(*paths, device="cpu")
    rows = read_csv(tmp_path / "found" / "predictions.csv")
    assert [row["status"] for row in rows] == ["done", "done"]
    found = find_predictions(tmp_path / "found")
    assert sorted(found) == ["P0", "P1"]
    prediction = found["P0"].read()
    assert prediction.candidates
    assert prediction.geometry.shape == SHAPE
    predict(*paths, device="cpu")
    rows = read_csv(tmp_path / "found" / "predictions.csv")
    assert [row["status"] for row in rows] == ["kept", "kept"]


def test_little_memory_gives_the_same_instances_from_a_file(tmp_path, monkeypatch):
    model = SmallModel().write(tmp_path / "results")
    write_scans(tmp_path / "scans", 1)
    folders = []
    infer = Predictor.infer

    def record_folder(*given, folder):
        folders.append(folder)
        return infer(*given, folder=folder)

    monkeypatch.setattr(Predictor, "infer", record_folder)
    masks = []
    for limit in (None, 1e-6):
        output = tmp_path / f"found_{limit}"
        predict(
            model,
            tmp_path / "scans",
            output,
            device="cpu",
            inference={"max_memory_gb": limit},
        )
        masks.append(read_mask(output / "P0_instances.nii.gz").labels)
    assert folders == [None, tmp_path / "found_1e-06"]
    np.testing.assert_array_equal(*masks)


def test_onnx_gives_the_mean_logits_of_all_folds(tmp_path):
    model = SmallModel(n_folds=2, blocks=1)
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = model.write(tmp_path / "results")
    assert export(folder, tmp_path / "out").difference < 1e-4
    note = read_json(tmp_path / "out" / "model.json")
    assert note["output"]["shape"] == ["batch", 2, *model.patch]
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    tiles = np.random.default_rng(0).normal(size=(3, 1, *model.patch)).astype(np.float32)
    (logits,) = session.run(None, {"image": tiles})
    with torch.no_grad():
        own = [network(torch.from_numpy(tiles))[0] for network in read_bundle(folder).networks]
    plan = bundle_plan(folder)
    expected = label_probabilities(torch.stack(own).mean(0), plan)
    found = label_probabilities(torch.from_numpy(logits), plan)
    assert torch.allclose(found, expected, atol=1e-4)


def write_validated_model(tmp_path, mirror_axes=(0, 1, 2)):
    """Write a model of two folds with twelve validation cases each, and all masks."""
    model = SmallModel(n_folds=2, mirror_axes=mirror_axes).write(tmp_path / "results")
    first = (2, 2, 2)
    false = (7, 9, 9)
    for i in range(24):
        p = blobs(SHAPE, (first, 3, 0.5 + i / 60), (false, 3, 0.1 + i / 50))
        write_outputs(model / f"fold_{i % 2}" / "validation", f"P{i}", softmax_of(p), p > 0.5)
        write_array(tmp_path / "labels" / f"P{i}.nii.gz", boxes(SHAPE, (*first, 3)))
    return model, tmp_path / "labels"


def test_exported_bundle_has_operating_points_of_the_cross_validation(tmp_path):
    model, labels = write_validated_model(tmp_path)
    outcome = export(
        model,
        tmp_path / "out",
        format="bundle",
        reference=labels,
        operating_point="fp_per_case:0.5",
    )
    # nnU-Net validates with mirrored views
    assert "inference.flips=true" in outcome.next
    assert "inference.flips=true" in (tmp_path / "out" / "bundle" / "model_card.md").read_text()
    selection = bundle_selection(tmp_path / "out")
    first = selection.operating_points[0]
    assert (first.name, first.chosen_on) == ("fp_per_case:0.5", "out-of-fold")
    assert {p.name for p in selection.operating_points} >= {"fp_per_case:1", "sensitivity:0.9"}
    assert selection.calibration is not None
    assert selection.calibration.fitted_on == "out-of-fold"
    assert bundle_plan(tmp_path / "out").nnunet == bundle_plan(model).nnunet
    write_scans(tmp_path / "scans", 1)
    predict(tmp_path / "out", tmp_path / "scans", tmp_path / "found", device="cpu")
    found = find_predictions(tmp_path / "found")["P0"].read()
    assert found.operating_point is not None
    assert found.operating_point.name == "fp_per_case:0.5"
    assert all(c.probability is not None for c in found.candidates)
    assert "out-of-fold" in (tmp_path / "out" / "bundle" / "model_card.md").read_text()


def test_points_of_a_model_without_mirroring_need_no_flips(tmp_path):
    model, labels = write_validated_model(tmp_path, mirror_axes=None)
    outcome = export(model, tmp_path / "out", format="bundle", reference=labels)
    assert "flips" not in outcome.next
    assert "flips" not in (tmp_path / "out" / "bundle" / "model_card.md").read_text()


def test_exported_fold_has_operating_points_of_its_own_validation(tmp_path):
    model, labels = write_validated_model(tmp_path)
    export(model / "fold_1", tmp_path / "out", format="bundle", reference=labels)
    first = bundle_selection(tmp_path / "out").operating_points[0]
    assert first.chosen_on == "out-of-fold"


def test_export_without_validation_or_of_another_format_is_refused(tmp_path):
    model, labels = write_validated_model(tmp_path)
    with pytest.raises(ConfigError, match="format=onnx"):
        export(model, tmp_path / "out", format="monai")
    for file in (model / "fold_0" / "validation").glob("*.npz"):
        file.unlink()
    for setting in ({"operating_point": "best_f1"}, {"group": "(.)"}):
        with pytest.raises(ConfigError, match="need format=bundle reference="):
            export(model, tmp_path / "out", format="bundle", **setting)
    with pytest.raises(ConfigError, match="reference= needs format=bundle"):
        export(model, tmp_path / "out", reference=labels)
    with pytest.raises(ConfigError, match="--val --npz"):
        export(model, tmp_path / "out", format="bundle", reference=labels)
    for folder in model.glob("fold_*/validation"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="--val --npz"):
        export(model, tmp_path / "out", format="bundle", reference=labels)
    export(model, tmp_path / "out", format="bundle")
    assert bundle_selection(tmp_path / "out").operating_points == ()
    with pytest.raises(ConfigError, match="already"):
        export_foreign_bundle(tmp_path)


def test_export_does_not_replace_a_bundle_that_was_trained(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    export(model, tmp_path / "out", format="bundle")
    export(model, tmp_path / "out", format="bundle")  # an earlier export is replaced
    plan = plan_of(dims=3, strides=((1, 1, 1), (2, 2, 2)), table={"blocks": 1})
    write_bundle(tmp_path / "trained" / "bundle", build_network(plan), plan, "the card")
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "config.yaml").write_text("seed: 0\n")
    for name in ("trained", "running"):
        with pytest.raises(OutputError, match="trained model"):
            export(model, tmp_path / name, format="bundle")
    assert (tmp_path / "trained" / "bundle" / "model_card.md").read_text() == "the card"


def export_foreign_bundle(tmp_path):
    """Export a bundle of a network that nnU-Net did not train."""
    plan = plan_of(dims=3, strides=((1, 1, 1), (2, 2, 2)), table={"blocks": 1})
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "own", Bright(), mine, "")
    architectures = {"mine": make_bright}
    export(tmp_path / "own", tmp_path / "out2", format="bundle", architectures=architectures)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_written_in_the_format_of_nnunet(tmp_path, regions):
    small = SmallModel(labels={"background": 0, "a": 1, "b": 2})
    if regions:
        small = SmallModel(
            labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=(1, 2)
        )
    model = small.write(tmp_path / "results")
    write_scans(tmp_path / "scans", 1)
    found = tmp_path / "found"
    predict(
        model,
        tmp_path / "scans",
        found,
        device="cpu",
        names="nnunet",
        save_probabilities=True,
    )
    names = {"P0.nii.gz", "P0.npz", "P0.pkl", "P0_candidates.json", "dataset.json", "plans.json"}
    assert names <= {path.name for path in found.iterdir()}
    assert [path.name for path in found.glob("*.nii.gz")] == [
        "P0.nii.gz"
    ]  # nnU-Net treats all of them as masks
    instances = read_mask(found / "P0_instances.nrrd")
    assert instances.geometry.matches(read_mask(found / "P0.nii.gz").geometry, 1e-3)
    p = np.load(found / "P0.npz", allow_pickle=False)["probabilities"]
    assert p.shape == ((2 if regions else 3), *SHAPE)
    if not regions:
        np.testing.assert_allclose(p.astype(np.float32).sum(0), 1, atol=2e-3)
    kinds = {op.name: arg for op, arg, _ in genops((found / "P0.pkl").read_bytes())}
    assert not {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ"} & set(kinds)  # plain values
    assert bool(read_nnunet_labels(found / "dataset.json").regions) == regions
    # without the candidate file, the folder is read like one of nnU-Net
    before = find_predictions(found)["P0"].read()
    (found / "P0_candidates.json").unlink()
    for file in found.glob("P0_*"):
        file.unlink()
    again = open_prediction(find_predictions(found)["P0"])
    highest = [round(c.score, 2) for c in before.candidates[:3]]
    assert [round(c.score, 2) for c in again.candidates[:3]] == pytest.approx(highest, abs=0.02)


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
    for i in range(2):
        write_array(
            tmp_path / "labels" / f"P{i}.nii.gz",
            boxes(SHAPE, (3, 3, 3, 4)),
            Geometry.from_spacing(SHAPE, (2.4, 1.0, 1.0)),
        )
    ours = evaluate(tmp_path / "labels", found, tmp_path / "ours").scores
    (tmp_path / "bare").mkdir()
    for i in range(2):
        shutil.copy(found / f"P{i}.nii.gz", tmp_path / "bare")
    bare = evaluate(tmp_path / "labels", tmp_path / "bare", tmp_path / "b").scores
    assert ours.count("n_cases") == bare.count("n_cases") == 2
    for name in ("n_true_positive", "n_false_positive", "dice"):
        assert ours[name].value == pytest.approx(bare[name].value)
    assert ours.has_froc
    assert not bare.has_froc
