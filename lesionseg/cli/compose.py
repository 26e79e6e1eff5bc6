"""Where configurations lie; overrides in, one checked configuration out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from lesionseg.cli.aliases import renamed, renamed_keys
from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.overrides import key_of, nearest, quoted
from lesionseg.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
ENTRY_POINTS = "lesionseg.presets"  # each names a package that holds folders as conf/ does
KEY = "hydra.searchpath"


def conf_dir() -> Path:
    """The configuration: within an installed package, else in the repository."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def config_dirs(overrides: Sequence[str] = ()) -> list[Path]:
    """Our folder, then those of `hydra.searchpath` and of installed packages.

    Raises `ConfigError` for one that does not exist.
    """
    return [conf_dir(), *(_folder(place) for place in _places(overrides))]


def with_search_path(overrides: Sequence[str]) -> list[str]:
    """The overrides, with every further place in `hydra.searchpath`, which Hydra reads."""
    others = [o for o in overrides if not o.startswith(f"{KEY}=")]
    places = ",".join(f"'{place}'" for place in _places(overrides))
    return [f"{KEY}=[{places}]", *others] if places else others


def _places(overrides: Sequence[str]) -> list[str]:
    asked: list[Any] = []
    for override in overrides:
        if override.startswith(f"{KEY}="):
            from hydra.core.override_parser.overrides_parser import OverridesParser

            value = OverridesParser.create().parse_override(override).value()
            asked += [str(v) for v in (value if isinstance(value, list) else [value])]
    installed = [f"pkg://{point.value}" for point in entry_points(group=ENTRY_POINTS)]
    return list(dict.fromkeys([*asked, *installed]))


def _folder(place: str) -> Path:
    scheme, _, name = place.rpartition("://")
    try:
        folder = Path(str(files(name))) if scheme == "pkg" else Path(name)
    except ModuleNotFoundError as error:
        raise ConfigError("There is no such package.", where=KEY, seen=place) from error
    if not folder.is_dir():
        raise ConfigError(
            "The folder of configurations does not exist.",
            where=KEY,
            seen=folder,
            remedy="name a folder that holds folders such as experiment/ or loss/.",
        )
    return folder


NUMBERS_OR_WORDS = ("trainer.devices",)
# entry points by which other packages declare classes
DECLARED = dict.fromkeys(("network", "backbone"), "lesionseg.networks") | {
    "loss": "lesionseg.losses"
}
OPEN = ("model.network.", "model.backbone.")  # what they take is for the class that they name


