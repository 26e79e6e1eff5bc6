"""Train lesionseg on raw files for a number of minutes or steps, and predict. Run by vs_nnunet.py.

    python benchmarks/peers/cell_lesionseg.py JOB.json

Reading, checks, planning and preparation count; the learning-rate schedule covers the remaining
minutes. The job's `overrides` are settings of `train.py`. Prediction does not count. It is
`inference=balanced`, without mirroring. An interrupted training continues from its last checkpoint,
for the minutes or steps that remain.
"""

import json
import os
import sys
import time
from pathlib import Path
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from benchmarks.learning.held_out import held_out
from lesionseg.cli import compose
from lesionseg.inference.bundle import Bundle, write_bundle
from lesionseg.core import Volume
from lesionseg.inference.decision import find_by_rule
from lesionseg.inference.predictor import PreparedScan, Predictor
from lesionseg.io.cases import read_case
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import plan_run, with_focal_correction
from lesionseg.pipeline.prepare import prepare_cases
from lesionseg.pipeline.survey import Survey, take_survey
from lesionseg.pipeline.train_fold import train_network
from lesionseg.plan.plan import Plan
from lesionseg.training import module
from lesionseg.training.fit import CHECKPOINTS, FitResult


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
    found = held.as_development(take_survey(held.data, seed=0))
    experiment = Experiment.on(cfg.model_copy(update={"data": held.data}), found, output)
    plan = plan_run(experiment)
    cases = prepare_cases(experiment, plan)
    before = minutes_before_training(job["began"], output)
    if job.get("clock") == "processor":
        before = 0.0
        # the training ends, and its learning rate falls, by this clock
        module.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore
    minutes = None if job["steps"] else job["minutes"] - before
    trainer = cfg.trainer.model_copy(update={"max_minutes": minutes, "max_steps": job["steps"]})
    experiment = experiment.on_this_process(cfg.model_copy(update={"trainer": trainer}))
    processor = time.process_time()
    hard = []
    if True:
        os.environ["HARD_TILES"] = str(output / "hard.npy")
        (output / "hard.npy").unlink(missing_ok=True)
        hard = [MineHardTiles(experiment, plan, cases, output / "hard.npy", minutes)]
    fitted = train_network(experiment, plan, cases, validate=None, callbacks=hard)
    processor = time.process_time() - processor
    if job.get("predicts", True):
        predict(fitted, plan, cfg, found, output)
    else:
        write_bundle(output / "bundle", [fitted.network], plan, "A network of a benchmark.")
    made = {
        "steps": fitted.steps,
        "minutes": before + fitted.minutes,
        "minutes_before_training": before,
        "training_cpu_minutes": processor / 60,  # of the last process, if it was interrupted
        "tile": list(plan.tile_shape),
        "batch": plan.batch_size,
        "features": list(plan.architecture.features),
        "threads": job["threads"],
    }
    (output / "made.json").write_text(json.dumps(made, indent=1))


class MineHardTiles(pl.Callback):
    """At eight times in a training, predict eight training scans and list their false positives."""

    def __init__(self, experiment, plan, cases, path, minutes):
        self.experiment, self.plan, self.cases, self.path = experiment, plan, cases, path
        self.every = minutes / 9
        self.due = self.every
        self.found = {}
        self.rng = np.random.default_rng(experiment.cfg.seed)
        self.order = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.elapsed_minutes() < self.due:
            return
        self.due += self.every
        began = time.process_time()
        module.zero_grad()
        network = deepcopy(module.network).eval()
        plan = with_focal_correction(self.plan, self.experiment.cfg)
        predictor = Predictor(Bundle((network,), plan), settings=self.experiment.cfg.inference.model_copy(update={"overlap": 0.125}))
        for _ in range(min(4, len(self.cases))):
            if not self.order:
                self.order = self.rng.permutation(len(self.cases)).tolist()
            index = self.order.pop()
            self.found[index] = self.mine(predictor, plan, self.cases[index])
        rows = [(i, *centre) for i, centres in sorted(self.found.items()) for centre in centres]
        part = self.path.with_name("hard.part.npy")
        np.save(part, np.array(rows, dtype=np.int64).reshape(-1, 1 + plan.dims))
        part.replace(self.path)
        print("hard: step", trainer.global_step, len(rows), "in", len(self.found), "scans;",
              round(time.process_time() - began, 1), "s", flush=True)

    @torch.no_grad()
    def mine(self, predictor, plan, case):
        image = np.array(case.image, dtype=np.float32)
        scan = PreparedScan(Volume(image, case.geometry, missing=case.missing), case.geometry)
        p = predictor.infer(scan)
        p = np.stack([np.concatenate(list(p.slabs(k, None))) for k in range(len(p.store.values))])
        found = find_by_rule(p, case.geometry, plan.candidate_rule, plan.labels)
        lesions = np.asarray(case.instances) > 0
        centres = []
        for one in sorted(found.candidates, key=lambda c: -c.score):
            inside = found.instances == one.id
            if one.score < 0.1 or lesions[inside].any() or len(centres) == 20:
                continue
            best = np.where(inside, p.max(axis=0), -1).argmax()
            centres.append(tuple(map(int, np.unravel_index(best, inside.shape))))
        return centres


def predict(fitted: FitResult, plan: Plan, cfg: Any, found: Survey, output: Path) -> None:
    """Write the log-odds of each scored case."""
    predictor = Predictor(
        Bundle((fitted.network,), with_focal_correction(plan, cfg)),
        device=fitted.device,
        settings=cfg.inference,
    )
    for files in found.of_role("validation"):
        image = read_case(files, found.dataset).image
        p = np.clip(predictor.probabilities(image).astype(np.float64), 1e-38, 1 - 2**-53)
        np.save(output / f"{files.case}.npy", (np.log(p) - np.log1p(-p)).astype(np.float32))


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
