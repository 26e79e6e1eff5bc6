"""Train every fold in turn, and choose on cases that its network never saw.

run_dir/
├── plan.json, splits.json   one plan for all folds; the folds, as `data.splits` reads them
├── fold_0/ …                runs of their own: `data.fold=0 run_dir=run_dir/fold_0` makes the same
├── oof/                     predictions of all development cases, scores, tables
├── report.html              the report on them
├── bundle/                  the folds' networks as one ensemble, with what was chosen out of fold
└── test/                    the test role, predicted by the ensemble
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from lesionseg.config import TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.evaluation.scores import SCORES_FILE, Scores, read_provenance
from lesionseg.evaluation.voxel_calibration import mean_calibration
from lesionseg.inference.bundle import bundle_digest, bundle_plan, ensemble, read_own_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.files import locked_folder, write_json
from lesionseg.io.predictions import find_predictions
from lesionseg.pipeline.dataset import CACHE, Survey, divided, folds_of
from lesionseg.pipeline.prepare import config_of
from lesionseg.pipeline.run_dir import (
    SPLITS,
    check_cases,
    check_config,
    has_config,
    provenance,
    training_counts,
)
from lesionseg.pipeline.score import labelled, score_folds, score_role
from lesionseg.pipeline.select import unselected
from lesionseg.pipeline.train import BUNDLE, begin, keep_bundle, train_once
from lesionseg.plan.make import network_spec
from lesionseg.plan.plan import Plan
from lesionseg.training.processes import broadcast_from_rank_zero, is_rank_zero, training_device

log = logging.getLogger(__name__)

_DECISIVE = ("architecture", "tile_shape", "spacing_mm", "normalisation", "link", "anchors")


def cross_validate(cfg: TrainConfig, survey: Survey, run: Path) -> tuple[Plan, dict[str, Scores]]:
    """Train all folds that are not finished yet, gather what they predicted, keep one ensemble.

    A finished fold is kept, one begun goes on, also where another process or another machine made
    it (`data.fold=<number>`). The budget of the trainer is each fold's own. Raises `ConfigError`
    for a fold that was made by other settings or another plan, `DatasetError` for other cases.
    """
    folds = {k: divided(survey, cfg.data, cfg.seed, k) for k in folds_of(survey, cfg.data)}
    runs, configs = {k: run / f"fold_{k}" for k in folds}, dict[int, TrainConfig]()
    cache = cfg.data.cache_dir or str(run.parent / CACHE)
    for k, fold in folds.items():  # as `data.fold=<number>` alone would have it
        data = cfg.data.model_copy(update={"fold": k, "cache_dir": cache})
        configs[k] = cfg.model_copy(update={"data": data, "run_dir": str(runs[k])})
        check_config(runs[k], config_of(configs[k]))
        check_cases(runs[k], fold.splits)  # also of a finished fold, which is kept
    given = None
    if not has_config(run):  # folds trained one by one, perhaps with another machine's memory
        plans = [folder / BUNDLE / "plan.json" for folder in runs.values()]
        path = next((path for path in plans if path.is_file()), None)
        given = unselected(Plan.from_json(path.read_text("utf-8"), path)) if path else None
    plan = begin(cfg, survey, run, given)
    validated = {k: [c.case for c in labelled(fold, "validation")] for k, fold in folds.items()}
    scored = {case for cases in validated.values() for case in cases}
    if is_rank_zero():
        parts = (("train", "train"), ("val", "validation"))  # as nnU-Net's splits_final.json
        splits = [
            {name: [c.case for c in fold.of_role(role)] for name, role in parts}
            for fold in folds.values()
        ]
        write_json(run / SPLITS, splits)
        taught = [c.case for fold in folds.values() for c in labelled(fold, "train")]
        if never := [case for case in dict.fromkeys(taught) if case not in scored]:
            log.warning("No fold validates these cases: %s", ", ".join(never[:10]))
    for k, fold in folds.items():
        if broadcast_from_rank_zero(partial(_is_finished, runs[k], validated[k])):
            log.info("Fold %d is finished and kept.", k)
            continue
        log.info("Fold %d of %d: %d cases validate.", k, len(folds), len(validated[k]))
        with locked_folder(runs[k]) if is_rank_zero() else nullcontext():
            own = begin(configs[k], fold, runs[k], plan)
            train_once(configs[k], fold, own, runs[k], test=False)
    return _gather(cfg, survey, folds, run) if is_rank_zero() else (plan, {})


def _gather(
    cfg: TrainConfig, survey: Survey, folds: Mapping[int, Survey], run: Path
) -> tuple[Plan, dict[str, Scores]]:
    runs = [run / f"fold_{k}" for k in folds]
    plans = [bundle_plan(folder) for folder in runs]
    for folder, plan in zip(runs, plans, strict=True):
        other = [name for name in _DECISIVE if getattr(plan, name) != getattr(plans[0], name)]
        if other:
            raise ConfigError(
                f"{folder.name} has another {', '.join(other)} than {runs[0].name}. "
                "State these in the settings (model.…) and train the folds again."
            )
    network = network_spec(cfg.model)
    members = ensemble([read_own_bundle(folder / BUNDLE, network) for folder in runs])
    device = training_device(cfg.trainer.accelerator)
    origin = provenance(survey.dataset, config_of(cfg), cfg.seed, device)
    minutes = sum(read_provenance(folder / SCORES_FILE).training_minutes for folder in runs)
    origin |= {"folds": len(folds), "training_minutes": round(minutes, 3)}
    taught = {c.case: c for fold in folds.values() for c in labelled(fold, "train")}
    origin |= {"model": plan.architecture.name, **training_counts(taught.values())}
    safe = all(fold.splits.group_safe for fold in folds.values())
    whole = replace(survey, splits=replace(survey.splits, group_safe=safe))
    voxels = mean_calibration([plan.voxel_calibration for plan in plans])
    plan = unselected(members.plan).with_(voxel_calibration=voxels, n_members=len(folds))
    plan, scores = score_folds(whole, folds, run, plan, cfg, origin)
    keep_bundle(members.networks, plan, scores, origin, run, members.check)
    origin |= {"bundle": bundle_digest(run / BUNDLE)}
    complete = replace(members, plan=plan)
    predictor = Predictor(complete, device=device, settings=cfg.inference, trust=True)
    tested = score_role(predictor, whole, run / "test", "test", cfg, origin)
    return plan, {"out of fold": scores} | ({"test": tested} if tested else {})


def _is_finished(run: Path, cases: Sequence[str]) -> bool:
    if not (run / BUNDLE / "plan.json").is_file() or not (run / "validation").is_dir():
        return False
    return set(cases) <= set(find_predictions(run / "validation"))
