"""Make the help of a command from the comments of its YAML files."""

import re
from pathlib import Path

from lesionseg.cli.compose import files_of, groups
from lesionseg.config import conf_dir


def summary(command: str) -> str:
    """Return the sentence that describes the command: the first comment of its file."""
    return first_comment(conf_dir() / f"{command}.yaml")


def examples(command: str) -> list[str]:
    """Return the settings of each example in the command's file."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^# Example: (.*)$", text, re.MULTILINE)


def most_used_settings(command: str) -> str:
    """Return the settings that most users change, or "" if the command's file lists none."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^# Most used: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def help_page(command: str, program: str | None = None) -> str:
    """Return examples, settings, groups and options of the command, with their comments."""
    start = f"{program} {command}" if program else f"python scripts/{command}.py"
    lines = [f"{command}: {summary(command)}", "", "Examples:"]
    lines += [f"  {start} {example}" for example in examples(command)]
    if common := most_used_settings(command):
        lines += ["", f"Most used: {common}"]
    lines += ["", "Settings (key=value, or section.key=value):"]
    for file in files_of(command):
        lines += [f"  {line}" for line in setting_lines(file)]
    for group, options in groups(command).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        for option in options:
            file = conf_dir() / group / f"{option}.yaml"
            lines += [f"  {group}={option:<20} {first_comment(file)}"]
            if group != "experiment":
                lines += [f"    {line}" for line in setting_lines(file)]
    lines += ["", "The error for a mistyped key names the nearest key."]
    lines += ["--config-dir DIR adds your own options. --cfg prints the settings and stops."]
    lines += ["--multirun runs every combination of a=1,2."]
    return "\n".join(lines)


def setting_lines(path: Path) -> list[str]:
    """Return the lines of a file without its list of defaults and its full-line comments."""
    text = path.read_text(encoding="utf-8")
    # the list is written in one line, `defaults: [_self_]`, or in indented lines
    text = re.sub(r"^defaults:(?: \[.*\]\n|\n(?:  .*\n)+)", "", text, flags=re.MULTILINE)
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def first_comment(path: Path) -> str:
    """Return the first comment of a file that is not a directive of Hydra."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()
