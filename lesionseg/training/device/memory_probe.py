"""Take two training steps at the planned size; step down until they fit the device, or up."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lesionseg.errors import TrainingError
from lesionseg.plan.plan import Plan, total_stride
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.objective import Objective
from lesionseg.training.step.optimiser import WarmAverage, make_optimiser

log = logging.getLogger(__name__)

MAX_STEPS_DOWN = 3

# a plan for what is left, given the one that fits and its peak; None for none
Larger = Callable[[Plan, float], Plan | None]


@dataclass(frozen=True, eq=False)
class Probe:
    """What a training step of a plan needs: its network, what teaches it, and the device.

    `dtype`: of autocast, fp32 for none. `build` and `teach` are called again for each size.
    """

    build: Callable[[Plan], nn.Module]
    teach: Callable[[Plan], Objective]
    settings: TrainerSettings
    optimiser: OptimiserSettings
    device: torch.device
    dtype: torch.dtype

    def peak_gb(self, plan: Plan) -> float | None:
        """The 10⁹ bytes reserved for two steps at the plan's size; None where they do not fit.

        Two, as the optimiser's moments are there from the second on. 0 on a processor.
        """
        is_gpu = self.device.type == "cuda"
        try:
            if is_gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
            self._steps(plan)
            return torch.cuda.max_memory_reserved(self.device) / 1e9 if is_gpu else 0.0
        except torch.OutOfMemoryError:
            return None
        finally:  # the traceback, which holds the tensors, is gone here
            if is_gpu:
                torch.cuda.empty_cache()

    def _steps(self, plan: Plan) -> None:
        network = self.build(plan).to(self.device).train()
        objective, optimiser = self.teach(plan), make_optimiser(network, self.optimiser)
        decay = self.settings.ema_decay
        averaged = None if decay is None else WarmAverage(network, decay)
        batch = some_batch(plan, plan.batch_size, self.device)
        targets = objective.targets(batch)
        normalisers = torch.ones_like(targets.counts())
        for _ in range(2):
            optimiser.zero_grad()
            with self._autocast():
                output = network(batch["image"])
            terms = objective.terms(output, targets, normalisers)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if averaged is not None:
                averaged.update_parameters(network)

    def _autocast(self) -> "torch.autocast | nullcontext[None]":
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


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


def fitted_to_memory(plan: Plan, probe: Probe, larger: Larger = lambda plan, peak_gb: None) -> Plan:
    """The plan, or a smaller one whose training steps fit: fewer tiles, then smaller ones.

    At most `MAX_STEPS_DOWN` times; `reasons` say so. Where the plan fits and what it was measured
    to take leaves room, the `larger` one if that fits too. Raises `TrainingError` when smaller ones
    are not enough or nothing is left to make smaller.
    """
    tried: list[Plan] = []
    smaller: Plan | None = plan
    while smaller is not None and len(tried) <= MAX_STEPS_DOWN:
        if (peak_gb := probe.peak_gb(smaller)) is not None:
            return (
                _with_reason(plan, smaller) if tried else _grown(plan, probe, larger(plan, peak_gb))
            )
        log.warning("Out of memory at %s.", _size(smaller))
        tried.append(smaller)
        smaller = step_down(smaller)
    raise TrainingError(
        "A training step does not fit the device's memory.",
        seen=f"{_size(plan)}, and smaller sizes down to {_size(tried[-1])}",
        remedy="set model.tile_shape, model.batch_size or model.base_features smaller, or end "
        "what else runs on the device.",
    )


def _grown(plan: Plan, probe: Probe, larger: Plan | None) -> Plan:
    if larger is None or _size(larger) == _size(plan) or probe.peak_gb(larger) is None:
        return plan
    log.info("A step takes less than planned: %s in place of %s.", _size(larger), _size(plan))
    return larger


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


def _with_reason(plan: Plan, smaller: Plan) -> Plan:
    log.warning(
        "Training goes on with %s: the planned %s ran out of memory.", _size(smaller), _size(plan)
    )
    changed = [n for n in ("tile_shape", "batch_size") if getattr(plan, n) != getattr(smaller, n)]
    reason = f"{_size(smaller)}: {_size(plan)} ran out of memory in a trial step"
    return smaller.with_(reasons={**plan.reasons, **dict.fromkeys(changed, reason)})


def _size(plan: Plan) -> str:
    sides: Sequence[int] = plan.tile_shape
    return f"{plan.batch_size} tiles of {' × '.join(map(str, sides))} ({prod(sides)} voxels)"
