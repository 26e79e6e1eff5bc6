"""Networks: backbone and heads from the plan's tables, by a closed table of names.

A segmentation network takes `[B, C, *spatial]` and returns a list of logits, full resolution
first; coarser, supervised levels follow in train mode only.
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
