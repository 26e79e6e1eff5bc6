"""Scores in a training: validation, out-of-fold, test; score by which weights are kept."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from lesionseg.core import (
    CaseFiles,
    OperatingPoint,
    Role,
    Selection,
)
from lesionseg.core.finding import require_no_errors
from lesionseg.core.selection import VOXEL_CALIBRATION
from lesionseg.errors import count
from lesionseg.evaluation import (
    OperatingPointAim,
    Scores,
    SummarySettings,
    Tables,
    choose,
)
from lesionseg.evaluation.curves import average_precision, froc
from lesionseg.evaluation.intervals import (
    MIN_GROUPS,
    Statistic,
    divide,
    draw_groups,
    statistic_value,
)
from lesionseg.evaluation.operating_points import OUT_OF_FOLD
from lesionseg.evaluation.selection import select
from lesionseg.evaluation.subgroups import read_columns
from lesionseg.evaluation.voxel_calibration import LevelCounts, select_voxel_calibration
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.decision import OnSlab
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.open_prediction import read_on_grid
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import predict_volumes
from lesionseg.io.cases import read_image
from lesionseg.io.references import open_reference
from lesionseg.io.results.case import PredictionFiles, write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.pipeline.dataset_inspection import DatasetInspection, labelled_cases
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import with_focal_correction
from lesionseg.pipeline.score_cases import ScoredCases, score_cases
from lesionseg.plan.plan import Plan
from lesionseg.training.validation import SCORE, SCORE_ERROR

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
_REPLICATES = 200  # of the bootstrap, for a standard error


def score_validation(
    predictor: Predictor, experiment: Experiment
) -> tuple[Selection, Scores] | None:
    """Predict the validation cases, select the operating points on them, and score them.

    The voxel probabilities are calibrated on the same cases. If this improves the outlines, the
    cases are predicted again. Predictions are written to `run/validation`, scores and tables to the
    run directory.

    Returns:
        The selection and the scores. None if no validation case has a reference.
    """
    cases = experiment.cases("validation")
    folder = experiment.run / "validation"
    plan = predictor.plan
    if not cases:
        return None
    level_counts = {files.case: LevelCounts(files.group) for files in cases}

    def slab_counter_of(files: CaseFiles) -> OnSlab:
        """Return a function that counts a case's voxels by probability, for their calibration."""
        return level_counts[files.case].slab_counter(
            open_reference(files, experiment.dataset), plan
        )

    log.info("Predicting %s.", count(len(cases), "validation case"))
    scored = _predict_and_match(predictor, experiment, cases, folder, slab_counter_of)
    calibration, why = select_voxel_calibration(
        [*level_counts.values()], plan.candidate_rule.extent, "validation"
    )
    selection = Selection(
        voxel_calibration=calibration,
        is_mirrored=predictor.is_mirrored,
        reasons={VOXEL_CALIBRATION: why},
    )
    if calibration is not None:
        log.info("Predicting again, because the calibration of voxels changes the outlines.")
        scored = _predict_and_match(predictor.with_selection(selection), experiment, cases, folder)
    selection, scored = select_and_accept(
        experiment, scored, find_predictions(folder), folder, selection
    )
    # recorded in the scores: no training case is of the same patient
    is_group_safe = experiment.inspection.is_group_safe("validation")
    return selection, write_role_scores(
        scored, experiment, experiment.run, selection.point, is_group_safe=is_group_safe
    )


def select_and_accept(
    experiment: Experiment,
    scored: ScoredCases,
    predictions: Mapping[str, PredictionFiles],
    folder: Path,
    selection: Selection,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Selection, ScoredCases]:
    """Select operating points and calibration on validation cases, and write their predictions.

    The written candidates are accepted by the selected operating point. The scores of these cases
    are optimistic, because the selection was made on them.

    Args:
        experiment: The experiment.
        scored: The validation cases, matched with `predictions`.
        predictions: The files of each validation case.
        folder: The folder to which the predictions are written.
        selection: The selection so far, such as the calibration of voxels.
        fold_of: The fold whose network was not trained on the case; None without folds.

    Returns:
        The complete selection, and the cases with the candidates that it accepts.
    """
    cfg = experiment.cfg
    # for each case, a calibration that was fitted without the cases of its fold
    complete, calibration_of = select(
        scored.tables(surface=False),
        selection,
        OperatingPointAim.parse(cfg.operating_point),
        cfg.rate_confidence,
        chosen_on="validation" if fold_of is None else OUT_OF_FOLD,
        fold_of=fold_of,
    )
    point = complete.operating_points[0]  # the requested one is the first
    is_binary = bool(experiment.dataset.labels.regions)
    matches = []
    for match in scored.matches:
        unaccepted = read_on_grid(predictions[match.case], match.geometry, binary=is_binary)
        prediction = replace(unaccepted, case=match.case)
        write_prediction(folder, prediction.accept(point, calibration_of[match.case]))
        matches.append(match.accept(point, calibration_of[match.case]))
    return complete, replace(scored, matches=matches)


