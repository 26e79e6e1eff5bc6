"""A run directory belongs to one configuration and its development cases. It keeps its log."""

import logging
import shlex
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from lesionseg.cli import compose, run
from lesionseg.config import DataConfig, LossConfig, TrainConfig
from lesionseg.core import CaseFiles, Dataset, Labels, Selection
from lesionseg.errors import ConfigError, DatasetError, OutputError, TrainingError
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.operating_points import OperatingPointAim, PointInUse
from lesionseg.evaluation.scores import Provenance, Scores
from lesionseg.io.files import locked_folder
from lesionseg.io.text import write_json
from lesionseg.phantoms import simulate_once, write_mri_phantoms
from lesionseg.pipeline import train as train_recipe
from lesionseg.pipeline.dataset_inspection import DatasetInspection, inspect_dataset
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import LOG, bar, command_line, run_log
from lesionseg.pipeline.planning import check_losses
from lesionseg.pipeline.provenance import scores_provenance
from lesionseg.pipeline.run_dir import (
    check_cases,
    check_config,
    config_of,
    save_config,
    save_digests,
    settings_of_training,
    settings_to_train_further,
    warn_of_seen_cases,
)
from lesionseg.pipeline.train import (
    closing_lines,
    explain_nothing_found,
    explain_promise,
    warn_of_few_patients,
)
from lesionseg.pipeline.train_fold import TrainedModel
from lesionseg.plan.plan import AnchorPlan
from lesionseg.plan.splits import Splits
from lesionseg.training.objective import make_objective
from tests.commands import python
from tests.flow.cases import HEADS
from tests.pipeline.cases import small_training


def composed(*settings):
    """Return the stored configuration of a training with these settings."""
    return config_of(compose("train", [*settings]))


BEGAN = {"a": "train", "b": "train", "c": "validation", "t": "test"}
CONFIG = """seed=0 run_dir=a debug=false loss.gamma=2.0 data.root=r data.cache_dir=null
    command=train trainer.max_steps=5 trainer.workers=0 report.pdf=true"""


def make_config(*changes):
    return OmegaConf.to_container(OmegaConf.from_dotlist([*CONFIG.split(), *changes]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("run_dir=b debug=true data.cache_dir=c trainer.workers=4 report.pdf=false", None),
        ("data.root=s", r"data\.root: r → s"),
        ("trainer.max_steps=6", r"trainer\.max_steps: 5 → 6"),
        ("loss.gamma=5.0 seed=1", r"loss\.gamma: 2\.0 → 5\.0; seed: 0 → 1"),
        ("command=prepare seed=1", "belongs to train"),
        # settings that the version of the run did not have
        ("loss.dice_weight=1.0 data.colour=false data.geometry=header data.nan=error", None),
        ("loss.dice_weight=0", r"loss\.dice_weight: 1\.0 → 0"),
        ("data.colour=true", r"data\.colour: False → True"),
    ],
)
def test_only_settings_without_effect_on_results_may_differ_on_resume(tmp_path, change, named):
    run_dir = tmp_path / "run"
    check_config(run_dir, make_config())
    assert not run_dir.exists()
    save_config(run_dir, make_config())
    with pytest.raises(ConfigError, match=named) if named else nullcontext():
        check_config(run_dir, make_config(*change.split()))


