"""Run directory: default name, settings that may change on resuming, changed cases, seen cases.

It belongs to one configuration and its cases.

Only the same configuration and cases resume the training.
"""

import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lesionseg.config import (
    AUTO_MODEL,
    COMMANDS,
    CONFIG,
    TARGET,
    TrainConfig,
    conf_dir,
    defaults,
    dotted_items,
    has_config,
)
from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError, OutputError, join_names
from lesionseg.io.split_files import SplitFile
from lesionseg.io.text import read_json, read_yaml, write_json, write_text
from lesionseg.pipeline.log import command_line, quoted_text
from lesionseg.plan.plan import HEADS, heads_of
from lesionseg.plan.splits import Splits

log = logging.getLogger(__name__)

SPLITS = "splits.json"
DIGESTS_OF_CASES = "sources.json"  # SHA-256 of the files of each development case
# sections and settings that do not change the result; `debug` is a setting of version 1.0, whose
# runs can be resumed
FREE = ("debug", "logger", "private", "report", "run_dir", "data.cache_dir", "trainer.workers")
# settings that name files which `check_cases` compares by content; a folder may move
_BY_CONTENT = ("data.root", "data.splits", "data.annotations")
# settings that version 1.0 did not have, with the values that equal its behaviour
ADDED: Mapping[str, Any] = {
    "data.colour": False,
    "data.geometry": "header",
    "data.nan": "error",
    "loss.dice_weight": 1.0,
    "trainer.max_networks": None,
}
BUDGET = {"trainer.max_minutes", "trainer.max_steps"}
# sections and settings that a training from the weights of a run repeats
_REPEATED = ("seed", "data", "model", "loss", "detection", "prepare")
_DEVELOPMENT = {"train", "validation"}
_LIMIT = 5  # changed cases in a message


def default_run_dir(data_root: str, *names: str) -> Path:
    """Return `runs/<dataset>_<names>_<time>`, the run directory if the settings name none.

    `<dataset>` is the name of the dataset's folder. `names` are usually the model, or the model and
    the command. The name `auto` is left out.
    """
    dataset = re.sub(r"[^\w.-]+", "-", Path(data_root).resolve().name) or "data"  # for `/`
    named = [name for name in names if name != AUTO_MODEL]
    return Path("runs") / "_".join([dataset, *named, time.strftime("%Y%m%d-%H%M%S")])


def config_of(cfg: TrainConfig) -> dict[str, Any]:
    """Return the configuration in the form in which a run directory stores it.

    The result is the name of the command and all settings as plain data. The number of trials of a
    search is left out, so that a search can be continued with more trials.
    """
    name = next(name for name, kind in COMMANDS.items() if kind is type(cfg))
    config = {"command": name, **cfg.to_plain()}
    config.get("tune", {}).pop("n_trials", None)
    return config