def score_folds(
    experiment: Experiment, folds: Mapping[int, DatasetInspection], selection: Selection
) -> tuple[Selection, Scores]:
    """Select operating points on the validation predictions of all folds, and score them.

    The predictions are read from `run/fold_<number>/validation`, which does not change. They are
    written with their accepted candidates to `run/oof/predictions`. Scores and tables are written
    to `run/oof` (out of fold).

    Args:
        experiment: The cross-validation.
        folds: The inspected dataset of each fold by its number.
        selection: The selection so far, such as the calibration of voxels.

    Returns:
        The complete selection and the scores.

    Raises:
        DatasetError: If files are damaged. It lists their cases.
    """
    fold_of: dict[str, int] = {}
    predictions: dict[str, PredictionFiles] = {}
    for number, fold in folds.items():
        files_of = find_predictions(experiment.run / f"fold_{number}" / "validation")
        for files in labelled_cases(fold, "validation"):
            fold_of[files.case] = number
            predictions[files.case] = files_of[files.case]
    cases = [
        replace(files, role="validation")
        for files in experiment.dataset.cases
        if files.case in fold_of
    ]
    scored = score_cases(cases, predictions, experiment.match_options)
    require_no_errors(scored.findings, experiment.run)
    output = experiment.run / "oof"
    selection, scored = select_and_accept(
        experiment, scored, predictions, output / "predictions", selection, fold_of
    )
    # recorded in the scores: no fold trains on a patient that it validates
    is_group_safe = all(fold.is_group_safe("validation") for fold in folds.values())
    return selection, write_role_scores(
        scored, experiment, output, selection.point, is_group_safe=is_group_safe
    )


def score_role(predictor: Predictor, experiment: Experiment, role: Role) -> Scores | None:
    """Predict and score the cases of a role. Write predictions and scores into `run/<role>`.

    Candidates are accepted by the operating point of the predictor. Return None if no case of the
    role has a reference.
    """
    cases = experiment.cases(role)  # those with a reference
    output = experiment.run / role
    if not cases:
        return None
    log.info("Predicting %s.", count(len(cases), f"{role} case"))
    scored = _predict_and_match(predictor, experiment, cases, output / "predictions")
    point = predictor.operating_point()
    # recorded in the scores: no case for training or validation is of the same patient
    is_group_safe = experiment.inspection.is_group_safe(role)
    return write_role_scores(scored, experiment, output, point, is_group_safe=is_group_safe)


def _predict_and_match(
    predictor: Predictor,
    experiment: Experiment,
    cases: Sequence[CaseFiles],
    folder: Path | None = None,
    on_slab: Callable[[CaseFiles], OnSlab | None] = lambda _: None,
) -> ScoredCases:
    """Predict cases, and match each prediction with its reference on the grid of the scan's file.

    Reading, the network and matching run at the same time.

    Args:
        predictor: The model.
        experiment: The training: its dataset and its match rule.
        cases: The cases, which have a reference.
        folder: The folder for the predictions. None writes no files and shows no progress bar,
            because a training has its own bar.
        on_slab: Returns a function that gets the probabilities of a case slab by slab, see
            `predict_volumes`.
    """
    read = partial(read_image, dataset=experiment.dataset)
    keep = None if folder is None else partial(write_prediction, folder)
    return score_cases(
        cases,
        partial(predict_volumes, predictor, cases, read, on_slab=on_slab),
        replace(experiment.match_options, keep=keep),
        progress=(lambda *_: None) if folder is None else None,
        what="Predicting",
    )


def write_role_scores(
    scored: ScoredCases,
    experiment: Experiment,
    output: Path,
    point: OperatingPoint | None,
    *,
    is_group_safe: bool,
) -> Scores:
    """Write the scores and tables of the cases of one role, and return the scores.

    Args:
        scored: The matched cases.
        experiment: The training, with the provenance of the scores.
        output: The folder to which scores and tables are written.
        point: The operating point that accepts candidates; None: as they are.
        is_group_safe: True if the patients were not used for training, see
            `DatasetInspection.is_group_safe`. It is recorded in the scores.
    """
    settings = SummarySettings(
        evaluated_on=scored.matches[0].role,  # all cases have the same role
        operating_point=point,
        labels=experiment.dataset.labels.lesion_names,
        split_is_group_safe=is_group_safe,
        seed=experiment.cfg.seed,
        provenance=experiment.origin,
        columns=read_columns(experiment.dataset.cases, None),
    )
    evaluation = scored.evaluate(settings)
    evaluation.write(output)
    return evaluation.scores


