"""Run a command on the terminal: printed outcome or error, `--json`, `-m`, signals, `private`."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from lesionseg.child_process import STOP_SIGNALS
from lesionseg.cli.compose import compose, compose_plain, key_of, override_list, read_flags
from lesionseg.cli.help import command_list, help_page
from lesionseg.config import (
    COMMANDS,
    InfoConfig,
    TrainConfig,
    conf_dir,
    read,
    require_given,
)
from lesionseg.errors import (
    INTERRUPTED,
    NOTHING_RAN,
    WRONG_SETTING,
    ConfigError,
    LesionsegError,
    suggest,
)
from lesionseg.extra import find_extra
from lesionseg.host_memory import pause_collection
from lesionseg.pipeline.log import RepeatFilter, progress_bars
from lesionseg.pipeline.outcome import Outcome, find_recipe
from lesionseg.version import __version__

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lesionseg COMMAND OVERRIDES…`, the entry point of the program. Return the exit status.

    Without a command, the list of commands is printed. For an unknown command the status is 2.

    Args:
        argv: The words after `lesionseg`; None for those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS.kinds:
        return run(arguments[0], arguments[1:], program="lesionseg")
    if arguments == ["--version"]:
        print_line(f"lesionseg {__version__}")
    elif not arguments or arguments[0] in ("-h", "--help", "help"):
        print_line("lesionseg COMMAND [group=option] [key=value] …\n")
        print_line(command_list())
        print_line("\n`lesionseg COMMAND --help` shows its groups, settings and examples.")
    else:
        sys.stderr.write(f"Unknown command {arguments[0]!r}.{suggest(arguments[0], COMMANDS)}\n")
        return WRONG_SETTING
    return 0


def run(command: str, argv: Sequence[str], *, program: str | None = None) -> int:
    """Run one command and return its exit status. Print its outcome, or its error as a sentence.

    The function also sets up the logging of the process, and makes SIGTERM and SIGUSR1 act like
    Ctrl-C. These flags change its behaviour:

    - `--cfg` and `--help` print settings and help, and do not run the command.
    - `--multirun` runs the command once for each of several values of a setting.
    - `--json` prints the outcome as JSON.

    Args:
        command: The name of the command.
        argv: Its overrides and flags.
        program: The program's name in the examples of its help. None means the script of the
            repository, such as `python scripts/train.py`.

    Returns:
        0 if all is done, 3 if some cases failed, 1 if there is no result, 2 for a wrong setting
        (also if a training runs out of memory) and 130 after Ctrl-C, SIGTERM or SIGUSR1.
    """
    if (topic := _help_topic(argv)) is not None:
        return _print_help(command, program, topic)
    # other packages show only warnings: their further messages, such as on fonts, help no user
    terminal = _TerminalHandler()
    terminal.setLevel(logging.INFO)  # details go to the log of a run
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[terminal])
    logging.getLogger("lesionseg").setLevel(logging.DEBUG)
    _end_at_stop_signals()
    # Waiting threads of libgomp spin, so two commands on the same cores would halve each other's
    # speed. With this limit both are fast; a single command has 0.99 of its speed (benchmarks/).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    can_continue = command == "predict"  # it finds the finished scans in its output
    as_json = "--json" in argv or "-j" in argv
    report_error = partial(_report_error, as_json=as_json)
    try:
        flags, overrides = read_flags(argv, command)
        if "--multirun" in flags and "--cfg" not in flags:
            can_continue |= any(key_of(override) == "run_dir" for override in overrides)
            return multirun(command, overrides)
        if "--cfg" not in flags:
            cfg = compose(command, overrides)
            # Without run_dir, train, prepare and tune begin in a new folder, whose name contains
            # the time. An experiment may set run_dir, too.
            can_continue |= isinstance(cfg, TrainConfig) and cfg.run_dir is not None
            with progress_bars():
                return print_outcome(run_recipe(command, cfg), as_json=as_json)
        import yaml

        plain = compose_plain(command, overrides)
        print_line(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())
        return 0
    except LesionsegError as error:
        status = WRONG_SETTING if isinstance(error, ConfigError) else NOTHING_RAN
        return report_error(status, str(error))
    except OSError as error:  # a file or folder without permission, a full disk
        return report_error(NOTHING_RAN, _explain_os_error(error))
    except (MemoryError, RuntimeError) as error:
        from lesionseg.ops.device_memory import first_line, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "Free memory, or use a machine with more of it."
        if can_continue:
            remedy += " The same command then continues."
        text = f"The memory ran out: {first_line(str(error))}. {remedy}"
        return report_error(NOTHING_RAN, text)
    except KeyboardInterrupt:
        text = "Stopped. The same command continues." if can_continue else "Stopped."
        return report_error(INTERRUPTED, text)


def _help_topic(argv: Sequence[str]) -> str | None:
    """Return the topic of the flag `--help=TOPIC` or `-h=TOPIC`; "" for a flag without a topic.

    Return None without such a flag.
    """
    for argument in argv:
        flag, _, topic = argument.partition("=")
        if flag in ("-h", "--help"):
            return topic
    return None


def _print_help(command: str, program: str | None, topic: str) -> int:
    """Print the help of a command, or of a group or section of its settings, and return a status.

    The status is 2 if there is no such topic, or if the command belongs to an extra that is not
    installed, otherwise 0. For the parameters, see `help_page`.
    """
    try:
        if COMMANDS.kinds[command] is None:
            find_extra(command)  # raises an error if the extra is missing
        print_line(help_page(command, program, topic))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_SETTING
    return 0


def run_recipe(command: str, cfg: Any) -> Outcome:
    """Check the paths in the settings, run a command with them, and return its outcome.

    Models that are named by an address are downloaded before. If `cfg.private` is true, as it
    always is for `serve`, only the owner can read the files that are written. Nothing is printed.
    """
    from lesionseg.cli.paths import check_paths, with_local_models

    check_paths(cfg)
    if not isinstance(cfg, InfoConfig):  # `info` states the address
        cfg = with_local_models(cfg)  # last, because a download takes minutes
    with private_files() if cfg.private else nullcontext():
        with pause_collection():  # the import takes a seventh less; the objects of torch stay
            function = find_recipe(command)
        outcome: Outcome = function(cfg)
    return outcome


@contextmanager
def private_files() -> Iterator[None]:
    """Create files with mode 0600 and folders with mode 0700 within the context, in all threads.

    The umask of the process is changed and restored.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def print_line(text: str) -> None:
    """Print a line to standard output, with `?` for characters that its encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def _explain_os_error(error: OSError) -> str:
    """Return an error of the operating system as a sentence: its path, its reason and a remedy."""
    reason = error.strerror or str(error) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{reason}. Check the permissions and the free space, or name another path."


def _report_error(status: int, text: str, *, as_json: bool) -> int:
    """Print the reason for which a command ended early to standard error, and return `status`.

    With `as_json`, print status and text also as a line of JSON to standard output.
    """
    sys.stderr.write(f"{text}\n" if status == INTERRUPTED else f"Error: {text}\n")
    if as_json:
        print_line(json.dumps({"exit_status": status, "error": text}))
    return status


def print_outcome(outcome: Outcome, *, as_json: bool = False) -> int:
    """Print the outcome of a command as text, or with `as_json` as one line of JSON.

    Return the exit status of the outcome. An outcome without content prints nothing.
    """
    if as_json:
        record = outcome.record()
        if record:  # further processes of a training have none
            status = {"exit_status": outcome.exit_status, "next": outcome.next}
            print_line(json.dumps({**status, **record}, default=str))
        return outcome.exit_status
    lines = outcome.summary()
    if outcome.next is not None:
        lines = [*lines, f"Next:    {outcome.next}"]
    if lines:
        print_line("\n".join(lines))
    return outcome.exit_status


def multirun(command: str, argv: Sequence[str]) -> int:
    """Run a command once for each value of `a=1,2`, in sequence or through a launcher of Hydra.

    For commands with a run directory, each job gets its own numbered folder unless `run_dir` is
    given. Other folders are not checked, because jobs may write to the same folder, as the shards
    of `predict` do. A failed job does not end the others. `sys.argv` is replaced, because Hydra
    reads the overrides from it.

    Args:
        command: The name of the command.
        argv: Its overrides.

    Returns:
        The highest exit status of the jobs that ran in this process, or 0 if none did.

    Raises:
        ConfigError: If Hydra refuses an override, or a launcher is not installed.
        LesionsegError: If jobs failed: the error of one of them, at the end. All are logged.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    overrides = override_list(command, argv, sweeps=True)
    try:  # Hydra's parser may refuse an override
        swept = _swept_keys(overrides)
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    names_run_dir = any(key_of(override) == "run_dir" for override in overrides)
    if "run_dir" in COMMANDS[command].model_fields and not names_run_dir:
        # jobs may begin in the same second, so each gets its number
        now = time.strftime("%Y%m%d-%H%M%S")
        overrides.append(f"run_dir='runs/{command}_{now}/${{hydra:job.num}}'")
    statuses: list[int] = []

    def run_job(cfg: Any) -> int:
        """Run one job, print its outcome, and append its exit status to `statuses`.

        An error is logged with the number of the job, and raised.
        """
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        try:
            require_given(command, plain)
            with progress_bars():
                statuses.append(print_outcome(run_recipe(command, read(COMMANDS[command], plain))))
        except LesionsegError as error:  # of several jobs that fail, Hydra raises only one error
            job = HydraConfig.get()
            swept_overrides = [text for text in job.overrides.task if key_of(text) in swept]
            log.error("Job %s (%s): %s", job.job.num, ", ".join(swept_overrides), error)
            raise
        return statuses[-1]

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises the original errors
    sys.argv = [command, "--multirun", *overrides]  # `hydra.main` reads its arguments only here
    try:
        with _restore_logging():
            as_hydra_program = hydra.main(
                version_base="1.3", config_path=str(conf_dir()), config_name=command
            )
            as_hydra_program(run_job)()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    # a launcher runs jobs in other processes, which raise if they fail and leave no status here
    return max(statuses, default=0)


