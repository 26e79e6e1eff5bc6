"""`train`: from a folder of scans to a bundle, scores and a report."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lesionseg.config import DetectionConfig, LossConfig, TrainConfig
from lesionseg.core import Aim, CaseFiles, Geometry
from lesionseg.data.cache import CachedCase
from lesionseg.errors import ConfigError, count
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.result_tables import scores_table
from lesionseg.evaluation.scores import Scores
from lesionseg.inference.bundle import bundle_digest, write_bundle
from lesionseg.inference.decision import DEFAULT_POINT
from lesionseg.inference.input_check import InputCheck, training_ranges
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.io.files import locked_folder, write_text
from lesionseg.losses import DetectionLoss, make_loss
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.retinanet import planned_anchors
from lesionseg.pipeline.dataset import (
    ALL_FOLDS,
    Survey,
    facts_folder,
    require_masks,
    take_survey,
)
from lesionseg.pipeline.finished import Finished, read_finished, write_finished
from lesionseg.pipeline.log import LOG, aligned, bar, run_log, say, typed
from lesionseg.pipeline.prepare import config_of, plan_run, prepare_cases, start_from
from lesionseg.pipeline.report import report_run
from lesionseg.pipeline.run_dir import (
    check_cases,
    check_config,
    default_run_dir,
    has_config,
    provenance,
    save_config,
    training_counts,
)
from lesionseg.pipeline.score import (
    labelled,
    match_volumes,
    score_role,
    score_validation,
    validation_scores,
)
from lesionseg.pipeline.select import CHOSEN
from lesionseg.plan.plan import FocalCorrection, Plan, sources_of
from lesionseg.reporting.previews import draw_previews
from lesionseg.training.callbacks import Previews, Progress
from lesionseg.training.fit import CHECKPOINTS, FitResult, fit, tiles_of
from lesionseg.training.memory import fit_to_memory, some_batch, try_steps
from lesionseg.training.module import budget_text, resolve_budget
from lesionseg.training.objective import make_objective
from lesionseg.training.processes import (
    broadcast_from_rank_zero,
    is_rank_zero,
    joined,
    local_rank_zero_first,
    require_compiler,
    require_device,
    training_device,
)
from lesionseg.training.validation import Validate

log = logging.getLogger(__name__)

BUNDLE = "bundle"
VALIDATE_CASES = 16  # while training goes on, evenly spaced


ALL_FOLDS_NOTE = (
    "data.fold=all trains every fold in turn, and an ensemble of them predicts. nnU-Net's fold "
    "`all`, one network for all cases without validation, is data.validation_fraction=0."
)


def train(cfg: TrainConfig) -> Path:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All cases are read and checked before the first file is written. Starting again with the same
    configuration resumes, or repeats nothing if the training is finished; while it runs, a second
    one is an error. `data.fold=all` trains every fold (`cross_validate`). Prints the scores and
    returns the run directory. Raises the `LesionsegError` of whatever is wrong.
    """
    started = time.monotonic()
    find_preset(cfg.preset)  # a wrong one is an error before anything is read
    Aim.parse(cfg.operating_point)  # a wrong one is an error before anything is read
    named = Path(cfg.run_dir or default_run_dir(cfg.data.root, cfg.model.architecture))
    with ExitStack() as stack:
        stack.enter_context(joined(cfg.trainer))  # with the processes that torchrun has started
        run = broadcast_from_rank_zero(lambda: named)
        if is_rank_zero():
            check_config(run, config_of(cfg))
            stack.enter_context(locked_folder(run))
            note = stack.enter_context(run_log(run))
        survey = broadcast_from_rank_zero(
            lambda: take_survey(cfg.data, cfg.seed, facts_folder(cfg.data, run))
        )
        finished = broadcast_from_rank_zero(lambda: read_finished(run, survey, cfg))
        if finished is not None:
            if is_rank_zero():
                _tell_finished(finished, run, cfg)
            return run
        if cfg.data.fold == ALL_FOLDS:
            from lesionseg.pipeline.cross_validate import cross_validate

            if is_rank_zero() and survey.dataset.convention == "nnunet":
                log.info(ALL_FOLDS_NOTE)
            plan, scores = cross_validate(cfg, survey, run)
        else:
            plan = begin(cfg, survey, run)
            plan, scores = train_once(cfg, survey, plan, run, test=True)
        if is_rank_zero():
            page = report_run(run, survey.dataset, cfg.report)
            minutes = (time.monotonic() - started) / 60
            lines = [f"{k.capitalize()}: {plan.reasons[k]}" for k in CHOSEN if k in plan.reasons]
            if not survey.splits.group_safe:
                lines.append(
                    "Warning: the validation scores are not independent: they come from scans of a "
                    "patient who was also trained on. Test on other patients before you rely on "
                    "them."
                )
            lines += nothing_found(scores)
            lines.append(f"Finished in {minutes:.1f} minutes.")
            write_finished(run, page, minutes, survey, cfg)
            note("\n".join(lines))
            opened = f"Open:    {page}" if page else "Without a validation case there is no report."
            table = aligned(scores_table(scores))
            say("\n".join([*table, "", *lines, f"Bundle:  {run / BUNDLE}", opened]))
            say(f"Next:    {typed('predict', bundle=run, input='SCANS', output='FOUND')}")
    return run


