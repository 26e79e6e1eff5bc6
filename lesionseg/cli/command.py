"""What runs a command: its name and overrides in, an exit status out, errors as sentences."""

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from lesionseg import __version__
from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import compose
from lesionseg.cli.help import group_page, help_page
from lesionseg.cli.json_log import say_error, start_logging
from lesionseg.cli.multirun import multirun
from lesionseg.cli.overrides import nearest, read_flags
from lesionseg.errors import ConfigError, LesionsegError


def main(argv: Sequence[str] | None = None) -> int:
    """`lesionseg COMMAND OVERRIDES…`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run(arguments[0], arguments[1:], program="lesionseg")
    if arguments and arguments[0] in ("-sc", "--shell_completion"):
        return _guarded(partial(_complete, arguments[1:]))
    if arguments == ["--version"]:
        _say(f"lesionseg {__version__}")
        return 0
    if arguments and arguments[0] not in ("-h", "--help", "help"):
        near = nearest(arguments[0], COMMANDS)
        say_error(f"Unknown command {arguments[0]!r}.{near}")
        return 2
    _say("lesionseg COMMAND [group=option] [key=value] …\n")
    for name, entry in COMMANDS.items():
        _say(f"  {name:<9} {entry.summary}")
    _say("\n`lesionseg COMMAND --help` shows its groups, options and examples,")
    _say("`lesionseg COMMAND --help GROUP` the settings of a group,")
    _say('`eval "$(lesionseg -sc install=bash)"` completes them by the tab key.')
    return 0


def run(command: str, argv: Sequence[str], *, program: str | None = None) -> int:
    """Run one command with Hydra overrides; returns 0, 1 after an error, 2 after a mistyped one.

    `program` is what the examples of its help begin with; None: the script of the repository.
    """
    if {"-h", "--help"} & set(argv):
        return _guarded(partial(_help, command, argv, program or "python"))
    start_logging()
    _end_at_sigterm()
    debug = any(a.replace(" ", "").lower() == "debug=true" for a in argv)
    return _guarded(partial(_run, command, argv), debug)


def _end_at_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does; what is forked from it just ends."""
    process = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != process:
            os._exit(128 + number)
        raise KeyboardInterrupt

    with suppress(ValueError):  # only the first thread may
        signal.signal(signal.SIGTERM, end)


def _run(command: str, argv: Sequence[str]) -> int:
    flags, overrides = read_flags(argv)
    if "--multirun" in flags:
        return multirun(command, overrides, call)
    if "--cfg" in flags:
        return _show(compose(command, overrides, complete=False))
    return call(compose(command, overrides))


def _guarded(action: Callable[[], int], debug: bool = False) -> int:
    """The exit status of an action; errors become sentences unless `debug`."""
    try:
        return action()
    except LesionsegError as error:
        if debug:
            raise
        say_error(f"Error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        say_error("Interrupted; the same command resumes, with run_dir= if it had none.")
        return 130


def _complete(arguments: Sequence[str]) -> int:
    from lesionseg.cli.help import completion

    _say(completion(arguments[0] if arguments else ""))
    return 0


def call(cfg: Any) -> int:
    """Build the settings, call the recipe, say what came out; returns the exit status."""
    outcome = outcome_of(cfg)
    if lines := outcome.summary():
        _say("\n".join(lines))
    return int(outcome.exit_status)


def outcome_of(cfg: Any) -> Any:
    """Build the settings and call the recipe: what it returns. Raises `ConfigError`."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from lesionseg.io.formats.guard import set_limits

    plain = _plain(cfg)
    recipe = {key: value for key, value in plain.items() if key not in ("debug", "limits")}
    try:
        if "limits" in plain:  # of the process, not of one recipe
            set_limits(instantiate(plain["limits"], _convert_="all"))
        # partial: the settings are built here, the recipe is called outside, so that what it
        # raises is not taken for a wrong setting
        call = instantiate({**recipe, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, LesionsegError):
            raise error.__cause__ from None
        raise _wrong_setting(error, plain) from error
    return call(**_config_for(plain))


def _wrong_setting(error: Exception, plain: Mapping[str, Any]) -> ConfigError:
    """What Hydra could not build, as a sentence; a setting that is none names the nearest."""
    group = str(error).rpartition("full_key: ")[2].strip()
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None:
        return ConfigError("A setting is wrong.", where=group or None, seen=str(error))
    known = [key for key in plain.get(group, ()) if key not in ("_target_", unknown[1])]
    return ConfigError(
        f"{group} takes no setting {unknown[1]!r}.{nearest(unknown[1], known)}",
        where=f"{group}.{unknown[1]}",
        expected=", ".join(known),
    )


def _help(command: str, argv: Sequence[str], program: str) -> int:
    """The command's page, or those of the groups that are named."""
    named = [a for a in argv if not a.startswith("-") and "=" not in a]
    pages = [group_page(command, group) for group in named] or [help_page(command, program)]
    _say("\n".join(pages))
    return 0


def _show(cfg: Any) -> int:
    """Print a configuration as YAML, what is still to be given as `???`."""
    import yaml

    _say(yaml.safe_dump(_plain(cfg), sort_keys=False, allow_unicode=True).rstrip())
    return 0


def _plain(cfg: Any) -> dict[str, Any]:
    """A configuration as plain data; raises `ConfigError` for a reference to nothing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], where=error.full_key) from error
    return dict(plain)


def _config_for(plain: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration, as data, for the commands that keep it with their results."""
    command = COMMANDS[plain["_target_"].rpartition(".")[2]]
    return {"config": plain} if command.keeps_config else {}


def _say(text: str) -> None:
    """Write to standard output; a sign that its encoding lacks, as Windows' in a pipe, is a `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
