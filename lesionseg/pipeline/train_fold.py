"""One training: networks, selection, bundle, card; number of cases validated meanwhile."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytorch_lightning as pl

from lesionseg.core import CaseFiles, Selection
from lesionseg.data.cache import CachedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.errors import count, duration
from lesionseg.evaluation.operating_points import DEFAULT_POINT, OperatingPointAim
from lesionseg.evaluation.scores import Scores
from lesionseg.inference.bundle import Bundle, bundle_plan, bundle_selection, write_bundle
from lesionseg.inference.input_check import training_ranges
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.text import write_text
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import LOG, LOG_FORMAT, are_bars_shown, bar, open_log
from lesionseg.pipeline.prepare import prepare_cases
from lesionseg.pipeline.provenance import training_counts
from lesionseg.pipeline.score_roles import score_validation, validation_scores
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks import ProgressCallback, WorkerLogHandler
from lesionseg.training.checkpoints import LAST
from lesionseg.training.fit import (
    CHECKPOINTS,
    STEPS_PER_EPOCH,
    FitResult,
    fit,
    with_lesion_in_each_step,
)
from lesionseg.training.initial_weights import start_from
from lesionseg.training.module import (
    LesionModule,
    budget_text,
    count_tiles_per_step,
    resolve_budget,
)
from lesionseg.training.objective import make_objective
from lesionseg.training.processes import (
    call_on_local_rank_zero_first,
    is_rank_zero,
    require_compiler,
    require_device,
)
from lesionseg.training.validation import Validate

log = logging.getLogger(__name__)

VALIDATE_CASES = 16  # the most validation cases that are predicted during training
SEEDS_APART = 1000  # from a network of a run to the next one


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained and kept as a bundle.

    Attributes:
        experiment: The experiment, with the details of the training in its provenance.
        predictor: Predicts by the plan and the selection.
        scores: The scores by role; empty without validation cases.
    """

    experiment: Experiment
    predictor: Predictor
    scores: Mapping[str, Scores]


def train_fold(experiment: Experiment, plan: Plan) -> TrainedModel | None:
    """Train a model, choose its operating point on the validation cases, and write its bundle.

    The model is one network, or a few for a dataset with few lesions (`train_networks`).

    All processes of a distributed training call this together. Without validation cases, a
    requested score is used as the operating point, otherwise the default score. A warning says that
    another request has no effect, except for the aim `auto` without `rate_confidence`.

    Args:
        experiment: The training: its settings, cases and run directory.
        plan: The plan of the networks.

    Returns:
        The trained model. None on every process except rank 0.
    """
    cfg = experiment.cfg
    if not experiment.bundle.exists():  # a run that is only scored again needs no GPU
        require_device(cfg.trainer.accelerator)
        require_compiler(cfg.trainer)
    # the first process of each machine fills the cache, in which the others find the cases
    cases = call_on_local_rank_zero_first(
        partial(prepare_cases, experiment.inspection, plan, experiment.cache)
    )
    # choose the cases by which the training chooses its weights, and train
    budget = resolve_budget(cfg.trainer, plan, experiment.device)
    log.info("Training ends after %s.", budget_text(budget))
    validate = None
    validation_cases = experiment.cases("validation")
    held_out = choose_validated(validation_cases, experiment.inspection.counts, VALIDATE_CASES)
    check = (
        training_ranges(cases, plan, experiment.inspection.fingerprint) if is_rank_zero() else None
    )
    if budget.validate_every_minutes is not None and held_out:
        log.info(
            "During the training, %d of %d validation cases choose the weights.",
            len(held_out),
            len(validation_cases),
        )
        validate = partial(
            validation_scores, experiment=experiment, cases=held_out, plan=plan, check=check
        )
    fitted = train_networks(experiment, plan, cases, validate)
    if not is_rank_zero():
        return None

    # choose the operating point on all validation cases, and write the bundle
    experiment = experiment.with_origin(
        training_minutes=round(sum(one.minutes for one in fitted), 3),
        training_steps=sum(one.steps for one in fitted),
        model=plan.architecture.name,
        **training_counts(experiment.cases("train")),
    )
    trained = Bundle(tuple(one.network for one in fitted), plan, check)
    # `trust`: the user's own settings name the network class
    predictor = Predictor(trained, settings=cfg.inference, device=fitted[0].device, trust=True)
    aim = OperatingPointAim.parse(cfg.operating_point)
    selection = Selection((aim.given or DEFAULT_POINT,))
    scores = {}
    validation = score_validation(predictor, experiment)
    if validation is not None:
        selection, scores["validation"] = validation
    elif aim.kind != "score" and (aim.kind != "auto" or cfg.rate_confidence is not None):
        log.warning(
            "operating_point=%s has no effect, because no validation case has a reference. "
            "Candidates from score %g up are accepted.",
            cfg.operating_point,
            DEFAULT_POINT.score,
        )
    selection = replace(selection, n_members=len(fitted))
    keep_bundle(experiment, replace(trained, selection=selection), scores.get("validation"))
    return TrainedModel(experiment, predictor.with_selection(selection), scores)


