"""Matching algorithm: overlaps, links, one-to-one pairs; found, missed, false, ignored.

`evaluation.criteria` has the rules, as a `Criterion`.

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lesionseg.core import Lesions, Prediction, Reference
from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.core.lesions import box_slices
from lesionseg.evaluation.box_precision import BoxPairs, encode_hits, pair_boxes
from lesionseg.evaluation.criteria import SECONDARY_CRITERIA, Criterion
from lesionseg.evaluation.tables import NEVER_FOUND
from lesionseg.ops.boxes import overlapping_pairs
from lesionseg.ops.components import candidates_of, lesions_of

# a candidate with a larger share in the ignored region is neither true nor false positive
MAX_IGNORED_SHARE = 0.5
ROUNDING = 1e-9  # tolerance, because shares are sums of fractions
# bonus of a found lesion: larger than rounding errors, smaller than relevant differences of IoU
_KEEP_FOUND = 1e-9
Rows = Integers
Outcomes = NDArray[np.str_]


class _Pairs:
    """Base class of tables whose arrays have one row per pair."""

    def where(self, kept: Flags | Rows) -> Self:
        """Return the table with only the selected pairs.

        `kept` selects pairs by flags `[pairs]` or by row numbers. Attributes that are not arrays
        stay as they are.
        """
        columns = {k: v[kept] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Overlaps(_Pairs):
    """The pairs of a candidate and a lesion that overlap, also those of different labels.

    A pair is compared by masks if both have one, otherwise by boxes.

    Attributes:
        candidate: Row of the candidate of each pair `[pairs]`.
        lesion: Row of the lesion of each pair `[pairs]`.
        voxels: Number of shared voxels `[pairs]`, 0 for boxes.
        iou: IoU `[pairs]`.
        of_candidate: The share of the candidate that is located in the lesion `[pairs]`.
        of_lesion: The share of the lesion that the candidate covers `[pairs]`.
        common: The intersection of two boxes `[pairs, 2·dims]`, 0 for masks. Boxes of several
            candidates may overlap, so that only the volume of their union counts. Masks of
            candidates share no voxel, so that their shares are added.
    """

    candidate: Rows
    lesion: Rows
    voxels: Rows
    iou: Numbers
    of_candidate: Numbers
    of_lesion: Numbers
    common: Numbers


@dataclass(frozen=True, eq=False)
class Links(_Pairs):
    """The pairs in which the candidate may find the lesion.

    Attributes:
        criterion: The rule.
        n_lesions: Number of lesions of the case.
        candidate: Row of the candidate of each pair `[links]`.
        lesion: Row of the lesion of each pair `[links]`.
        weight: The rank of each pair `[links]`, above 0 and at most 1. For the assignment
            `jointly`, it is the share of the lesion that the candidate covers.
        common: The intersection of two boxes `[links, 2·dims]`, 0 for masks.
    """

    criterion: Criterion
    n_lesions: int
    candidate: Rows
    lesion: Rows
    weight: Numbers
    common: Numbers


# --- the rule ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Match:
    """The pairs of a case in which a candidate may find a lesion, for any operating point.

    Attributes:
        scores: Scores of the candidates `[n]`.
        lesions: The lesions.
        candidates: The candidates.
        overlaps: The pairs of a candidate and a lesion that overlap.
        comparable: True for pairs `[pairs]` of `overlaps` whose labels may match. If labels are
            pooled, these are the pairs of candidates whose label the dataset has.
        ignored: True for candidates `[n]` that are mostly located in the ignored region.
        lost: True for candidates `[n]` whose mask is located only in the ignored region. They are
            also `ignored`.
        criterion: The rule of the case.
        links: The links under `criterion` and under each of `SECONDARY_CRITERIA`.
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
        """The highest threshold at which each lesion is found under the criterion `[lesions]`.

        `NEVER_FOUND` for a lesion that no candidate finds. Computed once, because any operating
        point is evaluated with these scores.
        """
        return detection_scores(self.links[self.criterion], self.scores)

    @cached_property
    def box_pairs(self) -> BoxPairs:
        """The pairs of a candidate and a lesion of equal labels whose bounding boxes overlap.

        The pairs are used for the scores of boxes.
        """
        return pair_boxes(self.candidates, self.lesions)

    @cached_property
    def box_hits(self) -> Sequence[int | None]:
        """The cell `box_hits` of candidates.csv for each candidate, see `encode_hits`.

        The cell encodes at which box IoUs the candidate is a true positive.
        """
        return encode_hits(self.candidates, self.box_pairs, self.scores, self.ignored)

    def compute_dice(self, is_in_reference: Flags, is_in_prediction: Flags) -> float | None:
        """Compute the Dice between the union of some lesions and the union of some candidates.

        The Dice is computed from the stored numbers of voxels, because the masks are no longer in
        memory. Return None if neither the lesions nor the candidates have a voxel.

        Args:
            is_in_reference: True for the lesions that count `[lesions]`.
            is_in_prediction: True for the candidates that count `[n]`.
        """
        pairs = self.overlaps
        is_counted = is_in_prediction[pairs.candidate] & is_in_reference[pairs.lesion]
        n_common = pairs.voxels[is_counted].sum()
        n_reference = self.lesions.n_voxels[is_in_reference].sum()
        n_predicted = self.candidates.n_voxels[is_in_prediction].sum()
        if n_reference + n_predicted == 0:
            return None
        return float(2 * n_common / (n_reference + n_predicted))

    def decide_outcomes(
        self, accepted: Flags, rule: Criterion | None = None
    ) -> tuple[Rows, Outcomes]:
        """Decide which lesions the accepted candidates find, and the outcome of each candidate.

        A candidate may find a lesion if it has a link with the lesion. The outcome of a candidate
        is the first of these that applies:

        1. `not_accepted`: the candidate is not accepted.
        2. `true_positive`: the candidate finds a lesion. With the assignment `jointly`, it is
           enough that it may find a lesion.
        3. `ignored`: most of the candidate is in the ignored region, or it may find a lesion. The
           second condition does not apply to the assignment `largest_sum`.
        4. `false_positive`: all other candidates.

        Args:
            accepted: True for each accepted candidate `[n]`.
            rule: A secondary criterion. None uses the criterion of the case.

        Returns:
            The row of the candidate that finds each lesion `[lesions]`, −1 for a missed lesion, and
            the outcome of each candidate `[n]`.
        """
        links = self.links[rule or self.criterion]
        must_stay_found = np.zeros(len(self.lesions), bool)
        if rule is None and accepted.any():
            # lesions that are found at this or a higher threshold, so `assign` prefers them among
            # equally good solutions
            must_stay_found = self.detected_at >= self.scores[accepted].min()
        candidate_of = assign(links, accepted, prefer=must_stay_found)
        matched = np.zeros_like(accepted)
        linked = np.zeros_like(accepted)
        matched[candidate_of[candidate_of >= 0]] = True
        linked[links.candidate] = True
        if links.criterion.assignment == "jointly":
            matched = linked  # all supported candidates, even if they cover too little of a lesion
        is_ignored = self.ignored  # not a false positive, even without a lesion
        if links.criterion.assignment != "largest_sum":
            is_ignored = is_ignored | linked
        # the first condition that is true decides
        outcomes = np.select(
            [~accepted, matched, is_ignored],
            ["not_accepted", "true_positive", "ignored"],
            "false_positive",
        )
        return candidate_of, outcomes


