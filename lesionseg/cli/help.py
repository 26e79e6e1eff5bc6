"""The page of help of a command, and that of a group, from the configuration files themselves."""

import re
from pathlib import Path

from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import conf_dir, groups
from lesionseg.cli.overrides import nearest
from lesionseg.errors import ConfigError


def help_page(command: str) -> str:
    """The command's page of help, from the first comment of each configuration file."""
    root, entry = conf_dir(), COMMANDS[command]
    lines = [f"{command}: {entry.summary}.", "", "Examples:"]
    lines += [f"  python scripts/{command}.py {example}" for example in entry.examples]
    lines += ["", "Settings (key=value):"]
    lines += [f"  {line}" for line in _own_settings(root / f"{command}.yaml")]
    for group, options in groups(command).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        lines += [
            f"  {group}={o:<20} {_first_comment(root / group / f'{o}.yaml')}" for o in options
        ]
    lines += ["", "Any setting of any group can be overridden; a mistyped one names the nearest."]
    lines += (
        [f"`{command} --help GROUP` prints the settings of a group."] if groups(command) else []
    )
    lines += [f"`{command} … --cfg` prints the whole configuration of a command line, and stops."]
    return "\n".join(lines)


def group_page(command: str, group: str) -> str:
    """Every option of a group, as its file has it; raises `ConfigError` for one that is not there.

    >>> print(group_page("train", "optim").splitlines()[0])
    === optim=adamw ===
    """
    known = groups(command)
    if group not in known:
        raise ConfigError(
            f"{command} has no group {group!r}.{nearest(group, known)}",
            where="--help",
            expected=" | ".join(known) or "no group",
        )
    files = {option: conf_dir() / group / f"{option}.yaml" for option in known[group]}
    return "\n".join(
        f"=== {group}={option} ===\n{file.read_text(encoding='utf-8')}"
        for option, file in files.items()
    )


def _own_settings(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").split("_target_:", 1)[1]
    return [line for line in text.splitlines()[1:] if re.match(r"^\w+: *\S", line)]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()
