"""Predictions beside references: read, matched, summed up; by folder and by role of a training."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import lesionseg
from lesionseg.config import InferenceConfig
from lesionseg.core import (
    Case,
    CaseFiles,
    Dataset,
    Geometry,
    LabelRegion,
    OperatingPoint,
    Prediction,
    Reference,
    Role,
    Volume,
    Zones,
)
from lesionseg.errors import DatasetError, GeometryError, count
from lesionseg.evaluation import (
    CaseResult,
    MatchedCase,
    Preset,
    choose,
    match_case,
    summarise,
)
from lesionseg.evaluation.cases import describe_grid
from lesionseg.evaluation.regrid import onto_grid
from lesionseg.evaluation.subgroups import Columns
from lesionseg.evaluation.tables import write_tables
from lesionseg.inference.decision import OnSlab
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case, read_grid, read_image, read_mask, read_reference
from lesionseg.io.files import read_csv, write_json
from lesionseg.io.predictions import (
    PredictionFiles,
    find_predictions,
    read_prediction,
    write_prediction,
)
from lesionseg.io.volumes import read_geometry
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict import predict_volumes
from lesionseg.pipeline.select import (
    VOXELS,
    Choice,
    LevelCounts,
    select,
    select_voxel_calibration,
)
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
OUT_OF_FOLD = "out-of-fold"
Scores = Mapping[str, Any]


# --- files beside files --------------------------------------------------------------------------


def match_cases(
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    preset: Preset,
    *,
    dataset: Dataset | None = None,
    zones: ZoneFolder | None = None,
    resample: bool = False,
    progress: Advance | None = None,
) -> Iterator[MatchedCase]:
    """Match each case with its prediction, if it has one; what was read is freed before the next.

    `dataset` is None for masks alone; `resample`: see `read_on_grid`.
    """
    regions = dataset.regions if dataset else ()
    for done, files in enumerate(cases, start=1):
        reference, prediction = open_reference(files, dataset), None
        if files.case in predictions:
            prediction = read_on_grid(
                predictions[files.case],
                reference.geometry,
                resample=resample,
                united=bool(regions),
            )
        yield match_case(
            reference,
            prediction,
            preset,
            case=files.case,
            group=files.group,
            role=files.role or "",
            regions=regions,
            zones=zones.read(files.case) if zones else None,
        )
        if progress:
            progress(files.case, done, len(cases))


def open_reference(files: CaseFiles, dataset: Dataset | None) -> Reference:
    """The reference of a case on its image's grid, of which the header alone is read."""
    if dataset is not None:
        reference = read_reference(files, dataset, read_grid(files, dataset))
    else:
        path = files.reference
        reference = None if path is None else read_mask(path, raster_mm=files.pixel_mm)
    if reference is None:
        raise DatasetError(f"Case {files.case} has no reference.")
    return reference


def read_on_grid(
    files: PredictionFiles, geometry: Geometry, *, resample: bool = False, united: bool = False
) -> Prediction:
    """Read a prediction on the grid of its reference.

    One on another grid is resampled when that is asked for, else a `GeometryError`. `united`: as in
    `read_prediction`.
    """
    path = files.instances or files.mask
    own = None if path is None else read_geometry(path, raster_mm=1.0)
    if own is not None and own.dims == geometry.dims == 2:
        # rasters state no position: they show what the reference shows, whatever their size
        zoom = np.array(geometry.shape) / np.array(own.shape)
        to_reference = np.diag([*zoom, 1.0])
        to_reference[:2, 2] = (zoom - 1) / 2  # edges meet, not centres
        own = Geometry(own.shape, geometry.affine @ to_reference)
    if own is None or own.matches(geometry):
        return read_prediction(files, geometry=geometry, united=united)
    if not resample:
        raise GeometryError(
            f"{path}: the prediction {describe_grid(own)} is not on the grid of its reference "
            f"{describe_grid(geometry)}, {own.distance_mm(geometry):.4g} mm off. Give "
            "resample=true, or resample it with the program that wrote it."
        )
    log.warning("Resampled onto the grid of its reference: %s", files.case)
    return onto_grid(replace(read_prediction(files, united=united), geometry=own), geometry)


@dataclass(frozen=True, eq=False)
class CasePair:
    """A case to score; reference and prediction are read when its turn comes.

    `prediction` is given the reference's grid; None: there is no prediction of this case.
    `regions` are the dataset's; `zones` reads the anatomical zones of a case by its id.
    """

    case: str
    reference: Callable[[], Reference]
    prediction: Callable[[Geometry], Prediction] | None
    group: str = ""
    role: str = ""
    regions: tuple[LabelRegion, ...] = ()
    zones: Callable[[str], Zones | None] = lambda _: None


