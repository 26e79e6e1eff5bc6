"""nnU-Net's training, timed; run by bench_training.py in the peers' environment.

    PYTHONPATH=. python benchmarks/peers/peer_training.py trainer JOB
    PYTHONPATH=. python benchmarks/peers/peer_training.py network JOB
    PYTHONPATH=. python benchmarks/peers/peer_training.py curve JOB STEPS

JOB is a `training_work.Job` as JSON; the last line is JSON. `trainer`: nnU-Net's `nnUNetTrainer` on
what `nnUNetv2_plan_and_preprocess` left, its plans cut to the job's network, tile and batch;
`nnUNet_n_proc_DA` and `nnUNet_compile` count as ever. `network`: its U-Net alone, in bf16, where
only `dynamic_network_architectures` is installed. `curve`: its network and ours from the same
weights on the same batches with its loss and optimiser.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.training_work import SIZES, Job, Laps, Size, memory_mb

DATASET = "Dataset001_Bench"


def main() -> None:
    """Do the job, and print what it took."""
    what, job = sys.argv[1], Job.from_json(json.loads(sys.argv[2]))
    torch.set_num_threads(job.threads)
    with contextlib.redirect_stdout(sys.stderr):
        if what == "curve":
            found = curve(job, int(sys.argv[3]))
        else:
            found = {"trainer": train, "network": time_network}[what](job)
    print(json.dumps(found))


def arguments(size: Size) -> dict[str, Any]:
    """The shape of nnU-Net's plain U-Net, in its own words."""
    n = len(size.features)
    architecture = size.architecture()
    return {
        "n_stages": n,
        "features_per_stage": list(size.features),
        "kernel_sizes": [list(k) for k in architecture.kernels],
        "strides": [list(s) for s in architecture.strides],
        "n_conv_per_stage": [architecture.blocks] * n,
        "n_conv_per_stage_decoder": [architecture.blocks] * (n - 1),
    }


