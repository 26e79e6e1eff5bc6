"""Explain why a lesion was missed, for each way in which the match rule can leave it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Lesions
from lesionseg.evaluation.matching import NEVER, ROUNDING, Match, Shares, shares_of, together

# A candidate that covers this share of a lesion marks it, whatever the rule makes of the pair.
MARKED = 0.5
Flags = NDArray[np.bool_]


class WhyMissed(StrEnum):
    """The reason why a lesion was missed; empty for a found lesion.

    A reason may concern an accepted candidate or, if no accepted candidate comes as close, a
    retained one below the operating point. `LesionResult.nearest_candidate` names it.
    """

    FOUND = ""
    CASE_FAILED = "case_failed"
    """The case has no prediction."""
    NO_RESPONSE = "no_response"
    """No candidate touches the lesion, and none was removed there for its size."""
    BELOW_OPERATING_POINT = "below_operating_point"
    """The lesion is found at a lower score."""
    NOT_ACCEPTED = "not_accepted"
    """A candidate finds the lesion and has a sufficient score, but is not marked as accepted."""
    OVERLAP_TOO_SMALL = "overlap_too_small"
    """Coverage rule: the candidates together cover too little of the lesion."""
    CANDIDATE_TOO_LARGE = "candidate_too_large"
    """Coverage rule: the lesion is covered, but too little of the candidate lies in lesions."""
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

    `candidate`: id of the candidate that the reason concerns, None if that is none of the
    retained ones. `score`: its score. `covered`: the share of the lesion that the accepted
    candidates cover together or, if none of them touches it, all retained ones. `iou`: of the
    lesion and the candidate.
    """

    why: WhyMissed
    covered: float = 0.0
    candidate: int | None = None
    score: float | None = None
    iou: float | None = None


