"""One training from plan to bundle: learn, predict the validation cases, choose on them, keep."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from lesionseg.config import ReportSection
from lesionseg.data.cache import CachedCase
from lesionseg.data.transforms import PrepareSettings
from lesionseg.evaluation import Preset
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.candidates.accept import DEFAULT_POINT
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import write_text
from lesionseg.pipeline.dataset import DataSettings, Survey, require_masks
from lesionseg.pipeline.run.run_dir import claim, is_claimed, provenance, refuse_other_cases
from lesionseg.pipeline.score import (
    RoleScores,
    Rules,
    VolumeScorer,
    labelled,
    score_validation,
)
from lesionseg.pipeline.select import Choice, ChoiceSettings
from lesionseg.pipeline.train.learning import (
    affordable,
    decide,
    learn,
    learnt_scans,
    linked,
    prepare_cases,
    rated,
    settle,
    step_memory,
)
from lesionseg.pipeline.train.loss_check import check_losses
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.focal_balance import FocalBalance
from lesionseg.training.callbacks.loggers import Follow, LoggerSettings, show_afterwards
from lesionseg.training.callbacks.previews import Previews, ValidationSlices
from lesionseg.training.callbacks.selection import KeepBest, take_best
from lesionseg.training.callbacks.step_callbacks import Validate
from lesionseg.training.device.accelerator import require_device
from lesionseg.training.device.processes import first_on_node, from_first
from lesionseg.training.fit import FitResult, check_activation
from lesionseg.training.learning_settings import Learning

log = logging.getLogger(__name__)

BUNDLE = "bundle"


@dataclass(frozen=True)
class Recipe:
    """All that a user chose for `train`; `config` is the same as plain data."""

    data: DataSettings
    model: PlanOverrides
    learning: Learning
    logger: LoggerSettings
    inference: InferenceSettings
    preset: Preset
    report: ReportSection
    choice: ChoiceSettings
    config: Mapping[str, Any]
    prepare: PrepareSettings = field(default_factory=PrepareSettings)

    def logged(self) -> dict[str, Any]:
        """The settings that a logger keeps: nothing that names data or folders."""
        groups = ("loss", "detection", "sampling", "augment", "optim", "trainer", "model")
        settings = {name: dict(self.config.get(name) or {}) for name in groups}
        settings["model"].pop("init_from", None)
        return {**settings, "seed": self.learning.seed}

    def rules(self, origin: Mapping[str, Any]) -> Rules:
        """By what the cases of this recipe are judged."""
        return Rules(self.preset, self.choice, origin)

    def origin(self, survey: Survey, device: str) -> dict[str, Any]:
        """What made the results: versions, seed, data, machine."""
        return provenance(survey.dataset, self.config, self.learning.seed, device)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network: its complete plan, its predictor, and how it did on validation cases."""

    predictor: Predictor
    plan: Plan
    validation: RoleScores | None
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class TrainResult:
    """The complete plan of a run and its scores by what they were computed on."""

    plan: Plan
    scores: Mapping[str, Mapping[str, Any]]


def begin(recipe: Recipe, survey: Survey, run: Path, plan: Plan | None = None) -> Plan:
    """Plan (or take the one given), check it, and claim the run directory for the recipe.

    By the first process; others that train with it receive the plan.
    """
    return from_first(partial(_begin, recipe, survey, run, plan))


def _begin(recipe: Recipe, survey: Survey, run: Path, plan: Plan | None) -> Plan:
    refuse_other_cases(run, survey.splits)
    learning, name = recipe.learning, recipe.model.architecture
    require_masks(survey, name)
    is_new = plan is None and not is_claimed(run)
    if is_new:
        require_device(learning.trainer.accelerator)
    memory = step_memory(learning)
    plan = decide(survey, recipe.model, learning.trainer, run, plan, memory, recipe.prepare.extra)
    plan = linked(plan, learning.loss, learning.detection)
    plan = plan.with_(channel_sets=recipe.data.channel_sets(plan.channel_names))
    check_activation(learning.loss, plan)
    check_losses(plan, learning.loss, learning.detection)
    if is_new:
        plan = affordable(plan, learning, run, survey, recipe.model)
    plan = rated(plan, learning)
    write_text(run / "plan.json", plan.to_json())
    claim(run, recipe.config)  # last: a refused setting must not make the corrected one another's
    if not recipe.config.get("run_dir"):  # its name holds the time: another run each
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    return plan


