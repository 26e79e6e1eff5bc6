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
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
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
ROUNDING = 1e-9  # shares are sums of fractions
_KEEP_FOUND = 1e-9  # outweighs rounding, and no difference between IoUs that anybody would notice
Outcome = Literal["true_positive", "false_positive", "ignored", "not_accepted"]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


class _Pairs:
    def where(self, kept: Flags | Rows) -> Self:
        """Return the chosen pairs, given by flags `[pairs]` or by places."""
        columns = {k: v[kept] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Overlaps(_Pairs):
    """The pairs of a candidate and a lesion that overlap; all arrays `[pairs]`.

    `candidate` and `lesion` are rows. `voxels` counts the shared voxels, 0 where one of the two
    has no mask; `iou` is mask–mask where both have masks, else box–box. Pairs of different labels
    are listed too.
    """

    candidate: Rows
    lesion: Rows
    voxels: Rows
    iou: Numbers


@dataclass(frozen=True, eq=False)
class Links(_Pairs):
    """The pairs in which the candidate may find the lesion; `weight` > 0 ranks them.

    All arrays `[links]`; `candidate` and `lesion` are rows of `n_candidates`, `n_lesions`. Jointly,
    `weight` is the share of the lesion that the candidate covers and `common` `[links, 2·dims]` the
    place where boxes cover it, 0 for pairs of two masks; None without any bare box.
    """

    criterion: Criterion
    n_candidates: int
    n_lesions: int
    candidate: Rows
    lesion: Rows
    weight: Numbers
    common: Numbers | None = None


@dataclass(frozen=True, eq=False)
class Shares(_Pairs):
    """The shares of a candidate and of a lesion that their overlap covers; all arrays `[pairs]`.

    `common` `[pairs, 2·dims]` is the box of the overlap, 0 for pairs of two masks; None if all
    pairs have masks.
    """

    of_candidate: Numbers
    of_lesion: Numbers
    common: Numbers | None = None


# --- the rule ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Match:
    """The candidates that may find each lesion of a case, whichever are accepted. Has no volume.

    `scores` `[n]` are the candidates'. `comparable` `[pairs]`: pairs of `overlaps` whose labels may
    match, all of them where the labels are pooled. `ignored` `[n]`: candidates that lie mostly in
    the ignored region; `lost` `[n]`: they have a mask, and nothing of it is left. `links`: by
    criterion, those of `criterion` and of the side criteria. `has_masks`: whether lesions and
    prediction have voxels to compare. `within_labels`: the same, each label by itself, where labels
    are pooled and there are several.
    """

    scores: Numbers
    lesions: Lesions
    candidates: Lesions
    overlaps: Overlaps
    comparable: Flags
    ignored: Flags
    lost: Flags
    criterion: Criterion
    links: Mapping[Criterion, Links]
    has_masks: bool
    within_labels: "Match | None" = None

    @cached_property
    def detected_at(self) -> Numbers:
        """The highest score `[lesions]` at which each lesion is found; `NEVER` when it never is."""
        return detection_scores(self.links[self.criterion], self.scores)

    def of_accepted(
        self, accepted: Flags, rule: Criterion | None = None
    ) -> tuple[Rows, list[Outcome]]:
        """Return the candidate `[lesions]` that finds each lesion, −1 for none, and all outcomes.

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
    kept_lesions, kept_candidates = (
        replace(x, voxels=x.voxels.astype(indices, copy=False), instances=None)
        for x in (lesions, candidates)
    )

    def among(comparable: Flags, within_labels: Match | None) -> Match:
        return Match(
            np.array([c.score for c in prediction.candidates], dtype=np.float64),
            kept_lesions,
            kept_candidates,
            overlaps,
            comparable,
            ignored,
            lost,
            criterion,
            {**sides, criterion: links(criterion, overlaps.where(comparable))},
            prediction.instances is not None and bool(lesions.has_voxels.all()),
            within_labels,
        )

    by_label = among(same, None)
    several = len({*candidates.labels.tolist(), *lesions.labels.tolist()}) > 1
    if criterion.assignment != "jointly" or not several:
        return by_label
    return among(np.ones_like(same), by_label)


def _ignored(
    reference: Reference, prediction: Prediction, candidates: Lesions
) -> tuple[Flags, Flags]:
    """Return the candidates that are mostly ignored, and those of whose mask nothing is left."""
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


# --- links -----------------------------------------------------------------------------------


def find_links(rule: Criterion, candidates: Lesions, lesions: Lesions, overlaps: Overlaps) -> Links:
    """Find the links of a case under a criterion.

    Only pairs of the same label; jointly all of `overlaps`, whatever their labels.
    """
    candidate, lesion, common = overlaps.candidate, overlaps.lesion, None
    if rule.measure == "coverage":
        shares = shares_of(candidates, lesions, overlaps)
        common, weight = shares.common, shares.of_lesion
        supported = covered(candidate, len(candidates), shares.of_candidate, common, rule.threshold)
        enough = supported[candidate]
    elif rule.measure == "centre":
        apart = candidates.centres_mm[:, None] - lesions.centres_mm[None]
        distance = np.linalg.norm(apart, axis=-1)
        candidate, lesion = np.nonzero(distance < rule.threshold * lesions.diameters_mm / 2)
        enough = candidates.labels[candidate] == lesions.labels[lesion]
        weight = 1 / (1 + distance[candidate, lesion])
    else:
        enough = overlaps.iou >= rule.threshold if rule.measure == "iou" else overlaps.iou > 0
        enough &= candidates.labels[candidate] == lesions.labels[lesion]
        weight = overlaps.iou
    sizes = len(candidates), len(lesions)
    return Links(rule, *sizes, candidate, lesion, weight, common).where(enough)


def shares_of(candidates: Lesions, lesions: Lesions, pairs: Overlaps) -> Shares:
    """Measure by voxels, or by boxes if one of the two has no mask, what a pair has in common."""
    common = None
    shared = pairs.voxels.astype(np.float64)
    of_candidate = candidates.n_voxels[pairs.candidate].astype(np.float64)
    of_lesion = lesions.n_voxels[pairs.lesion].astype(np.float64)
    bare = shared == 0
    if bare.any():
        boxes = _common(candidates.boxes[pairs.candidate], lesions.boxes[pairs.lesion])
        common = boxes * bare[:, None]
        shared[bare] = _volumes(common[bare])
        of_candidate[bare] = _volumes(candidates.boxes[pairs.candidate[bare]])
        of_lesion[bare] = _volumes(lesions.boxes[pairs.lesion[bare]])
    return Shares(shared / of_candidate, shared / of_lesion, common)


def detection_scores(links: Links, scores: Numbers) -> Numbers:
    """Return the highest score `[n_lesions]` at which each lesion is found; `NEVER` for none."""
    found_at, rule = np.full(links.n_lesions, NEVER), links.criterion
    if rule.assignment == "all":  # whatever finds it
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
    elif rule.assignment == "jointly":  # the supported ones that cover enough of it
        for pairs in _grouped(links.lesion):
            own = links.where(pairs)
            found_at[own.lesion[0]] = score_of_cover(
                scores[own.candidate], own.weight, own.common, rule.threshold
            )
    else:  # as many pairs as possible at every score
        single = _single(links)
        found_at[links.lesion[single]] = scores[links.candidate[single]]
        for candidates, lesions, weight in _parts(links.where(~single)):
            for score in np.unique(scores[candidates])[::-1]:
                found = found_at[lesions] > NEVER
                if found.all():
                    break
                _, columns = _best(weight[scores[candidates] >= score], found)
                new = lesions[columns]
                found_at[new] = np.maximum(found_at[new], score)
    return found_at


def assign(links: Links, prefer: Flags, *, present: Flags | None = None) -> Rows:
    """Return the candidate `[n_lesions]` that finds each lesion, -1 for none.

    Of the candidates that are `present` (all by default), as the links' criterion has it. At every
    threshold: as many pairs as possible, then the largest summed weight, then the lesions in
    `prefer`. All, jointly: the candidate of the largest weight.
    """
    if present is not None:
        links = links.where(present[links.candidate])
    candidate_of, rule = np.full(links.n_lesions, -1, dtype=np.int64), links.criterion
    if rule.assignment == "every_threshold":
        single = _single(links)
        candidate_of[links.lesion[single]] = links.candidate[single]
        for candidates, lesions, weight in _parts(links.where(~single)):
            rows, columns = _best(weight, prefer[lesions])
            candidate_of[lesions[columns]] = candidates[rows]
        return candidate_of
    order = np.argsort(links.weight, kind="stable")
    candidate_of[links.lesion[order]] = links.candidate[order]
    if rule.assignment == "jointly":
        cover = links.lesion, links.n_lesions, links.weight, links.common
        candidate_of[~covered(*cover, rule.threshold)] = -1
    return candidate_of


def _best(weight: Numbers, prefer: Flags) -> tuple[Rows, Rows]:
    """Return rows and columns of the best one-to-one matching by weight `[candidates, lesions]`."""
    # a pair more always outweighs all that the weights could add up to
    pair = min(weight.shape) * max(float(weight.max()), 1.0) + 1
    value = np.where(weight > 0, pair + weight + _KEEP_FOUND * prefer, 0)
    rows, columns = linear_sum_assignment(value, maximize=True)
    real = weight[rows, columns] > 0
    return rows[real], columns[real]


def _single(links: Links) -> Flags:
    """Return the links whose candidate and lesion have no other link: there is no choice."""
    of_candidate = np.bincount(links.candidate, minlength=links.n_candidates)
    of_lesion = np.bincount(links.lesion, minlength=links.n_lesions)
    return np.asarray((of_candidate[links.candidate] == 1) & (of_lesion[links.lesion] == 1))


def _parts(links: Links) -> Iterator[tuple[Rows, Rows, Numbers]]:
    """Yield candidates, lesions and dense weight `[candidates, lesions]` of each connected part."""
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
        yield candidates, lesions, weight


def _grouped(values: NDArray[np.integer]) -> list[Rows]:
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


# --- overlap ---------------------------------------------------------------------------------


def overlap_table(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """List all overlapping pairs of a case, sorted by candidate, then lesion."""
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
    bare = ~np.outer(candidates.has_voxels, lesions.has_voxels)
    if not bare.any():
        return by_mask
    a, b = torch.from_numpy(candidates.boxes), torch.from_numpy(lesions.boxes)
    iou: Numbers = box_iou(a, b).numpy()
    candidate, lesion = np.nonzero(bare & (iou > 0))
    by_box = Overlaps(candidate, lesion, np.zeros_like(candidate), iou[candidate, lesion])
    both = Overlaps(
        *(
            np.concatenate([getattr(by_mask, column), getattr(by_box, column)])
            for column in ("candidate", "lesion", "voxels", "iou")
        )
    )
    return both.where(np.lexsort((both.lesion, both.candidate)))


def together(row: Rows, n_rows: int, share: Numbers, common: Numbers | None) -> Numbers:
    """Return the share `[n_rows]` of each row that its pairs `[pairs]` cover together, at most 1.

    Masks never overlap and add up. The union of overlapping boxes counts once.
    """
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        for one in np.flatnonzero(np.bincount(row, minlength=n_rows) > 1):
            total[one] = _together(share[row == one], common[row == one])
    return np.minimum(total, 1.0)


def covered(row: Rows, n_rows: int, share: Numbers, common: Numbers | None, enough: float) -> Flags:
    """Return the rows `[n_rows]` of which the pairs `[pairs]` together cover at least `enough`."""
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        doubtful = np.flatnonzero(
            (total >= enough - ROUNDING) & (np.bincount(row, minlength=n_rows) > 1)
        )
        for one in doubtful:
            total[one] = _together(share[row == one], common[row == one])
    reached: Flags = total >= enough - ROUNDING
    return reached


def score_of_cover(scores: Numbers, share: Numbers, common: Numbers | None, enough: float) -> float:
    """Return the highest score from which pairs `[pairs]` cover `enough` of a lesion.

    `NEVER` if all of them together do not.
    """
    order = np.argsort(-scores, kind="stable")

    def cover(n: int) -> float:
        first = order[:n]
        return _together(share[first], None if common is None else common[first])

    n = bisect_left(range(1, len(order) + 1), enough - ROUNDING, key=cover)
    return float(scores[order[n]]) if n < len(order) else NEVER


def _together(share: Numbers, common: Numbers | None) -> float:
    boxed = np.zeros(len(share), dtype=np.bool_) if common is None else _volumes(common) > 0
    if common is None or np.count_nonzero(boxed) < 2:
        return float(share.sum())
    by_volume = share[boxed][0] / _volumes(common[boxed])[0]
    return float(share[~boxed].sum() + by_volume * union_volume(common[boxed]))


def union_volume(boxes: Numbers) -> float:
    """Return the volume of the union of boxes `[n, 2·dims]`.

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


def _common(a: Numbers, b: Numbers) -> Numbers:
    """Return the intersections `[n, 2·dims]` of overlapping boxes, pair by pair."""
    dims = a.shape[1] // 2
    start = np.maximum(a[:, :dims], b[:, :dims])
    return np.hstack([start, np.minimum(a[:, dims:], b[:, dims:])])


def _volumes(boxes: Numbers) -> Numbers:
    dims = boxes.shape[1] // 2
    return np.asarray(np.prod(boxes[:, dims:] - boxes[:, :dims], axis=1))
