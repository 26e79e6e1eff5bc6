"""The recipe of `train`: from a folder of scans to a bundle, scores and a report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.data.augmentation.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.evaluation import Preset
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.losses.detection_loss import DetectionLoss
from lesionseg.pipeline.dataset.data_settings import ALL_FOLDS, DataSettings
from lesionseg.pipeline.dataset.survey import Survey, take_survey
from lesionseg.pipeline.judging.choice import CHOSEN, ChoiceSettings
from lesionseg.pipeline.judging.judge_role import judge_untouched
from lesionseg.pipeline.report.recipe import ReportSettings, report_run
from lesionseg.pipeline.run.capabilities import warn_of_unheard_loss
from lesionseg.pipeline.run.outcome import CommandOutcome, scores_lines
from lesionseg.pipeline.run.run_dir import check_claim, default_run_dir
from lesionseg.pipeline.run.run_log import kept_log
from lesionseg.pipeline.train.cross_validation import cross_validate
from lesionseg.pipeline.train.learning import Learning
from lesionseg.pipeline.train.one_training import Finished, Recipe, begin, train_once
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.callbacks.loggers import LoggerSettings, require_logger
from lesionseg.training.device.cluster import require_own_processes
from lesionseg.training.settings import AuditSettings, OptimiserSettings, TrainerSettings

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class TrainOutcome(CommandOutcome):
    """What a finished run leaves: where, how long it took, and its scores by role.

    `notes`: sentences on what was chosen on development predictions.
    """

    run_dir: Path
    seconds: float
    scores: Mapping[str, Scores]
    report: Path | None
    notes: tuple[str, ...] = ()

    def summary(self) -> list[str]:
        """The scores by role, what was chosen, and where bundle and report lie."""
        page = "No case was left to validate on, so there are no scores and no report."
        return [
            *scores_lines(self.scores),
            "",
            *self.notes,
            f"Finished in {self.seconds / 60:.1f} minutes.",
            f"Bundle:  {self.run_dir / 'bundle'}",
            page if self.report is None else f"Report:  {self.report}",
        ]


def train(
    data: DataSettings,
    model: PlanOverrides,
    loss: nn.Module,
    detection: DetectionLoss,
    sampling: SamplingSettings,
    augment: AugmentationSettings,
    optim: OptimiserSettings,
    trainer: TrainerSettings,
    audit: AuditSettings,
    logger: LoggerSettings,
    inference: InferenceSettings,
    preset: Preset,
    report: ReportSettings,
    operating_point: str,
    calibration: str,
    run_dir: str | None,
    seed: int,
    replicates: int,
    config: Mapping[str, Any],
) -> TrainOutcome:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All of it lies in `run_dir`; `config` is the resolved configuration that is kept there, and
    train.log what is logged. All cases are read and checked before the first file is written.
    Starting again with the same configuration resumes. With `data.fold` "all" every fold is trained
    in turn, and what is chosen is chosen on the cases that each fold's network never saw; see
    `cross_validate`. Raises the `LesionsegError` of whatever is wrong.
    """
    started = time.monotonic()
    require_logger(logger)
    require_own_processes(trainer.devices)
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    check_claim(run, config)
    recipe = Recipe(
        data=data,
        model=model,
        learning=Learning(
            loss, sampling, augment, optim, replace(trainer, seed=seed), detection, model.init_from
        ),
        audit=audit,
        logger=logger,
        inference=inference,
        preset=preset,
        report=report,
        wishes=ChoiceSettings(operating_point, calibration, replicates, seed),
        config=config,
    )
    with kept_log(run) as note:
        warn_of_unheard_loss(model.architecture, loss, detection)
        found = take_survey(data, seed)
        finish = cross_validate if data.fold == ALL_FOLDS else _hold_out
        finished = finish(recipe, found, run)
        page = report_run(run, found.dataset, report)
        seconds = time.monotonic() - started
        note(f"Finished in {seconds / 60:.1f} minutes.")
    why = finished.plan.reasons
    notes = tuple(f"{what.capitalize()}: {why[what]}" for what in CHOSEN if what in why)
    return TrainOutcome(run, seconds, finished.scores, page, notes)


def _hold_out(recipe: Recipe, found: Survey, run: Path) -> Finished:
    """One training, judged on the validation and test roles."""
    trained = train_once(recipe, found, begin(recipe, found, run), run)
    tested = judge_untouched(
        trained.predictor, found, run / "test", "test", recipe.rules(trained.origin)
    )
    scores = {"validation": trained.validation and trained.validation.scores, "test": tested}
    return Finished(trained.plan, {role: s for role, s in scores.items() if s})
