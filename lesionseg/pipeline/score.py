"""Predictions beside references: read, matched, summed up; by folder and by role of a training."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lesionseg.config import InferenceConfig, TrainConfig
from lesionseg.core import (
    Aim,
    Case,
    CaseFiles,
    Dataset,
    Geometry,
    OperatingPoint,
    Prediction,
    Problem,
    Reference,
    Role,
    Volume,
)
from lesionseg.errors import ContentError, DatasetError, GeometryError, ReadError, count
from lesionseg.evaluation import (
    MatchedCase,
    Preset,
    Scores,
    SummarySettings,
    choose,
    find_preset,
    match_case,
    summarise,
)
from lesionseg.evaluation.case_results import describe_grid
from lesionseg.evaluation.curves import Pool, froc
from lesionseg.evaluation.intervals import value_of
from lesionseg.evaluation.regrid import onto_grid
from lesionseg.evaluation.result_tables import write_scores
from lesionseg.evaluation.voxel_calibration import LevelCounts, select_voxel_calibration
from lesionseg.inference.decision import OnSlab, accept
from lesionseg.inference.nnunet.outputs import open_prediction
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.volumes import predict_volumes
from lesionseg.io.cases import is_same_grid, read_case, read_image, read_mask, read_reference
from lesionseg.io.predictions import (
    PredictionFiles,
    find_predictions,
    write_prediction,
)
from lesionseg.io.volumes import read_geometry
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.select import VOXELS, select
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
OUT_OF_FOLD = "out-of-fold"


# --- files beside files --------------------------------------------------------------------------


def match_cases(
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    preset: Preset,
    *,
    dataset: Dataset | None = None,
    role: str = "",
    zones: ZoneFolder | None = None,
    resample: bool = False,
    by_image: bool = False,
    progress: Advance | None = None,
    keep: Callable[[Prediction], None] | None = None,
    faults: list[Problem] | None = None,
) -> Iterator[MatchedCase]:
    """Match each case with its prediction, if it has one; each is freed before the next is read.

    Args:
        cases: the cases with references.
        predictions: the files of the predicted ones.
        preset: the rule of matching.
        dataset: the dataset of the cases; None for masks alone.
        role: of cases that state none.
        zones: zones by case.
        resample: see `read_on_grid`.
        by_image: as well.
        progress: is called with case, number done and total, instead of a bar.
        keep: is called with each prediction, as a file's id names it.
        faults: a list that takes up what is wrong with a case, which is then left out and named in
            a warning; None: the first error is raised.
    """
    labels = dataset.labels if dataset else None

    def match_one(files: CaseFiles) -> MatchedCase:
        reference, prediction = open_reference(files, dataset), None
        if files.case in predictions:
            prediction = read_on_grid(
                predictions[files.case],
                reference.geometry,
                resample=resample,
                binary=labels is not None and bool(labels.regions),
                by_image=by_image or (dataset is not None and dataset.grid_of_image),
            )
            if keep is not None:
                keep(replace(prediction, case=files.case))
        return match_case(
            reference,
            prediction,
            preset,
            case=files.case,
            group=files.group,
            role=files.role or role,
            labels=labels,
            zones=zones.read(files.case, reference.geometry.spacing_mm[0]) if zones else None,
        )

    with bar("Scoring", progress) as advance:
        for done, files in enumerate(cases, start=1):
            try:
                matched = match_one(files)
            except (ReadError, GeometryError, ContentError, DatasetError) as error:
                if faults is None:
                    raise
                faults.append(Problem(files.case, str(error)))
                log.warning("Not scored, %s: %s", files.case, error)
            else:
                yield matched
            advance(files.case, done, len(cases))


def open_reference(files: CaseFiles, dataset: Dataset | None) -> Reference:
    """Read the reference of a case on its image's grid; of the image, only the header is read.

    A case without an image has the grid of its mask.
    """
    if dataset is not None:
        grid = None
        if not files.images and files.reference is not None:
            grid = read_geometry(files.reference, raster_mm=files.pixel_mm)
        reference = read_reference(files, dataset, grid)
    else:
        path = files.reference
        reference = None if path is None else read_mask(path, raster_mm=files.pixel_mm)
    if reference is None:
        raise DatasetError(f"Case {files.case} has no reference.")
    return reference


def read_on_grid(
    files: PredictionFiles,
    geometry: Geometry,
    *,
    resample: bool = False,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read a prediction on the grid of its reference.

    One on another grid is resampled if `resample`, otherwise it is a `GeometryError`. `by_image`:
    equal shape and spacing are enough. `binary`: as in `read_prediction`. nnU-Net's probabilities
    are on the grid of the mask beside them.
    """
    path = files.instances or files.mask
    own = None if path is None else read_geometry(path, raster_mm=1.0)
    if own is not None and own.dims == geometry.dims == 2:
        # rasters state no position: they show what the reference shows, whatever their size
        zoom = np.array(geometry.shape) / np.array(own.shape)
        to_reference = np.diag([*zoom, 1.0])
        to_reference[:2, 2] = (zoom - 1) / 2  # edges meet, not centres
        own = Geometry(own.shape, geometry.affine @ to_reference)
    if own is None or is_same_grid(own, geometry, by_image=by_image):
        return open_prediction(files, geometry=geometry, binary=binary, by_image=by_image)
    if not resample:
        raise GeometryError(
            f"{path}: the prediction {describe_grid(own)} is not on the grid of its reference "
            f"{describe_grid(geometry)}: {own.apart_text(geometry)}. Give resample=true, or "
            "resample it with the program that wrote it."
        )
    log.warning("Resampled onto the grid of its reference: %s", files.case)
    return onto_grid(replace(open_prediction(files, binary=binary), geometry=own), geometry)


