"""Overrides to settings by Hydra: flags (`-i`, `-o`, `-h`), quotes, lists, unknown options.

pydantic checks the result.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from glob import glob
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

from lesionseg.config import (
    COMMANDS,
    Settings,
    conf_dir,
    dotted_items,
    expand_home,
    groups_of,
    is_url,
    keys,
    read,
    require_given,
    require_option,
    suggest_key,
)
from lesionseg.errors import ConfigError, suggest
from lesionseg.pipeline.log import command_line, in_quotes

SEARCHPATH = "hydra.searchpath"
_HYDRA_LOCK = Lock()
# sections whose keys are not listed in `conf/`: the class that uses them checks them
OPEN_SECTIONS = ("model.network.", "model.backbone.", "data.phantoms.", "trainer.lightning.")
# long names of flags by their short names
FLAGS = {
    "-m": "--multirun",
    "-c": "--cfg",
    "-cd": "--config-dir",
    "-h": "--help",
    "-j": "--json",
    "-i": "--input",
    "-o": "--output",
}
# keys of the flags with a value: such a flag and the word after it become an override
KEYS = {"--config-dir": SEARCHPATH, "--input": "input", "--output": "output"}
# keys whose value may be a list of texts
LISTS = ("bundle", "stable", "subgroups", "hosts", "series.modality", "inference.keep_zones")


@cache
def compose_files(
    command: str, overrides: tuple[str, ...] = (), *, resolve: bool = False
) -> dict[str, Any]:
    """Compose the YAML files of a command and some overrides with Hydra, and return plain data.

    The result is cached, so a caller must not change it. Hydra's global state is restored, because
    a user or a multirun may have set it.

    Args:
        command: The name of the command.
        overrides: Overrides that Hydra can read, see `override_list`.
        resolve: True replaces interpolations such as `${data.root}` by their values.

    Raises:
        ConfigError: If Hydra refuses a file or an override.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _HYDRA_LOCK:  # Hydra's state is global, so only one thread may compose
        outer = GlobalHydra.instance().hydra  # set in the job of a multirun or by the user
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = compose(command, overrides=list(overrides))
                plain: Any = OmegaConf.to_container(cfg, resolve=resolve)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            text = str(error) or str(error.__cause__)  # some errors of Hydra have no text
            raise ConfigError(text.partition("\n")[0]) from error
        finally:
            GlobalHydra.instance().hydra = outer
    return dict(plain)


def compose(command: str, argv: Sequence[str]) -> Settings:
    """Return the checked settings of a command with the user's overrides.

    Raises:
        ConfigError: If a key is unknown (the message names the nearest), required and missing, or
            has a wrong value.
    """
    plain = compose_plain(command, argv)
    require_given(command, plain, advice=f" ({command_line(command)} --help has examples)")
    return read(COMMANDS[command], plain)


