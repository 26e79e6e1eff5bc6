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
from lesionseg.inference.training_norms import (
    FLOORS,
    Norm,
    left_out_distances,
    limit_of,
    norm_of,
)
from lesionseg.plan.plan import Plan

_LOGARITHMS = ("grid", "sharpness")
_TITLES: Mapping[str, str] = {
    "grid": "another grid",
    "empty": "empty parts",
    "intensity": "other intensities",
    "sharpness": "another sharpness, as by thicker slices or noise",
    "orientation": "turned, mirrored or another anatomy",
    "features": "other image features",
}
TOGETHER = 0.97  # of training scans, left out, under all limits
SWAP_MARGIN = 1.25  # another order of the channels fits better by so much: they are swapped
_PER_CHANNEL = ("intensity", "empty", "sharpness")  # kinds of numbers that follow their channels
LEAST_SCANS, N_SCANS = 5, 64  # needed for a check, and looked at
_TENSORS = ("mean", "scale", "precision", "low", "high", "limit")


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
        vectors = {**scan.vectors, "orientation": orientation(scan.thumbnail, self.template)}
        ratios = {kind: self._ratio(kind, v) for kind, v in vectors.items() if kind in self.norms}
        order, fit, gain = self._other_order(scan, ratios)
        score = max(gain, *ratios.values())
        first, *others = [kind for kind in FLOORS if ratios.get(kind, 0) > 1] or [""]
        if gain > 1 >= fit:
            names = ", ".join(plan.channel_names[order.index(k)] for k in range(len(order)))
            return InputVerdict(score, f"The channels seem swapped: they look like {names}.")
        if not first:
            return InputVerdict(score)
        reason = _sentence(first, vectors[first], self.norms[first], others, plan)
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

    def _ratio(self, kind: str, vector: Vector) -> float:
        """The distance of a vector from the training scans' as a share of the limit."""
        return self.norms[kind].distance(vector) / self.norms[kind].limit

    def _other_order(
        self, scan: ScanStatistics, given: Mapping[str, float]
    ) -> tuple[tuple[int, ...], float, float]:
        """The order of the channels, other than as given, in which a scan is most like the others.

        Its score, and the given one's in units of it and of the margin: above 1 they are swapped.
        Up to five channels; of fewer than two `(), inf, 0`.
        """
        n = len(self.template)
        others = list(permutations(range(n)))[1:] if n < 6 else []
        n_pairs = {"intensity": comb(n, 2)}
        fits = [
            max(
                self._ratio(kind, _reordered(scan.vectors[kind], order, n_pairs.get(kind, 0)))
                for kind in _PER_CHANNEL
            )
            for order in others
        ]
        if not fits:
            return (), np.inf, 0.0
        fit = max(min(fits), 1e-6)
        own = max(given[kind] for kind in _PER_CHANNEL)
        return others[int(np.argmin(fits))], fit, own / (SWAP_MARGIN * fit)

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
    `grids`: rows of `grid_vector`, of the training scans' files in any order; the scans' own grids,
    which are the plan's, do not count.
    """
    if len(scans) < LEAST_SCANS or len(set(groups)) < 2:
        return None
    owners = np.array(groups)
    thumbnails = np.stack([scan.thumbnail for scan in scans])
    kinds = [kind for kind in FLOORS if kind in scans[0].vectors and kind != "grid"]
    table = {kind: np.stack([scan.vectors[kind] for scan in scans]) for kind in kinds}
    table["orientation"] = np.stack(
        [
            orientation(scan.thumbnail, thumbnails[owners != group].mean(0))
            for scan, group in zip(scans, groups, strict=True)
        ]
    )
    limits = _limits({kind: left_out_distances(kind, v, owners) for kind, v in table.items()})
    norms = {kind: norm_of(kind, rows, limits[kind]) for kind, rows in table.items()}
    alone = left_out_distances("grid", grids, np.arange(len(grids)))
    norms["grid"] = norm_of("grid", grids, _limits({"grid": alone})["grid"])
    return InputCheck(norms, thumbnails.mean(0))


def _limits(distances: Mapping[str, Vector]) -> dict[str, float]:
    """Of each kind what 99 % stay under; raised where the scans but the oddest 3 % exceed it."""
    limits = {kind: limit_of(values) for kind, values in distances.items()}
    worst = np.max([values / limits[kind] for kind, values in distances.items()], axis=0)
    usual = np.argsort(worst, kind="stable")[: round(TOGETHER * len(worst))]
    return {kind: max(limits[kind], float(v[usual].max())) for kind, v in distances.items()}


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
