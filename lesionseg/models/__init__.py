"""Networks: backbones and heads, built from the tables of a plan.

`ARCHITECTURES` lists the names that a plan can contain. A segmentation network takes
`[B, C, *spatial]` and returns a list of logits at full resolution. In train mode, the logits of the
coarser supervised levels follow in the same list.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.models.build import ARCHITECTURES as ARCHITECTURES
    from lesionseg.models.build import NetworkFactory as NetworkFactory
    from lesionseg.models.build import build_network as build_network
    from lesionseg.models.build import fast_dtype as fast_dtype
    from lesionseg.models.build import fast_memory_format as fast_memory_format
    from lesionseg.models.custom_network import n_logits as n_logits
    from lesionseg.models.heads import SegmentationHead as SegmentationHead
    from lesionseg.models.heads import prior_bias as prior_bias
    from lesionseg.models.unet import Decoder as Decoder
    from lesionseg.models.unet import Encoder as Encoder
    from lesionseg.models.unet import UNet as UNet

_HOMES = {
    "ARCHITECTURES": "build",
    "Decoder": "unet",
    "Encoder": "unet",
    "NetworkFactory": "build",
    "SegmentationHead": "heads",
    "UNet": "unet",
    "build_network": "build",
    "fast_dtype": "build",
    "fast_memory_format": "build",
    "n_logits": "custom_network",
    "prior_bias": "heads",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
