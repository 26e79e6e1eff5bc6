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
    left_out = {kind: left_out_distances(kind, rows, owners) for kind, rows in table.items()}
    limits = {kind: limit_of(distances) for kind, distances in left_out.items()}
    worst = np.max([left_out[kind] / limits[kind] for kind in table], axis=0)
    factor = max(1.0, float(np.quantile(worst, TOGETHER)))
    norms = {kind: norm_of(kind, rows, limits[kind] * factor) for kind, rows in table.items()}
    alone = left_out_distances("grid", grids, np.arange(len(grids)))
    return InputCheck(
        {"grid": norm_of("grid", grids, limit_of(alone)), **norms}, thumbnails.mean(0)
    )


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