def _swept_keys(overrides: Sequence[str]) -> set[str]:
    """Return the settings and groups that have several values in a multirun: `a` of `a=1,2`.

    The settings identify a job in a log line.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group for override in parsed if override.is_sweep_override()}


@contextmanager
def _restore_logging() -> Iterator[None]:
    """Restore the handlers and the level of the root logger at the end of the context.

    Hydra's jobs replace them. Hydra's handler keeps a reference to the current standard output. If
    a program closes that stream, as a test does, each later log line would be an error.
    """
    root = logging.getLogger()
    handlers = [*root.handlers]
    level = root.level
    try:
        yield
    finally:
        for handler in {*root.handlers} - {*handlers}:
            handler.close()
        root.handlers = handlers
        root.setLevel(level)


class _TerminalHandler(logging.StreamHandler[Any]):
    """A handler that prints to standard error. It prints the same warning of a reader only once."""

    def __init__(self) -> None:
        """Create the handler with a filter that drops repeated warnings of file readers."""
        super().__init__()
        self.addFilter(RepeatFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record to the current `sys.stderr`."""
        self.stream = sys.stderr  # a progress bar replaces sys.stderr, to print above the bar
        super().emit(record)


def _end_at_stop_signals() -> None:
    """Make SIGTERM and SIGUSR1 end this process like Ctrl-C, so that it can close its files.

    A forked child process gets the default action back, so that it ends at once. Outside of the
    main thread, which cannot set handlers, nothing changes.
    """
    with suppress(ValueError):  # only the main thread may set a handler
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=partial(signal.signal, number, signal.SIG_DFL))
