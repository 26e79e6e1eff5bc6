"""Plan, prepare and learn: the steps that every training goes through, whoever orders it."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

from lesionseg.data.cache.case_cache import CachedCase
from lesionseg.data.cache.fill import fill_cache
from lesionseg.io.atomic import write_text
from lesionseg.io.cases import read_case
from lesionseg.losses.detection_loss import DetectionLoss
from lesionseg.models.build import build_network
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.same_cases import SPLITS
from lesionseg.pipeline.dataset.survey import Survey, take_survey
from lesionseg.pipeline.judging.choice import undecided
from lesionseg.pipeline.run.progress import bar
from lesionseg.pipeline.run.run_dir import is_claimed
from lesionseg.pipeline.train.fine_tuning import bundle_plan, start_from
from lesionseg.plan.make import PlanOverrides, make_plan
from lesionseg.plan.plan import FocalLink, Plan
from lesionseg.training.callbacks.step_callbacks import Validate
from lesionseg.training.device.accelerator import (
    available_memory_gb,
    require_device,
    training_device,
)
from lesionseg.training.device.memory_probe import Probe, fitted_to_memory
from lesionseg.training.fit import CHECKPOINT, FitResult, choose_precision, chosen_device, fit
from lesionseg.training.learning_settings import Learning
from lesionseg.training.step.detection_objective import make_objective, taught_anchors
from lesionseg.training.step.scaling import autocast_dtype

log = logging.getLogger(__name__)


def decide(
    survey: Survey, model: PlanOverrides, accelerator: str, run: Path, given: Plan | None = None
) -> Plan:
    """Make the plan, unless it is `given` or the run has one; write fingerprint, plan, splits."""
    plan = given or kept_plan(run) or _planned(survey, model, accelerator)
    write_text(run / "fingerprint.json", survey.fingerprint.to_json())
    write_text(run / SPLITS, survey.splits.to_json())
    write_text(run / "plan.json", plan.to_json())
    return plan


def kept_plan(run: Path) -> Plan | None:
    """The plan of a run that is resumed: another machine's memory would make another one.

    None for a new run, and for one whose settings were refused before it was claimed.
    """
    path = run / "plan.json"
    if not (is_claimed(run) and path.is_file()):
        return None
    log.info("Resuming: the plan is kept as this run first made it, whatever machine this is.")
    return undecided(Plan.from_json(path.read_text(encoding="utf-8"), path))


def _planned(survey: Survey, model: PlanOverrides, accelerator: str) -> Plan:
    require_device(accelerator)  # before a plan for another device is written
    device = training_device(accelerator)
    plan = make_plan(
        survey.fingerprint,
        survey.dataset,
        memory_gb=available_memory_gb(device),
        device=device,
        overrides=model,
        before=bundle_plan(model.init_from) if model.init_from else None,
    )
    for decision, reason in plan.reasons.items():
        log.info("Plan, %s: %s", decision, reason)
    return plan


def affordable(plan: Plan, learning: Learning, run: Path) -> Plan:
    """The plan, made smaller where a trial step runs out of a GPU's memory, and written again."""
    trainer = learning.trainer
    device = chosen_device(trainer)
    if device.type != "cuda":  # a processor's memory runs out without saying so
        return plan
    probe = Probe(
        build=build_network,
        teach=lambda smaller: make_objective(learning.loss, learning.detection, smaller),
        settings=trainer,
        optimiser=learning.optimiser,
        device=device,
        dtype=autocast_dtype(choose_precision(trainer.precision, device)),
    )
    fitted = fitted_to_memory(plan, probe)
    write_text(run / "plan.json", fitted.to_json())
    return fitted


def linked(plan: Plan, loss: nn.Module, detection: DetectionLoss | None = None) -> Plan:
    """The plan with what inference must undo of the losses; see `losses.posterior`."""
    if plan.has_boxes and detection is not None:
        plan = taught_anchors(plan, detection)
    link = getattr(loss, "link", None)
    if link is None:
        return plan.with_(link=None)
    alpha, gamma = link
    return plan.with_(link=FocalLink(tuple(alpha) if isinstance(alpha, Sequence) else alpha, gamma))


def prepare_cases(survey: Survey, plan: Plan, data: DataSettings, run: Path) -> list[CachedCase]:
    """The training cases on the plan's grid, from the cache where it has them."""
    folder = data.cache_dir or run.parent / "cache"
    with bar("Preparing cases") as advance:
        return fill_cache(
            survey.dataset,
            survey.of_role("train"),
            plan,
            folder,
            read=partial(read_case, dataset=survey.dataset),
            progress=advance,
            disk=data.disk,
        )


def prepared(
    data: DataSettings, run: Path, model: PlanOverrides | None = None, seed: int = 0
) -> tuple[Plan, list[CachedCase]]:
    """A folder's plan and its prepared training cases, for a `pl.Trainer` of one's own.

    Fingerprint, splits and plan are written to `run`. Raises what `lesionseg prepare` would.
    """
    survey = take_survey(data, seed)
    plan = decide(survey, model or PlanOverrides(), "auto", run)
    return plan, prepare_cases(survey, plan, data, run)


def learn(
    plan: Plan,
    cases: list[CachedCase],
    learning: Learning,
    run: Path,
    *,
    validate: Validate | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> FitResult:
    """Build the plan's network from the seed, or from a bundle, and train it as in `fit`."""
    network = build_network(plan, seed=learning.seed)
    if learning.init_from and not (run / CHECKPOINT).is_file():
        start_from(learning.init_from, network, plan)
    return fit(network, plan, cases, learning, run, validate=validate, callbacks=callbacks)
