"""Time lesionseg's training for bench_training.py.

    python benchmarks/peers/train_ours.py prepare FOLDER SIZE
    python benchmarks/peers/train_ours.py JOB

The first command prepares the raw dataset FOLDER/raw/Dataset001_Bench on the grid of a plan,
FOLDER/plan.json. JOB is a `training_work.Job` as JSON. The last line of the output is JSON.
Training uses the public function `fit` with the default loss, optimiser, sampling and augmentation.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.peers.training_work import SIZES, Job, Laps, Size, memory_mb
from lesionseg.config import TrainConfig
from lesionseg.core import Labels
from lesionseg.data.cache import CachedCase, read_cached_case
from lesionseg.data.tiles import TileDataset
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Normalisation, Plan
from lesionseg.training.fit import fit
from lesionseg.training.module import LesionModule
from lesionseg.training.objective import make_objective, noise_batch


class Watch(pl.Callback):
    """A callback that times every step and ends the training after enough steps."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock: the batch is on the device."""
        self.laps.begin()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Stop the clock after the optimiser, the averages and the other callbacks."""
        if self.laps.end():
            trainer.should_stop = True


class InMemory(Dataset[dict[str, Tensor]]):
    """A dataset that repeats the same few tiles."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: t[number % len(t)] for name, t in self.batch.items()}


def main() -> None:
    """Run the job and print its numbers."""
    logging.getLogger("lesionseg").setLevel(logging.WARNING)
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), SIZES[sys.argv[3]])
        return
    print(json.dumps(work(Job(**json.loads(sys.argv[1])))))


def prepare(folder: Path, size: Size) -> None:
    """Fill the cache from the raw files on the grid that they suggest.

    All cases are for training.
    """
    from lesionseg.pipeline.dataset_inspection import inspect_dataset
    from lesionseg.pipeline.prepare import prepare_cases
    from lesionseg.plan.make import make_plan

    root = folder / "raw" / "Dataset001_Bench"
    cfg = TrainConfig.of(data={"root": root, "validation_fraction": 0})
    found = inspect_dataset(cfg.data, seed=0)
    plan = make_plan(found.fingerprint, found.dataset, memory_gb=8, device="cpu")
    plan = plan.with_(tile_shape=size.tile, batch_size=size.batch, architecture=size.architecture())
    (folder / "plan.json").write_text(plan.to_json())
    prepare_cases(found, plan, folder / "cache")
    print(json.dumps({"cases": len(read_cases(folder))}))


def read_cases(folder: Path) -> list[CachedCase]:
    """Return the prepared cases."""
    return [read_cached_case(p.parent) for p in sorted((folder / "cache").rglob("case.json"))]


def plan_of(job: Job) -> Plan:
    """Return the plan of the data, or a default plan for a batch in memory."""
    path = Path(job.folder) / "plan.json"
    size = SIZES[job.size]
    shape = size.architecture()
    if path.is_file():
        return Plan.from_json(path.read_text()).with_(architecture=shape)
    return Plan(
        dims=size.dims,
        modality="mri" if size.dims == 3 else "colour",
        channel_names=size.channels,
        labels=Labels((1,), ("lesion",)),
        spacing_mm=(1.0,) * size.dims,
        normalisation=(Normalisation("zscore"),) * len(size.channels),
        tile_shape=size.tile,
        batch_size=size.batch,
        architecture=shape,
        lesion_fraction=0.01,
    )


def work(job: Job) -> dict[str, float]:
    """Train, and return the times of steps and tiles and the memory."""
    torch.set_num_threads(job.threads)
    plan = plan_of(job)
    laps = Laps(job)
    trainer = {
        "max_steps": 10**9,
        "accelerator": "gpu" if job.device.startswith("cuda") else "cpu",
        "precision": job.precision,
        "workers": job.workers if job.what == "tiles" else 0,
        "lightning": {"enable_progress_bar": False},
    }
    cfg = TrainConfig.of(trainer=trainer)
    base = memory_mb("VmRSS")
    network = build_network(plan)
    weights = sum(p.numel() for p in network.parameters())
    with tempfile.TemporaryDirectory() as run:
        if job.what == "step":  # repeatedly on one batch
            tiles = InMemory(noise_batch(plan, plan.batch_size))
        else:
            cases = read_cases(Path(job.folder))
            tiles = TileDataset(cases, plan, cfg.sampling, cfg.augment)
        objective = make_objective(plan, cfg.loss, cfg.detection)
        module = LesionModule(network, objective, cfg.trainer, cfg.optim)
        fit(module, tiles, Path(run), callbacks=[Watch(laps)])
    grown = memory_mb("VmHWM") - base
    return {"peak_mb": grown, "weights": weights} | laps.result()


if __name__ == "__main__":
    main()
