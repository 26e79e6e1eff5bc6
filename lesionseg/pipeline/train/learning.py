"""Plan, prepare and learn: the steps that every training goes through, whoever orders it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from lesionseg.data.augmentation.augment import AugmentationSettings
from lesionseg.data.cache.case_cache import CachedCase
from lesionseg.data.cache.fill import fill_cache
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import ConfigError
from lesionseg.io.atomic import write_text
from lesionseg.io.cases import read_case
from lesionseg.losses.detection_loss import DetectionLoss
from lesionseg.models.build import build_network
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.same_cases import SPLITS
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.pipeline.judging.choice import undecided
from lesionseg.pipeline.run.device_memory import available_memory_gb, require_device
from lesionseg.pipeline.run.progress import bar
from lesionseg.pipeline.run.run_dir import is_claimed
from lesionseg.pipeline.train.fine_tuning import bundle_plan, start_from
from lesionseg.plan.make import PlanOverrides, make_plan
from lesionseg.plan.plan import FocalLink, Plan
from lesionseg.training.callbacks.step_callbacks import Validate
from lesionseg.training.device.kind import training_device
from lesionseg.training.device.memory_probe import Probe, fitted_to_memory
from lesionseg.training.fit import CHECKPOINT, FitResult, choose_precision, fit
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.detection_objective import make_objective, taught_anchors
from lesionseg.training.step.scaling import autocast_dtype

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learning:
    """Everything that is chosen about how a network learns, `init_from` whose weights included."""

    loss: nn.Module
    sampling: SamplingSettings
    augmentation: AugmentationSettings
    optimiser: OptimiserSettings
    trainer: TrainerSettings
    detection: DetectionLoss = field(default_factory=DetectionLoss)
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Refuse what hard background could not be collected with."""
        if self.sampling.hard_share > 0:
            _refuse_unseen_background(self.trainer)


def _refuse_unseen_background(trainer: TrainerSettings) -> None:
    """An epoch's hard background is that of the last but one, which must be over by then."""
    if not trainer.has_one_device:
        raise ConfigError(
            "Hard background is collected on one device.",
            where="sampling.hard_share",
            seen=f"trainer.devices={trainer.devices}",
            remedy="set trainer.devices=1 or sampling.hard_share=0.",
        )
    ahead = 2 * trainer.workers  # steps that workers read ahead
    if ahead >= trainer.steps_per_epoch:
        raise ConfigError(
            "With so many workers tiles are read before their hard background is known.",
            where="sampling.hard_share",
            seen=f"trainer.workers={trainer.workers}, {trainer.steps_per_epoch} steps an epoch",
            expected=f"trainer.steps_per_epoch above {ahead}",
        )


def decide(
    found: Survey, model: PlanOverrides, accelerator: str, run: Path, given: Plan | None = None
) -> Plan:
    """Make the plan, unless it is `given` or the run has one; write fingerprint, plan, splits."""
    plan = given or kept_plan(run) or _planned(found, model, accelerator)
    write_text(run / "fingerprint.json", found.fingerprint.to_json())
    write_text(run / SPLITS, found.splits.to_json())
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


def _planned(found: Survey, model: PlanOverrides, accelerator: str) -> Plan:
    require_device(accelerator)  # before a plan for another device is written
    device = training_device(accelerator)
    plan = make_plan(
        found.fingerprint,
        found.dataset,
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
    device = torch.device(training_device(trainer.accelerator))
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


def prepare_cases(found: Survey, plan: Plan, data: DataSettings, run: Path) -> list[CachedCase]:
    """The training cases on the plan's grid, from the cache where it has them."""
    folder = data.cache_dir or run.parent / "cache"
    with bar("Preparing cases") as advance:
        return fill_cache(
            found.dataset,
            found.of_role("train"),
            plan,
            folder,
            read=partial(read_case, dataset=found.dataset),
            progress=advance,
            disk=data.disk,
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
    """Build the plan's network from the seed, or from a bundle, and train it as in `fit`."""
    network = build_network(plan, seed=learning.trainer.seed)
    if learning.init_from and not (run / CHECKPOINT).is_file():
        start_from(learning.init_from, network, plan)
    return fit(
        network,
        learning.loss,
        plan,
        cases,
        detection=learning.detection,
        settings=learning.trainer,
        optimiser=learning.optimiser,
        sampling=learning.sampling,
        augmentation=learning.augmentation,
        run_dir=run,
        validate=validate,
        callbacks=callbacks,
    )