# --- roles of a training -------------------------------------------------------------------------


def labelled(survey: Survey, role: Role) -> list[CaseFiles]:
    """The cases of a role that have a reference, as cases of this role."""
    return [replace(c, role=role) for c in survey.of_role(role) if c.is_labelled]


def score_validation(
    predictor: Predictor, survey: Survey, run: Path, cfg: TrainConfig, origin: Mapping[str, Any]
) -> tuple[Plan, Scores] | None:
    """Predict the validation cases into `run/validation`, select on them, and score them.

    Where these cases show that outlines gain by it, voxels are calibrated and all is predicted
    again. None without a labelled validation case.
    """
    cases, folder, plan = labelled(survey, "validation"), run / "validation", predictor.plan
    if not cases:
        return None
    counts: list[LevelCounts] = []

    def count(files: CaseFiles) -> OnSlab:
        counts.append(LevelCounts(files.group))
        return counts[-1].counter(open_reference(files, survey.dataset), plan)

    log.info("Predicting %s.", _named(cases))
    _predict(predictor, survey, cases, folder, count)
    fit, why = select_voxel_calibration(counts, plan.candidate_rule.extent, "validation")
    plan = plan.with_(voxel_calibration=fit, reasons={**plan.reasons, VOXELS: why})
    if fit is not None:
        log.info("Predicting again: the calibration of voxels changes the outlines.")
        _predict(predictor.with_plan(plan), survey, cases, folder)
    return score_predicted(survey, find_predictions(folder), folder, plan, cfg, origin)


def score_predicted(
    survey: Survey,
    predictions: Mapping[str, PredictionFiles],
    folder: Path,
    plan: Plan,
    cfg: TrainConfig,
    origin: Mapping[str, Any],
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Plan, Scores]:
    """Select on predictions of the validation cases, write them to `folder` as selected, and score.

    Tables go beside `folder`, `origin` into their provenance. Returns the plan with what was
    selected. What is selected on the cases it is scored on flatters; the scores say so. `fold_of`:
    the fold whose network never saw the case.
    """
    preset = find_preset(cfg.preset)
    regions = bool(survey.dataset.labels.regions)
    cases = labelled(survey, "validation")
    matches = list(match_cases(cases, predictions, preset, dataset=survey.dataset))
    complete, calibration_of = select(
        [match.result(surface=False) for match in matches],
        plan,
        Aim.parse(cfg.operating_point),
        cfg.rate_confidence,
        chosen_on="validation" if fold_of is None else OUT_OF_FOLD,
        fold_of=fold_of,
    )
    point = complete.operating_points[0]
    for i, match in enumerate(matches):
        before = read_on_grid(predictions[match.case], match.geometry, binary=regions)
        before, calibration = replace(before, case=match.case), calibration_of[match.case]
        prediction = accept(before, point, calibration)
        write_prediction(folder, prediction)
        matches[i] = match.decide(prediction)
    return complete, _score(matches, survey, folder.parent, point, cfg, origin)


def score_folds(
    survey: Survey,
    folds: Mapping[int, Survey],
    run: Path,
    plan: Plan,
    cfg: TrainConfig,
    origin: Mapping[str, Any],
) -> tuple[Plan, Scores]:
    """Select on the predictions of the cases that each fold's network never saw, and score them.

    Fold k left them in `run/fold_k/validation`, which stays as it is; all are written again, as
    selected, to `run/oof/predictions`.
    """
    fold_of: dict[str, int] = {}
    predictions: dict[str, PredictionFiles] = {}
    for number, fold in folds.items():
        files_of = find_predictions(run / f"fold_{number}" / "validation")
        for case in (files.case for files in labelled(fold, "validation")):
            fold_of[case], predictions[case] = number, files_of[case]
    roles: dict[str, Role] = dict.fromkeys(fold_of, "validation")
    everyone = replace(survey, splits=replace(survey.splits, roles=roles))
    folder = run / "oof" / "predictions"
    return score_predicted(everyone, predictions, folder, plan, cfg, origin, fold_of)


