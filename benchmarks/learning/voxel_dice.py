"""Dice of a tool's voxels before candidates are formed: at p ≥ ½ and at the best threshold."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset
from lesionseg.io.cases import read_case

THRESHOLDS = np.array([0.5, *np.arange(0.05, 0.96, 0.05), 0.97, 0.99])  # probabilities


def voxel_dice(
    folder: Path, cases: Sequence[CaseFiles], dataset: Dataset
) -> dict[str, float | None]:
    """Compute the mean Dice over the cases that have a lesion.

    The best threshold is chosen on the scored cases themselves, so no tool could know it.

    Args:
        folder: Contains log-odds `[1, *spatial]` of each case as CASE.npy.
        cases: The scored cases.
        dataset: The dataset of the cases.

    Returns:
        `dice_half` at p ≥ ½, `dice_best` and `best_threshold`; None if no case has a lesion.
    """
    found = list(_dice(folder, cases, dataset))
    if not found:
        return {"dice_half": None, "dice_best": None, "best_threshold": None}
    mean = np.mean(found, axis=0)
    best = int(mean.argmax())
    return {
        "dice_half": float(mean[0]),
        "dice_best": float(mean[best]),
        "best_threshold": float(THRESHOLDS[best]),
    }


def _dice(
    folder: Path, cases: Sequence[CaseFiles], dataset: Dataset
) -> Iterator[NDArray[np.float64]]:
    """Yield the Dice `[thresholds]` of each case that has a lesion."""
    odds_at = np.log(THRESHOLDS) - np.log1p(-THRESHOLDS)
    for files in cases:
        reference = read_case(files, dataset).reference
        if reference is None or reference.labels is None or not reference.labels.any():
            continue
        lesion = reference.labels > 0
        odds = np.load(folder / f"{files.case}.npy").max(axis=0)
        drawn = np.array([(odds >= threshold).sum() for threshold in odds_at])
        hit = np.array([(odds[lesion] >= threshold).sum() for threshold in odds_at])
        yield 2 * hit / (drawn + lesion.sum())
