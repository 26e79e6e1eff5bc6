"""Reasons for a missed lesion (`why_missed`): no response, below the point, merged, label."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lesionseg.core import Candidate
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.evaluation.matching import ROUNDING, Match, Overlaps, Rows, find_hits, sum_shares
from lesionseg.evaluation.tables import NEVER_FOUND

# a candidate that covers this share of a lesion marks it, even if the rule rejects the pair
MARKED = 0.5


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


# the reason for a lesion that a candidate only touches, by the measure of the rule
_WHY_TOUCHED = {
    "coverage": WhyMissed.OVERLAP_TOO_SMALL,
    "centre": WhyMissed.CENTRE_TOO_FAR,
    "iou": WhyMissed.IOU_TOO_SMALL,
    "overlap": WhyMissed.WRONG_LABEL,  # any contact is enough if the label is right
}
# the reason for a lesion that a candidate nearly finds
_WHY_NEAR = {
    "coverage": WhyMissed.CANDIDATE_TOO_LARGE,
    "centre": WhyMissed.CENTRE_TOO_FAR,
    "iou": WhyMissed.MERGED,
    "overlap": WhyMissed.MERGED,
}


class Miss(NamedTuple):
    """The cells of a missed lesion in the table of lesions, which state the reason.

    Attributes:
        why_missed: The reason.
        covered: The share of the lesion that the accepted candidates cover together. If none of
            them touches it, the share that all retained candidates cover.
        nearest_candidate: Id of the candidate that the reason concerns. None if it is not retained.
        nearest_score: Score of that candidate, also if it is not retained. None if the reason
            concerns no candidate or one of an unannotated label.
        nearest_iou: IoU of the lesion and that candidate. None if it is not known.
    """

    why_missed: WhyMissed
    covered: float = 0.0
    nearest_candidate: int | None = None
    nearest_score: float | None = None
    nearest_iou: float | None = None


@dataclass(frozen=True, eq=False)
class Misses:
    """Explains the missed lesions of one case.

    Attributes:
        match: The possible pairs of candidates and lesions.
        accepted: True for accepted candidates `[candidates]`.
        true: True for true positives `[candidates]`.
        minimum: The lowest score that is accepted.
        removed: Candidates that were removed for their size.
        unannotated: Rows of the lesions that an accepted candidate would find if the reference
            annotated its label.
    """

    match: Match
    accepted: Flags
    true: Flags
    minimum: float
    removed: Sequence[Candidate]
    unannotated: Collection[int]

    @property
    def _pairs(self) -> Overlaps:
        """The pairs of a candidate and a lesion of the case that overlap."""
        return self.match.overlaps

    @cached_property
    def covered_by_accepted(self) -> Numbers:
        """The fraction of each lesion `[lesions]` that accepted candidates cover together."""
        pairs = self._pairs.where(self.accepted[self._pairs.candidate])
        return sum_shares(
            row=pairs.lesion,
            n_rows=len(self.match.lesions),
            share=pairs.of_lesion,
            common=pairs.common,
        )

    @cached_property
    def _fitting(self) -> Flags:
        """True for pairs `[pairs]` that would be hits if labels were ignored (`find_fitting`)."""
        return find_fitting(self.match)

    def covered(self, row: int) -> float:
        """Return the fraction of the lesion in this row that candidates cover, for `Miss.covered`.

        The result is the fraction that accepted candidates cover or, if no accepted candidate
        touches the lesion, the fraction that all candidates cover.
        """
        # 0 if no accepted candidate touches the lesion
        covered = float(self.covered_by_accepted[row])
        return covered or self._cover_together(self._find_touching(row))

    def explain(self, row: int) -> Miss:
        """Return the first reason that applies to the missed lesion in this row.

        The reasons are tried in this order:

        1. accepted candidates that nearly find the lesion, or would find it with the right label
        2. a threshold below the operating point at which the lesion is found
        3. accepted candidates that only touch the lesion, or candidates with a sufficient score
           that were removed for their size
        4. the same reasons for all other candidates
        5. `NO_RESPONSE`
        """
        touching = self._find_touching(row)
        is_accepted = self.accepted[self._pairs.candidate[touching]]
        is_same_label = self.match.comparable[touching]
        accepted = touching[is_accepted & is_same_label]
        accepted_other_label = touching[is_accepted & ~is_same_label]
        rejected = touching[~is_accepted & is_same_label]
        return (
            self._explain_near_miss(accepted, row)
            or self._explain_other_label(accepted_other_label, row)
            or self._explain_unannotated_label(row)
            or self._explain_lower_score(row)
            or self._explain_touch(accepted, row)
            or self._explain_removed(row, minimum=self.minimum)  # with a sufficient score
            or self._explain_touch(accepted_other_label, row)
            or self._explain_near_miss(rejected, row)
            or self._explain_other_label(touching[~is_same_label], row)
            or self._explain_touch(touching, row)
            or self._explain_removed(row, minimum=0.0)  # with any score
            or Miss(WhyMissed.NO_RESPONSE)
        )

    def _explain_near_miss(self, pairs: Rows, row: int) -> Miss | None:
        """Explain a lesion by a candidate that nearly finds it; return None if there is none.

        `pairs` are the pairs of the lesion to consider, as indices of `match.overlaps`. `row` is
        the row of the lesion.
        """
        why = _WHY_NEAR[self.match.criterion.measure]
        return self._describe_best(why, row, self._find_near_pairs(pairs, row))

    def _explain_other_label(self, pairs: Rows, row: int) -> Miss | None:
        """Explain a lesion by a candidate that would find it with the right label, or return None.

        `pairs` are pairs of the lesion with candidates of other labels.
        """
        return self._describe_best(WhyMissed.WRONG_LABEL, row, pairs[self._fitting[pairs]])

    def _explain_unannotated_label(self, row: int) -> Miss | None:
        """Explain a lesion by a fitting candidate of an unannotated label, or return None."""
        if row not in self.unannotated:
            return None
        return Miss(WhyMissed.WRONG_LABEL, self.covered(row))

    def _explain_lower_score(self, row: int) -> Miss | None:
        """Explain a lesion that is found at another threshold; return None if it never is.

        The miss names a candidate that is not accepted, but must be accepted to find the lesion. If
        there are several, it is the candidate with the lowest score and, among equal scores, with
        the largest weight. If there is none, no candidate is named, and the score is the one at
        which the lesion is found. The reason is `BELOW_OPERATING_POINT` if the lesion is found only
        below the operating point. Otherwise it is `NOT_ACCEPTED`: the score is sufficient, but a
        candidate is not accepted, for example because of its anatomical zone.
        """
        match = self.match
        found_at = float(match.detected_at[row])
        if found_at <= NEVER_FOUND:
            return None
        links = match.links[match.criterion]
        scores = match.scores[links.candidate]
        # the links of the lesion with candidates that must also be accepted
        would_find = (links.lesion == row) & (scores >= found_at)
        would_find &= ~self.accepted[links.candidate]
        candidate = None
        score = found_at
        if would_find.any():
            score = float(scores[would_find].min())
            is_last = would_find & (scores == score)
            best = links.candidate[is_last][np.argmax(links.weight[is_last])]
            candidate = int(match.candidates.ids[best])
        # `minimum` is the score of the operating point
        why = WhyMissed.BELOW_OPERATING_POINT if found_at < self.minimum else WhyMissed.NOT_ACCEPTED
        return Miss(why, self.covered(row), candidate, score)

    def _explain_touch(self, pairs: Rows, row: int) -> Miss | None:
        """Explain a lesion by a candidate that only touches it; return None without pairs."""
        return self._describe_best(_WHY_TOUCHED[self.match.criterion.measure], row, pairs)

    def _explain_removed(self, row: int, minimum: float) -> Miss | None:
        """Explain a lesion by a candidate that was removed for its size, or return None.

        The box of the candidate must contain a part of the lesion. Candidates with a score below
        `minimum` do not count.
        """
        counted = (c for c in self.removed if c.score >= minimum)
        scores = [c.score for c in counted if self._covers_part_of(c, row)]
        if not scores:
            return None
        return Miss(WhyMissed.REMOVED_BY_SIZE, self.covered(row), nearest_score=max(scores))

    def _find_near_pairs(self, pairs: Rows, row: int) -> Rows:
        """Select the pairs whose candidate comes close to finding a missed lesion.

        A pair of a candidate and the lesion is close in these cases:

        - coverage rule: the candidates of the pairs together cover enough of the lesion, but too
          little of the candidate of this pair is located in lesions
        - centre rule: the candidate covers at least the fraction `MARKED` of the lesion
        - other rules: the candidate may find this lesion, or it is the match of another lesion and
          covers at least the fraction `MARKED` of this lesion

        Args:
            pairs: Pairs of the lesion, as indices of `match.overlaps`.
            row: Row of the lesion.

        Returns:
            The selected pairs, as indices of `match.overlaps`.
        """
        rule = self.match.criterion
        links = self.match.links[rule]  # the pairs in which the candidate may find the lesion
        candidate = self._pairs.candidate[pairs]
        # `of_lesion` is the share of the lesion that the candidate covers
        covers_much = self._pairs.of_lesion[pairs] >= MARKED
        if rule.measure == "coverage":
            if self._cover_together(pairs) < rule.threshold - ROUNDING:
                return pairs[:0]  # no pair
            # the rule links a candidate only if enough of it is located in lesions
            return pairs[~np.isin(candidate, links.candidate)]
        if rule.measure == "centre":
            return pairs[covers_much]
        may_find_lesion = np.isin(candidate, links.candidate[links.lesion == row])
        # `true` is True for true positives, which find another lesion, because this one is missed
        finds_another = self.true[candidate]
        return pairs[may_find_lesion | (finds_another & covers_much)]

    def _covers_part_of(self, candidate: Candidate, row: int) -> bool:
        """Return True if the box of a removed candidate contains a part of the lesion in this row.

        Voxels of the lesion are compared with the box, or the box of the lesion if it has no
        voxels. Unless candidates find lesions jointly, the labels must be equal.
        """
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

    def _find_touching(self, row: int) -> Rows:
        """Return the pairs of the lesion in this row, as indices of `match.overlaps`."""
        return np.flatnonzero(self._pairs.lesion == row)

    def _cover_together(self, positions: Rows) -> float:
        """Return the fraction of a lesion that the candidates of some of its pairs cover together.

        Voxels count once, also if boxes of candidates overlap. `positions` are the pairs of one
        lesion, as indices of `match.overlaps`.
        """
        pairs = self._pairs.where(positions)
        covered = sum_shares(
            row=0 * positions,  # all pairs belong to the same lesion, which is row 0
            n_rows=1,
            share=pairs.of_lesion,
            common=pairs.common,  # intersections of boxes
        )
        return float(covered[0])

    def _describe_best(self, why: WhyMissed, row: int, pairs: Rows) -> Miss | None:
        """Return a miss with the candidate that covers the largest fraction of the lesion.

        Of several candidates that cover the same fraction, the one with the largest IoU counts.
        Return None without pairs.

        Args:
            why: The reason to state.
            row: Row of the lesion.
            pairs: Pairs of the lesion to choose from, as indices of `match.overlaps`.
        """
        if not len(pairs):
            return None
        iou = self._pairs.iou[pairs]
        covered = self._pairs.of_lesion[pairs]
        ascending = np.lexsort((iou, covered))  # the last key is the first criterion
        best = pairs[ascending[-1]]
        candidate = self._pairs.candidate[best]
        return Miss(
            why_missed=why,
            covered=self.covered(row),
            nearest_candidate=int(self.match.candidates.ids[candidate]),
            nearest_score=float(self.match.scores[candidate]),
            nearest_iou=float(self._pairs.iou[best]),
        )


def find_fitting(match: Match) -> Flags:
    """Flag the overlapping pairs that the match rule would count as hits if it ignored labels.

    In such a pair of different labels, the lesion was missed only because of the label. For the
    coverage rule, the overlap must be a sufficient fraction of the lesion and of the candidate,
    without the help of other pairs. Return flags `[pairs]` of `match.overlaps`.
    """
    rule = match.criterion
    pairs = match.overlaps
    if rule.measure == "coverage":
        minimum = rule.threshold - ROUNDING
        return (pairs.of_lesion >= minimum) & (pairs.of_candidate >= minimum)
    return find_hits(
        rule, match.candidates, match.lesions, pairs.candidate, pairs.lesion, pairs.iou
    )
