"""`trainer.compile`: when `auto` compiles network and loss by torch.compile, trial, undone.

A training step is compiled.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

import torch
from torch import nn

from lesionseg.config import TrainerConfig
from lesionseg.models.build import CHANNELS_LAST, set_memory_format
from lesionseg.ops.device_memory import first_line
from lesionseg.plan.plan import Plan
from lesionseg.training.objective import Objective, try_step
from lesionseg.training.processes import find_missing_compiler

log = logging.getLogger(__name__)

# Shorter trainings gain less than the minute or so that the compilation takes
COMPILED_MINUTES = 10.0
COMPILED_STEPS = 12_000  # ten minutes of 20 steps per second


def should_compile(settings: TrainerConfig, device: str) -> bool:
    """Return True if the training step is to be compiled by torch.compile.

    `compile=true` and `compile=false` are returned unchanged. With `compile=auto`, the result is
    True if all three conditions apply:

    - The device is a GPU.
    - The budget is over ten minutes and over 12 000 steps. A limit that is not set counts as
      infinite.
    - The compiler is installed. If only this condition fails, a log line says so.

    Args:
        settings: The settings with a budget (`resolve_budget`).
        device: `cuda` or `cpu`.
    """
    if settings.compile != "auto":
        return settings.compile
    minutes = settings.max_minutes or math.inf
    steps = settings.max_steps or math.inf
    if device != "cuda" or minutes <= COMPILED_MINUTES or steps <= COMPILED_STEPS:
        return False
    missing = find_missing_compiler(device)
    if missing:
        log.info("trainer.compile=auto: there is no %s here, so no step is compiled.", missing)
    return not missing


def compile_network_and_loss(
    network: nn.Module, objective: Objective | None, plan: Plan, *, backend: str = "inductor"
) -> None:
    """Compile a network and the loss of its voxels in place, so that the names of weights stay.

    torch compiles them when they are first called. On a CUDA device, the memory format of the
    weights becomes channels-last.

    Two parts are not compiled: copies of the network (`deepcopy`), and the loss of anchors, because
    the number of positive anchors changes from step to step.

    Args:
        network: The network on its device.
        objective: The objective, whose loss is compiled. With several processes it is None, because
            their losses exchange sums.
        plan: The plan of the network.
        backend: The backend of torch.compile.
    """
    if next(network.parameters()).is_cuda:
        # Convolutions are faster in this format. Compiled norms keep it, unlike those of torch.
        set_memory_format(network, CHANNELS_LAST[plan.dims])
    network.compile(backend=backend, dynamic=False)
    if objective is not None:
        objective.loss.compile(backend=backend, dynamic=False)


def keep_compiled_if_possible(
    network: nn.Module,
    objective: Objective,
    autocast: Callable[[], AbstractContextManager[None]],
) -> None:
    """Run a trial step of the compiled network and loss. Undo the compilation if the step fails.

    A failure is logged with its reason. The training then continues without compilation.

    Args:
        network: The network to train. Its weights and buffers do not change; gradients are removed.
        objective: The objective of the training, whose loss may be compiled with the network.
        autocast: Returns the context in which a training step runs.
    """
    state_before = deepcopy(network.state_dict())  # the trial step may change buffers of norms
    try:
        with torch.random.fork_rng(), torch.enable_grad(), autocast():
            try_step(network, objective)
    except Exception as error:  # compilers raise many types
        cause = getattr(error, "inner_exception", error)  # torch's own type has a long message
        log.warning(
            "trainer.compile=auto: the step could not be compiled (%s: %s). The training continues "
            "without compiling it.",
            type(cause).__name__,
            first_line(str(cause)),
        )
        network.compile(disable=True)  # replaces the compiled function by the original one
        objective.loss.compile(disable=True)
        set_memory_format(network, torch.contiguous_format)  # undo channels-last
    network.load_state_dict(state_before)
    network.zero_grad()
