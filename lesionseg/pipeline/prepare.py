"""`prepare`: read and check every case, plan, fill the cache; printed reasons of the plan."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.config import PrepareConfig
from lesionseg.core import Geometry
from lesionseg.data.cache import CachedCase, cores, fill_cache
from lesionseg.errors import DatasetError, count
from lesionseg.host_memory import default_budget
from lesionseg.inference.read_ahead import needed_bytes
from lesionseg.pipeline.check import CheckOutcome, check_dataset
from lesionseg.pipeline.dataset_inspection import DatasetInspection
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.output_lock import hold_lock
from lesionseg.pipeline.planning import (
    check_losses,
    plan_run,
    save_run,
    with_focal_correction,
)
from lesionseg.pipeline.run_dir import (
    DIGESTS_OF_CASES,
    check_cases,
    config_of,
    default_run_dir,
    settings_of_training,
)
from lesionseg.plan.plan import Plan
from lesionseg.training.objective import make_objective

log = logging.getLogger(__name__)

PAGE = "dataset_report.html"
NOT_TRIED = (
    "none, so memory is estimated. On a GPU, train and tune try two steps first, and may continue "
    "with fewer or smaller tiles"
)


@dataclass(frozen=True)
class PrepareOutcome(Outcome):
    """A dataset that is ready for training.

    Attributes:
        plan: The plan, with a reason for each decision.
        run: The run directory.
        n_cases: Number of prepared training cases.
        settings: The settings of a training on these cases.
    """

    plan: Plan
    run: Path
    n_cases: int
    settings: Mapping[str, object]

    def record(self) -> dict[str, Any]:
        """Return run directory, path of the plan and number of prepared cases, for `--json`."""
        return {"run": self.run, "plan": self.run / "plan.json", "n_cases": self.n_cases}

    def summary(self) -> list[str]:
        """Return lines for the terminal: the reason for each decision of the plan, and its file."""
        lines = [f"{name}: {reason}" for name, reason in self.plan.reasons.items()]
        prepared = count(self.n_cases, "training case")
        return [*lines, f"Plan:    {self.run / 'plan.json'}; {prepared} prepared"]

    @property
    def next(self) -> str:
        """The command to run next: `train` on the prepared cases."""
        return command_line("train", self.settings)


@hold_lock("run_dir")
def prepare(cfg: PrepareConfig) -> PrepareOutcome | CheckOutcome:
    """Read and check every case, plan the training, and fill the cache with the training cases.

    A run directory that exists keeps its plan, unless its cases have changed. With `cfg.check`,
    nothing is prepared: all findings on the dataset are listed and written to a page.

    Raises:
        ConfigError: If a setting is wrong, or the run directory has another configuration.
        DatasetError: If a case cannot be used, or no lesion can be learned.
    """
    name = "check" if cfg.check else cfg.model.architecture
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, name))
    settings = settings_of_training(config_of(cfg))
    # The training needs a run directory of its own, whose name the user inserts. In the same parent
    # folder it finds the cache. A check makes no run, so the training can use its folder.
    if cfg.run_dir is not None:
        settings["run_dir"] = cfg.run_dir if cfg.check else run.parent / "NAME"
    if cfg.check:
        return check_dataset(
            cfg.data,
            cfg.model,
            cfg.seed,
            run / PAGE,
            settings=settings,
            identifiers=cfg.identifiers,
        )
    Experiment.check_run(cfg, run)
    experiment = Experiment.open(cfg, run)
    inspection = experiment.inspection
    is_same_data = True
    try:
        check_cases(run, inspection.splits, inspection.digests)
    except DatasetError:  # nothing was trained, so the plan may change
        is_same_data = False
        log.info("The data have changed, so the plan is made again.")
        (run / DIGESTS_OF_CASES).unlink(missing_ok=True)
    plan = plan_run(experiment, keeps_plan=is_same_data)
    loss = experiment.cfg.loss
    detection = experiment.cfg.detection
    # unlike `begin`, tries no training steps: this machine need not be that of the training
    check_losses(make_objective(with_focal_correction(plan, loss, detection), loss, detection))
    plan = plan.with_(reasons={**plan.reasons, "trial_steps": NOT_TRIED})
    save_run(experiment, plan)
    cases = prepare_cases(inspection, plan, experiment.cache)
    return PrepareOutcome(plan, run, len(cases), settings)


def prepare_cases(inspection: DatasetInspection, plan: Plan, cache: Path) -> list[CachedCase]:
    """Resample the training cases to the plan's grid, and return them. Cached cases are reused.

    New cases are written to the folder `cache`. Several cases are prepared at the same time: one
    per core, but no more than fit into memory.
    """
    # the number of largest cases that fit into memory together
    fingerprint = inspection.fingerprint
    grids = set(zip(fingerprint.shapes, fingerprint.spacings_mm, strict=True))
    largest = max(needed_bytes(Geometry.from_spacing(*grid), plan) for grid in grids)
    n_fitting = max(1, default_budget() // largest)
    n_together = min(cores(), n_fitting)
    log.debug(
        "Preparing up to %d cases at the same time; %d fit into memory.", n_together, n_fitting
    )
    with bar("Preparing cases") as advance:
        return fill_cache(
            # the rules of the dataset; its cases are the next argument
            replace(inspection.dataset, cases=()),
            inspection.of_role("train"),
            plan=plan,
            folder=cache,
            source=lambda files: inspection.digests[files.case],
            progress=advance,
            workers=n_together,
        )
