"""Predict the cases of one role, choose what is still open on development cases, and score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Geometry, OperatingPoint, Prediction
from lesionseg.errors import DatasetError
from lesionseg.evaluation import CaseResult, Preset
from lesionseg.inference.candidates.postprocess import without_small
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.predictions import find_predictions, write_prediction
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.pipeline.evaluate.evaluate_inputs import (
    image_readers,
    prediction_reader,
    read_columns,
)
from lesionseg.pipeline.evaluate.recipe import (
    CasePair,
    evaluate_pairs,
    judge_pairs,
    read_reference,
    with_images,
)
from lesionseg.pipeline.judging.choice import Choice, ChoiceSettings, make_choice
from lesionseg.pipeline.judging.least_size import choose_least_size
from lesionseg.pipeline.run.progress import bar

OUT_OF_FOLD = "out-of-fold"


@dataclass(frozen=True)
class RoleScores:
    """Scores of one role's cases, and what was chosen on them."""

    scores: Mapping[str, Any]
    choice: Choice


@dataclass(frozen=True)
class Rules:
    """By what cases are judged: the preset, the user's wishes, and where it all came from."""

    preset: Preset
    wishes: ChoiceSettings
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class FoldRun:
    """One fold of a cross-validation: its number, the roles it gives, and its run directory."""

    number: int
    found: Survey
    run: Path

    @property
    def folder(self) -> Path:
        """Where the predictions of its validation cases lie."""
        return self.run / "validation"

    @property
    def cases(self) -> list[CaseFiles]:
        """The cases that its network has not learned from."""
        return labelled(self.found, "validation")


def judge_validation(
    predictor: Predictor, found: Survey, run: Path, rules: Rules
) -> RoleScores | None:
    """Predict the validation cases into `run/validation`, choose on them, and score them.

    What is chosen on the cases it is scored on flatters; the scores say so. None without a
    labelled validation case.
    """
    cases = labelled(found, "validation")
    if not cases:
        return None
    folder = run / "validation"
    predict_cases(predictor, found, cases, folder)
    pairs = _pairs(found, cases, folder, "validation")
    choice = make_choice(_results(pairs, rules), rules.wishes, chosen_on="validation")
    _write_chosen(pairs, choice, folder)
    return RoleScores(
        _score(found, cases, folder, run, "validation", choice.points[0], rules), choice
    )


def judge_out_of_fold(
    found: Survey, folds: Sequence[FoldRun], output: Path, rules: Rules
) -> RoleScores:
    """Choose on the predictions of the cases that each fold's network never saw, and score them.

    All cases are written again, as chosen, to `output/predictions`; the folds stay as they are.
    Raises `DatasetError` for a case that validates in several folds.
    """
    fold_of = _fold_of(folds)
    pairs = [p for f in folds for p in _pairs(f.found, f.cases, f.folder, "validation")]

    def judged(diameter: float) -> list[CaseResult]:
        return _results([_filtered(pair, diameter) for pair in pairs], rules)

    least = choose_least_size(_results(pairs, rules), judged, rules.wishes)
    choice = make_choice(
        least.results,
        rules.wishes,
        chosen_on=OUT_OF_FOLD,
        fold_of=fold_of,
        min_diameter_mm=least.diameter_mm,
        reasons={"candidates: least diameter": least.why},
    )
    folder = output / "predictions"
    cases = [c for c in found.dataset.cases if c.case in fold_of]
    _write_chosen(pairs, choice, folder)
    scores = _score(found, cases, folder, output, "validation", choice.points[0], rules)
    return RoleScores(scores, choice)


def judge_untouched(
    predictor: Predictor, found: Survey, output: Path, role: str, rules: Rules
) -> Mapping[str, Any] | None:
    """Predict and score the cases of a role by a predictor whose plan is complete; None if none."""
    cases = labelled(found, role)
    if not cases:
        return None
    folder = output / "predictions"
    predict_cases(predictor, found, cases, folder)
    return _score(found, cases, folder, output, role, predictor.operating_point, rules)


def labelled(found: Survey, role: str) -> list[CaseFiles]:
    """The cases of a role that can be judged."""
    return [c for c in found.of_role(role) if c.reference is not None or c.annotations]


def predict_cases(
    predictor: Predictor, found: Survey, cases: Sequence[CaseFiles], folder: Path
) -> None:
    """Write the candidates of every case, one case in memory at a time."""
    with bar("Predicting") as advance:
        for done, files in enumerate(cases, start=1):
            case = read_case(files, found.dataset)
            prediction = predictor.predict_volume(case.image, case.case)
            write_prediction(folder, prediction)
            advance(files.case, done, len(cases))


def _fold_of(folds: Sequence[FoldRun]) -> dict[str, int]:
    """The fold of each case."""
    fold_of: dict[str, int] = {}
    for fold in folds:
        twice = [c.case for c in fold.cases if c.case in fold_of]
        if twice:
            raise DatasetError(
                "A case validates in more than one fold.",
                where=f"fold {fold.number}",
                seen=", ".join(twice[:5]),
            )
        fold_of |= dict.fromkeys([c.case for c in fold.cases], fold.number)
    return fold_of


def _pairs(found: Survey, cases: Sequence[CaseFiles], folder: Path, role: str) -> list[CasePair]:
    files = find_predictions(folder)
    return [
        CasePair(
            case=case.case,
            reference=partial(read_reference, case, found.dataset),
            prediction=prediction_reader(files[case.case]),
            group=case.group,
            role=role,
            regions=found.dataset.regions,
        )
        for case in cases
    ]


def _results(pairs: Sequence[CasePair], rules: Rules) -> list[CaseResult]:
    with bar("Choosing the score") as advance:
        return list(judge_pairs(pairs, rules.preset, progress=advance))


def _filtered(pair: CasePair, diameter: float) -> CasePair:
    """The pair without its candidates under a diameter."""
    read = pair.prediction
    if read is None:
        return pair

    def large(geometry: Geometry, read: Callable[[Geometry], Prediction] = read) -> Prediction:
        return without_small(read(geometry), diameter)

    return replace(pair, prediction=large)


def _write_chosen(pairs: Sequence[CasePair], choice: Choice, folder: Path) -> None:
    """Write the predictions to `folder` as the choice has them."""
    for pair in pairs:
        if pair.prediction is not None:
            before = replace(pair.prediction(pair.reference().geometry), case=pair.case)
            write_prediction(folder, choice.apply_to(before))


def _score(
    found: Survey,
    cases: Sequence[CaseFiles],
    folder: Path,
    output: Path,
    role: str,
    point: OperatingPoint,
    rules: Rules,
) -> Mapping[str, Any]:
    pairs = _pairs(found, cases, folder, role)
    with bar(f"Judging {role}") as advance:
        return evaluate_pairs(
            with_images(pairs, image_readers(cases, found.dataset, "dataset")),
            output,
            evaluated_on=role,
            operating_point=point,
            preset=rules.preset,
            labels=found.dataset.lesion_labels,
            split_is_group_safe=found.splits.group_safe,
            replicates=rules.wishes.replicates,
            seed=rules.wishes.seed,
            provenance=rules.origin,
            columns=read_columns(cases),
            progress=advance,
        )
