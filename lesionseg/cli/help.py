"""Make the help of a command from the comments of its YAML files."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from lesionseg.cli.compose import files_of, groups
from lesionseg.config import conf_dir
from lesionseg.errors import ConfigError, suggest

_WIDTH = 80  # columns of a terminal
_EVERYTHING = "all"
_SETTING = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*?)(?:\s+# (?P<comment>.*))?")


def summary(command: str) -> str:
    """Return the sentence that describes the command: the first comment of its file."""
    return first_comment(conf_dir() / f"{command}.yaml")


def examples(command: str) -> list[str]:
    """Return the settings of each example in the command's file."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^# Example: (.*)$", text, re.MULTILINE)


def most_used_settings(command: str) -> list[str]:
    """Return the keys that most users change."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^# Most used: (.*)$", text, re.MULTILINE)
    return found[1].split() if found else []


def help_page(command: str, program: str | None = None, topic: str = "") -> str:
    """Return the help of a command, in lines of at most 80 columns.

    Args:
        command: the command.
        program: see `command.run`.
        topic: a group or section of the settings, whose settings are listed, or `all`. The page of
            "" has examples, the most used settings, and the topics.

    Raises:
        ConfigError: if the command has no such topic.
    """
    start = f"{program} {command}" if program else f"python scripts/{command}.py"
    if topic:
        return "\n".join(_topic_lines(command, topic))
    lines = [*wrap(f"{command}: {summary(command)}", _WIDTH), "", "Examples:"]
    for example in examples(command):
        lines += _broken(f"{start} {example}")
    lines += ["", "Most used (key=value):"]
    for key in most_used_settings(command):
        lines += _aligned(key, _comment_of(command, key), width=22)
    lines += ["", "More:"]
    for name, content in _topics(command).items():
        lines += _aligned(f"--help={name}", content, width=22)
    lines += ["", "The error for a mistyped key suggests the nearest key."]
    lines += ["--config-dir DIR adds your own options. --cfg prints the settings and stops."]
    lines += ["--multirun runs every combination of a=1,2."]
    return "\n".join(lines)


def _topics(command: str) -> dict[str, str]:
    """Return the groups and sections of a command, each with its options or keys."""
    topics = {group: ", ".join(options) for group, options in groups(command).items()}
    for section, lines in _sections(command).items():
        keys = [setting["key"] for setting in _settings(lines[1:])]
        topics[section] = ", ".join(keys)
    topics[_EVERYTHING] = "every setting of the command"
    return topics


def _sections(command: str) -> dict[str, list[str]]:
    """Return the lines of each section in the command's own files, by its key."""
    sections: dict[str, list[str]] = {}
    section: list[str] = []
    for line in _own_lines(command):
        if not line.startswith(" "):
            section = []
        elif len(section) == 1:  # the line before has no indent, so it is the head of a section
            sections[section[0].partition(":")[0]] = section
        section.append(line)
    return sections


def _own_lines(command: str) -> list[str]:
    """Return the setting lines of the command's file and of the files that it includes."""
    return [line for file in files_of(command) for line in setting_lines(file)]


def _topic_lines(command: str, topic: str) -> list[str]:
    """Return the lines of one topic. Raise `ConfigError` if it does not exist."""
    known = groups(command)
    sections = _sections(command)
    if topic == _EVERYTHING:
        lines = ["Settings (key=value, or section.key=value):"]
        lines += _fitted(_own_lines(command), indent=2)
        for group, options in known.items():
            lines += ["", *_group_lines(group, options)]
        return lines
    if topic in known:
        return _group_lines(topic, known[topic])
    if topic in sections:
        return [f"Section {topic} ({topic}.key=value):", *_fitted(sections[topic][1:], indent=0)]
    near = suggest(topic, [*known, *sections, _EVERYTHING])
    raise ConfigError(f"--help={topic}: {command} has no group or section of this name.{near}")


def _group_lines(group: str, options: Sequence[str]) -> list[str]:
    """Return the lines of a group: each option with its description and its settings."""
    lines = [f"Group {group} (group=option; its settings are {group}.key=value):"]
    for option in options:
        file = conf_dir() / group / f"{option}.yaml"
        lines += _aligned(f"{group}={option}", first_comment(file), width=22)
        if group != "experiment":  # a list of other groups' settings
            lines += _fitted(setting_lines(file), indent=4)
    return lines


def _comment_of(command: str, key: str) -> str:
    """Return the comment of a setting, such as `data.root`, or the options of a group."""
    group, _, name = key.rpartition(".")
    known = groups(command)
    if key in known:
        return f"{', '.join(known[key])} (--help={key})"
    lines = _own_lines(command)
    if group in known:
        files = [conf_dir() / group / f"{option}.yaml" for option in known[group]]
        lines = [line for file in files for line in setting_lines(file)]
    elif group:
        lines = _sections(command)[group]
    comments = [s["comment"] for s in _settings(lines) if s["key"] == name and s["comment"]]
    return comments[0] if comments else ""


def _settings(lines: Sequence[str]) -> Iterator[re.Match[str]]:
    """Yield the parts of each line that is a setting: indent, key, value and comment."""
    for line in lines:
        found = _SETTING.fullmatch(line)
        if found:
            yield found


def _aligned(name: str, text: str, *, width: int) -> list[str]:
    """Return a name and its text, wrapped in a column that begins after `width` characters."""
    lines = wrap(text, _WIDTH - width - 2, break_long_words=False) or [""]
    first = f"  {name:<{width - 2}}  {lines[0]}".rstrip()
    if len(name) > width - 2:
        return [f"  {name}", *(" " * (width + 2) + line for line in lines)]
    return [first, *(" " * (width + 2) + line for line in lines[1:])]


def _broken(example: str) -> list[str]:
    """Return a command in lines that a shell reads as one: all but the last end in a backslash."""
    lines = wrap(
        example,
        _WIDTH - 2,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _fitted(lines: Sequence[str], *, indent: int) -> list[str]:
    """Return setting lines. A comment that does not fit is moved below its key and wrapped."""
    fitted: list[str] = []
    for line in lines:
        found = _SETTING.fullmatch(line)
        if found is None or found["comment"] is None or len(line) + indent <= _WIDTH:
            fitted.append(" " * indent + line)
            continue
        margin = " " * (indent + len(found["indent"]))
        fitted.append(f"{margin}{found['key']}:{found['value']}")
        fitted += wrap(
            found["comment"],
            _WIDTH,
            initial_indent=f"{margin}    # ",
            subsequent_indent=f"{margin}    # ",
        )
    return fitted


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
