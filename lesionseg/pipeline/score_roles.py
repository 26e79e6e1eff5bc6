"""Score a network on the cases of a role of a training: validation, out-of-fold and test cases."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from lesionseg.core import (
    Case,
    CaseFiles,
    OperatingPoint,
    Prediction,
    Role,
    Selection,
    Volume,
)
from lesionseg.core.finding import require_no_errors
from lesionseg.core.selection import VOXEL_CALIBRATION
from lesionseg.errors import count
from lesionseg.evaluation import (
    Aim,
    MatchedCase,
    Scores,
    SummarySettings,
    Tables,
    choose,
    match_case,
    summarise,
)
from lesionseg.evaluation.curves import average_precision, froc
from lesionseg.evaluation.intervals import MIN_GROUPS, Statistic, divide, draw_groups, value_of
from lesionseg.evaluation.operating_points import OUT_OF_FOLD
from lesionseg.evaluation.scores import write_scores
from lesionseg.evaluation.selection import select
from lesionseg.evaluation.voxel_calibration import LevelCounts, select_voxel_calibration
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.decision import OnSlab
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import predict_volumes
from lesionseg.io.cases import read_case, read_image
from lesionseg.io.references import open_reference
from lesionseg.io.results.case import PredictionFiles, write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import bar
from lesionseg.pipeline.match_files import (
    MatchOptions,
    match_cases,
    read_on_grid,
)
from lesionseg.pipeline.planning import with_focal_correction
from lesionseg.pipeline.survey import Survey, labelled_cases
from lesionseg.plan.plan import Plan
from lesionseg.training.validation import SCORE, SCORE_ERROR

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
_REPLICATES = 200  # of the bootstrap, for a standard error


def score_validation(
    predictor: Predictor, experiment: Experiment
) -> tuple[Selection, Scores] | None:
    """Predict the validation cases into `run/validation`, select on them, and score them.

    If calibrated voxels give better outlines, the validation cases are predicted again with the
    calibration. The scores and tables are written into the run directory. Return the selection and
    the scores, or None if no validation case has a reference.
    """
    cases = experiment.cases("validation")
    folder = experiment.run / "validation"
    plan = predictor.plan
    if not cases:
        return None
    counts = {files.case: LevelCounts(files.group) for files in cases}

    def slab_counter_of(files: CaseFiles) -> OnSlab:
        reference = open_reference(files, experiment.dataset)
        return counts[files.case].slab_counter(reference, plan)

    log.info("Predicting %s.", _cases_in_words(cases))
    _predict(predictor, experiment, cases, folder, slab_counter_of)
    fit, why = select_voxel_calibration(
        [*counts.values()], plan.candidate_rule.extent, "validation"
    )
    selection = Selection(
        voxel_calibration=fit,
        is_mirrored=predictor.is_mirrored,
        reasons={VOXEL_CALIBRATION: why},
    )
    if fit is not None:
        log.info("Predicting again, because the calibration of voxels changes the outlines.")
        _predict(predictor.with_selection(selection), experiment, cases, folder)
    return score_predicted(experiment, find_predictions(folder), folder, selection)


def score_predicted(
    experiment: Experiment,
    predictions: Mapping[str, PredictionFiles],
    folder: Path,
    selection: Selection,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Selection, Scores]:
    """Select on predictions of the validation cases, write them to `folder` as selected, and score.

    The scores and tables are written next to `folder`. The scores are optimistic, because they are
    those of the cases on which the selection was made. They state this role.

    Args:
        experiment: the experiment.
        predictions: the files of each validation case.
        folder: receives the predictions.
        selection: the selection so far, such as the calibration of voxels.
        fold_of: the fold whose network was not trained on the case; None without folds.

    Returns:
        The complete selection and the scores.
    """
    cfg = experiment.cfg
    dataset = experiment.dataset
    matches = _match_own(experiment, experiment.cases("validation"), predictions)
    complete, calibration_of = select(
        Tables.of(match.rows(surface=False) for match in matches),
        selection,
        Aim.parse(cfg.operating_point),
        cfg.rate_confidence,
        chosen_on="validation" if fold_of is None else OUT_OF_FOLD,
        fold_of=fold_of,
    )
    point = complete.operating_points[0]
    for i, match in enumerate(matches):
        files = predictions[match.case]
        before = read_on_grid(files, match.geometry, binary=bool(dataset.labels.regions))
        before = replace(before, case=match.case)
        prediction = before.accept(point, calibration_of[match.case])
        write_prediction(folder, prediction)
        matches[i] = match.accept(point, calibration_of[match.case])
    return complete, _score(matches, experiment, folder.parent, point)


def score_folds(
    experiment: Experiment, folds: Mapping[int, Survey], selection: Selection
) -> tuple[Selection, Scores]:
    """Select on the validation predictions of all folds, and score them.

    They are read from `run/fold_<number>/validation`, which does not change. Predictions with the
    selection are written to `run/oof/predictions`, scores and tables to `run/oof`.

    Args:
        experiment: the cross-validation.
        folds: the survey of each fold by its number.
        selection: the selection so far, such as the calibration of voxels.

    Returns:
        The complete selection and the scores.
    """
    fold_of: dict[str, int] = {}
    predictions: dict[str, PredictionFiles] = {}
    for number, fold in folds.items():
        files_of = find_predictions(experiment.run / f"fold_{number}" / "validation")
        for files in labelled_cases(fold, "validation"):
            fold_of[files.case] = number
            predictions[files.case] = files_of[files.case]
    # an experiment in which the validation cases of all folds are validation cases
    roles: dict[str, Role] = dict.fromkeys(fold_of, "validation")
    splits = replace(experiment.survey.splits, roles=roles)
    joint = replace(experiment, survey=replace(experiment.survey, splits=splits))
    folder = experiment.run / "oof" / "predictions"
    return score_predicted(joint, predictions, folder, selection, fold_of)


def score_role(predictor: Predictor, experiment: Experiment, role: Role) -> Scores | None:
    """Predict and score the cases of a role. Write predictions and scores into `run/<role>`.

    The predictor's selection has its operating point. Return None if no case of the role has a
    reference.
    """
    cases = experiment.cases(role)
    output = experiment.run / role
    folder = output / "predictions"
    if not cases:
        return None
    log.info("Predicting %s.", _cases_in_words(cases))
    _predict(predictor, experiment, cases, folder)
    matches = _match_own(experiment, cases, find_predictions(folder))
    return _score(matches, experiment, output, predictor.operating_point())


def _match_own(
    experiment: Experiment, cases: Sequence[CaseFiles], predictions: Mapping[str, PredictionFiles]
) -> list[MatchedCase]:
    """Match the predictions of this training with the references of its cases.

    If files of cases are damaged, raise one `DatasetError` on all of them after the last case.
    """
    options = MatchOptions(experiment.preset, experiment.dataset)
    matched, faults = match_cases(cases, predictions, options)
    require_no_errors(faults, experiment.run)
    return matched


def _cases_in_words(cases: Sequence[CaseFiles]) -> str:
    """Return the number of cases and the role that they share, such as "3 test cases"."""
    return count(len(cases), f"{cases[0].role} case")


def _predict(
    predictor: Predictor,
    experiment: Experiment,
    cases: Sequence[CaseFiles],
    folder: Path,
    on_slab: Callable[[CaseFiles], OnSlab | None] = lambda _: None,
) -> None:
    """Predict every case and write it to `folder`.

    Reading, the network and writing run at the same time. `on_slab`: returns, for a case, the
    function that receives its probabilities slab by slab; by default there is none.
    """

    def read(files: CaseFiles) -> Volume:
        return read_image(files, experiment.dataset)

    def write(files: CaseFiles, prediction: Prediction) -> str:
        write_prediction(folder, prediction)
        return files.case

    predicted = predict_volumes(predictor, cases, read, write, on_slab=on_slab)
    with bar("Predicting") as advance, closing(predicted) as written:
        for done, case in enumerate(written, start=1):
            advance(case, done, len(cases))


def _score(
    matches: Iterable[MatchedCase], experiment: Experiment, output: Path, point: OperatingPoint
) -> Scores:
    """Write the scores and tables of matched cases of one role into `output`. Return the scores.

    Candidates are accepted by `point`.
    """
    tables = Tables.of(match.accept(point).rows() for match in matches)
    role = tables.cases["role"].iloc[0]
    labels = experiment.dataset.labels.lesion_names
    settings = SummarySettings(
        evaluated_on=role,
        operating_point=point,
        labels=labels,
        split_is_group_safe=experiment.survey.is_group_safe(role),
        seed=experiment.cfg.seed,
        provenance=experiment.origin,
        columns={files.case: files.columns for files in experiment.dataset.cases},
    )
    scores = summarise(tables, experiment.preset, settings)
    write_scores(output, tables, scores, labels)
    return scores


# --- whole volumes during training ---------------------------------------------------------------


def match_volumes(
    network: nn.Module,
    experiment: Experiment,
    cases: Sequence[CaseFiles],
    plan: Plan,
    device: str | None = None,
    check: InputCheck | None = None,
) -> list[MatchedCase]:
    """Predict whole validation cases by a plan, and match the candidates on the files' own grids.

    Cases without a reference are left out. Reading, the network and matching run at the same time.

    Args:
        network: the network.
        experiment: the training: its dataset, its match rule and its settings of inference.
        cases: the cases.
        plan: the plan of the network.
        device: the device for prediction, by default that of the network.
        check: states the channels that may be empty.
    """
    opened: dict[str, Case] = {}

    def read(files: CaseFiles) -> Volume:
        opened[files.case] = read_case(files, experiment.dataset)
        return opened[files.case].image

    def match_if_labelled(files: CaseFiles, prediction: Prediction) -> MatchedCase | None:
        case = opened.pop(files.case)
        if case.reference is None:
            return None
        return match_case(
            case.reference,
            prediction,
            experiment.preset,
            case=case.case,
            group=case.group,
            role="validation",
        )

    predictor = Predictor(
        Bundle((network,), plan, check),
        settings=experiment.cfg.inference,
        device=device,
        trust=True,
    )
    with closing(predict_volumes(predictor, cases, read, match_if_labelled)) as matches:
        return [matched for matched in matches if matched is not None]


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
        network: the network.
        experiment: the training. Its settings have the losses of the network, whose effect on the
            probabilities is undone.
        plan: the plan of the network.
        fp_per_case: the false positives per case at which the recall is computed.
        device: the device for prediction, by default that of the network.
    """
    cases = experiment.cases("validation")
    cfg = experiment.cfg
    corrected = with_focal_correction(plan, cfg.loss, cfg.detection)
    matches = match_volumes(network, experiment, cases, corrected, device)
    tables = Tables.of(match.rows(surface=False) for match in matches)
    n_groups = len(tables.groups)
    recall = value_of(froc(tables, [fp_per_case]), n_groups)[0]
    precision = value_of(average_precision(tables), n_groups)[0]
    return recall or 0.0, precision or 0.0


