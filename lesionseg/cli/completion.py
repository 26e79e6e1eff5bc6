"""Completion by the tab key: `eval "$(lesionseg -sc install=bash)"`, as Hydra's own programs do."""

import os
from collections.abc import Mapping

from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import compose, groups, setting_names
from lesionseg.errors import one_of

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
