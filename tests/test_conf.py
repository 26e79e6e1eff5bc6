"""The YAML files and the settings: every option composes, every key is in both."""

from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lesionseg.cli import COMMANDS, compose
from lesionseg.cli.compose import compose_plain, groups
from lesionseg.config import InferenceConfig, TrainConfig, keys
from lesionseg.errors import ConfigError, one_of
from lesionseg.losses import DetectionLoss, make_loss
from tests.test_cli import REQUIRED

OPTIONS = [
    (command, group, option)
    for command in COMMANDS
    if command not in ("prepare", "tune")  # which have those of `train`
    for group, options in groups(command).items()
    for option in options
]


@pytest.mark.parametrize(("command", "group", "option"), OPTIONS)
def test_every_option_composes(command: str, group: str, option: str) -> None:
    cfg: Any = compose(command, [*REQUIRED[command], f"{group}={option}"])
    if command == "train":
        make_loss(cfg.loss, cfg.model.activation)
        DetectionLoss(**cfg.detection.plain())
        assert group != "experiment" or cfg.run_dir == f"runs/{option}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_files_have_the_keys_and_the_defaults_of_the_settings(command: str) -> None:
    of_some_options = {"data.phantoms", "model.network", "model.backbone", "model.layout"}
    declared = {key for key, _ in keys(COMMANDS[command])} - of_some_options
    if "loss._target_" in declared:
        declared.add("loss.focal_weight")
    assert set(_leaves(compose_plain(command, []))) == declared
    given = dict(part.split("=") for part in REQUIRED[command] if "." not in part)
    data = {"data": {"root": "x"}} if "data.root=x" in REQUIRED[command] else {}
    assert COMMANDS[command].of(**given, **data) == compose(command, REQUIRED[command])


def _leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
    leaves = []
    for key, value in node.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" != "trainer.lightning"
        leaves += _leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return leaves


def test_what_no_command_has_is_an_error_in_an_experiment_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "a.yaml").write_text("# @package _global_\nsead: 1\n")
    place = f"hydra.searchpath=['file://{tmp_path}']"
    with pytest.raises(ConfigError, match=r"'sead'.*'seed'"):
        compose("train", ["data.root=x", place, "experiment=a"])


def test_a_section_takes_what_is_named_and_checks_it() -> None:
    cfg = TrainConfig.of(trainer={"max_steps": 3}, seed=4, inference=InferenceConfig.of(flips=True))
    assert (cfg.trainer.max_steps, cfg.trainer.devices, cfg.seed) == (3, 1, 4)
    assert cfg.inference.flips
    with pytest.raises(ConfigError, match=r"overlp.*overlap"):
        InferenceConfig.of(overlp=0.1)
    one_of("model.stem", "full", ["full", "space_to_depth"])
    for wrong, named in (("ful", "Did you mean 'full'"), (None, "none of full")):
        with pytest.raises(ConfigError, match=named):
            one_of("model.stem", wrong, ["full", "space_to_depth"])


WRONG = {
    "trainer": [
        *({"max_minutes": 0}, {"max_minutes": "abc"}, {"max_steps": 0}, {"precision": "8-mixed"}),
        *({"accelerator": "gpuu"}, {"ema_decay": 1.0}, {"workers": -1}, {"memory_gb": 0.0}),
        *({"validate_every_minutes": 0.0}, {"devices": []}, {"devices": [-1]}, {"devices": "0,1"}),
        *({"devices": 0}, {"devices": "cuda:1"}, {"devices": None}),
    ],
    "optim": [{"name": "lion"}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}],
    "augment": [{"rotate_degrees": -1}, {"intensity_probability": 1.5}, {"extra": [{"a": 1}]}],
}


@pytest.mark.parametrize(
    ("section", "wrong"), [(name, wrong) for name, many in WRONG.items() for wrong in many]
)
def test_a_wrong_setting_is_named(section: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{section}.{next(iter(wrong))}"):
        TrainConfig.of(**{section: wrong})


def test_settings_are_composed_within_a_program_that_uses_hydra_itself(tmp_path: Path) -> None:
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose("train", ["data.root=x", "seed=5", "loss.gamma=1.5"]).seed == 5
        assert GlobalHydra.instance().hydra is outer
