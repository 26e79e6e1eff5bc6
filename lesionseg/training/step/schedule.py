"""How far training has come, and the learning rate that belongs to it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from lesionseg.training.settings import OptimiserSettings

WARMUP_FLOOR = 0.01  # a first step at rate 0 would be a step for nothing
POLY_POWER = 0.9  # Chen et al. 2017 (DeepLab); nnU-Net's schedule


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
