"""From a case to tiles for a network: prepared, cached, tiled, sampled, augmented.

The public API opens lazily: `lesionseg.data.tiling` needs numpy alone, and MONAI and torch are
imported with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lesionseg.data.tiling import TileGrid as TileGrid

if TYPE_CHECKING:
    from lesionseg.data.augmentation.augment import AugmentationSettings as AugmentationSettings
    from lesionseg.data.augmentation.augment import build_augmentation as build_augmentation
    from lesionseg.data.cache.cached_case import CachedCase as CachedCase
    from lesionseg.data.cache.case_cache import Cache as Cache
    from lesionseg.data.cache.fill import fill_cache as fill_cache
    from lesionseg.data.cache.fill import open_dataset as open_dataset
    from lesionseg.data.prepared_case import PreparedCase as PreparedCase
    from lesionseg.data.prepared_case import prepare_case as prepare_case
    from lesionseg.data.prepared_case import prepare_image as prepare_image
    from lesionseg.data.prepared_reference import PreparedReference as PreparedReference
    from lesionseg.data.prepared_reference import prepare_reference as prepare_reference
    from lesionseg.data.sampling import SamplingSettings as SamplingSettings
    from lesionseg.data.sampling import TileSampler as TileSampler
    from lesionseg.data.tile_dataset import TileDataset as TileDataset

_MODULES = {
    "AugmentationSettings": "augmentation.augment",
    "Cache": "cache.case_cache",
    "CachedCase": "cache.cached_case",
    "PreparedCase": "prepared_case",
    "PreparedReference": "prepared_reference",
    "SamplingSettings": "sampling",
    "TileDataset": "tile_dataset",
    "TileSampler": "sampling",
    "build_augmentation": "augmentation.augment",
    "fill_cache": "cache.fill",
    "open_dataset": "cache.fill",
    "prepare_case": "prepared_case",
    "prepare_image": "prepared_case",
    "prepare_reference": "prepared_reference",
}

__all__ = ["TileGrid", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import the module behind a public name, and MONAI with it, only when it is asked for."""
    if name in _MODULES:
        return getattr(import_module(f"lesionseg.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lesionseg.data' has no attribute {name!r}")
