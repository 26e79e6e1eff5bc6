"""Every option of every group composes, and its constructor accepts it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lesionseg.cli import COMMANDS, compose, conf_dir
from lesionseg.cli.compose import fitting, groups
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
OPTIONS = [
    (command, group, option)
    for command in COMMANDS
    for group, options in groups(command).items()
    for option in options
]


@pytest.mark.parametrize(("command", "group", "option"), OPTIONS)
def test_every_option_composes_and_instantiates(command: str, group: str, option: str) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    cfg = compose(command, [*REQUIRED[command], f"{group}={option}"])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for settings in plain.values():
        if isinstance(settings, dict):
            assert instantiate(settings, _convert_="all") is not None


@pytest.mark.parametrize(
    "option",
    ["augment=auto", "sampling=lesions", "optim=adamw", "inference=balanced"],
)
def test_a_first_option_says_what_its_class_says(option: str) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    group = option.partition("=")[0]
    plain = OmegaConf.to_container(compose("train", ["data.root=x", option])[group])
    assert isinstance(plain, dict)
    plain = {key: value for key, value in plain.items() if str(key)[0] != "_"}
    defaults = instantiate({"_target_": compose("train", ["data.root=x"])[group]["_target_"]})
    assert plain == {key: _plain(getattr(defaults, key)) for key in plain}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("command", COMMANDS)
def test_the_recipe_takes_exactly_what_the_configuration_gives(command: str) -> None:
    import inspect

    from hydra.utils import get_method

    cfg = compose(command, REQUIRED[command])
    parameters = inspect.signature(get_method(cfg["_target_"])).parameters
    given = {str(key) for key in cfg} - {"_target_", "debug", "limits"}
    needed = {n for n, p in parameters.items() if p.default is p.empty}
    assert given <= set(parameters)
    assert needed - {"config"} <= given


@pytest.mark.parametrize(
    ("command", "experiment"),
    [(v, option) for v, group, option in OPTIONS if group == "experiment"],
)
def test_every_command_takes_what_an_experiment_sets(command: str, experiment: str) -> None:
    import inspect

    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    cfg = compose(command, [*REQUIRED[command], f"experiment={experiment}"])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    del plain["debug"], plain["limits"]
    recipe = instantiate({**plain, "_partial_": True}, _convert_="all")
    inspect.signature(recipe.func).bind(**recipe.keywords, config=plain)
    assert cfg.run_dir == f"runs/{experiment}"


def test_what_no_command_has_is_refused_in_an_experiment_too() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'sead'.*seed"):
        fitting(OmegaConf.create({"sead": 1, "seed": 2}), "train")


def test_a_setting_added_to_a_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'foo\.bar'"):
        compose("train", ["data.root=x", "+foo.bar=1"])


def test_what_an_experiment_says_to_another_command_cannot_be_set() -> None:
    compose("train", ["experiment=demo_mri", "operating_point=fp_per_case:2"])
    with pytest.raises(ConfigError, match="no setting 'operating_point'"):
        compose("prepare", ["experiment=demo_mri", "operating_point=fp_per_case:2"])


def test_every_file_opens_with_what_it_is_for() -> None:
    for path in sorted(Path(conf_dir()).rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), path


def test_every_group_folder_is_used() -> None:
    used = {group for command in COMMANDS for group in groups(command)}
    assert {p.name for p in conf_dir().iterdir() if p.is_dir()} == used
