"""Train every fold in turn, and choose on cases that its network never saw.

run_dir/
├── plan.json, splits.json   one plan for all folds; the folds, as `data.splits` reads them
├── fold_0/ …                runs of their own: `data.fold=0 run_dir=run_dir/fold_0` makes the same
├── oof/                     predictions of all development cases, scores, tables, report
├── bundle/                  the folds' networks as one ensemble, with what was chosen out of fold
└── test/                    the test role, predicted by the ensemble
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lesionseg.config import TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.inference.bundle import ensemble
from lesionseg.inference.predictor import Predictor
from lesionseg.io.files import read_json, write_json
from lesionseg.io.predictions import find_predictions
from lesionseg.pipeline.dataset import CACHE, Survey, divided, folds_of
from lesionseg.pipeline.prepare import bundle_plan, read_own_bundle
from lesionseg.pipeline.run_dir import (
    SPLITS,
    check_cases,
    check_config,
    has_config,
    provenance,
)
from lesionseg.pipeline.score import FoldRun, labelled, score_folds, score_role
from lesionseg.pipeline.select import mean_calibration, unselected
from lesionseg.pipeline.train import BUNDLE, Scores, begin, keep_bundle, plain, train_once
from lesionseg.plan.make import network_spec
from lesionseg.plan.plan import Plan
from lesionseg.training.processes import broadcast_from_rank_zero, is_rank_zero, training_device

log = logging.getLogger(__name__)

_DECISIVE = ("architecture", "tile_shape", "spacing_mm", "normalisation", "link")


def cross_validate(cfg: TrainConfig, survey: Survey, run: Path) -> tuple[Plan, dict[str, Scores]]:
    """Train all folds that are not finished yet, gather what they predicted, keep one ensemble.

    A finished fold is kept, one begun goes on, also where another process or another machine made
    it (`data.fold=<number>`). The budget of the trainer is each fold's own. Raises `ConfigError`
    for a fold that was made by other settings or another plan, `DatasetError` for other cases.
    """
    folds = [
        FoldRun(k, divided(survey, cfg.data, cfg.seed, k), run / f"fold_{k}")
        for k in folds_of(survey, cfg.data)
    ]
    cache, configs = cfg.data.cache_dir or str(run.parent / CACHE), list[TrainConfig]()
    for fold in folds:  # as `data.fold=<number>` alone would have it
        data = cfg.data.model_copy(update={"fold": fold.number, "cache_dir": cache})
        configs.append(cfg.model_copy(update={"data": data, "run_dir": str(fold.run)}))
        check_config(fold.run, plain(configs[-1]))
        check_cases(fold.run, fold.survey.splits)  # also of a finished fold, which is kept
    given = None
    if not has_config(run):  # folds trained one by one, perhaps with another machine's memory
        plans = [f.run / BUNDLE / "plan.json" for f in folds]
        path = next((path for path in plans if path.is_file()), None)
        given = unselected(Plan.from_json(path.read_text("utf-8"), path)) if path else None
    plan = begin(cfg, survey, run, given)
    if is_rank_zero():
        parts = (("train", "train"), ("val", "validation"))  # as nnU-Net's splits_final.json
        splits = [
            {name: [c.case for c in fold.survey.of_role(role)] for name, role in parts}
            for fold in folds
        ]
        write_json(run / SPLITS, splits)
        scored = {c.case for fold in folds for c in fold.cases}
        known = [c.case for c in labelled(folds[0].survey, "train") + folds[0].cases]
        if never := [case for case in known if case not in scored]:
            log.warning("No fold validates these cases: %s", ", ".join(never[:10]))
    for fold, own in zip(folds, configs, strict=True):
        if broadcast_from_rank_zero(partial(_is_finished, fold)):
            log.info("Fold %d is finished and kept.", fold.number)
            continue
        log.info("Fold %d of %d: %d cases validate.", fold.number, len(folds), len(fold.cases))
        train_once(own, fold.survey, begin(own, fold.survey, fold.run, plan), fold.run, test=False)
    return _gather(cfg, survey, folds, run) if is_rank_zero() else (plan, {})


def _gather(
    cfg: TrainConfig, survey: Survey, folds: Sequence[FoldRun], run: Path
) -> tuple[Plan, dict[str, Scores]]:
    plans = [bundle_plan(fold.run) for fold in folds]
    for fold, plan in zip(folds, plans, strict=True):
        other = [name for name in _DECISIVE if getattr(plan, name) != getattr(plans[0], name)]
        if other:
            raise ConfigError(
                f"fold_{fold.number} has another {', '.join(other)} than fold_{folds[0].number}. "
                "State these in the settings (model.…) and train the folds again."
            )
    members = ensemble(
        [read_own_bundle(fold.run / BUNDLE, network_spec(cfg.model)) for fold in folds]
    )
    device = training_device(cfg.trainer.accelerator)
    origin = provenance(survey.dataset, plain(cfg), cfg.seed, device)
    paths = [fold.run / "scores.json" for fold in folds]
    made = [read_json(path)["provenance"] for path in paths if path.is_file()]
    minutes = sum(float(one.get("training_minutes", 0)) for one in made)
    origin |= {"folds": len(folds), "training_minutes": round(minutes, 3)}
    safe = all(fold.survey.splits.group_safe for fold in folds)
    whole = replace(survey, splits=replace(survey.splits, group_safe=safe))
    voxels = mean_calibration([plan.voxel_calibration for plan in plans])
    plan = unselected(members.plan).with_(voxel_calibration=voxels, n_members=len(folds))
    plan, scores = score_folds(whole, folds, run / "oof", plan, cfg, origin)
    keep_bundle(members.networks, plan, scores, origin, run, members.check)
    complete = replace(members, plan=plan)
    predictor = Predictor(complete, device=device, settings=cfg.inference, trust=True)
    tested = score_role(predictor, whole, run / "test", "test", cfg, origin)
    return plan, {"out of fold": scores} | ({"test": tested} if tested else {})


def _is_finished(fold: FoldRun) -> bool:
    if not (fold.run / BUNDLE / "plan.json").is_file() or not fold.folder.is_dir():
        return False
    return {c.case for c in fold.cases} <= set(find_predictions(fold.folder))
