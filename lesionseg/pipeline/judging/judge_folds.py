"""Choose and score on several folds, and on cases that are shown without some channels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError
from lesionseg.evaluation import CaseResult
from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.judging.choice import MISSING, make_choice
from lesionseg.pipeline.judging.least_candidate_size import choose_least_size
from lesionseg.pipeline.judging.role_steps import (
    RoleScores,
    Rules,
    folder_without,
    labelled,
    match,
    pair_without_small,
    pairs_of,
    score_chosen,
    undecided,
    write_predictions,
)
from lesionseg.plan.plan import Plan

_log = logging.getLogger(__name__)

OUT_OF_FOLD = "out-of-fold"


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
        return folder_without(self.run, missing)

    @property
    def cases(self) -> list[CaseFiles]:
        """The whole cases that its network has not learned from."""
        return labelled(self.survey, "validation")

    def cases_without(self, missing: tuple[int, ...]) -> list[CaseFiles]:
        """The same, to be shown without these channels, and those that lack them anyway."""
        return self.cases + (labelled(self.survey, "validation", missing) if missing else [])


def judge_out_of_fold(
    survey: Survey, folds: Sequence[FoldRun], output: Path, rules: Rules
) -> RoleScores:
    """Choose on the predictions of the cases that each fold's network never saw, and score them.

    All cases are written again, as chosen, to `output/predictions`; the folds stay as they are.
    Raises `DatasetError` for a case that validates in several folds.
    """
    fold_of = _fold_of(folds)
    pairs = [p for f in folds for p in pairs_of(f.survey, f.cases, f.folder, "validation")]
    matches = {0.0: match(pairs, rules)}

    def judge(diameter: float) -> list[CaseResult]:
        matches[diameter] = match([pair_without_small(pair, diameter) for pair in pairs], rules)
        return undecided(matches[diameter])

    least = choose_least_size(undecided(matches[0.0]), judge, rules.choice)
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
    scores = score_chosen(
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
            pair_without_small(pair, plan.candidate_rule.min_diameter_mm)
            for fold in folds
            for pair in pairs_of(
                fold.survey,
                fold.cases_without(known.missing),
                fold.without(known.missing),
                "validation",
            )
        ]
        lacking = ", ".join(plan.names_of(known.missing))
        _log.info("Without %s:", lacking)
        choice = make_choice(
            undecided(match(pairs, rules)),
            rules.choice,
            chosen_on=OUT_OF_FOLD if several else "validation",
            fold_of=_fold_of(folds, known.missing) if several else None,
        ).matched_by(rules.preset.match_rule)
        sets.append(replace(known, operating_points=choice.points, calibration=choice.calibration))
        why.append(f"without {lacking}: {choice.reasons['operating point']}")
    if not sets:
        return plan
    return plan.with_(channel_sets=tuple(sets), reasons={**plan.reasons, MISSING: " ".join(why)})


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
