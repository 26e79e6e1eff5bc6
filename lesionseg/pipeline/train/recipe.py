"""The recipe of `train`: from a folder of scans to a bundle, scores and a report."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.config import ReportSection
from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.transforms import PrepareSettings
from lesionseg.evaluation import Preset
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.io.folder_locks import locked_folder
from lesionseg.losses import DetectionLoss, DiceFocalLoss, complete_loss
from lesionseg.pipeline.dataset import ALL_FOLDS, DataSettings, Survey, take_survey
from lesionseg.pipeline.report import report_run
from lesionseg.pipeline.run.outcome import CommandOutcome, scores_lines
from lesionseg.pipeline.run.run_dir import check_claim, default_run_dir
from lesionseg.pipeline.run.run_log import kept_log
from lesionseg.pipeline.score import score_role
from lesionseg.pipeline.select import CHOSEN, ChoiceSettings
from lesionseg.pipeline.train.cross_validation import cross_validate
from lesionseg.pipeline.train.one_training import Recipe, TrainResult, begin, train_once
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import sources_of
from lesionseg.training.callbacks.loggers import LoggerSettings, require_logger
from lesionseg.training.device.processes import from_first, is_first, joined
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import OptimiserSettings, TrainerSettings

log = logging.getLogger(__name__)

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class TrainOutcome(CommandOutcome):
    """What a finished run leaves: where, how long it took, and its scores by role.

    `notes`: sentences on what was chosen on development predictions. Of processes that train
    together the first one alone speaks.
    """

    run_dir: Path
    seconds: float
    scores: Mapping[str, Scores]
    report: Path | None
    notes: tuple[str, ...] = ()
    is_first: bool = True

    def summary(self) -> list[str]:
        """The scores by role, what was chosen, and where bundle and report lie."""
        if not self.is_first:
            return []
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
    prepare: PrepareSettings,
    sampling: SamplingSettings,
    augment: AugmentationSettings,
    optim: OptimiserSettings,
    trainer: TrainerSettings,
    logger: LoggerSettings,
    inference: InferenceSettings,
    preset: Preset,
    report: ReportSection,
    operating_point: str,
    rate_confidence: float | None,
    calibration: str,
    calibrate_voxels: bool,
    run_dir: str | None,
    seed: int,
    replicates: int,
    config: Mapping[str, Any],
) -> TrainOutcome:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All cases are read and checked before the first file is written. Starting again with the same
    configuration resumes; while it runs, a second one is refused. Raises the `LesionsegError` of
    whatever is wrong.

    Args:
        data: the folder and its roles; `fold` "all" trains every fold, and chooses on the cases
            that each fold's network never saw (see `cross_validate`).
        model: architecture and what else of the plan is not to be derived from the data;
            `init_from`, a bundle whose weights come first.
        loss: of voxels, a `losses.VoxelLoss`, or what `losses.complete_loss` makes one of.
        detection: the loss of a detector's anchors.
        prepare: what else is done to each image, in training and prediction.
        sampling: the mix of tiles.
        augment: how tiles are changed.
        optim: the optimiser and its learning rate.
        trainer: how long (minutes or steps), on what and how.
        logger: where else than in metrics.csv the training is followed.
        inference: how whole volumes are predicted.
        preset: by what rules detections are matched to lesions and scored.
        report: what the page shows.
        operating_point: accepts the candidates, such as fp_per_case:1.
        rate_confidence: the chance that as many new cases keep to that rate; None for the rate
            observed.
        calibration: of candidates' scores: platt, isotonic or none.
        calibrate_voxels: whether voxels' probabilities may be put right before candidates end.
        run_dir: holds all results, `config` and train.log; None for runs/<dataset>_<model>_<time>.
        seed: of the split, the first weights, the tiles and the augmentation.
        replicates: of the bootstrap behind every interval.
        config: the resolved configuration as plain data, kept in the run directory.
    """
    learning = Learning(
        complete_loss(loss, model.activation),
        trainer,
        sampling,
        augment,
        optim,
        detection,
        seed,
        init_from=model.init_from,
        channel_dropout=data.channel_dropout,
    )
    recipe = Recipe(
        data=data,
        model=model,
        learning=learning,
        logger=logger,
        inference=inference,
        preset=preset,
        report=report,
        choice=ChoiceSettings(
            operating_point, calibration, replicates, seed, rate_confidence, calibrate_voxels
        ),
        config=config,
        prepare=prepare,
    )
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    return _run(recipe, run)


def _run(recipe: Recipe, run: Path) -> TrainOutcome:
    """Survey, train, judge and report, all of it in `run`, which the first process writes."""
    require_logger(recipe.logger)
    with joined(recipe.learning.trainer):
        if is_first():
            check_claim(run, recipe.config)
            with locked_folder(run), kept_log(run) as note:
                outcome = _work(recipe, run)
                note(f"Finished in {outcome.seconds / 60:.1f} minutes.")
                return outcome
        return replace(_work(recipe, run), is_first=False)


def _work(recipe: Recipe, run: Path) -> TrainOutcome:
    """What all processes of a training go through together, step by step."""
    started, learning = time.monotonic(), recipe.learning
    has_voxels = "segmentation" in sources_of(recipe.model.architecture)
    if is_first() and not has_voxels and type(learning.loss) is not DiceFocalLoss:  # the default
        log.warning(
            "model=%s has no voxels: %s is not used. Its anchors learn by detection.alpha=%s and "
            "detection.gamma=%s.",
            recipe.model.architecture,
            type(learning.loss).__name__,
            learning.detection.alpha,
            learning.detection.gamma,
        )
    survey = from_first(lambda: take_survey(recipe.data, learning.seed, recipe.data.facts(run)))
    train_all = cross_validate if recipe.data.fold == ALL_FOLDS else _hold_out
    judge = train_all(recipe, survey, run)

    def finish() -> TrainOutcome:
        result = judge()
        page = report_run(run, survey.dataset, recipe.report)
        why = result.plan.reasons
        notes = tuple(f"{what.capitalize()}: {why[what]}" for what in CHOSEN if what in why)
        return TrainOutcome(run, time.monotonic() - started, result.scores, page, notes)

    return from_first(finish)


def _hold_out(recipe: Recipe, survey: Survey, run: Path) -> Callable[[], TrainResult]:
    """One training; what it returns judges it on the validation and test roles."""
    judge_validation = train_once(recipe, survey, begin(recipe, survey, run), run)

    def judge() -> TrainResult:
        trained = judge_validation()
        tested = score_role(
            trained.predictor, survey, run / "test", "test", recipe.rules(trained.origin)
        )
        scores = {"validation": trained.validation and trained.validation.scores, "test": tested}
        return TrainResult(trained.plan, {role: s for role, s in scores.items() if s})

    return judge
