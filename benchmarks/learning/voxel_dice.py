"""Dice of the voxels that a tool's log-odds draw, before any candidate: at ½, and at its best."""

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
    """Means over the cases that have a lesion; log-odds `[1, *spatial]` are FOLDER/CASE.npy.

    The best threshold is chosen on these very cases: what no tool could know.
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
    """Of each case with a lesion, at each threshold."""
    odds_at = np.log(THRESHOLDS) - np.log1p(-THRESHOLDS)
    for files in cases:
        reference = read_case(files, dataset).reference
        if reference is None or reference.labels is None or not reference.labels.any():
            continue
        lesion, odds = reference.labels > 0, np.load(folder / f"{files.case}.npy").max(axis=0)
        drawn, hit = (np.array([(x >= t).sum() for t in odds_at]) for x in (odds, odds[lesion]))
        yield 2 * hit / (drawn + lesion.sum())
