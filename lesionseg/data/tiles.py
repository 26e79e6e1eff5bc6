"""Dataset of training tiles: reads a tile from the cache, augments it, drops a channel.

It is a MONAI dataset without an end.
"""

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
from lesionseg.core.arrays import Numbers
from lesionseg.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    AugmentationParams,
    RandomDraws,
    TileTensors,
    apply_augmentation,
    build_augmentation,
    tile_generator,
)
from lesionseg.data.cache import CachedCase
from lesionseg.data.sampling import Stream, TileChoice, TileSampler
from lesionseg.data.tiling import read_tile
from lesionseg.data.transforms import (
    TileItem,
    Transform,
    add_mask_keys,
    as_meta_tensor,
    build_transform,
    run_on_tile,
)
from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class RawTile:
    """The data read for a tile, before its changes are applied.

    `tensors` contains image and masks. `change` contains the changes to apply. `choice` contains
    the case and the position.
    """

    tensors: TileTensors
    change: AugmentationParams
    choice: TileChoice


class TileDataset(Dataset):  # type: ignore[misc]  # MONAI ships no types
    """Numbered, augmented tiles of cached cases. The numbers have no upper limit.

    Tile i is tile i mod `n_tiles` of epoch i // `n_tiles`. It depends only on `seed` and i, in any
    process and order. `len` is the length of an epoch. For more tiles, give `sampler=range(n)` to
    the loader. An item contains:

    - `image` `[C, *tile]` float32 and `label` `[1, *tile]` uint8 (0 background, k for the plan's
      k-th mask value). Both are MetaTensors whose affine maps the tile's index to RAS millimetres.
      It includes flips, rotation, scale and shear, but not elastic deformation, which is not
      affine.
    - `instances` `[1, *tile]` int32: lesion ids of the case.
    - `valid` `[1, *tile]` bool: False outside of the volume and for ignored voxels.
    - `unannotated` `[K]` bool, if any case lacks annotations of some labels: True for labels that
      the case does not annotate.

    Args:
        cases: Prepared cases, from `fill_cache`.
        plan: Shape of the tiles, channels and labels.
        sampling: The mix of tiles; None for half of them around lesions.
        augmentation: The settings of random changes. None for no changes.
        n_tiles: Tiles of an epoch. lesionseg's training has `STEPS_PER_EPOCH` steps of tiles
            instead of this default.
        seed: Seed of the positions and changes.
        transform: Further dictionary transforms. They run after the random changes and after the
            transforms `extra` of `augmentation`.
        channel_dropout: The share of tiles in which one random channel is set to 0, after all other
            changes. Tiles of a case that lacks channels keep the remaining ones.

    Raises:
        ConfigError: If `channel_dropout` is set and the plan requires all channels, or if a
            transform of `augmentation` cannot be built. On first use, if the plan does not have a
            flip axis, or if a transform fails.
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
        # `augment.extra` runs first, then the transforms of the caller
        transforms = []
        if augmentation is not None:
            transforms += [
                build_transform(add_mask_keys(spec), "augment.extra") for spec in augmentation.extra
            ]
        if callable(transform):
            transforms.append(transform)
        else:
            transforms += transform
        super().__init__(range(n_tiles), transforms)  # the data of an item is its number
        self.cases = tuple(cases)
        self.plan = plan
        self.n_tiles = n_tiles
        self.seed = seed
        self.sampling = sampling or SamplingConfig.of()
        self.augmentation = augmentation
        self._lacks_annotations = any(case.unannotated for case in self.cases)
        self.channel_dropout = channel_dropout
        if channel_dropout and not plan.may_lack:
            raise ConfigError(
                "data.channel_dropout: the plan requires all channels. Set data.channel_dropout=0, "
                "or plan with channels that may be missing."
            )

    @cached_property
    def sampler(self) -> TileSampler:
        """The sampler that chooses case and position of each tile, created once in each process."""
        shape = self.plan.tile_shape
        return TileSampler(self.cases, shape, self.sampling, n_tiles=self.n_tiles, seed=self.seed)

    @cached_property
    def _augmenter(self) -> Augmentation | None:
        """The source of random changes, created once in each process; None if nothing changes."""
        return build_augmentation(self.augmentation, self.plan) if self.augmentation else None

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle for worker processes of a loader.

        The cached `sampler` and `_augmenter` are left out, and each process creates its own.
        """
        return {k: v for k, v in vars(self).items() if k not in ("sampler", "_augmenter")}

    def set_random_state(self, *_args: object, **_kwargs: object) -> None:
        """Ignore the seed of MONAI's loaders, because a tile depends only on its number."""

    def _transform(self, index: int) -> TileItem:
        """Return item `index`, as the docstring of the class describes it.

        MONAI's `Dataset.__getitem__` calls this method.
        """
        raw = self.raw(index)
        tile = self.finish(raw)
        case = self.cases[raw.choice.case]
        affine = self.affine(raw)
        item: TileItem = {
            "image": as_meta_tensor(tile["image"], affine, case.case),
            "label": as_meta_tensor(tile["labels"][None], affine, case.case),
            "instances": tile["instances"][None],
            "valid": tile["valid"][None],
        }
        if self.transform.transforms:
            epoch, number = divmod(index, self.n_tiles)
            generator = tile_generator(self.seed, epoch, number, Stream.TRANSFORMS)
            # seeds of MONAI and NumPy have 32 bits
            item = run_on_tile(self.transform, item, generator.initial_seed() % 2**32)
            # a transform may have changed an empty channel
            for channel in raw.change.missing:
                item["image"][channel] = 0
        if self._lacks_annotations:
            labels = range(1, len(self.plan.labels) + 1)
            item["unannotated"] = torch.tensor([k in case.unannotated for k in labels])
        return item

    def affine(self, raw: RawTile) -> Numbers:
        """Return the affine that maps an index of the augmented tile to RAS millimetres.

        The elastic deformation is not included, because it is not affine.
        """
        dims = self.plan.dims
        to_volume = np.eye(dims + 1)  # from an index of the tile to one of the volume
        to_volume[:dims] = raw.change.spatial.matrix(self.plan.tile_shape)
        to_volume[:dims, dims] += raw.choice.start
        return self.cases[raw.choice.case].geometry.affine @ to_volume

    def raw(self, number: int) -> RawTile:
        """Read tile `number` and draw its changes, which `finish` then applies.

        The tensors include the surroundings of the tile from which its changes read. The image is
        float16, as in the cache. Instances are uint8 if the ids are below 256, to copy fewer bytes,
        otherwise int32. If the case lacks channels, these channels replace a dropped channel.
        """
        epoch, index = divmod(number, self.n_tiles)
        choice = self.sampler.choose(epoch, index)
        change = self.draw_params(number)
        case = self.cases[choice.case]
        source = change.spatial.source(self.plan.tile_shape)
        change = replace(change, missing=case.missing or change.missing)
        start = [s + first for s, (first, _) in zip(choice.start, source, strict=True)]
        shape = [stop - first for first, stop in source]
        labels, instances = _read_masks(case, start, shape)
        tensors = {
            "image": torch.from_numpy(read_tile(case.image, start, shape)),
            "labels": torch.from_numpy(labels),
            "instances": torch.from_numpy(instances),
            "valid": _read_valid(case, start, shape),
        }
        return RawTile(tensors, change, choice)

    def finish(self, raw: RawTile) -> TileTensors:
        """Apply the drawn changes to a tile that `raw` has read. Return it with instances in int32.

        The further transforms of `transform` are not applied.
        """
        tile = apply_augmentation(raw.tensors, raw.change, self.plan.tile_shape)
        return tile | {"instances": tile["instances"].int()}

    def draw_params(self, number: int) -> AugmentationParams:
        """Draw the augmentation of tile `number`.

        With the probability `channel_dropout`, also draw a random channel, which is then set to 0.
        """
        epoch, index = divmod(number, self.n_tiles)
        change = NO_AUGMENTATION
        if self._augmenter:
            generator = tile_generator(self.seed, epoch, index, Stream.AUGMENTATION)
            change = self._augmenter.draw(generator)
        if self.channel_dropout:
            draw = RandomDraws(tile_generator(self.seed, epoch, index, Stream.CHANNEL_DROPOUT))
            if draw.happens(self.channel_dropout):  # then a random channel is missing
                change = replace(change, missing=(draw.seed() % len(self.plan.channel_names),))
        return change