# --- whole volumes during training ---------------------------------------------------------------


def score_volumes(
    network: nn.Module,
    experiment: Experiment,
    cases: Sequence[CaseFiles],
    plan: Plan,
    device: str | None = None,
    check: InputCheck | None = None,
) -> ScoredCases:
    """Predict validation cases with a network during training, and match the predictions.

    Args:
        network: The network.
        experiment: The training: its dataset, its match rule and its settings of inference.
        cases: The cases, which have a reference.
        plan: The plan of the network.
        device: The device for prediction, by default that of the network.
        check: The check of inputs, which knows the channels that may be empty; None for no check.
    """
    predictor = Predictor(
        Bundle((network,), plan, check),
        settings=experiment.cfg.inference,
        device=device,
        trust=True,  # the user's own settings name the network class
    )
    return _predict_and_match(predictor, experiment, cases)


def recall_and_precision(
    network: nn.Module,
    experiment: Experiment,
    plan: Plan,
    fp_per_case: float,
    device: str | None = None,
) -> tuple[float, float]:
    """Return recall and average precision of a network on the validation cases of a training.

    A number that is not defined is 0.

    Args:
        network: The network.
        experiment: The training. Its settings have the losses of the network, whose effect on the
            probabilities is undone.
        plan: The plan of the network.
        fp_per_case: The false positives per case at which the recall is computed.
        device: The device for prediction, by default that of the network.

    Returns:
        The recall, then the average precision, each between 0 and 1.
    """
    cases = experiment.cases("validation")
    cfg = experiment.cfg
    corrected = with_focal_correction(plan, cfg.loss, cfg.detection)
    tables = score_volumes(network, experiment, cases, corrected, device).tables(surface=False)
    n_groups = len(tables.groups)
    # each statistic has one number, which is None if it is undefined, and then counts as 0
    recall = statistic_value(froc(tables, [fp_per_case]), n_groups)[0]
    return recall or 0.0, statistic_value(average_precision(tables), n_groups)[0] or 0.0


def validation_scores(
    network: nn.Module,
    experiment: Experiment,
    cases: Sequence[CaseFiles],
    plan: Plan,
    check: InputCheck | None = None,
) -> dict[str, float]:
    """Return scores of validation cases by name, by which the training chooses its weights.

    - `recall_1fp`: the recall over all lesions at one false positive per case; 0 without lesions.
    - `dice`: the mean Dice over the cases with a lesion. Candidates are accepted by the threshold
      at which one false positive per case is expected on new cases. Without masks, or without a
      case with a lesion, the key is left out.
    - `score`: the sum of `recall_1fp` and `dice`. The weights with the highest sum are chosen.
    - `score_error`: the standard error of `score`, see `_score_error`.

    If the network detects nothing, a warning says so. For the arguments, see `score_volumes`.
    """
    scored = score_volumes(network, experiment, cases, plan, check=check)
    tables = scored.tables(surface=False)
    if not len(tables.candidates):
        log.warning("The network detects nothing on %s.", count(len(cases), "validation case"))
    point = choose(tables, OperatingPointAim("fp_per_case", FP_PER_CASE), quiet=True)
    recall = froc(tables, [FP_PER_CASE])
    # the only number of this statistic, at the only rate; each group has the weight 1
    scores = {"recall_1fp": statistic_value(recall, len(tables.groups))[0] or 0.0}
    accepted = scored.tables(point, surface=False)
    dice = accepted.cases["dice"]
    if dice.notna().any():
        scores["dice"] = float(dice.mean())
    return {**scores, SCORE: sum(scores.values()), SCORE_ERROR: _score_error(accepted, recall)}


def _score_error(tables: Tables, recall_of_draws: Statistic) -> float:
    """Return the standard error of the sum of recall and mean Dice, by a bootstrap over patients.

    The error is the standard deviation of the sum over resampled patients. Recall and Dice are
    computed on the same resampled patients, because both depend on them. Fewer than five patients
    give NaN.

    Args:
        tables: The tables at the operating point of the Dice.
        recall_of_draws: Computes the recall for each row of patient weights, see `froc`.
    """
    if len(tables.groups) < MIN_GROUPS:
        return np.nan
    # the fixed seed gives each validation the same resamples
    draws = draw_groups(len(tables.groups), _REPLICATES, np.random.default_rng(0)).astype(float)
    # each row of `draws` is a resample: how often each patient was drawn
    replicates = recall_of_draws(draws)[:, 0]  # at the only false positive rate
    dice = tables.cases["dice"]
    if dice.notna().any():
        # the mean Dice of each resample; a case without a lesion has no Dice (NaN)
        total = tables.add_up("cases", dice.fillna(0))
        replicates = replicates + divide(
            draws @ total, draws @ tables.add_up("cases", dice.notna())
        )
    return float(np.nanstd(replicates))