@dataclass(frozen=True, eq=False)
class Misses:
    """Explains the missed lesions of one case.

    `accepted` and `true` `[candidates]`: the flags of the candidates and which of them are true
    positives. `least`: the lowest score that is accepted. `removed`: candidates that were removed
    for their size. `unannotated`: the match of the candidates whose labels the reference does not
    annotate, None without any, and `unannotated_accepted` their flags.
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
        return shares_of(self.match.candidates, self.match.lesions, self.match.overlaps)

    @cached_property
    def covered_by_accepted(self) -> NDArray[np.float64]:
        """The share of each lesion `[lesions]` that accepted candidates cover together."""
        pairs = np.flatnonzero(self.accepted[self.match.overlaps.candidate])
        lesion, shares = self.match.overlaps.lesion[pairs], self._shares.where(pairs)
        return together(lesion, len(self.match.lesions), shares.of_lesion, shares.common)

    @cached_property
    def in_lesions(self) -> NDArray[np.float64]:
        """The share of each candidate `[candidates]` that is located in lesions."""
        candidate, shares = self.match.overlaps.candidate, self._shares
        n_candidates = len(self.match.candidates)
        return together(candidate, n_candidates, shares.of_candidate, shares.common)

    def covered(self, row: int) -> float:
        """Return the share of a lesion that accepted candidates cover; if none does, all do."""
        by_accepted = float(self.covered_by_accepted[row])
        return by_accepted or self._total(self._touching(row))

    def explain(self, row: int) -> Miss:
        """Return the first reason that holds, from the nearest miss to the farthest."""
        pairs = self._touching(row)
        accepted = self.accepted[self.match.overlaps.candidate[pairs]]
        same = self.match.comparable[pairs]
        return (
            self._nearly_found(pairs[accepted & same], row)
            or self._found_by_other_label(pairs[accepted & ~same], row)
            or self._found_by_unannotated_label(row)
            or self._found_later(row)
            or self._touched(pairs[accepted & same], row)
            or self._found_by_removed(row, self.least)
            or self._touched(pairs[accepted & ~same], row)
            or self._nearly_found(pairs[~accepted & same], row)
            or self._found_by_other_label(pairs[~same], row)
            or self._touched(pairs, row)
            or self._found_by_removed(row, 0.0)
            or Miss(WhyMissed.NO_RESPONSE)
        )

    def _nearly_found(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        """Explain why pairs that mark the lesion do not find it; None if none marks it."""
        near = self._marked(pairs, row)
        return None if near is None else self._miss(near[0], row, near[1])

    def _found_by_other_label(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        fitting = self._fitting(pairs, row)
        return self._miss(WhyMissed.WRONG_LABEL, row, self._best(fitting)) if len(fitting) else None

    def _found_by_unannotated_label(self, row: int) -> Miss | None:
        if not self._is_marked_as_unannotated(row):
            return None
        return Miss(WhyMissed.WRONG_LABEL, self.covered(row))

    def _found_later(self, row: int) -> Miss | None:
        """Name the candidate that finds the lesion if more are accepted; None if none does."""
        match = self.match
        found_at = float(match.detected_at[row])
        if found_at <= NEVER:
            return None
        links = match.links[match.criterion]
        able = (links.lesion == row) & (match.scores[links.candidate] >= found_at)
        able &= ~self.accepted[links.candidate]
        name = None
        if able.any():
            best = links.candidate[able][np.argmax(links.weight[able])]
            name = int(match.candidates.ids[best])
        is_below = found_at < self.least
        why = WhyMissed.BELOW_OPERATING_POINT if is_below else WhyMissed.NOT_ACCEPTED
        return Miss(why, self.covered(row), name, found_at)

    def _touched(self, pairs: NDArray[np.int64], row: int) -> Miss | None:
        return self._miss(self._too_little, row, self._best(pairs)) if len(pairs) else None

    def _found_by_removed(self, row: int, least: float) -> Miss | None:
        """Name the highest score, at least `least`, of candidates removed for their size."""
        scores = [c.score for c in self.removed if self._is_removed_from(c, row)]
        highest = max(scores, default=None)
        if highest is None or highest < least:
            return None
        return Miss(WhyMissed.REMOVED_BY_SIZE, self.covered(row), None, highest)

    @property
    def _too_little(self) -> WhyMissed:
        """The reason if a candidate touches a lesion and comes no closer."""
        measure = self.match.criterion.measure
        if measure == "coverage":
            return WhyMissed.OVERLAP_TOO_SMALL
        if measure == "centre":
            return WhyMissed.CENTRE_TOO_FAR
        return WhyMissed.IOU_TOO_SMALL if measure == "iou" else WhyMissed.WRONG_LABEL

    def _marked(self, pairs: NDArray[np.int64], row: int) -> tuple[WhyMissed, int] | None:
        """Return why pairs that mark the lesion do not find it, and the pair; None for none."""
        match, rule = self.match, self.match.criterion
        if not len(pairs):
            return None
        candidate = match.overlaps.candidate[pairs]
        of_lesion = self._shares.of_lesion[pairs]
        if rule.measure == "coverage":
            if self._total(pairs) < rule.threshold - ROUNDING:
                return None
            links = match.links[rule]
            large = pairs[~np.isin(candidate, links.candidate)]
            return (WhyMissed.CANDIDATE_TOO_LARGE, self._best(large)) if len(large) else None
        if rule.measure == "centre":
            far = pairs[of_lesion >= MARKED]
            return (WhyMissed.CENTRE_TOO_FAR, self._best(far)) if len(far) else None
        links = match.links[rule]
        linked = np.isin(candidate, links.candidate[links.lesion == row])
        taken = pairs[linked | (self.true[candidate] & (of_lesion >= MARKED))]
        return (WhyMissed.MERGED, self._best(taken)) if len(taken) else None

    def _fitting(self, pairs: NDArray[np.int64], row: int) -> NDArray[np.int64]:
        """Return the pairs that the rule would take as a hit if it did not look at labels."""
        return pairs[fits(self.match, self._shares)[pairs]] if len(pairs) else pairs

    def _is_marked_as_unannotated(self, row: int) -> bool:
        other, accepted = self.unannotated, self.unannotated_accepted
        if other is None or accepted is None:
            return False
        pairs = (other.overlaps.lesion == row) & accepted[other.overlaps.candidate]
        shares = shares_of(other.candidates, other.lesions, other.overlaps)
        return bool((pairs & fits(other, shares)).any())

    def _is_removed_from(self, candidate: Candidate, row: int) -> bool:
        """Return True if the box of a removed candidate holds a part of the lesion."""
        lesions = self.match.lesions
        pooled = self.match.criterion.assignment == "jointly"
        if not pooled and candidate.label != lesions.labels[row]:
            return False
        start, stop = np.array(candidate.start_vox), np.array(candidate.stop_vox)
        voxels = lesions.voxels_of(row)
        if len(voxels):
            return bool(((voxels >= start) & (voxels < stop)).all(axis=1).any())
        box, dims = lesions.boxes[row], lesions.geometry.dims
        return bool(((box[:dims] < stop) & (box[dims:] > start)).all())

    def _touching(self, row: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.match.overlaps.lesion == row)

    def _total(self, pairs: NDArray[np.int64]) -> float:
        shares, row = self._shares.where(pairs), np.zeros(len(pairs), dtype=np.int64)
        return float(together(row, 1, shares.of_lesion, shares.common)[0])

    def _best(self, pairs: NDArray[np.int64]) -> int:
        """Return the pair that covers most of the lesion, by IoU among equals."""
        order = np.lexsort((self.match.overlaps.iou[pairs], self._shares.of_lesion[pairs]))
        return int(pairs[order[-1]])

    def _miss(self, why: WhyMissed, row: int, pair: int) -> Miss:
        match = self.match
        candidate = int(match.overlaps.candidate[pair])
        return Miss(
            why,
            self.covered(row),
            int(match.candidates.ids[candidate]),
            float(match.scores[candidate]),
            float(match.overlaps.iou[pair]),
        )


def fits(match: Match, shares: Shares) -> Flags:
    """Return the pairs `[pairs]` that the match's rule takes as hits whatever their labels."""
    rule, pairs = match.criterion, match.overlaps
    if rule.measure == "coverage":
        return (shares.of_lesion >= rule.threshold - ROUNDING) & (
            shares.of_candidate >= rule.threshold - ROUNDING
        )
    if rule.measure == "iou":
        return np.asarray(pairs.iou >= rule.threshold)
    if rule.measure == "overlap":
        return np.ones(len(pairs.candidate), dtype=np.bool_)
    return _distances(match.candidates, match.lesions, pairs.candidate, pairs.lesion) < (
        rule.threshold * match.lesions.diameters_mm[pairs.lesion] / 2
    )


def _distances(
    candidates: Lesions, lesions: Lesions, rows: NDArray[np.int64], of: NDArray[np.int64]
) -> NDArray[np.float64]:
    apart = candidates.centres_mm[rows] - lesions.centres_mm[of]
    return np.asarray(np.linalg.norm(apart, axis=-1))