def match_pairs(
    pairs: Sequence[CasePair], preset: Preset, *, progress: Advance | None = None
) -> Iterator[MatchedCase]:
    """The match of each pair in turn; what was read for it is freed before the next."""
    for done, pair in enumerate(pairs, start=1):
        reference = pair.reference()
        yield match_case(
            reference,
            pair.prediction(reference.geometry) if pair.prediction else None,
            preset,
            case=pair.case,
            group=pair.group,
            role=pair.role,
            regions=pair.regions,
            zones=pair.zones(pair.case),
        )
        if progress:
            progress(pair.case, done, len(pairs))


def prediction_reader(
    files: PredictionFiles, *, resample: bool = False, united: bool = False
) -> Callable[[Geometry], Prediction]:
    """Reads a case's prediction when it is given the reference's grid; see `read_on_grid`."""
    return partial(read_on_grid, files, resample=resample, united=united)


def read_columns(cases: Sequence[CaseFiles], table: Path | None = None) -> Columns:
    """What the dataset, and a CSV file with a column `case`, say of each case.

    Raises `DatasetError` for a table without that column, or with none of the cases.
    """
    columns = {files.case: dict(files.columns) for files in cases}
    if table is None:
        return columns
    rows = read_csv(table)
    if not any(row.get("case") in columns for row in rows):
        names = ", ".join(rows[0]) if rows else "none"
        raise DatasetError(
            f"{table}: no row names a case, such as {next(iter(columns), '')}, in a column 'case' "
            f"(its columns: {names})."
        )
    for row in rows:
        if row["case"] in columns:
            columns[row["case"]] |= {key: value for key, value in row.items() if key != "case"}
    return columns


@dataclass(frozen=True)
class Scoring:
    """How results are summed up; the fields are those of `evaluation.summarise`."""

    preset: Preset
    evaluated_on: str
    operating_point: OperatingPoint | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    split_is_group_safe: bool | None = None
    replicates: int = 1000
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns | None = None
    subgroups: Sequence[str] | None = None

    def sum_up(self, results: Sequence[CaseResult]) -> dict[str, Any]:
        """The content of scores.json."""
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        settings["provenance"] = {"lesionseg": lesionseg.__version__, **self.provenance}
        return summarise(results, **settings)

    def write(self, output: Path, results: Sequence[CaseResult], scores: Mapping[str, Any]) -> None:
        """Write the three tables and, last, scores.json; each atomically."""
        output.mkdir(parents=True, exist_ok=True)
        write_tables(output, results, self.labels)
        write_json(output / "scores.json", scores)


# --- roles of a training -------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """By what cases are scored: the preset, what the user says of the selection, the provenance."""

    preset: Preset
    operating_point: str
    rate_confidence: float | None
    seed: int
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class FoldRun:
    """One fold of a cross-validation: its number, the roles it gives, and its run directory."""

    number: int
    survey: Survey
    run: Path

    @property
    def folder(self) -> Path:
        """Where the predictions of its validation cases lie."""
        return self.run / "validation"

    @property
    def cases(self) -> list[CaseFiles]:
        """The cases that its network has not learned from."""
        return labelled(self.survey, "validation")


def labelled(survey: Survey, role: Role) -> list[CaseFiles]:
    """The cases of a role that have a reference, as cases of this role."""
    return [replace(c, role=role) for c in survey.of_role(role) if c.is_labelled]


def score_validation(
    predictor: Predictor, survey: Survey, run: Path, rules: Rules
) -> tuple[Choice, Scores] | None:
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

    _predict(predictor, survey, cases, folder, count)
    fit, why = select_voxel_calibration(counts, plan.candidate_rule.extent, "validation")
    log.info("%s %s", VOXELS.capitalize(), why)
    if fit is not None:
        again = predictor.with_plan(plan.with_(voxel_calibration=fit))
        _predict(again, survey, cases, folder)
    choice, scores = score_predicted(survey, run, rules)
    reasons = {**choice.reasons, VOXELS: why}
    return replace(choice, voxel_calibration=fit, reasons=reasons), scores


def score_predicted(survey: Survey, run: Path, rules: Rules) -> tuple[Choice, Scores]:
    """Select on the predictions of the validation cases in `run/validation`, and score them.

    What is selected on the cases it is scored on flatters; the scores say so.
    """
    folder = run / "validation"
    cases, predictions = labelled(survey, "validation"), find_predictions(folder)
    return _select_and_score(survey, cases, predictions, folder, run, rules)


def score_folds(
    survey: Survey, folds: Sequence[FoldRun], output: Path, rules: Rules
) -> tuple[Choice, Scores]:
    """Select on the predictions of the cases that each fold's network never saw, and score them.

    All cases are written again, as selected, to `output/predictions`; the folds stay as they are.
    Raises `DatasetError` for a case that validates in several folds.
    """
    fold_of: dict[str, int] = {}
    predictions: dict[str, PredictionFiles] = {}
    for fold in folds:
        files_of = find_predictions(fold.folder)
        for files in fold.cases:
            if files.case in fold_of:
                raise DatasetError(f"Case {files.case} validates in more than one fold.")
            fold_of[files.case] = fold.number
            predictions[files.case] = files_of[files.case]
    cases = [replace(c, role="validation") for c in survey.dataset.cases if c.case in fold_of]
    folder = output / "predictions"
    return _select_and_score(survey, cases, predictions, folder, output, rules, fold_of)


