"""Match candidates with lesions, by the rule that a `Criterion` states.

By default, several candidates may find a lesion together. A candidate is supported if enough of it
is located in lesions. A lesion is found if the supported candidates together cover enough of it.
Voxels of instances never overlap, so their shares are added. Boxes may overlap, so the volume of
their union counts.

One-to-one rules match at every threshold. Candidates are added by descending score, and those of
equal score together. After each addition, the matching has as many pairs as possible, with the
largest sum of IoU. An added candidate changes an optimal matching only along one path that starts
at this candidate. A found lesion therefore stays found, and one pass gives the score at which each
lesion is found. If two matchings are equally good, the one that keeps the found lesions is used.
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
from lesionseg.evaluation.tables import NEVER
from lesionseg.ops.boxes import box_iou
from lesionseg.ops.components import candidates_of, lesions_of

# a candidate with a larger share in the ignored region is neither true nor false positive
MAX_IGNORED_SHARE = 0.5
ROUNDING = 1e-9  # tolerance, because shares are sums of fractions
# bonus of a found lesion: larger than rounding errors, smaller than relevant differences of IoU
_KEEP_FOUND = 1e-9
Outcome = Literal["true_positive", "false_positive", "ignored", "not_accepted"]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


class _Pairs:
    """Base class of tables whose arrays have one row per pair."""

    def where(self, kept: Flags | Rows) -> Self:
        """Select pairs, by flags `[pairs]` or by their positions."""
        columns = {k: v[kept] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Overlaps(_Pairs):
    """The pairs of a candidate and a lesion that overlap; all arrays `[pairs]`.

    `candidate` and `lesion` are rows. `voxels` counts the shared voxels, 0 if one of the two has no
    mask. `iou` is computed from masks if both have one, otherwise from boxes. Pairs of different
    labels are included.
    """

    candidate: Rows
    lesion: Rows
    voxels: Rows
    iou: Numbers


@dataclass(frozen=True, eq=False)
class Links(_Pairs):
    """The pairs in which the candidate may find the lesion.

    Attributes:
        criterion: The rule.
        n_candidates: Number of candidates of the case.
        n_lesions: Number of lesions of the case.
        candidate: Row of the candidate of each pair `[links]`.
        lesion: Row of the lesion of each pair `[links]`.
        weight: The rank of each pair `[links]`, above 0. For the assignment `jointly`, it is the
            share of the lesion that the candidate covers.
        common: For `jointly`, the intersection of the boxes `[links, 2·dims]`, 0 for pairs of two
            masks. None if all pairs have masks.
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
    """The candidates that may find each lesion of a case, for any operating point.

    Attributes:
        scores: Scores of the candidates `[n]`.
        lesions: The lesions.
        candidates: The candidates.
        overlaps: The pairs of a candidate and a lesion that overlap.
        comparable: True for pairs `[pairs]` of `overlaps` whose labels may match. If labels are
            pooled, all pairs are comparable.
        ignored: True for candidates `[n]` that are mostly located in the ignored region.
        lost: True for candidates `[n]` whose mask is located only in the ignored region.
        criterion: The rule of the case.
        links: The links under `criterion` and under each side criterion.
        has_masks: True if lesions and prediction have voxels to compare.
        within_labels: The same match with each label separately. None if labels are not pooled, or
            if the case has one label.
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
        """The highest score `[lesions]` at which each lesion is found, or `NEVER`."""
        return detection_scores(self.links[self.criterion], self.scores)

    def decide_outcomes(
        self, accepted: Flags, rule: Criterion | None = None
    ) -> tuple[Rows, list[Outcome]]:
        """Decide which lesions are found, and the outcome of each candidate.

        Args:
            accepted: True for each accepted candidate `[n]`.
            rule: A side criterion. None uses the criterion of the case.

        Returns:
            The row of the candidate that finds each lesion `[lesions]`, −1 for a missed lesion, and
            the outcome of each candidate.
        """
        links = self.links[rule or self.criterion]
        found = np.zeros(len(self.lesions), dtype=np.bool_)
        if rule is None and accepted.any():
            found = self.detected_at >= self.scores[accepted].min()  # lesions that stay found
        candidate_of = assign(links, found, present=accepted)
        matched = np.zeros_like(accepted)
        linked = np.zeros_like(accepted)
        matched[candidate_of[candidate_of >= 0]] = True
        linked[links.candidate] = True
        if links.criterion.assignment == "jointly":
            matched = linked  # all supported candidates, even if they cover too little of a lesion
        is_ignored = linked | self.ignored  # not a false positive, even without a lesion
        # the first condition that is true decides
        outcomes: list[Outcome] = np.select(
            [~accepted, matched, is_ignored],
            ["not_accepted", "true_positive", "ignored"],
            "false_positive",
        ).tolist()
        return candidate_of, outcomes


def match(reference: Reference, prediction: Prediction, criterion: Criterion) -> Match:
    """Find the candidates that may find each lesion. Both files must be on the same grid.

    Usually a candidate finds only lesions of its own label. If several candidates may find a lesion
    together (`jointly`) and the case has several labels, labels are pooled: a candidate may find
    any lesion. The match within labels is then part of the result.
    """
    lesions = lesions_of(reference)
    candidates = candidates_of(prediction, reference.ignore)
    ignored, lost = _find_ignored(reference, prediction, candidates)
    overlaps = overlap_table(candidates, lesions)
    overlaps = overlaps.where(~lost[overlaps.candidate])
    same_label = candidates.labels[overlaps.candidate] == lesions.labels[overlaps.lesion]

    def find_kept_links(rule: Criterion, pairs: Overlaps) -> Links:
        """Find the links of candidates that are not lost, also those without an overlap."""
        found = find_links(rule, candidates, lesions, pairs)
        return found.where(~lost[found.candidate])

    # the side criteria do not depend on `comparable`
    side_links = {rule: find_kept_links(rule, overlaps) for rule in SIDE_CRITERIA}
    kept_lesions = _save_memory(lesions)
    kept_candidates = _save_memory(candidates)

    def build_match(comparable: Flags, within_labels: Match | None) -> Match:
        """Build the match in which a candidate finds a lesion only if their pair is comparable."""
        return Match(
            scores=np.array([c.score for c in prediction.candidates], dtype=np.float64),
            lesions=kept_lesions,
            candidates=kept_candidates,
            overlaps=overlaps,
            comparable=comparable,
            ignored=ignored,
            lost=lost,
            criterion=criterion,
            links={**side_links, criterion: find_kept_links(criterion, overlaps.where(comparable))},
            has_masks=prediction.instances is not None and bool(lesions.has_voxels.all()),
            within_labels=within_labels,
        )

    within_labels = build_match(same_label, None)
    has_several_labels = len({*candidates.labels.tolist(), *lesions.labels.tolist()}) > 1
    if criterion.assignment == "jointly" and has_several_labels:
        return build_match(np.ones_like(same_label), within_labels)
    return within_labels


def _save_memory(lesions: Lesions) -> Lesions:
    """Drop the mask and store voxel indices in the smallest type, as many cases stay in memory."""
    index_type = np.min_scalar_type(max(lesions.geometry.shape))
    return replace(lesions, voxels=lesions.voxels.astype(index_type, copy=False), instances=None)


def _find_ignored(
    reference: Reference, prediction: Prediction, candidates: Lesions
) -> tuple[Flags, Flags]:
    """Return the flags `Match.ignored` and `Match.lost` of the candidates.

    The voxels of `candidates` are those outside the ignored region. A box without voxels is judged
    by the share of the box that is ignored.
    """
    none = np.zeros(len(candidates), dtype=np.bool_)
    ignore = reference.ignore
    if ignore is None or len(candidates) == 0:
        return none, none
    n_inside = np.zeros(len(candidates))
    if prediction.instances is not None:
        highest = int(candidates.ids.max())
        counts = np.bincount(prediction.instances[ignore].reshape(-1), minlength=highest + 1)
        n_inside = counts[candidates.ids].astype(np.float64)
    n_drawn = n_inside + candidates.n_voxels
    ignored_share = n_inside / np.maximum(n_drawn, 1)
    for row in np.flatnonzero(n_drawn == 0):
        part = ignore[box_slices(candidates.boxes[row], ignore.ndim)]
        ignored_share[row] = part.mean() if part.size else 0.0
    is_lost = (n_inside > 0) & (candidates.n_voxels == 0)
    return ignored_share > MAX_IGNORED_SHARE, is_lost


# --- links -----------------------------------------------------------------------------------


def find_links(rule: Criterion, candidates: Lesions, lesions: Lesions, overlaps: Overlaps) -> Links:
    """Find the links of a case under a criterion.

    Links have the same label on both sides, except under the coverage rule: it uses all pairs in
    `overlaps`, from which the caller may have removed pairs of different labels. The weight of a
    link is the covered share of the lesion, the IoU, or a number that decreases with the distance
    of the centres.
    """
    candidate = overlaps.candidate
    lesion = overlaps.lesion
    common = None
    if rule.measure == "coverage":
        shares = shares_of(candidates, lesions, overlaps)
        common = shares.common
        weight = shares.of_lesion
        supported = find_covered(
            row=candidate,
            n_rows=len(candidates),
            share=shares.of_candidate,
            common=common,
            enough=rule.threshold,
        )
        enough = supported[candidate]
    elif rule.measure == "centre":
        difference_mm = candidates.centres_mm[:, None] - lesions.centres_mm[None]
        distance = np.linalg.norm(difference_mm, axis=-1)
        candidate, lesion = np.nonzero(distance < rule.threshold * lesions.diameters_mm / 2)
        enough = candidates.labels[candidate] == lesions.labels[lesion]
        weight = 1 / (1 + distance[candidate, lesion])
    else:
        enough = overlaps.iou >= rule.threshold if rule.measure == "iou" else overlaps.iou > 0
        enough &= candidates.labels[candidate] == lesions.labels[lesion]
        weight = overlaps.iou
    links = Links(
        criterion=rule,
        n_candidates=len(candidates),
        n_lesions=len(lesions),
        candidate=candidate,
        lesion=lesion,
        weight=weight,
        common=common,
    )
    return links.where(enough)


def shares_of(candidates: Lesions, lesions: Lesions, pairs: Overlaps) -> Shares:
    """Compute the shares of the candidate and of the lesion that each overlap covers.

    If one of the two has no mask, their boxes are compared. `Shares.common` then contains the boxes
    of the overlaps, because boxes of several candidates may overlap, and only the volume of their
    union counts.
    """
    common = None
    shared = pairs.voxels.astype(np.float64)
    of_candidate = candidates.n_voxels[pairs.candidate].astype(np.float64)
    of_lesion = lesions.n_voxels[pairs.lesion].astype(np.float64)
    # All pairs overlap, so a pair whose masks share no voxel contains a box without a mask.
    is_box_pair = shared == 0
    if is_box_pair.any():
        boxes = _intersect(candidates.boxes[pairs.candidate], lesions.boxes[pairs.lesion])
        # Pairs of two masks need no box, because the masks of two candidates share no voxel: their
        # shares of a lesion can be added.
        common = boxes * is_box_pair[:, None]
        shared[is_box_pair] = _compute_volumes(common[is_box_pair])
        of_candidate[is_box_pair] = _compute_volumes(candidates.boxes[pairs.candidate[is_box_pair]])
        of_lesion[is_box_pair] = _compute_volumes(lesions.boxes[pairs.lesion[is_box_pair]])
    return Shares(shared / of_candidate, shared / of_lesion, common)


def detection_scores(links: Links, scores: Numbers) -> Numbers:
    """Return the highest score `[n_lesions]` at which each lesion is found, or `NEVER`.

    A lesion is found at a score if the candidates of this score and above find it. Any operating
    point can then be evaluated without another match.
    """
    rule = links.criterion
    if rule.assignment == "every_threshold":
        return _find_scores_one_to_one(links, scores)
    found_at = np.full(links.n_lesions, NEVER)
    if rule.assignment == "all":  # one link is enough, so the one with the highest score decides
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
        return found_at
    for links_of_lesion in _group_equal(links.lesion):
        own = links.where(links_of_lesion)
        found_at[own.lesion[0]] = score_of_cover(
            scores=scores[own.candidate],
            share=own.weight,
            common=own.common,
            enough=rule.threshold,
        )
    return found_at


def _find_scores_one_to_one(links: Links, scores: Numbers) -> Numbers:
    """Return the result of `detection_scores` for a rule that pairs one to one.

    Candidates are added by descending score, and the best matching is computed after each addition.
    A lesion gets the score at which it is matched first, because it then stays found, as the
    module's docstring explains.
    """
    found_at = np.full(links.n_lesions, NEVER)
    is_exclusive = _find_exclusive(links)  # these need no matching
    found_at[links.lesion[is_exclusive]] = scores[links.candidate[is_exclusive]]
    for candidates, lesions, weight in _split_parts(links.where(~is_exclusive)):
        part_scores = scores[candidates]
        for score in np.unique(part_scores)[::-1]:
            is_found = found_at[lesions] > NEVER
            if is_found.all():
                break
            is_added = part_scores >= score
            _, columns = _pair_best(weight[is_added], is_found)
            matched = lesions[columns]
            # the maximum keeps the higher score of a lesion that was found before
            found_at[matched] = np.maximum(found_at[matched], score)
    return found_at


def assign(links: Links, prefer: Flags, *, present: Flags | None = None) -> Rows:
    """Assign to each lesion the candidate that finds it, by the criterion of the links.

    The rule depends on the criterion's `assignment`:

    - `every_threshold`: pairs are one to one, and their number is as large as possible. If several
      solutions have that number, the one with the largest sum of weights is used. If sums are
      equal, the one that finds more lesions of `prefer` is used.
    - `all`: a lesion gets its candidate with the largest weight.
    - `jointly`: the same, if its candidates together cover enough of the lesion.

    Args:
        links: The pairs of candidates and lesions that may match.
        prefer: True for lesions `[n_lesions]` that should stay found when the threshold falls.
        present: True for the candidates `[n_candidates]` that may be assigned. None allows all.

    Returns:
        Rows of candidates `[n_lesions]`, −1 for a lesion that is not found.
    """
    if present is not None:
        links = links.where(present[links.candidate])
    candidate_of = np.full(links.n_lesions, -1, dtype=np.int64)
    rule = links.criterion
    if rule.assignment == "every_threshold":
        is_exclusive = _find_exclusive(links)
        candidate_of[links.lesion[is_exclusive]] = links.candidate[is_exclusive]
        for candidates, lesions, weight in _split_parts(links.where(~is_exclusive)):
            rows, columns = _pair_best(weight, prefer[lesions])
            candidate_of[lesions[columns]] = candidates[rows]
        return candidate_of
    # numpy keeps the last of several values for a lesion, so the largest weight must come last
    order = np.argsort(links.weight, kind="stable")
    candidate_of[links.lesion[order]] = links.candidate[order]
    if rule.assignment == "jointly":
        found = find_covered(
            row=links.lesion,
            n_rows=links.n_lesions,
            share=links.weight,
            common=links.common,
            enough=rule.threshold,
        )
        candidate_of[~found] = -1
    return candidate_of


def _pair_best(weight: Numbers, prefer: Flags) -> tuple[Rows, Rows]:
    """Return rows and columns of the best one-to-one matching by weight `[candidates, lesions]`.

    A weight of 0 means that the two may not match. `prefer` `[lesions]` is that of `assign`.
    """
    # one more pair outweighs the largest possible sum of weights
    value_of_pair = min(weight.shape) * max(float(weight.max()), 1.0) + 1
    value = np.where(weight > 0, value_of_pair + weight + _KEEP_FOUND * prefer, 0)
    rows, columns = linear_sum_assignment(value, maximize=True)
    # scipy assigns as many rows as possible, also where nothing may match
    may_match = weight[rows, columns] > 0
    return rows[may_match], columns[may_match]


def _find_exclusive(links: Links) -> Flags:
    """Flag the links `[links]` whose candidate and lesion have no other link.

    Such a pair needs no assignment problem.
    """
    of_candidate = np.bincount(links.candidate, minlength=links.n_candidates)
    of_lesion = np.bincount(links.lesion, minlength=links.n_lesions)
    return np.asarray((of_candidate[links.candidate] == 1) & (of_lesion[links.lesion] == 1))


def _split_parts(links: Links) -> Iterator[tuple[Rows, Rows, Numbers]]:
    """Yield candidates, lesions and dense weight `[candidates, lesions]` of each connected part.

    Parts have no common link, so each one is a small assignment problem of its own.
    """
    if len(links.candidate) == 0:
        return
    # the nodes of the graph are all candidates, then all lesions
    n_nodes = links.n_candidates + links.n_lesions
    ends = (links.candidate, links.n_candidates + links.lesion)
    graph = coo_array((np.ones(len(links.candidate)), ends), shape=(n_nodes, n_nodes))
    _, part_of_node = connected_components(graph, directed=False)
    part_of_link = part_of_node[links.candidate]
    for links_of_part in _group_equal(part_of_link):
        candidates, row = np.unique(links.candidate[links_of_part], return_inverse=True)
        lesions, column = np.unique(links.lesion[links_of_part], return_inverse=True)
        weight = np.zeros((len(candidates), len(lesions)))
        weight[row, column] = links.weight[links_of_part]
        yield candidates, lesions, weight


def _group_equal(values: NDArray[np.integer]) -> list[Rows]:
    """Return the positions of each distinct value, for example [0, 2] and [1] for (5, 7, 5)."""
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


# --- overlap ---------------------------------------------------------------------------------


def overlap_table(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """List all overlapping pairs of a case, sorted by candidate, then lesion."""
    n_lesions = len(lesions)
    # one number for each lesion voxel within a candidate: candidate row · n_lesions + lesion row
    pair_of_voxel = np.zeros(0, dtype=np.int64)
    if candidates.instances is not None and len(candidates) and len(lesions.voxels):
        row_of_id = np.full(int(candidates.ids.max()) + 1, -1, dtype=np.int64)
        row_of_id[candidates.ids] = np.arange(len(candidates))
        candidate_row = row_of_id[candidates.instances[tuple(lesions.voxels.T)]]
        lesion_row = np.repeat(np.arange(n_lesions), lesions.n_voxels)
        pair_of_voxel = (candidate_row * n_lesions + lesion_row)[candidate_row >= 0]
    pair, shared = np.unique(pair_of_voxel, return_counts=True)
    candidate, lesion = np.divmod(pair, max(n_lesions, 1))
    union = candidates.n_voxels[candidate] + lesions.n_voxels[lesion] - shared
    by_mask = Overlaps(candidate, lesion, shared.astype(np.int64), shared / np.maximum(union, 1))
    # a pair is compared by boxes if one of the two has no mask
    is_box_pair = ~np.outer(candidates.has_voxels, lesions.has_voxels)
    if not is_box_pair.any():
        return by_mask
    iou: Numbers = box_iou(
        torch.from_numpy(candidates.boxes), torch.from_numpy(lesions.boxes)
    ).numpy()
    candidate, lesion = np.nonzero(is_box_pair & (iou > 0))
    by_box = Overlaps(candidate, lesion, np.zeros_like(candidate), iou[candidate, lesion])
    both = Overlaps(
        candidate=np.concatenate([by_mask.candidate, by_box.candidate]),
        lesion=np.concatenate([by_mask.lesion, by_box.lesion]),
        voxels=np.concatenate([by_mask.voxels, by_box.voxels]),
        iou=np.concatenate([by_mask.iou, by_box.iou]),
    )
    return both.where(np.lexsort((both.lesion, both.candidate)))


def sum_shares(row: Rows, n_rows: int, share: Numbers, common: Numbers | None) -> Numbers:
    """Compute the share of each lesion, or of each candidate, that all its pairs cover together.

    Args:
        row: Row of the lesion, or of the candidate, of each pair `[pairs]`.
        n_rows: Number of lesions or candidates.
        share: The share that each pair covers `[pairs]`. Shares of masks are added, because masks
            never overlap.
        common: As in `Shares`. Where boxes overlap, their union counts once.

    Returns:
        Shares `[n_rows]`, at most 1.
    """
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        for one in np.flatnonzero(np.bincount(row, minlength=n_rows) > 1):
            total[one] = _sum_of_pairs(share[row == one], common[row == one])
    return np.minimum(total, 1.0)


def find_covered(
    row: Rows, n_rows: int, share: Numbers, common: Numbers | None, enough: float
) -> Flags:
    """Return a boolean array `[n_rows]`: rows whose pairs together cover at least `enough`.

    The other arguments are those of `sum_shares`.
    """
    total = np.bincount(row, share, minlength=n_rows)
    if common is not None:
        # The sum counts overlapping boxes twice. Only sums of several pairs that seem to be enough
        # need to be computed exactly.
        has_several = np.bincount(row, minlength=n_rows) > 1
        for one in np.flatnonzero((total >= enough - ROUNDING) & has_several):
            total[one] = _sum_of_pairs(share[row == one], common[row == one])
    reached: Flags = total >= enough - ROUNDING
    return reached


def score_of_cover(scores: Numbers, share: Numbers, common: Numbers | None, enough: float) -> float:
    """Return the highest score at which the pairs `[pairs]` of a lesion cover `enough` of it.

    Return `NEVER` if all of them together cover less.
    """
    order = np.argsort(-scores, kind="stable")

    def sum_first(n: int) -> float:
        """Return the share that the n pairs with the highest scores cover."""
        first = order[:n]
        return _sum_of_pairs(share[first], None if common is None else common[first])

    # the share grows with n, so bisection finds the smallest n whose share is enough
    last = bisect_left(range(1, len(order) + 1), enough - ROUNDING, key=sum_first)
    return float(scores[order[last]]) if last < len(order) else NEVER


def _sum_of_pairs(share: Numbers, common: Numbers | None) -> float:
    """Return the share that the pairs of one row cover together.

    Shares of masks are added. If several pairs have boxes, the volume of their union counts.
    """
    if common is None:
        return float(share.sum())
    volumes = _compute_volumes(common)
    has_box = volumes > 0
    if np.count_nonzero(has_box) < 2:
        return float(share.sum())
    # all shares belong to the same row, so share / volume is the same for each box
    share_per_volume = share[has_box][0] / volumes[has_box][0]
    of_boxes = share_per_volume * union_volume(common[has_box])
    return float(share[~has_box].sum() + of_boxes)


def union_volume(boxes: Numbers) -> float:
    """Compute the volume of the union of boxes `[n, 2·dims]`.

    In 3-D, the slabs between all edges along the first axis are added, which saves memory. In 2-D,
    the cells between all edges are added.

    >>> union_volume(np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]))
    7.0
    """
    if len(boxes) == 0:
        return 0.0
    dims = boxes.shape[1] // 2
    edges = [np.unique(boxes[:, [axis, axis + dims]]) for axis in range(dims)]
    if dims > 2:
        flat = np.delete(boxes, [0, dims], axis=1)
        volume = 0.0
        for start, stop in pairwise(edges[0]):
            across = (boxes[:, 0] <= start) & (boxes[:, dims] >= stop)
            volume += (stop - start) * union_volume(flat[across])
        return float(volume)
    # `inside` is True for the cells between neighbouring edges that a box contains
    inside = np.zeros([len(edge) - 1 for edge in edges], dtype=np.bool_)
    for box in boxes:
        cells = []
        for axis, edge in enumerate(edges):
            first, last = np.searchsorted(edge, (box[axis], box[axis + dims]))
            cells.append(slice(first, last))
        inside[tuple(cells)] = True
    return float(inside @ np.diff(edges[1]) @ np.diff(edges[0]))


def _intersect(a: Numbers, b: Numbers) -> Numbers:
    """Return the intersections `[n, 2·dims]` of overlapping boxes, pair by pair."""
    dims = a.shape[1] // 2
    start = np.maximum(a[:, :dims], b[:, :dims])
    return np.hstack([start, np.minimum(a[:, dims:], b[:, dims:])])


def _compute_volumes(boxes: Numbers) -> Numbers:
    """Return the volume `[n]` of each box."""
    dims = boxes.shape[1] // 2
    return np.asarray(np.prod(boxes[:, dims:] - boxes[:, :dims], axis=1))
