"""Training tiles by number: one endless MONAI dataset over cached cases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.config import AugmentConfig, SamplingConfig
from lesionseg.data.augment import (
    NO_CHANGE,
    Augmentation,
    Change,
    Draw,
    TileTensors,
    apply,
    build_augmentation,
    tile_generator,
)
from lesionseg.data.cache import CachedCase
from lesionseg.data.sampling import TileChoice, TileSampler
from lesionseg.data.tiling import read_tile
from lesionseg.data.transforms import (
    TileItem,
    Transform,
    as_meta_tensor,
    build,
    run_on_tile,
    with_masks,
)
from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class RawTile:
    """A tile on its way: what was read for it, from where, and the changes to be made."""

    tensors: TileTensors
    change: Change
    choice: TileChoice


class TileDataset(Dataset):  # type: ignore[misc]  # MONAI ships no types
    """Tile i is tile i mod `n_tiles` of the sampler's epoch i div `n_tiles`, augmented; no end.

    An item holds `image` `[C, *tile]` float32 and `label` `[1, *tile]` uint8 (0 background, k for
    the plan's k-th mask value), both MetaTensors. Their affine maps the tile's own index to RAS
    millimetres, through flips, rotation, scale and shear (a bend has no affine). Besides
    `instances` `[1, *tile]` int32 (lesion ids of the case) and `valid` `[1, *tile]` bool, false
    outside the volume and where the reference is to be ignored. Where some case does not annotate
    all labels, also `unannotated` `[K]` bool: the labels of which nothing is known in the tile.

    A tile is a function of `seed` and i alone, in any process and order. `len` is that of an epoch;
    for more give a loader `sampler=range(n)`. Raises what `TileSampler` raises on first use, and
    `ConfigError` where the plan cannot do without some channel.

    Args:
        cases: prepared cases, of `fill_cache`.
        plan: shape of the tiles, channels, labels.
        sampling: the mix of tiles; None: half of them around lesions.
        augmentation: how they are changed; None: not at all.
        n_tiles: of an epoch.
        seed: of places and changes.
        transform: further dictionary transforms, which run last.
        channel_dropout: the share of tiles in which one channel, each as often, is 0: the last
            change of all.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        plan: Plan,
        sampling: SamplingConfig | None = None,
        augmentation: AugmentConfig | None = None,
        *,
        n_tiles: int = 250,
        seed: int = 0,
        transform: Transform | Sequence[Transform] = (),
        channel_dropout: float = 0.0,
    ) -> None:
        extra = augmentation.extra if augmentation is not None else ()
        further = [transform] if callable(transform) else transform
        chain = [*(build(with_masks(spec), "augment.extra") for spec in extra), *further]
        super().__init__(range(n_tiles), chain)
        self.cases, self.plan, self.n_tiles, self.seed = tuple(cases), plan, n_tiles, seed
        self.sampling, self.augmentation = sampling or SamplingConfig.of(), augmentation
        self._is_partial = any(case.unannotated for case in self.cases)
        self.channel_dropout = channel_dropout
        if channel_dropout and not plan.may_lack:
            raise ConfigError("data.channel_dropout: the plan has no channel to do without.")

    @cached_property
    def sampler(self) -> TileSampler:
        """What chooses the tiles, made once in each process."""
        shape = self.plan.tile_shape
        return TileSampler(self.cases, shape, self.sampling, n_tiles=self.n_tiles, seed=self.seed)

    @cached_property
    def _augmenter(self) -> Augmentation | None:
        return build_augmentation(self.augmentation, self.plan) if self.augmentation else None

    def __getstate__(self) -> dict[str, object]:
        """Settings only: the sampler's tables do not travel to other processes."""
        return {k: v for k, v in vars(self).items() if k not in ("sampler", "_augmenter")}

    def set_random_state(self, *_args: object, **_kwargs: object) -> None:
        """Nothing: MONAI's loaders would seed here, but a tile depends on its number alone."""

    def _transform(self, index: int) -> TileItem:
        raw = self.raw(index)
        tile, case = self.finish(raw), self.cases[raw.choice.case]
        affine = self.affine(raw)
        item: TileItem = {
            "image": as_meta_tensor(tile["image"], affine, case.case),
            "label": as_meta_tensor(tile["labels"][None], affine, case.case),
            "instances": tile["instances"][None],
            "valid": tile["valid"][None],
        }
        if self.transform.transforms:
            generator = tile_generator(self.seed, *divmod(index, self.n_tiles), 3)
            item = run_on_tile(self.transform, item, generator.initial_seed() % 2**32)
            for channel in raw.change.missing:
                item["image"][channel] = 0
        if self._is_partial:
            labels = range(1, len(self.plan.labels) + 1)
            item["unannotated"] = torch.tensor([k in case.unannotated for k in labels])
        return item

    def affine(self, raw: RawTile) -> NDArray[np.float64]:
        """Maps an index of the changed tile (without its bend) to RAS millimetres."""
        dims, tile = self.plan.dims, np.eye(self.plan.dims + 1)
        tile[:dims] = raw.change.movement.matrix(self.plan.tile_shape)
        tile[:dims, dims] += raw.choice.start
        return np.asarray(self.cases[raw.choice.case].geometry.affine @ tile)

    def raw(self, number: int) -> RawTile:
        """What `finish` makes the same tile of: read, and its changes drawn but not carried out.

        With as much around it as a change moves into it. The image is float16, as in the cache,
        and few instances are uint8: less to move.
        """
        choice, change = self.sampler.choose(*divmod(number, self.n_tiles)), self.change(number)
        case, source = self.cases[choice.case], change.movement.source(self.plan.tile_shape)
        change = replace(change, missing=case.missing or change.missing)
        start = [s + first for s, (first, _) in zip(choice.start, source, strict=True)]
        shape = [stop - first for first, stop in source]
        labels, instances = _masks(case, start, shape)
        tensors = {
            "image": torch.from_numpy(read_tile(case.image, start, shape)),
            "labels": torch.from_numpy(labels),
            "instances": torch.from_numpy(instances),
            "valid": _valid(case, start, shape),
        }
        return RawTile(tensors, change, choice)

    def finish(self, raw: RawTile) -> TileTensors:
        """Carry out the changes."""
        tile = apply(raw.tensors, raw.change, self.plan.tile_shape)
        return tile | {"instances": tile["instances"].int()}

    def change(self, number: int) -> Change:
        """How the tile is changed."""
        key = self.seed, *divmod(number, self.n_tiles)
        change = self._augmenter.draw(tile_generator(*key, 2)) if self._augmenter else NO_CHANGE
        if self.channel_dropout:
            draw = Draw(tile_generator(*key, 4))
            if draw.happens(self.channel_dropout):
                return replace(change, missing=(draw.seed() % len(self.plan.channel_names),))
        return change


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
    source, table = case.instances, lesions.label_of_id()
    kinds = case.labels if case.is_mixed else None
    for a, b in zip(low[touched].tolist(), high[touched].tolist(), strict=True):
        here = tuple(map(slice, a, b))
        box = tuple(slice(i - s, j - s) for i, j, s in zip(a, b, start, strict=True))
        instances[box] = ids = source[here]
        labels[box] = table[ids] if kinds is None else kinds[here]
    return labels, instances


def _valid(case: CachedCase, start: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    valid = case.valid
    if valid is None:
        if all(0 <= s <= n - t for s, n, t in zip(start, case.shape, tile_shape, strict=True)):
            return _everywhere(tuple(tile_shape))
        valid = np.broadcast_to(np.True_, case.shape)
    return torch.from_numpy(read_tile(valid, start, tile_shape))


@lru_cache(maxsize=4)
def _everywhere(shape: tuple[int, ...]) -> Tensor:
    """True everywhere: one tensor shared by many tiles, never written to."""
    return torch.ones(shape, dtype=torch.bool)
