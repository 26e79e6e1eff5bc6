"""Training tiles by number: the sampler's epochs strung together into one stream."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from lesionseg.data.augment import AugmentationSettings, build_augmentation
from lesionseg.data.cached_case import CachedCase
from lesionseg.data.dataset import RawTile, TileDataset
from lesionseg.data.sampling import SamplingSettings, TileSampler
from lesionseg.plan.plan import Plan


class EpochTiles:
    """Tile i of the stream is tile i mod `n_tiles` of epoch i div `n_tiles`, augmented.

    A function of `seed` and i alone, in whatever process and order it is asked for; so nothing of
    the sampler needs to be kept in a checkpoint. Raises what `TileSampler` refuses on first use.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        plan: Plan,
        sampling: SamplingSettings,
        augmentation: AugmentationSettings,
        *,
        n_tiles: int,
        seed: int,
    ) -> None:
        self.cases, self.plan, self.n_tiles, self.seed = tuple(cases), plan, n_tiles, seed
        self.sampling, self.augmentation = sampling, augmentation

    @cached_property
    def dataset(self) -> TileDataset:
        """Sampler and augmentation, made once a process."""
        sampler = TileSampler(
            self.cases,
            self.plan.tile_shape,
            n_tiles=self.n_tiles,
            seed=self.seed,
            lesion_share=self.sampling.lesion_share,
            hard_share=self.sampling.hard_share,
            size_weight=self.sampling.size_weight,
        )
        change = build_augmentation(self.augmentation, self.plan)
        return TileDataset(self.cases, sampler, change, self.plan.tile_shape)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.finish(self.raw(number))

    def raw(self, number: int) -> RawTile:
        """What `finish` makes the tile of: read by a worker, to be changed on the GPU."""
        return self.dataset.raw(*divmod(number, self.n_tiles))

    def finish(self, raw: RawTile) -> dict[str, Tensor]:
        """The tile, augmented on the device where its raw form is."""
        return self.dataset.finish(raw)

    def __getstate__(self) -> dict[str, object]:
        """Settings only: the sampler's tables do not travel to other processes."""
        return {name: value for name, value in vars(self).items() if name != "dataset"}
