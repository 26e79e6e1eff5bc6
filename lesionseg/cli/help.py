"""What a command offers: the page of its help, that of a group, and completion by the tab key."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import compose, config_dirs, groups, setting_names
from lesionseg.cli.overrides import nearest
from lesionseg.errors import ConfigError, one_of


def help_page(command: str, program: str = "python") -> str:
    """The command's page of help, from the first comment of each configuration file.

    Its examples begin with `program`, which is `python` for the scripts of the repository.
    """
    entry = COMMANDS[command]
    lines = [f"{command}: {entry.summary}.", "", "Examples:"]
    typed = f"python scripts/{command}.py" if program == "python" else f"{program} {command}"
    lines += [f"  {typed} {example}" for example in entry.examples]
    lines += ["", "Settings (key=value):"]
    lines += [f"  {line}" for line in _own_settings(_file(f"{command}.yaml"))]
    for group, options in groups(command).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        lines += [
            f"  {group}={o:<20} {_first_comment(_file(f'{group}/{o}.yaml'))}" for o in options
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
    files = {option: _file(f"{group}/{option}.yaml") for option in known[group]}
    return "\n".join(
        f"=== {group}={option} ===\n{file.read_text(encoding='utf-8')}"
        for option, file in files.items()
    )


def _file(name: str) -> Path:
    """A configuration's file, in our folder or an installed package's."""
    return next(root / name for root in config_dirs() if (root / name).is_file())


def _own_settings(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").split("_target_:", 1)[1]
    return [line for line in text.splitlines()[1:] if re.match(r"^\w+: *\S", line)]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()


_INSTALL = """_lesionseg() {
  mapfile -t COMPREPLY < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" lesionseg -sc query=bash)
  [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _lesionseg lesionseg"""
_UNINSTALL = "complete -r lesionseg"


def completion(action: str, environment: Mapping[str, str] = os.environ) -> str:
    """What the shell is to run or to offer.

    `action` is `install=bash`, `uninstall=bash` or `query=bash`, which reads `COMP_LINE` up to
    `COMP_POINT` and gives one proposal per line. Raises `ConfigError` for another.
    """
    known = ("install=bash", "uninstall=bash", "query=bash")
    one_of("action", action, known, where="-sc")
    if action != "query=bash":
        return _INSTALL if action == "install=bash" else _UNINSTALL
    line = environment.get("COMP_LINE", "")
    return "\n".join(proposals(line[: int(environment.get("COMP_POINT", len(line)))]))


def proposals(line: str) -> list[str]:
    """How the last word of a command line may go on, sorted.

    >>> proposals("lesionseg pre")
    ['predict', 'prepare']
    >>> proposals("lesionseg train optim=")
    ['optim=adamw', 'optim=sgd']
    """
    words = line.split()
    last = "" if line[-1:].isspace() or not words else words[-1]
    given = words[1:-1] if last else words[1:]
    if not given:
        return sorted(name for name in COMMANDS if name.startswith(last))
    if given[0] not in COMMANDS:
        return []
    return sorted(word for word in _words(given[0], last) if word.startswith(last))


def _words(command: str, last: str) -> list[str]:
    options, group = groups(command), last.partition("=")[0]
    if "=" in last:
        return [f"{group}={option}" for option in options.get(group, ())]
    settings = setting_names(compose(command, [], complete=False))
    return [f"{name}=" for name in (*options, *settings)]