def train_networks(
    experiment: Experiment, plan: Plan, cases: Sequence[CachedCase], validate: Validate | None
) -> list[FitResult]:
    """Train the plan's network, and further ones in the minutes that it leaves.

    A network leaves minutes if it ends after `plan.network_steps`. The further networks share them
    equally, and keep their last weights. A fold has only one network, because the networks of all
    folds are averaged, too. An interrupted training continues with the same networks.

    Args:
        experiment: The training.
        plan: The plan of all networks.
        cases: The prepared training cases.
        validate: Scores the first network on validation cases; None keeps its last weights.

    Returns:
        The results of one to `trainer.max_networks` networks.
    """
    cfg = experiment.cfg
    first = train_network(experiment, plan, cases, validate)
    budget = resolve_budget(cfg.trainer, plan, experiment.device)
    leaves_minutes = cfg.trainer.max_steps is None and first.steps == budget.max_steps
    if not (leaves_minutes and budget.max_minutes and budget.max_networks):
        return [first]
    minutes = budget.max_minutes - first.minutes
    n_further = min(round(minutes / first.minutes), budget.max_networks - 1)
    if cfg.data.fold is not None or n_further < 1:
        return [first]
    log.info(
        "In %s: %s. Predictions take %d times as long.",
        duration(minutes),
        count(n_further, "further network"),
        n_further + 1,
    )
    trainer = cfg.trainer.model_copy(update={"max_minutes": minutes / n_further})
    further = replace(experiment, cfg=cfg.model_copy(update={"trainer": trainer}))
    numbers = range(2, n_further + 2)
    return [first, *(train_network(further, plan, cases, None, number=n) for n in numbers)]


