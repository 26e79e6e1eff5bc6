"""`train`: from a folder of scans to a bundle, scores and a report."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.config import ReportSection
from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.transforms import PrepareSettings
from lesionseg.evaluation import Preset
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.decision import DEFAULT_POINT
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.settings import InferenceSettings
from lesionseg.io.files import locked_folder, write_text
from lesionseg.losses import DetectionLoss, DiceFocalLoss, complete_loss
from lesionseg.pipeline.dataset import (
    ALL_FOLDS,
    DataSettings,
    Survey,
    require_masks,
    take_survey,
)
from lesionseg.pipeline.learning import (
    affordable,
    check_losses,
    decide,
    prepare_cases,
    train_network,
    training_statistics,
    with_batch_rate,
    with_focal_correction,
)
from lesionseg.pipeline.log import run_log, scores_lines
from lesionseg.pipeline.report import report_run
from lesionseg.pipeline.run_dir import (
    check_cases,
    check_config,
    default_run_dir,
    has_config,
    provenance,
    save_config,
)
from lesionseg.pipeline.score import (
    Rules,
    VolumeScorer,
    labelled,
    score_role,
    score_validation,
)
from lesionseg.pipeline.select import CHOSEN, Choice
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan, sources_of
from lesionseg.training.fit import check_activation
from lesionseg.training.processes import (
    broadcast_from_rank_zero,
    is_rank_zero,
    joined,
    local_rank_zero_first,
    require_device,
    training_device,
)
from lesionseg.training.schedule import resolve_budget
from lesionseg.training.settings import Learning, OptimiserSettings, TrainerSettings

log = logging.getLogger(__name__)

BUNDLE = "bundle"
Scores = Mapping[str, Any]


@dataclass(frozen=True)
class TrainOutcome:
    """What a finished run leaves: where, how long it took, its scores by role, and its page.

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
        if self.report is not None:
            test = self.report.parent / "test" / self.report.name
            page = f"Open:    {test if test.is_file() else self.report}"
        return [
            *scores_lines(self.scores),
            "",
            *self.notes,
            f"Finished in {self.seconds / 60:.1f} minutes.",
            f"Bundle:  {self.run_dir / BUNDLE}",
            page,
            f"Next:    python scripts/predict.py bundle={self.run_dir} input=SCANS output=FOUND",
        ]


@dataclass(frozen=True)
class Recipe:
    """All that a user chose for `train`; `config` is the same as plain data."""

    data: DataSettings
    model: PlanOverrides
    learning: Learning
    inference: InferenceSettings
    preset: Preset
    report: ReportSection
    operating_point: str
    rate_confidence: float | None
    config: Mapping[str, Any]
    prepare: PrepareSettings = field(default_factory=PrepareSettings)

    def rules(self, origin: Mapping[str, Any]) -> Rules:
        """By what the cases of this recipe are scored."""
        return Rules(
            self.preset, self.operating_point, self.rate_confidence, self.learning.seed, origin
        )


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
    inference: InferenceSettings,
    preset: Preset,
    report: ReportSection,
    operating_point: str,
    rate_confidence: float | None,
    run_dir: str | None,
    seed: int,
    config: Mapping[str, Any],
    callbacks: Sequence[Any] = (),
    logger: Sequence[Any] = (),
) -> TrainOutcome:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All cases are read and checked before the first file is written. Starting again with the same
    configuration resumes; while it runs, a second one is an error. `data.fold=all` trains every
    fold (`cross_validate`). The parameters are the groups and keys of conf/train.yaml; `callbacks`
    and `logger` are Lightning's, the latter as partials that take `save_dir`; `config` is the
    configuration as plain data. Raises the `LesionsegError` of whatever is wrong.
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
        callbacks=callbacks,
        loggers=logger,
    )
    points = operating_point, rate_confidence
    recipe = Recipe(data, model, learning, inference, preset, report, *points, config, prepare)
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    with joined(trainer):
        if not is_rank_zero():
            return _train(recipe, run)
        check_config(run, config)
        with locked_folder(run), run_log(run) as note:
            outcome = _train(recipe, run)
            note(f"Finished in {outcome.seconds / 60:.1f} minutes.")
            return outcome