def compose(command: str, argv: Sequence[str], *, complete: bool = True) -> Any:
    """The resolved configuration of a command under overrides, checked key by key.

    `complete` refuses one in which a setting that has no default is missing. Raises `ConfigError`
    that names the nearest valid key or option.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = typed_overrides(command, argv)
    known = groups(command, overrides)
    options = [o for o in overrides if key_of(o) in (*known, KEY)]
    _check_options(options, known)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            base = fitting(hydra_compose(command, overrides=options), command)
            _check_keys([o for o in overrides if o not in options], base)
            cfg = renamed_keys(hydra_compose(command, overrides=overrides))
            cfg = fitting(cfg, command, overrides)
            _check_kinds([o for o in overrides if o not in options], base, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).splitlines()[0], where=" ".join(argv)) from error
    if complete:
        _check_complete(cfg, command)
    return cfg


def typed_overrides(command: str, argv: Sequence[str]) -> list[str]:
    """What was typed, quoted, by the names of today, with all places that hold configurations."""
    texts = COMMANDS[command].texts
    return with_search_path(opened([renamed(quoted(a, texts)) for a in argv]))


def opened(overrides: Sequence[str]) -> list[str]:
    """The overrides, with those of somebody's own network or loss marked as new keys.

    Names that installed packages declare as entry points become the classes they stand for.

    >>> opened(["model.network.depth=3", "loss.gamma=2"])
    ['++model.network.depth=3', 'loss.gamma=2']
    """
    own = (*OPEN, "loss.") if "loss=custom" in overrides else OPEN
    named = [_class_of(o) for o in overrides]
    return [f"++{o}" if o.startswith(own) else o for o in named]


def _class_of(override: str) -> str:
    """`model.network=NAME` or `loss._target_=NAME` with the class in place of a declared name."""
    match = re.fullmatch(r"(?:model\.(network|backbone)|(loss))(?:\._target_)?=(\w+)", override)
    if match is None or (match[2] and "._target_=" not in override) or match[3] == "null":
        return override
    points = {p.name: p for p in entry_points(group=DECLARED[match[1] or match[2]])}
    if match[3] not in points:
        raise ConfigError(
            f"No installed package declares {match[3]!r}.{nearest(match[3], points)}",
            where=override,
            expected=", ".join(sorted(points)) or "package.module.Class",
        )
    kind = f"model.{match[1]}" if match[1] else "loss"
    return f"{kind}._target_={points[match[3]].value.replace(':', '.')}"


def groups(command: str, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """The command's groups and the options of each, in the order of its table of contents.

    Options of the user's own folders are among them where the overrides name these.
    """
    names = [next(iter(d)) for d in _contents(command)["defaults"] if isinstance(d, dict)]
    files = {
        n: [p for root in config_dirs(overrides) for p in (root / n).glob("*.yaml")] for n in names
    }
    return {name: sorted({path.stem for path in paths}) for name, paths in files.items()}


def setting_names(cfg: Any) -> list[str]:
    """Every key of a configuration, `group.key` for those of a group."""
    from omegaconf import OmegaConf

    return list(_flatten(OmegaConf.to_container(cfg, resolve=False)))


def fitting(cfg: Any, command: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration without what an experiment says to other commands.

    An experiment sets `operating_point` or `preset`, say, for `train`; `prepare` has neither. What
    the overrides name stays, so that it is refused and not ignored; so does what no command has.
    """
    from omegaconf import OmegaConf

    named = {key_of(o).partition(".")[0] for o in overrides}
    own = {*_contents(command), *groups(command), *named}
    for key in (key for key in cfg if key not in own):
        if not any(key in _contents(name) or key in groups(name) for name in COMMANDS):
            raise ConfigError(
                f"There is no setting {key!r}.{nearest(key, sorted(own))}", where="experiment"
            )
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key in own])


def _contents(command: str) -> dict[str, Any]:
    """The command's table of contents, as its file has it."""
    import yaml

    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    contents: dict[str, Any] = yaml.safe_load(text)
    return contents


def _check_options(options: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    for override in options:
        key, value = key_of(override), override.partition("=")[2].strip("'\"")
        if key in groups and value not in (*groups[key], "null"):
            raise ConfigError(
                f"There is no option {value!r} in group {key!r}.{nearest(value, groups[key])}",
                where=override,
                expected=" | ".join(groups[key]),
            )


def _check_keys(overrides: Sequence[str], base: Any) -> None:
    known = setting_names(base)
    for override in overrides:
        key = key_of(override)
        # its group says whether it takes it
        added = override[0] in "+~" and "." in key and key.partition(".")[0] in base
        if added or key in known or key.startswith("hydra."):
            continue
        raise ConfigError(f"There is no setting {key!r}.{nearest(key, known)}", where=override)


def _check_kinds(overrides: Sequence[str], base: Any, cfg: Any) -> None:
    """Words in place of a number, or anything in place of true or false, are refused at once."""
    from omegaconf import OmegaConf

    for override in overrides:
        key = key_of(override)
        before, now = OmegaConf.select(base, key), OmegaConf.select(cfg, key)
        if isinstance(before, bool):
            fits, expected = now is None or isinstance(now, bool), "true or false"
        else:
            number = isinstance(before, int | float) and key not in NUMBERS_OR_WORDS
            fits, expected = not (number and isinstance(now, str)), "a number"
        if not fits:
            raise ConfigError(
                f"The value of {key!r} is of the wrong kind.",
                where=override,
                seen=repr(now),
                expected=expected,
            )


def _flatten(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")


def _check_complete(cfg: Any, command: str) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"A setting is missing: {', '.join(missing)}.",
            where=f"{command}",
            expected=f"{missing[0]}=…",
            remedy=f"for example: lesionseg {command} {COMMANDS[command].examples[0]}",
        )
