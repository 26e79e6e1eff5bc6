"""Train lesionseg on raw files for a number of minutes or steps, and predict. Run by vs_nnunet.py.

    python benchmarks/peers/cell_lesionseg.py JOB.json

Reading, checks, planning and preparation count; the learning-rate schedule covers the remaining
minutes. The job's `overrides` are settings of `train.py`. Prediction does not count. It is
`inference=balanced`, without mirroring. An interrupted training continues from its last checkpoint,
for the minutes or steps that remain.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.learning.held_out import CHOOSING, held_out
from lesionseg.cli import compose
from lesionseg.core import CaseFiles, Dataset, Selection
from lesionseg.inference.bundle import Bundle, write_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.pipeline.dataset_inspection import inspect_dataset
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import plan_run, with_focal_correction
from lesionseg.pipeline.prepare import prepare_cases
from lesionseg.pipeline.train_fold import train_networks
from lesionseg.training import module
from lesionseg.training.fit import CHECKPOINTS


def main() -> None:
    """Plan, prepare, train until the minutes are over, predict, and write times and sizes."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    output = Path(job["output"])
    typed = [f"data.root={job['data']}", f"seed={job['seed']}", *job["overrides"]]
    planned_minutes = "null" if job["steps"] else job["minutes"]  # a plan for a CPU depends on them
    typed += [f"trainer.accelerator={job['accelerator']}", f"trainer.max_minutes={planned_minutes}"]
    cfg: Any = compose("train", [*typed, "trainer.lightning.enable_progress_bar=false"])
    held = held_out(Path(job["data"]), output / "cache", group=job["group"])
    found = held.as_development(inspect_dataset(held.data, seed=0), job["choosing_fraction"])
    experiment = Experiment.on(cfg.model_copy(update={"data": held.data}), found, output)
    plan = plan_run(experiment)
    cases = prepare_cases(found, plan, experiment.cache)
    before = minutes_before_training(job["began"], output)
    if job.get("clock") == "processor":
        before = 0.0
        # the training ends, and its learning rate falls, by this clock
        module.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore
    minutes = None if job["steps"] else job["minutes"] - before
    trainer = cfg.trainer.model_copy(update={"max_minutes": minutes, "max_steps": job["steps"]})
    experiment = experiment.on_this_process(cfg.model_copy(update={"trainer": trainer}))
    processor = time.process_time()
    fitted = train_networks(experiment, plan, cases, validate=None)
    processor = time.process_time() - processor
    plan_of_bundle = with_focal_correction(plan, cfg.loss, cfg.detection)
    networks = tuple(one.network for one in fitted)
    selection = Selection(n_members=len(networks))
    card = "Networks of a benchmark."
    write_bundle(output / "bundle", networks, plan_of_bundle, card, selection=selection)
    if job.get("predicts", True):
        bundle = Bundle(networks, plan_of_bundle)
        predictor = Predictor(bundle, device=fitted[0].device, settings=cfg.inference)
        predicted = (*found.of_role("validation"), *found.of_role(CHOOSING))
        write_log_odds(predictor, predicted, found.dataset, output)
    made = {
        "networks": len(fitted),
        "steps": sum(one.steps for one in fitted),
        "minutes": before + sum(one.minutes for one in fitted),
        "minutes_before_training": before,
        "training_cpu_minutes": processor / 60,  # of the last process, if it was interrupted
        "tile": list(plan.tile_shape),
        "batch": plan.batch_size,
        "features": list(plan.architecture.features),
        "threads": job["threads"],
    }
    (output / "made.json").write_text(json.dumps(made, indent=1))


def write_log_odds(
    predictor: Predictor, cases: Iterable[CaseFiles], dataset: Dataset, folder: Path
) -> None:
    """Predict cases of a dataset, and write the log-odds of each into `folder`."""
    for files in cases:
        image = read_case(files, dataset).image
        p = np.clip(predictor.probabilities(image).astype(np.float64), 1e-38, 1 - 2**-53)
        np.save(folder / f"{files.case}.npy", (np.log(p) - np.log1p(-p)).astype(np.float32))


def minutes_before_training(began: float, output: Path) -> float:
    """Return the minutes from the raw files to the first step, also if the training continues.

    Only the process that begins the training measures them. It writes them to `output`.
    """
    file = output / "minutes_before_training.json"
    if not (output / CHECKPOINTS / "last.ckpt").is_file():
        file.write_text(json.dumps((time.time() - began) / 60))
    return float(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