@pytest.mark.parametrize("key", ["data.root", "data.splits", "data.annotations", "model.init_from"])
def test_same_path_in_another_spelling_is_no_other_configuration(tmp_path, monkeypatch, key):
    for name in ("here", "scans", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir = tmp_path / "run"

    def config(path):
        return composed("data.root=r", f"{key}={path}")

    save_config(run_dir, config(f"{tmp_path}/scans"))
    for same in ("../scans", "~/scans", "../link", "./../scans/"):
        check_config(run_dir, config(same))
    with pytest.raises(ConfigError, match=rf"{key}: .*scans → \.\./other"):
        check_config(run_dir, config("../other"))
    # files are compared by content once they are known
    write_json(run_dir / "sources.json", {})
    monkeypatch.chdir(tmp_path)
    is_compared = key == "model.init_from"
    with pytest.raises(ConfigError, match=key) if is_compared else nullcontext():
        check_config(run_dir, config("moved"))


@pytest.mark.parametrize("model", ["unet", "retina_unet", "retinanet"])
def test_loss_of_masks_may_differ_only_if_the_model_has_none(tmp_path, model):
    chosen = ["data.root=r", f"model={model}"]
    save_config(tmp_path, composed(*chosen, "loss=dice_focal"))
    now = composed(*chosen)
    refused = pytest.raises(ConfigError, match=r"loss\._target_: .*DiceFocalLoss → ")
    with nullcontext() if model == "retinanet" else refused:
        check_config(tmp_path, now)
    with pytest.raises(ConfigError, match="seed: 0 → 1"):
        check_config(tmp_path, {**now, "seed": 1})


def test_only_a_folder_that_lesionseg_simulated_is_called_simulated(tmp_path):
    data = {"kind": "xray", "n_cases": 3, "seed": 0, "shape": [48, 48], "pixel_mm": 8.0}
    root = tmp_path / "films"
    simulate_once(root, data)
    dataset = inspect_dataset(DataConfig.of(root=root), seed=0).dataset
    assert scores_provenance({"phantoms": data}, dataset)["simulated"] is True
    (root / "simulation.json").unlink()  # as in a folder of the user
    assert scores_provenance({"phantoms": data}, dataset)["simulated"] is False


def test_file_or_locked_folder_as_run_directory_is_an_error(run_command, tmp_path):
    (tmp_path / "manifest.csv").touch()
    with locked_folder(tmp_path / "run"):
        settings = [f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
        assert "another process is writing" in run_command("train", settings, 1).err
    assert list(tmp_path.iterdir()) == [tmp_path / "manifest.csv"]
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="File exists"):
        save_config(tmp_path / "run", make_config())


def further_settings(run_dir, *chosen):
    """Return the settings of a run, and those of the command that trains it further."""
    config = composed("data.root=r", *chosen)
    command = command_line("train", settings_to_train_further(run_dir, config))
    return config, composed(*(word for word in shlex.split(command) if "=" in word))


@pytest.mark.parametrize(
    "chosen",
    [
        "seed=1 data.fold=2 data.validation_fraction=0.3",
        "loss=focal loss.gamma=3",
        "loss=dice_focal +loss.smooth=0.1 model.tile_shape=[8,8,8]",
        "model=retinanet model.backbone._target_=mine.Net detection.alpha=0.3",
        "'prepare.extra=[{_target_: monai.transforms.MedianSmoothd, keys: image}]'",
        '\'prepare.extra=[{_target_: mine.Transform, name: "a, b: c", level: "1", empty: ""}]\'',
        "loss=custom loss._target_=mine.Loss '+loss.title=\"a, b: c\"'",
        "loss=custom loss._target_=mine.Loss loss.power=3 "
        "model=custom model.network._target_=mine.Net model.network.width=4",
    ],
)
def test_command_to_train_further_repeats_split_model_and_losses(tmp_path, chosen):
    config, further = further_settings(tmp_path, *shlex.split(chosen))
    assert further["model"] == {**config["model"], "init_from": str(tmp_path)}
    for section in ("seed", "data", "loss", "detection", "prepare"):
        assert further[section] == config[section]


def test_command_to_train_further_leaves_out_defaults(tmp_path):
    config = composed("data.root=r", "model=unet", "trainer.max_steps=9")
    settings = settings_to_train_further(tmp_path, config)
    assert settings == {"data.root": "r", "model.init_from": tmp_path, "run_dir": "NEW"}


def test_command_after_a_cross_validation_trains_a_fold_from_its_own_weights(tmp_path):
    """The network of another fold has seen the validation cases of this fold."""
    config = composed("data.root=r", "data.fold=all", "seed=1")
    settings = settings_to_train_further(tmp_path, config)
    assert settings["model.init_from"] == tmp_path / "fold_0"
    assert (settings["data.fold"], settings["seed"]) == (0, 1)


@pytest.mark.parametrize(
    "chosen",
    [
        r"'data.group=(P[0-9]+)_' seed=3 data.merge_labels=true model=unet",
        "data.splits=mine.json data.fold=2 trainer.max_minutes=20 model=retina_unet",
        "loss=focal loss.gamma=3 model.spacing_mm=[1,1,1] data.cache_dir=c",
    ],
)
def test_command_after_prepare_repeats_patients_split_and_plan(chosen):
    chosen = shlex.split(chosen)
    cfg = compose("prepare", ["data.root=r", *chosen])
    command = command_line("train", settings_of_training(config_of(cfg)))
    overrides = [word for word in shlex.split(command) if "=" in word]
    before = config_of(cfg)
    after = composed(*overrides)
    for section in ("seed", "data", "model", "loss", "trainer"):
        assert after[section] == before[section]
    assert len(overrides) == len(chosen) + 1


def test_command_after_a_changed_seed_keeps_the_seed_of_the_run(tmp_path):
    save_config(tmp_path, composed("data.root=r", "seed=1"))
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ConfigError, match=r"seed: 1 → 2.* data\.root=s seed=1 model\.init_from="):
        check_config(tmp_path, composed("data.root=s", "seed=2"))


