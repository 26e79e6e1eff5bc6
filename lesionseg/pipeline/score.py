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
from lesionseg.core import (
    Case,
    CaseFiles,
    Dataset,
    Geometry,
    LabelRegion,
    OperatingPoint,
    Prediction,
    Reference,
    Volume,
    Zones,
)
from lesionseg.errors import DatasetError, GeometryError
from lesionseg.evaluation import CaseResult, MatchedCase, Preset, choose, match_case, summarise
from lesionseg.evaluation.cases import describe_grid
from lesionseg.evaluation.regrid import onto_grid
from lesionseg.evaluation.subgroups import Columns
from lesionseg.evaluation.tables import write_tables
from lesionseg.inference.accept import without_small
from lesionseg.inference.decision import Watch
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.settings import InferenceSettings
from lesionseg.io.cases import read_case, read_grid, read_image, read_mask, read_reference
from lesionseg.io.files import read_csv, write_json
from lesionseg.io.predictions import (
    PredictionFiles,
    find_predictions,
    read_prediction,
    write_prediction,
)
from lesionseg.io.volumes import read_geometry
from lesionseg.ops.host_memory import without_collection
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict import predict_volumes
from lesionseg.pipeline.select import (
    LEAST_SIZE,
    VOXELS,
    Choice,
    ChoiceSettings,
    LevelCounts,
    least_diameter,
    select,
    select_voxel_calibration,
)
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
OUT_OF_FOLD = "out-of-fold"


# --- files beside files --------------------------------------------------------------------------


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


def prediction_reader(
    files: PredictionFiles, *, resample: bool = False, united: bool = False
) -> Callable[[Geometry], Prediction]:
    """Reads a case's prediction when it is given the reference's grid.

    A prediction on another grid is resampled when that is asked for, else a `GeometryError`.
    `united`: as in `read_prediction`.
    """

    def read(geometry: Geometry) -> Prediction:
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

    return read


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

    @without_collection()
    def sum_up(self, results: Sequence[CaseResult]) -> dict[str, Any]:
        """The content of scores.json."""
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        settings["provenance"] = {"lesionseg": lesionseg.__version__, **self.provenance}
        return summarise(results, **settings)

    @without_collection()
    def write(self, output: Path, results: Sequence[CaseResult], scores: Mapping[str, Any]) -> None:
        """Write the three tables and, last, scores.json; each atomically."""
        output.mkdir(parents=True, exist_ok=True)
        write_tables(output, results, self.labels)
        write_json(output / "scores.json", scores)


# --- roles of a training -------------------------------------------------------------------------


@dataclass(frozen=True)
class RoleScores:
    """Scores of one role's cases, and what was selected on them."""

    scores: Mapping[str, Any]
    choice: Choice


@dataclass(frozen=True)
class Rules:
    """By what cases are scored: the preset, what the user says of the selection, the provenance."""

    preset: Preset
    choice: ChoiceSettings
    origin: Mapping[str, Any]

    def scoring(
        self, survey: Survey, cases: Sequence[CaseFiles], role: str, point: OperatingPoint
    ) -> Scoring:
        """How these cases are summed up."""
        return Scoring(
            preset=self.preset,
            evaluated_on=role,
            operating_point=point,
            labels=survey.dataset.lesion_labels,
            split_is_group_safe=survey.splits.group_safe,
            replicates=self.choice.replicates,
            seed=self.choice.seed,
            provenance=self.origin,
            columns=read_columns(cases),
        )


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


def labelled(survey: Survey, role: str) -> list[CaseFiles]:
    """The cases of a role that have a reference."""
    return [c for c in survey.of_role(role) if c.reference is not None or c.annotations]


def score_validation(
    predictor: Predictor, survey: Survey, run: Path, rules: Rules
) -> RoleScores | None:
    """Predict the validation cases into `run/validation`, select on them, and score them.

    Where these cases show that outlines gain by it, voxels are calibrated and all is predicted
    again. None without a labelled validation case.
    """
    cases, folder, plan = labelled(survey, "validation"), run / "validation", predictor.plan
    if not cases:
        return None
    counts: list[LevelCounts] = []

    def count(files: CaseFiles) -> Watch | None:
        if not rules.choice.calibrate_voxels:
            return None
        counts.append(LevelCounts(files.group))
        return counts[-1].watch(open_reference(files, survey.dataset), plan)

    _predict(predictor, survey, cases, folder, count)
    if not rules.choice.calibrate_voxels:
        return score_predicted(survey, run, rules)
    fit, why = select_voxel_calibration(counts, plan.candidate_rule.extent, "validation")
    log.info("Selected, %s: %s", VOXELS, why)
    if fit is not None:
        again = predictor.with_plan(plan.with_(voxel_calibration=fit))
        _predict(again, survey, cases, folder)
    scored = score_predicted(survey, run, rules)
    reasons = {**scored.choice.reasons, VOXELS: why}
    return replace(scored, choice=replace(scored.choice, voxel_calibration=fit, reasons=reasons))


