"""Which candidate finds which lesion: one core for all presets, told apart by `Criterion`.

By default several candidates find a lesion by what they cover of it together. A candidate is
supported when enough of it lies in lesions; a lesion is found when the supported candidates cover
enough of it. Voxels of instances never overlap and add up; boxes may overlap, so the volume of
their union counts.

One to one at every threshold: candidates enter by descending score, ties together. After each
entry the matching has as many pairs as possible and, among such, the largest summed IoU. Adding a
candidate changes an optimal matching only along one path that starts at this candidate, so a found
lesion stays found, and one pass gives the score at which each lesion is found. Where two matchings
are equally good the one that keeps the found lesions is taken.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionseg.core import Lesions, Prediction, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.evaluation.criteria import SIDE_CRITERIA, Criterion
from lesionseg.ops.boxes import box_iou
from lesionseg.ops.components import candidates_of, lesions_of

NEVER = -np.inf  # the score at which a lesion is found that no candidate finds
# a candidate with a larger share in the ignored region is neither true nor false
MOSTLY = 0.5
_ROUNDING = 1e-9  # shares are sums of fractions
_KEEP_FOUND = 1e-9  # outweighs rounding, and no difference between IoUs that anybody would notice
Outcome = Literal["true_positive", "false_positive", "ignored", "not_accepted"]
Boxes = NDArray[np.float64] | None


# --- the rule ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Match:
    """Which candidate may find which lesion of a case, whoever is accepted; holds no volume.

    `scores` `[n]` are the candidates'. `comparable` `[pairs]`: pairs of `overlaps` whose labels may
    match, all of them where the labels are pooled. `ignored` `[n]`: candidates that lie mostly in
    the ignored region; `lost` `[n]`: they have a mask, and nothing of it is left. `links`: by
    criterion, those of `criterion` and of the side criteria. `has_masks`: whether lesions and
    prediction have voxels to compare. `within_labels`: the same, each label by itself, where labels
    are pooled and there are several.
    """

    scores: NDArray[np.float64]
    lesions: Lesions
    candidates: Lesions
    overlaps: "Overlaps"
    comparable: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    criterion: Criterion
    links: Mapping[Criterion, "Links"]
    has_masks: bool
    within_labels: "Match | None" = None

    @cached_property
    def detected_at(self) -> NDArray[np.float64]:
        """The highest score `[lesions]` at which each lesion is found; `NEVER` when it never is."""
        return detection_scores(self.links[self.criterion], self.scores)

    def of_accepted(
        self, accepted: NDArray[np.bool_], rule: Criterion | None = None
    ) -> tuple[NDArray[np.int64], list[Outcome]]:
        """The candidate `[lesions]` that finds each lesion, −1 for none, and each one's outcome.

        Of the `accepted` `[n]` candidates, by `rule` or the case's own criterion.
        """
        links = self.links[rule or self.criterion]
        found = np.zeros(len(self.lesions), dtype=np.bool_)
        if rule is None and accepted.any():
            found = self.detected_at >= self.scores[accepted].min()  # they stay found
        candidate_of = assign(links, found, present=accepted)
        matched, linked = np.zeros_like(accepted), np.zeros_like(accepted)
        matched[candidate_of[candidate_of >= 0]] = True
        linked[links.candidate] = True
        if links.criterion.assignment == "jointly":
            matched = linked  # the supported ones, whether or not they suffice
        spared = linked | self.ignored
        names: list[Outcome] = ["false_positive", "ignored", "true_positive", "not_accepted"]
        index = np.select([~accepted, matched, spared], [3, 2, 1], 0)
        return candidate_of, [names[i] for i in index]


def match(reference: Reference, prediction: Prediction, criterion: Criterion) -> Match:
    """Link a prediction's candidates with the lesions of its reference, on the same grid."""
    lesions = lesions_of(reference)
    candidates = candidates_of(prediction, reference.ignore)
    ignored, lost = _ignored(reference, prediction, candidates)
    overlaps = overlap_table(candidates, lesions)
    overlaps = overlaps.where(~lost[overlaps.candidate])
    same = candidates.labels[overlaps.candidate] == lesions.labels[overlaps.lesion]

    def links(rule: Criterion, pairs: Overlaps) -> Links:
        found = find_links(rule, candidates, lesions, pairs)
        return found.where(~lost[found.candidate])

    sides = {rule: links(rule, overlaps) for rule in SIDE_CRITERIA}
    indices = np.min_scalar_type(max(reference.geometry.shape))  # many cases stay in memory

    def among(comparable: NDArray[np.bool_], within_labels: Match | None) -> Match:
        return Match(
            np.array([c.score for c in prediction.candidates], dtype=np.float64),
            _with_indices(lesions, indices),
            _with_indices(candidates, indices),
            overlaps,
            comparable,
            ignored,
            lost,
            criterion,
            {**sides, criterion: links(criterion, overlaps.where(comparable))},
            prediction.instances is not None and bool(lesions.masked.all()),
            within_labels,
        )

    by_label = among(same, None)
    several = len({*candidates.labels.tolist(), *lesions.labels.tolist()}) > 1
    if criterion.assignment != "jointly" or not several:
        return by_label
    return among(np.ones_like(same), by_label)


