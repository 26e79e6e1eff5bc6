"""How far training has come, and the learning rate that belongs to it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import cos, pi, prod, sqrt

from lesionseg.plan.plan import Plan
from lesionseg.training.settings import OptimiserSettings, TrainerSettings

HOUR, QUICK = 60.0, 15.0  # minutes
# nnU-Net's 1000 epochs of 250 steps: 9 hours of an A100 for its plain network, 35 for ResEnc L
# (its documentation/resenc_presets.md), and the voxels of such a step by number of axes
NNUNET_STEPS = 250_000
NNUNET_VOXELS: Mapping[int, int] = {3: 2 * 128**3, 2: 12 * 512**2}
LONG = 30.0  # minutes from which validations choose the weights
N_VALIDATIONS = 6
VALIDATION_MINUTES = 20.0  # between validations, where steps are the budget
BATCHES: Mapping[int, int] = {3: 2, 2: 4}  # that a learning rate is stated for, by number of axes
WARMUP_FLOOR = 0.01  # a first step at rate 0 would be a step for nothing
POLY_POWER = 0.9  # Chen et al. 2017 (DeepLab); nnU-Net's schedule


def settled(settings: TrainerSettings, plan: Plan, device: str) -> TrainerSettings:
    """The settings with limits in place of `budget`, and minutes in place of `auto`.

    Limits that are given stay. `quick`: 15 minutes. `standard`: as many voxels as nnU-Net sees in
    its 250 000 steps of 2 × 128³ (9 hours of an A100), in at most so many steps. `full`: 250 000
    steps of the plan's own batch, as ResEnc L takes. `auto`: `standard` on a GPU, an hour on a
    processor; nothing where a limit is given. Validation: six times in a training of more than half
    an hour, every 20 minutes of `standard` and `full`, never with `max_steps` alone.
    """
    minutes, steps, budget = settings.max_minutes, settings.max_steps, settings.budget
    if budget == "auto" and minutes is None and steps is None:
        budget = "standard" if device.startswith("cuda") else None
        minutes = None if budget else HOUR
    if budget == "quick":
        minutes = min(minutes or QUICK, QUICK)
    elif budget in ("standard", "full"):
        seen = NNUNET_VOXELS[plan.dims] / (plan.batch_size * prod(plan.tile_shape))
        wanted = round(NNUNET_STEPS * (1.0 if budget == "full" else min(seen, 1.0)))
        steps = min(steps or wanted, wanted)
    complete = replace(settings, max_minutes=minutes, max_steps=steps, budget=None)
    if settings.validate_every_minutes == "auto":
        by_steps = VALIDATION_MINUTES if budget in ("standard", "full") else None
        every = minutes / N_VALIDATIONS if minutes and minutes > LONG else None
        every = by_steps if minutes is None else every
        complete = replace(complete, validate_every_minutes=every)
    return complete


def batch_factor(settings: OptimiserSettings, plan: Plan) -> float:
    """By how much the learning rate follows the plan's batch: linear for SGD, √ for AdamW.

    Relative to 2 tiles in 3-D and 4 in 2-D (Goyal et al. 2017, arXiv 1706.02677; Malladi et al.
    2022, arXiv 2205.10287).
    """
    times = plan.batch_size / BATCHES[plan.dims]
    return times if settings.name == "sgd" else sqrt(times)


@dataclass
class Counters:
    """How far training has come; steps count skipped ones too, as they used up their tiles.

    On a GPU, the last step is not yet among the skipped: `LesionModule.settle` takes it in.
    """

    steps: int = 0
    minutes: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class TrainingBudget:
    """What training may spend; None for no limit, but not both."""

    max_steps: int | None
    max_minutes: float | None

    def progress(self, steps: int, minutes: float) -> float:
        """The share of the budget spent, by the limit nearer to its end; 1 or more is the end.

        >>> TrainingBudget(max_steps=100, max_minutes=10).progress(steps=20, minutes=5)
        0.5
        """
        by_steps = steps / self.max_steps if self.max_steps else 0.0
        by_minutes = minutes / self.max_minutes if self.max_minutes else 0.0
        return max(by_steps, by_minutes)

    def stop_reason(self, steps: int, minutes: float) -> str | None:
        """Which limit has been reached: `max_steps`, `max_minutes` or None."""
        if self.max_steps is not None and steps >= self.max_steps:
            return "max_steps"
        return (
            "max_minutes"
            if TrainingBudget(None, self.max_minutes).progress(0, minutes) >= 1
            else None
        )


class Clock:
    """Minutes of training, those before a resume included."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.start(0.0)

    def start(self, minutes: float) -> None:
        """Let the clock run from `minutes` already spent."""
        self._started = self._now() - 60 * minutes

    def minutes(self) -> float:
        """Minutes spent."""
        return (self._now() - self._started) / 60


def learning_rate(progress: float, settings: OptimiserSettings) -> float:
    """The rate at `progress` in [0, 1] (above 1: at the end): linear warm-up, then decay to 0.

    With q the share done of what follows the warm-up: cosine `lr · (1 + cos πq) / 2` (Loshchilov
    and Hutter 2017, eq. 5), poly `lr · (1 − q)^0.9`. The warm-up starts at a hundredth of `lr`.

    >>> learning_rate(0.5, OptimiserSettings(lr=1.0, warmup_fraction=0.0))
    0.5
    """
    progress = min(max(progress, 0.0), 1.0)
    warm = settings.warmup_fraction
    if progress < warm:
        return settings.lr * max(progress / warm, WARMUP_FLOOR)
    q = (progress - warm) / (1 - warm)
    if settings.schedule == "cosine":
        return settings.lr * (1 + cos(pi * q)) / 2
    return float(settings.lr * (1 - q) ** POLY_POWER)
