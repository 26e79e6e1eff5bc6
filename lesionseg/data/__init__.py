"""From cases to tiles for a network: preparation, cache, tiling, sampling and augmentation.

Names are imported when they are first used: `lesionseg.data.tiling` needs only numpy, and MONAI and
torch are imported with the first name that needs them.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.data.cache import CachedCase as CachedCase
    from lesionseg.data.cache import fill_cache as fill_cache
    from lesionseg.data.preprocess import prepare_case as prepare_case
    from lesionseg.data.preprocess_image import LOCAL_STD_FLOOR as LOCAL_STD_FLOOR
    from lesionseg.data.preprocess_image import SAME_MM as SAME_MM
    from lesionseg.data.preprocess_image import prepare_image as prepare_image
    from lesionseg.data.preprocess_image import window_of as window_of
    from lesionseg.data.tiles import TileDataset as TileDataset
    from lesionseg.data.tiling import TileGrid as TileGrid
    from lesionseg.data.transforms import require_trusted as require_trusted

_HOMES = {
    "CachedCase": "cache",
    "LOCAL_STD_FLOOR": "preprocess_image",
    "SAME_MM": "preprocess_image",
    "TileDataset": "tiles",
    "TileGrid": "tiling",
    "fill_cache": "cache",
    "prepare_case": "preprocess",
    "prepare_image": "preprocess_image",
    "require_trusted": "transforms",
    "window_of": "preprocess_image",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