def _tell_finished(finished: Finished, run: Path, cfg: TrainConfig) -> None:
    """Print when the training was finished, where its results are, and how to train further."""
    page = "Without a validation case there is no report."
    if finished.page is not None:
        page = f"Open:    {run / finished.page}"
    longer = {"data.root": cfg.data.root, "model.init_from": run, "run_dir": "NEW"}
    lines = [
        f"Finished at {finished.at}, after {finished.minutes:.1f} minutes. Nothing is repeated.",
        f"Bundle:  {run / BUNDLE}",
        page,
        f"Next:    {typed('predict', bundle=run, input='SCANS', output='FOUND')}",
        f"Further: {typed('train', **longer)}  # trains on from these weights",
    ]
    say("\n".join(lines))


def nothing_found(scores: Mapping[str, Scores]) -> list[str]:
    """Explain what to try if no lesion was found in one of the roles; no line otherwise."""
    lines = []
    for role, found in scores.items():
        if found.n_lesions and not found.n_true_positive:
            lesions = count(found.n_lesions, "lesion")
            minutes = found.provenance.training_minutes
            took = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
            lines.append(
                f"It found none of {lesions} of the {role} cases after {took} of training."
            )
    if lines:
        lines.append(
            "What to try: train longer (trainer.max_minutes=60), look at the masks with prepare "
            "check=true, and read docs/troubleshooting.md."
        )
    return lines


def begin(cfg: TrainConfig, survey: Survey, run: Path, given: Plan | None = None) -> Plan:
    """Plan (or take the plan given), check it, and lock the run directory to the configuration.

    By the first process; others that train with it receive the plan.
    """

    def first() -> Plan:
        check_cases(run, survey.splits)
        require_masks(survey, cfg.model.architecture)
        sources = sources_of(cfg.model.architecture)
        if "segmentation" not in sources and cfg.loss != LossConfig.of():
            log.warning(
                "model=%s has no voxels: %s is not used. Its anchors learn by detection.alpha=%s "
                "and detection.gamma=%s.",
                cfg.model.architecture,
                cfg.loss.target.rpartition(".")[2],
                cfg.detection.alpha,
                cfg.detection.gamma,
            )
        if "detection" not in sources and cfg.detection != DetectionConfig.of():
            log.warning(
                "model=%s has no anchors: detection.* is not used. Its voxels learn by loss.*.",
                cfg.model.architecture,
            )
        is_new = given is None and not has_config(run)
        if is_new:
            require_device(cfg.trainer.accelerator)
            require_compiler(cfg.trainer)
        plan = with_focal_correction(plan_run(survey, cfg, run, given), cfg)
        check_losses(plan, cfg)
        if cfg.model.architecture == "custom" and cfg.optim.backbone_lr_scale != 1:
            raise ConfigError(
                "optim.backbone_lr_scale: which weights of model=custom are its backbone is not "
                "known. Leave it at 1."
            )
        if is_new and training_device(cfg.trainer.accelerator) == "cuda":
            plan = fit_to_memory(plan, partial(try_steps, cfg=cfg))
        write_text(run / "plan.json", plan.to_json())
        # last: a wrong setting must not make the corrected one another's
        save_config(run, config_of(cfg))
        tile, mm = (" × ".join(f"{n:.3g}" for n in s) for s in (plan.tile_shape, plan.spacing_mm))
        unit = Geometry.from_spacing(plan.tile_shape, plan.spacing_mm).size_unit
        size = f"{tile} pixels" if unit == "px" else f"{tile} voxels of {mm} mm"
        is_fold = given is not None and cfg.data.fold != ALL_FOLDS  # one plan for all: said once
        log.log(
            logging.DEBUG if is_fold else logging.INFO,
            "Plan: %s, %d tiles of %s per step, on %s; for the reasons see %s.",
            *(plan.architecture.name, plan.batch_size, size),
            *(training_device(cfg.trainer.accelerator), run / LOG),
        )
        if not cfg.run_dir:  # its name holds the time: another run each
            log.info("Results go to %s; run_dir=%s resumes it.", run, run)
        return plan

    return broadcast_from_rank_zero(first)


