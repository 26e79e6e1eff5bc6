"""Predict the cases of one role, choose what is still open on development cases, and score."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Geometry, OperatingPoint, Prediction, Volume
from lesionseg.errors import DatasetError
from lesionseg.evaluation import CaseResult, MatchedCase, Preset
from lesionseg.inference.candidates.acceptance import without_small
from lesionseg.inference.decision import Watch
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_image
from lesionseg.io.predictions import find_predictions, write_prediction
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.pipeline.judging.case_pairs import (
    CasePair,
    Scoring,
    See,
    match_pairs,
    openers,
    prediction_reader,
    read_columns,
)
from lesionseg.pipeline.judging.choice import MISSING, Choice, ChoiceSettings, make_choice
from lesionseg.pipeline.judging.least_size import choose_least_size
from lesionseg.pipeline.judging.voxel_calibration import LevelCounts, choose_voxel_calibration
from lesionseg.pipeline.predict.case_pipeline import predict_volumes
from lesionseg.pipeline.run.outcome import bar
from lesionseg.plan.plan import Plan

_log = logging.getLogger(__name__)

OUT_OF_FOLD = "out-of-fold"


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

    def without(self, missing: Sequence[int]) -> Path:
        """Where their predictions without these channels lie."""
        return _without(self.run, missing)

    @property
    def cases(self) -> list[CaseFiles]:
        """The whole cases that its network has not learned from."""
        return labelled(self.survey, "validation")

    def cases_without(self, missing: tuple[int, ...]) -> list[CaseFiles]:
        """The same, to be shown without these channels, and those that lack them anyway."""
        return self.cases + (labelled(self.survey, "validation", missing) if missing else [])


def judge_validation(
    predictor: Predictor, survey: Survey, run: Path, rules: Rules, see: See | None = None
) -> RoleScores | None:
    """Predict the validation cases into `run/validation`, choose on them, and score them.

    Where these cases show that outlines gain by it, voxels are calibrated and all is predicted
    again (`voxel_calibration`). None without a labelled validation case. `see`: as in
    `judge_predicted`.
    """
    cases, folder, plan = labelled(survey, "validation"), run / "validation", predictor.plan
    if not cases:
        return None
    if not rules.choice.calibrate_voxels:
        write_predictions(predictor, survey, cases, folder)
        return judge_predicted(survey, run, rules, see)
    counts, opened = [], openers(cases, survey.dataset)

    def count(files: CaseFiles) -> Watch:
        counts.append(LevelCounts(files.group))
        return counts[-1].watch(opened[files.case]()[0], plan)

    write_predictions(predictor, survey, cases, folder, count)
    fit, why = choose_voxel_calibration(counts, plan.candidate_rule.extent, "validation")
    _log.info("Chosen, voxel calibration: %s", why)
    if fit is not None:
        again = predictor.following(plan.with_(voxel_calibration=fit))
        write_predictions(again, survey, cases, folder)
    judged = judge_predicted(survey, run, rules, see)
    reasons = {**judged.choice.reasons, "voxel calibration": why}
    choice = replace(judged.choice, voxel_calibration=fit, reasons=reasons)
    return RoleScores(judged.scores, choice)


def judge_predicted(survey: Survey, run: Path, rules: Rules, see: See | None = None) -> RoleScores:
    """Choose on the predictions of the validation cases in `run/validation`, and score them.

    What is chosen on the cases it is scored on flatters; the scores say so. A case is opened and
    matched once; `see` is shown its image, reference and prediction, before anything is chosen.
    """
    cases, folder = labelled(survey, "validation"), run / "validation"
    pairs = _pairs(survey, cases, folder, "validation")
    matches = _matches(pairs, rules, see)
    choice = make_choice(_undecided(matches), rules.choice, chosen_on="validation")
    choice = choice.matched_by(rules.preset.match_rule)
    scoring = rules.scoring(survey, cases, "validation", choice.points[0])
    return RoleScores(_score_chosen(pairs, matches, choice, folder, run, scoring), choice)


def judge_out_of_fold(
    survey: Survey, folds: Sequence[FoldRun], output: Path, rules: Rules
) -> RoleScores:
    """Choose on the predictions of the cases that each fold's network never saw, and score them.

    All cases are written again, as chosen, to `output/predictions`; the folds stay as they are.
    Raises `DatasetError` for a case that validates in several folds.
    """
    fold_of = _fold_of(folds)
    pairs = [p for f in folds for p in _pairs(f.survey, f.cases, f.folder, "validation")]
    matches = {0.0: _matches(pairs, rules)}

    def judge(diameter: float) -> list[CaseResult]:
        matches[diameter] = _matches([_without_small(pair, diameter) for pair in pairs], rules)
        return _undecided(matches[diameter])

    least = choose_least_size(_undecided(matches[0.0]), judge, rules.choice)
    choice = make_choice(
        least.results,
        rules.choice,
        chosen_on=OUT_OF_FOLD,
        fold_of=fold_of,
        min_diameter_mm=least.diameter_mm,
        reasons={"candidates: least diameter": least.why},
    ).matched_by(rules.preset.match_rule)
    pair_of = {pair.case: pair for pair in pairs}
    match_of = {match.case: match for match in matches[least.diameter_mm]}
    cases = [c for c in survey.dataset.cases if c.case in fold_of]
    scores = _score_chosen(
        [pair_of[c.case] for c in cases],
        [match_of[c.case] for c in cases],
        choice,
        output / "predictions",
        output,
        rules.scoring(survey, cases, "validation", choice.points[0]),
    )
    return RoleScores(scores, choice)


def judge_missing(predictor: Predictor, survey: Survey, run: Path, rules: Rules) -> Plan:
    """The predictor's plan, with what is chosen on validation cases shown without some channels.

    Those that lack just these take part. Predictions go to `run/without/<places of the channels>`.
    """
    whole = FoldRun(0, survey, run)
    for known in predictor.plan.channel_sets:
        cases, folder = whole.cases_without(known.missing), whole.without(known.missing)
        write_predictions(predictor, survey, cases, folder, missing=known.missing)
    return choose_missing(predictor.plan, [whole], rules)


def choose_missing(plan: Plan, folds: Sequence[FoldRun], rules: Rules) -> Plan:
    """The plan, with what is chosen on the predictions of each of its `channel_sets`.

    By the same rules as where no channel is missing; several folds choose out of fold.
    """
    sets, why, several = [], [], len(folds) > 1
    for known in plan.channel_sets:
        pairs = [
            _without_small(pair, plan.candidate_rule.min_diameter_mm)
            for fold in folds
            for pair in _pairs(
                fold.survey,
                fold.cases_without(known.missing),
                fold.without(known.missing),
                "validation",
            )
        ]
        lacking = ", ".join(plan.names_of(known.missing))
        _log.info("Without %s:", lacking)
        choice = make_choice(
            _undecided(_matches(pairs, rules)),
            rules.choice,
            chosen_on=OUT_OF_FOLD if several else "validation",
            fold_of=_fold_of(folds, known.missing) if several else None,
        ).matched_by(rules.preset.match_rule)
        sets.append(replace(known, operating_points=choice.points, calibration=choice.calibration))
        why.append(f"without {lacking}: {choice.reasons['operating point']}")
    if not sets:
        return plan
    return plan.with_(channel_sets=tuple(sets), reasons={**plan.reasons, MISSING: " ".join(why)})


def judge_untouched(
    predictor: Predictor, survey: Survey, output: Path, role: str, rules: Rules
) -> Mapping[str, Any] | None:
    """Predict and score the cases of a role by a predictor whose plan is complete; None if none.

    The scores are those of whole cases. Cases that lack a channel are judged by themselves, in
    `output/without/<places of the channels>`, with the operating point that is theirs.
    """

    def judge(missing: tuple[int, ...], output: Path) -> Mapping[str, Any] | None:
        cases = labelled(survey, role, missing)
        if not cases:
            return None
        folder, point = output / "predictions", predictor.decide.point(missing)
        write_predictions(predictor, survey, cases, folder, missing=missing)
        matches = _matches(_pairs(survey, cases, folder, role), rules)
        return _score(matches, output, rules.scoring(survey, cases, role, point))

    for known in predictor.plan.channel_sets:
        lacking, folder = predictor.plan.names_of(known.missing), _without(output, known.missing)
        if judge(known.missing, folder) is not None:
            _log.info("Cases of %s without %s: scores in %s", role, ", ".join(lacking), folder)
    return judge((), output)


def labelled(survey: Survey, role: str, missing: tuple[int, ...] = ()) -> list[CaseFiles]:
    """The cases of a role that can be judged: with a reference, and lacking just these channels."""
    cases = [c for c in survey.of_role(role) if c.missing == missing]
    return [c for c in cases if c.reference is not None or c.annotations]


def _without(run: Path, missing: Sequence[int]) -> Path:
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


def _fold_of(folds: Sequence[FoldRun], missing: tuple[int, ...] = ()) -> dict[str, int]:
    """The fold of each case."""
    fold_of: dict[str, int] = {}
    for fold in folds:
        cases = [c.case for c in fold.cases_without(missing)]
        twice = [case for case in cases if case in fold_of]
        if twice:
            raise DatasetError(
                "A case validates in more than one fold.",
                where=f"fold {fold.number}",
                seen=", ".join(twice[:5]),
            )
        fold_of |= dict.fromkeys(cases, fold.number)
    return fold_of


def _pairs(survey: Survey, cases: Sequence[CaseFiles], folder: Path, role: str) -> list[CasePair]:
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


def _matches(pairs: Sequence[CasePair], rules: Rules, see: See | None = None) -> list[MatchedCase]:
    with bar("Judging") as advance:
        return list(match_pairs(pairs, rules.preset, see=see, progress=advance))


def _undecided(matches: Sequence[MatchedCase]) -> list[CaseResult]:
    """All that a choice needs to know of the cases."""
    return [match.result(surface=False) for match in matches]


def _without_small(pair: CasePair, diameter: float) -> CasePair:
    """The pair without its candidates under a diameter."""
    read = pair.prediction
    if read is None:
        return pair

    def large(geometry: Geometry, read: Callable[[Geometry], Prediction] = read) -> Prediction:
        return without_small(read(geometry), diameter)

    return replace(pair, prediction=large)


def _score_chosen(
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
    return _score(decided, output, scoring)


def _score(matches: Sequence[MatchedCase], output: Path, scoring: Scoring) -> Mapping[str, Any]:
    results = [match.result(scoring.operating_point) for match in matches]
    scores = scoring.sum_up(results)
    scoring.write(output, results, scores)
    return scores
