"""Networks: backbones and heads, built from the tables of a plan.

`ARCHITECTURES` lists the names that a plan can contain. A segmentation network takes
`[B, C, *spatial]` and returns a list of logits at full resolution. In train mode, the logits of the
coarser supervised levels follow in the same list.
"""

from lesionseg.models.build import (
    ARCHITECTURES,
    NetworkFactory,
    build_network,
    fast_dtype,
    fast_memory_format,
)
from lesionseg.models.heads import SegmentationHead, prior_bias
from lesionseg.models.unet import Decoder, Encoder, UNet
from lesionseg.plan.plan import total_stride

__all__ = [
    "ARCHITECTURES",
    "Decoder",
    "Encoder",
    "NetworkFactory",
    "SegmentationHead",
    "UNet",
    "build_network",
    "fast_dtype",
    "fast_memory_format",
    "prior_bias",
    "total_stride",
]
