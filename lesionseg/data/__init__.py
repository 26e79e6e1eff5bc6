"""From a case to tiles for a network: prepared, cached, tiled, sampled, augmented.

The public API opens lazily: `lesionseg.data.tiling` needs numpy alone, and MONAI and torch are
imported with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lesionseg.data.tiling import TileGrid as TileGrid

if TYPE_CHECKING:
    from lesionseg.data.cache import CachedCase as CachedCase
    from lesionseg.data.cache import fill_cache as fill_cache
    from lesionseg.data.cache import open_dataset as open_dataset
    from lesionseg.data.preprocess import prepare_case as prepare_case
    from lesionseg.data.preprocess import prepare_image as prepare_image
    from lesionseg.data.tiles import TileDataset as TileDataset

_MODULES = {
    "CachedCase": "cache",
    "TileDataset": "tiles",
    "fill_cache": "cache",
    "open_dataset": "cache",
    "prepare_case": "preprocess",
    "prepare_image": "preprocess",
}

__all__ = ["TileGrid", *_MODULES]


def __getattr__(name: str) -> Any:
    """Import the module behind a public name, and MONAI with it, only when it is asked for."""
    if name in _MODULES:
        return getattr(import_module(f"lesionseg.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lesionseg.data' has no attribute {name!r}")
