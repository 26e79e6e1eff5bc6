"""Train every fold, side by side or in turn, and choose on cases that its network never saw.

run_dir/
├── train.log                what is logged of all folds
├── plan.json, splits.json   one plan for all folds; the folds, as `data.splits` reads them
├── fold_0/ …                runs of their own: `data.fold=0 run_dir=run_dir/fold_0` makes the same;
│                            train.log where folds were trained side by side
├── oof/                     predictions of all development cases, scores, tables, report
├── bundle/                  the folds' networks as one ensemble, with what was chosen out of fold
└── test/                    the test role, predicted by the ensemble
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError
from lesionseg.inference.bundle import ensemble
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import read_json, write_json
from lesionseg.io.predictions import find_predictions
from lesionseg.pipeline.dataset import Survey, divided, folds_of
from lesionseg.pipeline.run.run_dir import SPLITS, check_claim, refuse_other_cases
from lesionseg.pipeline.score import FoldRun, labelled, score_folds, score_role
from lesionseg.pipeline.select import mean_calibration, unselected
from lesionseg.pipeline.train.fine_tuning import bundle_plan, read_as_typed
from lesionseg.pipeline.train.learning import kept_plan
from lesionseg.pipeline.train.one_training import (
    BUNDLE,
    Recipe,
    TrainResult,
    begin,
    keep_bundle,
    train_once,
)
from lesionseg.pipeline.train.parallel import (
    RAY,
    Environment,
    Job,
    places_of,
    run_on_ray,
    run_together,
)
from lesionseg.plan.plan import Plan
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.device.processes import from_first

log = logging.getLogger(__name__)


def cross_validate(recipe: Recipe, survey: Survey, run: Path) -> Callable[[], TrainResult]:
    """Train all folds that are not finished yet.

    What it returns gathers what they predicted, and keeps one ensemble.

    A finished fold is kept, one begun goes on, also where another process or another machine made
    it. The budget of the trainer is each fold's own. Where there are devices for several, folds are
    trained side by side; the weights are the same. Raises `ConfigError` for a fold that was made by
    other settings or by another plan, `DatasetError` for one that began with other cases.
    `TrainingError` names a fold that failed.
    """
    folds = [
        FoldRun(k, divided(survey, recipe.data, recipe.learning.seed, k), run / f"fold_{k}")
        for k in folds_of(survey, recipe.data)
    ]
    recipes = [_recipe_of(recipe, fold) for fold in folds]
    for fold, its in zip(folds, recipes, strict=True):
        check_claim(fold.run, its.config)
        refuse_other_cases(fold.run, fold.survey.splits)  # also of a finished fold, which is kept
    on_ray = recipe.data.parallel_folds == RAY
    trainer, asked = recipe.learning.trainer, recipe.data.parallel_folds
    places = None if on_ray else places_of(trainer, asked)  # or too few devices
    plan = begin(recipe, survey, run, kept_plan(run) or _plan_of_finished(folds))
    finished = from_first(lambda: _begun(recipe, folds, run))
    todo = [(f, its) for f, its in zip(folds, recipes, strict=True) if f.number not in finished]
    _train(todo, plan, places)
    return partial(_gather, recipe, survey, folds, run)


def _begun(recipe: Recipe, folds: Sequence[FoldRun], run: Path) -> list[int]:
    """Write the folds, say what comes; the numbers of those that are finished."""
    _write_folds(folds, run)
    _say_what_comes(recipe, folds)
    return [fold.number for fold in folds if _is_finished(fold)]


def _train(
    todo: Sequence[tuple[FoldRun, Recipe]], plan: Plan, places: Sequence[Environment] | None
) -> None:
    """In turn and in this process where there is one fold or one place; None: on Ray."""
    tasks = [partial(_train_fold, recipe, fold, plan) for fold, recipe in todo]
    jobs = [
        Job(f"Fold {fold.number}", fold.run, task)
        for (fold, _), task in zip(todo, tasks, strict=True)
    ]
    if places is None and jobs:
        run_on_ray(jobs, todo[0][1].learning.trainer)
        return
    if min(len(todo), len(places or ())) > 1:
        run_together(jobs, places or ())
        return
    for task in tasks:
        task()


def _train_fold(recipe: Recipe, fold: FoldRun, plan: Plan) -> None:
    log.info("Fold %d: %d cases validate.", fold.number, len(fold.cases))
    plan = begin(recipe, fold.survey, fold.run, plan)
    judge = train_once(recipe, fold.survey, plan, fold.run)

    def keep() -> None:
        judge()

    from_first(keep)


def _gather(recipe: Recipe, survey: Survey, folds: Sequence[FoldRun], run: Path) -> TrainResult:
    """Judge what the folds predicted, and make them one bundle."""
    _refuse_strangers(folds)
    members = ensemble([read_as_typed(fold.run / BUNDLE, recipe.model.spec) for fold in folds])
    device = training_device(recipe.learning.trainer.accelerator)
    origin = recipe.origin(survey, device)
    origin |= {"folds": len(folds), "training_minutes": _minutes(folds)}
    safe = all(fold.survey.splits.group_safe for fold in folds)
    whole = replace(survey, splits=replace(survey.splits, group_safe=safe))
    judged = score_folds(whole, folds, run / "oof", recipe.rules(origin))
    voxels = mean_calibration([bundle_plan(str(f.run)).voxel_calibration for f in folds])
    choice = replace(judged.choice, voxel_calibration=voxels)
    plan = choice.added_to(unselected(members.plan)).with_(n_members=len(folds))
    keep_bundle(members.networks, plan, judged.scores, origin, run, members.check)
    complete = replace(members, plan=plan)
    predictor = Predictor(complete, device=device, settings=recipe.inference, trust=True)
    tested = score_role(predictor, whole, run / "test", "test", recipe.rules(origin))
    scores = {"out of fold": judged.scores, "test": tested}
    return TrainResult(plan, {name: s for name, s in scores.items() if s})


def _recipe_of(recipe: Recipe, fold: FoldRun) -> Recipe:
    """The recipe of one fold, as `data.fold=<number>` alone would have it."""
    data = {**recipe.config["data"], "fold": fold.number}
    config = {**recipe.config, "data": data, "run_dir": str(fold.run)}
    cache = recipe.data.cache_dir or str(fold.run.parent.parent / "cache")
    settings = replace(recipe.data, fold=fold.number, cache_dir=cache)
    return replace(recipe, data=settings, config=config)


def _is_finished(fold: FoldRun) -> bool:
    """Whether its bundle and the predictions of all its cases are there."""
    if not (fold.run / BUNDLE / "plan.json").is_file() or not fold.folder.is_dir():
        return False
    finished = {c.case for c in fold.cases} <= set(find_predictions(fold.folder))
    if finished:
        log.info("Fold %d is finished and kept.", fold.number)
    return finished


def _plan_of_finished(folds: Sequence[FoldRun]) -> Plan | None:
    """The plan of folds that were trained one by one, perhaps on a machine with other memory."""
    plans = (fold.run / BUNDLE / "plan.json" for fold in folds)
    path = next((path for path in plans if path.is_file()), None)
    return unselected(Plan.from_json(path.read_text("utf-8"), path)) if path else None


def _refuse_strangers(folds: Sequence[FoldRun]) -> None:
    """Out-of-fold scores compare only where all folds followed one plan."""
    plans = {fold.number: bundle_plan(str(fold.run)) for fold in folds}
    first = folds[0].number
    for number, plan in plans.items():
        different = [
            name for name in _DECISIVE if getattr(plan, name) != getattr(plans[first], name)
        ]
        if different:
            raise ConfigError(
                "The folds follow different plans.",
                where=f"fold_{number}",
                seen=f"another {', '.join(different)} than in fold_{first}",
                remedy="state these in the settings (model.…) and train the folds again.",
            )


_DECISIVE = ("architecture", "tile_shape", "spacing_mm", "normalisation", "link")


def _write_folds(folds: Sequence[FoldRun], run: Path) -> None:
    """`splits.json` as nnU-Net's splits_final.json has it: `data.splits` reads it back."""

    def of(fold: FoldRun, role: str) -> list[str]:
        return [c.case for c in fold.survey.of_role(role)]

    content = [{"train": of(fold, "train"), "val": of(fold, "validation")} for fold in folds]
    write_json(run / SPLITS, content)


def _say_what_comes(recipe: Recipe, folds: Sequence[FoldRun]) -> None:
    minutes = recipe.learning.trainer.max_minutes
    budget = f", at most {minutes:g} minutes of training each" if minutes else ""
    log.info("Cross-validation: %d folds%s.", len(folds), budget)
    never = _never_validating(folds)
    if never:
        log.warning("No fold validates these, so they are not judged: %s", ", ".join(never[:10]))


def _never_validating(folds: Sequence[FoldRun]) -> list[str]:
    cases: list[CaseFiles] = labelled(folds[0].survey, "train") + folds[0].cases
    judged = {c.case for fold in folds for c in fold.cases}
    return [c.case for c in cases if c.case not in judged]


def _minutes(folds: Sequence[FoldRun]) -> float:
    """Training time of all folds, where their scores tell."""
    scores = [fold.run / "scores.json" for fold in folds]
    origins: list[dict[str, Any]] = [read_json(p)["provenance"] for p in scores if p.is_file()]
    return round(sum(float(o.get("training_minutes", 0)) for o in origins), 3)