@pytest.fixture
def started_run(tmp_path):
    save_config(tmp_path, {"seed": 0})
    (tmp_path / "splits.json").write_text(Splits(BEGAN, True, 0, "").to_json())
    return tmp_path


def test_training_cases_of_the_first_run_that_validate_or_test_now_are_named(started_run, caplog):
    now = Splits({"a": "validation", "b": "test", "c": "train", "t": "validation"}, True, 0, "")
    for init_from in (started_run, started_run / "bundle"):
        caplog.clear()
        warn_of_seen_cases(str(init_from), now)
        assert "a (validation), b (test)." in caplog.text
        assert f"data.splits={started_run / 'splits.json'}" in caplog.text
    caplog.clear()
    warn_of_seen_cases(str(started_run), Splits(BEGAN, True, 0, ""))
    warn_of_seen_cases(str(started_run / "elsewhere" / "checkpoint.pth"), now)
    warn_of_seen_cases(None, now)
    assert not caplog.records


def test_cases_of_a_patient_on_whom_the_first_run_trained_are_named(started_run, caplog):
    now = Splits({"a": "train", "a_later": "test", "other": "test"}, True, 0, "")
    cases = [CaseFiles(case, (), group=case[:1]) for case in now.roles]
    warn_of_seen_cases(str(started_run), now, cases)
    assert "of their patients: a_later (test)." in caplog.text


def check_roles(run, roles):
    check_cases(run, Splits(roles, True, 0, ""), {})


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (BEGAN | {"d": "train"}, r"d \(new → train\)\. .*run_dir="),
        ({c: r for c, r in BEGAN.items() if c != "c"}, r"c \(validation → gone\)"),
        (BEGAN | {"a": "validation", "c": "train"}, r"a \(train → val.*c \(val.* → train\)"),
        (BEGAN | {f"n{i}": "train" for i in range(8)}, r"n4 \(new → train\) and 3 more"),
    ],
)
def test_changed_development_cases_are_named(started_run, now, words):
    with pytest.raises(DatasetError, match=words):
        check_roles(started_run, now)
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    write_json(started_run / "splits.json", folds)  # the first fold is compared
    check_roles(started_run, BEGAN)
    with pytest.raises(DatasetError, match=words):
        check_roles(started_run, now)


def test_other_test_cases_another_order_and_an_unused_folder_are_accepted(started_run):
    check_roles(started_run, dict(reversed(BEGAN.items())))
    check_roles(started_run, {**BEGAN, "t": "external", "t2": "test"})
    (started_run / "splits.json").write_text('{"roles": {"a": "exam"}}')
    with pytest.raises(DatasetError, match=r"splits\.json"):
        check_roles(started_run, BEGAN)
    (started_run / "config.yaml").unlink()
    check_roles(started_run, {"x": "train"})


def test_changed_files_of_development_cases_are_named(started_run):
    splits = Splits(BEGAN, True, 0, "")
    before = {"a": "1", "b": "2", "c": "3", "t": "4"}
    save_digests(started_run, splits, before)
    check_cases(started_run, splits, before | {"t": "5"})  # a test case may change
    with pytest.raises(
        DatasetError, match=r"files or table entries of these cases have changed.*: a, c\. Name"
    ):
        check_cases(started_run, splits, before | {"a": "6", "c": "7"})
    save_digests(started_run, splits, before | {"a": "6"})  # the first record stays
    with pytest.raises(DatasetError, match=r": a\. Name"):
        check_cases(started_run, splits, before | {"a": "6"})


