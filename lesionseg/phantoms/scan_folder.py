"""Simulated 3-D scans as an nnU-Net raw folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from lesionseg.core import Case, Volume
from lesionseg.errors import require
from lesionseg.io.atomic import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms.fields import is_lesion_free


class Simulate(Protocol):
    """Draws case number `index`, the same one every time."""

    def __call__(self, index: int, *, lesion_free: bool) -> Case:
        """The case."""
        ...


def write_cases(
    folder: Path,
    n_cases: int,
    n_test: int,
    lesion_free_share: float,
    simulate: Simulate,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Write each case, the last `n_test` as test cases; `ConfigError` for impossible numbers."""
    fits = 0 <= n_test <= n_cases and n_cases >= 1
    require(fits, "Cannot simulate these cases.", seen=f"{n_cases=}, {n_test=}")
    for index in range(n_cases):
        case = simulate(index, lesion_free=is_lesion_free(index, lesion_free_share))
        write_case(folder, case, "Tr" if index < n_cases - n_test else "Ts")
        if progress:
            progress(case.case, index + 1, n_cases)


def write_case(folder: Path, case: Case, part: Literal["Tr", "Ts"]) -> None:
    """Image as int16 and mask as uint8, in the part's folders."""
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    geometry, range_ = case.image.geometry, np.iinfo(np.int16)
    stored = np.clip(np.rint(case.image.array), range_.min, range_.max).astype(np.int16)
    write_volume(images / f"{case.case}_0000.nii.gz", Volume(stored, geometry))
    if case.reference is not None and case.reference.labels is not None:
        mask = Volume(case.reference.labels[None], geometry)
        write_volume(labels / f"{case.case}.nii.gz", mask)


def describe(folder: Path, name: str, about: str, channel: str, n_train: int, n_test: int) -> None:
    """Write `dataset.json` (nnU-Net v2) of scans with one channel and one label, `lesion`."""
    described = {
        "name": name,
        "description": about,
        "licence": "CC0-1.0",
        "channel_names": {"0": channel},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n_train,
        "numTest": n_test,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", described)
