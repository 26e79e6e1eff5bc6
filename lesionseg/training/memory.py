"""Does a training step of the plan fit the device? By trying; for the formula see `models`."""

import logging
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from lesionseg.config import TrainConfig
from lesionseg.errors import TrainingError
from lesionseg.models.build import TRUSTED, build_network, fast_dtype
from lesionseg.plan.plan import Plan, total_stride
from lesionseg.training.module import make_optimiser
from lesionseg.training.objective import make_objective

log = logging.getLogger(__name__)

MAX_STEPS_DOWN = 3


def fit_to_memory(plan: Plan, take_steps: Callable[[Plan], None]) -> Plan:
    """The plan, or the first of its smaller forms with memory enough for `take_steps`.

    `reasons` say so. At most `MAX_STEPS_DOWN` times; raises `TrainingError` where that is not
    enough.
    """
    smaller = plan
    for _ in range(MAX_STEPS_DOWN + 1):
        try:
            take_steps(smaller)
        except torch.OutOfMemoryError:
            log.warning("Out of memory at %s.", _size(smaller))
            if (below := step_down(smaller)) is None:
                break
            smaller = below
            continue
        reason = f"{_size(smaller)}: {_size(plan)} ran out of memory in a trial step"
        names = (n for n in ("tile_shape", "batch_size") if getattr(smaller, n) != getattr(plan, n))
        return smaller.with_(reasons={**plan.reasons, **dict.fromkeys(names, reason)})
    raise TrainingError(
        f"A training step does not fit the device's memory, down from {_size(plan)}. Set "
        "model.tile_shape, model.batch_size or model.base_features smaller."
    )


def try_steps(plan: Plan, cfg: TrainConfig) -> None:
    """Take two steps on the GPU: the optimiser's moments are there from the second on."""
    device = torch.device("cuda")
    try:
        network = build_network(plan, architectures=TRUSTED).to(device).train()
        objective, optimiser = make_objective(plan, cfg), make_optimiser(network, cfg.optim)
        batch = some_batch(plan, plan.batch_size, device)
        targets = objective.targets(batch)
        is_half = cfg.trainer.precision != "32-true"
        half = torch.float16 if fast_dtype(device) == torch.float32 else torch.bfloat16
        for _ in range(2):
            optimiser.zero_grad()
            with torch.autocast(device.type, half, enabled=is_half):
                output = network(batch["image"])
            terms = objective.terms(output, targets, torch.ones_like(targets.counts()))
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    finally:
        torch.cuda.empty_cache()


def some_batch(plan: Plan, n_tiles: int, device: torch.device) -> dict[str, Tensor]:
    """Tiles of noise with a lesion in the middle of each."""
    noise = torch.Generator().manual_seed(0)
    shape = (n_tiles, *plan.tile_shape)
    labels = torch.zeros(shape, dtype=torch.uint8)
    middle = tuple(slice(n // 2 - 1, n // 2 + 2) for n in plan.tile_shape)
    labels[(slice(None), *middle)] = 1
    image = torch.randn((n_tiles, len(plan.channel_names), *plan.tile_shape), generator=noise)
    valid = torch.ones(shape, dtype=torch.bool)
    batch = {"image": image, "labels": labels, "instances": labels.int(), "valid": valid}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def step_down(plan: Plan) -> Plan | None:
    """Half the batch, at least 2, then tiles shorter by one total stride along the longest axis.

    At last a single tile; None when nothing is left.
    """
    if plan.batch_size > 2:
        return plan.with_(batch_size=max(plan.batch_size // 2, 2))
    tile, stride = list(plan.tile_shape), total_stride(plan.architecture)
    able = [axis for axis, n in enumerate(tile) if n >= 3 * stride[axis]]
    if able:
        axis = max(able, key=lambda a: tile[a])
        tile[axis] -= stride[axis]
        return plan.with_(tile_shape=tuple(tile))
    return plan.with_(batch_size=1) if plan.batch_size > 1 else None


def _size(plan: Plan) -> str:
    sides = " × ".join(map(str, plan.tile_shape))
    return f"{plan.batch_size} tiles of {sides} ({prod(plan.tile_shape)} voxels)"