def match(
    reference: Reference,
    prediction: Prediction,
    criterion: Criterion,
    known: Collection[int] | None = None,
) -> Match:
    """Link each lesion of a case to the candidates that may find it.

    `Match.decide_outcomes` decides later which lesions the accepted candidates find, so that the
    overlaps are computed only once for all operating points.

    Usually a candidate finds only lesions of its own label. If several candidates may find a lesion
    together (`jointly`) and the case has several labels, labels are pooled: a candidate may find a
    lesion of any label.

    Args:
        reference: The lesions of the case.
        prediction: The candidates of the case, on the grid of the reference.
        criterion: The match rule.
        known: Label values of the dataset. If labels are pooled, candidates of other labels find no
            lesion. None or empty allows all labels.

    Returns:
        The lesions, the candidates with their scores, their overlaps, and the links under the
        criterion and under each of `SECONDARY_CRITERIA`. If labels are pooled, `within_labels` is
        the match without pooling.
    """
    lesions = lesions_of(reference)
    candidates = candidates_of(prediction, reference.ignore)  # without voxels in this region
    ignored, lost = _find_ignored(reference, prediction, candidates)
    overlaps = overlap_table(candidates, lesions)
    overlaps = overlaps.where(~lost[overlaps.candidate])
    same_label = candidates.labels[overlaps.candidate] == lesions.labels[overlaps.lesion]
    links = {
        rule: find_links(rule, candidates, lesions, overlaps, lost) for rule in SECONDARY_CRITERIA
    }
    links[criterion] = find_links(criterion, candidates, lesions, overlaps.where(same_label), lost)
    within_labels = Match(
        scores=np.array([c.score for c in prediction.candidates], float),
        lesions=_save_memory(lesions),
        candidates=_save_memory(candidates),
        overlaps=overlaps,
        comparable=same_label,
        ignored=ignored,
        lost=lost,
        criterion=criterion,
        links=links,
        has_masks=prediction.instances is not None and bool(lesions.has_voxels.all()),
    )
    labels = {*candidates.labels.tolist(), *lesions.labels.tolist()}
    if criterion.assignment != "jointly" or len(labels) < 2:
        return within_labels
    is_known = np.isin(candidates.labels[overlaps.candidate], [*(known or labels)])
    pooled = find_links(criterion, candidates, lesions, overlaps.where(is_known), lost)
    return replace(
        within_labels,
        comparable=is_known,
        links={**links, criterion: pooled},
        within_labels=within_labels,
    )


