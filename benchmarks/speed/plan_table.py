"""What is planned for which card: tile, batch and memory, with nnU-Net's own plan beside it.

`python benchmarks/speed/plan_table.py` prints a table in Markdown; no GPU and no data are needed.
nnU-Net's plans follow the rule of its planners (MIC-DKFZ/nnUNet, experiment_planning): the largest
patch whose convolutions' outputs stay below a reference number, and the batch that fills it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np

from lesionseg.core import Dataset
from lesionseg.plan.fingerprint import ChannelStatistics, Fingerprint, Spread
from lesionseg.plan.make import make_plan
from lesionseg.plan.plan import Modality, Plan
from lesionseg.plan.plan_overrides import SIZES_GB, PlanOverrides
from lesionseg.plan.tile_rules import RESIDUAL_BLOCKS
from lesionseg.training.device.step_memory import StepMemory

LARGER = (80.0, 140.0)  # GB of cards beyond the sizes
NETWORKS = ("unet", "residual_unet", "retinanet", "retina_unet")
# nnU-Net's reference numbers for 3-D and 2-D by memory: its plain planner, then ResEnc L and XL
PLAIN = {8.0: (560e6, 85e6)}
RESIDUAL = {8.0: (680e6, 135e6), 24.0: (2.1e9, 380e6), 40.0: (3.6e9, 560e6)}


@dataclass(frozen=True)
class Kind:
    """A kind of dataset: 300 cases of a median shape and spacing."""

    name: str
    modality: Modality
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    diameters: tuple[float, ...]

    def fingerprint(self) -> Fingerprint:
        """As if it had been read."""
        dims = len(self.shape)
        values, is_ct = Spread(0.0, 300.0, -900.0, 300.0), self.modality == "ct"
        return Fingerprint(
            dims=dims,
            modality=self.modality,
            shapes=(self.shape,) * 300,
            spacings_mm=(self.spacing,) * 300,
            lesions_per_case=(2,) * 300,
            diameters_mm=self.diameters,
            extents_mm=tuple((d,) * dims for d in self.diameters),
            lesion_voxels=tuple(max(int(d**dims / 2), 1) for d in self.diameters),
            lesion_fraction=1e-3,
            channels=(ChannelStatistics(self.modality, is_ct, values, values, 1.0),),
        )


KINDS = (
    Kind("brain MRI", "mri", (160, 190, 160), (1.0, 1.0, 1.0), (4.0, 8.0, 20.0)),
    Kind("chest CT", "ct", (250, 512, 512), (1.25, 0.7, 0.7), (5.0, 10.0, 25.0)),
    Kind("radiograph", "xray", (2048, 2048), (0.2, 0.2), (10.0, 20.0, 40.0)),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    memory, chosen = StepMemory(), parser.parse_args()
    print(
        "| data | network | size | GB | tile | features | batch | GB predicted | nnU-Net's plan |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        for network in chosen.networks:
            for size, gb in (*SIZES_GB.items(), *((None, gb) for gb in LARGER)):
                print(row(kind, network, gb, size, memory))


def row(kind: Kind, network: str, card: float, size: str | None, memory: StepMemory) -> str:
    """A line of the table: a size on any card of its memory or more, or all of a larger card."""
    plan = planned(kind, network, card, size, memory)
    features = f"{plan.architecture.features[0]}–{plan.architecture.features[-1]}"
    theirs = nnunet_plan(plan, kind, card) if network in NETWORKS[:2] else "–"
    cells = (kind.name, network, size or "–", f"{card:g}", times(plan.tile_shape), features)
    gb = f"{memory(plan):.1f}"
    return f"| {' | '.join(cells)} | {plan.batch_size} | {gb} | {theirs} |"


def planned(kind: Kind, network: str, card: float, size: str | None, memory: StepMemory) -> Plan:
    """Our plan."""
    dataset = Dataset(
        kind.name, Path(), "", len(kind.shape), (kind.modality,), {1: "lesion"}, cases=()
    )
    return make_plan(
        kind.fingerprint(),
        dataset,
        memory_gb=card,
        device="cuda",
        overrides=PlanOverrides(network, size=size),
        step_memory=memory,
    )


def nnunet_plan(plan: Plan, kind: Kind, card: float) -> str:
    """What nnU-Net's planner for the largest memory up to the card's makes of the same data."""
    residual = plan.architecture.name == "residual_unet"
    references = RESIDUAL if residual else PLAIN
    gb = max((each for each in references if each <= card), default=min(references))
    reference = references[gb][0 if plan.dims == 3 else 1]
    most, n_usual = (256**3, 2) if plan.dims == 3 else (2048**2, 12)
    longest = np.array(most / np.prod(1 / np.array(plan.spacing_mm))) ** (1 / plan.dims)
    patch = [
        min(round(longest / s), m)
        for s, m in zip(plan.spacing_mm, resampled(plan, kind), strict=True)
    ]
    strides, patch, divisor = topology(plan.spacing_mm, patch)
    while outputs(patch, strides, residual) > reference:
        ratios = [n / m for n, m in zip(patch, resampled(plan, kind), strict=True)]
        axis = max(range(plan.dims), key=lambda a: (ratios[a], a))
        shorter = [n - divisor[a] * (a == axis) for a, n in enumerate(patch)]
        divisor = topology(plan.spacing_mm, shorter)[2]
        patch[axis] -= divisor[axis]
        strides, patch, divisor = topology(plan.spacing_mm, patch)
    batch = max(round(reference / outputs(patch, strides, residual) * n_usual), 2)
    return f"{times(patch)}, batch {batch}, for {gb:g} GB"


def resampled(plan: Plan, kind: Kind) -> list[int]:
    """The median shape on the plan's grid."""
    rows = zip(kind.shape, kind.spacing, plan.spacing_mm, strict=True)
    return [round(n * before / after) for n, before, after in rows]


