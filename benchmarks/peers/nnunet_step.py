"""A training step of nnU-Net v2 on a batch in memory, for gpu_decide.py, without its data pipeline.

The step is that of `nnUNetTrainer.train_step`: PlainConvUNet with deep supervision, Dice and
cross-entropy, SGD, and on a GPU fp16 autocast with a gradient scaler. It needs the packages
`nnunetv2` and `dynamic_network_architectures`, but none of their dependencies except torch.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional


class PeerMissingError(Exception):
    """A package to compare with is not installed."""


def make_nnunet_step(
    features: Sequence[int], side: int, batch: int, device: str, *, compiler: str | None = None
) -> Callable[[], None]:
    """Return nnU-Net's training step of `batch` tiles of `side`³ voxels on a device.

    Args:
        features: Number of features of each stage.
        side: Voxels of a tile per axis.
        batch: Number of tiles.
        device: `cuda` or `cpu`.
        compiler: Backend with which network and Dice are compiled, as nnU-Net does by default. None
            compiles nothing.

    Raises:
        PeerMissingError: If nnU-Net is not installed.
    """
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    except ImportError as error:
        raise PeerMissingError(f"peer not installed: {error}") from error
    n = len(features)
    network = PlainConvUNet(
        input_channels=1,
        n_stages=n,
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=[[3] * 3] * n,
        strides=[[1] * 3, *[[2] * 3] * (n - 1)],
        n_conv_per_stage=[2] * n,
        num_classes=2,
        n_conv_per_stage_decoder=[2] * (n - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    ).to(device)
    loss = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    if compiler is not None:
        network = torch.compile(network, backend=compiler)
        loss.dc = torch.compile(loss.dc, backend=compiler)
    halves = [0.5**level for level in range(n - 1)]
    if n > 2:
        halves[-1] = 0.0  # nnU-Net gives no weight to the coarsest level
    deep = DeepSupervisionWrapper(loss, [half / sum(halves) for half in halves])
    optimiser = torch.optim.SGD(
        network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
    )
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    image = torch.randn(batch, 1, side, side, side, device=device)
    labels = torch.zeros(batch, 1, side, side, side, device=device)
    labels[..., side // 4 : side // 2, side // 4 : side // 2, side // 4 : side // 2] = 1
    targets = [functional.interpolate(labels, scale_factor=0.5**level) for level in range(n - 1)]

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, enabled=True) if device == "cuda" else nullcontext():
            value = deep(network(image), targets)
        scaler.scale(value).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimiser)
        scaler.update()

    return run
