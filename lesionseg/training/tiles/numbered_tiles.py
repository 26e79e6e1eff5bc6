"""Training tiles by number: the sampler's epochs strung together into one stream."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from lesionseg.data.augmentation.augment import AugmentationSettings, build_augmentation
from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.sampling import HardPoint, SamplingSettings, TileChoice, TileSampler
from lesionseg.data.tile_dataset import RawTile, TileDataset
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.hard_background import HardPlaces


class EpochTiles:
    """Tile i of the stream is tile i mod `n_tiles` of epoch i div `n_tiles`, augmented.

    A function of `seed` and i alone, in whatever process and order it is asked for, and of the hard
    background found two epochs before, `hard`, which is all that a checkpoint has to keep. Raises
    what `TileSampler` refuses on first use.
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
        hard = round(sampling.hard_share * n_tiles)
        self.hard = HardPlaces(plan.dims, hard) if hard else None
        self._hard_epoch = -1

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
        epoch, index = divmod(number, self.n_tiles)
        self._show_hard(epoch)
        return self.dataset.raw(epoch, index)

    def choice(self, number: int) -> TileChoice:
        """Where the tile of that number lies."""
        epoch, index = divmod(number, self.n_tiles)
        self._show_hard(epoch)
        return self.dataset.sampler.choose(epoch, index)

    def report(self, number: int, voxel: tuple[int, ...], score: float) -> None:
        """Remember that voxel of that tile, as hard background for a later epoch."""
        if self.hard is None:
            return
        epoch, index = divmod(number, self.n_tiles)
        choice, shape = self.choice(number), self.plan.tile_shape
        away = self.dataset.change(epoch, index).movement.place(voxel, shape)
        centre = tuple(
            min(max(start + step, 0), n - 1)
            for start, step, n in zip(
                choice.start, away, self.cases[choice.case].shape, strict=True
            )
        )
        valid = self.cases[choice.case].valid
        if valid is None or valid[centre]:  # rounding may have led it into what is ignored
            self.hard.add(epoch, number, HardPoint(choice.case, centre), score)

    def _show_hard(self, epoch: int) -> None:
        if self.hard is not None and self._hard_epoch != epoch:
            self.dataset.sampler.set_hard(self.hard.of(epoch))
            self._hard_epoch = epoch

    def finish(self, raw: RawTile) -> dict[str, Tensor]:
        """The tile, augmented on the device where its raw form is."""
        return self.dataset.finish(raw)

    def __getstate__(self) -> dict[str, object]:
        """Settings only: the sampler's tables do not travel to other processes."""
        return {name: value for name, value in vars(self).items() if name != "dataset"}
