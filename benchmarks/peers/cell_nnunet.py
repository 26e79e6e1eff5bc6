"""Train nnU-Net v2 on raw files for a number of minutes or steps, and predict. Run by vs_nnunet.py.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/cell_nnunet.py JOB.json

It needs the environment of the peers and nnU-Net's three folders as environment variables.
Fingerprint, plan and preprocessing count. Step, loss, augmentation and sampler are nnU-Net's own.
Its polynomial schedule covers the remaining minutes. Validation epochs are left out in its favour.
The job names a planner of nnU-Net. Its plan is used as it is ("own"), with the tile and features
that the device can afford ("cut"), or with a given tile and number of tiles per step ("tiles").
Prediction does not count. It is nnU-Net's own, without mirroring. An interrupted training continues
from its last checkpoint, for the minutes or steps that remain.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()  # nnU-Net imports torchvision

from nnunetv2.experiment_planning.experiment_planners.network_topology import (  # noqa: E402
    get_pool_and_conv_props,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.paths import nnUNet_preprocessed  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

EXPONENT = 0.9  # of nnU-Net's polynomial schedule
CHECKPOINT_STEPS = 100
SMALLEST_MAP = 4  # voxels per axis at the coarsest stage, as nnU-Net plans


@dataclass
class Trained:
    """The facts about a training until now.

    Attributes:
        minutes_before: Minutes from the raw files to the first step.
        minutes: Minutes of training.
        cpu_minutes: Processor minutes of the training process, without its loader.
        losses: Loss of each step.
    """

    minutes_before: float
    minutes: float = 0.0
    cpu_minutes: float = 0.0
    losses: list[float] = field(default_factory=list)


def main() -> None:
    """Plan, preprocess, train until the minutes are over, predict, and write times and sizes."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002 - what nnU-Net draws from
    trainer = prepare(job)
    output = Path(job["output"])
    spent = 0.0 if job["clock"] == "processor" else (time.time() - job["began"]) / 60
    trained = train(trainer, job, Trained(spent), output / "nnunet.pth")
    predict(trainer, job["scans"], output)
    config = trainer.configuration_manager
    losses = trained.losses
    made = {
        "steps": len(losses),
        "minutes": trained.minutes_before + trained.minutes,
        "minutes_before_training": trained.minutes_before,
        "training_cpu_minutes": trained.cpu_minutes,
        "tile": [int(n) for n in config.patch_size],
        "batch": int(config.batch_size),
        "features": list(config.network_arch_init_kwargs["features_per_stage"]),
        "last_loss": float(np.mean(losses[-20:])) if losses else None,
        "threads": job["threads"],
    }
    (output / "made.json").write_text(json.dumps(made, indent=1))


def prepare(job: dict[str, Any]) -> nnUNetTrainer:
    """Run nnU-Net's three steps before training, and return its initialised trainer."""
    configuration = job["configuration"]
    extract_fingerprints([1], num_processes=job["threads"])
    name = plan_experiments([1], job["planner"])
    folder = Path(str(nnUNet_preprocessed)) / job["dataset"]
    plans = json.loads((folder / f"{name}.json").read_text())
    if job["plan"] != "own":
        cut(plans["configurations"][configuration], job)
        (folder / f"{name}.json").write_text(json.dumps(plans))
    preprocess([1], name, [configuration], num_processes=[job["threads"]])
    described = json.loads((folder / "dataset.json").read_text())
    plans["continue_training"] = False
    device = torch.device(job["device"])
    trainer = nnUNetTrainer(plans, configuration, "all", described, device=device)
    trainer.initialize()
    trainer.on_train_start()
    return trainer


def cut(config: dict[str, Any], job: dict[str, Any]) -> None:
    """Change the plan: narrower stages, and other tiles.

    With the plan "cut", a step has at most `batch` tiles of at most `tile_voxels`, with the
    proportions of nnU-Net's tile. With "tiles", it has exactly `batch` tiles of the shape `tile`.
    """
    spacing = config["spacing"]
    if job["plan"] == "tiles":
        strides, kernels, tile = topology(spacing, job["tile"])
        config["batch_size"] = job["batch"]
    else:
        strides, kernels, tile = tile_within(config["patch_size"], spacing, job)
        config["batch_size"] = min(config["batch_size"], job["batch"])
    n = len(strides)
    first, most = job["features"]
    config["patch_size"] = [int(size) for size in tile]
    network = config["architecture"]["arch_kwargs"]
    blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in network else "n_conv_per_stage"
    network |= {
        "n_stages": n,
        "features_per_stage": [min(first * 2**i, most) for i in range(n)],
        "kernel_sizes": [list(map(int, k)) for k in kernels],
        "strides": [list(map(int, s)) for s in strides],
        blocks: network[blocks][:n],
        "n_conv_per_stage_decoder": network["n_conv_per_stage_decoder"][: n - 1],
    }


