"""Random choices of one tile, from a torch generator of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


def tile_generator(*key: int) -> torch.Generator:
    """A generator of its own for each key, such as (seed, epoch, index)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class Draw:
    """Takes numbers from the generator in turn."""

    generator: torch.Generator

    def between(self, *shape: int) -> NDArray[np.float64]:
        """Uniform in −1 … 1."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return np.asarray(drawn.mul_(2).sub_(1).numpy())

    def happens(self, probability: float) -> bool:
        """True with that probability."""
        return float(torch.rand((), generator=self.generator)) < probability

    def numbers(
        self, probability: float, limits: Sequence[float], n: int
    ) -> tuple[float, ...] | None:
        """n numbers within `limits`; None: not this time, or never where the limits are equal."""
        happens, drawn = self.happens(probability), (self.between(n) + 1) / 2
        low, high = limits
        if not happens or low == high:
            return None
        return tuple(float(v) for v in low + (high - low) * drawn)

    def number(self, probability: float, limits: Sequence[float]) -> float | None:
        """As `numbers`, one of them."""
        drawn = self.numbers(probability, limits, 1)
        return None if drawn is None else drawn[0]

    def seed(self) -> int:
        """A seed for another generator."""
        return int(torch.randint(2**62, (), generator=self.generator))
