"""The networks of a training, and the validation cases that choose its kept weights."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from lesionseg.cli import run
from lesionseg.config import TrainConfig
from lesionseg.core import CaseFiles
from lesionseg.inference.bundle import read_bundle
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline import train_fold
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.train_fold import choose_validated
from lesionseg.plan import rules
from lesionseg.training.fit import FitResult
from tests.models.plans import plan_of
from tests.pipeline.cases import small_training


@pytest.mark.parametrize(
    ("with_lesions", "n", "expected"),
    [
        ((1, 4), 4, (0, 1, 4, 9)),  # too few for a half: all of them
        ((1, 3, 5, 7), 4, (0, 1, 7, 9)),  # a half
        (range(1, 9), 5, (0, 1, 3, 6, 8)),  # their share of 80 %
        (range(10), 3, (0, 4, 9)),
        ((), 3, (0, 4, 9)),
        ((2,), 12, range(10)),
    ],
)
def test_cases_that_choose_the_weights_contain_lesions(with_lesions, n, expected):
    cases = [CaseFiles(str(i), (Path(f"{i}.nii.gz"),)) for i in range(10)]
    counts = {files.case: int(int(files.case) in with_lesions) for files in cases}
    chosen = choose_validated(cases, counts, n)
    assert [files.case for files in chosen] == [str(i) for i in expected]


def test_operating_point_without_validation_cases(tmp_path, caplog):
    """A score is kept. Any other point cannot be chosen, which a warning says."""
    more = "data.validation_fraction=0", "trainer.accelerator=cpu"
    score = "operating_point=score:0.3", "rate_confidence=0.9"
    assert run("train", small_training(tmp_path, *more, *score)) == 0
    (point,) = read_bundle(tmp_path / "run" / "bundle").selection.operating_points
    assert (point.name, point.score) == ("score:0.3", 0.3)
    assert "has no effect" not in caplog.text
    other = small_training(tmp_path, *more, "operating_point=best_f1", f"run_dir={tmp_path / 'b'}")
    assert run("train", other) == 0
    assert "operating_point=best_f1 has no effect" in caplog.text


@pytest.mark.parametrize(
    ("settings", "minutes"),
    [
        ({"max_minutes": 60}, [20, 20]),  # of each further network
        ({"max_minutes": 34}, [14]),
        ({"max_minutes": 29}, []),  # less than half of what a network needs
        ({"max_minutes": 600}, [145] * 4),
        ({"max_minutes": 600, "max_networks": 2}, [580]),
        ({"max_minutes": 600, "max_steps": 100}, []),
        ({"max_minutes": 600, "fold": 0}, []),
        ({}, [20, 20]),  # an hour on a CPU
    ],
)
def test_minutes_that_a_network_leaves_train_further_ones(settings, minutes, tmp_path, monkeypatch):
    """The first network ends after the 100 steps of its plan, which take 20 minutes."""
    began = []

    def train_network(experiment, plan, cases, validate, *, number=1):
        began.append((number, experiment.cfg.trainer.max_minutes, validate))
        return FitResult(nn.Identity(), steps=100, skipped=0, minutes=20.0, device="cpu")

    monkeypatch.setattr(train_fold, "train_network", train_network)
    trainer = {"max_networks": 5} | settings
    fold = trainer.pop("fold", None)
    cfg = TrainConfig.of(data={"root": "raw", "fold": fold}, trainer=trainer)
    experiment = Experiment(cfg, inspection=None, run=tmp_path)
    plan = plan_of("unet").with_(network_steps=100)
    validate = object()
    networks = train_fold.train_networks(experiment, plan, [], validate)
    assert len(networks) == 1 + len(minutes)
    assert began[0] == (1, settings.get("max_minutes"), validate)
    expected = [(number, each, None) for number, each in enumerate(minutes, start=2)]
    assert began[1:] == expected


def test_networks_of_few_lesions_are_one_ensemble(tmp_path, monkeypatch, caplog):
    """Each ends after one step. A run without its bundle is not trained again."""
    monkeypatch.setattr(rules, "VIEWS_OF_LESION", 1e-9)  # a network ends after one step
    raw = tmp_path / "raw"
    write_mri_phantoms(raw, 3, seed=0, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0))
    command = [f"data.root={raw}", f"run_dir={tmp_path / 'run'}", "report.pdf=false"]
    command += ["model.tile_shape=[16,16,16]", "model.batch_size=2", "model.base_features=4"]
    command += ["trainer.max_minutes=60", "trainer.max_networks=3", "trainer.workers=0"]
    command += ["trainer.accelerator=cpu"]
    assert run("train", command) == 0
    bundle = read_bundle(tmp_path / "run")
    assert (len(bundle.networks), bundle.selection.n_members) == (3, 3)
    first, second, third = (next(one.parameters()) for one in bundle.networks)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert "a network ends after 1 step" in caplog.text
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert run("train", command) == 0
    for before, after in zip(bundle.networks, read_bundle(tmp_path / "run").networks, strict=True):
        assert torch.equal(next(before.parameters()), next(after.parameters()))
