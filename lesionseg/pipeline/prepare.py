"""The recipe of `prepare`: read and check every case, plan, and fill the cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import LesionsegError
from lesionseg.pipeline.run_dir import check_claim, claim, default_run_dir
from lesionseg.pipeline.settings import DataSettings
from lesionseg.pipeline.survey import inspect, survey
from lesionseg.pipeline.train import decide, prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.settings import TrainerSettings


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found: a sentence a line, and 1 when a case cannot be used."""

    lines: tuple[str, ...]
    exit_status: int = 0

    def summary(self) -> list[str]:
        """What to print."""
        return list(self.lines)


def prepare(
    data: DataSettings,
    model: PlanOverrides,
    trainer: TrainerSettings,
    run_dir: str | None,
    check: bool,
    seed: int,
    config: Mapping[str, Any],
) -> Prepared:
    """Prepare a dataset for training, or only `check` it and list every problem of every case."""
    if check:
        return _check(data)
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    check_claim(run, config)
    found = survey(data, seed)
    claim(run, config)
    plan = decide(found, model, trainer.accelerator, run)
    cases = prepare_cases(found, plan, data, run)
    lines = [f"{name}: {reason}" for name, reason in plan.reasons.items()]
    return Prepared((*lines, f"{len(cases)} training cases prepared; the plan is in {run}."))


def _check(data: DataSettings) -> Prepared:
    n_cases, problems = inspect(data)
    lines = [_line(problem) for problem in problems]
    verdict = f"{n_cases} cases read, {len(problems)} cannot be used."
    return Prepared((*lines, verdict), exit_status=int(bool(problems)))


def _line(problem: LesionsegError) -> str:
    return f"- {problem}"
