"""How well the lesion load of a scan agrees with the reference: bias, limits and correlation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import EdgeCase
from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights
from lesionseg.evaluation.statistics.pooled import PooledResults

_Z95 = 1.959963984540054
NAMES = ("bias", "lower_limit", "upper_limit", "icc")


def load_numbers(summary: PooledResults) -> dict[str, Any]:
    """Agreement of volume (ml; None in 2-D) and of number of lesions by case."""
    results = summary.results
    volumes = [(r.reference_ml, r.predicted_ml) for r in results]
    counts = [(len(r.lesions), sum(c.accepted for c in r.candidates)) for r in results]
    return {
        "lesion_load": {
            "volume_ml": _agreement(summary, volumes, edge_cases.NO_VOLUME),
            "n_lesions": _agreement(summary, counts, edge_cases.NO_CASE),
        }
    }


def _agreement(
    summary: PooledResults,
    pairs: Sequence[tuple[float | None, float | None]],
    undefined: EdgeCase,
) -> dict[str, Any]:
    """The numbers of `NAMES` of all cases that have both, with intervals."""
    known = [x is not None and y is not None for x, y in pairs]
    reference, predicted = (
        np.array([0.0 if v is None else v for v in side], dtype=np.float64)
        for side in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    sums = np.stack(
        [
            summary.sums((moment * np.array(known, dtype=np.float64)).tolist())
            for moment in _moments(reference, predicted)
        ]
    )
    numbers = summary.estimator.bootstrapped(agreement_statistic(sums), sums[0], undefined, 6)
    found = dict(zip(NAMES, numbers, strict=True))
    return {"n": sum(known), **{name: one.to_json() for name, one in found.items()}}


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(x), y - x, (y - x) ** 2, x + y, (x + y) ** 2])


def agreement_statistic(sums: NDArray[np.float64]) -> Statistic:
    """Statistic of `NAMES` from sums by group `[5, groups]`: 1, d, d², s, s² of cases.

    d is predicted minus reference, s their sum. Bias: mean d; limits: bias ± 1.96 standard
    deviations of d (Bland & Altman 1986). ICC(A,1): two-way, absolute agreement of single
    measurements (McGraw & Wong 1996). Undefined for under two cases.
    """

    def statistic(weights: Weights) -> NDArray[np.float64]:
        n, d, d2, s, s2 = weights @ sums.T[:, 0], *(weights @ column for column in sums[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = d / n
            within = np.maximum(d2 - n * bias**2, 0.0) / (n - 1)
            between = np.maximum(s2 - s**2 / n, 0.0) / (n - 1)
            rows, rest, columns = between / 2, within / 2, n * bias**2 / 2
            icc = (rows - rest) / (rows + rest + 2 / n * (columns - rest))
        spread = _Z95 * np.sqrt(within)
        found = np.stack([bias, bias - spread, bias + spread, icc], axis=1)
        return np.where(n[:, None] > 1, found, np.nan)

    return statistic
