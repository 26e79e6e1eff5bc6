"""`prepare`: read and check every case, plan, and fill the cache."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.data.transforms import PrepareSettings
from lesionseg.io.files import locks, write_text
from lesionseg.pipeline.check import CheckOutcome, check_dataset
from lesionseg.pipeline.dataset import DataSettings, open_dataset, take_survey
from lesionseg.pipeline.learning import decide, prepare_cases
from lesionseg.pipeline.run_dir import check_config, default_run_dir, save_config
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.settings import TrainerSettings

log = logging.getLogger(__name__)

PAGE = "dataset_report.html"
NOT_TRIED = (
    "estimated; no step was tried. On a GPU train and tune try two first, and may go on with "
    "fewer or smaller tiles"
)


@dataclass(frozen=True)
class PrepareOutcome:
    """What `prepare` decided, a sentence a line."""

    lines: tuple[str, ...]

    def summary(self) -> list[str]:
        """What to print."""
        return list(self.lines)


@locks("run_dir")
def prepare(
    data: DataSettings,
    model: PlanOverrides,
    trainer: TrainerSettings,
    prepare: PrepareSettings,
    run_dir: str | None,
    check: bool,
    identifiers: bool,
    seed: int,
    config: Mapping[str, Any],
) -> PrepareOutcome | CheckOutcome:
    """Prepare a dataset for training, or only `check` it: list every problem, and write a page.

    Args:
        data: where the data lie and how they are divided.
        model: what the user decides of the plan.
        trainer: its accelerator and memory decide the device that is planned for.
        prepare: what else is done to each image.
        run_dir: where plan or page go; None: a new folder under `runs`.
        check: only check.
        identifiers: print the names and files of cases, which are called by number otherwise.
        seed: of the split.
        config: the resolved configuration, kept in `run_dir`.
    """
    run = Path(run_dir or default_run_dir(data.root, "check" if check else model.architecture))
    if check:
        return check_dataset(open_dataset(data, lenient=True), run / PAGE, identifiers=identifiers)
    check_config(run, config)
    survey = take_survey(data, seed, data.facts(run))
    plan = decide(survey, model, trainer, run, extra=prepare.extra)
    before = plan.reasons.get("memory", "").removesuffix(NOT_TRIED).removesuffix("; ")
    memory = "; ".join(filter(None, (before, NOT_TRIED)))
    plan = plan.with_(reasons={**plan.reasons, "memory": memory})
    write_text(run / "plan.json", plan.to_json())
    save_config(run, config)
    if run_dir is None:  # its name holds the time: the same command would begin again
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    cases = prepare_cases(survey, plan, data, run)
    lines = [f"{name}: {reason}" for name, reason in plan.reasons.items()]
    return PrepareOutcome((*lines, f"Training cases prepared: {len(cases)}. The plan is in {run}."))
