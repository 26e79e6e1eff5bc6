"""The steps by which a role's cases are predicted, matched with their references, and scored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Geometry, OperatingPoint, Prediction, Volume
from lesionseg.evaluation import CaseResult, MatchedCase, Preset
from lesionseg.inference.candidates.accept import without_small
from lesionseg.inference.decision import Watch
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_image
from lesionseg.io.predictions import find_predictions, write_prediction
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.judging.case_pairs import (
    CasePair,
    Scoring,
    See,
    match_pairs,
    openers,
    prediction_reader,
    read_columns,
)
from lesionseg.pipeline.judging.choice import Choice, ChoiceSettings
from lesionseg.pipeline.predict import predict_volumes
from lesionseg.pipeline.run.outcome import bar


@dataclass(frozen=True)
class RoleScores:
    """Scores of one role's cases, and what was chosen on them."""

    scores: Mapping[str, Any]
    choice: Choice


@dataclass(frozen=True)
class Rules:
    """By what cases are judged: the preset, what the user says of the choice, the provenance."""

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


def labelled(survey: Survey, role: str, missing: tuple[int, ...] = ()) -> list[CaseFiles]:
    """The cases of a role that can be judged: with a reference, and lacking just these channels."""
    cases = [c for c in survey.of_role(role) if c.missing == missing]
    return [c for c in cases if c.reference is not None or c.annotations]


def folder_without(run: Path, missing: Sequence[int]) -> Path:
    """Where predictions of a run without these channels lie."""
    return run / "without" / "_".join(map(str, missing))


def write_predictions(
    predictor: Predictor,
    survey: Survey,
    cases: Sequence[CaseFiles],
    folder: Path,
    watch: Callable[[CaseFiles], Watch | None] = lambda _: None,
    missing: tuple[int, ...] = (),
) -> None:
    """Write the candidates of every case; reading, the network and writing overlap.

    `watch`: what is shown a case's probabilities. `missing`: channels that are left out.
    """

    def write(files: CaseFiles, prediction: Prediction) -> str:
        write_prediction(folder, prediction)
        return files.case

    def read(files: CaseFiles) -> Volume:
        volume = read_image(files, survey.dataset)
        for channel in missing:
            volume.array[channel] = 0
        return replace(volume, missing=missing)

    with (
        bar("Predicting") as advance,
        closing(predict_volumes(predictor, cases, read, write, watch=watch)) as written,
    ):
        for done, case in enumerate(written, start=1):
            advance(case, done, len(cases))


def pairs_of(survey: Survey, cases: Sequence[CaseFiles], folder: Path, role: str) -> list[CasePair]:
    """Predictions in `folder`, each with its reference, of the cases in order."""
    files, opened = find_predictions(folder), openers(cases, survey.dataset, "dataset")
    return [
        CasePair(
            case=case.case,
            open=opened[case.case],
            prediction=prediction_reader(files[case.case]),
            group=case.group,
            role=role,
            regions=survey.dataset.regions,
        )
        for case in cases
    ]


def match(pairs: Sequence[CasePair], rules: Rules, see: See | None = None) -> list[MatchedCase]:
    """Each pair opened and matched once; `see` is shown its image, reference and prediction."""
    with bar("Judging") as advance:
        return list(match_pairs(pairs, rules.preset, see=see, progress=advance))


def undecided(matches: Sequence[MatchedCase]) -> list[CaseResult]:
    """All that a choice needs to know of the cases."""
    return [match.result(surface=False) for match in matches]


def pair_without_small(pair: CasePair, diameter: float) -> CasePair:
    """The pair without its candidates under a diameter."""
    read = pair.prediction
    if read is None:
        return pair

    def large(geometry: Geometry, read: Callable[[Geometry], Prediction] = read) -> Prediction:
        return without_small(read(geometry), diameter)

    return replace(pair, prediction=large)


def score_chosen(
    pairs: Sequence[CasePair],
    matches: Sequence[MatchedCase],
    choice: Choice,
    folder: Path,
    output: Path,
    scoring: Scoring,
) -> Mapping[str, Any]:
    """Write the predictions to `folder` as the choice has them, and score them to `output`."""
    decided = []
    for pair, match in zip(pairs, matches, strict=True):
        if pair.prediction is not None:
            before = replace(pair.prediction(match.geometry), case=pair.case)
            prediction = choice.apply_to(before)
            write_prediction(folder, prediction)
            match = match.decide(prediction)
        decided.append(match)
    return score(decided, output, scoring)


def score(matches: Sequence[MatchedCase], output: Path, scoring: Scoring) -> Mapping[str, Any]:
    """Sum the decided cases up, and write scores and tables to `output`."""
    results = [match.result(scoring.operating_point) for match in matches]
    scores = scoring.sum_up(results)
    scoring.write(output, results, scores)
    return scores
