"""Several values of a setting: one run each, here in turn or through a launcher of jobs."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from lesionseg.cli.aliases import renamed_keys
from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import conf_dir, fitting, typed_overrides
from lesionseg.cli.overrides import key_of
from lesionseg.errors import ConfigError, pip_install


def multirun(command: str, argv: Sequence[str], call: Callable[[Any], int]) -> int:
    """Let Hydra expand `a=1,2` into one run each, in sequence or through a launcher plugin."""
    import hydra
    from hydra.errors import HydraException

    _require_launcher(argv)
    overrides = typed_overrides(command, argv)
    statuses: list[int] = []

    def task(cfg: Any) -> int:
        statuses.append(call(fitting(renamed_keys(cfg), command, overrides)))
        return statuses[-1]

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come out of Hydra as themselves
    try:
        sys.argv = [command, "--multirun", *overrides, *_run_dirs(command, overrides)]
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(task)()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0], where=" ".join(argv)) from error
    return max(statuses, default=0)  # a job elsewhere leaves none; if it fails, it raises here


def _require_launcher(argv: Sequence[str]) -> None:
    submitit = any(a.startswith("hydra/launcher=submitit") for a in argv)
    if submitit and find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise ConfigError(
            "This launcher needs the package hydra-submitit-launcher.",
            where="hydra/launcher",
            remedy=pip_install("slurm"),
        )


def _run_dirs(command: str, overrides: Sequence[str]) -> list[str]:
    """A run directory for each job where none is named; jobs may begin in the same second.

    Raises `ConfigError` where all of several jobs would share one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    named = [o for o in overrides if key_of(o) == "run_dir"]
    if "run_dir" not in COMMANDS[command].texts:
        return []
    if not named:
        return [f"run_dir='runs/{command}_{time.strftime('%Y%m%d-%H%M%S')}/${{hydra:job.num}}'"]
    several = any(
        o.is_sweep_override() for o in OverridesParser.create().parse_overrides(overrides)
    )
    if several and "${" not in named[-1]:
        raise ConfigError(
            "All jobs of this multirun would share one run directory.",
            where=named[-1],
            remedy="let it name what differs: 'run_dir=runs/cv/fold_${data.fold}'.",
        )
    return []
