"""Is this a scan that the network can read? Its statistics against those of the training scans.

Of each kind of number the bundle keeps mean, scale, shrunk precision and range, and the distance
that training scans stay under when they are left out of these; no table of scans. A scan beyond a
limit is still predicted: one sentence says what is unlike the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from lesionseg.core import Geometry, InputVerdict, Volume
from lesionseg.errors import BundleError
from lesionseg.inference.scan_statistics import (
    N_THUMBNAIL,
    ScanStatistics,
    Vector,
    entry_names,
    orientation,
    scan_statistics,
)
from lesionseg.plan.plan import Plan

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
_LOGARITHMS = ("grid", "sharpness")
_TITLES: Mapping[str, str] = {
    "grid": "another grid",
    "empty": "empty parts",
    "intensity": "other intensities",
    "sharpness": "another sharpness, as by thicker slices or noise",
    "orientation": "turned, mirrored or another anatomy",
    "features": "other image features",
}
LEVEL, TOGETHER = 0.99, 0.97  # of training scans, left out, under a kind's limit; under all limits
LEAST_SCANS, N_SCANS = 5, 64  # needed for a check, and looked at
_TENSORS = ("mean", "scale", "precision", "low", "high", "limit")


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


@dataclass(frozen=True, eq=False)
class InputCheck:
    """The training scans' statistics, and what a new scan's are compared with.

    `norms` by kind; `template` `[C, 8, …]` is the mean thumbnail.
    """

    norms: Mapping[str, Norm]
    template: NDArray[np.float32]

    def __call__(self, scan: ScanStatistics, plan: Plan) -> InputVerdict:
        """How unlike the training scans a scan is: 1 is the limit, above which a sentence says why.

        Raises `BundleError` for statistics of another network.
        """
        vectors, ratios = self._compared(scan)
        score = max(ratios.values())
        beyond = [kind for kind in FLOORS if ratios.get(kind, 0) > 1]
        if not beyond:
            return InputVerdict(score)
        first, *others = beyond
        reason = self._swapped(scan, ratios, plan) or _sentence(
            first, vectors[first], self.norms[first], others, plan
        )
        return InputVerdict(score, reason)

    def without(self, missing: Sequence[int]) -> "InputCheck":
        """For scans that lack channels: what can be said of the grid and of the others alone."""
        n, norms = len(self.template), {"grid": self.norms["grid"]}
        for kind, n_pairs in (("intensity", comb(n, 2)), ("empty", 0), ("sharpness", 0)):
            norm = self.norms[kind]
            each = (len(norm.mean) - n_pairs) // n
            owners = [{c} for c in range(n) for _ in range(each)]
            owners += [set(pair) for pair in combinations(range(n), 2)][:n_pairs]
            norms[kind] = norm.of([i for i, of in enumerate(owners) if not of & set(missing)])
        return InputCheck(norms, np.delete(self.template, missing, 0))

    def _compared(self, scan: ScanStatistics) -> tuple[dict[str, Vector], dict[str, float]]:
        """The vectors of each kind, and their distances as shares of the limits."""
        turned = orientation(scan.thumbnail, self.template)
        vectors = {**scan.vectors, "orientation": turned}
        shared = {kind: norm for kind, norm in self.norms.items() if kind in vectors}
        return vectors, {k: norm.distance(vectors[k]) / norm.limit for k, norm in shared.items()}

    def _swapped(self, scan: ScanStatistics, seen: Mapping[str, float], plan: Plan) -> str:
        """In what other order of the channels the scan would be like the training scans, if any."""
        names = plan.channel_names
        orders = permutations(range(len(names))) if 1 < len(names) < 6 else ()
        fits: dict[tuple[int, ...], float] = {}
        for order in orders:
            n_pairs = {"intensity": comb(len(order), 2), "empty": 0, "sharpness": 0}
            vectors = {k: _reordered(scan.vectors[k], order, n) for k, n in n_pairs.items()}
            _, ratios = self._compared(ScanStatistics(vectors, scan.thumbnail[list(order)]))
            fits[order] = max(ratios.values())
        best = min(fits, key=lambda o: fits[o], default=())
        if not best or fits[best] > 1 or max(seen[kind] for kind in ratios) <= 1:
            return ""
        given = ", ".join(names[best.index(k)] for k in range(len(names)))
        return f"The channels seem swapped: they look like {given}."

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, float32, for a safetensors file."""
        arrays: dict[str, Any] = {"template": self.template}
        for kind, norm in self.norms.items():
            arrays |= {f"{kind}.{name}": np.atleast_1d(getattr(norm, name)) for name in _TENSORS}
        return {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], plan: Plan, where: object) -> "InputCheck":
        """Read `tensors` back; raises `BundleError` naming `where` for what does not fit a plan."""
        arrays = {name: t.double().numpy() for name, t in tensors.items()}
        sizes = {kind: len(names) for kind, names in entry_names(plan).items()}
        kinds = [kind for kind in FLOORS if f"{kind}.mean" in arrays]
        names = {"template", *(f"{kind}.{name}" for kind in kinds for name in _TENSORS)}
        shape = (len(plan.channel_names), *(N_THUMBNAIL,) * plan.dims)
        fits = names == set(arrays) and arrays["template"].shape == shape
        for kind in kinds if fits else ():
            n = sizes.get(kind, arrays[f"{kind}.mean"].size)
            shapes = {name: arrays[f"{kind}.{name}"].shape for name in _TENSORS}
            expected = dict.fromkeys(_TENSORS, (n,)) | {"precision": (n, n), "limit": (1,)}
            fits &= shapes == expected and bool((arrays[f"{kind}.scale"] > 0).all())
            fits &= bool((arrays[f"{kind}.limit"] > 0).all())
        if not (
            fits and set(sizes) <= set(kinds) and all(np.isfinite(a).all() for a in arrays.values())
        ):
            raise BundleError(
                "The statistics of the training scans do not fit the plan.",
                where=where,
                expected=f"finite numbers of the kinds {', '.join(sizes)}",
                remedy="use weights, statistics and plan of the same training run.",
            )
        norms = {}
        for kind in kinds:
            mean, scale, precision, low, high, limit = (arrays[f"{kind}.{n}"] for n in _TENSORS)
            norms[kind] = Norm(mean, scale, precision, low, high, float(limit[0]))
        return cls(norms, arrays["template"].astype(np.float32))


