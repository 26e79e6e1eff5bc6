"""The recipe of tuning: tiny trainings on simulated radiographs, and what is refused."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lesionseg.cli import compose
from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation import PRESETS
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.losses import (
    CrossEntropyLoss,
    DetectionLoss,
    DiceFocalLoss,
    FocalLoss,
)
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.dataset import DataSettings
from lesionseg.pipeline.from_config import detection_of, loss_of
from lesionseg.pipeline.judging.volume_scores import VolumeJudge
from lesionseg.pipeline.tune.pair_losses import PairLosses, pair_of, tunable_losses
from lesionseg.pipeline.tune.recipe import TuneOutcome, tune
from lesionseg.pipeline.tune.search import HopelessTrial, TuneSettings
from lesionseg.pipeline.tune.trial import NOTHING, Quality, TrialRecipe
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import OptimiserSettings, TrainerSettings

Tune = Callable[..., TuneOutcome]
QUIET = {"accelerator": "cpu", "workers": 0, "progress": False}


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "radiographs"
    write_xray_phantoms(folder, 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0)
    return folder


@pytest.fixture
def search(radiographs: Path, tmp_path: Path) -> Tune:
    """Tune with two trials of two steps; keywords change the arguments."""

    def run(*, n_trials: int = 2, seed: int = 0, **changed: Any) -> TuneOutcome:
        trainer = {"max_steps": 2, **QUIET, **changed.pop("trainer", {})}
        given = {"loss": partial(FocalLoss, alpha=0.25, gamma=2.0), "seed": seed, **changed}
        small = {"tile_shape": (32, 32), "batch_size": 2, "base_features": 4}
        return tune(
            data=given.pop("data", None)
            or DataSettings(str(radiographs), validation_fraction=0.4, cache_dir=str(tmp_path)),
            model=PlanOverrides(given.pop("architecture", "unet"), **small),
            detection=given.pop("detection", DetectionLoss),
            prepare=PrepareSettings(),
            sampling=SamplingSettings(),
            augment=AugmentationSettings(flip_probability=0.0, spatial_probability=0.0),
            optim=OptimiserSettings(lr=1e-2),
            trainer=TrainerSettings(**trainer),
            inference=InferenceSettings(overlap=0.0),
            preset=PRESETS["lesionseg"],
            tune=TuneSettings(n_trials=n_trials, **given.pop("tune", {})),
            run_dir=str(tmp_path / "run"),
            config={"seed": given["seed"], "tune": {"n_trials": n_trials}},
            **given,
        )

    return run


def test_the_memory_is_tried_once_before_the_search(
    search: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def smaller(plan: Plan, learning: Learning, *_: object) -> Plan:
        tried.append(learning.loss)
        return plan.with_(batch_size=1)

    monkeypatch.setattr("lesionseg.pipeline.tune.recipe.affordable", smaller)
    seen = []
    recipe = TrialRecipe
    monkeypatch.setattr(
        "lesionseg.pipeline.tune.recipe.TrialRecipe",
        lambda **given: seen.append(given["plan"].batch_size) or recipe(**given),
    )
    search(n_trials=1)
    search(n_trials=1)
    assert len(tried) == 1
    assert seen[0] == 1


def test_a_search_leaves_its_table_page_and_journal_and_goes_on(
    search: Tune, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = search()
    kept = json.loads((run / "tune.json").read_text())
    assert [t["number"] for t in kept["trials"]] == [0, 1]
    assert (kept["trials"][0]["alpha"], kept["trials"][0]["gamma"]) == (0.25, 2.0)
    assert set(kept["trials"][0]["scores"]) == {"recall", "average_precision"}
    assert kept["evaluated_on"] == "validation"
    assert kept["n_lesions"] > 0
    assert "http" not in (run / "tune.html").read_text().replace("http-equiv", "")
    assert not list(run.rglob("*.ckpt"))
    assert "validation_recall" in (run / "trials" / "000" / "metrics.csv").read_text()
    assert any("γ" in line for line in outcome.summary())
    again = search(n_trials=3)
    assert [t.number for t in again.search.trials] == [0, 1, 2]


def test_another_configuration_in_the_same_folder_is_refused(search: Tune) -> None:
    search(n_trials=1)
    with pytest.raises(ConfigError, match="seed: 0 → 1"):
        search(n_trials=1, seed=1)


def test_trials_judged_by_another_match_rule_are_not_gone_on_with(
    search: Tune, tmp_path: Path
) -> None:
    search(n_trials=1)
    path = tmp_path / "run" / "tune.json"
    kept = json.loads(path.read_text())
    assert kept["match_rule"] == "lesionseg 2"
    path.write_text(json.dumps(kept | {"match_rule": "lesionseg 1"}))
    with pytest.raises(ConfigError, match="judged by another match rule"):
        search(n_trials=2)


def test_a_training_that_diverges_is_worth_nothing_and_the_search_goes_on(search: Tune) -> None:
    class Endless(FocalLoss):
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            terms = super().forward(*args, **kwargs)
            return {name: term * torch.inf for name, term in terms.items()}

    outcome = search(loss=Endless, trainer={"max_steps": 20})
    assert [(t.state, t.value) for t in outcome.search.trials] == [("complete", 0.0)] * 2
    assert "diverged" in outcome.search.trials[0].note
    assert "No trial has found a lesion" in outcome.search.notes[-1]


def test_a_hopeless_trial_ends_in_the_middle_of_its_training(
    search: Tune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hopeless(*_: Any) -> None:
        raise HopelessTrial

    monkeypatch.setattr("lesionseg.pipeline.tune.search.OpenTrial.report", hopeless)
    outcome = search(n_trials=1, trainer={"max_steps": 500, "validate_every_minutes": 1e-6})
    assert outcome.search.trials[0].state == "pruned"
    rows = (tmp_path / "run" / "trials" / "000" / "metrics.csv").read_text().splitlines()
    assert len(rows) < 5
    assert outcome.search.best is None


def test_a_loss_without_alpha_and_gamma_is_refused_and_the_others_named(search: Tune) -> None:
    for loss in (CrossEntropyLoss,):
        with pytest.raises(ConfigError, match=r"DiceFocalLoss, FocalLoss.* loss=lesion_wise"):
            search(loss=partial(loss))
    assert {"FocalLoss", "DiceFocalLoss", "LesionWiseFocalLoss", "TrimmedFocalLoss"} <= set(
        tunable_losses()
    )


def first_loss(run: Path, trial: int) -> float:
    """Of the first step of a trial: all have the same weights and tiles then."""
    with (run / "trials" / f"{trial:03d}" / "metrics.csv").open() as stream:
        return float(next(csv.DictReader(stream))["loss"])


def test_a_detectors_anchors_are_taught_by_the_trials_pair(search: Tune, tmp_path: Path) -> None:
    outcome = search(architecture="retinanet", detection=partial(DetectionLoss, alpha=0.5))
    one, other = (first_loss(tmp_path / "run", trial) for trial in (0, 1))
    assert one != pytest.approx(other, rel=1e-2)
    trials = outcome.search.trials
    assert (trials[0].alpha, trials[0].gamma) == (0.5, 2.0)  # what the anchors have untuned
    assert outcome.overrides(0.5, 2.0) == "detection.alpha=0.500 detection.gamma=2.00"


@pytest.mark.parametrize(
    ("architecture", "detection"),
    [
        ("unet", "focal"),
        ("retinanet", "focal"),
        ("retinanet", "varifocal"),
        ("retina_unet", "focal"),
        ("retina_unet", "varifocal"),
        ("retina_unet", "hard_negatives"),
    ],
)
def test_the_advice_makes_the_losses_of_the_trial(architecture: str, detection: str) -> None:
    negatives = f"detection.hard_negatives={detection == 'hard_negatives'}"
    options = ["data.root=x", f"model={architecture}", negatives, "loss=focal"]
    searched = made(compose("tune", options))
    losses = PairLosses(architecture, searched["loss"], searched["detection"])
    voxels, anchors = losses(0.6, 1.5)
    advice = TuneOutcome(Path(), None, losses.groups).overrides(0.6, 1.5)  # type: ignore[arg-type]
    trained = made(compose("train", [*options, *advice.split()]))
    if architecture != "retinanet":
        assert (voxels.alpha, voxels.gamma) == (0.6, 1.5)
        assert (trained["loss"]().alpha, trained["loss"]().gamma) == (0.6, 1.5)
    if architecture != "unet":
        assert vars_of(anchors) == vars_of(trained["detection"]())
        assert (anchors.alpha == 0.6) == (detection != "hard_negatives")


def made(cfg: Any) -> dict[str, Any]:
    return {"loss": loss_of(cfg), "detection": detection_of(cfg)}


def vars_of(loss: DetectionLoss) -> dict[str, Any]:
    return {k: v for k, v in vars(loss).items() if not k.startswith("_")}


@pytest.mark.parametrize("classification", ["quality", "hard_negatives"])
def test_anchors_without_alpha_and_gamma_are_refused(search: Tune, classification: str) -> None:
    with pytest.raises(ConfigError, match=r"detection\.classification.*detection=focal"):
        search(
            architecture="retinanet",
            detection=partial(DetectionLoss, classification=classification),
        )


def test_the_trials_plan_undoes_what_the_pair_did(
    search: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def judge(found: Any, cases: Any, plan: Plan, *rest: Any) -> VolumeJudge:
        seen.append((plan.anchors.alpha, plan.anchors.gamma))
        return VolumeJudge(found, cases, plan, *rest)

    monkeypatch.setattr("lesionseg.pipeline.tune.recipe.VolumeJudge", judge)
    outcome = search(architecture="retinanet", n_trials=2)
    assert seen == [(t.alpha, t.gamma) for t in outcome.search.trials]


def test_several_devices_a_trial_are_refused(search: Tune) -> None:
    with pytest.raises(ConfigError, match="processes share the search"):
        search(trainer={"devices": 2})


def test_without_validation_lesions_there_is_nothing_to_tune_by(
    search: Tune, radiographs: Path
) -> None:
    with pytest.raises(DatasetError, match="measure the trials by"):
        search(data=DataSettings(str(radiographs), validation_fraction=0))


def test_the_pair_without_a_search_is_read_from_the_loss() -> None:
    assert pair_of(partial(DiceFocalLoss, alpha=0.75)) == (0.75, 2.0)
    assert pair_of(partial(FocalLoss, alpha=[0.2, 0.4])) is None


def test_one_lesion_more_outweighs_any_precision() -> None:
    assert Quality(0.31, 0.0).objective > Quality(0.3, 0.9).objective
    assert Quality(0.3, 0.6).objective > Quality(0.3, 0.5).objective
    assert NOTHING.objective == 0
