"""`train`: from a folder of scans to a bundle, scores and a report."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.config import LossConfig, TrainConfig
from lesionseg.evaluation import find_preset
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.decision import DEFAULT_POINT
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.io.files import locked_folder, write_text
from lesionseg.pipeline.dataset import (
    ALL_FOLDS,
    Survey,
    facts_folder,
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
    evenly_spaced,
    labelled,
    match_volumes,
    score_role,
    score_validation,
    validation_scores,
)
from lesionseg.pipeline.select import CHOSEN, Choice
from lesionseg.plan.plan import Plan, sources_of
from lesionseg.training.processes import (
    broadcast_from_rank_zero,
    is_rank_zero,
    joined,
    local_rank_zero_first,
    require_device,
    training_device,
)
from lesionseg.training.schedule import resolve_budget

log = logging.getLogger(__name__)

BUNDLE = "bundle"
VALIDATE_CASES = 16  # while training goes on, evenly spaced
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


def train(cfg: TrainConfig) -> TrainOutcome:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All cases are read and checked before the first file is written. Starting again with the same
    configuration resumes; while it runs, a second one is an error. `data.fold=all` trains every
    fold (`cross_validate`). Raises the `LesionsegError` of whatever is wrong.
    """
    find_preset(cfg.preset)  # before anything is trained
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, cfg.model.architecture))
    with joined(cfg.trainer):
        if not is_rank_zero():
            return _train(cfg, run)
        check_config(run, plain(cfg))
        with locked_folder(run), run_log(run) as note:
            outcome = _train(cfg, run)
            note(f"Finished in {outcome.seconds / 60:.1f} minutes.")
            return outcome


def plain(cfg: TrainConfig) -> dict[str, Any]:
    """The configuration as it is kept in a run directory."""
    return {"command": "train", **cfg.plain()}


def _train(cfg: TrainConfig, run: Path) -> TrainOutcome:
    """What all processes of a training go through together, step by step."""
    started = time.monotonic()
    has_voxels = "segmentation" in sources_of(cfg.model.architecture)
    is_default = cfg.loss.target == LossConfig.of().target
    if is_rank_zero() and not has_voxels and not is_default:
        log.warning(
            "model=%s has no voxels: %s is not used. Its anchors learn by detection.alpha=%s and "
            "detection.gamma=%s.",
            cfg.model.architecture,
            cfg.loss.target.rpartition(".")[2],
            cfg.detection.alpha,
            cfg.detection.gamma,
        )
    survey = broadcast_from_rank_zero(
        lambda: take_survey(cfg.data, cfg.seed, facts_folder(cfg.data, run))
    )
    if cfg.data.fold == ALL_FOLDS:
        from lesionseg.pipeline.cross_validate import cross_validate

        plan, scores = cross_validate(cfg, survey, run)
    else:
        plan, scores = train_once(cfg, survey, begin(cfg, survey, run), run, test=True)
    page = report_run(run, survey.dataset, cfg.report) if is_rank_zero() else None
    notes = [f"{k.capitalize()}: {plan.reasons[k]}" for k in CHOSEN if k in plan.reasons]
    if not survey.splits.group_safe:
        notes.append(
            "Warning: the validation scores are not independent: they come from scans of a patient "
            "who was also trained on. Test on other patients before you rely on them."
        )
    seconds = time.monotonic() - started
    return TrainOutcome(run, seconds, scores, page, tuple(notes), is_rank_zero())


def begin(cfg: TrainConfig, survey: Survey, run: Path, plan: Plan | None = None) -> Plan:
    """Plan (or take the one given), check it, and claim the run directory for the configuration.

    By the first process; others that train with it receive the plan.
    """
    return broadcast_from_rank_zero(partial(_begin, cfg, survey, run, plan))


def _begin(cfg: TrainConfig, survey: Survey, run: Path, given: Plan | None) -> Plan:
    check_cases(run, survey.splits)
    require_masks(survey, cfg.model.architecture)
    is_new = given is None and not has_config(run)
    if is_new:
        require_device(cfg.trainer.accelerator)
    plan = with_focal_correction(decide(survey, cfg, run, given), cfg)
    check_losses(plan, cfg)
    if is_new:
        plan = affordable(plan, cfg, run)
    write_text(run / "plan.json", plan.to_json())
    save_config(run, plain(cfg))  # last: a wrong setting must not make the corrected one another's
    if not cfg.run_dir:  # its name holds the time: another run each
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    return plan


def train_once(
    cfg: TrainConfig, survey: Survey, plan: Plan, run: Path, *, test: bool
) -> tuple[Plan, dict[str, Scores]]:
    """Train by the plan on the survey's roles, choose, score and write the bundle.

    By all processes together; what comes after learning is the first one's. Returns the complete
    plan and the scores by role.
    """
    if not (run / BUNDLE).exists():  # what is only scored again needs no GPU
        require_device(cfg.trainer.accelerator)
    cases = local_rank_zero_first(lambda: prepare_cases(survey, plan, cfg.data, run))
    cfg = with_batch_rate(cfg, plan)
    trainer = resolve_budget(cfg.trainer, plan, training_device(cfg.trainer.accelerator))
    limits = ((trainer.max_steps, "steps"), (trainer.max_minutes, "minutes"))
    text = " or ".join(f"{value:g} {what}" for value, what in limits if value is not None)
    log.info("Training ends after %s; learning rate %.2g.", text, cfg.optim.lr)
    validate, held_out = None, labelled(survey, "validation")
    if trainer.validate_every_minutes is not None and held_out:
        preset = find_preset(cfg.preset)
        some = evenly_spaced(held_out, VALIDATE_CASES)

        def validate(network: nn.Module) -> Mapping[str, float]:
            matches = match_volumes(network, survey, some, plan, cfg.inference, preset)
            return validation_scores(matches)

    fitted = train_network(plan, cases, cfg, run, validate)
    if not is_rank_zero():
        return plan, {}
    origin = provenance(survey.dataset, plain(cfg), cfg.seed, fitted.device)
    origin |= {"training_minutes": round(fitted.minutes, 3), "training_steps": fitted.steps}
    check = training_statistics(cases, plan, survey)
    predictor = Predictor.from_network(
        fitted.network, plan, settings=cfg.inference, device=fitted.device, check=check
    )
    validation = score_validation(predictor, survey, run, cfg, origin)
    choice, validated = validation or (Choice((DEFAULT_POINT,)), None)
    complete = choice.added_to(plan)
    keep_bundle([fitted.network], complete, validated, origin, run, check)
    scores = {"validation": validated} if validated else {}
    if test:
        predictor = predictor.with_plan(complete)
        tested = score_role(predictor, survey, run / "test", "test", cfg, origin)
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
