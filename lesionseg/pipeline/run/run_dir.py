"""The run directory: claimed by one configuration and its cases, resumed by the same, refused to
another; and what made a result, without a path and without the name of a case.
"""

import hashlib
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import lesionseg
from lesionseg.core import Dataset, Role
from lesionseg.data.cache import source_hash
from lesionseg.errors import DatasetError, OutputError, require
from lesionseg.io.atomic import read_json, read_yaml, write_text
from lesionseg.plan.splits import Splits, roles_in

CLAIM = "config.yaml"
# settings that do not change the result: a whole group, or one of its settings
FREE = (
    "debug",
    "logger",
    "report",
    "run_dir",
    "data.cache_dir",
    "trainer.lightning.profiler",
    "trainer.workers",
)
PACKAGES = ("torch", "monai", "nibabel", "pytorch-lightning", "numpy", "hydra-core")
SPLITS = "splits.json"
_DEVELOPMENT = ("train", "validation")
_SHOWN = 5  # cases of each kind of change that the message names


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
    before = read_yaml(run_dir / CLAIM)
    makers = [_command(c) for c in (before, config)]
    require(  # every setting of one command would differ from the other's
        makers[0] == makers[1],
        f"This run directory belongs to {makers[0]}.",
        where=run_dir,
        remedy=f"name another run_dir= for {makers[1]}; in the same parent folder it finds "
        "the cases that are already prepared.",
    )
    changed = sorted(_differences(before, dict(config)))
    require(
        not changed,
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
    return str(config.get("command", ""))


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


def provenance(
    dataset: Dataset, config: Mapping[str, Any], seed: int, device: str
) -> dict[str, Any]:
    """Versions, git commit, machine, seed and a hash of all the dataset's files.

    `simulated`: whether the configuration simulated the data, or the dataset's name says so.
    """
    has_phantoms = bool(config.get("data", {}).get("phantoms"))
    return {
        "lesionseg": lesionseg.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": dict(_versions(PACKAGES)),
        "device": device_name(device),
        "seed": seed,
        "convention": dataset.convention,
        "data_sha256": data_hash(dataset),
        "simulated": has_phantoms or "simulated" in dataset.name.lower(),
    }


def data_hash(dataset: Dataset) -> str:
    """SHA-256 over `data.cache.source_hash` of every case, in the dataset's order."""
    whole = hashlib.sha256()
    for case in dataset.cases:
        whole.update(source_hash(case).encode())
    return whole.hexdigest()


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, `+` appended when it has changes."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git("rev-parse", "--short=12", "HEAD", cwd=here)
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def device_name(device: str) -> str:
    """A readable name of the processor or GPU that `device` stands for."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def refuse_other_cases(run: Path, splits: Splits) -> None:
    """Raise `DatasetError` where a claimed run began with other development cases or roles.

    Its network would be judged on cases that taught it. Test and external cases may come and go.
    Of a cross-validation, `splits` are those of the first fold.
    """
    path = run / SPLITS
    if not (is_claimed(run) and path.is_file()):
        return
    changes = list(_changes(roles_in(read_json(path), path, 0), splits.roles))
    if changes:
        raise DatasetError(
            "This run began with other cases, or with the same in other roles.",
            where=path,
            seen="; ".join(changes),
            remedy="name another run_dir= to train on the data as they are now, or bring back "
            "the cases as they were to resume.",
        )


def _changes(before: Mapping[str, Role], now: Mapping[str, Role]) -> Iterable[str]:
    """What happened to the development cases, a phrase a kind of change."""
    moves = {c: (before.get(c), now.get(c)) for c in sorted({*before, *now})}
    moves = {c: m for c, m in moves.items() if m[0] != m[1] and set(m) & set(_DEVELOPMENT)}
    kinds = {
        "added": [f"{c} ({new})" for c, (old, new) in moves.items() if old is None],
        "removed": [f"{c} ({old})" for c, (old, new) in moves.items() if new is None],
        "moved": [f"{c} ({old} → {new})" for c, (old, new) in moves.items() if old and new],
    }
    for kind, cases in kinds.items():
        if cases:
            rest = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
            yield f"{kind}: {', '.join(cases[:_SHOWN])}{rest}"