def tile_within(own: list[int], spacing: list[float], job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return strides, kernels and tile of nnU-Net's rules for the largest tile that is allowed."""
    shrink = min(1.0, (job["tile_voxels"] / prod(own)) ** (1 / len(own)))
    while True:
        wanted = [max(2 * SMALLEST_MAP, round(n * shrink)) for n in own]
        strides, kernels, tile = topology(spacing, wanted)
        if prod(tile) <= job["tile_voxels"]:
            return strides, kernels, tile
        shrink *= 0.95


def topology(spacing: list[float], tile: list[int]) -> tuple[Any, Any, Any]:
    """Return strides and kernels of nnU-Net's rules for a tile, and the tile that they allow."""
    _, strides, kernels, tile, _ = get_pool_and_conv_props(spacing, tile, SMALLEST_MAP, 999999)
    return strides, kernels, tile


def train(
    trainer: nnUNetTrainer, job: dict[str, Any], trained: Trained, checkpoint: Path
) -> Trained:
    """Train for a number of steps, or for the minutes that the preparation has left.

    The learning rate falls over the whole training. Every hundred steps, nnU-Net's checkpoint is
    written, and an interrupted training continues from it. Writing does not count as training.

    Args:
        trainer: nnU-Net's initialised trainer.
        job: Number of `steps`, or None, and `minutes` of the `clock`, the limit without `steps`.
        trained: The minutes before training.
        checkpoint: File of the checkpoint. Its facts are in a JSON file next to it.

    Returns:
        Losses and minutes. There is no loss if the preparation took all minutes.
    """
    steps = job["steps"]
    now = time.process_time if job["clock"] == "processor" else time.time
    facts = checkpoint.with_suffix(".json")
    if checkpoint.is_file() and facts.is_file():
        trainer.load_checkpoint(str(checkpoint))
        trained = Trained(**json.loads(facts.read_text()))
        print(f"continues after step {len(trained.losses)}", flush=True)
    losses = trained.losses
    left = job["minutes"] - trained.minutes_before
    # with the minutes of the processes that were interrupted
    before = trained.minutes
    cpu_before = trained.cpu_minutes - time.process_time() / 60
    began = now()
    trainer.network.train()
    while True:
        trained.minutes = before + (now() - began) / 60
        trained.cpu_minutes = cpu_before + time.process_time() / 60
        by_minutes = trained.minutes / left if left > 0 else 1.0
        progress = len(losses) / steps if steps else by_minutes
        if progress >= 1:
            break
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - progress) ** EXPONENT
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        if len(losses) % 50 == 0:
            print(f"step {len(losses)}: loss {np.mean(losses[-50:]):.3f}", flush=True)
        if len(losses) % CHECKPOINT_STEPS == 0:
            trained.minutes = before + (now() - began) / 60
            began_writing = now()
            unfinished = checkpoint.with_name("unfinished.pth")
            trainer.save_checkpoint(str(unfinished))
            facts.write_text(json.dumps(asdict(trained)))
            unfinished.replace(checkpoint)
            began += now() - began_writing
    trainer.dataloader_train._finish()
    trainer.dataloader_val._finish()
    return trained


def predict(trainer: nnUNetTrainer, scans: dict[str, list[str]], output: Path) -> None:
    """Write log-odds `[1, *spatial]` float32 of the lesion label on each scan's own grid."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=False,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    trainer.set_deep_supervision_enabled(False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)  # of torch.compile
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        None,
    )
    reader = trainer.plans_manager.image_reader_writer_class()
    for case, files in scans.items():
        image, properties = reader.read_images(files)
        _, found = predictor.predict_single_npy_array(image, properties, None, None, True)
        # the smaller probability keeps digits that the larger one loses by rounding to 1
        background, lesion = np.clip(found.astype(np.float64), 1e-38, 1)
        odds = np.log(lesion) - np.log(background)
        odds = odds[0] if trainer.configuration_name == "2d" else odds
        np.save(output / f"{case}.npy", odds[None].astype(np.float32))


if __name__ == "__main__":
    main()