def _save_memory(lesions: Lesions) -> Lesions:
    """Reduce the memory of a table of lesions, because all cases of a dataset stay in memory.

    The mask is dropped, and voxel indices get the smallest sufficient integer type.
    """
    index_type = np.min_scalar_type(max(lesions.geometry.shape))
    return replace(lesions, voxels=lesions.voxels.astype(index_type, copy=False), instances=None)


def _find_ignored(
    reference: Reference, prediction: Prediction, candidates: Lesions
) -> tuple[Flags, Flags]:
    """Find the candidates in the ignored region of the reference, which is not scored.

    Args:
        reference: The reference with its ignored region.
        prediction: The prediction with its instance mask.
        candidates: The candidates, with only their voxels outside the ignored region.

    Returns:
        The flags `[n]` of `Match.ignored`: more than half of the candidate's voxels are in the
        region. Without voxels, more than half of its box is. Then the flags `[n]` of `Match.lost`:
        all voxels of the candidate are in the region.
    """
    all_false = np.zeros(len(candidates), bool)
    ignore = reference.ignore
    if ignore is None or len(candidates) == 0:
        return all_false, all_false
    n_inside = np.zeros(len(candidates))  # voxels in the ignored region
    if prediction.instances is not None:
        highest = int(candidates.ids.max())
        counts = np.bincount(prediction.instances[ignore].reshape(-1), minlength=highest + 1)
        n_inside = counts[candidates.ids].astype(float)
    n_all = n_inside + candidates.n_voxels
    ignored_share = n_inside / np.maximum(n_all, 1)
    for row in np.flatnonzero(n_all == 0):
        ignored_in_box = ignore[box_slices(candidates.boxes[row], ignore.ndim)]
        ignored_share[row] = ignored_in_box.mean() if ignored_in_box.size else 0.0
    return ignored_share > MAX_IGNORED_SHARE, (n_inside > 0) & (candidates.n_voxels == 0)


