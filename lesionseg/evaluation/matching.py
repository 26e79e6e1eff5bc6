"""Which candidate finds which lesion.

Candidates enter by descending score, ties together. After each entry the matching has as many
pairs as possible and, among such, the largest summed IoU. Adding a candidate changes an optimal
matching only along one path that starts at this candidate, so a found lesion stays found, and one
pass gives the score at which each lesion is found. Where two matchings are equally good the one
that keeps the found lesions is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionseg.evaluation.instances import Instances
from lesionseg.evaluation.overlap import Overlaps
from lesionseg.evaluation.presets import Criterion

NEVER = -np.inf
# Outweighs rounding, and no difference between IoUs that anybody would notice.
_KEEP_FOUND = 1e-9


@dataclass(frozen=True, eq=False)
class Links:
    """The pairs in which the candidate may find the lesion; `weight` > 0 ranks them.

    All arrays `[links]`; `candidate` and `lesion` are rows of `n_candidates`, `n_lesions`.
    """

    n_candidates: int
    n_lesions: int
    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    weight: NDArray[np.float64]
    one_to_one: bool

    def among(self, candidates: NDArray[np.bool_]) -> "Links":
        """The links of the chosen candidates."""
        kept = candidates[self.candidate]
        return Links(
            self.n_candidates,
            self.n_lesions,
            self.candidate[kept],
            self.lesion[kept],
            self.weight[kept],
            self.one_to_one,
        )

    def linked(self) -> NDArray[np.bool_]:
        """Which candidates may find some lesion: unmatched they are ignored, never false."""
        found = np.zeros(self.n_candidates, dtype=np.bool_)
        found[self.candidate] = True
        return found


def find_links(
    criterion: Criterion, candidates: Instances, lesions: Instances, overlaps: Overlaps
) -> Links:
    """The links of a case under a criterion; only pairs of the same label."""
    if criterion.measure == "centre":
        candidate, lesion, weight = _near_pairs(criterion, candidates, lesions)
    else:
        enough = overlaps.iou > 0
        if criterion.measure == "iou":
            enough = overlaps.iou >= criterion.threshold
        candidate, lesion = overlaps.candidate[enough], overlaps.lesion[enough]
        weight = overlaps.iou[enough]
    same = candidates.labels[candidate] == lesions.labels[lesion]
    return Links(
        len(candidates),
        len(lesions),
        candidate[same],
        lesion[same],
        weight[same],
        criterion.one_to_one,
    )


def detection_scores(links: Links, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest score `[n_lesions]` at which each lesion is found; `NEVER` when it never is."""
    found_at = np.full(links.n_lesions, NEVER)
    if not links.one_to_one:
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
        return found_at
    for part in _parts(links):
        for score in np.unique(scores[part.candidates])[::-1]:
            found = found_at[part.lesions] > NEVER
            if found.all():
                break
            _, columns = part.best(scores[part.candidates] >= score, found)
            new = part.lesions[columns]
            found_at[new] = np.maximum(found_at[new], score)
    return found_at


def match(links: Links, prefer: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The candidate `[n_lesions]` that finds each lesion, -1 for none.

    One to one: as many pairs as possible, then the largest summed weight, then the lesions in
    `prefer`. Otherwise: the candidate of the largest weight.
    """
    candidate_of = np.full(links.n_lesions, -1, dtype=np.int64)
    if not links.one_to_one:
        order = np.argsort(links.weight, kind="stable")
        candidate_of[links.lesion[order]] = links.candidate[order]
        return candidate_of
    for part in _parts(links):
        rows, columns = part.best(np.ones(len(part.candidates), np.bool_), prefer[part.lesions])
        candidate_of[part.lesions[columns]] = part.candidates[rows]
    return candidate_of


@dataclass(frozen=True, eq=False)
class _Part:
    """A connected part of the links: its rows and a dense `[candidates, lesions]` weight."""

    candidates: NDArray[np.int64]
    lesions: NDArray[np.int64]
    weight: NDArray[np.float64]

    def best(
        self, present: NDArray[np.bool_], prefer: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the best matching among the candidates that are present."""
        chosen = np.flatnonzero(present)
        weight = self.weight[chosen]
        # a pair more always outweighs all that the weights could add up to
        pair = min(weight.shape) * max(float(self.weight.max()), 1.0) + 1
        value = np.where(weight > 0, pair + weight + _KEEP_FOUND * prefer, 0)
        rows, columns = linear_sum_assignment(value, maximize=True)
        real = weight[rows, columns] > 0
        return chosen[rows[real]], columns[real]


def _parts(links: Links) -> Iterator[_Part]:
    if len(links.candidate) == 0:
        return
    n = links.n_candidates + links.n_lesions
    ends = (links.candidate, links.n_candidates + links.lesion)
    graph = coo_array((np.ones(len(links.candidate)), ends), shape=(n, n))
    part_of = connected_components(graph, directed=False)[1][links.candidate]
    for links_of_part in _grouped(part_of):
        candidates, row = np.unique(links.candidate[links_of_part], return_inverse=True)
        lesions, column = np.unique(links.lesion[links_of_part], return_inverse=True)
        weight = np.zeros((len(candidates), len(lesions)))
        weight[row, column] = links.weight[links_of_part]
        yield _Part(candidates, lesions, weight)


def _grouped(values: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Indices of equal values together."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _near_pairs(
    criterion: Criterion, candidates: Instances, lesions: Instances
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs whose centres are nearer than the lesion's radius times the threshold."""
    apart = candidates.centres_mm[:, None] - lesions.centres_mm[None]
    distance = np.linalg.norm(apart, axis=-1)
    candidate, lesion = np.nonzero(distance < criterion.threshold * lesions.diameters_mm / 2)
    return candidate, lesion, 1 / (1 + distance[candidate, lesion])
