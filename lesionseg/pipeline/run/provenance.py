"""What made a result: versions, commit, seeds, data hashes. No path and no case name."""

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lesionseg
from lesionseg.core import Dataset
from lesionseg.data.cache.case_cache import source_hash

PACKAGES = ("torch", "monai", "nibabel", "pytorch-lightning", "numpy", "hydra-core")


def provenance(dataset: Dataset, seed: int, device: str, simulated: bool) -> dict[str, Any]:
    """Versions, git commit, machine, seed and a hash of all the dataset's files."""
    return {
        "lesionseg": lesionseg.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": dict(_versions(PACKAGES)),
        "device": device,
        "seed": seed,
        "convention": dataset.convention,
        "data_sha256": data_hash(dataset),
        "simulated": simulated,
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


def is_simulated(settings: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether the configuration simulated the data, or the dataset says that it is simulated."""
    return bool(settings.get("phantoms")) or "simulated" in dataset.name.lower()
