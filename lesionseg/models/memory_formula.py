"""Estimated GPU memory of a training step: bytes per voxel, weight and anchor, constants."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from lesionseg.models.build import TRUSTED, build_network
from lesionseg.models.custom_network import n_logits
from lesionseg.plan.plan import Architecture, Plan

# 10⁹ bytes of the driver and its libraries
CONTEXT_GB = 0.9
# 10⁹ bytes of the workspaces of convolutions
WORKSPACE_GB = 1.5
# Bytes of a number in bf16 or fp16, as under autocast
HALF = 2
# Bytes of a number in fp32
FULL = 4
# Bytes of a weight: fp32, AdamW's two moments, and the copy in half precision
WEIGHT_BYTES = 14
# Bytes per voxel of a batch: labels, instances, valid
MASK_BYTES = 6
# Bytes per logit of a voxel while the loss is computed, for the loss that needs most
LOSS_BYTES = 60
# Bytes per logit of a voxel after the loss
GRADIENT_BYTES = 12
# Bytes per output of a detector's heads
ANCHOR_BYTES = 20


def step_gb(plan: Plan) -> float:
    """Estimate the GPU memory of a training step of a plan in 10⁹ bytes, to choose tile and batch.

    The step is in half precision with AdamW. A network that is not ours counts as our U-Net.
    `training.trial_steps` measures trial steps on the GPU and corrects the estimate.
    """
    return CONTEXT_GB + WORKSPACE_GB + tensors_gb(plan)


def tensors_gb(plan: Plan) -> float:
    """Estimate the memory of the tensors of a training step in 10⁹ bytes, for `step_gb`.

    Memory is highest when the backward pass begins. Then there are the weights with AdamW's
    moments, the batch, the tensors that autograd stores for the backward pass, and the gradient of
    the finest head's input. The driver and the workspaces of convolutions are not included.

    A segmentation network that is not ours counts as our U-Net. For a detector, the weights of its
    actual backbone are counted. Compared with measured allocations for plans of 8 to 80 GB, the
    estimate is within 10 %, and never more than 5 % too low.
    """
    architecture = plan.architecture
    if architecture.network and not plan.has_boxes:
        architecture = replace(architecture, name="unet", network={})
        plan = plan.with_(architecture=architecture)
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in build_network(plan, architectures=TRUSTED).parameters())
    # the channels in fp32 and their copy in half precision, and the masks
    bytes_per_voxel: float = len(plan.channel_names) * (FULL + HALF) + MASK_BYTES
    bytes_per_voxel += sum(_encoder_bytes(architecture)) + sum(_decoder_bytes(plan))
    if plan.has_voxels:
        bytes_per_voxel += _heads_bytes(plan)
    bytes_per_voxel += sum(_detector_bytes(plan))
    n_voxels = plan.batch_size * prod(plan.tile_shape)
    return (WEIGHT_BYTES * n_weights + bytes_per_voxel * n_voxels) / 1e9


def _voxel_fractions(architecture: Architecture) -> list[float]:
    """Return, for each stage, the number of voxels of its map divided by the image's number."""
    fractions = []
    fraction = 1.0
    for stride in architecture.strides:
        fraction /= prod(stride)
        fractions.append(fraction)
    return fractions


def _block_bytes(features: int) -> int:
    """Return the bytes that autograd stores for a convolution block, per voxel of its map.

    For the backward pass it stores, in half precision, the input of the norm and the activation,
    with `features` channels each.
    """
    return 2 * HALF * features


def _encoder_bytes(architecture: Architecture) -> list[float]:
    """Return the bytes that autograd stores for each stage of the encoder, per voxel of the image.

    Without `encoder_blocks`, a stage has `blocks` blocks of one convolution. A residual encoder has
    two convolutions per block, a stem and skip connections.
    """
    stage_bytes = []
    previous_features = architecture.features[0]
    for stage, (features, share) in enumerate(
        zip(architecture.features, _voxel_fractions(architecture), strict=True)
    ):
        n_bytes = architecture.blocks * _block_bytes(features)
        if architecture.encoder_blocks:
            # two convolutions per block
            n_bytes = 2 * architecture.encoder_blocks[stage] * _block_bytes(features)
            if stage == 0:
                n_bytes += _block_bytes(features)  # the stem
            else:
                # the skip connection of the first block, in half precision (`HALF` is 2 bytes)
                n_bytes += HALF * (previous_features + features)
        stage_bytes.append(share * n_bytes)
        previous_features = features
    return stage_bytes


def _decoder_bytes(plan: Plan) -> list[float]:
    """Return the bytes that autograd stores for each stage of the decoder, per voxel of the image.

    The coarsest stage belongs to the encoder and is not counted.
    """
    architecture = plan.architecture
    # the decoder of a RetinaNet ends at the finest stage with anchors
    first = plan.anchors.stages[0] if plan.anchors is not None and not plan.has_voxels else 0
    stages = list(zip(architecture.features, _voxel_fractions(architecture), strict=True))[first:-1]
    stage_bytes = []
    for features, share in stages:
        concatenated = 2 * HALF * features  # the upsampled map and that of the encoder
        stage_bytes.append(share * (concatenated + architecture.blocks * _block_bytes(features)))
    return stage_bytes


def _heads_bytes(plan: Plan) -> float:
    """Return the peak memory of the segmentation heads and their loss, in bytes per image voxel.

    The peak is the larger one of two moments:

    - The loss of the finest level is computed: all heads have stored their inputs in fp32.
    - The backward pass reaches the finest head: its input and the gradient of its input are in
      fp32. The inputs of the coarser heads have gradients in half precision.
    """
    architecture = plan.architecture
    # features of each stage, per voxel of the image
    features_per_voxel = [
        f * share
        for f, share in zip(architecture.features, _voxel_fractions(architecture), strict=True)
    ]
    finest = features_per_voxel[0]
    coarser = features_per_voxel[1 : architecture.n_supervised]
    loss = FULL * (finest + sum(coarser)) + LOSS_BYTES * n_logits(plan)
    return max(loss, 2 * FULL * finest + HALF * sum(coarser) + GRADIENT_BYTES * n_logits(plan))


def _detector_bytes(plan: Plan) -> list[float]:
    """Return the bytes that autograd stores for each level of a detector, per voxel of the image.

    A level has a lateral convolution, two towers and the outputs of all anchors. If the plan has no
    anchors, the list is empty.
    """
    anchors = plan.anchors
    if anchors is None:
        return []
    shares: Sequence[float] = _voxel_fractions(plan.architecture)
    # numbers per voxel of a level: one score per label and the coordinates of each anchor
    outputs = anchors.n_shapes * (len(plan.labels.lesion_names) + 2 * plan.dims)
    # the last layer of a tower has its input in fp32
    tower = anchors.depth * _block_bytes(anchors.width) + FULL * anchors.width
    # the lateral convolution, the towers of classes and of boxes, and the outputs
    level = HALF * anchors.width + 2 * tower + ANCHOR_BYTES * outputs
    return [shares[stage] * level for stage in anchors.stages]
