"""The search for α and γ resumes, and a trial is ranked by its recall."""

import pytest
from filelock import FileLock

from lesionseg.cli import compose, run
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.extras.tune.recipe import (
    SharedStudy,
    TuneOutcome,
    check_tuning,
    configured_pair,
    open_study,
    options_of_trials,
    tune,
    tuned_groups,
)
from lesionseg.io.text import read_json
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.run_dir import check_config, config_of, save_config

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


def settings_of(more):
    """Return the settings of a search with these overrides."""
    return compose("tune", ["data.root=x", *more.split()])


def search(root, folder, *more):
    """Run a small search and return its trials."""
    cfg = compose("tune", [f"data.root={root}", f"run_dir={folder}", *SMALL, *more])
    return tune(cfg).search


def test_search_writes_table_page_and_journal_and_resumes(root, tmp_path, capsys):
    folder = tmp_path / "run"
    settings = [f"data.root={root}", f"run_dir={folder}", *SMALL, "tune.n_trials=2"]
    assert run("tune", settings) == 0
    kept = read_json(folder / "tune.json")
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


def test_rejected_settings_leave_no_folder(root, tmp_path, capsys):
    small = [setting for setting in SMALL if not setting.startswith("loss")]
    place = [f"run_dir={tmp_path / 'new' / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert run("tune", [f"data.root={root}", *place, *small, "loss=focal", "+loss.typo=1"]) == 2
    assert "typo" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()  # facts of files older than two seconds are cached


@pytest.fixture
def rates(monkeypatch):
    """Let every training diverge. Return the list of their learning rates."""
    rates = []

    def diverge(experiment, *_, **__):
        rates.append(experiment.cfg.optim.lr)
        raise TrainingError("The loss is no number.")

    monkeypatch.setattr("lesionseg.extras.tune.recipe.train_network", diverge)
    return rates


def test_diverging_training_has_the_value_0_and_the_resumed_search_keeps_its_rate(
    root, tmp_path, rates
):
    search(root, tmp_path / "run", "tune.n_trials=1")
    found = search(root, tmp_path / "run", "tune.n_trials=2", "optim.lr=auto")
    assert [(trial.state, trial.value) for trial in found.trials] == [("complete", 0.0)] * 2
    assert "no number" in found.trials[0].note
    assert TuneOutcome(found, tmp_path / "run", None).record()["best"] is None
    assert rates == [0.01, 0.01]


def test_trial_that_used_its_whole_budget_is_complete(root, tmp_path, monkeypatch):
    monkeypatch.setattr("optuna.Trial.should_prune", lambda _: True)
    found = search(root, tmp_path / "run", "tune.n_trials=1")  # validates only at the end
    assert [trial.state for trial in found.trials] == ["complete"]


PAIR = {"alpha": 0.25, "gamma": 2.0}


def open_shared(folder, n_trials):
    """Open the study of a search as one of its processes does."""
    study = open_study(settings_of("loss=focal"), folder)
    return SharedStudy(study, folder, FileLock(folder / "begin"), n_trials, PAIR)


def propose(trial):
    """Ask for a pair as a trial does. Return its score."""
    trial.suggest_float("alpha", 0.05, 0.95)
    trial.suggest_float("gamma", 0.0, 5.0)
    return 0.5


def trials_of(shared):
    return [(t.state.name, t.params == PAIR) for t in shared.study.get_trials()]


def test_pair_of_the_settings_is_tried_again_after_its_trial_was_killed(tmp_path, monkeypatch):
    killed = open_shared(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(killed.study, "tell", lambda *_, **__: None)  # the trial stays "running"
        assert killed.run_next(propose)
    restarted = open_shared(tmp_path, 2)
    while restarted.run_next(propose):
        pass
    assert trials_of(restarted) == [("RUNNING", True), ("COMPLETE", True), ("COMPLETE", False)]


def test_processes_together_run_the_stated_number_of_trials_and_the_pair_once(tmp_path):
    started = []

    def train_while_others_begin(trial):
        other = open_shared(tmp_path, 2)
        started.append(other.run_next(propose))
        started.append(other.run_next(propose))  # one trial is complete, this one is running
        return propose(trial)

    shared = open_shared(tmp_path, 2)
    assert shared.run_next(train_while_others_begin)
    assert not shared.run_next(propose)
    assert started == [True, False]
    assert trials_of(shared) == [("COMPLETE", True), ("COMPLETE", False)]


def test_interrupted_trial_does_not_count(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    shared = open_shared(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        shared.run_next(interrupt)
    assert shared.run_next(propose)
    assert not shared.run_next(propose)
    assert trials_of(shared) == [("FAIL", False), ("COMPLETE", True)]


@pytest.mark.parametrize(
    ("more", "pair"),
    [
        ("loss=focal", PAIR),
        ("loss=focal tune.alpha=[0.3,0.9]", None),
        ("loss=focal tune.gamma=[0,1]", None),
        ("loss=focal tune.gamma=[2,2]", PAIR),
    ],
)
def test_pair_of_the_settings_is_tried_only_within_the_ranges(more, pair):
    assert configured_pair(settings_of(more), "loss") == pair


def test_processes_of_a_search_may_use_different_devices(tmp_path):
    save_config(tmp_path, config_of(settings_of("trainer.devices=[0]")))
    check_config(tmp_path, config_of(settings_of("trainer.devices=[1]")))
    with pytest.raises(ConfigError, match="seed"):
        check_config(tmp_path, config_of(settings_of("seed=1")))


@pytest.mark.parametrize(
    ("more", "groups", "options"),
    [
        ("model=unet loss=focal", ("loss",), {"model": "unet", "loss": "focal"}),
        ("model=retinanet loss=cross_entropy", ("detection",), {"model": "retinanet"}),
        (
            "model=retina_unet",
            ("loss", "detection"),
            {"model": "retina_unet", "loss": "lesion_balanced"},
        ),
    ],
)
def test_searched_pair_and_next_command_belong_to_voxels_anchors_or_both(more, groups, options):
    cfg = settings_of(more)
    assert tuned_groups(cfg) == groups
    assert options_of_trials(cfg, groups) == options


def test_hard_negatives_exclude_the_pair_of_anchors():
    cfg = settings_of("model=retina_unet detection.hard_negatives=true")
    assert tuned_groups(cfg) == ("loss",)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("model=unet loss=cross_entropy", "loss=focal"),  # has no pair
        ("model=retinanet detection.hard_negatives=true", "hard_negatives"),
        ("model=unet loss=focal loss.alpha=[0.2,0.6]", "loss.alpha"),
        ("model=retinanet detection.alpha=[0.2,0.6]", "detection.alpha"),
        ("tune.alpha=[0.8,0.2]", "the lower bound"),
        ("data.fold=all", "uses one fold"),
    ],
)
def test_settings_without_a_pair_to_search_are_refused(more, words):
    with pytest.raises(ConfigError, match=words):
        check_tuning(settings_of(more))