def train_once(recipe: Recipe, survey: Survey, plan: Plan, run: Path) -> Callable[[], Trained]:
    """Train by the plan on the survey's roles, by all processes together.

    What it returns is for the first one to call: it leaves validation scores and the bundle in
    `run`.
    """
    if not (run / BUNDLE).exists():  # what is only judged again needs no GPU
        require_device(recipe.learning.trainer.accelerator)
    cases = first_on_node(partial(prepare_cases, survey, plan, recipe.data, run))
    # a loss may keep sums of its own: every training begins with a fresh one
    learning = settle(replace(recipe.learning, loss=deepcopy(recipe.learning.loss)), plan)
    recipe = replace(recipe, learning=learning)
    watchers: list[pl.Callback] = [FocalBalance(run)]
    follow = Follow(recipe.logger, run, recipe.logged())
    slices = ValidationSlices(run, recipe.logger.n_previews, follow.show)
    watchers += [*_previews(recipe.logger, run, follow), slices, follow]
    validate = _validation(recipe, survey, plan, run, slices)
    fitted = learn(plan, cases, learning, run, validate=validate, callbacks=watchers)
    last = _last_slices(recipe, run) if validate is None else None
    return partial(_judged, recipe, survey, cases, plan, run, fitted, last)


def _judged(
    recipe: Recipe,
    survey: Survey,
    cases: Sequence[CachedCase],
    plan: Plan,
    run: Path,
    fitted: FitResult,
    slices: ValidationSlices | None,
) -> Trained:
    """Choose on the validation cases by the weights that are kept, and write the bundle.

    The cases are shown to `slices`, unless they were shown all along.
    """
    take_best(fitted.network, run, recipe.learning.trainer.select)
    origin = recipe.origin(survey, fitted.device)
    origin |= {"training_minutes": round(fitted.minutes, 3), "training_steps": fitted.steps}

    check = learnt_scans(cases, plan, survey.fingerprint)

    def predictor(by: Plan) -> Predictor:
        return Predictor.from_network(
            fitted.network, by, settings=recipe.inference, device=fitted.device, check=check
        )

    see = slices.see if slices else None
    validation = score_validation(predictor(plan), survey, run, recipe.rules(origin), see)
    choice = validation.choice if validation else Choice((DEFAULT_POINT,))
    if slices is not None:
        slices.draw(fitted.steps, choice.apply_to)
    complete = choice.added_to(plan)
    scores = validation.scores if validation else None
    keep_bundle([fitted.network], complete, scores, origin, run, check)
    return Trained(predictor(complete), complete, validation, origin)


def _validation(
    recipe: Recipe, survey: Survey, plan: Plan, run: Path, slices: ValidationSlices
) -> Validate | None:
    """Whole volumes while training goes on, where that is asked for and there are any."""
    trainer, cases = recipe.learning.trainer, labelled(survey, "validation")
    if trainer.validate_every_minutes is None or not cases:
        return None
    n_cases, see = trainer.validate_cases, slices.see
    score = VolumeScorer(survey, cases, plan, recipe.inference, recipe.preset, n_cases, see)
    return KeepBest(score, run)


def _last_slices(recipe: Recipe, run: Path) -> ValidationSlices:
    """Draws a few validation cases when training is over."""
    settings = recipe.logger
    return ValidationSlices(run, settings.n_previews, partial(show_afterwards, settings, run))


def _previews(settings: LoggerSettings, run: Path, follow: Follow) -> list[pl.Callback]:
    """What the logger is shown of tiles."""
    every = settings.previews_every_minutes
    return [] if every is None else [Previews(run, every, settings.preview_tiles, follow.show)]


def keep_bundle(
    networks: Sequence[nn.Module],
    plan: Plan,
    scores: Mapping[str, Any] | None,
    origin: Mapping[str, Any],
    run: Path,
    check: InputCheck | None = None,
) -> None:
    """Write the bundle and, with all that was chosen, the plan again.

    Args:
        networks: the members, each a network of the plan.
        plan: what was decided and chosen.
        scores: of the validation cases, or None.
        origin: what made the model, for its card.
        run: the run directory.
        check: what tells scans that are unlike the training scans, or None.
    """
    plan = plan.with_(n_members=len(networks))
    card = model_card(plan, scores, origin)
    write_bundle(run / BUNDLE, networks, plan, card, check)
    write_text(run / "plan.json", plan.to_json())
