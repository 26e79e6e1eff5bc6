"""`data.fold=all`: every fold trained, out-of-fold selection, ensemble bundle, test cases.

Selection uses cases that were not used to train their fold's network.

run_dir/
├── plan.json, splits.json   one plan for all folds; the folds, as `data.splits` reads them
├── fold_0/ …                separate runs, as `data.fold=0 run_dir=run_dir/fold_0` makes them
├── oof/                     predictions of all development cases, scores, tables
├── report.html              the report on them
├── bundle/                  the folds' networks as one ensemble, with the selection
└── test/                    the test role, predicted by the ensemble
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from lesionseg.config import has_config
from lesionseg.core import CaseFiles, Selection
from lesionseg.errors import ConfigError, DatasetError, join_names
from lesionseg.evaluation.scores import SCORES_FILE, read_provenance
from lesionseg.evaluation.voxel_calibration import mean_calibration
from lesionseg.inference.bundle import ensemble, read_own_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.files import locked_folder
from lesionseg.io.model_files import read_model_text
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import write_json
from lesionseg.pipeline.dataset_inspection import (
    DatasetInspection,
    cache_folder,
    folds_of,
    with_fold,
)
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import begin, plan_of_run
from lesionseg.pipeline.provenance import training_counts
from lesionseg.pipeline.run_dir import SPLITS, check_cases, check_config, config_of
from lesionseg.pipeline.score_roles import score_folds
from lesionseg.pipeline.train_fold import TrainedModel, keep_bundle, train_fold
from lesionseg.plan.make import network_spec
from lesionseg.plan.plan import Plan
from lesionseg.training.processes import broadcast_from_rank_zero, is_rank_zero

log = logging.getLogger(__name__)


def cross_validate(experiment: Experiment) -> TrainedModel | None:
    """Train all folds that are not finished yet, and join their networks into one ensemble bundle.

    The operating points are selected on the out-of-fold predictions: each development case is
    predicted by the network of the fold that validates it. A finished fold is not trained again,
    and an interrupted one is resumed, even if another process or machine trained it with
    `data.fold=<number>`. Each fold has the whole time or step budget of the trainer.

    Returns:
        The ensemble and its scores. None on every process of a distributed training except rank 0.

    Raises:
        ConfigError: If a fold was made by other settings or another plan.
        DatasetError: If a fold was made from other cases, or has no case for validation, or if a
            test case of a fold, or another case of its patient, trains or validates in another
            fold.
    """
    run = experiment.run
    folds = _experiments_of_folds(experiment)
    _require_unseen_test_cases({number: fold.inspection for number, fold in folds.items()})
    for fold in folds.values():
        check_config(fold.run, config_of(fold.cfg))
        # finished folds are checked as well, because they are kept
        check_cases(fold.run, fold.inspection.splits, fold.inspection.digests)
    # A new cross-validation uses the plan of the first fold that has begun, if there is one. A
    # cross-validation that has begun has stored a plan.
    plan = begin(experiment, None if has_config(run) else plan_of_first_begun(folds.values()))
    # only rank 0 reads the files; its error is raised on all processes
    broadcast_from_rank_zero(partial(_check_plans_of_begun, folds.values(), plan))
    if is_rank_zero():
        _write_splits(run, folds.values())
    for number, fold in folds.items():
        if broadcast_from_rank_zero(partial(_is_finished, fold)):
            log.info("Fold %d is finished and kept.", number)
            continue
        n_validated = len(fold.cases("validation"))
        log.info("Fold %d of %d, with %d validation cases.", number, len(folds), n_validated)
        with locked_folder(fold.run) if is_rank_zero() else nullcontext():
            train_fold(fold, begin(fold, plan))
    return _join_folds(experiment, folds) if is_rank_zero() else None


def plan_of_first_begun(folds: Collection[Experiment]) -> Plan | None:
    """Return the plan that an earlier training of one of the folds used; None if no fold has begun.

    The folds may have been trained one by one before the cross-validation, perhaps on a machine
    with other memory, on which the plan depends. The remaining folds must have the same plan. Folds
    with a bundle come first, because a finished network cannot change its plan.
    """
    paths = [fold.bundle / "plan.json" for fold in folds]
    paths += [fold.run / "plan.json" for fold in folds if has_config(fold.run)]
    for path in paths:
        if path.is_file():
            return Plan.from_json(read_model_text(path), path)
    return None


def _check_plans_of_begun(folds: Collection[Experiment], plan: Plan) -> None:
    """Raise `ConfigError` if a fold that has begun has another plan than the cross-validation.

    The networks of the ensemble must have the same plan.
    """
    for fold in folds:
        fold_plan = plan_of_run(fold.run)
        if fold_plan is not None:
            _check_equal([plan, fold_plan], ["the cross-validation", fold.run.name])


def _experiments_of_folds(experiment: Experiment) -> dict[int, Experiment]:
    """Return the experiment of each fold by its number, as `data.fold=<number>` would make it.

    The run directory of a fold is `fold_<number>` in the run directory of the cross-validation. All
    folds use one cache of prepared cases.
    """
    cfg = experiment.cfg
    cache = str(cache_folder(cfg.data, experiment.run))
    folds: dict[int, Experiment] = {}
    for number in folds_of(experiment.inspection, cfg.data):
        run = experiment.run / f"fold_{number}"
        data = cfg.data.model_copy(update={"fold": number, "cache_dir": cache})
        folds[number] = replace(
            experiment,
            cfg=cfg.model_copy(update={"data": data, "run_dir": str(run)}),
            inspection=with_fold(experiment.inspection, data, cfg.seed),
            run=run,
        )
    return folds


def _require_unseen_test_cases(folds: Mapping[int, DatasetInspection]) -> None:
    """Raise `DatasetError` if a network of the ensemble has seen a test case of another fold.

    The ensemble predicts the test cases with all networks, so no network may have been trained or
    validated on them. Other cases of the same patient count as seen, too, unless the dataset has
    only one group, which then does not distinguish patients. A patient who has both test cases and
    other cases in the same fold is not an error here, because `make_splits` has warned of it.
    """
    groups = {files.case: files.patient for files in next(iter(folds.values())).dataset.cases}
    if len(set(groups.values())) == 1:
        groups = {case: case for case in groups}  # each case is a patient of its own
    # one case id for each group and fold: a test case, and a case for training or validation
    tested: dict[str, dict[int, str]] = {}
    used: dict[str, dict[int, str]] = {}
    for fold, inspection in folds.items():
        for case, role in inspection.splits.roles.items():
            cases_of = tested if role in ("test", "external") else used
            cases_of.setdefault(groups[case], {}).setdefault(fold, case)
    for group, test_cases in tested.items():
        tested_in, test_case = next(iter(test_cases.items()))
        for used_in, case in used.get(group, {}).items():
            if used_in in test_cases:  # the patient is divided within this fold
                continue
            same = "it" if case == test_case else f"{case!r} of the same patient"
            raise DatasetError(
                f"{test_case!r} is a test case of fold {tested_in}, but fold {used_in} trains or "
                f"validates on {same}. Give all folds the same test cases, or train one fold: "
                f"data.fold={tested_in}."
            )


def _write_splits(run: Path, folds: Collection[Experiment]) -> None:
    """Write the cases of each fold to `splits.json`, in the format of nnU-Net's splits_final.json.

    The file is a list with an object per fold: `train`, `val` and, if the fold has test cases,
    `test`. Warn of training cases that no fold validates.
    """
    splits = []
    trained: list[str] = []
    validated: set[str] = set()
    for fold in folds:
        split = {
            "train": [files.case for files in fold.inspection.of_role("train")],
            "val": [files.case for files in fold.inspection.of_role("validation")],
        }
        if tested := [files.case for files in fold.inspection.of_role("test")]:
            split["test"] = tested  # nnU-Net's own files have no such list
        splits.append(split)
        trained += [files.case for files in fold.cases("train")]
        validated |= {files.case for files in fold.cases("validation")}
    write_json(run / SPLITS, splits)
    never = [case for case in dict.fromkeys(trained) if case not in validated]
    if never:
        log.warning("No fold validates these cases: %s.", join_names(never))


def _join_folds(experiment: Experiment, folds: Mapping[int, Experiment]) -> TrainedModel:
    """Select operating points on the out-of-fold predictions, and write the ensemble as one bundle.

    Predictions, scores and tables are written to `run/oof`, bundle and selection to the run.

    Raises:
        ConfigError: If the folds have different plans or architectures.
    """
    cfg = experiment.cfg
    network = network_spec(cfg.model)
    bundles = [read_own_bundle(fold.bundle, network) for fold in folds.values()]
    plans = [bundle.plan for bundle in bundles]
    _check_equal(plans, [fold.run.name for fold in folds.values()])
    # the experiment whose provenance describes the training of all folds
    joint = _describe_folds(experiment, folds.values(), plans[0].architecture.name)
    voxel_calibration = mean_calibration([bundle.selection.voxel_calibration for bundle in bundles])
    selection = Selection(
        voxel_calibration=voxel_calibration,
        n_members=len(folds),
        is_mirrored=bundles[0].selection.is_mirrored,  # the folds have the same settings
    )
    inspections = {number: fold.inspection for number, fold in folds.items()}
    selection, scores = score_folds(joint, inspections, selection)
    complete = replace(ensemble(bundles), selection=selection)
    keep_bundle(joint, complete, scores)
    # `trust`: the user's own settings name the network class
    predictor = Predictor(complete, device=joint.device, settings=cfg.inference, trust=True)
    return TrainedModel(joint, predictor, {"out of fold": scores})


def _describe_folds(
    experiment: Experiment, folds: Collection[Experiment], model: str
) -> Experiment:
    """Return the experiment with a provenance that adds up the training of all folds.

    Minutes and steps are sums over the folds. A case that several folds train on is counted once.

    Args:
        experiment: The cross-validation.
        folds: The finished folds, whose scores contain their minutes and steps.
        model: The name of the architecture.
    """
    minutes = 0.0
    steps = 0
    training_cases: dict[str, CaseFiles] = {}
    for fold in folds:
        of_fold = read_provenance(fold.run / SCORES_FILE)
        minutes += of_fold.training_minutes
        steps += of_fold.training_steps or 0
        training_cases |= {files.case: files for files in fold.cases("train")}
    return experiment.with_origin(
        folds=len(folds),
        training_minutes=round(minutes, 3),
        training_steps=steps,
        model=model,
        **training_counts(training_cases.values()),
    )


def _check_equal(plans: Sequence[Plan], names: Sequence[str]) -> None:
    """Raise `ConfigError` if a plan or architecture differs from the first plan of the list.

    The networks of a bundle must have the same plan. `names` are the names of the plans in the
    error message, in the order of `plans`.
    """
    for name, plan in zip(names, plans, strict=True):
        different = plans[0].differences(plan)
        if plan.architecture != plans[0].architecture:
            different.append("architecture")
        if different:
            raise ConfigError(
                f"{name} has another {', '.join(different)} than {names[0]}. State these in the "
                "settings (model.…) and train the folds again."
            )


def _is_finished(fold: Experiment) -> bool:
    """Return True if a fold has a bundle, and predictions of all its validation cases.

    A finished fold is not trained again.
    """
    if not (fold.bundle / "plan.json").is_file():
        return False
    try:
        predicted = find_predictions(fold.run / "validation")
    except DatasetError:  # there is no folder, or the run was killed before its first file
        return False
    return {files.case for files in fold.cases("validation")} <= predicted.keys()
