"""The commands as functions with the names of the command line, and results for notebooks."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import lesionseg
from lesionseg.cli.compose import compose_files
from lesionseg.config import COMMANDS, defaults, groups_of, settings_of
from lesionseg.errors import ConfigError, ReadError
from lesionseg.pipeline.train import TrainOutcome
from tests.commands import python
from tests.pipeline.cases import boxes, write_array

TRAINING = """
import logging
import sys
from pathlib import Path
import lesionseg
logging.basicConfig(filename=Path(sys.argv[1]) / "warnings.txt")
from lesionseg.phantoms import write_xray_phantoms
folder = Path(sys.argv[1])
write_xray_phantoms(folder / "raw", 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0)
small = {"model__tile_shape": [32, 32], "model__batch_size": 2, "model__base_features": 4}
quick = {"trainer__max_steps": 2, "trainer__workers": 0, "trainer__accelerator": "cpu"}
run = lesionseg.train(folder / "raw", run_dir=folder / "run", report__pdf=False, **small, **quick)
assert run.scores.count("n_cases")
"""
SEEN = (2, 2, 2, 6)
MISSED = (15, 15, 15, 4)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Evaluate masks of two cases with one lesion found and one missed each."""
    folder = tmp_path_factory.mktemp("scored")
    for case in ("a", "b"):
        for name, places in (("truth", [SEEN, MISSED]), ("masks", [SEEN])):
            write_array(folder / name / f"{case}.nii.gz", boxes((24, 24, 24), *places))
    return lesionseg.evaluate(folder / "truth", folder / "masks", folder / "scores", replicates=10)


def test_run_has_scores_tables_charts_and_a_page(evaluation, tmp_path):
    assert evaluation.scores["lesion_recall"].value == 0.5
    assert evaluation.to_pandas("lesions")["detected"].tolist() == [True, False] * 2
    assert "<td>lesion recall</td><td>0.500</td>" in evaluation._repr_html_()
    shutil.copytree(evaluation.folder, tmp_path / "cv" / "oof")
    for run in (evaluation, lesionseg.Run(tmp_path / "cv")):  # the second one is cross-validated
        assert run.scores == evaluation.scores
        assert list(run.to_pandas("cases")["case"]) == ["a", "b"]
        assert run.plot().axes
        assert run.report(tmp_path / run.folder.name, report__pdf=False).is_file()


def test_texts_of_a_table_stay_texts_and_boxes_are_numbers(evaluation, tmp_path):
    table = (evaluation.folder / "lesions.csv").read_text()
    for case, name in (("a", "007"), ("a", "'=b"), ("b", "NA"), ("b", "nan")):
        table = table.replace(f"\n{case},", f"\n{name},", 1)
    (tmp_path / "lesions.csv").write_text(table)
    frame = lesionseg.Run(tmp_path).to_pandas("lesions")
    assert frame["case"].tolist() == ["007", "=b", "NA", "nan"]
    assert frame["start_z_vox"].tolist() == [2, 15] * 2
    assert frame["zone"].isna().all()


def test_table_of_visits_is_followed(tmp_path):
    rows = ["case,image,group,visit"]
    for number, case in enumerate(("first", "second")):
        write_array(tmp_path / "scans" / f"{case}.nii.gz", boxes((8, 8, 8), (2, 2, 2, 3)))
        rows.append(f"{case},scans/{case}.nii.gz,P1,{number}")
    table = tmp_path / "visits.csv"
    table.write_text("\n".join(rows))
    settings = {"visits": table, "predictions": tmp_path / "scans", "replicates": 10}
    changes = lesionseg.follow(output=tmp_path / "followed", **settings)
    assert changes["state"].tolist() == ["stable"]
    with pytest.raises(ConfigError, match="output"):
        lesionseg.follow(**settings)