# --- links -----------------------------------------------------------------------------------


def find_links(
    rule: Criterion, candidates: Lesions, lesions: Lesions, overlaps: Overlaps, lost: Flags
) -> Links:
    """Find the pairs of a case in which the candidate may find the lesion under a match rule.

    Under the coverage rule, a candidate is linked to all lesions that it overlaps, of any label, if
    enough of the candidate is located in lesions. Under the other rules, only pairs of equal labels
    are linked. The measure `centre` ignores `overlaps`, and pairs candidates with the lesions near
    them.

    Each link has a weight, by which `assign` ranks the candidates of a lesion:

    - `coverage`: the fraction of the lesion that the candidate covers
    - `iou` and `overlap`: the IoU, or the Dice for the assignment `largest_sum`
    - `centre`: 1 / (1 + distance of the centres in mm)

    Args:
        rule: The match rule.
        candidates: The candidates of the case.
        lesions: The lesions of the case.
        overlaps: The overlapping pairs to consider. The caller leaves out pairs of `lost`
            candidates and, under the coverage rule without pooled labels, of different labels.
        lost: True for candidates `[n]` with voxels only in the ignored region.
    """
    candidate = overlaps.candidate
    lesion = overlaps.lesion
    weight = overlaps.iou
    common = overlaps.common
    if rule.measure == "coverage":
        weight = overlaps.of_lesion
        in_lesions = sum_shares(
            row=candidate, n_rows=len(candidates), share=overlaps.of_candidate, common=common
        )
        is_linked = (in_lesions >= rule.threshold - ROUNDING)[candidate]
    else:
        if rule.measure == "centre":  # a candidate may find a lesion without an overlap
            tree = cKDTree(candidates.centres_mm)
            reach_mm = rule.threshold * lesions.diameters_mm / 2 + ROUNDING
            near = enumerate(tree.query_ball_point(lesions.centres_mm, reach_mm))
            pairs = [(row, number) for number, rows in near for row in rows if not lost[row]]
            candidate, lesion = np.array(pairs, np.int64).reshape(-1, 2).T
            weight = 1 / (1 + _measure_distances(candidates, lesions, candidate, lesion))
            common = np.zeros((len(candidate), common.shape[1]))  # not used by this rule
        is_linked = find_hits(rule, candidates, lesions, candidate, lesion, weight)
        is_linked &= candidates.labels[candidate] == lesions.labels[lesion]
        if rule.assignment == "largest_sum":
            weight = 2 * weight / (1 + weight)  # Dice from the IoU
    links = Links(
        criterion=rule,
        n_lesions=len(lesions),
        candidate=candidate,
        lesion=lesion,
        weight=weight,
        common=common,
    )
    return links.where(is_linked)


def find_hits(
    rule: Criterion,
    candidates: Lesions,
    lesions: Lesions,
    candidate: Rows,
    lesion: Rows,
    iou: Numbers,
) -> Flags:
    """Flag the pairs that fulfil the condition of a match rule, without regard to labels.

    Args:
        rule: A rule with the measure `iou`, `overlap` or `centre`, which judge each pair
            separately.
        candidates: The candidates of the case.
        lesions: The lesions of the case.
        candidate: Row of the candidate of each pair `[pairs]`.
        lesion: Row of the lesion of each pair `[pairs]`.
        iou: IoU of each pair `[pairs]`. Not used for `centre`.

    Returns:
        True for each pair that fulfils the condition `[pairs]`.
    """
    if rule.measure == "centre":
        distance_mm = _measure_distances(candidates, lesions, candidate, lesion)
        return distance_mm < rule.threshold * lesions.diameters_mm[lesion] / 2
    if rule.measure == "overlap":
        return iou > 0
    return iou >= rule.threshold