def validation_scores(matches: Sequence[MatchedCase]) -> dict[str, float]:
    """Return numbers of validation cases by name, or an empty dictionary without cases.

    `recall_1fp` is the recall over all lesions at one false positive per case, 0 without lesions.
    `dice` is the mean Dice over the cases with a lesion. For the Dice, candidates are accepted by
    the threshold at which one false positive per case is expected on new cases. Without masks, or
    without a case with a lesion, `dice` is left out. `score` is the sum of `recall_1fp` and `dice`,
    by which the weights are chosen. `score_error` is the standard error of `score`, see
    `_score_error`. If the network detects nothing, a warning says so.
    """
    if not matches:
        return {}
    tables = Tables.of(match.rows(surface=False) for match in matches)
    if not len(tables.candidates):
        cases = count(len(matches), "validation case")
        log.warning("The network detects nothing on %s.", cases)
    point = choose(tables, Aim("fp_per_case", FP_PER_CASE), quiet=True)
    find = froc(tables, [FP_PER_CASE])
    recall = value_of(find, len(tables.groups))[0]
    scores = {"recall_1fp": recall or 0.0}
    accepted = Tables.of(match.accept(point).rows(surface=False) for match in matches)
    dice = accepted.cases["dice"]
    if dice.notna().any():
        scores["dice"] = float(dice.mean())
    return {**scores, SCORE: sum(scores.values()), SCORE_ERROR: _score_error(accepted, find)}


def _score_error(tables: Tables, find: Statistic) -> float:
    """Return the standard error of the recall that `find` computes plus the mean Dice of the cases.

    It is the standard deviation over resampled patients (bootstrap), which counts that both numbers
    depend on the same patients. Fewer than five patients give NaN.
    """
    if len(tables.groups) < MIN_GROUPS:
        return np.nan
    draws = draw_groups(len(tables.groups), _REPLICATES, np.random.default_rng(0)).astype(float)
    replicates = find(draws)[:, 0]
    dice = tables.cases["dice"].to_numpy(float)
    has_dice = ~np.isnan(dice)
    if has_dice.any():
        weights = draws[:, tables.group_of["cases"]]
        total = weights @ np.where(has_dice, dice, 0.0)
        replicates = replicates + divide(total, weights @ has_dice.astype(float))
    return float(np.nanstd(replicates))