def make_trainer(job: Job) -> Any:
    """A trainer on all prepared cases, its plans cut to the job's size."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    place = Path(job.folder) / "pre" / DATASET
    plans = json.loads((place / "nnUNetPlans.json").read_text())
    size = SIZES[job.size]
    chosen = plans["configurations"]["3d_fullres"]
    chosen |= {"patch_size": list(size.tile), "batch_size": size.batch}
    chosen["architecture"]["arch_kwargs"] |= arguments(size)
    described = json.loads((place / "dataset.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", described, torch.device(job.device))
    if job.device == "cuda":  # as nnUNetv2_train has it
        torch.backends.cudnn.benchmark = True
    return trainer


def train(job: Job) -> dict[str, float]:
    """Time `train_step`, on one batch or on those of its own workers."""
    trainer, laps = make_trainer(job), Laps(job)
    base = memory_mb("VmRSS")
    if job.what == "step":
        trainer.initialize()
        batch = some_batch(trainer)
    else:
        trainer.on_train_start()
    trainer.on_train_epoch_start()
    done = False
    while not done:
        if job.what == "tiles":
            batch = next(trainer.dataloader_train)
        laps.begin()
        trainer.train_step(batch)
        done = laps.end()
    grown = memory_mb("VmHWM") - base
    if job.what == "tiles":
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            getattr(loader, "_finish", lambda: None)()
    weights = sum(p.numel() for p in trainer.network.parameters())
    return {"peak_mb": grown, "weights": weights} | laps.result()


def some_batch(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """Noise with a lesion in the middle of each tile, and its labels at every supervised level."""
    size = trainer.configuration_manager.patch_size
    image, labels = noise((trainer.batch_size, trainer.num_input_channels, *size), seed)
    levels = []
    for scale in trainer._get_deep_supervision_scales():
        smaller = tuple(round(n * s) for n, s in zip(size, scale, strict=True))
        levels.append(functional.interpolate(labels, smaller).to(torch.int16))
    return {"data": image, "target": levels}


def noise(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """An image and a label map of the same shape, one channel each."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(shape, generator=draw)
    labels = torch.zeros((shape[0], 1, *shape[2:]))
    middle = tuple(slice(3 * n // 8, 5 * n // 8) for n in shape[2:])
    labels[(slice(None), slice(None), *middle)] = 1
    return image + labels * 2, labels


def plain_network(size: Size, *, bias: bool = True) -> nn.Module:
    """nnU-Net's plain U-Net with background and one label."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=1,
        conv_op=nn.Conv3d,
        num_classes=2,
        conv_bias=bias,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **arguments(size),
    )


def monai_network(size: Size) -> nn.Module:
    """MONAI's DynUNet of the same stages, its norms learnt as nnU-Net's are."""
    from monai.networks.nets import DynUNet

    own = size.architecture()
    n = len(size.features)
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=own.kernels,
        strides=own.strides,
        upsample_kernel_size=own.strides[1:],
        filters=size.features,
        norm_name=("instance", {"affine": True}),
        deep_supervision=n > 2,
        deep_supr_num=max(n - 2, 1),
    )


def levels_of(output: Tensor | list[Tensor]) -> list[Tensor]:
    """Logits of each supervised level; MONAI stacks them, all of the tile's own size."""
    if isinstance(output, list):
        return output
    return list(output.unbind(1)) if output.ndim == 6 else [output]


def time_network(job: Job, build: Callable[[Size], nn.Module] = plain_network) -> dict[str, float]:
    """A step of the network alone: bf16, cross-entropy at every level, clipping, SGD."""
    size, laps = SIZES[job.size], Laps(job)
    base = memory_mb("VmRSS")
    torch.backends.cudnn.benchmark = True
    network = build(size).to(job.device).train()
    weights = sum(p.numel() for p in network.parameters())
    if job.compile:
        network.compile()
    optimiser = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    image, labels = (t.to(job.device) for t in noise((size.batch, 1, *size.tile), 0))
    done = False
    while not done:
        laps.begin()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(job.device).type, torch.bfloat16):
            output = network(image)
        levels = levels_of(output)
        losses = [
            functional.cross_entropy(
                level.float(), functional.interpolate(labels, level.shape[2:])[:, 0].long()
            )
            for level in levels
        ]
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()
        done = laps.end()
    return {"peak_mb": memory_mb("VmHWM") - base, "weights": weights} | laps.result()


def curve(job: Job, steps: int) -> dict[str, Any]:
    """Losses of nnU-Net's network and of ours, in fp32 and as ours trains here, step by step."""
    from lesionseg.models.precision import fast_dtype

    size, device = SIZES[job.size], torch.device(job.device)
    theirs, ours = equal_networks(size)
    losses = {"nnunet": losses_of(theirs, job, steps), "ours": losses_of(ours, job, steps)}
    if fast_dtype(device) == torch.bfloat16:
        losses["ours_bf16"] = losses_of(equal_networks(size)[1], job, steps, torch.bfloat16)
    gradient = gradient_difference(*equal_networks(size), size)
    return {"losses": losses, "gradient": gradient, "weights": [n_weights(theirs), n_weights(ours)]}


def equal_networks(size: Size) -> tuple[nn.Module, nn.Module]:
    """nnU-Net's network, its biases before norms and of its transposed convolutions left out, and
    ours with the same weights.

    nnU-Net's head at the coarsest of its levels, whose loss has no weight, has no twin.
    """
    from lesionseg.models.unet import UNet

    torch.manual_seed(0)
    theirs = plain_network(size, bias=False)
    ours = UNet(3, 1, size.architecture(), (0.0, 0.0))
    own = theirs.state_dict()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weight.copy_(own[their_name(name, len(size.features))])
    return theirs, ours


def their_name(name: str, n_stages: int) -> str:
    """The name in nnU-Net's network of a weight of ours; its decoder counts from the coarsest.

    >>> their_name("encoder.stages.0.1.norm.bias", 5)
    'encoder.stages.0.0.convs.1.norm.bias'
    >>> their_name("decoder.ups.0.weight", 5)
    'decoder.transpconvs.3.weight'
    """
    part, *rest = name.split(".")
    if part == "heads":
        return f"decoder.seg_layers.{n_stages - 2 - int(rest[0])}.{rest[2]}"
    kind, stage, *rest = rest
    if part == "encoder":
        return f"encoder.stages.{stage}.0.convs.{'.'.join(rest)}"
    place = n_stages - 2 - int(stage)
    if kind == "ups":
        return f"decoder.transpconvs.{place}.{rest[0]}"
    return f"decoder.stages.{place}.convs.{'.'.join(rest)}"


def supervise(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """nnU-Net's Dice and cross-entropy at each level, weighted as its trainer weights them."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    weights = [0.5**level for level in range(len(outputs))]
    terms = [
        weight * loss(_upcast(output), functional.interpolate(labels, output.shape[2:]))
        for weight, output in zip(weights, outputs, strict=True)
    ]
    return torch.stack(terms).sum() / sum(weights)


def _upcast(output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output


def step(network: nn.Module, size: Size, number: int, job: Job, dtype: torch.dtype) -> Tensor:
    """The loss of one batch, its gradients taken."""
    image, labels = noise((size.batch, 1, *size.tile), number)
    device, image = torch.device(job.device), image.to(next(network.parameters()).dtype)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        outputs = network(image.to(device))
    levels = size.architecture().n_supervised
    loss = supervise(outputs[:levels], labels.to(device))
    loss.backward()
    return loss.detach()


def losses_of(
    network: nn.Module, job: Job, steps: int, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Train with nnU-Net's optimiser; the loss of every step."""
    network.to(job.device).train()
    optimiser = torch.optim.SGD(
        network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
    )
    losses = []
    for number in range(steps):
        optimiser.zero_grad()
        losses.append(float(step(network, SIZES[job.size], number, job, dtype)))
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()
    return losses


def gradient_difference(theirs: nn.Module, ours: nn.Module, size: Size) -> float:
    """Largest difference of a gradient, relative to the largest of that weight.

    In double precision, on tiles half as long: in fp32 gradients that cancel are mostly rounding.
    """
    job, smaller = Job("step", ""), replace(size, side=size.side // 2)
    for network in (theirs, ours):
        step(network.double().train(), smaller, 0, job, torch.float32)
    named = dict(theirs.named_parameters())
    worst = 0.0
    for name, weight in ours.named_parameters():
        gradient, twin = weight.grad, named[their_name(name, len(size.features))].grad
        assert gradient is not None
        assert twin is not None
        worst = max(worst, float((gradient - twin).abs().max() / twin.abs().max()))
    return worst


def n_weights(network: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    main()
