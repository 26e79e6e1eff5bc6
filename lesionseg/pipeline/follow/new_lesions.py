"""New lesions as a prediction of their own, judged as any other: their rate, sensitivity, score."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lesionseg.core import Candidate, OperatingPoint, Prediction, Reference
from lesionseg.evaluation import CaseResult, choose, find_preset, match_case
from lesionseg.evaluation.change import LesionChange
from lesionseg.evaluation.statistics.operating_point import describe, with_intervals

_log = logging.getLogger(__name__)

HALF_SCORE_MM = 10.0  # a lesion of this diameter has score ½ where only its size ranks it
CHOSEN_ON = "stable"  # the role of the pairs that an operating point was chosen on


def new_lesions(prediction: Prediction, changes: Sequence[LesionChange]) -> Prediction:
    """The later visit's prediction with nothing but the new lesions that exceed the grid's error.

    Bare masks have no scores; there the diameter d ranks, as d / (d + 10 mm).
    """
    ids = {c.lesion_after[0] for c in changes if c.state == "new" and c.accepted}
    candidates = [_ranked(c, prediction.scored) for c in prediction.candidates if c.id in ids]
    instances = prediction.instances
    if instances is not None:
        instances = np.where(np.isin(instances, sorted(ids)), instances, 0).astype(np.int32)
    candidates.sort(key=lambda c: (-c.score, c.id))
    return replace(
        prediction, candidates=tuple(candidates), instances=instances, scored=True, removed=()
    )


def apply_point(
    changes: Sequence[LesionChange], new: Prediction, point: OperatingPoint | None
) -> list[LesionChange]:
    """The changes with the scores of new lesions; those below the operating point do not count."""
    score_of = {c.id: c.score for c in new.candidates}
    least = 0.0 if point is None else point.score
    return [
        replace(c, score=(score := score_of.get(c.lesion_after[0])), accepted=(score or 0) >= least)
        if c.state == "new" and c.accepted
        else c
        for c in changes
    ]


def judge_new(
    new: Prediction, reference: Reference | None, point: OperatingPoint | None = None
) -> CaseResult:
    """New lesions against a reference of change; None: against a pair in which nothing is new."""
    role = "unknown"
    if reference is None:
        shape, role = new.geometry.shape, CHOSEN_ON
        reference = Reference(new.geometry, np.zeros(shape, dtype=np.uint8))
    match = match_case(
        reference, new, find_preset("lesionseg"), case=new.case, group=new.case, role=role
    )
    return match.result(point)


def choose_point(
    results: Sequence[CaseResult], rate: float, confidence: float | None = None
) -> OperatingPoint:
    """The lowest score with at most `rate` false new lesions per stable pair, with its interval.

    With `confidence`, the lowest by which as many other pairs keep to the rate with that chance
    (`most_false_positives`); a warning where there are too few pairs for that. Where all new
    lesions together stay within it, all are accepted: score 0. The name's `fp_per_case` are false
    new lesions per pair.
    """
    point = choose(results, fp_per_case=rate, confidence=confidence, quiet=True)
    if confidence is not None and point.confidence is None:
        _log.warning(
            "%d stable pairs are too few to keep to %g false new lesions per pair on others.",
            len(results),
            rate,
        )
    if point.score <= min((c.score or 0.0 for r in results for c in r.candidates), default=1.0):
        point = replace(describe(point.name, 0.0, results), confidence=point.confidence)
    return with_intervals(point, results)


def _ranked(candidate: Candidate, scored: bool) -> Candidate:
    diameter = candidate.diameter_mm
    score = candidate.score if scored else diameter / (diameter + HALF_SCORE_MM)
    return replace(candidate, score=score, accepted=True)
