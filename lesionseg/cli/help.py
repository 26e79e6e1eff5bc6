"""What a command offers, from the comments of its YAML files: its help, and docs/settings.md."""

import re
from collections.abc import Iterable
from pathlib import Path

from lesionseg.cli.compose import groups
from lesionseg.config import COMMANDS, conf_dir


def summary(command: str) -> str:
    """What a command does, from the first line of its file."""
    return _first_comment(conf_dir() / f"{command}.yaml").partition(" does: ")[2]


def examples(command: str) -> list[str]:
    """What may be typed behind a command, from the same comment."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^# Example: (.*)$", text, re.MULTILINE)


def help_page(command: str, program: str | None = None) -> str:
    """The command's examples, settings, groups and options, with the comments of their files."""
    typed = f"{program} {command}" if program else f"python scripts/{command}.py"
    lines = [f"{command}: {summary(command)}", "", "Examples:"]
    lines += [f"  {typed} {example}" for example in examples(command)]
    lines += ["", "Settings (key=value, or section.key=value):"]
    lines += [f"  {line}" for file in _files(command) for line in _settings(file)]
    for group, options in groups(command).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        for option in options:
            file = conf_dir() / group / f"{option}.yaml"
            lines += [f"  {group}={option:<20} {_first_comment(file)}"]
            if group != "experiment":
                lines += [f"    {line}" for line in _settings(file)]
    lines += [
        "",
        "A mistyped setting names the nearest. --config-dir DIR adds your own options.",
    ]
    lines += ["--multirun runs every combination of a=1,2; --cfg prints the settings and stops."]
    return "\n".join(lines)


def settings_page() -> str:
    """docs/settings.md: every command, group and option as their files have them."""
    lines = [
        "# Every setting",
        "",
        "<!-- written by `make docs` from conf/*.yaml: change those -->",
        "",
        "A setting is written `key=value` behind the command, an option of a group `group=option`: "
        "`python scripts/train.py data.root=DIR optim=sgd optim.lr=0.02`. You must give a key "
        "with `???`; `null` means none, or that lesionseg decides. A plus adds what a class of "
        "your own takes: `+loss.power=3`. An unknown key is an error that names the nearest one.",
        "",
        "`--config-dir DIR` adds your own options. `DIR/experiment/mine.yaml`, which begins with "
        "`# @package _global_`, is then `experiment=mine`. DIR may be a package: "
        "`pkg://package.conf`. `--cfg` prints the settings and stops. `-i` and `-o` are `input=` "
        "and `output=`.",
    ]
    used: dict[str, list[str]] = {}
    for command in COMMANDS:
        for group in groups(command):
            used.setdefault(group, []).append(command)
        named = ", ".join(f"[`{group}`](#group-{group})" for group in groups(command))
        lines += ["", f"## Command `{command}`", "", f"{summary(command)[:1].upper()}"]
        lines[-1] += summary(command)[1:] + (f" Groups: {named}." if named else "")
        own = [line for line in _settings(conf_dir() / f"{command}.yaml") if line]
        lines += ["", "```yaml", *own, "```"] if own else []
    for group, commands in used.items():
        by = ", ".join(f"`{command}`" for command in commands)
        lines += ["", f"## Group `{group}`", "", f"Of {by}."]
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            if group == "experiment":  # a list of other groups' settings
                lines += ["", f"`experiment={file.stem}`: {_first_comment(file)}"]
                continue
            text = file.read_text(encoding="utf-8").strip()
            lines += ["", "```yaml", f"# {group}={file.stem}", text, "```"]
    return "\n".join(lines) + "\n"


def _files(command: str) -> Iterable[Path]:
    """A command's file, and those that it builds on."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    yield conf_dir() / f"{command}.yaml"
    for name in re.findall(r"^  - (\w+)$", text, re.MULTILINE):
        if name != "_self_":
            yield from _files(name)


def _settings(path: Path) -> list[str]:
    """A file's lines but for its defaults and its first comment."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^defaults:(?: \[.*\]\n|\n(?:  .*\n)+)", "", text, flags=re.MULTILINE)
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()