def score_role(
    predictor: Predictor, survey: Survey, output: Path, role: Role, rules: Rules
) -> Scores | None:
    """Predict and score the cases of a role by a predictor whose plan is complete; None if none."""
    cases, folder = labelled(survey, role), output / "predictions"
    if not cases:
        return None
    _predict(predictor, survey, cases, folder)
    matches = _match(survey, cases, find_predictions(folder), rules)
    return _score(matches, survey, output, predictor.operating_point(), rules)


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


def _match(
    survey: Survey,
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    rules: Rules,
) -> list[MatchedCase]:
    with bar("Scoring") as advance:
        return list(
            match_cases(cases, predictions, rules.preset, dataset=survey.dataset, progress=advance)
        )


def _select_and_score(
    survey: Survey,
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    folder: Path,
    output: Path,
    rules: Rules,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Choice, Scores]:
    """Select on predictions, write them to `folder` as selected, and score them to `output`."""
    matches = _match(survey, cases, predictions, rules)
    choice = select(
        [match.result(surface=False) for match in matches],
        rules.operating_point,
        rules.rate_confidence,
        chosen_on="validation" if fold_of is None else OUT_OF_FOLD,
        fold_of=fold_of,
    )
    for i, match in enumerate(matches):
        before = read_on_grid(
            predictions[match.case], match.geometry, united=bool(survey.dataset.regions)
        )
        prediction = choice.apply_to(replace(before, case=match.case))
        write_prediction(folder, prediction)
        matches[i] = match.decide(prediction)
    return choice, _score(matches, survey, output, choice.points[0], rules)


def _score(
    matches: Sequence[MatchedCase],
    survey: Survey,
    output: Path,
    point: OperatingPoint,
    rules: Rules,
) -> Scores:
    results = [match.result(point) for match in matches]
    labels = survey.dataset.lesion_labels
    scores = summarise(
        results,
        rules.preset,
        evaluated_on=results[0].role,
        operating_point=point,
        labels=labels,
        split_is_group_safe=survey.splits.group_safe,
        seed=rules.seed,
        provenance=rules.origin,
        columns={files.case: files.columns for files in survey.dataset.cases},
    )
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output, results, labels)
    write_json(output / "scores.json", scores)
    return scores


# --- whole volumes while training goes on --------------------------------------------------------


@dataclass(frozen=True)
class VolumeScorer:
    """Scores networks on whole cases, in the files' own grids, by one plan.

    At most `n_cases` (None: all) spread evenly over `cases` are looked at.
    """

    survey: Survey
    cases: Sequence[CaseFiles]
    plan: Plan
    inference: InferenceConfig
    preset: Preset
    n_cases: int | None = None

    def matches(self, network: nn.Module) -> list[MatchedCase]:
        """Every case that has a reference; reading, the network and matching overlap."""
        opened: dict[str, Case] = {}

        def read(files: CaseFiles) -> Volume:
            opened[files.case] = read_case(files, self.survey.dataset)
            return opened[files.case].image

        def use(files: CaseFiles, prediction: Prediction) -> MatchedCase | None:
            case = opened.pop(files.case)
            if case.reference is None:
                return None
            return match_case(
                case.reference,
                prediction,
                self.preset,
                case=case.case,
                group=case.group,
                role="validation",
            )

        predictor = Predictor.from_network(network, self.plan, settings=self.inference)
        cases = evenly_spaced(self.cases, self.n_cases)
        scored = predict_volumes(predictor, cases, read, use)
        with closing(scored) as matches:
            return [match for match in matches if match is not None]

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """The scores by name; none where no case has a reference.

        `recall_1fp`: of all lesions together, at one false positive per case; `dice`: mean over the
        cases with a lesion, of the candidates accepted at that point; left out where there are no
        masks.
        """
        matches = self.matches(network)
        if not matches:
            return {}
        results = [match.result(surface=False) for match in matches]
        if not any(result.candidates for result in results):
            log.warning(
                "The network detects nothing on %s.", count(len(results), "validation case")
            )
        point = choose(results, fp_per_case=FP_PER_CASE, quiet=True)
        scores = {"recall_1fp": point.lesion_recall or 0.0}
        dice = [match.result(point, surface=False).dice for match in matches]
        known = [value for value in dice if value is not None]
        return scores | ({"dice": float(np.mean(known))} if known else {})


def evenly_spaced(cases: Sequence[CaseFiles], n_cases: int | None) -> tuple[CaseFiles, ...]:
    """At most `n_cases` of them, evenly spaced: files in order of name are often in order of site.

    >>> evenly_spaced("abcdefg", 3)
    ('a', 'd', 'g')
    """
    if n_cases is None or len(cases) <= n_cases:
        return tuple(cases)
    places = np.linspace(0, len(cases) - 1, n_cases).round().astype(int)
    return tuple(cases[int(place)] for place in places)
