"""Plan, prepare and learn: the steps that every training goes through, whoever orders it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from torch import nn

from lesionseg.core import Geometry
from lesionseg.data.cache import CachedCase, cores, fill_cache, source_hash
from lesionseg.data.transforms import Spec
from lesionseg.errors import ConfigError
from lesionseg.inference.input_check import (
    LEAST_SCANS,
    N_SCANS,
    InputCheck,
    grid_statistics,
    image_statistics,
    make_input_check,
)
from lesionseg.io.atomic import write_text
from lesionseg.losses import DetectionLoss
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.models.foreign import backbone_pyramid, probe_network
from lesionseg.ops.host_memory import default_budget
from lesionseg.pipeline.dataset import CACHE, DataSettings, Survey, take_survey
from lesionseg.pipeline.predict import needed_bytes
from lesionseg.pipeline.run.outcome import bar
from lesionseg.pipeline.run.run_dir import SPLITS, is_claimed
from lesionseg.pipeline.select import unselected
from lesionseg.pipeline.train.fine_tuning import bundle_before, checkpoint_stages, start_from
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.make import PlanOverrides, make_plan
from lesionseg.plan.plan import FocalLink, Plan
from lesionseg.training.callbacks.step_callbacks import Validate
from lesionseg.training.device.accelerator import (
    available_memory_gb,
    require_device,
    training_device,
)
from lesionseg.training.device.memory_probe import Probe, fitted_to_memory
from lesionseg.training.device.step_memory import CONTEXT_GB, StepMemory
from lesionseg.training.fit import CHECKPOINT, FitResult, fit
from lesionseg.training.learning_settings import Learning
from lesionseg.training.run_trainer import choose_precision, chosen_device
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.detection_objective import make_objective, taught_anchors
from lesionseg.training.step.scaling import autocast_dtype
from lesionseg.training.step.schedule import batch_factor, settled

log = logging.getLogger(__name__)


# A step that takes so much less than predicted leaves room worth planning with
LEFT = 1.15


def decide(
    survey: Survey,
    model: PlanOverrides,
    trainer: TrainerSettings,
    run: Path,
    given: Plan | None = None,
    memory: StepMemory | None = None,
    extra: Sequence[Spec] = (),
) -> Plan:
    """Make the plan, unless it is `given` or the run has one; write fingerprint, plan, splits.

    Args:
        survey: the dataset, its fingerprint and its split.
        model: what is chosen of the plan.
        trainer: the device and how much of its memory.
        run: the run directory.
        given: a plan that is taken as it is.
        memory: what a training step takes of a GPU; None for one by the default losses.
        extra: transforms that each image has after normalisation.
    """
    memory = memory or StepMemory()
    plan = given or kept_plan(run) or _planned(survey, model, trainer, memory, extra)
    # what is imported is what the user typed, whoever wrote the file
    plan = plan.with_(architecture=replace(plan.architecture, network=model.spec))
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
    return unselected(Plan.from_json(path.read_text(encoding="utf-8"), path))


def _planned(
    survey: Survey,
    model: PlanOverrides,
    trainer: TrainerSettings,
    memory: StepMemory,
    extra: Sequence[Spec],
) -> Plan:
    """A plan for the device at hand, or for a GPU of `memory_gb` that is elsewhere."""
    elsewhere = trainer.memory_gb is not None and trainer.accelerator in ("gpu", "cuda")
    if not elsewhere:
        require_device(trainer.accelerator)  # before a plan for another device is written
    device = "cuda" if elsewhere else training_device(trainer.accelerator)
    memory_gb = trainer.memory_gb or available_memory_gb(device)
    before = bundle_before(model.init_from)
    if before is not None and list(before.prepare_extra) != list(extra):
        raise ConfigError(
            "Training cannot start from this bundle: its images were prepared in another way.",
            where="prepare.extra",
            seen=list(extra),
            expected=list(before.prepare_extra),
        )
    plan = _plan_for(device, memory_gb, survey, model, memory).with_(prepare_extra=tuple(extra))
    plan = probe_network(plan, by_hand=bool(model.tile_shape or before))
    for decision, reason in plan.reasons.items():
        log.info("Plan, %s: %s", decision, reason)
    return plan


def _plan_for(
    device: str, memory_gb: float, survey: Survey, model: PlanOverrides, memory: StepMemory
) -> Plan:
    dims, n_channels = survey.fingerprint.dims, len(survey.dataset.channel_names)
    pyramid = checkpoint_stages(model, dims)
    if pyramid is not None:  # the tile is planned for a network as wide
        model = replace(model, base_features=pyramid.features[0])
    elif model.backbone:
        pyramid = backbone_pyramid(model.architecture, model.spec, dims, n_channels)
    return make_plan(
        survey.fingerprint,
        survey.dataset,
        memory_gb=memory_gb,
        device=device,
        overrides=model,
        before=bundle_before(model.init_from),
        step_memory=memory,
        pyramid=pyramid,
    )


def step_memory(learning: Learning) -> StepMemory:
    """What a training step takes of a GPU by these losses and this optimiser."""
    return StepMemory(
        teach=partial(make_objective, learning.loss, learning.detection),
        optimiser=learning.optimiser,
        averages=learning.trainer.ema_decay is not None,
        half=learning.trainer.precision != "32-true",
    )


def affordable(
    plan: Plan, learning: Learning, run: Path, survey: Survey, model: PlanOverrides
) -> Plan:
    """The plan, made smaller or larger by trial steps on a GPU, and written again."""
    trainer = learning.trainer
    device = chosen_device(trainer)
    if device.type != "cuda":  # a processor's memory runs out without saying so
        return plan
    probe = Probe(
        build=partial(build_network, architectures=TRUSTED),
        teach=lambda other: make_objective(learning.loss, learning.detection, other),
        settings=trainer,
        optimiser=learning.optimiser,
        device=device,
        dtype=autocast_dtype(choose_precision(trainer.precision, device)),
    )
    memory = step_memory(learning)
    memory_gb = trainer.memory_gb or available_memory_gb(device.type)

    def larger(fitting: Plan, peak_gb: float) -> Plan | None:
        predicted, measured = memory(fitting), peak_gb + CONTEXT_GB
        log.info("A training step: %.1f GB predicted, %.1f GB measured.", predicted, measured)
        if predicted < LEFT * measured:
            return None
        more = _plan_for("cuda", memory_gb * predicted / measured, survey, model, memory)
        more = probe_network(more, by_hand=False).with_(prepare_extra=plan.prepare_extra)
        return linked(more, learning.loss, learning.detection)

    fitted = fitted_to_memory(plan, probe, larger)
    write_text(run / "plan.json", fitted.to_json())
    return fitted


def settle(learning: Learning, plan: Plan) -> Learning:
    """What is learnt with, now that the plan is known: limits of the budget, and the rate."""
    device = training_device(learning.trainer.accelerator)
    trainer = settled(learning.trainer, plan, device)
    optimiser = learning.optimiser
    rate = optimiser.lr * batch_factor(optimiser, plan)
    limits = ((trainer.max_steps, "steps"), (trainer.max_minutes, "minutes"))
    text = " or ".join(f"{value:g} {what}" for value, what in limits if value is not None)
    log.info("Training ends after %s; learning rate %.2g.", text, rate)
    return replace(learning, trainer=trainer, optimiser=replace(optimiser, lr=rate))


def rated(plan: Plan, learning: Learning) -> Plan:
    """The plan, saying by how much the learning rate follows its batch where it does."""
    factor = batch_factor(learning.optimiser, plan)
    if factor == 1:
        return plan
    rule = "linear in" if learning.optimiser.name == "sgd" else "as the root of"
    reason = f"{factor:.3g} × optim.lr, {rule} the batch of {plan.batch_size}"
    return plan.with_(reasons={**plan.reasons, "learning_rate": reason})


def linked(plan: Plan, loss: nn.Module, detection: DetectionLoss | None = None) -> Plan:
    """The plan with what inference must undo of the losses; see `losses.focal`."""
    if plan.has_boxes and detection is not None:
        plan = taught_anchors(plan, detection)
    link = getattr(loss, "link", None)
    if link is None:
        return plan.with_(link=None)
    alpha, gamma = link
    return plan.with_(link=FocalLink(tuple(alpha) if isinstance(alpha, Sequence) else alpha, gamma))


def prepare_cases(survey: Survey, plan: Plan, data: DataSettings, run: Path) -> list[CachedCase]:
    """The training cases on the plan's grid, from the cache where it has them.

    As many at a time as there are cores, and as the memory holds of the largest.
    """
    cases, n_bytes = survey.of_role("train"), _most_bytes(survey.fingerprint, plan)
    fill = partial(
        fill_cache,
        replace(survey.dataset, cases=()),
        plan=plan,
        folder=data.cache_dir or run.parent / CACHE,
        source=lambda files: survey.sources.get(files.case) or source_hash(files),
    )
    with bar("Preparing cases") as advance:
        workers = min(cores(), max(1, default_budget() // n_bytes))
        return fill(cases, progress=advance, workers=workers)


def _most_bytes(fingerprint: Fingerprint, plan: Plan) -> int:
    """Memory that preparing the largest case takes."""
    grids = set(zip(fingerprint.shapes, fingerprint.spacings_mm, strict=True))
    return max(needed_bytes(Geometry.from_spacing(*grid), plan) for grid in grids)


def learnt_scans(
    cases: Sequence[CachedCase], plan: Plan, fingerprint: Fingerprint
) -> InputCheck | None:
    """What a new scan is compared with: statistics of up to 64 training scans, evenly chosen.

    Their own files' grids are the fingerprint's. None for too few scans; see `make_input_check`.
    """
    cases = [case for case in cases if not case.missing]
    if len(cases) < LEAST_SCANS:
        return None
    some = [cases[i] for i in sorted(set(np.linspace(0, len(cases) - 1, N_SCANS).astype(int)))]
    images = [image_statistics(case.image, plan.channel_names) for case in some]
    sides = zip(fingerprint.shapes, fingerprint.spacings_mm, strict=True)
    return make_input_check([grid_statistics(*pair) for pair in sides], images)


def prepared(
    data: DataSettings, run: Path, model: PlanOverrides | None = None, seed: int = 0
) -> tuple[Plan, list[CachedCase]]:
    """A folder's plan and its prepared training cases, for a `pl.Trainer` of one's own.

    Fingerprint, splits and plan are written to `run`. Raises what `lesionseg prepare` would.
    """
    survey = take_survey(data, seed, data.facts(run))
    plan = decide(survey, model or PlanOverrides(), TrainerSettings(budget="auto"), run)
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
    network = build_network(plan, architectures=TRUSTED, seed=learning.seed)
    if learning.init_from and not (run / CHECKPOINT).is_file():
        start_from(learning.init_from, network, plan)
    return fit(network, plan, cases, learning, run, validate=validate, callbacks=callbacks)