def topology(
    spacing: Sequence[float], patch: Sequence[int]
) -> tuple[list[list[int]], list[int], list[int]]:
    """Strides of the stages, the patch rounded up to what they divide, and that divisor."""
    size, distance, strides = list(patch), list(spacing), [[1] * len(patch)]
    while True:
        able = [a for a, n in enumerate(size) if n >= 8]
        finest = min((distance[a] for a in able), default=0.0)
        able = [a for a in able if distance[a] < 2 * finest]
        if not able or (len(able) == 1 and size[able[0]] < 12):
            break
        strides.append([2 if a in able else 1 for a in range(len(size))])
        for a in able:
            size[a], distance[a] = ceil(size[a] / 2), 2 * distance[a]
    divisor = [prod(axis) for axis in zip(*strides, strict=True)]
    return strides, [-(-n // d) * d for n, d in zip(patch, divisor, strict=True)], divisor


def outputs(patch: Sequence[int], strides: Sequence[Sequence[int]], residual: bool) -> float:
    """Values that the convolutions of nnU-Net's network give for a patch, two labels."""
    n, widest = len(strides), 320 if len(patch) == 3 else 512
    voxels, total = float(prod(patch)), 0.0
    for stage, stride in enumerate(strides):
        voxels /= prod(stride)
        blocks = RESIDUAL_BLOCKS[min(stage, len(RESIDUAL_BLOCKS) - 1)]
        encoder = 2 * blocks + 1 if residual else 2  # a stem, or the way past a stage's first block
        decoder = 0 if stage == n - 1 else (2 if residual else 3)  # with the way up
        total += voxels * min(32 * 2**stage, widest) * (encoder + decoder)
        total += 2 * voxels if decoder else 0
    return total


def times(shape: Sequence[int]) -> str:
    """A shape as it is read."""
    return " × ".join(str(n) for n in shape)


if __name__ == "__main__":
    main()
