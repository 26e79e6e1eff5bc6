"""Which candidate finds which lesion: one core for all presets, told apart by `Criterion`.

By default several candidates find a lesion by what they cover of it together
(`case.overlap_table`).

One to one at every threshold: candidates enter by descending score, ties together. After each
entry the matching has as many pairs as possible and, among such, the largest summed IoU. Adding a
candidate changes an optimal matching only along one path that starts at this candidate, so a found
lesion stays found, and one pass gives the score at which each lesion is found. Where two matchings
are equally good the one that keeps the found lesions is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionseg.core import Lesions
from lesionseg.evaluation.case.overlap_table import (
    Boxes,
    Overlaps,
    covered,
    covering_pairs,
    score_of_cover,
)
from lesionseg.evaluation.presets import Assignment, Criterion
from lesionseg.evaluation.results import NEVER

# Outweighs rounding, and no difference between IoUs that anybody would notice.
_KEEP_FOUND = 1e-9
# rows of candidates, rows of lesions, weights
_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Links:
    """The pairs in which the candidate may find the lesion; `weight` > 0 ranks them.

    All arrays `[links]`; `candidate` and `lesion` are rows of `n_candidates`, `n_lesions`.
    Jointly, `weight` is the share of the lesion that the candidate covers, `enough` the share that
    finds it, `common` `[links, 2·dims]` the place where boxes cover it.
    """

    n_candidates: int
    n_lesions: int
    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    weight: NDArray[np.float64]
    assignment: Assignment = "every_threshold"
    enough: float = 0.0
    common: Boxes = None

    def among(self, candidates: NDArray[np.bool_]) -> "Links":
        """The links of the chosen candidates."""
        return self.where(candidates[self.candidate])

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Links":
        """The chosen links: which `[links]` of them, or their rows."""
        return replace(
            self,
            candidate=self.candidate[kept],
            lesion=self.lesion[kept],
            weight=self.weight[kept],
            common=None if self.common is None else self.common[kept],
        )

    def linked(self) -> NDArray[np.bool_]:
        """Which candidates may find some lesion."""
        found = np.zeros(self.n_candidates, dtype=np.bool_)
        found[self.candidate] = True
        return found


def find_links(
    criterion: Criterion, candidates: Lesions, lesions: Lesions, overlaps: Overlaps
) -> Links:
    """The links of a case under a criterion.

    Only pairs of the same label; jointly all of `overlaps`, whatever their labels.
    """
    if criterion.assignment == "jointly":
        supported, share, common = covering_pairs(
            candidates, lesions, overlaps, criterion.threshold
        )
        pairs = (len(candidates), len(lesions), overlaps.candidate, overlaps.lesion, share)
        everyone = Links(*pairs, criterion.assignment, criterion.threshold, common)
        return everyone.where(supported)
    if criterion.measure == "centre":
        candidate, lesion, weight = _near_pairs(criterion, candidates, lesions)
    else:
        weight = overlaps.iou
        enough = overlaps.iou > 0
        if criterion.measure == "iou":
            enough = weight >= criterion.threshold
        candidate, lesion = overlaps.candidate[enough], overlaps.lesion[enough]
        weight = weight[enough]
    found = Links(len(candidates), len(lesions), candidate, lesion, weight, criterion.assignment)
    return found.where(candidates.labels[candidate] == lesions.labels[lesion])


def detection_scores(links: Links, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest score `[n_lesions]` at which each lesion is found; `NEVER` when it never is."""
    if links.assignment == "every_threshold":
        return _scores_of_each_threshold(links, scores)
    found_at = np.full(links.n_lesions, NEVER)
    if links.assignment == "jointly":
        for pairs in _grouped(links.lesion):
            part = links.where(pairs)
            score = score_of_cover(scores[part.candidate], part.weight, part.common, links.enough)
            found_at[part.lesion] = NEVER if score is None else score
    else:
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
    return found_at


def match(
    links: Links,
    prefer: NDArray[np.bool_],
    *,
    present: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The candidate `[n_lesions]` that finds each lesion, -1 for none.

    Of the candidates that are `present` (all by default), as the links' `assignment` has it. At
    every threshold: as many pairs as possible, then the largest summed weight, then the lesions in
    `prefer`. All, jointly: the candidate of the largest weight.
    """
    if present is None:
        present = np.ones(links.n_candidates, dtype=np.bool_)
    links = links.among(present)
    candidate_of = np.full(links.n_lesions, -1, dtype=np.int64)
    if links.assignment in ("all", "jointly"):
        order = np.argsort(links.weight, kind="stable")
        candidate_of[links.lesion[order]] = links.candidate[order]
        if links.assignment == "jointly":
            cover = (links.lesion, links.n_lesions, links.weight, links.common, links.enough)
            candidate_of[~covered(*cover)] = -1
        return candidate_of
    single = _single(links)
    candidate_of[links.lesion[single]] = links.candidate[single]
    for part in _parts(links.where(~single)):
        rows, columns = part.best(np.ones(len(part.candidates), np.bool_), prefer[part.lesions])
        candidate_of[part.lesions[columns]] = part.candidates[rows]
    return candidate_of


def _scores_of_each_threshold(links: Links, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    found_at = np.full(links.n_lesions, NEVER)
    single = _single(links)
    found_at[links.lesion[single]] = scores[links.candidate[single]]
    for part in _parts(links.where(~single)):
        for score in np.unique(scores[part.candidates])[::-1]:
            found = found_at[part.lesions] > NEVER
            if found.all():
                break
            _, columns = part.best(scores[part.candidates] >= score, found)
            new = part.lesions[columns]
            found_at[new] = np.maximum(found_at[new], score)
    return found_at


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


def _single(links: Links) -> NDArray[np.bool_]:
    """Links whose candidate and lesion have no other: most of them, and there is no choice."""
    of_candidate = np.bincount(links.candidate, minlength=links.n_candidates)
    of_lesion = np.bincount(links.lesion, minlength=links.n_lesions)
    found: NDArray[np.bool_] = (of_candidate[links.candidate] == 1) & (of_lesion[links.lesion] == 1)
    return found


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
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _near_pairs(criterion: Criterion, candidates: Lesions, lesions: Lesions) -> _Pairs:
    """Pairs whose centres are nearer than the lesion's radius times the threshold."""
    apart = candidates.centres_mm[:, None] - lesions.centres_mm[None]
    distance = np.linalg.norm(apart, axis=-1)
    candidate, lesion = np.nonzero(distance < criterion.threshold * lesions.diameters_mm / 2)
    return candidate, lesion, 1 / (1 + distance[candidate, lesion])
