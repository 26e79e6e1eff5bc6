"""Predict the cases of one role, choose what is still open on development cases, and score."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.inference.decision import Watch
from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.judging.case_pairs import (
    See,
    openers,
)
from lesionseg.pipeline.judging.choice import make_choice
from lesionseg.pipeline.judging.role_steps import (
    RoleScores,
    Rules,
    folder_without,
    labelled,
    match,
    pairs_of,
    score,
    score_chosen,
    undecided,
    write_predictions,
)
from lesionseg.pipeline.judging.voxel_calibration import LevelCounts, choose_voxel_calibration

_log = logging.getLogger(__name__)


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
        again = predictor.with_plan(plan.with_(voxel_calibration=fit))
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
    pairs = pairs_of(survey, cases, folder, "validation")
    matches = match(pairs, rules, see)
    choice = make_choice(undecided(matches), rules.choice, chosen_on="validation")
    choice = choice.matched_by(rules.preset.match_rule)
    scoring = rules.scoring(survey, cases, "validation", choice.points[0])
    return RoleScores(score_chosen(pairs, matches, choice, folder, run, scoring), choice)


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
        folder, point = output / "predictions", predictor.operating_point(missing)
        write_predictions(predictor, survey, cases, folder, missing=missing)
        matches = match(pairs_of(survey, cases, folder, role), rules)
        return score(matches, output, rules.scoring(survey, cases, role, point))

    for known in predictor.plan.channel_sets:
        lacking, folder = (
            predictor.plan.names_of(known.missing),
            folder_without(output, known.missing),
        )
        if judge(known.missing, folder) is not None:
            _log.info("Cases of %s without %s: scores in %s", role, ", ".join(lacking), folder)
    return judge((), output)