def judge_input(
    check: InputCheck | None, image: Volume, file: Geometry, network: nn.Module, plan: Plan
) -> InputVerdict:
    """Whether a prepared image `[C, *plan]` of a file's grid is like those of the training.

    Without a check only a channel without any contrast is found. Of missing channels nothing is
    asked, nor of the network's features without them.
    """
    array, missing, lacking = image.array, image.missing, plan.names_of(image.missing)
    if missing:
        names = [n for c, n in enumerate(plan.channel_names) if c not in missing]
        plan, array = plan.with_(channel_names=tuple(names)), np.delete(array, missing, 0)
        check, network = check and check.without(missing), nn.Identity()
    for name, channel in zip(plan.channel_names, array, strict=True):
        if channel.size == 0 or channel.min() == channel.max():
            empty = f"Channel {name} is empty: all its voxels are equal."
            return InputVerdict(warning=empty, missing=lacking)
    verdict = InputVerdict()
    if check is not None:
        verdict = check(scan_statistics(array, file, network, plan), plan)
    return replace(verdict, missing=lacking)


def make_input_check(
    scans: Sequence[ScanStatistics], groups: Sequence[str], grids: Vector
) -> InputCheck | None:
    """What new scans are compared with; None for fewer than five scans or a single patient.

    Limits are such that a scan keeps them whose patient (`groups`) is left out of the statistics.
    `grids`: rows of `grid_vector`, of the training scans' files in any order.
    """
    if len(scans) < LEAST_SCANS or len(set(groups)) < 2:
        return None
    owners = np.array(groups)
    thumbnails = np.stack([scan.thumbnail for scan in scans])
    kinds = [kind for kind in FLOORS if kind in scans[0].vectors]
    table = {kind: np.stack([scan.vectors[kind] for scan in scans]) for kind in kinds}
    table["orientation"] = np.stack(
        [
            orientation(scan.thumbnail, thumbnails[owners != group].mean(0))
            for scan, group in zip(scans, groups, strict=True)
        ]
    )
    left_out = {kind: _left_out(kind, rows, owners) for kind, rows in table.items()}
    limits = {kind: _limit(distances) for kind, distances in left_out.items()}
    worst = np.max([left_out[kind] / limits[kind] for kind in table], axis=0)
    factor = max(1.0, float(np.quantile(worst, TOGETHER)))
    norms = {kind: _norm(kind, rows, limits[kind] * factor) for kind, rows in table.items()}
    alone = _left_out("grid", grids, np.arange(len(grids)))
    return InputCheck({"grid": _norm("grid", grids, _limit(alone)), **norms}, thumbnails.mean(0))


def _norm(kind: str, rows: Vector, limit: float = 1.0) -> Norm:
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


def _left_out(kind: str, rows: Vector, owners: NDArray[Any]) -> Vector:
    """The distance of each row from those of other owners, `[n]`."""
    distances = np.zeros(len(rows))
    for owner in np.unique(owners):
        norm = _norm(kind, rows[owners != owner])
        for i in np.flatnonzero(owners == owner):
            distances[i] = norm.distance(rows[i])
    return distances


def _limit(distances: Vector) -> float:
    """What 99 % of further distances stay under, if their logarithms are normal; at least 1."""
    logs = np.log(np.maximum(distances, 0.2))
    n = len(logs)
    reach = stats.t.ppf(LEVEL, n - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / n)
    return max(1.0, float(np.exp(logs.mean() + reach)))


def _reordered(vector: Vector, order: Sequence[int], n_pairs: int) -> Vector:
    """Numbers per channel, then `n_pairs` per pair of channels, with these in another order."""
    each, paired = np.split(vector, [len(vector) - n_pairs])
    pairs = list(combinations(range(len(order)), 2))[:n_pairs]
    moved = [pairs.index((min(p), max(p))) for p in ((order[a], order[b]) for a, b in pairs)]
    rows = each.reshape(len(order), -1)[list(order)]
    return np.concatenate([rows.reshape(-1), paired[moved]])


def _sentence(kind: str, vector: Vector, norm: Norm, others: Sequence[str], plan: Plan) -> str:
    """What is unlike the training scans: the number furthest from theirs, and other kinds."""
    title, also = _TITLES[kind].capitalize(), "; ".join(_TITLES[other] for other in others)
    end = f" (also: {also})." if also else "."
    if kind == "features":
        return f"{title} than in training: the network may not know what this scan shows{end}"
    i = int(np.argmax(np.abs(norm.deviations(vector))))
    seen, low, high = (float(v[i]) for v in (vector, norm.low, norm.high))
    if kind in _LOGARITHMS:
        seen, low, high = np.exp([seen, low, high]).tolist()
    what = f"{entry_names(plan)[kind][i]} is {seen:.3g}, in training {low:.3g} to {high:.3g}"
    return f"{title}: {what}{end}"
