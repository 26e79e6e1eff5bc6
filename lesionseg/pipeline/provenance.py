"""Provenance of results: versions, commit, machine, seed, data digest; no path, no case name."""

import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.config import DataConfig
from lesionseg.core import CaseFiles, Dataset
from lesionseg.io.files import digest_of
from lesionseg.phantoms import SETTINGS
from lesionseg.version import __version__

if TYPE_CHECKING:
    from lesionseg.pipeline.dataset_inspection import DatasetInspection

PACKAGES = ("torch", "monai", "nibabel", "pytorch-lightning", "numpy", "hydra-core")
# settings by which references are read; the report reads them again by the same rules
_RULES = ("min_readers", "merge_labels", "annotations")


def scores_provenance(settings: Mapping[str, Any], dataset: Dataset | None) -> dict[str, Any]:
    """Return the provenance of scores: version, date, rules for reading references, dataset.

    The keys `dataset`, `convention` and `simulated` are left out without a dataset. `simulated` is
    True if lesionseg simulated the dataset's folder, or the dataset's name says so.

    Args:
        settings: The settings that contain the rules. Rules that are not set are left out.
        dataset: The dataset; None for masks without a dataset.
    """
    entries: dict[str, Any] = {"lesionseg": __version__, "date": time.strftime("%Y-%m-%d")}
    entries |= {rule: settings[rule] for rule in _RULES if settings.get(rule)}
    if dataset is None:
        return entries
    return entries | {
        "dataset": dataset.name,
        "convention": dataset.layout,
        # a folder that lesionseg simulated has the file of its settings
        "simulated": (dataset.root / SETTINGS).is_file() or "simulated" in dataset.name.lower(),
    }


def training_provenance(
    inspection: "DatasetInspection", data: DataConfig, seed: int, device: str
) -> dict[str, Any]:
    """Return the provenance of a training: that of scores, software, machine, seed and data digest.

    `git_commit` is the commit of lesionseg's clone, with `+` at the end if files were changed. It
    is None if git fails, or if lesionseg was installed without its repository. Packages that are
    not installed are left out.

    Args:
        inspection: The dataset and the digests of its files.
        data: The settings by which references are read.
        seed: The seed of the training.
        device: `cuda` or `cpu`.
    """
    import torch

    packages: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = torch.cuda.get_device_name(device)
    dataset = inspection.dataset
    return {
        **scores_provenance(data.to_plain(), dataset),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "device": machine,
        "seed": seed,
        "data_sha256": digest_of(
            "".join(inspection.digests[files.case] for files in dataset.cases)
        ),
    }


def training_counts(cases: Iterable[CaseFiles]) -> dict[str, int]:
    """Return the numbers of training patients and training scans, for the provenance."""
    trained = list(cases)
    patients = {files.patient for files in trained}
    return {"training_patients": len(patients), "training_scans": len(trained)}


def _git_commit() -> str | None:
    """Return the commit of lesionseg's clone, with `+` at the end if files were changed.

    Return None if lesionseg does not run from a clone, or if git is missing, fails or needs more
    than 10 seconds.
    """
    here = Path(__file__).resolve().parent
    # 12 digits of the commit, never a tag, and `+` if tracked files were changed
    describe_head = "describe --always --abbrev=12 --exclude=* --dirty=+"
    with suppress(OSError, subprocess.SubprocessError):
        # without a .git here, git would find the repository of a parent folder
        git_folder = (here.parents[1] / ".git").resolve(strict=True)
        command = ["git", "-C", str(git_folder.parent), *describe_head.split()]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return result.stdout.strip()
    return None