def score_predicted(survey: Survey, run: Path, rules: Rules) -> RoleScores:
    """Select on the predictions of the validation cases in `run/validation`, and score them.

    What is selected on the cases it is scored on flatters; the scores say so.
    """
    cases, folder = labelled(survey, "validation"), run / "validation"
    pairs = _pairs(survey, cases, folder, "validation")
    matches = _match(pairs, rules)
    results = [match.result(surface=False) for match in matches]
    choice = select(results, rules.choice, chosen_on="validation")
    scoring = rules.scoring(survey, cases, "validation", choice.points[0])
    return RoleScores(_score_selected(pairs, matches, choice, folder, run, scoring), choice)


def score_folds(survey: Survey, folds: Sequence[FoldRun], output: Path, rules: Rules) -> RoleScores:
    """Select on the predictions of the cases that each fold's network never saw, and score them.

    All cases are written again, as selected, to `output/predictions`; the folds stay as they are.
    Raises `DatasetError` for a case that validates in several folds.
    """
    fold_of: dict[str, int] = {}
    for fold in folds:
        for files in fold.cases:
            if files.case in fold_of:
                raise DatasetError(f"Case {files.case} validates in more than one fold.")
            fold_of[files.case] = fold.number
    cases = [files for files in survey.dataset.cases if files.case in fold_of]
    rank = {files.case: i for i, files in enumerate(cases)}
    pairs = [p for f in folds for p in _pairs(f.survey, f.cases, f.folder, "validation")]
    pairs.sort(key=lambda pair: rank[pair.case])
    matches = {0.0: _match(pairs, rules)}

    def without(diameter: float) -> list[CaseResult]:
        matches[diameter] = _match([_without_small(pair, diameter) for pair in pairs], rules)
        return [match.result(surface=False) for match in matches[diameter]]

    results = [match.result(surface=False) for match in matches[0.0]]
    least, why = least_diameter(results, without, rules.choice)
    if least:
        results = [match.result(surface=False) for match in matches[least]]
    choice = select(results, rules.choice, chosen_on=OUT_OF_FOLD, fold_of=fold_of)
    reasons = {**choice.reasons, LEAST_SIZE: why}
    choice = replace(choice, min_diameter_mm=least, reasons=reasons)
    scoring = rules.scoring(survey, cases, "validation", choice.points[0])
    folder = output / "predictions"
    scores = _score_selected(pairs, matches[least], choice, folder, output, scoring)
    return RoleScores(scores, choice)


def score_role(
    predictor: Predictor, survey: Survey, output: Path, role: str, rules: Rules
) -> Mapping[str, Any] | None:
    """Predict and score the cases of a role by a predictor whose plan is complete; None if none."""
    cases, folder = labelled(survey, role), output / "predictions"
    if not cases:
        return None
    _predict(predictor, survey, cases, folder)
    matches = _match(_pairs(survey, cases, folder, role), rules)
    return _score(matches, output, rules.scoring(survey, cases, role, predictor.operating_point()))


def _predict(
    predictor: Predictor,
    survey: Survey,
    cases: Sequence[CaseFiles],
    folder: Path,
    watch: Callable[[CaseFiles], Watch | None] = lambda _: None,
) -> None:
    """Write the candidates of every case; reading, the network and writing overlap.

    `watch`: what is shown a case's probabilities.
    """

    def read(files: CaseFiles) -> Volume:
        return read_image(files, survey.dataset)

    def write(files: CaseFiles, prediction: Prediction) -> str:
        write_prediction(folder, prediction)
        return files.case

    predicted = predict_volumes(predictor, cases, read, write, watch=watch)
    with bar("Predicting") as advance, closing(predicted) as written:
        for done, case in enumerate(written, start=1):
            advance(case, done, len(cases))


def _pairs(survey: Survey, cases: Sequence[CaseFiles], folder: Path, role: str) -> list[CasePair]:
    """Predictions in `folder`, each with its reference, of the cases in order."""
    files = find_predictions(folder)
    return [
        CasePair(
            case=case.case,
            reference=partial(open_reference, case, survey.dataset),
            prediction=prediction_reader(files[case.case]),
            group=case.group,
            role=role,
            regions=survey.dataset.regions,
        )
        for case in cases
    ]


def _without_small(pair: CasePair, diameter: float) -> CasePair:
    read = pair.prediction
    if read is None:
        return pair
    return replace(pair, prediction=lambda geometry: without_small(read(geometry), diameter))


def _match(pairs: Sequence[CasePair], rules: Rules) -> list[MatchedCase]:
    with bar("Scoring") as advance:
        return list(match_pairs(pairs, rules.preset, progress=advance))


def _score_selected(
    pairs: Sequence[CasePair],
    matches: Sequence[MatchedCase],
    choice: Choice,
    folder: Path,
    output: Path,
    scoring: Scoring,
) -> Mapping[str, Any]:
    """Write the predictions to `folder` as selected, and score them to `output`."""
    decided = []
    for pair, match in zip(pairs, matches, strict=True):
        if pair.prediction is not None:
            before = replace(pair.prediction(match.geometry), case=pair.case)
            prediction = choice.apply_to(before)
            write_prediction(folder, prediction)
            match = match.decide(prediction)
        decided.append(match)
    return _score(decided, output, scoring)


def _score(matches: Sequence[MatchedCase], output: Path, scoring: Scoring) -> Mapping[str, Any]:
    results = [match.result(scoring.operating_point) for match in matches]
    scores = scoring.sum_up(results)
    scoring.write(output, results, scores)
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
    inference: InferenceSettings
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
            log.warning("Nothing at all is predicted on %d validation cases.", len(results))
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