def train_network(
    experiment: Experiment,
    plan: Plan,
    cases: Sequence[CachedCase],
    validate: Validate | None,
    callbacks: Sequence[pl.Callback] = (),
    *,
    number: int = 1,
) -> FitResult:
    """Build the plan's network and train it, or continue an interrupted training of this run.

    The initial weights are those of the last checkpoint of the run, otherwise of `model.init_from`,
    otherwise random weights by the seed.

    Args:
        experiment: The training.
        plan: The plan.
        cases: The prepared training cases.
        validate: Scores the network on validation cases; None keeps the last weights.
        callbacks: Further callbacks of PyTorch Lightning.
        number: Number of the network in the run. From 2 on, it has a seed of its own, and its
            checkpoints and metrics are in the folder `network_<number>`.
    """
    cfg = experiment.cfg
    folder = experiment.run if number == 1 else experiment.run / f"network_{number}"
    seed = cfg.seed + SEEDS_APART * (number - 1)
    network = build_network(plan, architectures=TRUSTED, seed=seed)
    if cfg.model.init_from and not (folder / CHECKPOINTS / LAST).is_file():
        start_from(cfg.model.init_from, network, plan)
    objective = make_objective(plan, cfg.loss, cfg.detection)
    module = LesionModule(network, objective, cfg.trainer, cfg.optim)
    tiles_per_step = count_tiles_per_step(cfg.trainer, plan)
    tiles = TileDataset(
        cases,
        plan,
        with_lesion_in_each_step(cfg.sampling, tiles_per_step),
        cfg.augment,
        n_tiles=STEPS_PER_EPOCH * tiles_per_step,
        seed=seed,
        channel_dropout=cfg.data.channel_dropout,
    )
    tiles[0]  # so that an error of the cases appears here and not in a worker process
    log.debug("Sampling: %s", tiles.sampler.mix)
    # processes that Lightning spawns have no context of their own
    training_bar = partial(bar, "Training", shown=are_bars_shown())
    open_handler = partial(open_log, experiment.run / LOG, LOG_FORMAT, private=cfg.private)
    own_callbacks = [ProgressCallback(training_bar), WorkerLogHandler(open_handler)]
    return fit(
        module,
        tiles,
        folder,
        validate=validate,
        callbacks=[*cfg.callbacks, *own_callbacks, *callbacks],
        loggers=cfg.logger,
    )


def keep_bundle(experiment: Experiment, bundle: Bundle, scores: Scores | None) -> None:
    """Write the bundle and its model card into a run directory, and `selection.json` next to it.

    Args:
        experiment: The training, whose provenance the model card contains.
        bundle: The networks, the plan and the selection.
        scores: The scores of the validation cases for the model card; None without such cases.
    """
    evaluated = [] if scores is None else [scores]
    write_bundle(
        experiment.bundle,
        bundle.networks,
        bundle.plan,
        model_card(bundle.plan, bundle.selection, evaluated, experiment.origin),
        check=bundle.check,
        selection=bundle.selection,
    )
    write_text(experiment.run / "selection.json", bundle.selection.to_json())


def write_card(experiment: Experiment, scores: Sequence[Scores]) -> None:
    """Write the model card of a run's bundle again, now with the scores of the test cases, too.

    The bundle is written before the test, because the test cases are scored with it.

    Args:
        experiment: The training, whose provenance the model card contains.
        scores: The scores of each role.
    """
    bundle = experiment.bundle
    card = model_card(bundle_plan(bundle), bundle_selection(bundle), scores, experiment.origin)
    write_text(BundleFiles(bundle).card, card)


def choose_validated(
    cases: Sequence[CaseFiles], counts: Mapping[str, int], n: int
) -> list[CaseFiles]:
    """Choose at most `n` validation cases that are predicted during the training.

    Cases with lesions are chosen in proportion to their number in `cases`, but at least `n // 2` of
    them if there are enough. If no chosen case had a lesion, all weights would have the same score.

    Args:
        cases: The validation cases.
        counts: Number of lesions of each case.
        n: Maximum number of cases.

    Returns:
        The chosen cases, in the order of `cases`.
    """
    if len(cases) <= n:
        return list(cases)
    with_lesions = [files for files in cases if counts.get(files.case)]
    lesion_free = [files for files in cases if not counts.get(files.case)]
    # in proportion, but at least n // 2, and no more than there are
    n_with_lesions = min(max(round(n * len(with_lesions) / len(cases)), n // 2), len(with_lesions))
    chosen = _choose_evenly(with_lesions, n_with_lesions)
    chosen += _choose_evenly(lesion_free, n - n_with_lesions)
    return [files for files in cases if files in chosen]


def _choose_evenly(cases: Sequence[CaseFiles], n: int) -> list[CaseFiles]:
    """Return `n` cases at equal distances in the list.

    The first cases by name are often of a single site, so they would be a bad choice.
    """
    return [cases[round(i)] for i in np.linspace(0, len(cases) - 1, n)]
