"""What runs a command: its name and overrides in, an exit status out, errors as sentences."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import compose
from lesionseg.cli.help import group_page, help_page
from lesionseg.cli.multirun import multirun
from lesionseg.cli.overrides import nearest
from lesionseg.errors import ConfigError, LesionsegError


def main(argv: Sequence[str] | None = None) -> int:
    """`lesionseg COMMAND OVERRIDES…`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run(arguments[0], arguments[1:])
    if arguments and arguments[0] not in ("-h", "--help"):
        near = nearest(arguments[0], COMMANDS)
        _say(f"Unknown command {arguments[0]!r}.{near}", error=True)
        return 2
    _say("lesionseg COMMAND [group=option] [key=value] …\n")
    for name, entry in COMMANDS.items():
        _say(f"  {name:<9} {entry.summary}")
    _say("\n`lesionseg COMMAND --help` shows its groups, options and examples,")
    _say("`lesionseg COMMAND --help GROUP` the settings of a group.")
    return 0


def run(command: str, argv: Sequence[str]) -> int:
    """Run one command with Hydra overrides; returns 0, 1 after an error, 2 after a mistyped one."""
    if {"-h", "--help"} & set(argv):
        return _help(command, argv)
    # ours alone: other packages' notes on fonts and plug-ins are no news to a user
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lesionseg").setLevel(logging.INFO)
    debug = any(a.replace(" ", "").lower() == "debug=true" for a in argv)
    try:
        if {"-m", "--multirun"} & set(argv):
            asked = [a for a in argv if a not in ("-m", "--multirun")]
            return multirun(command, asked, call)
        if "--cfg" in argv:
            return _show(compose(command, [a for a in argv if a != "--cfg"], complete=False))
        return call(compose(command, argv))
    except ConfigError as error:
        return _fail(error, debug, status=2)
    except LesionsegError as error:
        return _fail(error, debug, status=1)
    except KeyboardInterrupt:
        _say("Interrupted; the same command resumes, with run_dir= if it had none.", error=True)
        return 130


def call(cfg: Any) -> int:
    """Build the settings, call the recipe, say what came out; returns the exit status."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = _plain(cfg)
    recipe = {key: value for key, value in plain.items() if key != "debug"}
    try:
        # partial: the settings are built here, the recipe is called outside, so that what it
        # raises is not taken for a wrong setting
        call = instantiate({**recipe, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, LesionsegError):
            raise error.__cause__ from None
        raise ConfigError("A setting is wrong.", seen=str(error)) from error
    outcome = call(**_config_for(plain))
    _say("\n".join(outcome.summary()))
    return int(outcome.exit_status)


def _help(command: str, argv: Sequence[str]) -> int:
    """The command's page, or those of the groups that are named; returns the exit status."""
    named = [a for a in argv if not a.startswith("-") and "=" not in a]
    try:
        pages = [group_page(command, group) for group in named] or [help_page(command)]
    except ConfigError as error:
        return _fail(error, debug=False, status=2)
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


def _fail(error: LesionsegError, debug: bool, status: int) -> int:
    if debug:
        raise error
    _say(f"Error: {error}", error=True)
    return status


def _say(text: str, *, error: bool = False) -> None:
    (sys.stderr if error else sys.stdout).write(text + "\n")
