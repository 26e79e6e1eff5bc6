"""An nnU-Net model folder is exported, with operating points of its cross-validation."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.errors import ConfigError, OutputError
from lesionseg.inference.bundle import bundle_plan, bundle_selection, read_bundle, write_bundle
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_json
from lesionseg.models.build import build_network
from tests.commands import export, predict
from tests.inference.networks import Bright, make_bright
from tests.inference.nnunet.probability_files import blobs, softmax_of, write_outputs
from tests.inference.nnunet.small_models import SmallModel
from tests.pipeline.cases import boxes, write_array
from tests.pipeline.test_nnunet_bundle import SHAPE, write_scans


def test_onnx_gives_the_mean_logits_of_all_folds(tmp_path):
    model = SmallModel(n_folds=2, blocks=1)
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = model.write(tmp_path / "results")
    assert export(folder, tmp_path / "out").difference < 1e-4
    note = read_json(tmp_path / "out/model.json")
    assert note["output"]["shape"] == ["batch", 2, *model.patch]
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
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
        write_array(tmp_path / f"labels/P{i}.nii.gz", boxes(SHAPE, (*first, 3)))
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
    card = (tmp_path / "out/bundle/README.md").read_text()
    assert "inference.flips=true" in outcome.next
    assert "inference.flips=true" in card
    assert "out-of-fold" in card
    selection = bundle_selection(tmp_path / "out")
    first = selection.operating_points[0]
    assert (first.name, first.chosen_on) == ("fp_per_case:0.5", "out-of-fold")
    assert {p.name for p in selection.operating_points} >= {"fp_per_case:1", "sensitivity:0.9"}
    assert selection.calibration.fitted_on == "out-of-fold"
    assert bundle_plan(tmp_path / "out").nnunet == bundle_plan(model).nnunet
    write_scans(tmp_path / "scans", 1)
    predict(tmp_path / "out", tmp_path / "scans", tmp_path / "found", device="cpu")
    found = find_predictions(tmp_path / "found")["P0"].read()
    assert found.operating_point.name == "fp_per_case:0.5"
    assert all(c.probability is not None for c in found.candidates)


def test_fold_without_mirroring_has_points_of_its_own_validation_and_needs_no_flips(tmp_path):
    model, labels = write_validated_model(tmp_path, mirror_axes=None)
    outcome = export(model / "fold_1", tmp_path / "out", format="bundle", reference=labels)
    assert bundle_selection(tmp_path / "out").operating_points[0].chosen_on == "out-of-fold"
    assert "flips" not in outcome.next
    assert "flips" not in (tmp_path / "out/bundle/README.md").read_text()


def test_export_without_validation_or_of_another_format_is_refused(tmp_path):
    model, labels = write_validated_model(tmp_path)

    def refuse(match, **settings):
        with pytest.raises(ConfigError, match=match):
            export(model, tmp_path / "out", **settings)

    refuse("format=onnx", format="monai")
    for setting in ({"operating_point": "best_f1"}, {"group": "(.)"}):
        refuse("need format=bundle reference=", format="bundle", **setting)
    refuse("reference= needs format=bundle", reference=labels)
    for file in (model / "fold_0/validation").glob("*.npz"):
        file.unlink()
    refuse("--val --npz", format="bundle", reference=labels)
    for folder in model.glob("fold_*/validation"):
        shutil.rmtree(folder)
    refuse("--val --npz", format="bundle", reference=labels)
    export(model, tmp_path / "out", format="bundle")
    assert bundle_selection(tmp_path / "out").operating_points == ()


def test_export_does_not_replace_a_bundle_that_was_trained(tmp_path, plan):
    model = SmallModel().write(tmp_path / "results")
    export(model, tmp_path / "out", format="bundle")
    export(model, tmp_path / "out", format="bundle")  # an earlier export is replaced
    write_bundle(tmp_path / "trained/bundle", build_network(plan), plan, "the card")
    (tmp_path / "running").mkdir()
    (tmp_path / "running/config.yaml").write_text("seed: 0\n")
    for name in ("trained", "running"):
        with pytest.raises(OutputError, match="trained model"):
            export(model, tmp_path / name, format="bundle")
    assert (tmp_path / "trained/bundle/README.md").read_text() == "the card"


def test_bundle_of_a_network_that_nnunet_did_not_train_is_not_exported_again(tmp_path, plan):
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "own", Bright(), mine, "")
    with pytest.raises(ConfigError, match="already"):
        export(
            tmp_path / "own",
            tmp_path / "out",
            format="bundle",
            architectures={"mine": make_bright},
        )
