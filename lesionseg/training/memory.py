"""Reduce the tiles of a step until it fits into GPU memory. For the formula see `models`."""

import gc
import logging
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from lesionseg.config import TrainConfig
from lesionseg.errors import TrainingError
from lesionseg.models.build import TRUSTED, autocast_dtype, build_network
from lesionseg.ops.convolutions import fastest_convolutions
from lesionseg.plan.plan import Plan, total_stride
from lesionseg.training.callbacks import FocalStatistics
from lesionseg.training.module import make_optimiser
from lesionseg.training.objective import make_objective

log = logging.getLogger(__name__)

MAX_SMALLER_TILES = 3  # fewer tiles are tried as often as there are tiles


def fit_to_memory(plan: Plan, take_steps: Callable[[Plan], None]) -> Plan:
    """Return the plan, or the first of its smaller forms with memory enough for `take_steps`.

    One tile less is tried at a time, and then at most `MAX_SMALLER_TILES` smaller tiles. The
    reasons of the plan say so.

    Raises:
        TrainingError: if no form fits.
    """
    smaller: Plan | None = plan
    n_smaller_tiles = 0
    while smaller is not None and n_smaller_tiles <= MAX_SMALLER_TILES:
        if _has_memory(smaller, take_steps):
            return _with_reasons(smaller, plan)
        log.warning("Out of memory at %s.", _size(smaller))
        below = step_down(smaller)
        n_smaller_tiles += below is not None and below.tile_shape != smaller.tile_shape
        smaller = below
    raise TrainingError(
        f"A training step does not fit the device's memory, down from {_size(plan)}. Set "
        "model.tile_shape, model.batch_size or model.base_features smaller."
    )


def _has_memory(plan: Plan, take_steps: Callable[[Plan], None]) -> bool:
    """Take the steps. Return False if memory ends. The memory they took is given back."""
    fits = True
    try:
        take_steps(plan)
    except torch.OutOfMemoryError:
        fits = False
    # Only here are their network and batch out of use: the error's traceback held them
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return fits


def _with_reasons(smaller: Plan, plan: Plan) -> Plan:
    """Return the smaller plan with the reason why it is not the one that was planned."""
    reason = f"{_size(smaller)}: {_size(plan)} ran out of memory in a trial step"
    names = [n for n in ("tile_shape", "batch_size") if getattr(smaller, n) != getattr(plan, n)]
    return smaller.with_(reasons={**plan.reasons, **dict.fromkeys(names, reason)})


def try_steps(plan: Plan, cfg: TrainConfig, device: str = "cuda") -> None:
    """Take two steps, as a training does: the optimiser's moments come with the first.

    cuDNN chooses its fastest algorithms, as in training: they may need larger workspaces.
    """
    place = torch.device(device)
    network = build_network(plan, architectures=TRUSTED).to(place).train()
    objective = make_objective(plan, cfg)
    optimiser = make_optimiser(network, cfg.optim)
    batch = objective.batch_targets(some_batch(plan, plan.batch_size, torch.device("cpu")))
    batch = {name: tensor.to(place) for name, tensor in batch.items()}
    is_half = cfg.trainer.precision != "32-true"
    half = autocast_dtype(place)
    statistics = FocalStatistics(plan.activation)
    with fastest_convolutions():
        for _ in range(2):
            optimiser.zero_grad()
            targets = objective.targets(batch)
            with torch.autocast(place.type, half, enabled=is_half):
                output = network(batch["image"])
            statistics.observe(*objective.observed(output, targets))
            terms = objective.terms(output, targets, torch.ones_like(targets.counts()))
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    if place.type == "cuda":
        torch.cuda.synchronize()  # an error of the last operations belongs to this plan


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
    """Return the plan with one tile less, at least 2, or with smaller tiles.

    Tiles become shorter by one total stride along the longest axis. The last form is a single tile.
    Return None if nothing is left.
    """
    if plan.batch_size > 2:
        return plan.with_(batch_size=plan.batch_size - 1)
    tile = list(plan.tile_shape)
    stride = total_stride(plan.architecture)
    able = [axis for axis, n in enumerate(tile) if n >= 3 * stride[axis]]
    if able:
        axis = max(able, key=lambda a: tile[a])
        tile[axis] -= stride[axis]
        return plan.with_(tile_shape=tuple(tile))
    return plan.with_(batch_size=1) if plan.batch_size > 1 else None


def _size(plan: Plan) -> str:
    sides = " × ".join(map(str, plan.tile_shape))
    return f"{plan.batch_size} tiles of {sides} ({prod(plan.tile_shape)} voxels)"
