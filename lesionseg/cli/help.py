"""The help texts (`--help`) from comments of YAML files: commands, examples, frequent keys."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill, wrap

from lesionseg.cli.compose import options_of_groups
from lesionseg.config import COMMANDS, conf_dir, files_of
from lesionseg.errors import ConfigError, suggest
from lesionseg.extra import WITHOUT_COMMAND, has_extra

_WIDTH = 80  # columns of a terminal
_EVERYTHING = "all"
_COLUMN = 24  # in which the descriptions begin


def summary(command: str) -> str:
    """Return the sentence that describes a command: the first comment of `conf/<command>.yaml`."""
    return first_comment(conf_dir() / f"{command}.yaml")


def command_list() -> str:
    """Return the list of commands as text: an entry for each command and each missing extra."""
    missing = [name for name in WITHOUT_COMMAND if not has_extra(name)]
    names = [*COMMANDS.kinds, *missing]
    sentences = dict.fromkeys(names, "is missing: this installation lacks the extra.")
    sentences |= {name: summary(name) for name in COMMANDS}
    # the sentences begin in column 12: 2 spaces, 9 for the name, and a space
    return "\n".join(
        fill(sentence, _WIDTH, initial_indent=f"  {name:<9} ", subsequent_indent=" " * 12)
        for name, sentence in sentences.items()
    )


def examples(command: str) -> list[str]:
    """Return the overrides of each example of a command.

    The examples are the lines `# Example: …` in `conf/<command>.yaml`.
    """
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^# Example: (.*)$", text, re.MULTILINE)


def most_used_settings(command: str) -> list[str]:
    """Return the keys that most users change, in the order of the file; empty if the file has none.

    The keys are in the line `# Most used: …` in `conf/<command>.yaml`.
    """
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    match = re.search(r"^# Most used: (.*)$", text, re.MULTILINE)
    return match[1].split() if match else []


def help_page(command: str, program: str | None, topic: str) -> str:
    """Return the help of a command, in lines of at most 80 columns.

    Args:
        command: The command.
        program: The program's name in the examples. None means the script of the repository.
        topic: A group or section whose settings are listed, or `all`. For "", the page has
            examples, the most used settings, and the list of topics.

    Raises:
        ConfigError: If the command has no such topic.
    """
    # a page on one topic, or on all settings
    line_of = dict(
        _setting_entries([line for file in files_of(command) for line in setting_lines(file)])
    )
    options_of = options_of_groups(command)
    sections = {key.partition(".")[0] for key in line_of if "." in key}
    lines = _group_lines(topic, options_of[topic]) if topic in options_of else []
    if topic in sections:  # a command may add settings to a group
        lines_of_section = [line for key, line in line_of.items() if key.startswith(f"{topic}.")]
        lines += [f"{topic}.key=value:", *_fit_lines(lines_of_section)]
    if lines:
        return "\n".join(lines)
    if topic == _EVERYTHING:
        lines = ["key=value, or section.key=value:", *_fit_lines(line_of.values())]
        for group, options in options_of.items():
            lines += ["", *_group_lines(group, options)]
        return "\n".join(lines)
    if topic:
        near = suggest(topic, [*options_of, *sections, _EVERYTHING])
        raise ConfigError(f"--help={topic}: {command} has no group or section of this name.{near}")
    # the overview of the command
    start = f"{program} {command}" if program else f"python scripts/{command}.py"
    lines = [*wrap(f"{command}: {summary(command)}", _WIDTH), "", "Examples:"]
    for example in examples(command):
        lines.append(_break_lines(f"{start} {example}"))
    lines += ["", "Most used (key=value):"]
    for group, options in options_of.items():
        for option in options:
            in_group = _setting_entries(
                setting_lines(conf_dir() / group / f"{option}.yaml"), f"{group}."
            )
            line_of = {**dict(in_group), **line_of}  # the first option that has a key counts
    for key in most_used_settings(command):
        # the comment at the end of the line; a group has its options instead
        comment = line_of.get(key, "").partition(" # ")[2]
        lines += _align(key, comment or f"{', '.join(options_of[key])} (--help={key})")
    topics = dict.fromkeys((*options_of, *sorted(sections)))
    more = ", ".join(f"--help={name}" for name in (*topics, _EVERYTHING))
    lines += ["", *wrap(f"More: {more}", _WIDTH, break_on_hyphens=False)]
    lines += [f"--help={_EVERYTHING} lists every setting.", ""]
    lines += ["The error for a mistyped key suggests the nearest key."]
    lines += ["--config-dir DIR adds your own options. --cfg prints the settings and stops."]
    lines += ["--multirun runs every combination of a=1,2. --json prints the result as JSON."]
    return "\n".join(lines)


def _setting_entries(lines: Iterable[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key, such as `trainer.devices`, and the YAML line of each setting.

    An indented line belongs to the section of the last line that is not indented. `prefix` is put
    before each key.
    """
    section = ""
    for line in lines:
        name = line.strip().partition(":")[0]
        if line.startswith(" "):
            yield f"{prefix}{section}.{name}", line
        else:
            section = name
            yield f"{prefix}{name}", line