def _train(recipe: Recipe, run: Path) -> TrainOutcome:
    """What all processes of a training go through together, step by step."""
    started, learning = time.monotonic(), recipe.learning
    has_voxels = "segmentation" in sources_of(recipe.model.architecture)
    if (
        is_rank_zero() and not has_voxels and type(learning.loss) is not DiceFocalLoss
    ):  # the default
        log.warning(
            "model=%s has no voxels: %s is not used. Its anchors learn by detection.alpha=%s and "
            "detection.gamma=%s.",
            recipe.model.architecture,
            type(learning.loss).__name__,
            learning.detection.alpha,
            learning.detection.gamma,
        )
    survey = broadcast_from_rank_zero(
        lambda: take_survey(recipe.data, learning.seed, recipe.data.facts(run))
    )
    if recipe.data.fold == ALL_FOLDS:
        from lesionseg.pipeline.cross_validate import cross_validate

        plan, scores = cross_validate(recipe, survey, run)
    else:
        plan, scores = train_once(recipe, survey, begin(recipe, survey, run), run, test=True)
    page = report_run(run, survey.dataset, recipe.report) if is_rank_zero() else None
    notes = tuple(f"{k.capitalize()}: {plan.reasons[k]}" for k in CHOSEN if k in plan.reasons)
    return TrainOutcome(run, time.monotonic() - started, scores, page, notes, is_rank_zero())


def begin(recipe: Recipe, survey: Survey, run: Path, plan: Plan | None = None) -> Plan:
    """Plan (or take the one given), check it, and claim the run directory for the recipe.

    By the first process; others that train with it receive the plan.
    """
    return broadcast_from_rank_zero(partial(_begin, recipe, survey, run, plan))


def _begin(recipe: Recipe, survey: Survey, run: Path, given: Plan | None) -> Plan:
    check_cases(run, survey.splits)
    require_masks(survey, recipe.model.architecture)
    learning, is_new = recipe.learning, given is None and not has_config(run)
    if is_new:
        require_device(learning.trainer.accelerator)
    plan = decide(survey, recipe.model, learning.trainer, run, given, recipe.prepare.extra)
    plan = with_focal_correction(plan, learning.loss, learning.detection)
    plan = plan.with_(may_lack=recipe.data.may_lack(plan.channel_names))
    check_activation(learning.loss, plan)
    check_losses(plan, learning)
    if is_new:
        plan = affordable(plan, learning, run)
    write_text(run / "plan.json", plan.to_json())
    save_config(
        run, recipe.config
    )  # last: a wrong setting must not make the corrected one another's
    if not recipe.config.get("run_dir"):  # its name holds the time: another run each
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    return plan


def train_once(
    recipe: Recipe, survey: Survey, plan: Plan, run: Path, *, test: bool
) -> tuple[Plan, dict[str, Scores]]:
    """Train by the plan on the survey's roles, choose, score and write the bundle.

    By all processes together; what comes after learning is the first one's. Returns the complete
    plan and the scores by role.
    """
    if not (run / BUNDLE).exists():  # what is only scored again needs no GPU
        require_device(recipe.learning.trainer.accelerator)
    cases = local_rank_zero_first(lambda: prepare_cases(survey, plan, recipe.data, run))
    learning = with_batch_rate(recipe.learning, plan)
    trainer = resolve_budget(learning.trainer, plan, training_device(learning.trainer.accelerator))
    limits = ((trainer.max_steps, "steps"), (trainer.max_minutes, "minutes"))
    text = " or ".join(f"{value:g} {what}" for value, what in limits if value is not None)
    log.info("Training ends after %s; learning rate %.2g.", text, learning.optimiser.lr)
    validate, held_out = None, labelled(survey, "validation")
    if trainer.validate_every_minutes is not None and held_out:
        n = trainer.validate_cases
        validate = VolumeScorer(survey, held_out, plan, recipe.inference, recipe.preset, n)
    fitted = train_network(plan, cases, learning, run, validate)
    if not is_rank_zero():
        return plan, {}
    origin = provenance(survey.dataset, recipe.config, learning.seed, fitted.device)
    origin |= {"training_minutes": round(fitted.minutes, 3), "training_steps": fitted.steps}
    check = training_statistics(cases, plan, survey)
    predictor = Predictor.from_network(
        fitted.network, plan, settings=recipe.inference, device=fitted.device, check=check
    )
    rules = recipe.rules(origin)
    validation = score_validation(predictor, survey, run, rules)
    choice, validated = validation or (Choice((DEFAULT_POINT,)), None)
    complete = choice.added_to(plan)
    keep_bundle([fitted.network], complete, validated, origin, run, check)
    scores = {"validation": validated} if validated else {}
    if test:
        predictor = predictor.with_plan(complete)
        tested = score_role(predictor, survey, run / "test", "test", rules)
        scores |= {"test": tested} if tested else {}
    return complete, scores


def keep_bundle(
    networks: Sequence[nn.Module],
    plan: Plan,
    scores: Scores | None,
    origin: Mapping[str, Any],
    run: Path,
    check: InputCheck | None = None,
) -> None:
    """Write the bundle of these networks and, with all that was chosen, the plan again.

    `scores`: of the validation cases; `origin`: what made the model, for its card; `check` tells
    scans that are unlike the training scans.
    """
    plan = plan.with_(n_members=len(networks))
    write_bundle(run / BUNDLE, networks, plan, model_card(plan, scores, origin), check)
    write_text(run / "plan.json", plan.to_json())