@pytest.mark.parametrize("fold", ["null", "all"])
def test_training_with_new_cases_is_refused_before_it_changes_the_run(run_command, tmp_path, fold):
    """Otherwise, a finished network would be scored on cases that trained it."""
    command = small_training(tmp_path, f"data.fold={fold}", "data.n_folds=2", n_cases=5)
    save_config(tmp_path / "run", composed(*command))
    before = Splits(BEGAN, True, 0, "").to_json()
    if fold == "all":
        before = '[{"train": ["a", "b"], "val": ["c"]}]'
    splits = tmp_path / "run" / "splits.json"
    splits.write_text(before)
    assert "(new → " in run_command("train", command, 1).err
    assert splits.read_text() == before


# --- the log of a run ---

log = logging.getLogger("lesionseg.test")


@pytest.fixture
def info_level(caplog):
    """Log at the level of the command line."""
    caplog.set_level(logging.INFO, "lesionseg")


def read_log(run):
    """Return the lines of a log without date and time."""
    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 2)[2] for line in lines]


@pytest.mark.usefixtures("info_level")
def test_log_begins_with_the_plan_and_a_resumed_run_appends(tmp_path):
    run = tmp_path / "run"
    with run_log(run) as note:
        log.info("Plan, spacing: %s", "1 mm")
        assert not run.exists()
        save_config(run, {})
        log.warning("Later.")
        note("Only here.")
    assert read_log(run)[1:] == ["Plan, spacing: 1 mm", "Later.", "Only here."]
    with run_log(run):
        log.info("Again.")
    assert read_log(run)[4:] == [read_log(run)[0], "Again."]