def test_undefined_numbers_of_a_table_stay_numbers(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,dice\n5,nan,\n10,0.25,0.5\n")
    metrics = lesionseg.Run(tmp_path).to_pandas("metrics")
    assert metrics["loss"].isna().tolist() == [True, False]
    assert (metrics["loss"][1], metrics["dice"][1]) == (0.25, 0.5)


def test_missing_tables_and_unknown_settings_are_named(evaluation, tmp_path):
    with pytest.raises(ConfigError, match="the table"):
        evaluation.to_pandas("lesion")
    with pytest.raises(ReadError, match="the table does not exist"):
        lesionseg.Run(tmp_path).to_pandas("cases")
    with pytest.raises(ConfigError, match="Did you mean 'preset'"):
        lesionseg.evaluate("a", "b", "c", presett="iou50")


def settings_of_train(monkeypatch, **settings):
    """Return the settings with which `lesionseg.train` calls the recipe."""
    recipe = Mock(return_value=TrainOutcome(Path("runs/a")))
    monkeypatch.setattr("lesionseg.api.run_recipe", recipe)
    assert lesionseg.train("my data", **settings).folder == Path("runs/a")
    return recipe.call_args.args[1]


def test_settings_have_the_names_of_the_command_line(monkeypatch):
    settings = {"loss.gamma": 1.5, "model__tile_shape": (32, 32, 32), "trainer__max_steps": None}
    cfg = settings_of_train(monkeypatch, loss="focal", **settings)
    assert (cfg.data.root, cfg.loss.gamma, cfg.trainer.max_steps) == ("my data", 1.5, None)
    assert list(cfg.model.tile_shape) == [32, 32, 32]
    sections = {"data": {"fold": 1}, "loss": {"gamma": 1.5}, "trainer": {"max_steps": None}}
    other = settings_of_train(monkeypatch, **sections)
    assert (other.data.root, other.data.fold) == ("my data", 1)
    assert (other.loss.gamma, other.trainer) == (1.5, cfg.trainer)


def test_experiment_is_changed_by_sections_and_by_objects(monkeypatch):
    callback = {"_target_": "mine.Callback", "every": 3}
    cfg = settings_of_train(
        monkeypatch,
        experiment="demo_mri",
        trainer={"max_steps": 1},
        callbacks=[callback],
        model="custom",
        model__network={"_target_": "mine.Net"},
    )
    assert (cfg.data.root, cfg.run_dir) == ("my data", "runs/demo_mri")
    assert (cfg.trainer.max_steps, cfg.trainer.max_minutes) == (1, 2.25)
    assert cfg.callbacks == (callback,)
    assert (cfg.model.network, cfg.model.batch_size) == ({"_target_": "mine.Net"}, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"_target_": "mine.Loss", "power": 3}},
        {"loss__power": 3, "loss___target_": "mine.Loss"},
        {"loss": "custom", "loss__power": 3, "loss___target_": "mine.Loss"},
        {"experiment": "demo_mri", "loss": {"_target_": "mine.Loss", "power": 3}},
    ],
)
def test_class_of_another_loss_does_not_get_the_arguments_of_the_default(monkeypatch, settings):
    loss = settings_of_train(monkeypatch, **settings).loss
    assert loss.to_plain() == {"_target_": "mine.Loss", "power": 3}


def test_numbers_and_arrays_of_numpy_are_accepted(monkeypatch):
    cfg = settings_of_train(
        monkeypatch,
        seed=np.int64(3),
        model__tile_shape=np.array([32, 32, 16]),
        augment={"extra": [{"_target_": "mine.Transform", "prob": np.float32(0.5)}]},
    )
    assert (cfg.seed, cfg.model.tile_shape) == (3, (32, 32, 16))
    assert cfg.to_plain()["augment"]["extra"] == [{"_target_": "mine.Transform", "prob": 0.5}]


@pytest.mark.parametrize("value", [object(), np.float32])
def test_setting_that_cannot_be_stored_is_an_error(monkeypatch, value):
    cfg = settings_of_train(monkeypatch, trainer={"lightning": {"profiler": value}})
    with pytest.raises(ConfigError, match="cannot be stored"):
        cfg.to_plain()


@pytest.mark.slow  # a complete training in a separate process
def test_training_in_python_prints_nothing(tmp_path):
    done = python("-c", TRAINING, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_run_accepts_a_path_as_text_and_has_test_scores(evaluation, tmp_path):
    assert lesionseg.Run(str(evaluation.folder)) == evaluation
    with pytest.raises(ReadError, match="no scores of test cases"):
        _ = evaluation.test
    shutil.copytree(evaluation.folder, tmp_path / "run" / "test")
    assert lesionseg.Run(str(tmp_path / "run")).test.scores == evaluation.scores


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer.max_stepz": 1}, "Did you mean 'trainer.max_steps'"),
        ({"loss": "focall"}, "Did you mean 'focal'"),
        ({"trainer.max_steps": "many"}, "trainer.max_steps"),
        ({"augment": {"flips": []}}, "Did you mean 'augment.flip_axes'"),
        ({"report": True}, "^report: True"),
    ],
)
def test_wrong_setting_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        lesionseg.train("data", **values)
    with pytest.raises(ConfigError, match=r"give data\.root=…"):
        settings_of("train", {})


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_equal_those_of_hydra(command):
    by_hydra = compose_files(command)
    by_hydra.pop("experiment", None)  # a group without a choice
    assert defaults(command) == by_hydra
    assert set(groups_of(command)) - {"experiment"} <= set(by_hydra)
