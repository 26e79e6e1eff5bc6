"""Places without a lesion that the network took for one: found in an epoch, shown two later.

Worker processes read tiles ahead of the step, so a place used at once would be in some tiles or
not by chance; an epoch later it is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SLOTS = 4  # epochs kept: the present one, those in use and one that is being read ahead


@dataclass(frozen=True)
class HardPoint:
    """A place worth seeing again: an index into the sampler's cases and a voxel (z, y, x) there."""

    case: int
    centre: tuple[int, ...]


class HardPlaces(nn.Module):
    """The `capacity` worst false positives of each of the latest epochs.

    A module without weights, so that checkpoints carry it; its memory is shared with the worker
    processes and stays on the CPU.
    """

    def __init__(self, dims: int, capacity: int) -> None:
        super().__init__()
        # a row: tile number, case, centre; the epoch of a slot is −1 while it is empty
        self.rows = torch.full((_SLOTS, capacity, 2 + dims), -1, dtype=torch.int64)
        self.scores = torch.full((_SLOTS, capacity), -torch.inf)
        self.epochs = torch.full((_SLOTS,), -1, dtype=torch.int64)
        for shared in (self.rows, self.scores, self.epochs):
            shared.share_memory_()  # type: ignore[no-untyped-call]  # in torch

    def add(self, epoch: int, number: int, point: HardPoint, score: float) -> None:
        """Keep a place of `epoch` if it is among its worst."""
        slot = epoch % _SLOTS
        if int(self.epochs[slot]) != epoch:
            self.epochs[slot] = epoch
            self.scores[slot].fill_(-torch.inf)
        least = int(self.scores[slot].argmin())
        if score > float(self.scores[slot, least]):
            self.scores[slot, least] = score
            self.rows[slot, least] = torch.tensor([number, point.case, *point.centre])

    def of(self, epoch: int) -> tuple[HardPoint, ...]:
        """The places that tiles of `epoch` may show, in order of the tiles they were found in."""
        slot = (epoch - 2) % _SLOTS
        if epoch < 2 or int(self.epochs[slot]) != epoch - 2:
            return ()
        rows = self.rows[slot][torch.isfinite(self.scores[slot])].tolist()
        return tuple(HardPoint(row[1], tuple(row[2:])) for row in sorted(rows))

    def get_extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "scores": self.scores, "epochs": self.epochs}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put it back, in the memory that the workers see."""
        for name, values in state.items():
            getattr(self, name).copy_(values)