def check_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the directory belongs to another configuration.

    The message names the settings that differ, and how to continue. These settings may differ:

    - those that do not change the result (`FREE`),
    - the devices of a search, because each process of a search can use another device,
    - the loss of masks, if the model predicts only boxes,
    - the paths of the data once a training has begun, because `check_cases` compares the content of
      the files.

    Args:
        run_dir: The run directory. A folder without a configuration passes.
        config: The configuration, as `config_of` returns it.
    """
    if not has_config(run_dir):
        return
    before = read_yaml(run_dir / CONFIG)  # the configuration of the run
    if before.get("command") != config.get("command"):  # every setting would differ
        raise ConfigError(
            f"run_dir={run_dir} belongs to {before.get('command')}. Name another one; in the same "
            "parent folder it finds the cases that are already prepared."
        )
    free: tuple[str, ...] = FREE
    if config.get("command") == "tune":  # processes of one search use different devices
        free += ("trainer.devices",)
    model = before.get("model", {}).get("architecture", "")
    if "segmentation" not in heads_of(model):  # `loss` concerns only networks that draw masks
        free += ("loss",)
    if config.get("command") != "prepare" and (run_dir / DIGESTS_OF_CASES).is_file():
        free += _BY_CONTENT
    changed = dict(_differences(before, config, free))
    if changed:
        # the folder may have moved; the split stays that of the run
        data = {**before.get("data", {}), "root": config.get("data", {}).get("root")}
        split = {"seed": before.get("seed", 0), "data": data}
        only_budget = {*changed} <= BUDGET
        raise ConfigError(
            f"run_dir={run_dir} belongs to another configuration: "
            f"{'; '.join(f'{key}: {text}' for key, text in changed.items())}. "
            f"{_explain_how_to_continue(run_dir, {**config, **split}, only_budget)}"
        )


def _explain_how_to_continue(run_dir: Path, config: Mapping[str, Any], only_budget: bool) -> str:
    """Return the advice in the error message that a run directory has another configuration.

    If the training of the run is finished, the advice is the command that trains its weights
    further.

    Args:
        run_dir: The run directory.
        config: The new configuration, with the split of the run.
        only_budget: True if the configurations differ only in the limits of minutes and steps. The
            command then repeats the new limits.
    """
    if config.get("command") != "train" or not (run_dir / "bundle").is_dir():
        return "Name another one, or give the same settings to resume."
    settings = settings_to_train_further(run_dir, config)
    note = "with your other settings"
    if config["data"].get("fold") == "all":
        note += ", and so for the other folds"
    if only_budget:
        for key, value in config.get("trainer", {}).items():
            if f"trainer.{key}" in BUDGET and value is not None:
                settings[f"trainer.{key}"] = value
    return (
        "This training is finished and stays as it is. To train further, start a new run from its "
        f"weights: {command_line('train', settings)} ({note})."
    )


def settings_to_train_further(run_dir: Path, config: Mapping[str, Any]) -> dict[str, object]:
    """Return the overrides of a training that starts from the weights of a run.

    The overrides repeat the run's seed and its settings of data, model, losses and preparation that
    are not the default. Without them, the split would be drawn again, and cases on which the run
    trained could become validation cases. The architecture is left out if the bundle states it. The
    new run directory is `NEW`, which the user replaces.

    After a cross-validation, the overrides train its first fold further. The ensemble cannot be
    used for this, because each of the other networks has seen the validation cases of that fold.

    Args:
        run_dir: The run directory.
        config: The configuration of the run, as `config_of` returns it.
    """
    if config["data"].get("fold") == "all":
        numbers = [int(path.name.removeprefix("fold_")) for path in run_dir.glob("fold_[0-9]*")]
        number = min(numbers, default=0)  # folds that the dataset states may begin with 1
        first = {**config, "data": {**config["data"], "fold": number}}
        return settings_to_train_further(run_dir / f"fold_{number}", first)
    left_out = {"model.init_from"}  # replaced below
    model = config["model"]
    # a bundle states its architecture, except a class of the user or a pretrained backbone
    if model["architecture"] in HEADS and not model.get("backbone"):
        left_out.add("model.architecture")
    settings = settings_to_repeat(config, left_out=left_out)
    return {**settings, "model.init_from": run_dir, "run_dir": "NEW"}


def settings_to_repeat(
    config: Mapping[str, Any],
    sections: Collection[str] = _REPEATED,
    left_out: Collection[str] = (),
) -> dict[str, object]:
    """Return the overrides that repeat a configuration, without settings that have their default.

    The folder of the data comes first, and is always included. The settings of phantoms are left
    out, because the phantoms already exist as scans.

    Args:
        config: The configuration, as `config_of` returns it.
        sections: The sections and settings to repeat.
        left_out: Dotted keys to leave out.

    Returns:
        The values by dotted key. The key of an argument without a default begins with `+`, with
        which Hydra adds a key.
    """
    # choose the options of the groups `loss` and `model`
    settings: dict[str, object] = {"data.root": config["data"]["root"]}
    loss = loss_option(config["loss"][TARGET]) or "custom"
    default_settings = defaults("train")
    if default_settings["loss"][TARGET] != config["loss"][TARGET]:
        settings["loss"] = loss
    choices = {"loss": loss}
    architecture = config["model"]["architecture"]
    is_own_model = architecture in HEADS and "model.architecture" not in left_out
    if is_own_model and architecture != default_settings["model"]["architecture"]:
        settings["model"] = choices["model"] = architecture
    # settings that equal the defaults of this `model` and `loss` need not be repeated
    default_values = _settings_by_key(defaults("train", choices))
    for key, value in _settings_by_key(config).items():
        is_repeated = key.partition(".")[0] in sections and key not in {"data.root", *left_out}
        # the scans of `data.phantoms` exist
        if not is_repeated or key.startswith("data.phantoms"):
            continue
        if key not in default_values:
            settings[f"+{key}"] = quoted_text(value)
        elif value != default_values[key]:
            settings[key] = value
    return settings


def settings_of_training(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the overrides with which `train` uses the plan and the split of an earlier `prepare`.

    `config` is the configuration of `prepare`, as `config_of` returns it.
    """
    return settings_to_repeat(config, (*_REPEATED, "trainer"))


def loss_option(target: str) -> str | None:
    """Return the name that selects a loss class in `loss=<name>`; None for a class without a name.

    `target` is the full name of the class. The names are those of the files in `conf/loss`.
    """
    for file in sorted((conf_dir() / "loss").glob("*.yaml")):
        if read_yaml(file).get(TARGET) == target:
            return file.stem
    return None


