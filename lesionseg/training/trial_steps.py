"""Trial training steps before a training: order of smaller tiles and batches if memory runs out.

`models.memory_formula` has the formula that plans start from.
"""

import gc
import logging
from collections.abc import Callable
from math import prod

import torch

from lesionseg.core import describe_sides
from lesionseg.errors import ConfigError, count
from lesionseg.models.build import autocast_dtype
from lesionseg.ops.cudnn_benchmark import fastest_convolutions
from lesionseg.ops.device_memory import is_out_of_memory
from lesionseg.plan.plan import Plan, total_stride
from lesionseg.training.callbacks import FocalStatistics
from lesionseg.training.module import LesionModule, make_optimiser, peak_lr
from lesionseg.training.objective import try_step

log = logging.getLogger(__name__)

MAX_SMALLER_TILES = 3  # the most sizes of smaller tiles that are tried


def fit_to_memory(plan: Plan, run_steps: Callable[[Plan], None]) -> Plan:
    """Return the plan if its training steps fit into memory, otherwise a smaller plan that fits.

    The candidates are `plan` and then `smaller_plans`, in order. The first one that fits is
    returned, and its reasons describe the change. Each plan that does not fit is logged as a
    warning.

    Args:
        plan: The plan to reduce if necessary.
        run_steps: Runs trial steps with a plan, as `try_steps` does. Its errors are passed on,
            except a lack of memory.

    Raises:
        ConfigError: If no smaller plan fits.
    """
    for tried in (plan, *smaller_plans(plan)):
        if _do_steps_fit(tried, run_steps):
            return _with_reasons_of_change(tried, plan)
        log.warning("Out of memory at %s.", _describe_tiles(tried))
    raise ConfigError(
        "A training step does not fit into the device's memory, even with "
        f"{_describe_tiles(tried)}. End other programs on the device, or set a smaller "
        "model.tile_shape or model.base_features."
    )


def smaller_plans(plan: Plan) -> list[Plan]:
    """Return the plans that are tried if a step of `plan` does not fit into memory, in this order.

    1. Fewer tiles, down to two. nnU-Net's plans have at least two, because the Dice loss is
       computed over all tiles of a batch.
    2. Two smaller tiles, see `smaller_tiles`. If the plan has one tile, one smaller tile.
    3. If the plan has several tiles: one tile, of the planned size, then of the smaller sizes.
    """
    # from one tile less down to two tiles
    smaller = [plan.with_(batch_size=n) for n in range(plan.batch_size - 1, 1, -1)]
    shapes = smaller_tiles(plan)
    n_tiles = min(plan.batch_size, 2)
    smaller += [plan.with_(batch_size=n_tiles, tile_shape=shape) for shape in shapes]
    if n_tiles == 2:
        smaller += [
            plan.with_(batch_size=1, tile_shape=shape) for shape in (plan.tile_shape, *shapes)
        ]
    return smaller


def smaller_tiles(plan: Plan) -> list[tuple[int, ...]]:
    """Return at most `MAX_SMALLER_TILES` tile shapes, each smaller than the one before.

    The shapes are tried if a step does not fit into memory. Each shape is one total stride shorter
    along the longest axis that still has two total strides afterwards. The list ends if there is no
    such axis.
    """
    stride = total_stride(plan.architecture)
    tile = list(plan.tile_shape)
    shapes: list[tuple[int, ...]] = []
    while len(shapes) < MAX_SMALLER_TILES:
        # at least two voxels must remain at the coarsest stage, because instance norm needs them
        # two total strides are two such voxels, and one more is to be removed
        reducible = [axis for axis, n in enumerate(tile) if n >= 3 * stride[axis]]
        if not reducible:
            break
        longest = max(reducible, key=lambda axis: tile[axis])
        tile[longest] -= stride[longest]
        shapes.append(tuple(tile))
    return shapes


def _do_steps_fit(plan: Plan, run_steps: Callable[[Plan], None]) -> bool:
    """Run trial steps and release their memory. Return False if memory ran out, otherwise True.

    Errors of `run_steps` other than a lack of memory are passed on.
    """
    fits = True
    try:
        run_steps(plan)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    # Release memory after the except clause: until then the traceback refers to the network.
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return fits


def _with_reasons_of_change(smaller: Plan, plan: Plan) -> Plan:
    """Return `smaller` with the reasons of `plan`, updated for the sizes that were reduced.

    The tile shape and batch size get a new reason if they differ. The reason `memory` is removed,
    because it is the predicted memory of the larger plan. If the two plans are equal, no reason
    changes.
    """
    sizes = f"{_describe_tiles(smaller)}: {_describe_tiles(plan)}"
    reason = f"{sizes} ran out of memory in a trial step"
    reasons = dict(plan.reasons)
    if smaller != plan:
        reasons.pop("memory", None)
    if smaller.tile_shape != plan.tile_shape:
        reasons["tile_shape"] = reason
    if smaller.batch_size != plan.batch_size:
        reasons["batch_size"] = reason
    return smaller.with_(reasons=reasons)


def try_steps(module: LesionModule, device: str = "cuda") -> None:
    """Run two training steps on `device`, to test if they fit into its memory.

    Two steps are necessary, because the first one creates the optimiser's moments. Only the second
    step needs all the memory of a training. cuDNN chooses its fastest algorithms as in training,
    because they may need larger workspaces.

    If the steps do not fit, torch's error is passed on. `is_out_of_memory` is True for it.

    Args:
        module: The network, objective and settings of the training. The weights change.
        device: torch's name of the device.
    """
    gpu = torch.device(device)
    network = module.network.to(gpu).train()
    lr = peak_lr(module.optim, module.plan, module.plan.batch_size)
    optimiser = make_optimiser(network, module.optim, lr)
    is_autocast = module.settings.precision != "32-true"  # Lightning's name of pure fp32
    dtype = autocast_dtype(gpu)
    statistics = FocalStatistics()
    with fastest_convolutions():
        for _ in range(2):
            optimiser.zero_grad()
            with torch.autocast(gpu.type, dtype, enabled=is_autocast):
                try_step(network, module.objective, statistics.observe)
            optimiser.step()
    if gpu.type == "cuda":
        torch.cuda.synchronize()  # raise an error of queued operations here


def _describe_tiles(plan: Plan) -> str:
    """Return the number and size of the tiles of a step as text, for messages and reasons."""
    sides = describe_sides(plan.tile_shape)
    return f"{count(plan.batch_size, 'tile')} of {sides} ({prod(plan.tile_shape)} voxels)"