@pytest.mark.parametrize("error", [DatasetError("Bad."), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.usefixtures("info_level")
def test_error_ends_the_log_and_leaves_neither_handler_nor_new_run(tmp_path, error):
    save_config(tmp_path / "begun", {})
    before = list(logging.getLogger().handlers)
    for name in ("begun", "new"):
        with pytest.raises(type(error)), run_log(tmp_path / name):
            raise error
    assert logging.getLogger().handlers == before
    log.info("After.")
    text = (tmp_path / "begun" / LOG).read_text(encoding="utf-8")
    assert text.rstrip().endswith(f"{type(error).__name__}: {error}".rstrip())
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_log_of_an_earlier_run_becomes_private_or_is_an_error(tmp_path):
    save_config(tmp_path, {})
    log_file = tmp_path / LOG
    log_file.touch(0o644)
    with run_log(tmp_path, private=True):
        assert log_file.stat().st_mode & 0o777 == 0o600
    log_file.unlink()
    log_file.mkdir()
    with pytest.raises(OutputError, match="cannot be written"), run_log(tmp_path):
        pass


def test_without_logging_set_up_warnings_are_printed_and_the_plan_is_logged(tmp_path):
    script = (
        "import logging, pathlib, sys; from lesionseg.pipeline.log import run_log\n"
        "with run_log(pathlib.Path(sys.argv[1])):\n"
        "    logging.getLogger('lesionseg.x').info('a plan')\n"
        "    logging.getLogger('lesionseg.x').warning('a warning')\n"
    )
    save_config(tmp_path, {})
    done = python("-c", script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "a warning\n")
    assert {"a plan", "a warning"} <= set(read_log(tmp_path))


# --- messages during and after a training ---


def test_progress_lines_do_not_repeat_the_remaining_time(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lesionseg")
    clock = count(0, 6)
    monkeypatch.setattr("lesionseg.pipeline.log.time.monotonic", lambda: float(next(clock)))
    with bar("Training") as advance:
        for done in range(101):
            advance("loss 0.5", done / 100, 1)
    times = [record.getMessage().rpartition(", ")[2] for record in caplog.records]
    assert len(times) == len(set(times)) > 5


def make_scores(n_lesions, n_found, minutes=3.0):
    numbers = {"n_lesions": n_lesions, "n_true_positive": n_found}
    rows = tuple(Estimate(number, name=name) for name, number in numbers.items())
    return Scores(rows=rows, provenance=Provenance(training_minutes=minutes))


def test_training_that_finds_nothing_is_explained_with_advice():
    validation = {"validation": make_scores(12, 3)}
    said, advice = explain_nothing_found(validation | {"test": make_scores(1, 0)})
    assert "none of 1 lesion of the test cases after 3 minutes" in said
    assert "trainer.max_minutes=60" in advice
    assert explain_nothing_found(validation | {"test": make_scores(0, 0)}) == []
    (said, _) = explain_nothing_found({"validation": make_scores(12, 0, minutes=0.5)})
    assert "none of 12 lesions of the validation cases after 30 seconds" in said


def test_threshold_with_too_many_false_positives_on_test_cases_is_a_warning():
    point = PointInUse(name="fp_per_case:1", score=0.5, expected_false_positives_per_case=1.3)
    few = make_scores(12, 3)
    rows = (
        Estimate(136, name="n_false_positive"),
        Estimate(34.0, name="false_positives_per_case"),
    )
    many = replace(few, operating_point=point, rows=(*few.rows, *rows))
    trained = TrainedModel(None, SimpleNamespace(selection=Selection()), {"out of fold": many})
    (line,) = closing_lines(trained, {"out of fold": many, "test": many})
    assert "test cases: the threshold is set for 1" in line
    assert "have 34" in line


def survey_of(folder, roles, counts):
    """Return a survey of one case per patient, with these roles and numbers of lesions."""
    cases = tuple(CaseFiles(case, (), group=f"p{case}") for case in roles)
    dataset = Dataset("d", folder, "manifest", 3, ("T1",), Labels.of({1: "a"}), cases)
    return DatasetInspection(dataset, None, Splits(roles, True, 0, ""), counts=counts)


@pytest.mark.parametrize(
    ("n_cases", "n_validated", "fold", "words"),
    [
        (6, 1, None, "6 patients: the threshold will be chosen on 1 of them"),
        (6, 1, 0, ""),
        (60, 19, None, "60 patients: the threshold will be chosen on 19 of them"),
        (60, 20, None, ""),  # the number from which `select` has no doubt
        (60, 0, None, ""),
    ],
)
def test_cross_validation_of_few_patients_is_offered_with_its_cost(
    n_cases, n_validated, fold, words, tmp_path, caplog
):
    roles = {f"c{k}": "validation" if k < n_validated else "train" for k in range(n_cases)}
    inspection = survey_of(tmp_path, roles, dict.fromkeys(roles, 1))
    warn_of_few_patients(inspection, DataConfig.of(root="d", fold=fold), "1 minute")
    assert words in caplog.text
    assert ("trains 5 networks, each for 1 minute." in caplog.text) == bool(words)
    assert bool(caplog.text) == bool(words)


@pytest.mark.parametrize(
    ("aim", "n_validated", "fold", "words"),
    [
        ("sensitivity:0.9", 9, None, "9 patients with lesions can promise 0.9."),
        ("sensitivity:0.9", 8, None, "cannot promise 0.9; at least 9 are needed. data.fold=all"),
        ("sensitivity:0.9", 8, 2, "at least 9 are needed."),
        ("sensitivity:0.9", 8, "all", "All folds: 20 patients with lesions can"),
        ("sensitivity:0.99", 8, "all", "at least 99 are needed."),
        ("fp_per_case:1", 8, None, ""),
    ],
)
def test_promise_is_announced_before_a_training(aim, n_validated, fold, words, tmp_path, caplog):
    """Divide 20 patients with lesions and 20 without, who do not count."""
    train = range(n_validated, 20)
    roles = {f"c{k:02d}": "train" if k in train else "validation" for k in range(40)}
    counts = {case: int(case < "c20") for case in roles}
    with caplog.at_level("INFO"):
        explain_promise(survey_of(tmp_path, roles, counts), OperatingPointAim.parse(aim), fold)
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)
    assert ("data.fold=all" in caplog.text) == (fold is None and "needed" in words)
    assert ("approximately" in caplog.text) == (aim == "sensitivity:0.9" and fold == "all")


# --- wrong settings of a loss or a machine are refused before the run directory is used ---


def fits_alpha(plan, **settings):
    """Return True if the number of α values fits the plan."""
    try:
        cfg = TrainConfig.of(**settings)
        check_losses(make_objective(plan, cfg.loss, cfg.detection))
    except ConfigError as error:
        return "alpha" not in str(error)
    return True


def test_alpha_has_one_value_per_voxel_class_or_anchor_label(plan):
    two = plan.with_(labels=Labels((1, 2), ("a", "b")))
    for activation, n in (("sigmoid", 2), ("softmax", 3)):
        for n_alpha in (1, n):
            loss = {"_target_": "lesionseg.losses.FocalLoss", "alpha": [0.2] * n_alpha}
            fits = fits_alpha(two.with_(activation=activation), loss=LossConfig(**loss))
            assert fits == (n_alpha == n)
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0,) * 3, (6.0,) * 3),), width=8, depth=1)
    shape = replace(plan.architecture, name="retina_unet")
    boxed = two.with_(architecture=shape, anchors=anchors)
    assert [fits_alpha(boxed, detection={"alpha": [0.2] * n}) for n in (2, 3)] == [True, False]


