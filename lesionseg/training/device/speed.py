"""What makes a step fastest on this machine: memory layout and compiling, by a short timing."""

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import nn

from lesionseg.models.precision import fast_memory_format
from lesionseg.plan.plan import Plan
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.objective import Objective

log = logging.getLogger(__name__)

BACKEND = "inductor"
# Compiling takes about a minute, outside the clock; what it takes again when training starts, from
# the compiler's cache, a gain of 1.1 pays back
LEAST_MINUTES, LEAST_STEPS = 10.0, 5000
WARM_UP, TIMED = 3, 5

# as torch.compile calls them: plain, and with CUDA graphs, which launch a step's kernels at once
Mode = Literal["default", "reduce-overhead"]
PLAIN: Mode = "default"
GRAPHS: Mode = "reduce-overhead"
Modes = tuple[Mode | None, ...]  # None: not compiled
CHOICES: dict[bool | str, Modes] = {
    False: (None,),
    True: (PLAIN,),
    "graphs": (GRAPHS,),
    "auto": (None, PLAIN, GRAPHS),
}

Seconds = Callable[[nn.Module, Mode | None], float]


@dataclass(frozen=True)
class Speed:
    """How the network is laid out in memory, and how it is compiled, if at all.

    `seconds`: of a step as timed, None where none was.
    """

    layout: torch.memory_format
    compiled: Mode | None
    seconds: float | None = field(default=None, compare=False)


def choose_speed(
    network: nn.Module,
    objective: Objective,
    plan: Plan,
    settings: TrainerSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> Speed:
    """On a GPU the faster of both layouts, then compiled, with CUDA graphs or not, where that pays.

    Timed on copies, outside the budget's clock. A CPU's layout is known (`models.precision`), and
    it compiles only when asked to: convolutions, most of a step there, are not what that speeds up.
    """
    known = fast_memory_format(plan.dims, device)
    if device.type != "cuda":
        return Speed(known, PLAIN if settings.compile in (True, "graphs") else None)
    tune_kernels(device)
    tf32 = "TF32" if torch.backends.cudnn.allow_tf32 else "fp32"
    log.info("Convolutions by measured choice (cudnn.benchmark); those of fp32 in %s.", tf32)

    def seconds(trial: nn.Module, mode: Mode | None) -> float:
        teacher = deepcopy(objective)  # a loss may keep sums of its own
        if mode is not None:
            teacher.compile(BACKEND)
        return time_step(trial, teacher, plan, device, dtype, mode)

    speed = timed_choice(network, seconds, layouts(plan.dims), wanted_modes(settings))
    if settings.max_steps and speed.seconds:
        hours = settings.max_steps * settings.accumulate * speed.seconds / 3600
        log.info("%d steps take about %.1f hours or somewhat more.", settings.max_steps, hours)
    gc.collect()
    torch.cuda.empty_cache()  # processes that are started next need it
    return speed


def tune_kernels(device: torch.device) -> None:
    """Let cuDNN measure which of its kernels is fastest: tiles are all of one shape."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def layouts(dims: int) -> tuple[torch.memory_format, torch.memory_format]:
    """Channels first, and last."""
    last = torch.channels_last_3d if dims == 3 else torch.channels_last
    return torch.contiguous_format, last


def wanted_modes(settings: TrainerSettings) -> Modes:
    """The ways to choose among, by a timing if several; `auto` asks only where the budget is long.

    No CUDA graphs for several processes, which exchange gradients within the backward pass.

    >>> wanted_modes(TrainerSettings(max_minutes=60))
    (None, 'default', 'reduce-overhead')
    """
    minutes, steps = settings.max_minutes, settings.max_steps
    long = (minutes is None or minutes >= LEAST_MINUTES) and (steps is None or steps >= LEAST_STEPS)
    modes = CHOICES[settings.compile if long or settings.compile != "auto" else False]
    if settings.has_one_device:
        return modes
    return tuple(dict.fromkeys(PLAIN if mode == GRAPHS else mode for mode in modes))


def timed_choice(
    network: nn.Module,
    seconds: Seconds,
    formats: tuple[torch.memory_format, ...],
    modes: Modes,
) -> Speed:
    """The fastest way by `seconds` of a step; a mode in which compiling fails is not taken."""
    by_layout = {f: _or_never(partial(seconds, _copy(network, f), None)) for f in formats}
    layout = min(formats, key=lambda f: by_layout[f])
    timings = [f"{f} {1000 * by_layout[f]:.0f} ms" for f in formats]
    by_mode: dict[Mode | None, float] = {None: by_layout[layout]}
    if len(modes) == 1:
        log.info("A step: %s; compiled: %s.", ", ".join(timings), modes[0] or "no")
        return Speed(layout, modes[0], by_layout[layout] if modes[0] is None else None)
    for mode in (mode for mode in modes if mode is not None):
        try:
            by_mode[mode] = seconds(_compiled(_copy(network, layout), mode), mode)
            timings.append(f"compiled ({mode}) {1000 * by_mode[mode]:.0f} ms")
        except Exception as error:  # whatever a compiler raises, training works without it
            timings.append(f"compiling ({mode}) failed: {type(error).__name__}")
    torch.compiler.reset()  # gives back the memory of the trials' graphs
    log.info("A step: %s.", ", ".join(timings))
    fastest = min(by_mode, key=lambda mode: by_mode[mode])
    return Speed(layout, fastest, by_mode[fastest])


def _or_never(seconds: Callable[[], float]) -> float:
    """The seconds; infinitely many where memory does not suffice."""
    try:
        return seconds()
    except torch.OutOfMemoryError:
        return math.inf


def _compiled(network: nn.Module, mode: Mode) -> nn.Module:
    network.compile(backend=BACKEND, mode=mode)
    return network


def begin_forward(mode: Mode | None) -> None:
    """Say that what the last forward gave is not needed any more: CUDA graphs write over it."""
    if mode == GRAPHS:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _copy(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    copy: nn.Module = deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
    return copy


def time_step(
    network: nn.Module,
    objective: Objective,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    mode: Mode | None = None,
) -> float:
    """Median seconds of a forward and a backward pass of a batch, after some to warm up."""
    network.to(device).train()
    batch = some_batch(plan, plan.batch_size, device)
    targets = objective.targets(batch)
    normalisers = torch.ones_like(targets.counts())
    seconds = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        begin_forward(mode)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = network(batch["image"])
        terms = objective.terms(output, targets, normalisers)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        network.zero_grad()
    return statistics.median(seconds[WARM_UP:])
