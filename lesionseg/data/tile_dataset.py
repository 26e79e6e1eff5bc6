"""Tiles for a network: a torch dataset over cached cases, and its loader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lesionseg.data.augmentation.augment import NO_CHANGE, Augmentation, Change, TileTensors, apply
from lesionseg.data.augmentation.draws import tile_generator
from lesionseg.data.augmentation.pasting import Donors, TileArrays, paste
from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.sampling import TileChoice, TileSampler
from lesionseg.data.tiling import read_tile
from lesionseg.errors import ConfigError


@dataclass(frozen=True, eq=False)
class RawTile:
    """A tile on its way: what was read for it, and the changes to be made."""

    tensors: TileTensors
    change: Change

    def to(self, device: torch.device) -> "RawTile":
        """On another device, without waiting for the copy."""
        moved = {key: t.to(device, non_blocking=True) for key, t in self.tensors.items()}
        return RawTile(moved, self.change)

    def pin_memory(self) -> "RawTile":
        """In memory from which a GPU can copy by itself; torch's loader asks for it."""
        return RawTile({key: t.pin_memory() for key, t in self.tensors.items()}, self.change)


class TileDataset(Dataset[TileTensors]):
    """`len(sampler)` tiles an epoch, each a function of (seed, epoch, index) alone.

    An item holds `image` `[C, *tile]` float32, `labels` `[*tile]` uint8 (0 background, k for the
    plan's k-th mask value), `instances` `[*tile]` int32 (lesion ids of the case) and `valid`
    `[*tile]` bool, false outside the volume and where the reference is to be ignored. `cases` are
    the sampler's. Raises `ConfigError` when sampler, cases and tile do not belong together.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        sampler: TileSampler,
        augmentation: Augmentation | None,
        tile_shape: Sequence[int],
    ) -> None:
        if tuple(cases) != sampler.cases or tuple(tile_shape) != sampler.tile_shape:
            raise ConfigError(
                "The sampler was made for other cases or tiles.",
                seen=(len(sampler.cases), sampler.tile_shape),
                expected=(len(cases), tuple(tile_shape)),
            )
        self.sampler = sampler
        self.augmentation = augmentation
        # shared, so that workers which live through all epochs see it change
        epoch = torch.zeros((), dtype=torch.int64)
        self._epoch: Tensor = epoch.share_memory_()  # type: ignore[no-untyped-call]  # in torch

    @cached_property
    def donors(self) -> Donors:
        """The lesions to copy, looked through once in each process that copies any."""
        return Donors(self.sampler.cases, self.sampler.tile_shape)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; call it before the loader is iterated anew."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose tiles are given."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, index: int) -> TileTensors:
        return self.tile(self.epoch, index)

    def tile(self, epoch: int, index: int) -> TileTensors:
        """Tile `index` of any epoch, augmented; for loaders that count epochs themselves."""
        return self.finish(self.raw(epoch, index))

    def raw(self, epoch: int, index: int) -> RawTile:
        """What `finish` makes the same tile of: read, and its changes drawn but not carried out."""
        change = self.change(epoch, index)
        return RawTile(self.read(self.sampler.choose(epoch, index), change), change)

    def change(self, epoch: int, index: int) -> Change:
        """How that tile is changed."""
        if self.augmentation is None:
            return NO_CHANGE
        return self.augmentation.draw(tile_generator(self.sampler.seed, epoch, index, 2))

    def finish(self, raw: RawTile) -> TileTensors:
        """Carry out the changes, on the device where the raw tile is."""
        tile = apply(raw.tensors, raw.change, self.sampler.tile_shape)
        return tile | {"instances": tile["instances"].int()}

    def read(self, choice: TileChoice, change: Change = NO_CHANGE) -> TileTensors:
        """The tile as it lies in the cache, or as much around it as a change moves into it.

        The image is float16, as in the cache, and few instances are uint8: less to move.
        """
        case = self.sampler.cases[choice.case]
        source = change.movement.source(self.sampler.tile_shape)
        start = [s + first for s, (first, _) in zip(choice.start, source, strict=True)]
        shape = [stop - first for first, stop in source]
        image, valid = read_tile(case.image, start, shape), _valid(case, start, shape)
        labels, instances = _masks(case, start, shape)
        if change.pasting is not None:
            paste(TileArrays(image, labels, instances, valid.numpy()), self.donors, change.pasting)
        return {
            "image": torch.from_numpy(image),
            "labels": torch.from_numpy(labels),
            "instances": torch.from_numpy(instances),
            "valid": valid,
        }


def build_loader(
    dataset: TileDataset,
    batch_size: int,
    workers: int,
    seed: int,
    *,
    rank: int = 0,
    n_ranks: int = 1,
) -> DataLoader:
    """Batches `{"image": [B, C, *tile], "labels": [B, *tile], …}` in the sampler's order.

    The order is random already and the same for any number of `workers` (forked processes with one
    torch thread each, kept over epochs; 0 works in this process). An incomplete last batch is left
    out. With several processes each reads every `n_ranks`-th tile from `rank` on.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=_InOrder(len(dataset), rank, n_ranks),
        num_workers=workers,
        drop_last=True,
        generator=generator,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers > 0 else None,
        pin_memory=torch.cuda.is_available(),
    )


class _InOrder(Sampler[int]):
    """Every `n_ranks`-th index from `rank` on, the same number for every rank."""

    def __init__(self, n: int, rank: int, n_ranks: int) -> None:
        self._indices = range(n - n % n_ranks)[rank::n_ranks]

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def _masks(
    case: CachedCase, start: Sequence[int], shape: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Labels and instances of a tile, read only where boxes of lesions reach into it."""
    lesions, dims, first = case.lesions, len(shape), np.array(start)
    few = not len(lesions) or lesions.ids[-1] < 256  # torch knows little of other small types
    instances = np.zeros(shape, dtype=np.uint8 if few else np.int32)
    labels = np.zeros(shape, dtype=np.uint8)
    low = np.maximum(lesions.boxes[:, :dims], first)
    high = np.minimum(lesions.boxes[:, dims:], first + np.array(shape))
    touched = (low < high).all(axis=1)
    if not touched.any():
        return labels, instances
    source, table = case.instances, lesions.label_table()
    kinds = case.labels if case.is_mixed else None
    for a, b in zip(low[touched].tolist(), high[touched].tolist(), strict=True):
        here = tuple(map(slice, a, b))
        box = tuple(slice(i - s, j - s) for i, j, s in zip(a, b, start, strict=True))
        instances[box] = found = source[here]
        labels[box] = table[found] if kinds is None else kinds[here]
    return labels, instances


def _valid(case: CachedCase, start: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    valid = case.valid
    if valid is not None:
        return torch.from_numpy(read_tile(valid, start, tile_shape))
    inside = all(0 <= s <= n - t for s, n, t in zip(start, case.shape, tile_shape, strict=True))
    if inside:
        return _everywhere(tuple(tile_shape))
    everywhere = np.broadcast_to(np.True_, case.shape)
    return torch.from_numpy(read_tile(everywhere, start, tile_shape))


@lru_cache(maxsize=4)
def _everywhere(shape: tuple[int, ...]) -> Tensor:
    """True everywhere: one tensor for many tiles, which nobody writes to."""
    return torch.ones(shape, dtype=torch.bool)
