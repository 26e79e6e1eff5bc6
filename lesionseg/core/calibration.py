"""Calibration: the map from a candidate's score to its chance of being a lesion."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CalibrationKind = Literal["platt", "isotonic"]


@dataclass(frozen=True)
class Calibration:
    """Score to probability, by the logit x of the score.

    `platt`: 1 / (1 + exp(−(`intercept` + `slope`·x))). `isotonic`: linear between the `knots`
    (ascending logits) and their `probabilities`, flat beyond. `fitted_on`: the role of the cases it
    was fitted on, `validation` or `out-of-fold`; `n_true` and `n_false`: their candidates.

    >>> Calibration("platt", intercept=0.0, slope=1.0).probability([0.25, 0.5]).tolist()
    [0.25, 0.5]
    """

    kind: CalibrationKind
    intercept: float = 0.0
    slope: float = 1.0
    knots: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    fitted_on: str | None = None
    n_true: int = 0
    n_false: int = 0

    def probability(self, scores: ArrayLike) -> NDArray[np.float64]:
        """The chance of being a lesion of each score in [0, 1]."""
        x = logit(scores)
        if self.kind == "isotonic":
            return np.interp(x, self.knots, self.probabilities)
        return 1 / (1 + np.exp(-np.clip(self.intercept + self.slope * x, -500, 500)))


def logit(p: ArrayLike) -> NDArray[np.float64]:
    """ln(p/(1−p)), with p kept a millionth off 0 and 1."""
    kept = np.clip(np.asarray(p, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(kept / (1 - kept)), dtype=np.float64)
