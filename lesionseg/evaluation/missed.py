"""Explain why a lesion was missed, for each way in which the match rule can leave it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate
from lesionseg.evaluation.matching import ROUNDING, Match, Shares, shares_of, sum_shares
from lesionseg.evaluation.tables import NEVER

# a candidate that covers this share of a lesion marks it, even if the rule rejects the pair
MARKED = 0.5
Flags = NDArray[np.bool_]


class WhyMissed(StrEnum):
    """The reason why a lesion was missed; empty for a found lesion.

    A reason may concern an accepted candidate, or a retained candidate below the operating point if
    that one comes closer. The column `nearest_candidate` is its id.
    """

    FOUND = ""
    CASE_FAILED = "case_failed"
    """The case has no prediction."""
    NO_RESPONSE = "no_response"
    """No candidate touches the lesion, not even one that was removed for its size."""
    BELOW_OPERATING_POINT = "below_operating_point"
    """The lesion is found at a lower score."""
    NOT_ACCEPTED = "not_accepted"
    """A candidate finds the lesion and has a sufficient score, but is not marked as accepted."""
    OVERLAP_TOO_SMALL = "overlap_too_small"
    """Coverage rule: the candidates together cover too little of the lesion."""
    CANDIDATE_TOO_LARGE = "candidate_too_large"
    """Coverage rule: the lesion is covered, but too little of the candidate is in lesions."""
    IOU_TOO_SMALL = "iou_too_small"
    """IoU rules: the outlines of candidate and lesion agree too little."""
    CENTRE_TOO_FAR = "centre_too_far"
    """Centre rule: the candidate overlaps the lesion, but its centre is too far away."""
    MERGED = "merged"
    """One-to-one rules: the candidate that marks the lesion is the match of another lesion."""
    WRONG_LABEL = "wrong_label"
    """A candidate of another label would find the lesion."""
    REMOVED_BY_SIZE = "removed_by_size"
    """The candidate was removed because it is smaller than the plan allows."""


@dataclass(frozen=True)
class Miss:
    """The reason why a lesion was missed, with the numbers behind it.

    Attributes:
        why: The reason.
        covered: The share of the lesion that the accepted candidates cover together. If none of
            them touches it, the share that all retained candidates cover.
        candidate: Id of the candidate that the reason concerns. None if it is not retained.
        score: Score of that candidate.
        iou: IoU of the lesion and that candidate.
    """

    why: WhyMissed
    covered: float = 0.0
    candidate: int | None = None
    score: float | None = None
    iou: float | None = None


@dataclass(frozen=True, eq=False)
class Misses:
    """Explains the missed lesions of one case.

    Attributes:
        match: The possible pairs of candidates and lesions.
        accepted: True for accepted candidates `[candidates]`.
        true: True for true positives `[candidates]`.
        least: The lowest score that is accepted.
        removed: Candidates that were removed for their size.
        unannotated: The match of the candidates whose labels the reference does not annotate. None
            if there are none.
        unannotated_accepted: True for the accepted ones of these candidates.
    """

    match: Match
    accepted: Flags
    true: Flags
    least: float
    removed: Sequence[Candidate] = ()
    unannotated: Match | None = None
    unannotated_accepted: Flags | None = None

    @cached_property
    def _shares(self) -> Shares:
        """The shares that each pair covers."""
        return shares_of(self.match.candidates, self.match.lesions, self.match.overlaps)

    @cached_property
    def covered_by_accepted(self) -> NDArray[np.float64]:
        """The share of each lesion `[lesions]` that accepted candidates cover together."""
        pairs = np.flatnonzero(self.accepted[self.match.overlaps.candidate])
        lesion = self.match.overlaps.lesion[pairs]
        shares = self._shares.where(pairs)
        return sum_shares(lesion, len(self.match.lesions), shares.of_lesion, shares.common)

    @cached_property
    def in_lesions(self) -> NDArray[np.float64]:
        """The share of each candidate `[candidates]` that is located in lesions."""
        candidate = self.match.overlaps.candidate
        n_candidates = len(self.match.candidates)
        return sum_shares(candidate, n_candidates, self._shares.of_candidate, self._shares.common)

    def covered(self, row: int) -> float:
        """Return the share of a lesion that candidates cover, as `Miss.covered` states it."""
        by_accepted = float(self.covered_by_accepted[row])
        if by_accepted > 0:
            return by_accepted
        return self._sum_of_pairs(self._find_touching(row))

    def explain(self, row: int) -> Miss:
        """Return the first reason that applies. Reasons are tried from the nearest miss on.

        Accepted candidates that nearly find the lesion come first, then a lower operating point,
        then accepted candidates that only touch it, and candidates that are not accepted last.
        """
        touching = self._find_touching(row)
        is_accepted = self.accepted[self.match.overlaps.candidate[touching]]
        is_same_label = self.match.comparable[touching]
        accepted = touching[is_accepted & is_same_label]
        accepted_other_label = touching[is_accepted & ~is_same_label]
        rejected = touching[~is_accepted & is_same_label]
        any_other_label = touching[~is_same_label]
        return (
            self._explain_near_miss(accepted, row)
            or self._explain_other_label(accepted_other_label, row)
            or self._explain_unannotated_label(row)
            or self._explain_lower_score(row)
            or self._explain_touch(accepted, row)
            or self._explain_removed(row, self.least)
            or self._explain_touch(accepted_other_label, row)
            or self._explain_near_miss(rejected, row)
            or self._explain_other_label(any_other_label, row)
            or self._explain_touch(touching, row)
            or self._explain_removed(row, 0.0)
            or Miss(WhyMissed.NO_RESPONSE)
        )

    def _explain_near_miss(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        """Explain why a pair that comes close does not find the lesion; None if none is close."""
        near = self._find_near_pair(pairs, row)
        if near is None:
            return None
        why, pair = near
        return self._describe_miss(why, row, pair)

    def _explain_other_label(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        """Return a miss if a pair would find the lesion with the right label, otherwise None."""
        fitting = self._select_fitting(pairs)
        if not len(fitting):
            return None
        return self._describe_miss(WhyMissed.WRONG_LABEL, row, self._choose_best(fitting))

    def _explain_unannotated_label(self, row: int) -> Miss | None:
        """Return a miss if a candidate of an unannotated label fits, otherwise None."""
        if not self._is_marked_as_unannotated(row):
            return None
        return Miss(WhyMissed.WRONG_LABEL, self.covered(row))

    def _explain_lower_score(self, row: int) -> Miss | None:
        """Return a miss if a candidate finds the lesion when more are accepted, otherwise None.

        The miss names the linked candidate that must be accepted last, so the one with the lowest
        score. If several have this score, it is the one with the largest weight.
        """
        match = self.match
        found_at = float(match.detected_at[row])
        if found_at <= NEVER:
            return None
        links = match.links[match.criterion]
        scores = match.scores[links.candidate]
        would_find = (links.lesion == row) & (scores >= found_at)
        would_find &= ~self.accepted[links.candidate]
        candidate = None
        score = found_at
        if would_find.any():
            score = float(scores[would_find].min())
            is_last = would_find & (scores == score)
            best = links.candidate[is_last][np.argmax(links.weight[is_last])]
            candidate = int(match.candidates.ids[best])
        is_below = found_at < self.least
        why = WhyMissed.BELOW_OPERATING_POINT if is_below else WhyMissed.NOT_ACCEPTED
        return Miss(why, self.covered(row), candidate, score)

    def _explain_touch(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        """Return a miss with the best of these pairs; None without pairs."""
        if not len(pairs):
            return None
        return self._describe_miss(self._too_little, row, self._choose_best(pairs))

    def _explain_removed(self, row: int, least: float) -> Miss | None:
        """Return a miss if a candidate at this lesion was removed for its size; otherwise None.

        Candidates with a score below `least` do not count.
        """
        scores = [c.score for c in self.removed if self._covers_part_of(c, row)]
        highest = max(scores, default=None)
        if highest is None or highest < least:
            return None
        covered = self.covered(row)
        return Miss(WhyMissed.REMOVED_BY_SIZE, covered, candidate=None, score=highest)

    @property
    def _too_little(self) -> WhyMissed:
        """The reason for a lesion that a candidate only touches."""
        measure = self.match.criterion.measure
        if measure == "coverage":
            return WhyMissed.OVERLAP_TOO_SMALL
        if measure == "centre":
            return WhyMissed.CENTRE_TOO_FAR
        if measure == "iou":
            return WhyMissed.IOU_TOO_SMALL
        return WhyMissed.WRONG_LABEL  # "overlap": any contact is enough if the label is right

    def _find_near_pair(self, pairs: NDArray[np.int64], row: int) -> tuple[WhyMissed, int] | None:
        """Return the pair that comes closest to finding a missed lesion, and why it does not.

        Return None if no pair comes close. A pair is close in these cases:

        - coverage rule: the pairs together cover enough of the lesion, but too little of this
          candidate is located in lesions
        - centre rule: the candidate covers at least the share `MARKED` of the lesion
        - other rules: the candidate may find this lesion, or it covers the share `MARKED`, but it
          is the match of another lesion

        Args:
            pairs: Positions in `match.overlaps` of pairs of this lesion.
            row: Row of the lesion.
        """
        if not len(pairs):
            return None
        rule = self.match.criterion
        links = self.match.links[rule]
        candidate = self.match.overlaps.candidate[pairs]
        covers_much = self._shares.of_lesion[pairs] >= MARKED
        if rule.measure == "coverage":
            covered_together = self._sum_of_pairs(pairs)
            if covered_together < rule.threshold - ROUNDING:
                return None
            why = WhyMissed.CANDIDATE_TOO_LARGE
            # the rule links only candidates of which enough is located in lesions
            is_linked = np.isin(candidate, links.candidate)
            is_close = ~is_linked
        elif rule.measure == "centre":
            why = WhyMissed.CENTRE_TOO_FAR
            is_close = covers_much
        else:
            why = WhyMissed.MERGED
            may_find_lesion = np.isin(candidate, links.candidate[links.lesion == row])
            finds_another = self.true[candidate]
            is_close = may_find_lesion | (finds_another & covers_much)
        close_pairs = pairs[is_close]
        if not len(close_pairs):
            return None
        return why, self._choose_best(close_pairs)

    def _select_fitting(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Select the pairs that the rule would count as hits if it ignored labels."""
        if not len(pairs):
            return pairs
        is_fitting = find_fitting(self.match, self._shares)
        return pairs[is_fitting[pairs]]

    def _is_marked_as_unannotated(self, row: int) -> bool:
        """Return True if an accepted candidate of an unannotated label fits the lesion."""
        other = self.unannotated
        accepted = self.unannotated_accepted
        if other is None or accepted is None:
            return False
        is_accepted = (other.overlaps.lesion == row) & accepted[other.overlaps.candidate]
        shares = shares_of(other.candidates, other.lesions, other.overlaps)
        is_fitting = find_fitting(other, shares)
        return bool((is_accepted & is_fitting).any())

    def _covers_part_of(self, candidate: Candidate, row: int) -> bool:
        """Return True if the box of a removed candidate contains a part of the lesion."""
        lesions = self.match.lesions
        pooled = self.match.criterion.assignment == "jointly"
        if not pooled and candidate.label != lesions.labels[row]:
            return False
        start = np.array(candidate.start_vox)
        stop = np.array(candidate.stop_vox)
        voxels = lesions.voxels_of(row)
        if len(voxels):
            return bool(((voxels >= start) & (voxels < stop)).all(axis=1).any())
        box = lesions.boxes[row]
        dims = lesions.geometry.dims
        return bool(((box[:dims] < stop) & (box[dims:] > start)).all())

    def _find_touching(self, row: int) -> NDArray[np.int64]:
        """Return the positions in `match.overlaps` of the pairs of a lesion."""
        return np.flatnonzero(self.match.overlaps.lesion == row)

    def _sum_of_pairs(self, pairs: NDArray[np.int64]) -> float:
        """Return the share of their lesion that these pairs cover together."""
        shares = self._shares.where(pairs)
        row = np.zeros(len(pairs), dtype=np.int64)
        return float(sum_shares(row, 1, shares.of_lesion, shares.common)[0])

    def _choose_best(self, pairs: NDArray[np.int64]) -> int:
        """Return the pair that covers most of the lesion. If several do, the largest IoU counts."""
        iou = self.match.overlaps.iou[pairs]
        covered = self._shares.of_lesion[pairs]
        ascending = np.lexsort((iou, covered))  # the last key is the first criterion
        return int(pairs[ascending[-1]])

    def _describe_miss(self, why: WhyMissed, row: int, pair: int) -> Miss:
        """Return a miss with the numbers of a pair."""
        match = self.match
        candidate = int(match.overlaps.candidate[pair])
        return Miss(
            why=why,
            covered=self.covered(row),
            candidate=int(match.candidates.ids[candidate]),
            score=float(match.scores[candidate]),
            iou=float(match.overlaps.iou[pair]),
        )


def find_fitting(match: Match, shares: Shares) -> Flags:
    """Flag the pairs `[pairs]` that the rule would count as hits if it ignored labels."""
    rule = match.criterion
    pairs = match.overlaps
    if rule.measure == "coverage":
        least = rule.threshold - ROUNDING
        return (shares.of_lesion >= least) & (shares.of_candidate >= least)
    if rule.measure == "iou":
        return np.asarray(pairs.iou >= rule.threshold)
    if rule.measure == "overlap":
        return np.ones(len(pairs.candidate), dtype=np.bool_)
    centres_mm = match.candidates.centres_mm[pairs.candidate]
    difference_mm = centres_mm - match.lesions.centres_mm[pairs.lesion]
    radii_mm = match.lesions.diameters_mm[pairs.lesion] / 2
    return np.asarray(np.linalg.norm(difference_mm, axis=-1) < rule.threshold * radii_mm)