def score_role(
    predictor: Predictor,
    survey: Survey,
    output: Path,
    role: Role,
    cfg: TrainConfig,
    origin: Mapping[str, Any],
) -> Scores | None:
    """Predict and score the cases of a role by a predictor whose plan is complete; None if none."""
    cases, folder = labelled(survey, role), output / "predictions"
    if not cases:
        return None
    log.info("Predicting %s.", _named(cases))
    _predict(predictor, survey, cases, folder)
    files_of, preset = find_predictions(folder), find_preset(cfg.preset)
    matches = match_cases(cases, files_of, preset, dataset=survey.dataset)
    return _score(matches, survey, output, predictor.operating_point(), cfg, origin)


def _named(cases: Sequence[CaseFiles]) -> str:
    return count(len(cases), f"{cases[0].role} case")


def _predict(
    predictor: Predictor,
    survey: Survey,
    cases: Sequence[CaseFiles],
    folder: Path,
    on_slab: Callable[[CaseFiles], OnSlab | None] = lambda _: None,
) -> None:
    """Write the candidates of every case; reading, the network and writing overlap.

    `on_slab`: what is shown a case's probabilities.
    """

    def read(files: CaseFiles) -> Volume:
        return read_image(files, survey.dataset)

    def write(files: CaseFiles, prediction: Prediction) -> str:
        write_prediction(folder, prediction)
        return files.case

    predicted = predict_volumes(predictor, cases, read, write, on_slab=on_slab)
    with bar("Predicting") as advance, closing(predicted) as written:
        for done, case in enumerate(written, start=1):
            advance(case, done, len(cases))


def _score(
    matches: Iterable[MatchedCase],
    survey: Survey,
    output: Path,
    point: OperatingPoint,
    cfg: TrainConfig,
    origin: Mapping[str, Any],
) -> Scores:
    results = [match.result(point) for match in matches]
    labels = survey.dataset.labels.lesion_names
    role = results[0].role
    settings = SummarySettings(
        evaluated_on=role,
        operating_point=point,
        labels=labels,
        split_is_group_safe=survey.is_group_safe(role),
        seed=cfg.seed,
        provenance=origin,
        columns={files.case: files.columns for files in survey.dataset.cases},
    )
    scores = summarise(results, find_preset(cfg.preset), settings)
    write_scores(output, results, scores, labels)
    return scores


# --- whole volumes while training goes on --------------------------------------------------------


def match_volumes(
    network: nn.Module,
    survey: Survey,
    cases: Sequence[CaseFiles],
    plan: Plan,
    inference: InferenceConfig,
    preset: Preset,
    device: str | None = None,
) -> list[MatchedCase]:
    """Match the network's candidates on whole cases, in the files' own grids, by a plan.

    Cases without a reference are left out. Reading, the network and matching overlap. `device`:
    where to predict; None is where the network is.
    """
    opened: dict[str, Case] = {}

    def read(files: CaseFiles) -> Volume:
        opened[files.case] = read_case(files, survey.dataset)
        return opened[files.case].image

    def use(files: CaseFiles, prediction: Prediction) -> MatchedCase | None:
        case = opened.pop(files.case)
        if case.reference is None:
            return None
        ids: dict[str, Any] = {"case": case.case, "group": case.group}
        return match_case(case.reference, prediction, preset, role="validation", **ids)

    predictor = Predictor.from_network(network, plan, settings=inference, device=device)
    with closing(predict_volumes(predictor, cases, read, use)) as matches:
        return [match for match in matches if match is not None]


def validation_scores(matches: Sequence[MatchedCase]) -> dict[str, float]:
    """The scores by name; none without a case.

    `recall_1fp`: of all lesions together, at one false positive per case seen; `dice`: mean over
    the cases with a lesion, by the score that new cases would have that rate with; left out where
    there are no masks.
    """
    if not matches:
        return {}
    results = [match.result(surface=False) for match in matches]
    if not any(result.candidates for result in results):
        cases = count(len(results), "validation case")
        log.warning("The network detects nothing on %s.", cases)
    point = choose(results, Aim("fp_per_case", FP_PER_CASE), quiet=True)
    pool = Pool.of(results)
    scores = {"recall_1fp": value_of(froc(pool, [FP_PER_CASE]), len(pool.groups))[0] or 0.0}
    dice = [match.result(point, surface=False).dice for match in matches]
    known = [value for value in dice if value is not None]
    return scores | ({"dice": float(np.mean(known))} if known else {})
