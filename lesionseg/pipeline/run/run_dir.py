"""The run directory: claimed by one configuration, resumed by the same, refused to another."""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lesionseg.errors import ConfigError, OutputError
from lesionseg.io.atomic import write_text

CLAIM = "config.yaml"
# settings that do not change the result: a whole group, or one of its settings
FREE = (
    "debug",
    "logger",
    "report",
    "run_dir",
    "data.cache_dir",
    "data.local_dir",
    "data.local_gb",
    "data.parallel_folds",
    "trainer.checkpoint_every_minutes",
    "trainer.lightning.logger",
    "trainer.lightning.profiler",
    "trainer.log_every",
    "trainer.progress",
    "trainer.workers",
)


def default_run_dir(data_root: str, architecture: str) -> Path:
    """`runs/<dataset>_<model>_<time>` under the current folder."""
    name = re.sub(r"[^\w.-]+", "-", Path(data_root).resolve().name) or "data"
    return Path("runs") / f"{name}_{architecture}_{time.strftime('%Y%m%d-%H%M%S')}"


def check_claim(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run directory that another configuration made.

    Raises `ConfigError` naming the settings that differ, and `OutputError` when the path is a file.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise OutputError("The run directory is a file.", where=run_dir, remedy="name another one.")
    if not is_claimed(run_dir):
        return
    before = yaml.safe_load((run_dir / CLAIM).read_text(encoding="utf-8"))
    makers = [_command(c) for c in (before, config)]
    if makers[0] != makers[1]:  # every setting of one command would differ from the other's
        raise ConfigError(
            f"This run directory belongs to {makers[0]}.",
            where=run_dir,
            remedy=f"name another run_dir= for {makers[1]}; in the same parent folder it finds "
            "the cases that are already prepared.",
        )
    changed = sorted(_differences(before, dict(config)))
    if changed:
        raise ConfigError(
            "This run directory belongs to another configuration.",
            where=run_dir,
            seen="; ".join(changed),
            remedy="name another run_dir=, or give the same settings to resume.",
        )


def is_claimed(run_dir: Path) -> bool:
    """Whether some configuration has made this run directory its own."""
    return (run_dir / CLAIM).is_file()


def claim(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration into the run directory, making it if need be."""
    check_claim(run_dir, config)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("The run directory cannot be made.", where=run_dir) from error
    write_text(run_dir / CLAIM, yaml.safe_dump(dict(config), sort_keys=False))


def _command(config: Mapping[str, Any]) -> str:
    """The recipe that a configuration calls: `train`, `prepare` or `tune`."""
    return str(config.get("_target_", "")).rpartition(".")[2]


def _differences(before: Any, now: Any, key: str = "") -> Iterable[str]:
    """`key: old → new` for every leaf that differs, the free settings left out."""
    if isinstance(before or now, dict) and isinstance(now or {}, dict):
        before, now = before or {}, now or {}
        for name in [*before, *(n for n in now if n not in before)]:
            inner = f"{key}.{name}" if key else name
            if inner not in FREE:
                yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield f"{key}: {before} → {now}"
