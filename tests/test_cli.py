"""The command line accepts correct overrides and explains wrong ones."""

import json
import logging
import shlex
from operator import attrgetter
from unittest.mock import Mock

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import lesionseg
from lesionseg.cli import COMMANDS, compose, main, run
from lesionseg.cli.compose import compose_plain, options_of_groups, override_list
from lesionseg.cli.help import examples, setting_lines
from lesionseg.config import InferenceConfig, TrainConfig, check_arguments, files_of, keys
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, ReadError, require_one_of
from lesionseg.losses import DetectionLoss, make_loss
from lesionseg.pipeline.train import TrainOutcome
from tests.commands import PATHS, arguments_of


def compose_with_required(command, *argv):
    return compose(command, [*arguments_of(command), *argv])


ODD_PATHS = ("a b", "a=b", "a,b", "a[1](2){3}", "it's", "a\\b", "ä#ö:é")


@pytest.mark.parametrize("text", [*ODD_PATHS, "(P[0-9]+)_", r"^sub-(\d{2})$", "a b=c, (d)"])
def test_paths_and_patterns_are_passed_unchanged(text):
    places = ("data.root", "data.group", "run_dir", "report.study")
    cfg = compose_with_required("prepare", *(f"{key}={text}" for key in places))
    assert {cfg.data.root, cfg.data.group, cfg.run_dir, cfg.report.study} == {text}
    assert compose_with_required("evaluate", f"group={text}").group == text


@pytest.mark.parametrize(
    ("command", "override", "expected"),
    [
        ("train", "run_dir='a b'", "a b"),
        ("train", "loss.alpha=[0.2,0.4]", (0.2, 0.4)),
        ("train", "trainer.devices=[0,2]", (0, 2)),
        ("predict", "bundle=[a b, it's=[1]]", ("a b", "it's=[1]")),
        ("predict", "bundle=a,b [1]", ("a,b [1]",)),
        ("predict", "bundle=['a,b', \"c, d\", it's]", ("a,b", "c, d", "it's")),
        ("predict", "bundle=[runs/a(1, runs/b]", ("runs/a(1", "runs/b")),
        ("predict", "output=dicomweb", "dicomweb"),  # a folder with the name of a scheme
        ("predict", "inference.keep_zones=[liver, 5]", ("liver", "5")),
        ("predict", "inference.keep_zones=liver", ("liver",)),
    ],
)
def test_values_of_several_types_are_accepted(command, override, expected):
    zones = ["zones=."] if "zones" in override else []
    cfg = compose_with_required(command, override, *zones)
    assert attrgetter(override.partition("=")[0])(cfg) == expected


@pytest.mark.parametrize(
    ("command", "override", "meant"),
    [
        ("train", "los.gamma=2", "loss.gamma"),
        ("train", "+trainer.max_minute=2", "trainer.max_minutes"),
        ("train", "model=unett", "unet"),
        ("train", "loss=dice-focal", "dice_focal"),
        ("train", "experiment=demo_mr", "demo_mri"),
        ("train", "+sead=1", "seed"),
        ("train", "modle=unet", "model"),
        ("train", "modle=unett", "model"),
        # another word for the same thing
        ("prepare", "output=page", "run_dir"),
        ("train", "input=scans", "data.root"),
        ("predict", "run_dir=out", "output"),
        ("train", "max_steps=10", "trainer.max_steps"),
    ],
)
def test_message_about_an_unknown_key_or_option_proposes_the_meant_one(command, override, meant):
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
        compose_with_required(command, override)


def test_key_of_an_open_section_can_be_added_and_removed():
    added = ["model.network.depth=3", "~trainer.lightning.benchmark"]
    assert override_list("train", added) == ["++model.network.depth=3", added[1]]
    mine = ["loss=custom", "loss._target_=my.Loss", "loss.power=3", "model.tile_shape=[8,8]"]
    cfg = compose_with_required("train", *mine, "trainer.lightning.profiler=simple")
    assert cfg.trainer.lightning == {"profiler": "simple"}
    assert cfg.loss.to_plain() == {"_target_": "my.Loss", "power": 3}
    assert cfg.to_plain()["model"]["tile_shape"] == [8, 8]


def test_no_experiment_is_the_default():
    default = compose_with_required("train")
    assert compose_with_required("train", "experiment=null") == default
    assert compose_with_required("train", "~experiment") == default
    with pytest.raises(ReadError, match="nowhere"):
        lesionseg.train("nowhere", experiment=None)


