"""The recipe of `train`: from a folder of scans to a bundle, scores and a report."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.cache import CachedCase, fill_cache
from lesionseg.data.sampling import SamplingSettings
from lesionseg.evaluation import Preset
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.card import model_card
from lesionseg.inference.postprocess import DEFAULT_POINT
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.settings import InferenceSettings
from lesionseg.io.atomic import write_text
from lesionseg.io.cases import read_case
from lesionseg.models.build import build_network
from lesionseg.pipeline.judge import Judged, check_point, judge
from lesionseg.pipeline.memory import available_memory_gb, training_device
from lesionseg.pipeline.progress import bar
from lesionseg.pipeline.provenance import device_name, is_simulated, provenance
from lesionseg.pipeline.report import ReportSettings, report_run
from lesionseg.pipeline.run_dir import check_claim, claim, default_run_dir
from lesionseg.pipeline.settings import DataSettings
from lesionseg.pipeline.survey import Survey, survey
from lesionseg.plan.make import PlanOverrides, make_plan
from lesionseg.plan.plan import FocalLink, Plan
from lesionseg.training.callbacks import Validate
from lesionseg.training.fit import FitResult, check_activation, fit
from lesionseg.training.focal_balance import FocalBalance
from lesionseg.training.label_audit import LabelAudit
from lesionseg.training.settings import AuditSettings, OptimiserSettings, TrainerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learning:
    """Everything that is chosen about how a network learns."""

    loss: nn.Module
    sampling: SamplingSettings
    augmentation: AugmentationSettings
    optimiser: OptimiserSettings
    trainer: TrainerSettings


@dataclass(frozen=True)
class TrainOutcome:
    """What a finished run leaves: where, how long it took, and its scores by role."""

    run_dir: Path
    seconds: float
    scores: Mapping[str, Mapping[str, Any]]
    report: Path | None


def train(
    data: DataSettings,
    model: PlanOverrides,
    loss: nn.Module,
    sampling: SamplingSettings,
    augment: AugmentationSettings,
    optim: OptimiserSettings,
    trainer: TrainerSettings,
    audit: AuditSettings,
    inference: InferenceSettings,
    preset: Preset,
    report: ReportSettings,
    operating_point: str,
    run_dir: str | None,
    seed: int,
    replicates: int,
    config: Mapping[str, Any],
) -> TrainOutcome:
    """Train, choose an operating point on the validation role, test, bundle and report.

    All of it lies in `run_dir`; `config` is the resolved configuration that is kept there. All
    cases are read and checked before the first file is written. Starting again with the same
    configuration resumes. Raises the `LesionsegError` of whatever is wrong.
    """
    started = time.monotonic()
    run = Path(run_dir) if run_dir else default_run_dir(data.root, model.architecture)
    check_claim(run, config)
    check_point(operating_point)
    found = survey(data, seed)
    plan = linked(decide(found, model, trainer.accelerator, run), loss)
    check_activation(loss, plan)
    claim(run, config)  # last: a refused setting must not make the corrected one another's
    if run_dir is None:  # its name holds the time: the same command would begin anew
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    cases = prepare_cases(found, plan, data, run)
    learning = Learning(loss, sampling, augment, optim, replace(trainer, seed=seed))
    watchers: list[pl.Callback] = [FocalBalance(run)]
    watchers += [LabelAudit(cases, plan, audit, run)] if audit.enabled else []
    fitted = learn(plan, cases, learning, run, callbacks=watchers)
    origin = provenance(found.dataset, seed, device_name(fitted.device), _simulated(config, found))
    origin |= {"training_minutes": round(fitted.minutes, 3), "training_steps": fitted.steps}
    predictor = Predictor.from_network(
        fitted.network, plan, settings=inference, device=fitted.device
    )
    score = partial(
        judge, predictor, found, preset=preset, replicates=replicates, seed=seed, origin=origin
    )
    validation = score("validation", run, points=None, accept=operating_point)
    points = validation.points if validation else (DEFAULT_POINT,)
    keep_bundle(fitted.network, plan.with_(operating_points=points), validation, origin, run)
    tested = score("test", run / "test", points=points)
    page = report_run(run, found.dataset, report)
    scores = {"validation": validation, "test": tested}
    return TrainOutcome(
        run, time.monotonic() - started, {k: v.scores for k, v in scores.items() if v}, page
    )


def decide(found: Survey, model: PlanOverrides, accelerator: str, run: Path) -> Plan:
    """Make the plan, log each decision's reason, and write fingerprint, plan and splits."""
    device = training_device(accelerator)
    plan = make_plan(
        found.fingerprint,
        found.dataset,
        memory_gb=available_memory_gb(device),
        device=device,
        overrides=model,
    )
    for decision, reason in plan.reasons.items():
        log.info("Plan, %s: %s", decision, reason)
    write_text(run / "fingerprint.json", found.fingerprint.to_json())
    write_text(run / "splits.json", found.splits.to_json())
    write_text(run / "plan.json", plan.to_json())
    return plan


def linked(plan: Plan, loss: nn.Module) -> Plan:
    """The plan with what inference must undo of the loss; see `losses.posterior`."""
    link = getattr(loss, "link", None)
    if link is None:
        return plan.with_(link=None)
    alpha, gamma = link
    return plan.with_(link=FocalLink(tuple(alpha) if isinstance(alpha, Sequence) else alpha, gamma))


def prepare_cases(found: Survey, plan: Plan, data: DataSettings, run: Path) -> list[CachedCase]:
    """The training cases on the plan's grid, from the cache where it has them."""
    folder = Path(data.cache_dir) if data.cache_dir else run.parent / "cache"
    with bar("Preparing cases") as advance:
        return fill_cache(
            found.dataset,
            found.of_role("train"),
            plan,
            folder,
            read=partial(read_case, dataset=found.dataset),
            progress=advance,
        )


def learn(
    plan: Plan,
    cases: list[CachedCase],
    learning: Learning,
    run: Path,
    *,
    validate: Validate | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> FitResult:
    """Build the plan's network from the seed and train it; the rest is as in `fit`."""
    return fit(
        build_network(plan, seed=learning.trainer.seed),
        learning.loss,
        plan,
        cases,
        settings=learning.trainer,
        optimiser=learning.optimiser,
        sampling=learning.sampling,
        augmentation=learning.augmentation,
        run_dir=run,
        validate=validate,
        callbacks=callbacks,
    )


def keep_bundle(
    network: nn.Module, plan: Plan, validation: Judged | None, origin: Mapping[str, Any], run: Path
) -> None:
    """Write the bundle and, with its operating points, the plan again."""
    scores = validation.scores if validation else None
    write_bundle(run / "bundle", network, plan, model_card(plan, scores, origin))
    write_text(run / "plan.json", plan.to_json())


def _simulated(config: Mapping[str, Any], found: Survey) -> bool:
    return is_simulated(config.get("data", {}), found.dataset)
