"""What training scans are like: of each kind of number their mean, scale, precision and range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lesionseg.errors import BundleError
from lesionseg.inference.scan_statistics import Vector

# Causes before what follows from them, with the difference that no kind is to warn of, in its own
# units: natural logarithms, shares, standard deviations of the normalised image, correlations;
# None: a tenth of the features' own spread
FLOORS: Mapping[str, float | None] = {
    "grid": 0.1,
    "empty": 0.03,
    "intensity": 0.1,
    "sharpness": 0.1,
    "orientation": 0.05,
    "features": None,
}
LEVEL = 0.99  # of training scans, left out, under a kind's limit


@dataclass(frozen=True, eq=False)
class Norm:
    """The training scans' vectors of one kind `[D]`, without the scans.

    `precision` `[D, D]` is that of the vector in units of `scale`; `low` and `high` are the least
    and most of each entry; `limit` is the distance from which a scan is unlike them.
    """

    mean: Vector
    scale: Vector
    precision: Vector
    low: Vector
    high: Vector
    limit: float

    def distance(self, vector: Vector) -> float:
        """Mahalanobis distance over the root of D: about 1 for a training scan."""
        z = self.deviations(vector)
        return float(np.sqrt(max(float(z @ self.precision @ z), 0.0) / len(z)))

    def of(self, entries: Sequence[int]) -> "Norm":
        """The norm of some entries alone, whatever the others may be; the limit stays."""
        covariance = np.linalg.inv(self.precision)[np.ix_(entries, entries)]
        mean, scale, low, high = (
            v[list(entries)] for v in (self.mean, self.scale, self.low, self.high)
        )
        return Norm(mean, scale, np.linalg.inv(covariance), low, high, self.limit)

    def deviations(self, vector: Vector) -> Vector:
        """Each entry in units of the scale."""
        if vector.shape != self.mean.shape:
            raise BundleError(
                "The statistics of the training scans do not fit the network.",
                seen=f"{len(self.mean)} numbers",
                expected=len(vector),
                remedy="copy the bundle again.",
            )
        return np.asarray((vector - self.mean) / self.scale)


def norm_of(kind: str, rows: Vector, limit: float = 1.0) -> Norm:
    """Mean, scale and shrunk precision of vectors `[n, D]`."""
    mean, spread = rows.mean(0), rows.std(0, ddof=1)
    floor = FLOORS[kind]
    scale = np.hypot(spread, 0.1 * np.median(spread) + 1e-6 if floor is None else floor)
    z = (rows - mean) / scale
    precision = np.linalg.inv(_shrunk(z.T @ z / (len(z) - 1), len(z))).astype(np.float64)
    return Norm(mean, scale, precision, rows.min(0), rows.max(0), limit)


def _shrunk(covariance: Vector, n: int) -> Vector:
    """Oracle-approximating shrinkage towards a ball (Chen et al. 2010, IEEE TSP 58:5016).

    A twentieth is added to the diagonal: entries without any spread are not to decide.
    """
    p = len(covariance)
    mean = float(np.trace(covariance)) / p
    square = float(np.mean(covariance**2))
    rest = (n + 1) * (square - mean**2 / p)
    share = 1.0 if rest <= 0 else min(1.0, (square + mean**2) / rest)
    return np.asarray((1 - share) * covariance + (share * mean + 0.05) * np.eye(p))


def left_out_distances(kind: str, rows: Vector, owners: NDArray[Any]) -> Vector:
    """The distance of each row from those of other owners, `[n]`."""
    distances = np.zeros(len(rows))
    for owner in np.unique(owners):
        norm = norm_of(kind, rows[owners != owner])
        for i in np.flatnonzero(owners == owner):
            distances[i] = norm.distance(rows[i])
    return distances


def limit_of(distances: Vector) -> float:
    """What 99 % of further distances stay under, if their logarithms are normal; at least 1."""
    logs = np.log(np.maximum(distances, 0.2))
    n = len(logs)
    reach = stats.t.ppf(LEVEL, n - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / n)
    return max(1.0, float(np.exp(logs.mean() + reach)))