def _measure_distances(
    candidates: Lesions, lesions: Lesions, candidate: Rows, lesion: Rows
) -> Numbers:
    """Compute the distance in mm of the centres of candidate and lesion of each pair `[pairs]`.

    `candidate` and `lesion` are the rows of each pair in `candidates` and `lesions`.
    """
    result: Numbers = np.linalg.norm(
        candidates.centres_mm[candidate] - lesions.centres_mm[lesion], axis=-1
    )
    return result


def detection_scores(links: Links, scores: Numbers) -> Numbers:
    """Return the highest threshold at which each lesion is found `[n_lesions]`.

    A lesion is found at a threshold if the candidates with at least this score find the lesion. It
    is `NEVER_FOUND` if no set of candidates does. With these scores, any operating point can be
    evaluated without another match.

    Args:
        links: The pairs of candidates and lesions that may match, with their criterion.
        scores: Score of each candidate `[n]`.
    """
    rule = links.criterion
    if rule.is_one_to_one:
        return _find_scores_one_to_one(links, scores)
    found_at = np.full(links.n_lesions, NEVER_FOUND)
    if rule.assignment == "all":  # one link is enough, so the one with the highest score decides
        np.maximum.at(found_at, links.lesion, scores[links.candidate])
        return found_at
    for links_of_lesion in _group_equal(links.lesion):
        selected = links.where(links_of_lesion)
        found_at[selected.lesion[0]] = score_of_cover(
            scores=scores[selected.candidate],
            share=selected.weight,
            common=selected.common,
            enough=rule.threshold,
        )
    return found_at


def _find_scores_one_to_one(links: Links, scores: Numbers) -> Numbers:
    """Compute `detection_scores` for a rule that pairs candidates and lesions one to one.

    Candidates are added by descending score, and the best matching is computed after each addition.
    The result of a lesion is the score at which the lesion is matched for the first time, because
    it stays found at lower scores.
    """
    found_at = np.full(links.n_lesions, NEVER_FOUND)
    for candidates, lesions, weight in _split_into_components(links):
        component_scores = scores[candidates]
        for score in np.unique(component_scores)[::-1]:  # from the highest
            is_found = found_at[lesions] > NEVER_FOUND
            if is_found.all():
                break
            _, columns = _pair_best(links.criterion, weight[component_scores >= score], is_found)
            matched = lesions[columns]
            # the maximum keeps the higher score of a lesion that was found before
            found_at[matched] = np.maximum(found_at[matched], score)
    return found_at


def assign(links: Links, accepted: Flags, prefer: Flags) -> Rows:
    """Assign to each lesion the accepted candidate that finds it, by the criterion of the links.

    The rule depends on the criterion's `assignment`:

    - `every_threshold`: pairs are one to one, and their number is as large as possible. If several
      solutions have that number, the one with the largest sum of weights is used. If sums are
      equal, the one that finds more lesions of `prefer` is used.
    - `largest_sum`: pairs are one to one, and only the largest sum of weights decides, even if
      another solution has more pairs.
    - `all`: a lesion gets its linked candidate with the largest weight.
    - `jointly`: a lesion gets its linked candidate with the largest weight, but only if all linked
      candidates together cover at least the fraction `threshold` of the lesion.

    Args:
        links: The pairs of candidates and lesions that may match.
        accepted: True for the candidates `[n_candidates]` that may be assigned.
        prefer: True for lesions `[n_lesions]` that should stay found when the threshold falls.

    Returns:
        Rows of candidates `[n_lesions]`, −1 for a lesion that is not found.
    """
    links = links.where(accepted[links.candidate])
    candidate_of = np.full(links.n_lesions, -1, np.int64)
    rule = links.criterion
    if rule.is_one_to_one:
        for candidates, lesions, weight in _split_into_components(links):
            rows, columns = _pair_best(rule, weight, prefer[lesions])
            candidate_of[lesions[columns]] = candidates[rows]
        return candidate_of
    # numpy keeps the last of several values for a lesion, so the largest weight must come last
    order = np.argsort(links.weight, kind="stable")
    candidate_of[links.lesion[order]] = links.candidate[order]
    if rule.assignment == "jointly":
        covered = sum_shares(
            row=links.lesion, n_rows=links.n_lesions, share=links.weight, common=links.common
        )
        candidate_of[covered < rule.threshold - ROUNDING] = -1
    return candidate_of


