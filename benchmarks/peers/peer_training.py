"""Time nnU-Net's training for bench_training.py, in the peers' environment.

    PYTHONPATH=. python benchmarks/peers/peer_training.py JOB

JOB is a `training_work.Job` as JSON. The last line of the output is JSON. `nnUNetTrainer` runs on
the files of `nnUNetv2_plan_and_preprocess`. Its plans get the job's network, tile and batch. The
variables `nnUNet_n_proc_DA` and `nnUNet_compile` have their usual effect.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.training_work import SIZES, Job, Laps, Size, memory_mb

DATASET = "Dataset001_Bench"


def main() -> None:
    """Run the job and print its numbers."""
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    with contextlib.redirect_stdout(sys.stderr):
        found = train(job)
    print(json.dumps(found))


def network_arguments(size: Size) -> dict[str, Any]:
    """Return the shape of nnU-Net's plain U-Net with nnU-Net's keys."""
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
    """Return a trainer on all prepared cases with the job's network, tile and batch."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    place = Path(job.folder) / "pre" / DATASET
    plans = json.loads((place / "nnUNetPlans.json").read_text())
    size = SIZES[job.size]
    configuration = plans["configurations"][size.configuration]
    configuration |= {"patch_size": list(size.tile), "batch_size": size.batch}
    configuration["architecture"]["arch_kwargs"] |= network_arguments(size)
    facts = json.loads((place / "dataset.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, size.configuration, "all", facts, torch.device(job.device))
    if job.device == "cuda":  # like nnUNetv2_train
        torch.backends.cudnn.benchmark = True
    return trainer


def train(job: Job) -> dict[str, float]:
    """Time `train_step` on one batch in memory or on batches of nnU-Net's workers."""
    trainer = make_trainer(job)
    laps = Laps(job)
    base = memory_mb("VmRSS")
    if job.what == "step":
        trainer.initialize()
        batch = make_batch(trainer)
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


def make_batch(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """Return noise with a lesion in the middle of each tile, and labels at all levels."""
    size = trainer.configuration_manager.patch_size
    image, labels = make_tiles((trainer.batch_size, trainer.num_input_channels, *size), seed)
    levels = []
    for scale in trainer._get_deep_supervision_scales():
        smaller = tuple(round(n * s) for n, s in zip(size, scale, strict=True))
        levels.append(functional.interpolate(labels, smaller).to(torch.int16))
    return {"data": image, "target": levels}


def make_tiles(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return an image and a label map of one channel with equal spatial shapes."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(shape, generator=draw)
    labels = torch.zeros((shape[0], 1, *shape[2:]))
    middle = tuple(slice(3 * n // 8, 5 * n // 8) for n in shape[2:])
    labels[(slice(None), slice(None), *middle)] = 1
    return image + labels * 2, labels


if __name__ == "__main__":
    main()
