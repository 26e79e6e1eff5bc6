"""Where configurations lie: ours, those of installed packages, and folders of the user's own."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

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