def _pair_best(rule: Criterion, weight: Numbers, prefer: Flags) -> tuple[Rows, Rows]:
    """Find the best one-to-one matching of candidates and lesions, as `assign` describes.

    The best matching has the largest sum of weights. With the assignment `every_threshold`, it is
    the best one among those with the largest number of pairs.

    Args:
        rule: A criterion with one of the one-to-one assignments `every_threshold` (as many pairs as
            possible at each threshold of the score) and `largest_sum`.
        weight: Weight of each pair `[candidates, lesions]`, 0 for pairs that may not match.
        prefer: True for lesions `[lesions]` that should stay found, if solutions are equally good.

    Returns:
        The rows of the matched candidates and the columns of their lesions, both `[matched pairs]`.
    """
    bonus_of_pair = 0.0
    if rule.assignment == "every_threshold":
        # the number of pairs decides first: one more pair outweighs the largest possible sum of
        # weights, which are at most 1
        bonus_of_pair = min(weight.shape) + 1.0
    # `_KEEP_FOUND` is so small that it only decides between equal sums
    value = np.where(weight > 0, bonus_of_pair + weight + _KEEP_FOUND * prefer, 0)
    rows, columns = linear_sum_assignment(value, maximize=True)
    # scipy assigns as many rows as possible, also pairs that may not match
    may_match = weight[rows, columns] > 0
    return rows[may_match], columns[may_match]


def _split_into_components(links: Links) -> Iterator[tuple[Rows, Rows, Numbers]]:
    """Split the links of a case into connected components, which are small assignment problems.

    No candidate or lesion belongs to two components, so each can be solved separately.

    Yields:
        The rows of the candidates, the rows of the lesions, and the weight of each pair
        `[candidates, lesions]`, which is 0 without a link.
    """
    for links_of_component in connected_parts(links.candidate, links.lesion):
        candidates, row = np.unique(links.candidate[links_of_component], return_inverse=True)
        lesions, column = np.unique(links.lesion[links_of_component], return_inverse=True)
        weight = np.zeros((len(candidates), len(lesions)))
        weight[row, column] = links.weight[links_of_component]
        yield candidates, lesions, weight


def connected_parts(first: Rows, second: Rows) -> list[Rows]:
    """Find the connected components of a bipartite graph, such as candidates linked to lesions.

    The edges are pairs. Edge i connects node `first[i]` of one kind, such as a candidate, with node
    `second[i]` of the other kind, such as a lesion. Each kind is numbered from 0.

    Returns:
        For each component, the indices of its edges.
    """
    if len(first) == 0:
        return []
    # the nodes of the first kind come first in the graph, then those of the second kind
    n_first = int(first.max()) + 1
    n_nodes = n_first + int(second.max()) + 1
    graph = coo_array((np.ones(len(first)), (first, n_first + second)), shape=(n_nodes, n_nodes))
    _, component_of_node = connected_components(graph, directed=False)
    return _group_equal(component_of_node[first])


def _group_equal(values: NDArray[np.integer]) -> list[Rows]:
    """Return the indices of each distinct value, for example [0, 2] and [1] for (5, 7, 5)."""
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


# --- overlap ---------------------------------------------------------------------------------