def compose_plain(command: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a command with the user's overrides as plain data, without checks.

    Keys are checked, values are not. Raise `ConfigError` as `override_list` does, or if Hydra
    refuses an override.
    """
    return compose_files(command, tuple(override_list(command, argv)), resolve=True)


def override_list(command: str, argv: Sequence[str], *, sweeps: bool = False) -> list[str]:
    """Check the keys and options of a user's overrides, and return them in a form for Hydra.

    Texts are quoted. The prefix of an override in the result depends on its key:

    - `~` if the user wrote it: the key is removed.
    - `++`, which adds or replaces a key, if the keys are not listed in the YAML files: sections in
    `OPEN_SECTIONS`, `loss` with `loss=custom`, and `+section.key`, which pydantic checks later.
    - `+` if the user wrote it before an option of a group.
    - No prefix otherwise.

    `experiment=null`, the default, is left out.

    Args:
        command: The name of the command.
        argv: The overrides.
        sweeps: True allows a value to be the list `a,b` of a multirun.

    Raises:
        ConfigError: If an argument is not an override, or a key or an option of a group is unknown;
            the message names the nearest. Also if a folder of options does not exist, or if Hydra
            refuses a file or an option.
    """
    # refuse arguments without a key
    for argument in argv:
        if "=" not in argument and not argument.startswith("~"):
            # a run, a bundle or one of nnU-Net; Path.glob fails if the name is too long
            is_model = glob(f"{argument}/plan*.json")  # noqa: PTH207
            key = (is_model and _guess_key(command, "bundle")) or _guess_key(command)
            raise ConfigError(f"{argument!r} is not a setting. Write {key}={argument}")
    # quote texts, and check the options of groups
    texts = {key for key, is_text in keys(COMMANDS[command]) if is_text}
    # the default of the only group that may be empty, which Hydra does not accept as an override
    arguments = [argument for argument in argv if argument.lstrip("+") != "experiment=null"]
    overrides = [quote_text(argument, texts, sweeps=sweeps) for argument in arguments]
    options = options_of_groups(command, overrides)
    # the values without their quotes; `~key` has no value
    values = {
        key_of(o): o.partition("=")[2].strip("'\"") for o in overrides if not o.startswith("~")
    }
    _check_options(options, values)
    # the chosen options and the user's folders decide which keys exist; several options of a
    # multirun, `a,b`, cannot be composed at once
    choosing = [
        o for o in overrides if key_of(o) == SEARCHPATH or (key_of(o) in options and "," not in o)
    ]
    composed = compose_files(command, tuple(choosing))
    known_keys = [*options, *(key for key, _ in dotted_items(composed))]
    open_sections: tuple[str, ...] = OPEN_SECTIONS
    if values.get("loss") == "custom":
        open_sections = (*open_sections, "loss.")
    # check the keys, and give each override its prefix
    result = []
    for override in overrides:
        key = key_of(override)
        adds_key = override.startswith("+") and "." in key
        # the settings of Hydra itself are in no file of this program
        is_known = key in known_keys or key.startswith("hydra")
        if override.startswith("~"):
            result.append(override)
        elif key.startswith(open_sections) or adds_key:
            result.append("++" + override.lstrip("+"))
        elif key in options:
            result.append(override)
        elif is_known:
            result.append(override.lstrip("+"))
        else:
            settings = [name for name, node in dotted_items(composed) if not isinstance(node, dict)]
            groups_of_value = [name for name in options if values[key] in options[name]]
            near = suggest_key(key, [*settings, *groups_of_value])
            raise ConfigError(f"There is no setting {key!r}.{near or suggest(key, options)}")
    return result


def _check_options(options: Mapping[str, Sequence[str]], values: Mapping[str, str]) -> None:
    """Raise `ConfigError` if an override sets a group of settings to an unknown option.

    Args:
        options: The options of each group, such as `focal` of the group `loss`.
        values: The values of the overrides by key; `a,b` are two options.
    """
    for group in sorted(options.keys() & values.keys()):
        for value in values[group].split(","):  # several in a multirun
            require_option(group, value, options[group])


def options_of_groups(command: str, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the options of each group of a command: the sorted names of the group's YAML files.

    The folders that `overrides` add with `hydra.searchpath` are searched, too. Raise `ConfigError`
    if such a folder does not exist.
    """
    roots = [conf_dir(), *_user_folders(overrides)]
    return {
        name: sorted({path.stem for root in roots for path in (root / name).glob("*.yaml")})
        for name in groups_of(command)
    }


def _user_folders(overrides: Sequence[str]) -> list[Path]:
    """Return the folders that the override of `hydra.searchpath` adds; empty without this override.

    Only the first such override counts, as in Hydra. A folder is written as `file://…` or as a
    path, and a Python package as `pkg://…`. Raise `ConfigError` if a folder or a package does not
    exist, or if Hydra cannot read the value.
    """
    searchpaths = [override for override in overrides if key_of(override) == SEARCHPATH]
    if not searchpaths:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:  # Hydra searches the folders of the first override
        # a list of folders, or a single one
        places: Any = OverridesParser.create().parse_override(searchpaths[0]).value()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    folders: list[Path] = []
    for place in places if isinstance(places, list) else [str(places)]:
        # such as pkg://my_package, file://folder or folder
        scheme, _, name = place.rpartition("://")
        try:
            folders.append(Path(str(files(name))) if scheme == "pkg" else Path(name))
        except ModuleNotFoundError as error:
            raise ConfigError(f"--config-dir {place}: there is no such package.") from error
        if not folders[-1].is_dir():
            raise ConfigError(f"--config-dir {name}: the folder does not exist.")
    return folders


def _guess_key(command: str, flag: str = "") -> str | None:
    """Return the key that an unknown flag probably means, for the advice in an error message.

    The first of these rules that applies decides:

    - An empty flag means the input: the key `input`, or else the first key of the command.
    - The flag equals a key, or the last part of a key.
    - The flag is the beginning of a key.

    Return None if no rule applies. The key `private` is ignored.

    >>> _guess_key("train", "--data"), _guess_key("train", "--max-minutes"), _guess_key("predict")
    ('data.root', 'trainer.max_minutes', 'input')
    >>> _guess_key("evaluate"), _guess_key("report")
    ('reference', 'scores')
    """
    # each command has `private`, which no user means by another flag
    all_keys = [key for key, _ in keys(COMMANDS[command]) if key != "private"]
    name = flag.lstrip("-").replace("-", "_")
    if not name:
        return "input" if "input" in all_keys else all_keys[0]
    for key in all_keys:
        if name in (key, key.rpartition(".")[2]):
            return key
    return next((key for key in all_keys if key.startswith(name)), None)


def read_flags(argv: Sequence[str], command: str) -> tuple[set[str], list[str]]:
    """Separate flags from overrides. Return the set of flags (long names), and the overrides.

    A flag with a value (`KEYS`) becomes an override. `command` is used for the advice in an error.
    Raise `ConfigError` if a flag is unknown, its value is missing, or `--json` is combined with
    another flag.

    >>> read_flags(["-c", "job", "loss=focal", "--config-dir", "a", "--config-dir=b"], "train")
    ({'--cfg'}, ['loss=focal', "hydra.searchpath=['file://a','file://b']"])
    """
    flags: set[str] = set()
    overrides: list[str] = []
    folders: list[str] = []  # of --config-dir, which may be given several times
    remaining = list(argv)
    while remaining:
        name, separator, value = remaining.pop(0).partition("=")
        name = FLAGS.get(name, name)  # a short name becomes the long one
        if not name.startswith("-"):
            overrides.append(name + separator + value)
        elif name in KEYS:
            if not separator and (not remaining or remaining[0].startswith("-")):
                raise ConfigError(f"{name} needs a value.")
            value = value if separator else remaining.pop(0)
            if name == "--config-dir":
                folders.append(value if is_url(value) else f"file://{expand_home(value)}")
            else:
                overrides.append(f"{KEYS[name]}={value}")
        elif name in FLAGS.values():
            flags.add(name)
            if name == "--cfg" and remaining[:1] == ["job"]:  # Hydra's spelling is `--cfg job`
                remaining.pop(0)
        else:
            # for the advice: the value after `=`, or the next word that is not a flag
            value = value or next((a for a in remaining if a[:1] != "-"), "…")
            key = _guess_key(command, name)
            near = f" Write {key}={value}" if key else suggest(name, FLAGS.values())
            raise ConfigError(f"There is no flag {name!r}.{near}")
    if "--json" in flags and len(flags) > 1:
        raise ConfigError("--json prints the result of one command. Leave out the other flag.")
    if folders:
        overrides.append(_join_folders(folders, overrides))
    return flags, overrides


def _join_folders(folders: Sequence[str], overrides: Sequence[str]) -> str:
    """Return one override of Hydra's search path for all folders of the flag `--config-dir`.

    Raise `ConfigError` if `overrides` contain a search path, too.
    """
    if any(key_of(override) == SEARCHPATH for override in overrides):
        raise ConfigError(f"Name all folders with --config-dir, and leave {SEARCHPATH}= out.")
    return f"{SEARCHPATH}=[{','.join(map(in_quotes, folders))}]"


def quote_text(argument: str, keys: Iterable[str], *, sweeps: bool = False) -> str:
    """Quote the value of an override if it is text, that is, if its key is one of `keys`.

    Without quotes, Hydra would interpret spaces, `=`, commas and brackets. An empty value and
    `null` are not quoted. If `sweeps`, each of the values `a,b` of a multirun gets its own quotes.

    >>> quote_text("input=a b,c.nii", ["input"])
    "input='a b,c.nii'"
    >>> quote_text("bundle=[runs/a b, 'runs/c,d']", ["bundle"])
    "bundle=['runs/a b','runs/c,d']"
    >>> quote_text("preset=picai,iou:0.4", ["preset"], sweeps=True)
    "preset='picai','iou:0.4'"
    >>> quote_text("bundle=[a,b],[c]", ["bundle"], sweeps=True)
    "bundle=['a','b'],['c']"
    """
    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    is_text = name in keys and value not in ("", "null")
    if not is_text:
        return argument
    values = _split_values(value) if sweeps else [value]
    quoted = [_quote_value(one, may_be_list=name in LISTS) for one in values]
    return f"{key}={','.join(quoted)}"


def _quote_value(value: str, *, may_be_list: bool) -> str:
    """Quote one value of an override, or each item if the value is a list in brackets.

    Only keys in `LISTS` have lists (`may_be_list`). Brackets of other values are text.
    """
    if may_be_list and value[:1] == "[" and value[-1:] == "]":
        items = [in_quotes(item.strip()) for item in _split_values(value[1:-1]) if item.strip()]
        return f"[{','.join(items)}]"
    return in_quotes(value)


def _split_values(text: str) -> list[str]:
    """Split a text at its commas, except for commas within quotes or pairs of brackets.

    If the brackets are not in pairs, the text is split at all commas. A quote counts only at the
    beginning of a value; later it is an apostrophe.

    >>> _split_values("a,b"), _split_values("(P[0-9]{1,3})_"), _split_values("'a,b'")
    (['a', 'b'], ['(P[0-9]{1,3})_'], ["'a,b'"])
    """
    values = [""]
    depth = 0  # of open brackets
    quote = ""  # the open quotation mark
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not values[-1].strip():  # a later one is an apostrophe
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not quote and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    return values if depth == 0 else text.split(",")  # a single bracket belongs to a name


def key_of(override: str) -> str:
    """Return the key of an override `key=value`, without the prefix `+`, `++` or `~`.

    Raises:
        ConfigError: If the override has no `=`, which only `~key` may leave out, or if its key has
            other characters than letters, digits and `_./@-`.
    """
    # prefix, key, and the value if there is one
    match = re.match(r"^(?:[+~]{0,2})([\w./@-]+)(?:=.*)?$", override, re.DOTALL)
    if match is None or ("=" not in override and override[0] != "~"):
        raise ConfigError(f"{override!r} is not an override. Write key=value or group=option.")
    return match[1]