def train_once(
    cfg: TrainConfig, survey: Survey, plan: Plan, run: Path, *, test: bool
) -> tuple[Plan, dict[str, Scores]]:
    """Train by the plan on the survey's roles, choose, score and write the bundle.

    By all processes together; what comes after learning is the first one's. Returns the complete
    plan and the scores by role.
    """
    if not (run / BUNDLE).exists():  # what is only scored again needs no GPU
        require_device(cfg.trainer.accelerator)
        require_compiler(cfg.trainer)
    cases = local_rank_zero_first(lambda: prepare_cases(survey, plan, cfg.data, run))
    budget = resolve_budget(cfg.trainer, plan, training_device(cfg.trainer.accelerator))
    log.info("Training ends after %s.", budget_text(budget))
    validate, held_out = None, labelled(survey, "validation")
    if budget.validate_every_minutes is not None and held_out:
        # evenly spaced: files in order of name are often in order of site
        places = np.linspace(0, len(held_out) - 1, min(VALIDATE_CASES, len(held_out)))
        some = [held_out[round(i)] for i in places]
        validate = partial(_validate, survey=survey, cases=some, plan=plan, cfg=cfg)
    fitted = train_network(plan, cases, cfg, run, validate)
    if not is_rank_zero():
        return plan, {}

    origin = provenance(survey.dataset, config_of(cfg), cfg.seed, fitted.device)
    origin |= {"training_minutes": round(fitted.minutes, 3), "training_steps": fitted.steps}
    origin |= {"model": plan.architecture.name, **training_counts(labelled(survey, "train"))}
    check = training_ranges(cases, plan, survey.fingerprint)
    predictor = Predictor.from_network(
        fitted.network, plan, settings=cfg.inference, device=fitted.device, check=check
    )
    validation = score_validation(predictor, survey, run, cfg, origin)
    complete, validated = validation or (plan.with_(operating_points=(DEFAULT_POINT,)), None)
    keep_bundle([fitted.network], complete, validated, origin, run, check)
    scores = {"validation": validated} if validated else {}
    if test:
        origin |= {"bundle": bundle_digest(run / BUNDLE)}
        final = predictor.with_plan(complete)
        tested = score_role(final, survey, run / "test", "test", cfg, origin)
        scores |= {"test": tested} if tested else {}
    return complete, scores


def _validate(
    network: nn.Module, survey: Survey, cases: Sequence[CaseFiles], plan: Plan, cfg: TrainConfig
) -> Mapping[str, float]:
    # not within `train_once`: processes that Lightning spawns receive it pickled
    preset = find_preset(cfg.preset)
    return validation_scores(match_volumes(network, survey, cases, plan, cfg.inference, preset))


def train_network(
    plan: Plan,
    cases: Sequence[CachedCase],
    cfg: TrainConfig,
    run: Path,
    validate: Validate | None = None,
) -> FitResult:
    """Build the plan's network from the seed, or from a bundle, and train it as in `fit`."""
    network = build_network(plan, architectures=TRUSTED, seed=cfg.seed)
    if cfg.model.init_from and not (run / CHECKPOINTS / "last.ckpt").is_file():
        start_from(cfg.model.init_from, network, plan)
    tiles = tiles_of(cases, plan, cfg)
    shown = [Progress(partial(bar, "Training")), Previews(run, draw_previews)]
    return fit(network, plan, tiles, cfg, run, validate=validate, callbacks=shown)


def keep_bundle(
    networks: Sequence[nn.Module],
    plan: Plan,
    scores: Scores | None,
    origin: Mapping[str, Any],
    run: Path,
    check: InputCheck | None = None,
) -> None:
    """Write the bundle of these networks, and the plan again with all that was chosen.

    `scores`: of the validation cases, and `origin`: what made the model, for its card.
    """
    plan = plan.with_(n_members=len(networks))
    write_bundle(run / BUNDLE, networks, plan, model_card(plan, scores, origin), check)
    write_text(run / "plan.json", plan.to_json())


def with_focal_correction(plan: Plan, cfg: TrainConfig) -> Plan:
    """The plan with what inference must undo of the losses; see `losses.focal`."""
    if plan.has_boxes:
        alpha, gamma = DetectionLoss(**cfg.detection.plain()).link or (None, None)
        alpha = tuple(alpha) if isinstance(alpha, Sequence) else alpha
        plan = plan.with_(anchors=replace(planned_anchors(plan), alpha=alpha, gamma=gamma))
    link = getattr(make_loss(cfg.loss, plan.activation), "link", None)
    if link is None:
        return plan.with_(link=None)
    alpha, gamma = link
    return plan.with_(
        link=FocalCorrection(tuple(alpha) if isinstance(alpha, Sequence) else alpha, gamma)
    )


def check_losses(plan: Plan, cfg: TrainConfig) -> None:
    """Raise `ConfigError` before the run begins where, say, α does not fit the plan's labels."""
    objective = make_objective(plan, cfg)
    targets = objective.targets(some_batch(plan, 1, torch.device("cpu")))
    n_logits = len(plan.labels) + (plan.activation == "softmax")
    output: Any = [torch.zeros(1, n_logits, *plan.tile_shape)]
    if targets.anchors is not None:
        n_anchors = targets.anchors.labels.shape[1]
        scores = torch.zeros(1, n_anchors, len(plan.labels.lesion_names))
        output = DetectorOutput(scores, torch.zeros(1, n_anchors, 2 * plan.dims), tuple(output))
    with torch.no_grad():
        objective.terms(output, targets, torch.ones_like(targets.counts()))