def _read_masks(
    case: CachedCase, start: Sequence[int], shape: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Read the label map and the lesion ids of a region of a cached case.

    Only the boxes of the lesions are read from disk, because most voxels are background.

    Args:
        case: The cached case.
        start: First voxel of the region, which may be outside the volume.
        shape: Voxels of the region along each axis.

    Returns:
        Labels in uint8, and lesion ids in uint8 if all ids of the case are below 256, otherwise in
        int32. Labels and ids are 0 outside the lesions.
    """
    lesions = case.lesions
    dims = len(shape)
    tile_start = np.array(start)
    tile_stop = tile_start + np.array(shape)
    # The last id is the highest. int32 instead of uint16, because torch supports few operations on
    # uint16.
    fits_uint8 = len(lesions) == 0 or lesions.ids[-1] < 256
    instances = np.zeros(shape, np.uint8 if fits_uint8 else np.int32)
    labels = np.zeros(shape, np.uint8)
    # the part of each lesion's box that is in the tile, in voxels of the volume
    low = np.maximum(lesions.boxes[:, :dims], tile_start)
    high = np.minimum(lesions.boxes[:, dims:], tile_stop)
    is_in_tile = (low < high).all(axis=1)
    if not is_in_tile.any():
        return labels, instances
    id_map = case.instances
    label_of_id = lesions.label_of_id()
    # a lesion of several labels needs the map of labels
    label_map = case.labels if case.is_mixed else None
    for first, last in zip(low[is_in_tile], high[is_in_tile], strict=True):
        in_volume = tuple(map(slice, first.tolist(), last.tolist()))
        in_tile = tuple(map(slice, (first - tile_start).tolist(), (last - tile_start).tolist()))
        ids = id_map[in_volume]
        instances[in_tile] = ids
        labels[in_tile] = label_of_id[ids] if label_map is None else label_map[in_volume]
    return labels, instances


def _read_valid(case: CachedCase, start: Sequence[int], tile_shape: Sequence[int]) -> Tensor:
    """Return the mask of the valid voxels of a tile, which is False outside of the volume.

    Tiles without invalid voxels share one tensor, so the result must not be changed.
    """
    valid = case.valid
    if valid is None:
        last_start = np.subtract(case.shape, tile_shape)
        if np.all(np.greater_equal(start, 0) & np.less_equal(start, last_start)):
            return _all_true(tuple(tile_shape))
        valid = np.broadcast_to(np.True_, case.shape)  # takes no memory
    return torch.from_numpy(read_tile(valid, start, tile_shape))


@lru_cache(maxsize=4)
def _all_true(shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of True, the same at each call with this shape. It must not be changed."""
    return torch.ones(shape, dtype=torch.bool)