def _ignored(
    reference: Reference, prediction: Prediction, candidates: Lesions
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which candidates lie mostly in the ignored region, and of which masks nothing is left."""
    none = np.zeros(len(candidates), dtype=np.bool_)
    ignore = reference.ignore
    if ignore is None or len(candidates) == 0:
        return none, none
    lost = np.zeros(len(candidates))
    if prediction.instances is not None:
        highest = int(candidates.ids.max())
        counts = np.bincount(prediction.instances[ignore].reshape(-1), minlength=highest + 1)
        lost = counts[candidates.ids].astype(np.float64)
    drawn = lost + candidates.n_voxels
    share = lost / np.maximum(drawn, 1)
    for row in np.flatnonzero(drawn == 0):
        part = ignore[box_slices(candidates.boxes[row], ignore.ndim)]
        share[row] = part.mean() if part.size else 0.0
    return share > MOSTLY, (lost > 0) & (candidates.n_voxels == 0)


def _with_indices(lesions: Lesions, dtype: DTypeLike) -> Lesions:
    return replace(lesions, voxels=lesions.voxels.astype(dtype, copy=False), instances=None)


# --- links -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Links:
    """The pairs in which the candidate may find the lesion; `weight` > 0 ranks them.

    All arrays `[links]`; `candidate` and `lesion` are rows of `n_candidates`, `n_lesions`. Jointly,
    `weight` is the share of the lesion that the candidate covers and `common` `[links, 2·dims]` the
    place where boxes cover it.
    """

    criterion: Criterion
    n_candidates: int
    n_lesions: int
    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    weight: NDArray[np.float64]
    common: Boxes = None

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Links":
        """The chosen links: which `[links]` of them, or their rows."""
        return replace(
            self,
            candidate=self.candidate[kept],
            lesion=self.lesion[kept],
            weight=self.weight[kept],
            common=None if self.common is None else self.common[kept],
        )


def find_links(
    criterion: Criterion, candidates: Lesions, lesions: Lesions, overlaps: "Overlaps"
) -> Links:
    """The links of a case under a criterion.

    Only pairs of the same label; jointly all of `overlaps`, whatever their labels.
    """
    ends = (criterion, len(candidates), len(lesions))
    if criterion.assignment == "jointly":
        supported, share, common = covering_pairs(
            candidates, lesions, overlaps, criterion.threshold
        )
        return Links(*ends, overlaps.candidate, overlaps.lesion, share, common).where(supported)
    if criterion.measure == "centre":
        apart = candidates.centres_mm[:, None] - lesions.centres_mm[None]
        distance = np.linalg.norm(apart, axis=-1)
        near = distance < criterion.threshold * lesions.diameters_mm / 2
        candidate, lesion = np.nonzero(near)
        weight = 1 / (1 + distance[near])
    else:
        enough = overlaps.iou > 0
        if criterion.measure == "iou":
            enough = overlaps.iou >= criterion.threshold
        candidate, lesion = overlaps.candidate[enough], overlaps.lesion[enough]
        weight = overlaps.iou[enough]
    found = Links(*ends, candidate, lesion, weight)
    return found.where(candidates.labels[candidate] == lesions.labels[lesion])


def detection_scores(links: Links, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest score `[n_lesions]` at which each lesion is found; `NEVER` when it never is."""
    found_at = np.full(links.n_lesions, NEVER)
    if links.criterion.assignment == "jointly":
        for pairs in _grouped(links.lesion):
            own = links.where(pairs)
            score = score_of_cover(
                scores[own.candidate], own.weight, own.common, links.criterion.threshold
            )
            found_at[own.lesion] = NEVER if score is None else score
        return found_at
    if links.criterion.assignment == "all":
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
        return found_at
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


def assign(
    links: Links, prefer: NDArray[np.bool_], *, present: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The candidate `[n_lesions]` that finds each lesion, -1 for none.

    Of the candidates that are `present` (all by default), as the links' criterion has it. At every
    threshold: as many pairs as possible, then the largest summed weight, then the lesions in
    `prefer`. All, jointly: the candidate of the largest weight.
    """
    if present is not None:
        links = links.where(present[links.candidate])
    candidate_of = np.full(links.n_lesions, -1, dtype=np.int64)
    if links.criterion.assignment != "every_threshold":
        order = np.argsort(links.weight, kind="stable")
        candidate_of[links.lesion[order]] = links.candidate[order]
        if links.criterion.assignment == "jointly":
            cover = (links.lesion, links.n_lesions, links.weight, links.common)
            candidate_of[~covered(*cover, links.criterion.threshold)] = -1
        return candidate_of
    single = _single(links)
    candidate_of[links.lesion[single]] = links.candidate[single]
    for part in _parts(links.where(~single)):
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


def _single(links: Links) -> NDArray[np.bool_]:
    """Links whose candidate and lesion have no other: most of them, and there is no choice."""
    of_candidate = np.bincount(links.candidate, minlength=links.n_candidates)
    of_lesion = np.bincount(links.lesion, minlength=links.n_lesions)
    return np.asarray((of_candidate[links.candidate] == 1) & (of_lesion[links.lesion] == 1))


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


# --- overlap ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The pairs of a candidate and a lesion that overlap; all arrays `[pairs]`.

    `candidate` and `lesion` are rows. `voxels` counts the shared voxels, 0 where one of the two
    has no mask; `iou` is mask–mask where both have masks, else box–box. Pairs of different labels
    are listed too.
    """

    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    voxels: NDArray[np.int64]
    iou: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Overlaps":
        """The chosen pairs: which `[pairs]` of them, or their rows."""
        return Overlaps(self.candidate[kept], self.lesion[kept], self.voxels[kept], self.iou[kept])


def overlap_table(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """All overlapping pairs of a case, sorted by candidate, then lesion; none gives no rows."""
    n, pair = len(lesions), np.zeros(0, dtype=np.int64)
    if candidates.instances is not None and len(candidates) and len(lesions.voxels):
        row_of = np.full(int(candidates.ids.max()) + 1, -1, dtype=np.int64)
        row_of[candidates.ids] = np.arange(len(candidates))
        row = row_of[candidates.instances[tuple(lesions.voxels.T)]]
        pair = (row * n + np.repeat(np.arange(n), lesions.n_voxels))[row >= 0]
    pair, shared = np.unique(pair, return_counts=True)
    candidate, lesion = np.divmod(pair, max(n, 1))
    union = candidates.n_voxels[candidate] + lesions.n_voxels[lesion] - shared
    by_mask = Overlaps(candidate, lesion, shared.astype(np.int64), shared / np.maximum(union, 1))
    bare = ~np.outer(candidates.masked, lesions.masked)
    if not bare.any():
        return by_mask
    a, b = torch.from_numpy(candidates.boxes), torch.from_numpy(lesions.boxes)
    iou: NDArray[np.float64] = box_iou(a, b).numpy()
    candidate, lesion = np.nonzero(bare & (iou > 0))
    by_box = Overlaps(candidate, lesion, np.zeros_like(candidate), iou[candidate, lesion])
    both = Overlaps(
        *(
            np.concatenate([getattr(by_mask, column), getattr(by_box, column)])
            for column in ("candidate", "lesion", "voxels", "iou")
        )
    )
    return both.where(np.lexsort((both.lesion, both.candidate)))


def covering_pairs(
    candidates: Lesions, lesions: Lesions, overlaps: Overlaps, enough: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64], Boxes]:
    """Which pairs `[pairs]` have a supported candidate, what of the lesion each covers, and where.

    The places are the boxes `[pairs, 2·dims]` that both sides share, 0 for pairs of two masks;
    None without any bare box. `enough` is the least share of a supported candidate's volume.
    """
    candidate, lesion = overlaps.candidate, overlaps.lesion
    shared, of_candidate, of_lesion = (
        overlaps.voxels.astype(np.float64),
        candidates.n_voxels[candidate].astype(np.float64),
        lesions.n_voxels[lesion].astype(np.float64),
    )
    bare = shared == 0
    common = None
    if bare.any():
        common = _common(candidates.boxes[candidate], lesions.boxes[lesion]) * bare[:, None]
        shared[bare] = _volumes(common[bare])
        of_candidate[bare] = _volumes(candidates.boxes[candidate[bare]])
        of_lesion[bare] = _volumes(lesions.boxes[lesion[bare]])
    supported = covered(candidate, len(candidates), shared / of_candidate, common, enough)
    return supported[candidate], shared / of_lesion, common


def covered(
    row: NDArray[np.int64], n_rows: int, share: NDArray[np.float64], common: Boxes, enough: float
) -> NDArray[np.bool_]:
    """Of which rows `[n_rows]` their pairs `[pairs]` cover at least `enough` between them."""
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        doubtful = np.flatnonzero(
            (total >= enough - _ROUNDING) & (np.bincount(row, minlength=n_rows) > 1)
        )
        for one in doubtful:
            total[one] = _together(share[row == one], common[row == one])
    reached: NDArray[np.bool_] = total >= enough - _ROUNDING
    return reached


def score_of_cover(
    scores: NDArray[np.float64], share: NDArray[np.float64], common: Boxes, enough: float
) -> float | None:
    """The highest score from which pairs `[pairs]` cover `enough` of one lesion; None: never."""
    if share.sum() < enough - _ROUNDING:
        return None
    levels = np.unique(scores)[::-1]

    def suffices(place: int) -> bool:
        accepted = scores >= levels[place]
        part = None if common is None else common[accepted]
        return _together(share[accepted], part) >= enough - _ROUNDING

    place = bisect_left(range(len(levels)), True, key=suffices)
    return float(levels[place]) if place < len(levels) else None


def _together(share: NDArray[np.float64], common: Boxes) -> float:
    """The share of one row that its pairs cover between them."""
    boxed = np.zeros(len(share), dtype=np.bool_) if common is None else _volumes(common) > 0
    if common is None or np.count_nonzero(boxed) < 2:
        return float(share.sum())
    by_volume = share[boxed][0] / _volumes(common[boxed])[0]
    return float(share[~boxed].sum() + by_volume * union_volume(common[boxed]))


def union_volume(boxes: NDArray[np.float64]) -> float:
    """Volume of what any of the boxes `[n, 2·dims]` covers.

    Of three axes slab by slab, so that memory stays small; of two, the cells between all edges.

    >>> union_volume(np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]))
    7.0
    """
    if len(boxes) == 0:
        return 0.0
    dims = boxes.shape[1] // 2
    edges = [np.unique(boxes[:, [axis, axis + dims]]) for axis in range(dims)]
    if dims > 2:
        flat = np.delete(boxes, [0, dims], axis=1)
        slabs = [(a, b, (boxes[:, 0] <= a) & (boxes[:, dims] >= b)) for a, b in pairwise(edges[0])]
        return float(sum((b - a) * union_volume(flat[across]) for a, b, across in slabs))
    inside = np.zeros([len(edge) - 1 for edge in edges], dtype=np.bool_)
    for box in boxes:
        ends = zip(edges, box[:dims], box[dims:], strict=True)
        inside[tuple(slice(*np.searchsorted(edge, (a, b))) for edge, a, b in ends)] = True
    return float(inside @ np.diff(edges[1]) @ np.diff(edges[0]))


def _common(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The intersections `[n, 2·dims]` of overlapping boxes, pair by pair."""
    dims = a.shape[1] // 2
    start = np.maximum(a[:, :dims], b[:, :dims])
    return np.hstack([start, np.minimum(a[:, dims:], b[:, dims:])])


def _volumes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    dims = boxes.shape[1] // 2
    return np.asarray(np.prod(boxes[:, dims:] - boxes[:, :dims], axis=1))