def _settings_by_key(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of nested sections by dotted key, such as `trainer.max_steps`."""
    return {key: value for key, value in dotted_items(config) if not isinstance(value, Mapping)}


def save_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration into the run directory, which it makes if necessary.

    From then on, the directory belongs to this configuration. An earlier configuration is replaced
    if it differs only in settings that may change, see `check_config`.

    Raises:
        ConfigError: If the directory belongs to another configuration.
        OutputError: If the directory cannot be made.
    """
    check_config(run_dir, config)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"run_dir={run_dir} cannot be made: {error}. Name another one."
        ) from error
    write_text(run_dir / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]
) -> Iterable[tuple[str, str]]:
    """Yield the key and the text `old → new` of every setting that differs between configurations.

    Settings that version 1.0 did not have get the values in `ADDED`, so that its runs can be
    resumed. Texts that are the same path are equal, such as `../scans` and `/data/scans/`.

    Args:
        before: The configuration of the run.
        now: The current configuration.
        free: Dotted keys of sections and settings that may differ.
    """
    old = _settings_by_key(before)
    new = _settings_by_key(now)
    for key in sorted(old.keys() | new.keys()):
        # the dot prevents that the section `data` matches a section `database`
        is_free = any(f"{key}.".startswith(f"{name}.") for name in free)
        value_before = old.get(key, ADDED.get(key))
        value_now = new.get(key, ADDED.get(key))
        if _resolved(value_before) != _resolved(value_now) and not is_free:
            yield key, f"{value_before} → {value_now}"


def _resolved(value: object) -> object:
    """Return a text as an absolute path without symbolic links, and any other value unchanged.

    Every text is treated as a path, because a text that is no path differs as a path, too.
    """
    return Path(value).resolve() if isinstance(value, str) else value


def save_digests(run: Path, splits: Splits, digests: Mapping[str, str]) -> None:
    """Write the SHA-256 of the files of each development case, if the run has no such file yet.

    `check_cases` compares the files with these digests when the run is resumed.
    """
    path = run / DIGESTS_OF_CASES
    if not path.is_file():
        write_json(path, _digests_of_development(splits, digests))


def _digests_of_development(splits: Splits, digests: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of the files of each case for training or validation, by case id."""
    roles = splits.roles
    return {case: digest for case, digest in digests.items() if roles.get(case) in _DEVELOPMENT}


def check_cases(run: Path, splits: Splits, digests: Mapping[str, str]) -> None:
    """Raise `DatasetError` if a run began with other development cases, roles or files.

    Otherwise the network could be scored on cases that it was trained on, or resume on scans that
    replaced its training scans. Test and external cases may be added, removed or changed. A folder
    that is no run directory yet passes.

    Args:
        run: The run directory.
        splits: The current roles. For a cross-validation, they are those of the first fold.
        digests: The current SHA-256 of the files of each case.
    """
    if not has_config(run):
        return
    # compare the files
    path = run / DIGESTS_OF_CASES
    now = _digests_of_development(splits, digests)  # by case id, as `before`
    # version 1.0 has no record of its files
    before = read_json(path) if path.is_file() else now
    # a new case counts as unchanged here; the roles below show it
    changed = [case for case in now if before.get(case, now[case]) != now[case]]
    if changed:
        raise DatasetError(
            f"{run}: files or table entries of these cases have changed since this run began: "
            f"{join_names(changed, _LIMIT)}. Name another run_dir= to train on the data as they "
            "are now, or restore the files to resume."
        )
    # compare the roles
    path = run / SPLITS
    roles_before = SplitFile.read(path).roles() if path.is_file() else splits.roles
    changes: list[str] = []
    for case in sorted({*roles_before, *splits.roles}):
        old = roles_before.get(case)
        new = splits.roles.get(case)
        if old != new and {old, new} & _DEVELOPMENT:
            changes.append(f"{case} ({old or 'new'} → {new or 'gone'})")
    if changes:
        raise DatasetError(
            f"{path}: this run began with other cases: {join_names(changes, _LIMIT)}. Name another "
            "run_dir= to train on the data as they are now, or restore the cases to resume."
        )


def warn_of_seen_cases(
    init_from: str | None, splits: Splits, cases: Iterable[CaseFiles] = ()
) -> None:
    """Warn of validation or test cases on which the network of the initial weights was trained.

    Other cases of a patient on whom that network was trained are listed, too. If the run of the
    weights is a cross-validation, its first fold counts, because an ensemble gives the weights of
    its first network. There is no warning without `init_from`, or if the run of the weights is not
    known.

    Args:
        init_from: The setting `model.init_from`, a bundle or run directory.
        splits: The roles of the new training.
        cases: The cases with their patients.
    """
    if init_from is None:
        return
    folder = Path(init_from)
    run = folder.parent if folder.name == "bundle" else folder
    path = run / SPLITS
    if not (has_config(run) and path.is_file()):  # a checkpoint, or a bundle without its run
        return
    file = SplitFile.read(path)
    run_roles = file.roles()
    remedy = f"data.splits={path} keeps the roles of that run."
    if len(file.folds) > 1:
        remedy = f"{run} is a cross-validation: start each fold from its own weights, in fold_0 …."
    trained = {case for case, role in run_roles.items() if role == "train"}
    patient_of = {files.case: files.patient for files in cases}
    patients = {patient_of[case] for case in trained & patient_of.keys()}
    seen_cases = [
        f"{case} ({role})"
        for case, role in sorted(splits.roles.items())
        if role != "train" and (case in trained or patient_of.get(case) in patients)
    ]
    if seen_cases:
        log.warning(
            "The weights of model.init_from=%s were trained on validation or test cases of this "
            "training, or on other cases of their patients: %s. If they are the same patients, "
            "their scores will be too high. %s",
            init_from,
            join_names(seen_cases),
            remedy,
        )
