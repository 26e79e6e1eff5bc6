"""The search for α and γ resumes, and a trial is ranked by its recall."""

import json

import pytest

from lesionseg.cli import compose, run
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.run_dir import check_config, config_of, save_config
from lesionseg.pipeline.tune import check_tuning, options_of_trials, tune, tuned_groups

SMALL = [
    *("data.validation_fraction=0.4", "inference.overlap=0", "optim.lr=0.01", "augment=none"),
    *("model.tile_shape=[32,32]", "model.batch_size=2", "model.base_features=4", "loss=focal"),
    *("trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.workers=0"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "radiographs"
    write_xray_phantoms(folder, 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0)
    return folder


def search(root, folder, *more):
    """Run a small search and return its trials."""
    cfg = compose("tune", [f"data.root={root}", f"run_dir={folder}", *SMALL, *more])
    return tune(cfg).search


def test_search_writes_table_page_and_journal_and_resumes(root, tmp_path, capsys):
    folder = tmp_path / "run"
    settings = [f"data.root={root}", f"run_dir={folder}", *SMALL, "tune.n_trials=2"]
    assert run("tune", settings) == 0
    kept = json.loads((folder / "tune.json").read_text())
    assert [trial["number"] for trial in kept["trials"]] == [0, 1]
    assert (kept["trials"][0]["alpha"], kept["trials"][0]["gamma"]) == (0.25, 2.0)
    for trial in kept["trials"]:
        scores = trial["scores"]
        assert trial["value"] == scores["recall"] + 0.01 * scores["average_precision"]
    assert kept["evaluated_on"] == "validation"
    assert kept["n_lesions"] > 0
    assert 'src="http' not in (folder / "tune.html").read_text()
    assert not list(folder.rglob("*.ckpt"))
    assert "γ" in capsys.readouterr().out
    again = search(root, folder, "tune.n_trials=3")
    assert [trial.number for trial in again.trials] == [0, 1, 2]
    with pytest.raises(ConfigError, match="seed: 0 → 1"):
        search(root, folder, "tune.n_trials=3", "seed=1")


def test_diverging_training_has_the_value_0_and_the_search_continues(root, tmp_path, monkeypatch):
    def diverges(*_, **__):
        raise TrainingError("The loss is no number.")

    monkeypatch.setattr("lesionseg.pipeline.tune.train_network", diverges)
    found = search(root, tmp_path / "run", "tune.n_trials=2")
    assert [(trial.state, trial.value) for trial in found.trials] == [("complete", 0.0)] * 2
    assert "no number" in found.trials[0].note


def test_resumed_search_keeps_its_learning_rate(root, tmp_path, monkeypatch):
    rates = []

    def train_network(experiment, *_, **__):
        rates.append(experiment.cfg.optim.lr)
        raise TrainingError("The loss is no number.")

    monkeypatch.setattr("lesionseg.pipeline.tune.train_network", train_network)
    search(root, tmp_path / "run", "tune.n_trials=1")
    search(root, tmp_path / "run", "tune.n_trials=2", "optim.lr=auto")
    assert rates == [0.01, 0.01]


def test_processes_of_a_search_may_use_different_devices(root, tmp_path):
    run_dir = tmp_path / "run"
    cfg = compose("tune", [f"data.root={root}", "trainer.devices=[0]"])
    save_config(run_dir, config_of(cfg))
    other = compose("tune", [f"data.root={root}", "trainer.devices=[1]"])
    check_config(run_dir, config_of(other))
    with pytest.raises(ConfigError, match="seed"):
        check_config(run_dir, config_of(compose("tune", [f"data.root={root}", "seed=1"])))


@pytest.mark.parametrize(
    ("more", "groups"),
    [
        ("model=unet loss=focal", ("loss",)),
        ("model=retinanet loss=cross_entropy", ("detection",)),
        ("model=retina_unet", ("loss", "detection")),
        ("model=retina_unet detection.hard_negatives=true", ("loss",)),
        ("model=unet loss=cross_entropy", "loss=focal"),  # has no pair
        ("model=retinanet detection.hard_negatives=true", "hard_negatives"),
        ("tune.alpha=[0.8,0.2]", "the lower bound"),
        ("data.fold=all", "uses one fold"),
    ],
)
def test_searched_pair_belongs_to_voxels_anchors_or_both(more, groups):
    cfg = compose("tune", ["data.root=x", *more.split()])
    if isinstance(groups, tuple):
        assert tuned_groups(cfg) == groups
    else:
        with pytest.raises(ConfigError, match=groups):
            check_tuning(cfg)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("model=unet loss=focal", {"model": "unet", "loss": "focal"}),
        ("model=retinanet loss=focal", {"model": "retinanet"}),
        ("model=retina_unet", {"model": "retina_unet", "loss": "dice_focal"}),
    ],
)
def test_next_command_trains_the_model_and_the_loss_of_the_trials(more, options):
    cfg = compose("tune", ["data.root=none", *more.split()])
    assert options_of_trials(cfg, tuned_groups(cfg)) == options
