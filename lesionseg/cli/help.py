"""The page of help of a verb, from the first comment of each configuration file."""

import re
from pathlib import Path

from lesionseg.cli.compose import conf_dir, groups
from lesionseg.cli.verbs import VERBS


def help_page(verb: str) -> str:
    """The verb's page of help, from the first comment of each configuration file."""
    root, entry = conf_dir(), VERBS[verb]
    lines = [f"{verb}: {entry.summary}.", "", "Examples:"]
    lines += [f"  python scripts/{verb}.py {example}" for example in entry.examples]
    lines += ["", "Settings (key=value):"]
    lines += [f"  {line}" for line in _own_settings(root / f"{verb}.yaml")]
    for group, options in groups(verb).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        lines += [
            f"  {group}={o:<20} {_first_comment(root / group / f'{o}.yaml')}" for o in options
        ]
    lines += ["", "Any setting of any group can be overridden; a mistyped one names the nearest."]
    return "\n".join(lines)


def _own_settings(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").split("_target_:", 1)[1]
    return [line for line in text.splitlines()[1:] if re.match(r"^\w+: *\S", line)]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()