def test_refused_setting_leaves_no_run_directory(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    stopping = "pytorch_lightning.callbacks.EarlyStop"
    for key, wrong in (
        ("loss.alpha", "[0.2,0.3]"),
        ("trainer.accelerator", "gpu"),
        ("augment.flip_axes", "[2]"),  # radiographs have two axes
        ("augment.flip_axes", "[1,1]"),
        ("callbacks", f"[{{_target_: {stopping}}}]"),
        ("callbacks", f"[{{_target_: {stopping}ping, monitr: x}}]"),
        ("callbacks", "[{_target_: math.pi}]"),
        (
            "callbacks",
            "[{_target_: pytorch_lightning.callbacks.Timer, duration: {_target_: datetime.no}}]",
        ),
        ("logger", "[{_target_: pytorch_lightning.loggers.CSVLogger, save_to: x}]"),
        ("trainer.lightning", "{gradient_clip: 1}"),
        ("trainer.lightning", "{profiler: simpel}"),
        # its default probability is 0.1
        ("augment.extra", "[{_target_: monai.transforms.RandFlipd, keys: imag}]"),
    ):
        assert key.rpartition(".")[2] in run_command("train", [*command, f"{key}={wrong}"], 2).err
        assert not [p for p in (tmp_path / "cache").glob("*") if p.name != "facts"]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["wandb", "wandbb", "[csv,wandbb]"])
def test_logger_is_found_by_its_name_or_refused_before_the_run(
    run_command, wrong, tmp_path, monkeypatch
):
    monkeypatch.setattr("lesionseg.config.find_spec", lambda package: package != "wandb" or None)
    assert "logger" in run_command("train", [*small_training(tmp_path), f"logger={wrong}"], 2).err
    assert not (tmp_path / "run").exists()
    for named in ("csv", ["csv"]):
        (spec,) = TrainConfig.of(logger=named).logger
        assert spec == {"_target_": "pytorch_lightning.loggers.CSVLogger"}


def test_unfinished_training_needs_its_gpu_on_another_machine(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    assert run("train", command) == 0
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text().replace("accelerator: auto", "accelerator: gpu"))
    assert run("train", [*command, "trainer.accelerator=gpu"]) == 0  # only scored again
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert "finds no GPU" in run_command("train", [*command, "trainer.accelerator=gpu"], 2).err


def test_process_keeps_its_settings_when_it_receives_the_survey_of_the_first(tmp_path, monkeypatch):
    """Give each node its own cache folder, which only its processes can read."""
    seen = []

    def receive_from_another_node(make):
        received = make()
        if isinstance(received, Experiment):
            data = received.cfg.data.model_copy(update={"cache_dir": "/first/node"})
            return replace(received, cfg=received.cfg.model_copy(update={"data": data}))
        return received

    def stop(experiment):
        seen.append(experiment.cfg.data.cache_dir)
        raise TrainingError("stop")

    write_mri_phantoms(tmp_path / "raw", 3, seed=0, **HEADS)
    monkeypatch.setattr(train_recipe, "broadcast_from_rank_zero", receive_from_another_node)
    monkeypatch.setattr(train_recipe, "begin", stop)
    own = str(tmp_path / "cache")
    settings = [f"data.root={tmp_path / 'raw'}", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(TrainingError, match="stop"):
        train_recipe.train(compose("train", [*settings, f"data.cache_dir={own}"]))
    assert seen == [own]
