"""Which candidates are accepted, and the chance of each to be a lesion."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lesionseg.core import Calibration, OperatingPoint, Prediction
from lesionseg.errors import ConfigError

DEFAULT_POINT = OperatingPoint("score:0.5", 0.5)


def accept(
    prediction: Prediction, point: OperatingPoint, calibration: Calibration | None
) -> Prediction:
    """The same candidates, accepted from the point's score on, with calibrated probabilities."""
    return calibrated(apply_operating_point(prediction, point), calibration)


def choose_operating_point(
    points: Sequence[OperatingPoint], name: str | None = None
) -> OperatingPoint:
    """The operating point called `name` among a bundle's `points`.

    `score:0.37` is any score in [0, 1]; `fp_per_case:1` and `sensitivity:0.9` must be among
    `points` (numbers are compared, so `fp_per_case:1.0` is `fp_per_case:1`). None is the first
    point, or score 0.5 where there is none. Raises `ConfigError` naming the points there are.

    >>> choose_operating_point((), "score:0.37").score
    0.37
    """
    if name is None:
        return points[0] if points else DEFAULT_POINT
    kind, value = _parse_point(name)
    if kind == "score" and value is not None and 0 <= value <= 1:
        return OperatingPoint(name, value)
    known = [p for p in points if value is not None and _parse_point(p.name) == (kind, value)]
    if known:
        return known[0]
    reach = [p.attainable_recall for p in points if p.attainable_recall is not None]
    attainable = f" (attainable: 0 to {reach[0]:.3g})" if kind == "sensitivity" and reach else ""
    raise ConfigError(
        f"operating_point: there is no {name!r}{attainable}. "
        f"Choose one of {', '.join([*(p.name for p in points), 'score:<0 to 1>'])}."
    )


def apply_operating_point(prediction: Prediction, point: OperatingPoint) -> Prediction:
    """The same candidates, accepted where their score reaches the operating point's."""
    candidates = tuple(replace(c, accepted=c.score >= point.score) for c in prediction.candidates)
    return replace(prediction, candidates=candidates, operating_point=point)


def without_small(prediction: Prediction, least_mm: float) -> Prediction:
    """The prediction without its candidates under `least_mm` in diameter; ids are kept.

    They join those that were removed for their size before.
    """
    candidates = tuple(c for c in prediction.candidates if c.diameter_mm >= least_mm)
    if len(candidates) == len(prediction.candidates):
        return prediction
    instances = prediction.instances
    if instances is not None:
        instances = np.where(np.isin(instances, [c.id for c in candidates]), instances, 0)
    small = [c for c in prediction.candidates if c.diameter_mm < least_mm]
    removed = sorted([*prediction.removed, *small], key=lambda c: -c.score)
    return replace(
        prediction,
        candidates=candidates,
        instances=instances,
        removed=tuple(
            replace(c, id=i, has_mask=False, accepted=False) for i, c in enumerate(removed, 1)
        ),
    )


def calibrated(prediction: Prediction, calibration: Calibration | None) -> Prediction:
    """The same candidates in the same order, with `probability` filled; as they are without one.

    Never used for ranking.
    Candidates whose scores are placeholders (`scored` False) are left as they are.
    """
    if calibration is None or not prediction.scored or not prediction.candidates:
        return prediction
    chances = calibration.probability([c.score for c in prediction.candidates])
    pairs = zip(prediction.candidates, chances.tolist(), strict=True)
    return replace(prediction, candidates=tuple(replace(c, probability=p) for c, p in pairs))


def _parse_point(name: str) -> tuple[str, float | None]:
    kind, _, value = str(name).partition(":")  # a bare number comes as one
    try:
        return kind.strip(), float(value)
    except ValueError:
        return name, None