def _group_lines(group: str, options: Iterable[str]) -> list[str]:
    """Return the help lines of a group: each option with its description and its settings.

    An option of the group `experiment` has no lines for settings, because its settings belong to
    other groups.
    """
    lines = [f"Group {group} (group=option; its settings are {group}.key=value):"]
    for option in options:
        file = conf_dir() / group / f"{option}.yaml"
        lines += _align(f"{group}={option}", first_comment(file))
        if group != "experiment":  # a list of other groups' settings
            lines += _fit_lines(setting_lines(file), indent=4)
    return lines


def _align(name: str, text: str) -> list[str]:
    """Return help lines with a name in the left column, and its wrapped text in the right column.

    A name that is too long for the left column has a line of its own.
    """
    lines = wrap(text, _WIDTH - _COLUMN, break_long_words=False) or [""]
    if len(name) + 4 > _COLUMN:  # with two spaces on each side
        return [f"  {name}", *(" " * _COLUMN + line for line in lines)]
    further_lines = [" " * _COLUMN + line for line in lines[1:]]
    return [f"  {name:<{_COLUMN - 2}}{lines[0]}".rstrip(), *further_lines]


def _break_lines(example: str) -> str:
    """Break a long command into lines for the shell. All lines but the last end in a backslash."""
    # 4 columns are for the margin and the backslash
    lines = wrap(example, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n      ".join(lines)


def _fit_lines(lines: Iterable[str], indent: int = 2) -> list[str]:
    """Indent the YAML lines of settings. A comment beyond 80 columns goes below its key."""
    fitted: list[str] = []
    for line in lines:
        setting, mark, comment = (" " * indent + line).partition(" # ")
        if not mark or len(line) + indent <= _WIDTH:
            fitted.append(" " * indent + line)
            continue
        # the comment is indented by 4 more than its key
        margin = " " * (len(setting) - len(setting.lstrip()) + 4) + "# "
        fitted.append(setting.rstrip())
        fitted += wrap(comment, _WIDTH, initial_indent=margin, subsequent_indent=margin)
    return fitted


def setting_lines(path: Path) -> list[str]:
    """Return the lines of a YAML file that are settings, including their trailing comments.

    The list of Hydra's defaults, lines with only a comment and empty lines are left out.
    """
    text = path.read_text(encoding="utf-8")
    # the list is written in one line, `defaults: [_self_]`, or in indented lines
    text = re.sub(r"^defaults:(?: \[.*\]\n|\n(?:  .*\n)+)", "", text, flags=re.MULTILINE)
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def first_comment(path: Path) -> str:
    """Return the first comment of a YAML file, without its `#`. A directive of Hydra is skipped."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()
