"""The command line: overrides that are right, nearly right and wrong."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lesionseg.cli import COMMANDS, compose, main, run
from lesionseg.errors import ConfigError

REQUIRED = {
    "train": ["data.root=x"],
    "prepare": ["data.root=x"],
    "tune": ["data.root=x"],
    "predict": ["bundle=b", "input=i", "output=o"],
    "evaluate": ["reference=r", "prediction=p", "output=o"],
    "follow": ["before=b", "after=a", "output=o"],
    "report": ["scores=s", "output=o"],
    "export": ["bundle=b", "output=o"],
    "serve": ["bundle=b"],
}


@pytest.mark.parametrize("path", ["a b", "a=b", "a,b", "a[1](2){3}", "it's", "a\\b", "ä#ö:é"])
def test_paths_arrive_as_they_were_typed(path: str) -> None:
    assert compose("train", [f"data.root={path}"]).data.root == path
    assert compose("train", ["data.root=x", f"run_dir={path}"]).run_dir == path
    assert compose("train", ["data.root=x", f"report.study={path}"]).report.study == path


@pytest.mark.parametrize(
    ("command", "key"),
    [
        *[("evaluate", key) for key in ("images", "columns", "groups")],
        *[("report", key) for key in ("compare", "report.title", "report.other_name")],
        *[(command, "data.group") for command in ("train", "prepare", "tune")],
        ("train", "logger.tracking_uri"),
    ],
)
@pytest.mark.parametrize("text", ["(P[0-9]+)_", r"^sub-(\d{2})$", "a b=c, (d)", "it's"])
def test_other_free_text_arrives_as_it_was_typed(command: str, key: str, text: str) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.select(compose(command, [*REQUIRED[command], f"{key}={text}"]), key) == text


@pytest.mark.parametrize(
    ("command", "example"),
    [(command, e) for command, entry in COMMANDS.items() for e in entry.examples],
)
def test_every_example_of_the_help_composes(command: str, example: str) -> None:
    given = shlex.split(example)  # as a shell hands it over
    cfg = compose(command, given)
    pattern = next((g for g in given if "(P[0-9]+)_" in g), None)
    if pattern:
        assert "(P[0-9]+)_" in str(cfg)


def test_several_bundles_are_a_list_of_paths() -> None:
    given = ["input=i", "output=o"]
    assert list(compose("predict", ["bundle=[a b, it's=[1]]", *given]).bundle) == [
        "a b",
        "it's=[1]",
    ]
    assert compose("predict", ["bundle=a,b [1]", *given]).bundle == "a,b [1]"


def test_quoted_and_null_paths_stay_as_hydra_reads_them() -> None:
    assert compose("train", ["data.root='a b'"]).data.root == "a b"
    assert compose("train", ["data.root=x", "run_dir=null"]).run_dir is None


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("los.gamma=2", "loss.gamma"),
        ("loss.gama=2", "loss.gamma"),
        ("trainer.max_minute=2", "trainer.max_minutes"),
        ("model=unett", "unet"),
        ("loss=dice-focal", "dice_focal"),
        ("experiment=demo_mr", "demo_mri"),
        ("+sead=1", "seed"),
    ],
)
def test_a_mistyped_override_names_the_nearest(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{nearest}'"):
        compose("train", ["data.root=x", override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.gamma=two", "a number"),
        ("trainer.gradient_clip=abc", "a number"),
        ("seed=x", "a number"),
        ("trainer.progress=yes", "true or false"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"wrong kind.*{expected}"):
        compose("train", ["data.root=x", override])


@pytest.mark.parametrize(
    "override", ["loss.alpha=[0.2,0.4]", "trainer.devices=auto", "loss.gamma=1"]
)
def test_values_of_several_kinds_pass(override: str) -> None:
    compose("train", ["data.root=x", override])


@pytest.mark.parametrize("argument", ["model", "=3", "loss.gamma=[1", "--fast"])
def test_what_is_no_override_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError):
        compose("train", ["data.root=x", argument])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_setting_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, []) == 2
    assert REQUIRED[command][0].partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_groups_and_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, ["--help"]) == 0
    page = capsys.readouterr().out
    assert page.count(f"python scripts/{command}.py") == 3
    assert not any(line.endswith(":") and line.startswith("  ") for line in page.splitlines())
    for group in composegroups(command):
        assert f"Group {group} " in page


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_group_prints_its_files_with_their_comments(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lesionseg.cli import conf_dir

    for group in composegroups(command):
        assert run(command, ["--help", group]) == 0
        page = capsys.readouterr().out
        for file in (conf_dir() / group).glob("*.yaml"):
            assert f"=== {group}={file.stem} ===\n{file.read_text(encoding='utf-8')}" in page


def test_help_of_a_mistyped_group_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", ["--help", "trainr"]) == 2
    assert "Did you mean 'trainer'?" in capsys.readouterr().err
    assert run("export", ["model", "-h"]) == 2
    assert "export has no group 'model'" in capsys.readouterr().err


def test_help_beside_overrides_is_the_verbs_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", ["data.root=x", "-m", "--help"]) == 0
    assert "Group trainer " in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    """Help is to come at once; each of these takes longer than reading the files."""
    code = (
        "import sys; from lesionseg.cli import run; run('train', ['--help', 'trainer']); "
        "run('train', ['--help']); print({'torch', 'hydra', 'monai', 'numba'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.rstrip().endswith("set()")


def test_cfg_prints_the_configuration_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml
    from omegaconf import OmegaConf

    monkeypatch.setattr("lesionseg.cli.command.call", lambda _: pytest.fail("it was run"))
    given = ["data.root=a, b", "loss.gamma=3", "run_dir=runs/fold_${data.fold}", "data.fold=2"]
    assert run("train", [*given, "--cfg"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == OmegaConf.to_container(compose("train", given), resolve=True)
    assert (printed["data"]["root"], printed["run_dir"]) == ("a, b", "runs/fold_2")
    assert run("train", ["--cfg"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["root"] == "???"
    assert run("train", ["--cfg", "loss.gama=3"]) == 2
    assert "Did you mean 'loss.gamma'?" in capsys.readouterr().err


@pytest.mark.parametrize("cfg", [[], ["--cfg"]])
def test_a_reference_to_nothing_is_said_in_a_sentence(
    cfg: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", ["data.root=x", "run_dir=runs/${data.nothing}", *cfg]) == 2
    assert "data.nothing" in capsys.readouterr().err


def composegroups(command: str) -> list[str]:
    from lesionseg.cli.compose import groups

    return list(groups(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_script(command: str, repository: Path) -> None:
    script = (repository / "scripts" / f"{command}.py").read_text(encoding="utf-8")
    assert f'run("{command}"' in script


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_an_error_prints_one_message_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", [f"data.root={tmp_path / 'nowhere'}"]) == 1
    printed = capsys.readouterr().err
    assert "nowhere" in printed
    assert "Traceback" not in printed


def test_an_unknown_operating_point_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", ["data.root=nowhere", "operating_point=fp_per_case:3"]) == 2
    assert "fp_per_case:1" in capsys.readouterr().err


def test_a_run_directory_may_name_its_fold() -> None:
    cfg = compose("train", ["data.root=x", "data.fold=2", "run_dir=runs/cv/fold_${data.fold}"])
    assert cfg.run_dir == "runs/cv/fold_2"


def test_ctrl_c_is_no_error_but_leaves_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lesionseg.cli.command.call", interrupted)
    assert run("train", ["data.root=x"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_sigterm_is_as_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("lesionseg.cli.command.call", lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        assert run("train", ["data.root=x"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.count("\n") == 1


def test_jobs_of_a_multirun_do_not_share_a_run_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []

    def call(cfg: Any) -> int:
        folders.append(cfg.run_dir)
        return 0

    monkeypatch.setattr("lesionseg.cli.command.call", call)
    assert run("train", ["-m", "data.root=x", "data.fold=0,1"]) == 0
    assert len(set(folders)) == 2
    named = "run_dir=runs/cv/fold_${data.fold}"
    assert run("train", ["-m", "data.root=x", "data.fold=0,1", named]) == 0
    assert folders[2:] == ["runs/cv/fold_0", "runs/cv/fold_1"]
    assert run("train", ["-m", "data.root=x", "data.fold=all", "run_dir=runs/cv"]) == 0
    assert run("train", ["-m", "data.root=x", "data.fold=0,1", "run_dir=runs/cv"]) == 2
    assert "fold_${data.fold}" in capsys.readouterr().err


def test_a_multirun_leaves_out_what_an_experiment_says_to_another_verb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def call(cfg: Any) -> int:
        seen.append((cfg.data.fold, cfg.run_dir, "operating_point" in cfg))
        return 0

    monkeypatch.setattr("lesionseg.cli.command.call", call)
    named = "run_dir=runs/fold_${data.fold}"
    assert run("prepare", ["-m", "experiment=demo_mri", "data.fold=0,1", named]) == 0
    assert seen == [(0, "runs/fold_0", False), (1, "runs/fold_1", False)]


def test_a_multirun_says_errors_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", ["-m", "data.root=nowhere", "data.fold=0,1"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert run("train", ["-m", "data.root=nowhere", "los=focal"]) == 2


def test_a_missing_launcher_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lesionseg.cli.multirun.find_spec", lambda _: None)
    assert run("train", ["-m", "data.root=x", "hydra/launcher=submitit_slurm"]) == 2
    assert 'pip install "hydra-submitit-launcher>=1.2"' in capsys.readouterr().err


def test_an_experiment_of_the_users_own_folder_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\n# short\ntrainer: {max_minutes: 7}\n")
    asked = ["--config-dir", str(folder.parent), "experiment=mine", "data.root=x", "-c", "job"]
    assert run("train", asked) == 0
    assert "max_minutes: 7" in capsys.readouterr().out
    assert run("train", [f"--config-dir={folder.parent}", "experiment=min"]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config-dir", "absent"], "does not exist"),
        (["--config-dir"], "needs a value"),
        (["--confg-dir=x"], "Did you mean '--config-dir'?"),
        (["+trainer.max_epochs=3"], "trainer takes no setting 'max_epochs'. Did you mean 'max_"),
    ],
)
def test_a_wrong_flag_or_added_setting_is_said_in_a_sentence(
    flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", ["data.root=x", *flags]) == 2
    assert expected in capsys.readouterr().err


def test_input_and_output_have_short_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", ["-i", "a b", "-o=c", "--cfg"]) == 0
    out = capsys.readouterr().out
    assert "input: a b" in out
    assert "output: c" in out


def test_names_of_other_programs_are_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cfg = compose("train", ["data.root=x", "loss=dice_ce", "model.patch_size=[32,32,32]"])
    assert cfg.loss._target_ == "lesionseg.losses.DiceCrossEntropyLoss"
    assert list(cfg.model.tile_shape) == [32, 32, 32]
    assert "dice_ce: taken as dice_cross_entropy." in caplog.text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lesionseg pre", ["predict", "prepare"]),
        ("lesionseg train model=re", ["model=residual_unet", "model=retina_unet"]),
        ("lesionseg train seed=1 trainer.max_m", ["trainer.max_minutes="]),
        ("lesionseg nothing x", []),
    ],
)
def test_the_tab_key_completes_commands_options_and_settings(
    line: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", f"{line} and what follows")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["-sc", "query=bash"]) == 0
    offered = capsys.readouterr().out.split()
    assert set(expected) <= set(offered)
    assert bool(offered) == bool(expected)


def test_completion_is_installed_as_hydras_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert "complete -o default -F _lesionseg lesionseg" in capsys.readouterr().out
    assert main(["-sc", "install=tcsh"]) == 2


def test_the_version_and_the_programs_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    from lesionseg import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["lesionseg", __version__]
    assert main(["train", "--help"]) == 0
    assert "  lesionseg train data.root=DIR" in capsys.readouterr().out


def test_limits_hold_for_the_process_and_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    from lesionseg.io.formats.guard import FileLimits, limits, set_limits

    try:
        nowhere = ["reference=/nowhere", "prediction=/nowhere", "output=/nowhere"]
        assert run("evaluate", [*nowhere, "limits.max_voxels=1000"]) == 1
        assert limits() == FileLimits(max_voxels=1000)
        capsys.readouterr()
        assert run("evaluate", [*nowhere, "limits.spacing_mm=[3,1]"]) == 2
        assert "limits.spacing_mm" in capsys.readouterr().err
    finally:
        set_limits(FileLimits())
