"""Trial training steps, which reduce a step's tiles until it fits into GPU memory.

`models.memory_formula` has the formula that plans start from.
"""

import gc
import logging
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from lesionseg.config import TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.models.build import TRUSTED, autocast_dtype, build_network
from lesionseg.ops.convolutions import fastest_convolutions
from lesionseg.ops.gpu_memory import is_out_of_memory
from lesionseg.plan.plan import Plan, describe_sides, total_stride
from lesionseg.training.callbacks import FocalStatistics
from lesionseg.training.module import highest_rate, make_optimiser
from lesionseg.training.objective import make_objective

log = logging.getLogger(__name__)

MAX_SMALLER_TILES = 3  # this limit applies to smaller tiles, not to fewer tiles


def fit_to_memory(plan: Plan, take_steps: Callable[[Plan], None]) -> Plan:
    """Return the plan if its steps fit into memory, otherwise the first smaller plan that fits.

    The batch size is reduced by one tile at a time, and then the tiles at most `MAX_SMALLER_TILES`
    times. The reasons of the returned plan state the change.

    Args:
        plan: to reduce.
        take_steps: takes training steps with a plan.

    Raises:
        ConfigError: if no smaller plan fits.
    """
    smaller: Plan | None = plan
    n_smaller_tiles = 0
    while smaller is not None and n_smaller_tiles <= MAX_SMALLER_TILES:
        if _do_steps_fit(smaller, take_steps):
            return _with_reasons(smaller, plan)
        log.warning("Out of memory at %s.", _describe_size(smaller))
        following = step_down(smaller)
        if following is not None and following.tile_shape != smaller.tile_shape:
            n_smaller_tiles += 1
        smaller = following
    raise ConfigError(
        "A training step does not fit into the device's memory, with "
        f"{_describe_size(plan)} or less. Set a smaller model.tile_shape, model.batch_size or "
        "model.base_features."
    )


def _do_steps_fit(plan: Plan, take_steps: Callable[[Plan], None]) -> bool:
    """Take the steps and release their memory. Return False if memory ran out."""
    fits = True
    try:
        take_steps(plan)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    # Release memory after the except clause: until then the traceback refers to the network.
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return fits


def _with_reasons(smaller: Plan, plan: Plan) -> Plan:
    """Return the smaller plan with the reason for the reduction."""
    sizes = f"{_describe_size(smaller)}: {_describe_size(plan)}"
    reason = f"{sizes} ran out of memory in a trial step"
    reasons = dict(plan.reasons)
    if smaller != plan:
        reasons.pop("memory", None)  # it states the memory of the larger plan
    if smaller.tile_shape != plan.tile_shape:
        reasons["tile_shape"] = reason
    if smaller.batch_size != plan.batch_size:
        reasons["batch_size"] = reason
    return smaller.with_(reasons=reasons)


def try_steps(plan: Plan, cfg: TrainConfig, device: str = "cuda") -> None:
    """Take two training steps, to find out if they fit into memory.

    Raise an error for which `is_out_of_memory` is True if they do not. The first step creates the
    optimiser's moments, so only the second one needs all the memory of a training.

    cuDNN chooses its fastest algorithms as in training, because they may need larger workspaces.
    """
    gpu = torch.device(device)
    network = build_network(plan, architectures=TRUSTED).to(gpu).train()
    objective = make_objective(plan, cfg)
    optimiser = make_optimiser(network, cfg.optim, highest_rate(cfg.optim, plan, plan.batch_size))
    batch = objective.batch_targets(some_batch(plan, plan.batch_size, torch.device("cpu")))
    batch = {name: tensor.to(gpu) for name, tensor in batch.items()}
    is_autocast = cfg.trainer.precision != "32-true"
    dtype = autocast_dtype(gpu)
    statistics = FocalStatistics()
    with fastest_convolutions():
        for _ in range(2):
            optimiser.zero_grad()
            targets = objective.targets(batch)
            with torch.autocast(gpu.type, dtype, enabled=is_autocast):
                output = network(batch["image"])
            statistics.observe(objective.finest_logits(output, targets))
            terms = objective.terms(output, targets, torch.ones_like(targets.counts()))
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    if gpu.type == "cuda":
        torch.cuda.synchronize()  # raise an error of queued operations here


def some_batch(plan: Plan, n_tiles: int, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of noise with a lesion in the middle of each tile."""
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
    """Return the next smaller plan, or None if there is none.

    Above 2 tiles, the batch size is reduced by one. Then the longest axis of the tiles is reduced
    by one total stride. The last plan has a single tile.
    """
    if plan.batch_size > 2:
        return plan.with_(batch_size=plan.batch_size - 1)
    tile = list(plan.tile_shape)
    stride = total_stride(plan.architecture)
    # at least two voxels must remain at the coarsest stage, because instance norm needs them
    reducible = [axis for axis, n in enumerate(tile) if n >= 3 * stride[axis]]
    if reducible:
        longest = max(reducible, key=lambda axis: tile[axis])
        tile[longest] -= stride[longest]
        return plan.with_(tile_shape=tuple(tile))
    return plan.with_(batch_size=1) if plan.batch_size > 1 else None


def _describe_size(plan: Plan) -> str:
    """Return the tiles of a step as text."""
    sides = describe_sides(plan.tile_shape)
    return f"{plan.batch_size} tiles of {sides} ({prod(plan.tile_shape)} voxels)"
