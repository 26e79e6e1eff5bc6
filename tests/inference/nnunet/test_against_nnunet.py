"""Predictions of models that nnU-Net trained, compared with those of nnU-Net itself.

These tests need `make peers`. The first run trains ten small models in `.peers/nnunet_models`.
This takes about half an hour on two cores. Later runs use the models again.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lesionseg.config import InferenceConfig
from lesionseg.core import CaseFiles, Volume
from lesionseg.data.preprocess_image import to_canonical
from lesionseg.inference.predictor import Predictor
from lesionseg.io.masks import read_mask
from lesionseg.io.results.index import find_predictions
from lesionseg.io.scans import find_scans
from lesionseg.io.text import read_json
from tests.commands import evaluate, predict

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PEERS = Path(os.environ.get("LESIONSEG_PEERS", ROOT / ".peers"))
MODELS = (
    "plain_2d",
    "plain_3d_two_folds",
    "resenc_stripped",
    "thick_slices",
    "sagittal",
    "chests",
    "regions",
    "pictures",
    "reoriented",
    "resenc_2d",
)


@dataclass(frozen=True)
class TrainedModel:
    """A model that nnU-Net trained, and its predictions of the test cases."""

    folder: Path
    name: str

    def place(self, key):
        """Return the folder of the `model`, or the `images` of the test cases."""
        info = read_json(self.folder / "predicted" / self.name / "facts.json")
        return self.folder / str(info[key])

    def predictions(self, kind):
        """Return the folder of nnU-Net's predictions, `plain` or `mirrored`."""
        return self.folder / "predicted" / self.name / kind


@pytest.fixture(scope="module")
def folder():
    """Return the folder of the trained models. Missing models are trained first."""
    python = PEERS / "bin/python"
    if not python.exists():
        pytest.skip("there is no .peers; make peers")
    place = PEERS / "nnunet_models"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    scripts = ROOT / "benchmarks/peers"
    if not (place / "raw").exists():
        raw = [sys.executable, scripts / "nnunet_raw.py", place / "raw"]
        subprocess.run(raw, check=True, env=environment)
    missing = [name for name in MODELS if not (place / "predicted" / name / "done").exists()]
    if missing:
        train = [python, scripts / "nnunet_models.py", place, *missing]
        subprocess.run(train, check=True, env=environment, capture_output=True)
    return place


def lesion_voxels(p, *, regions):
    """Return the voxels that nnU-Net gives a label, or for regions each region's voxels."""
    if regions:
        return p > 0.5
    return np.concatenate([1 - p.sum(axis=0, keepdims=True), p]).argmax(axis=0) > 0


@pytest.mark.parametrize("kind", ["plain", "mirrored"])
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_and_masks_are_those_of_nnunet(folder, name, kind):
    trained = TrainedModel(folder, name)
    settings = InferenceConfig.of(flips=kind == "mirrored", precision="fp32")
    predictor = Predictor(trained.place("model"), settings=settings, device="cpu")
    plan = predictor.plan
    assert plan.nnunet is not None
    cases = find_scans(trained.place("images"), len(plan.channel_names)).cases()
    assert len(cases) == 2
    for files in cases:
        volume = predictor.read(CaseFiles(files.case, files.images))
        found = predictor.probabilities(volume)
        if plan.nnunet.reorients:  # as nnU-Net stores it
            found = to_canonical(Volume(found, volume.geometry)).array
        expected = np.load(trained.predictions(kind) / f"{files.case}.npz")["probabilities"]
        expected = expected if plan.labels.regions else expected[1:]
        expected = expected.reshape(found.shape)
        has_regions = bool(plan.labels.regions)
        ours = lesion_voxels(found, regions=has_regions)
        theirs = lesion_voxels(expected, regions=has_regions)
        assert theirs.any()
        assert np.abs(found - expected).mean() <= 1e-3
        assert 2 * (ours & theirs).sum() >= 0.995 * (ours.sum() + theirs.sum())


@pytest.mark.parametrize("name", MODELS)
def test_probability_files_of_nnunet_are_evaluated(folder, tmp_path, name):
    trained = TrainedModel(folder, name)
    reference = trained.place("images").parent
    scores = evaluate(reference, trained.predictions("plain"), tmp_path / "scores").scores
    assert (scores.evaluated_on, scores.count("n_cases")) == ("test", 2)
    assert scores.has_froc
    assert len(find_predictions(tmp_path / "scores/predictions")) == 2


def test_threshold_is_chosen_on_nnunets_cross_validation(folder, tmp_path):
    trained = TrainedModel(folder, "plain_3d_two_folds")
    scores = evaluate(
        trained.place("images").parent,
        trained.predictions("plain"),
        tmp_path / "scores",
        chosen_on=trained.place("model"),
        operating_point="fp_per_case:1",
    ).scores
    point = scores.operating_point
    assert point.chosen_on == "out-of-fold"
    assert point.expected_false_positives_per_case is not None


ENSEMBLE = """
import sys
from benchmarks.peers.torchvision_on_cpu import supply_nms
supply_nms()
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
one, other, merged, reference = sys.argv[1:]
if __name__ == "__main__":
    ensemble_folders([one, other], merged, num_processes=1)
    facts, plans = f"{one}/dataset.json", f"{one}/plans.json"
    compute_metrics_on_folder2(reference, one, facts, plans, f"{merged}/own.json", 1, chill=True)
    compute_metrics_on_folder2(reference, merged, facts, plans, f"{merged}/both.json", 1)
"""


@pytest.mark.parametrize("name", ["plain_3d_two_folds", "thick_slices", "regions", "pictures"])
def test_nnunets_commands_run_on_our_folders(folder, tmp_path, name):
    trained = TrainedModel(folder, name)
    ours = tmp_path / "ours"
    predict(
        trained.place("model"),
        trained.place("images"),
        ours,
        names="nnunet",
        save_probabilities=True,
        device="cpu",
    )
    script = tmp_path / "ensemble.py"
    script.write_text(ENSEMBLE)
    merged = tmp_path / "merged"
    reference = trained.place("images").parent / "labelsTs"
    places = {f"nnUNet_{part}": str(tmp_path) for part in ("raw", "preprocessed", "results")}
    command = [PEERS / "bin/python", script, ours, trained.predictions("plain"), merged]
    subprocess.run(
        [*command, reference],
        check=True,
        env=os.environ | places | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    for kind in ("own", "both"):
        assert read_json(merged / f"{kind}.json")["foreground_mean"]["Dice"] > 0
    # the ensemble of two predictions that agree equals each of them
    for file in trained.predictions("plain").glob("P0*.nii.gz"):
        mask = read_mask(file)
        joint = read_mask(merged / file.name)
        assert joint.geometry.matches(mask.geometry, 1e-3)
        assert np.mean(joint.labels != mask.labels) < 1e-3