def overlap_table(candidates: Lesions, lesions: Lesions) -> Overlaps:
    """Measure the overlap of each candidate and lesion of a case that overlap.

    The pairs are sorted by candidate, then lesion. A pair is compared by masks if candidate and
    lesion have voxels, otherwise by bounding boxes. Masks are compared only if the instance mask
    `candidates.instances` exists.
    """
    n_lesions = len(lesions)
    # one number for each lesion voxel within a candidate: candidate row · n_lesions + lesion row
    pair_of_voxel = np.zeros(0, np.int64)
    if candidates.instances is not None and len(candidates) and len(lesions.voxels):
        # look up the candidate at each voxel of a lesion
        row_of_id = np.full(int(candidates.ids.max()) + 1, -1, np.int64)
        row_of_id[candidates.ids] = np.arange(len(candidates))
        candidate_row = row_of_id[candidates.instances[tuple(lesions.voxels.T)]]
        lesion_row = np.repeat(np.arange(n_lesions), lesions.n_voxels)
        pair_of_voxel = (candidate_row * n_lesions + lesion_row)[candidate_row >= 0]
    pair, voxels = np.unique(pair_of_voxel, return_counts=True)
    candidate, lesion = np.divmod(pair, max(n_lesions, 1))  # `max` avoids a division by 0
    # a pair is compared by boxes if one of the two has no mask
    if not (candidates.has_voxels.all() and lesions.has_voxels.all()):
        row, column, _ = overlapping_pairs(
            boxes=torch.from_numpy(candidates.boxes),
            labels=0 * candidates.ids,  # all labels 0, so that all pairs are compared
            others=torch.from_numpy(lesions.boxes),
            other_labels=0 * lesions.ids,
        )
        lacks_mask = ~(candidates.has_voxels[row] & lesions.has_voxels[column])
        candidate = np.concatenate([candidate, row[lacks_mask]])
        lesion = np.concatenate([lesion, column[lacks_mask]])
    voxels = np.pad(voxels, (0, len(candidate) - len(pair)))  # 0 for pairs of boxes
    has_boxes = voxels == 0
    boxes = candidates.boxes[candidate]
    other_boxes = lesions.boxes[lesion]
    common = _intersect(boxes, other_boxes) * has_boxes[:, np.newaxis]
    # the sizes of candidate, lesion and intersection, in voxels
    size = np.where(has_boxes, _compute_volumes(boxes), candidates.n_voxels[candidate])
    other_size = np.where(has_boxes, _compute_volumes(other_boxes), lesions.n_voxels[lesion])
    shared = np.where(has_boxes, _compute_volumes(common), voxels)
    overlaps = Overlaps(
        candidate=candidate,
        lesion=lesion,
        voxels=voxels.astype(np.int64),
        iou=shared / (size + other_size - shared),
        of_candidate=shared / size,
        of_lesion=shared / other_size,
        common=common,
    )
    return overlaps.where(np.lexsort((lesion, candidate)))  # the last key is the first criterion


def sum_shares(row: Rows, n_rows: int, share: Numbers, common: Numbers) -> Numbers:
    """Compute the fraction of each lesion that all its candidates cover together, or vice versa.

    The fraction of a candidate that is located in lesions is computed in the same way.

    Args:
        row: Row of the lesion, or of the candidate, of each pair `[pairs]`.
        n_rows: Number of lesions or candidates.
        share: The fraction that each pair covers `[pairs]`. Fractions of masks are added, because
            masks never overlap.
        common: The intersection of the two boxes of each pair `[pairs, 2·dims]`, 0 for masks. If
            several pairs of a row have boxes, the volume of the union of their intersections
            counts, because boxes may overlap.

    Returns:
        The covered fraction of each lesion or candidate `[n_rows]`, at most 1.
    """
    total = np.bincount(row, share, minlength=n_rows)
    is_of_boxes = common.any(axis=1)
    n_boxes = np.bincount(row[is_of_boxes], minlength=n_rows)
    # a single box overlaps no other one, so its fraction is added like that of a mask
    for number in np.flatnonzero(n_boxes > 1):
        total[number] = _cover_together(share[row == number], common[row == number])
    return np.minimum(total, 1.0)


