"""What makes a step fastest on this machine: memory layout and compiling, by a short timing."""

import logging
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from lesionseg.models.precision import fast_memory_format
from lesionseg.plan.plan import Plan
from lesionseg.training.memory_probe import some_batch
from lesionseg.training.objective import Objective
from lesionseg.training.settings import TrainerSettings

log = logging.getLogger(__name__)

BACKEND = "inductor"
# Compiling takes about a minute, a twentieth of the budget: a gain of 1.1 pays it back
LEAST_MINUTES, LEAST_STEPS = 20.0, 5000
WARM_UP, TIMED = 3, 5

Seconds = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Speed:
    """How the network is laid out in memory, and whether it is compiled."""

    layout: torch.memory_format
    compiled: bool


def choose_speed(
    network: nn.Module,
    objective: Objective,
    plan: Plan,
    settings: TrainerSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> Speed:
    """On a GPU the faster of both layouts, then compiled where that is faster still.

    Timed on copies, outside the budget's clock. A CPU's layout is known (`models.precision`), and
    it compiles only when told to: convolutions, most of a step there, are not what that speeds up.
    """
    known = fast_memory_format(plan.dims, dtype, device)
    if device.type != "cuda":
        return Speed(known, settings.compile is True)
    objective = deepcopy(objective)  # a loss may keep sums of its own

    def seconds(trial: nn.Module) -> float:
        return time_step(trial, objective, plan, device, dtype)

    return timed_choice(network, seconds, layouts(plan.dims), wants_compiling(settings))


def layouts(dims: int) -> tuple[torch.memory_format, torch.memory_format]:
    """Channels first, and last."""
    last = torch.channels_last_3d if dims == 3 else torch.channels_last
    return torch.contiguous_format, last


def wants_compiling(settings: TrainerSettings) -> bool | None:
    """Yes, no, or None where a timing should tell; `auto` asks only where the budget is long."""
    if settings.compile != "auto":
        return settings.compile is True
    minutes, steps = settings.max_minutes, settings.max_steps
    long = (minutes is None or minutes >= LEAST_MINUTES) and (steps is None or steps >= LEAST_STEPS)
    return None if long else False


def timed_choice(
    network: nn.Module,
    seconds: Seconds,
    formats: tuple[torch.memory_format, ...],
    compiling: bool | None,
) -> Speed:
    """The fastest way by `seconds` of a step; a network that cannot be compiled is not."""
    by_layout = {f: seconds(_copy(network, f)) for f in formats}
    layout = min(formats, key=lambda f: by_layout[f])
    said = ", ".join(f"{f} {1000 * by_layout[f]:.0f} ms" for f in formats)
    if compiling is not None:
        log.info("A step: %s; compiled: %s.", said, compiling)
        return Speed(layout, compiling)
    trial = _copy(network, layout)
    try:
        trial.compile(backend=BACKEND)
        compiled = seconds(trial)
    except Exception as error:  # whatever a compiler raises, training works without it
        log.info("A step: %s; compiling failed (%s).", said, type(error).__name__)
        return Speed(layout, compiled=False)
    log.info("A step: %s, compiled %.0f ms.", said, 1000 * compiled)
    return Speed(layout, compiled < by_layout[layout])


def _copy(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    copy: nn.Module = deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
    return copy


def time_step(
    network: nn.Module,
    objective: Objective,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Median seconds of a forward and a backward pass of a batch, after some to warm up."""
    network.to(device).train()
    batch = some_batch(plan, plan.batch_size, device)
    lesson = objective.lesson(batch)
    divisors = [torch.ones((), device=device) for _ in lesson.counts()]
    taken = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = network(batch["image"])
        terms = objective.terms(output, lesson, divisors)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
        network.zero_grad()
    return statistics.median(taken[WARM_UP:])
