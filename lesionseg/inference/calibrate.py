"""The calibrated chance of each candidate to be a lesion, beside its score."""

from dataclasses import replace

from lesionseg.core import Calibration, Prediction


def calibrated(prediction: Prediction, calibration: Calibration | None) -> Prediction:
    """The same candidates in the same order, with `probability` filled; as they are without one.

    Never used for ranking: isotonic steps would tie candidates that the score tells apart.
    Candidates whose scores are placeholders (`scored` False) are left as they are.
    """
    if calibration is None or not prediction.scored or not prediction.candidates:
        return prediction
    chances = calibration.probability([c.score for c in prediction.candidates])
    pairs = zip(prediction.candidates, chances.tolist(), strict=True)
    return replace(prediction, candidates=tuple(replace(c, probability=p) for c, p in pairs))
