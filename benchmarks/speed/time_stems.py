"""A training step with the full and with a space-to-depth stem: forward, focal loss and backward.

    python benchmarks/speed/time_stems.py [--rounds 6]

Tiles of 64³ voxels, two a step, in the number format that the processor is fastest in. Seconds are
the process's own, on one thread, so that other work on the machine counts little.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lesionseg.losses import FocalLoss
from lesionseg.losses.detection_loss import DetectionLoss
from lesionseg.models import build_network, fast_dtype
from lesionseg.plan.device_budget import multiplications
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.plan.tile_rules import network_shape
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.step.detection_objective import make_objective

TILE, BATCH, CPU = (64, 64, 64), 2, torch.device("cpu")


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| stem | features | 10⁹ multiplications | ms | tiles a second |\n|---|---|---|---|---|")
    for stem, base, widest in (
        ("full", 16, 128),
        ("space_to_depth", 16, 128),
        ("space_to_depth", 32, 128),
        ("space_to_depth", 48, 192),
    ):
        shape = network_shape(TILE, (1.0,) * 3, base, widest, stem=stem)
        cost = multiplications(shape, TILE, BATCH) / 1e9
        seconds = median_seconds(step_of(shape), rounds)
        widths = ", ".join(map(str, shape.features))
        print(f"| {stem} | {widths} | {cost:.1f} | {1000 * seconds:.0f} | {BATCH / seconds:.1f} |")


def step_of(shape: Architecture) -> Callable[[], None]:
    """One step of a network of this shape."""
    plan = Plan(
        dims=3,
        modality="mri",
        channel_names=("T2",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0,) * 3,
        normalisation=(Normalisation("zscore"),),
        tile_shape=TILE,
        batch_size=BATCH,
        architecture=shape,
        lesion_fraction=1e-3,
    )
    network = build_network(plan).train()
    objective = make_objective(FocalLoss(), DetectionLoss(), plan)
    batch = some_batch(plan, BATCH, CPU)
    targets = objective.targets(batch)
    normalisers = torch.ones_like(targets.counts())
    dtype = fast_dtype(CPU)

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = network(batch["image"])
        terms = objective.terms(output, targets, normalisers)
        torch.stack(list(terms.values())).sum().backward()

    return step


def median_seconds(step: Callable[[], None], rounds: int, warm_up: int = 2) -> float:
    """Processor time of a step."""
    taken = []
    for _ in range(warm_up + rounds):
        started = time.process_time()
        step()
        taken.append(time.process_time() - started)
    return statistics.median(taken[warm_up:])


if __name__ == "__main__":
    main()