def score_of_cover(scores: Numbers, share: Numbers, common: Numbers, enough: float) -> float:
    """Return the highest score at which the candidates of a lesion cover enough of the lesion.

    The candidates with at least this score together cover the fraction `enough`. Return
    `NEVER_FOUND` if all candidates of the lesion together cover less.

    Args:
        scores: Score of the candidate of each pair `[pairs]`. All pairs have the same lesion.
        share: The fraction of the lesion that each pair covers `[pairs]`.
        common: The intersection of the two boxes of each pair, as in `sum_shares`.
        enough: The required fraction of the lesion.
    """
    order = np.argsort(-scores, kind="stable")

    def cover_of_highest(n: int) -> float:
        """Return the fraction of the lesion that the n candidates of the highest scores cover.

        It is the sum of the fractions that the masks cover, plus the volume of the union of the
        boxes' intersections with the lesion (`common`), divided by the size of the lesion.
        """
        highest = order[:n]  # each pair has another candidate
        return _cover_together(share[highest], common[highest])

    # the fraction grows with n, so bisection finds the smallest n for which it is enough
    last = bisect_left(range(1, len(order) + 1), enough - ROUNDING, key=cover_of_highest)
    return float(scores[order[last]]) if last < len(order) else NEVER_FOUND


def _cover_together(share: Numbers, common: Numbers) -> float:
    """Compute the fraction of one lesion that its candidates cover together, or vice versa.

    Fractions of masks are added. Of boxes, the volume of the union of the intersections counts,
    divided by the size of the lesion. The arguments are those of `sum_shares`, for the pairs of a
    single lesion or candidate.
    """
    volumes = _compute_volumes(common)
    has_box = volumes > 0
    if np.count_nonzero(has_box) < 2:
        return float(share.sum())
    # each share is the volume of an intersection, divided by the size of the same lesion or
    # candidate, so share / volume is constant
    share_per_volume = share[has_box][0] / volumes[has_box][0]
    return float(share[~has_box].sum() + share_per_volume * union_volume(common[has_box]))


def union_volume(boxes: Numbers) -> float:
    """Compute the volume (2-D: area) of the union of boxes `[n, 2·dims]`, in voxels.

    A box consists of its starts, then its stops. In 2-D, the coordinates of all boxes divide the
    plane into rectangles, and the areas of the rectangles inside a box are added. In 3-D, they
    divide the volume into slabs along the first axis. The area of each slab is computed in 2-D,
    which saves memory.

    >>> union_volume(np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]))
    7.0
    """
    dims = boxes.shape[1] // 2
    edges = [np.unique(boxes[:, [axis, axis + dims]]) for axis in range(dims)]
    # for each axis, flags `[n, intervals]`: each box contains the interval of two successive edges
    contained = [
        (boxes[:, [axis]] <= edge[:-1]) & (boxes[:, [axis + dims]] >= edge[1:])
        for axis, edge in enumerate(edges)
    ]
    if dims > 2:
        # sum over slabs: thickness times the area of the union of the boxes in the slab
        flat = np.delete(boxes, [0, dims], axis=1)
        return float(np.diff(edges[0]) @ [union_volume(flat[across]) for across in contained[0].T])
    # flags `[y, x]`: the rectangle is inside at least one box
    inside = contained[0].T.astype(float) @ contained[1] > 0
    return float(inside @ np.diff(edges[1]) @ np.diff(edges[0]))


def _intersect(a: Numbers, b: Numbers) -> Numbers:
    """Return the intersection of box `a[i]` and box `b[i]` for each i `[n, 2·dims]`.

    The two boxes of each pair must overlap.
    """
    dims = a.shape[1] // 2
    return np.hstack([np.maximum(a[:, :dims], b[:, :dims]), np.minimum(a[:, dims:], b[:, dims:])])


def _compute_volumes(boxes: Numbers) -> Numbers:
    """Compute the volume (2-D: area) of each box in voxels `[n]`."""
    dims = boxes.shape[1] // 2
    result: Numbers = np.prod(boxes[:, dims:] - boxes[:, :dims], axis=1)
    return result
