"""How much memory a training step of a plan's network takes, by a formula."""

from dataclasses import replace
from math import prod

import torch

from lesionseg.models.build import TRUSTED, build_network
from lesionseg.plan.plan import Plan

# 10⁹ bytes: of the driver and its libraries, and of what convolutions work in
CONTEXT_GB, WORKSPACE_GB, RESERVED = 0.9, 1.5, 1.05
# Bytes that autograd keeps per voxel and feature of a convolution in half precision; counted for
# four architectures on eight datasets, to 10 % for U-Nets
CONV_BYTES, RESIDUAL_CONVS = 6.0, 2


def step_gb(plan: Plan) -> float:
    """About how many 10⁹ bytes of GPU memory a training step of the plan takes in half precision.

    From the features of each stage, as nnU-Net's planner does it; a network that is not ours counts
    as our U-Net. `training.memory` corrects it by trying.
    """
    shape = plan.architecture
    if shape.network and not plan.has_boxes:
        shape = replace(shape, name="unet", network={})
    with torch.device("meta"):
        network = build_network(plan.with_(architecture=shape), architectures=TRUSTED)
        n_weights = sum(p.numel() for p in network.parameters())
    first = 0 if plan.has_voxels or plan.anchors is None else plan.anchors.stages[0]
    voxel, per_stage = 0.0, 1.0
    for stage, (features, stride) in enumerate(zip(shape.features, shape.strides, strict=True)):
        per_stage /= prod(stride)
        convs = (
            RESIDUAL_CONVS * shape.encoder_blocks[stage] if shape.encoder_blocks else shape.blocks
        )
        if first <= stage < len(shape.features) - 1:
            convs += shape.blocks  # of the decoder
        voxel += CONV_BYTES * convs * features * per_stage
        if plan.anchors is not None and stage in plan.anchors.stages:
            n_anchors = len(plan.anchors.sizes[0])
            outputs = n_anchors * (len(plan.lesion_labels) + 2 * plan.dims)
            heads = 2 * plan.anchors.depth * plan.anchors.width
            voxel += per_stage * (CONV_BYTES * heads + 40 * outputs)
    voxel += 2 * (4 * len(plan.channel_names) + 6)  # two batches of tiles
    weights = 22 * n_weights  # in fp32 and half, gradients, two moments, averages
    tiles = voxel * plan.batch_size * prod(plan.tile_shape)
    return CONTEXT_GB + WORKSPACE_GB + RESERVED * (weights + tiles) / 1e9
