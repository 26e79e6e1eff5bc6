"""Networks: backbone and heads from the plan's tables, by a closed table of names.

A segmentation network takes `[B, C, *spatial]` and returns a list of logits, full resolution
first; coarser, supervised levels follow in train mode only.
"""

from lesionseg.models.backbone import Decoder as Decoder
from lesionseg.models.backbone import Encoder as Encoder
from lesionseg.models.backbone import total_stride as total_stride
from lesionseg.models.build import ARCHITECTURES as ARCHITECTURES
from lesionseg.models.build import NetworkFactory as NetworkFactory
from lesionseg.models.build import build_network as build_network
from lesionseg.models.heads import SegmentationHead as SegmentationHead
from lesionseg.models.heads import prior_bias as prior_bias
from lesionseg.models.precision import fast_dtype as fast_dtype
from lesionseg.models.precision import fast_memory_format as fast_memory_format
from lesionseg.models.unet import UNet as UNet

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
