"""docs/settings.md names every key of conf/, with its default."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lesionseg.cli import COMMANDS, conf_dir

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
OPTIONS = [
    (path.parent.name, path.stem)
    for path in sorted(conf_dir().glob("*/*.yaml"))
    if path.parent.name != "experiment"
]
INNER = ("_target_", "_partial_", "_recursive_", "defaults")


def keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a file by its full name."""
    for name, value in node.items():
        key = f"{prefix}.{name}" if prefix else name
        if name in INNER:
            continue
        if isinstance(value, dict):
            yield from keys(value, key)
        else:
            yield key, value


def shown(value: Any) -> str:
    """A value as the page writes it."""
    if isinstance(value, str) and value.startswith("${oc.select:"):
        value = yaml.safe_load(value[:-1].rpartition(",")[2])
    if value == "???":
        return "required"
    return value if isinstance(value, str) else json.dumps(value)


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def defaults(section: str) -> dict[str, str]:
    """The second cell of each row, by the first."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", SECTIONS[section], re.MULTILINE)
    return {key: cell.strip("`") for key, cell in rows}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_s_own_settings_stand_there_with_their_defaults(command: str) -> None:
    own = {key: shown(value) for key, value in keys(read(conf_dir() / f"{command}.yaml"))}
    assert defaults(f"Command `{command}`") == own


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_s_settings_stand_there(group: str, option: str) -> None:
    section, rows = SECTIONS[f"Group `{group}`"], defaults(f"Group `{group}`")
    (line,) = (text for text in section.splitlines() if text.startswith(f"| `{group}={option}`"))
    for key, value in keys(read(conf_dir() / group / f"{option}.yaml"), group):
        assert key in rows
        told = rows[key] == shown(value) or f"`{key}={shown(value)}`" in line
        assert told or value == option, f"{key}={shown(value)}"


def test_the_page_names_no_setting_that_is_not_there() -> None:
    known = {
        key
        for path in conf_dir().glob("*/*.yaml")
        for key, _ in keys(read(path), "" if path.parent.name == "experiment" else path.parent.name)
    }
    named = {key for name in SECTIONS if name.startswith("Group") for key in defaults(name)}
    assert named <= known
