"""Predict the cases of one role, choose the operating point where it is still open, and score."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, OperatingPoint
from lesionseg.errors import ContentError
from lesionseg.evaluation import CaseResult, Preset, choose
from lesionseg.inference.postprocess import apply_operating_point, choose_operating_point
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.predictions import find_predictions, write_prediction
from lesionseg.pipeline.evaluate import (
    Pair,
    evaluate_pairs,
    judge_pairs,
    prediction_reader,
    read_reference,
)
from lesionseg.pipeline.progress import bar
from lesionseg.pipeline.survey import Survey

_log = logging.getLogger(__name__)

# the false-positive rates and sensitivities for which every bundle stores a score
RATES = (1.0, 0.5, 2.0, 4.0)
SENSITIVITIES = (0.8, 0.9)


@dataclass(frozen=True)
class Judged:
    """Scores of one role's cases, and the operating points they were accepted by."""

    scores: Mapping[str, Any]
    points: tuple[OperatingPoint, ...]


def judge(
    predictor: Predictor,
    found: Survey,
    role: str,
    output: Path,
    preset: Preset,
    *,
    replicates: int,
    points: tuple[OperatingPoint, ...] | None,
    seed: int,
    origin: Mapping[str, Any],
    accept: str | None = None,
) -> Judged | None:
    """Predict all labelled cases of `role` into `output/<predictions folder>` and score them.

    `points` None: they are chosen on these very cases, which makes them optimistic. The first
    point accepts the candidates: of those chosen here the one called `accept`, by default that of
    1 false positive a case. None when the role has no labelled case.
    """
    cases = [c for c in found.of_role(role) if c.reference is not None or c.annotations]
    if not cases:
        return None
    folder = output / ("validation" if role == "validation" else "predictions")
    predict_cases(predictor, found, cases, folder)
    pairs = _pairs(found, cases, folder, role)
    if points is None:
        with bar("Choosing the score") as advance:
            points = choose_points(list(judge_pairs(pairs, preset, progress=advance)))
        points = _first(points, accept)
    _accept(folder, pairs, points[0])
    with bar(f"Judging {role}") as advance:
        scores = evaluate_pairs(
            pairs,
            output,
            evaluated_on=role,
            operating_point=points[0],
            preset=preset,
            labels=found.dataset.labels,
            split_is_group_safe=found.splits.group_safe,
            replicates=replicates,
            seed=seed,
            provenance=origin,
            progress=advance,
        )
    return Judged(scores, points)


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


def check_point(name: str) -> None:
    """Refuse, before training, an operating point that `judge` could not accept by."""
    names = [f"fp_per_case:{rate:g}" for rate in RATES]
    names += [f"sensitivity:{share:g}" for share in SENSITIVITIES]
    choose_operating_point([OperatingPoint(known, 0.5) for known in names], name)


def _first(points: tuple[OperatingPoint, ...], name: str | None) -> tuple[OperatingPoint, ...]:
    """The points with the one called `name` in front."""
    first = choose_operating_point(points, name)
    return (first, *(p for p in points if p.name != first.name))


def choose_points(results: Sequence[CaseResult]) -> tuple[OperatingPoint, ...]:
    """One point for each stated rate and each stated sensitivity that can be reached."""
    points = [choose(results, fp_per_case=rate) for rate in RATES]
    for sensitivity in SENSITIVITIES:
        try:
            points.append(choose(results, sensitivity=sensitivity))
        except ContentError as error:  # out of reach, or no lesion at all
            _log.warning("No operating point for a sensitivity of %g: %s", sensitivity, error)
    return tuple(points)


def _pairs(found: Survey, cases: Sequence[CaseFiles], folder: Path, role: str) -> list[Pair]:
    files = find_predictions(folder)
    return [
        Pair(
            case=case.case,
            reference=partial(read_reference, case, found.dataset),
            prediction=prediction_reader(files[case.case]),
            group=case.group,
            role=role,
        )
        for case in cases
    ]


def _accept(folder: Path, pairs: Sequence[Pair], point: OperatingPoint) -> None:
    """Write the predictions again, accepted by the operating point."""
    for pair in pairs:
        if pair.prediction is None:
            continue
        before = pair.prediction(pair.reference().geometry)
        after = replace(apply_operating_point(before, point), case=pair.case)
        write_prediction(folder, after)
