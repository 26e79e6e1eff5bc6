"""The recipe of tuning: tiny trainings on simulated radiographs, and what is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.phantom import write_xray_phantoms
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation import PRESETS
from lesionseg.inference.settings import InferenceSettings
from lesionseg.losses import CrossEntropyLoss, DiceFocalLoss, FocalLoss, FocalTverskyLoss
from lesionseg.pipeline.learning import Learning
from lesionseg.pipeline.search import HopelessTrial, TuneSettings
from lesionseg.pipeline.settings import DataSettings
from lesionseg.pipeline.trial import NOTHING, Quality, TrialRecipe, pair_of, tunable_losses
from lesionseg.pipeline.tune import TuneOutcome, tune
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
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
        return tune(
            data=given.pop("data", None)
            or DataSettings(str(radiographs), validation_fraction=0.4, cache_dir=str(tmp_path)),
            model=PlanOverrides(tile_shape=(32, 32), batch_size=2, base_features=4),
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

    def smaller(plan: Plan, learning: Learning, run: Path) -> Plan:
        tried.append(learning.loss)
        return plan.with_(batch_size=1)

    monkeypatch.setattr("lesionseg.pipeline.tune.affordable", smaller)
    seen = []
    recipe = TrialRecipe
    monkeypatch.setattr(
        "lesionseg.pipeline.tune.TrialRecipe",
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

    monkeypatch.setattr("lesionseg.pipeline.search.OpenTrial.report", hopeless)
    outcome = search(n_trials=1, trainer={"max_steps": 500, "validate_every_minutes": 1e-6})
    assert outcome.search.trials[0].state == "pruned"
    rows = (tmp_path / "run" / "trials" / "000" / "metrics.csv").read_text().splitlines()
    assert len(rows) < 5
    assert outcome.search.best is None


def test_a_loss_without_alpha_and_gamma_is_refused_and_the_others_named(search: Tune) -> None:
    for loss in (CrossEntropyLoss, FocalTverskyLoss):
        with pytest.raises(ConfigError, match=r"DiceFocalLoss, FocalLoss.* loss=lesion_wise"):
            search(loss=partial(loss))
    assert {"FocalLoss", "DiceFocalLoss", "LesionWiseFocalLoss", "TrimmedFocalLoss"} <= set(
        tunable_losses()
    )


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
