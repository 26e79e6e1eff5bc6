"""The recipe of `prepare`: read and check every case, plan, and fill the cache."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import one_of
from lesionseg.io.atomic import write_text
from lesionseg.io.folder_locks import locks
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.survey import open_dataset, take_survey
from lesionseg.pipeline.prepare.check import check_dataset
from lesionseg.pipeline.prepare.findings import CheckOutcome
from lesionseg.pipeline.run.cluster import EngineName, connected, ray_package
from lesionseg.pipeline.run.outcome import CommandOutcome
from lesionseg.pipeline.run.run_dir import check_claim, claim, default_run_dir
from lesionseg.pipeline.train.learning import decide, prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.settings import TrainerSettings

log = logging.getLogger(__name__)

PAGE = "dataset_report.html"
NOT_TRIED = (
    "estimated; no step was tried. On a GPU train and tune try two first, and may go on with "
    "fewer, smaller or larger tiles"
)


@dataclass(frozen=True)
class PrepareOutcome(CommandOutcome):
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
    engine: EngineName = "local",
) -> PrepareOutcome | CheckOutcome:
    """Prepare a dataset for training, or only `check` it: list every problem, and write a page.

    Args:
        data: where the data lie and how they are divided.
        model: what the user decides of the plan.
        trainer: its accelerator and memory decide the device that is planned for.
        prepare: what else is done to each image.
        run_dir: where the plan goes; None: a new folder under `runs`.
        check: only check, and write the page into `run_dir`.
        identifiers: print the names and files of cases, which are called by number otherwise.
        seed: of the split.
        config: the resolved configuration, kept in `run_dir`.
        engine: "local", or "ray" for a cluster whose machines all see the same folders.
    """
    one_of("engine", engine, get_args(EngineName), where="engine")
    if check:
        return _check(data, run_dir, identifiers)
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    check_claim(run, config)
    with connected(ray_package()) if engine == "ray" else nullcontext():
        survey = take_survey(data, seed, data.facts(run), engine)
        plan = _untried(decide(survey, model, trainer, run, extra=prepare.extra), run)
        claim(run, config)
        if run_dir is None:  # its name holds the time: the same command would begin again
            log.info("Results go to %s; run_dir=%s resumes it.", run, run)
        cases = prepare_cases(survey, plan, data, run, engine)
    lines = [f"{name}: {reason}" for name, reason in plan.reasons.items()]
    return PrepareOutcome((*lines, f"Training cases prepared: {len(cases)}. The plan is in {run}."))


def _untried(plan: Plan, run: Path) -> Plan:
    """The plan, which says that no step of it has been taken: `prepare` knows no loss."""
    before = plan.reasons.get("memory", "").removesuffix(NOT_TRIED).removesuffix("; ")
    reason = "; ".join(filter(None, (before, NOT_TRIED)))
    marked = plan.with_(reasons={**plan.reasons, "memory": reason})
    write_text(run / "plan.json", marked.to_json())
    return marked


def _check(data: DataSettings, run_dir: str | None, identifiers: bool) -> CheckOutcome:
    """The page lies in `run_dir` where one is named, else in a folder of its own under `runs`."""
    folder = Path(run_dir) if run_dir else default_run_dir(data.root, "check")
    dataset = open_dataset(data, lenient=True)
    return check_dataset(dataset, folder / PAGE, identifiers=identifiers)