@pytest.mark.parametrize(
    ("command", "folder", "meant"),
    [
        ("predict", "run", "bundle=run"),
        ("predict", "run/bundle", "bundle=run/bundle"),
        ("predict", "nnunet", "bundle=nnunet"),
        ("predict", "scans", "input=scans"),
        ("follow", "run", "bundle=run"),
        ("serve", "run", "bundle=run"),
        ("evaluate", "run", "reference=run"),  # it has no key `bundle`
    ],
)
def test_path_without_a_key_is_explained(command, folder, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run/plan.json", "run/bundle/plan.json", "nnunet/plans.json", "scans/a.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"'{folder}' is not a setting. Write {meant}$"):
        compose(command, [folder, "scans", "out"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.gamma=two", "loss.gamma: two"),
        ("loss.alpha=1.5", "loss.alpha: 1.5, .* 0 to 1"),
        ("loss.alpha=[0.5,2]", "loss.alpha: .* 0 to 1"),
        ("loss.gamma=null", "loss.gamma: null, .* 0 to 100"),
        ("detection.gamma=101", "detection.gamma: 101"),
        ("trainer.precision=fp8", "trainer.precision: fp8 .*'bf16-mixed'"),
        ("model.tile_shape=[32,0]", r"model.tile_shape\[1\]: 0"),
        ("model.spacing_mm=[1,1,200]", r"model.spacing_mm\[2\]: 200"),
        ("model.base_features=5000", "model.base_features: 5000"),
        ("run_dir=runs/${data.nothing}", "data.nothing"),
        ("loss=null", "There is no loss=null. There are cross_entropy"),
        ("hydra/launcher=3", "Config group override must be a string"),
        ("run_dir=${oc.decode:'[1'}", "mismatched input"),
    ],
)
def test_value_of_a_wrong_type_or_range_is_an_error(override, expected):
    with pytest.raises(ConfigError, match=expected):
        compose_with_required("train", override)


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["own"], "Write data.root=own"),
        (["--data", "own"], "Write data.root=own"),
        (["--max-minutes=5"], "Write trainer.max_minutes=5"),
        *((["data.root=x", wrong], "") for wrong in ("model", "=3", "loss.gamma=[1", "--fast")),
        (["--config-dir"], ""),
        (["--config-dir", "absent"], ""),
        (["-m", "data.root=x", "los=focal"], ""),
        (["experiment=demo_mri", "operating_point=sensitivity:2"], "best_f1, fp_per_case:1"),
        (["-m", "seed=0,1"], "give data.root="),
        *((["data.root=x", "--json", other], "--json") for other in ("--cfg", "--multirun")),
    ],
)
def test_argument_that_is_no_override_is_an_error(run_command, argv, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert meant in run_command("train", argv, 2).err


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_setting_is_named_and_help_lists_examples_and_options(
    run_command, command, capsys, repository
):
    script = (repository / "scripts" / f"{command}.py").read_text(encoding="utf-8")
    assert f'run("{command}"' in script
    if command != "follow":
        assert next(iter(PATHS[command])) in run_command(command, [], 2).err
    for example in examples(command):
        compose(command, shlex.split(example))
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"  lesionseg {command} {examples(command)[0]}" in page.replace(" \\\n     ", "")
    assert all(f"--help={group}" in page for group in options_of_groups(command))
    assert main(["--help"]) == 0
    assert f"\n  {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_all_settings_lists_every_key_and_option(command, capsys):
    assert main([command, "--help=all"]) == 0
    page = capsys.readouterr().out
    for line in [line for file in files_of(command) for line in setting_lines(file)]:
        assert line.split(":")[0] + ":" in page
    for group, options in options_of_groups(command).items():
        assert all(f"  {group}={option}" in page for option in options)


def test_help_of_a_group_or_section_lists_its_keys(run_command):
    assert "loss=focal" in run_command("train", ["--help=loss"]).out
    assert "max_minutes: null" in run_command("train", ["--help=trainer"]).out
    assert "'trainer'" in run_command("train", ["--help=trianer"], 2).err


def test_cfg_prints_the_settings_and_runs_nothing(run_command):
    def print_settings(command, *argv):
        return yaml.safe_load(run_command(command, argv).out)

    found = print_settings("train", "data.root=a, b", "loss.gamma=3", "--cfg")
    assert (found["data"]["root"], found["loss"]["gamma"]) == ("a, b", 3)
    assert print_settings("train", "-c", "job")["data"]["root"] == "???"
    found = print_settings("predict", "-i", "a b", "-o=c", "--cfg")
    assert (found["input"], found["output"]) == ("a b", "c")


def test_error_is_a_message_on_the_command_line_and_an_exception_in_python(run_command, tmp_path):
    nowhere = tmp_path / "nowhere"
    printed = run_command("report", [f"scores={nowhere}", "output=o", "--json"], 1)
    assert "nowhere" in printed.err
    assert "Traceback" not in printed.err
    record = json.loads(printed.out)
    assert (record["exit_status"], "nowhere" in record["error"]) == (1, True)
    with pytest.raises(LesionsegError, match="nowhere"):
        lesionseg.report(nowhere, "o")


@pytest.fixture
def fail(monkeypatch):
    """Return a function that makes every command raise an error."""

    def call(error):
        monkeypatch.setattr("lesionseg.cli.command.run_recipe", Mock(side_effect=error))

    return call


def test_json_states_that_a_command_was_stopped(fail, run_command):
    fail(KeyboardInterrupt)
    printed = run_command("report", ["scores=s", "output=o", "--json"], 130).out
    assert json.loads(printed)["exit_status"] == 130


@pytest.mark.parametrize("other", ["--cfg", "--multirun"])
def test_json_prints_the_result_of_one_command(run_command, other):
    assert "--json" in run_command("report", ["scores=s", "output=o", "--json", other], 2).err


@pytest.mark.parametrize(
    ("command", "argv", "can_continue"),
    [
        ("train", ["data.root=x", "run_dir=r"], True),
        ("tune", ["data.root=x", "run_dir=r"], True),
        ("train", ["experiment=demo_mri"], True),  # the experiment sets run_dir
        ("train", ["-m", "data.root=x", "seed=0,1", "run_dir=r/${seed}"], True),
        ("predict", arguments_of("predict"), True),
        ("train", ["data.root=x"], False),
        ("train", ["data.root=my_run_dir=r"], False),
        ("train", ["experiment=demo_mri", "run_dir=null"], False),
        ("train", ["-m", "experiment=demo_mri", "seed=0,1"], False),  # folders with the time
        ("evaluate", arguments_of("evaluate"), False),
    ],
)
def test_only_a_command_with_a_fixed_folder_is_said_to_continue(
    fail, run_command, monkeypatch, tmp_path, command, argv, can_continue
):
    monkeypatch.chdir(tmp_path)
    fail(KeyboardInterrupt)
    last_line = run_command(command, argv, 130).err.splitlines()[-1]
    assert last_line == ("Stopped. The same command continues." if can_continue else "Stopped.")


@pytest.mark.parametrize(
    ("command", "continues"), [("predict", "The same command then continues."), ("evaluate", "")]
)
def test_lack_of_memory_is_one_sentence(fail, run_command, command, continues):
    fail(MemoryError("Unable to allocate 64. GiB for an array"))
    printed = run_command(command, arguments_of(command), 1).err.strip()
    assert printed.startswith("Error: The memory ran out: Unable to allocate 64. GiB")
    assert printed.endswith(continues)
    assert ("continues" in printed) == bool(continues)


def test_other_runtime_errors_are_raised(fail):
    fail(RuntimeError("odd"))
    with pytest.raises(RuntimeError, match="odd"):
        run("predict", arguments_of("predict"))


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Return the settings of each job of a multirun. Jobs run nothing."""
    monkeypatch.chdir(tmp_path)
    settings = []

    def call(_, cfg):
        settings.append(cfg)
        return TrainOutcome(tmp_path)

    monkeypatch.setattr("lesionseg.cli.command.run_recipe", call)
    return settings


def test_jobs_of_a_multirun_have_their_own_folders(jobs):
    handlers = [*logging.getLogger().handlers]
    assert run("train", ["-m", "data.root=x", "data.fold=0,1"]) == 0
    assert (
        logging.getLogger().handlers == handlers
    )  # Hydra's handlers would write to a closed output
    assert len({cfg.run_dir for cfg in jobs}) == 2
    own = "run_dir=runs/cv/fold_${data.fold}"
    assert run("train", ["-m", "data.root=x", "data.fold=0,1", "loss=focal,dice_focal", own]) == 0
    assert [cfg.run_dir for cfg in jobs[2:]] == [f"runs/cv/fold_{n}" for n in (0, 0, 1, 1)]
    assert run("train", ["-m", "data.root=x", "data.fold=all", "run_dir=runs/cv"]) == 0

    evaluate = ["-m", "reference=r", "prediction=p", "operating_point=score:0.1,score:0.2"]
    assert run("evaluate", [*evaluate, "output=out/${hydra:job.num}"]) == 0
    shards = ["num_shards=2", "shard_index=0,1"]  # they write into one folder
    assert run("predict", ["-m", "bundle=b", "input=i", *shards, "output=found"]) == 0
    assert [cfg.output for cfg in jobs[7:]] == ["out/0", "out/1", "found", "found"]


def test_several_texts_of_a_multirun_are_its_jobs(jobs):
    pattern = "(P[0-9]{1,3})_"
    swept = ["operating_point=best_f1,fp_per_case:2", "run_dir=runs/${hydra:job.num}"]
    assert run("train", ["-m", "data.root='a,b'", f"data.group={pattern}", *swept]) == 0
    for number, point in enumerate(("best_f1", "fp_per_case:2")):
        cfg = jobs[number]
        found = (cfg.data.root, cfg.data.group, cfg.operating_point, cfg.run_dir)
        assert found == ("a,b", pattern, point, f"runs/{number}")
    assert run("train", ["-m", "data.root=x", "run_dir=runs/a,runs/b"]) == 0
    assert [cfg.run_dir for cfg in jobs[2:]] == ["runs/a", "runs/b"]


def test_setting_that_all_jobs_of_a_multirun_lack_is_named(run_command, jobs):
    assert "give data.root=" in run_command("train", ["-m", "seed=0,1"], 2).err
    assert not jobs


def test_each_failing_job_of_a_multirun_is_reported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    errors = []

    def call(_, cfg):
        if cfg.seed == 1:
            return TrainOutcome(tmp_path)
        raise DatasetError(f"seed {cfg.seed} is wrong.")

    monkeypatch.setattr("lesionseg.cli.command.run_recipe", call)
    monkeypatch.setattr("lesionseg.cli.command.log.error", lambda *args: errors.append(args))
    assert run("train", ["-m", "data.root=x", "seed=0,1,2"]) == 1
    lines = [text % tuple(values) for text, *values in errors]
    assert lines == ["Job 0 (seed=0): seed 0 is wrong.", "Job 2 (seed=2): seed 2 is wrong."]


def test_experiment_in_a_user_s_folder_is_found(run_command, tmp_path):
    folder = tmp_path / "my conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\n# short\ntrainer: {max_minutes: 7}\n")
    asked = ["--config-dir", str(folder.parent), "experiment=mine", "data.root=x", "-c", "job"]
    assert "max_minutes: 7" in run_command("train", asked).out
    asked[2] = "experiment=min"
    assert "Did you mean 'mine'?" in run_command("train", asked, 2).err
    (folder / "wrong.yaml").write_text("# @package _global_\nsead: 1\n")
    wrong = [*asked[:2], "experiment=wrong", "data.root=x"]
    assert "'seed'" in run_command("train", wrong, 2).err


@pytest.mark.parametrize("name", ["a b,c", "a[1]", "it's", "ä"])
def test_several_folders_of_options_with_any_names_are_searched(
    tmp_path, monkeypatch, run_command, name
):
    for variable in ("HOME", "USERPROFILE"):  # the second one on Windows
        monkeypatch.setenv(variable, str(tmp_path))
    for file, text in (
        (f"{name}/loss/mine.yaml", "_target_: lesionseg.losses.FocalLoss\n"),
        ("other/optim/slow.yaml", "defaults: [adamw]\nlr: 0.0001\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    folders = ["--config-dir", str(tmp_path / "other"), f"--config-dir=~/{name}"]
    settings = [*folders, "loss=mine", "optim=slow", "data.root=x", "-c"]
    found = yaml.safe_load(run_command("train", settings).out)
    assert found["loss"] == {"_target_": "lesionseg.losses.FocalLoss"}
    assert (found["optim"]["name"], found["optim"]["lr"]) == ("adamw", 0.0001)
    assert run("train", ["hydra.searchpath=[file://a", "data.root=x"]) == 2


def test_home_folder_is_expanded_in_paths(monkeypatch, tmp_path):
    for variable in ("HOME", "USERPROFILE"):  # the second one on Windows
        monkeypatch.setenv(variable, str(tmp_path))
    cfg = compose("train", ["data.root=~/scans", "run_dir=~", "report.study=a/~/b"])
    found = (cfg.data.root, cfg.run_dir, cfg.report.study)
    assert found == (str(tmp_path / "scans"), str(tmp_path), "a/~/b")
    cfg = compose_with_required("predict", "bundle=[~/a,~no user]")
    assert cfg.bundle == (str(tmp_path / "a"), "~no user")
    assert lesionseg.Run("~/scores").folder == tmp_path / "scores"


# --- YAML files and settings agree ---

OPTIONS = [
    (command, group, option)
    for command in COMMANDS
    if command not in ("prepare", "tune")  # they have the options of `train`
    for group, options in options_of_groups(command).items()
    for option in options
]


@pytest.mark.parametrize(("command", "group", "option"), OPTIONS)
def test_every_option_can_be_composed(command, group, option):
    cfg = compose_with_required(command, f"{group}={option}")
    if command == "train":
        make_loss(cfg.loss, cfg.model.activation)
        DetectionLoss(**cfg.detection.to_plain())
        assert group != "experiment" or cfg.run_dir == f"runs/{option}"


@pytest.mark.parametrize("command", COMMANDS)
def test_files_have_the_keys_and_defaults_of_the_settings(command):
    of_some_options = {"data.phantoms", "model.network", "model.backbone", "model.layout"}
    declared = {key for key, _ in keys(COMMANDS[command])} - of_some_options
    if "loss._target_" in declared:
        declared |= {"loss.focal_weight", "loss.dice_weight", "loss.lesion_weight"}
    assert set(_leaves(compose_plain(command, []))) == declared
    settings = PATHS[command]
    if "data.root" in settings:
        settings = {"data": {"root": settings["data.root"]}}
    assert COMMANDS[command].of(**settings) == compose_with_required(command)


@pytest.mark.parametrize("option", ["dice_focal", "dice_cross_entropy", "lesion_balanced"])
def test_weight_of_dice_is_a_setting_of_losses_with_dice(option):
    cfg = compose_with_required("train", f"loss={option}", "loss.dice_weight=0")
    assert make_loss(cfg.loss, cfg.model.activation).dice_weight == 0


def _leaves(node, prefix=""):
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "trainer.lightning":
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def test_section_of_settings_is_checked():
    cfg = TrainConfig.of(trainer={"max_steps": 3}, seed=4, inference=InferenceConfig.of(flips=True))
    assert (cfg.trainer.max_steps, cfg.trainer.devices, cfg.seed) == (3, 1, 4)
    assert cfg.inference.flips
    with pytest.raises(ConfigError, match=r"overlp.*overlap"):
        InferenceConfig.of(overlp=0.1)
    require_one_of("model.stem", "full", ["full", "space_to_depth"])
    for wrong, named in (("ful", "Did you mean 'full'"), (None, "not one of full")):
        with pytest.raises(ConfigError, match=named):
            require_one_of("model.stem", wrong, ["full", "space_to_depth"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "custom", "backbone": {"_target_": "a.B"}}, "accepts no backbone"),
        ({"architecture": "retinanet", "network": {"_target_": "a.B"}}, "its own network"),
    ],
)
def test_network_of_the_user_that_the_model_cannot_use_is_named(model, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.of(model=model)


def test_class_in_a_module_with_an_error_is_named(monkeypatch, tmp_path):
    (tmp_path / "faulty_module.py").write_text("undefined\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"callbacks._target_=faulty_module.B .*'undefined'"):
        check_arguments({"_target_": "faulty_module.B"}, "callbacks")


WRONG = {
    "trainer": [
        *({"max_minutes": 0}, {"max_steps": 0}, {"workers": -1}, {"accelerator": "gpuu"}),
        *({"lightning": {"accumulate_grad_batches": n}} for n in (1.5, "two", 0, None)),
        *({"lightning": {"log_every_n_steps": 0}}, {"lightning": {"num_nodes": True}}),
        *({"devices": devices} for devices in ([1, 1], [], [-1], "cuda:1")),
    ],
    "model": [{"base_features": 8, "architecture": "custom", "network": {"_target_": "a.B"}}],
    "optim": [{"name": "lion"}, {"lr": 0.0}, {"lr": float("nan")}],
    "augment": [{"rotate_degrees": -1}, {"intensity_probability": 1.5}, {"extra": [{"a": 1}]}],
}


@pytest.mark.parametrize(
    ("section", "wrong"), [(name, wrong) for name, many in WRONG.items() for wrong in many]
)
def test_wrong_setting_is_named(section, wrong):
    with pytest.raises(ConfigError, match=f"{section}.*{next(iter(wrong))}"):
        TrainConfig.of(**{section: wrong})


def test_settings_are_composed_within_a_program_that_uses_hydra(tmp_path):
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose("train", ["data.root=x", "seed=5", "loss.gamma=1.5"]).seed == 5
        assert GlobalHydra.instance().hydra is outer
