"""A trial of one network for thin and thick slices: grid, kernels and augmentation.

    python benchmarks/options/thick_slices.py [--thin] [--steps 400] [--seeds 0 1] \
        [--variants NAME …]

Simulated heads of 2 mm; of every other one three slices are averaged to one of 6 mm, a voxel
lesion where half of it is; `--thin` teaches by thin ones alone. The test heads are there in both
ways. Cells as in `ablation_cells.py`, equal steps of a narrow U-Net; printed by thickness:
sensitivity by size at the score that accepts 1 false positive per head over all, those false
positives, and Dice.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.recipe import recipe
from benchmarks.learning.ablation_cells import (
    Setting,
    Variant,
    cell_arguments,
    make_cell,
    planned,
    prepare,
)
from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.io.atomic import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import MriSettings, simulate_mri_case

THICKER = 3
N_TRAIN, N_TEST = 24, 12
HEADS = MriSettings((63, 80, 64), (2.0, 2.0, 2.0), n_lesions=(8, 24))
SMALL = ("model.base_features=8", "model.batch_size=2", "model.tile_shape=[32,32,32]")
COARSE = "model.tile_shape=[16,32,32]"
FLAT = "flat_kernels"
VARIANTS: Mapping[str, Sequence[str]] = {
    "thin_grid": (),
    "thick_slices": ("augment.thick_slice_probability=0.3", "augment.thick_slice_mm=[6,6]"),
    "middle_grid": ("model.spacing_mm=[4,2,2]", COARSE),
    "thick_grid": ("model.spacing_mm=[6,2,2]", COARSE),
    FLAT: (),
}
SIZES = ((0.0, 5.0), (5.0, 8.0), (8.0, inf))


def main() -> None:
    """Make the missing cells, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cell_arguments(parser)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--thin", action="store_true", help="no thick slices to learn from")
    parser.add_argument("--output", type=Path, default=Path("runs/thick_slices"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    options.data = options.data or options.output / ("thin_heads" if options.thin else "heads")
    if not (options.data / "dataset.json").is_file():
        simulate(options.data, options.thin)
    setting = prepare(options, options.output)
    print("| variant | slices | " + " | ".join(map(_said, SIZES)) + " | false per head | Dice |")
    print("|---" * (len(SIZES) + 4) + "|")
    for name in options.variants:
        its = variant(setting, name)
        cells = [make_cell(setting, its, seed) for seed in options.seeds]
        for end in ("thin", "thick"):
            print(f"| {name} | {end} | {' | '.join(numbers(cells, end))} |", flush=True)


def simulate(folder: Path, thin: bool) -> None:
    """An nnU-Net raw folder of thin and thick heads; `thin`: thick ones are only tested."""
    for index in range(N_TRAIN + N_TEST):
        drawn = np.random.default_rng([11, index])
        case = simulate_mri_case(f"head{index:02d}", drawn, HEADS, lesion_free=index % 6 == 5)
        tested = index >= N_TRAIN
        if tested or (index % 2 and not thin):
            write(folder, thickened(case), "thick", index)
        if tested or thin or not index % 2:
            write(folder, case, "thin", index)
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "FLAIR"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": N_TRAIN,
            "file_ending": ".nii.gz",
        },
    )


def thickened(case: Case) -> Case:
    """The same head in slices that are the mean of some; a voxel is lesion where half of it is."""
    geometry, reference = case.image.geometry, case.reference
    if reference is None or reference.labels is None:
        raise ValueError("a head without a reference")
    affine = geometry.affine @ np.diag([THICKER, 1.0, 1.0, 1.0])
    affine[:3, 3] += geometry.affine[:3, 0] * (THICKER - 1) / 2
    image, labels = (_mean(a) for a in (case.image.array, reference.labels[None]))
    thick = Geometry(image.shape[1:], affine)
    mask = (labels[0] >= 0.5).astype(np.uint8)
    return replace(case, image=Volume(image, thick), reference=Reference(thick, mask))


def _mean(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1, THICKER, *array.shape[2:]).mean(2, dtype=np.float32)


def write(folder: Path, case: Case, kind: str, index: int) -> None:
    """One head, among those to learn from or to test."""
    part = "Tr" if index < N_TRAIN else "Ts"
    for place in (f"images{part}", f"labels{part}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    image = Volume(np.rint(case.image.array).astype(np.int16), case.image.geometry)
    write_volume(folder / f"images{part}" / f"{case.case}{kind}_0000.nii.gz", image)
    mask = Volume(case.reference.labels[None], case.image.geometry)  # type: ignore[union-attr]
    write_volume(folder / f"labels{part}" / f"{case.case}{kind}.nii.gz", mask)


def variant(setting: Setting, name: str) -> Variant:
    """The recipe with this grid, these kernels or this augmentation."""
    changed = recipe([*SMALL, *setting.overrides, *VARIANTS[name]], setting.held.data.root)
    plan = planned(setting, changed.model)
    if name == FLAT:  # two stages see single slices
        shape = plan.architecture
        flat = replace(
            shape,
            kernels=((1, 3, 3), (1, 3, 3), *shape.kernels[2:]),
            strides=(shape.strides[0], (1, 2, 2), *shape.strides[2:]),
        )
        plan = plan.with_(architecture=flat)
    return Variant(name, plan, changed.learning)


def numbers(cells: Sequence[Mapping[str, Any]], end: str) -> list[str]:
    """The columns of one variant for heads whose names end so, over all seeds."""
    lesions = [x for c in cells for x in c["lesions"] if x["case"].endswith(end)]
    cases = [x for c in cells for x in c["cases"] if x["case"].endswith(end)]
    columns = []
    for low, high in SIZES:
        found = [x["found"] for x in lesions if low <= x["diameter_mm"] < high]
        columns.append(f"{np.mean(found):.2f} of {len(found) // len(cells)}" if found else "–")
    false = np.mean([x["n_false_positive"] for x in cases])
    dice = np.mean([x["dice"] for x in cases if x["dice"] is not None])
    return [*columns, f"{false:.2f}", f"{dice:.3f}"]


def _said(size: tuple[float, float]) -> str:
    low, high = size
    return f"{low:g} mm and more" if high == inf else f"{low:g} to {high:g} mm"


if __name__ == "__main__":
    main()
