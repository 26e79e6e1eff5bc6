"""Match one case: every lesion found or not, every candidate true, false or ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lesionseg.core import Lesions, OperatingPoint, Prediction, Reference
from lesionseg.evaluation.case.matching import Links, detection_scores, find_links, match
from lesionseg.evaluation.case.overlap_table import Overlaps, overlap_table
from lesionseg.evaluation.presets import INSTANCES, SIDE_CRITERIA, Criterion
from lesionseg.evaluation.results import NEVER, Outcome, OutcomeCounts
from lesionseg.ops.components import candidates_of, lesions_of

# a candidate with a larger share in what is not judged is neither true nor false
MOSTLY = 0.5


@dataclass(frozen=True, eq=False)
class SetAside:
    """All arrays by row of the candidates.

    `share`: of the candidate's voxels, or of a bare box, that is not judged; `of_box`: the same of
    the box around any candidate; `wholly`: it has a mask, and nothing of it is left.
    """

    share: NDArray[np.float64]
    of_box: NDArray[np.float64]
    wholly: NDArray[np.bool_]

    @property
    def mostly(self) -> NDArray[np.bool_]:
        """Candidates to be ignored."""
        return self.share > MOSTLY


def find_set_aside(reference: Reference, prediction: Prediction, candidates: Lesions) -> SetAside:
    """Look up the prediction's candidates in the reference's `ignore`."""
    none = np.zeros(len(candidates))
    ignore = reference.ignore
    if ignore is None or len(candidates) == 0:
        return SetAside(none, none, none > 0)
    lost = none
    if prediction.instances is not None:
        highest = int(candidates.ids.max())
        found = np.bincount(prediction.instances[ignore].reshape(-1), minlength=highest + 1)
        lost = found[candidates.ids].astype(np.float64)
    of_box = np.array(
        [_share_of_box(ignore, c.start_vox, c.stop_vox) for c in prediction.candidates]
    )
    drawn = lost + candidates.n_voxels
    share = np.where(drawn > 0, lost / np.maximum(drawn, 1), of_box)
    return SetAside(share, of_box, (lost > 0) & (candidates.n_voxels == 0))


def _share_of_box(
    ignore: NDArray[np.bool_], start: tuple[float, ...], stop: tuple[float, ...]
) -> float:
    inside = tuple(
        slice(max(int(np.floor(a)), 0), int(np.ceil(b))) for a, b in zip(start, stop, strict=True)
    )
    part = ignore[inside]
    return float(part.mean()) if part.size else 0.0


@dataclass(frozen=True, eq=False)
class CriterionMatch:
    """The matching under one criterion: who found each lesion, and each candidate's outcome.

    `candidate_of` `[n_lesions]`: row of the candidate, -1 for a missed lesion.
    """

    candidate_of: NDArray[np.int64]
    outcomes: tuple[Outcome, ...]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which lesions were found."""
        return self.candidate_of >= 0

    def count(self) -> OutcomeCounts:
        """Lesions found, false positives, ignored candidates."""
        false, ignored = map(self.outcomes.count, ("false_positive", "ignored"))
        return OutcomeCounts(int(self.found.sum()), false, ignored)


@dataclass(frozen=True, eq=False)
class CaseMatch:
    """A matched case. Arrays are by row of `lesions` or `candidates`.

    `comparable` `[pairs]`: pairs of `overlaps` whose labels may match, all of them where the labels
    are pooled.

    `at_point`: with the accepted candidates alone; `at_any`: with all retained ones. `sides`: the
    accepted ones under the side criteria. `detected_at`: the score at which a lesion is found.
    `set_aside`: how far candidates lie in what is not judged. `accepted_from`: the score from which
    candidates are accepted, the lowest accepted one's where no point is stated. `has_masks`:
    whether lesions and prediction have voxels to compare; bare boxes add none. `is_joint`: several
    candidates find a lesion between them. `prediction` has no volumes.
    """

    prediction: Prediction
    lesions: Lesions
    candidates: Lesions
    overlaps: Overlaps
    comparable: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    detected_at: NDArray[np.float64]
    at_point: CriterionMatch
    at_any: CriterionMatch
    sides: Mapping[str, CriterionMatch]
    set_aside: SetAside
    accepted_from: float
    has_masks: bool
    is_joint: bool

    @property
    def pairs(self) -> CriterionMatch:
        """One candidate to a lesion: the match at the point, else version 1's."""
        return self.sides[INSTANCES.name] if self.is_joint else self.at_point

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """The accepted candidates of which something is left to judge."""
        return self.accepted & ~self.set_aside.wholly


@dataclass(frozen=True, eq=False)
class CaseLinks:
    """Which candidate may find which lesion of a case, whoever is accepted; holds no volume.

    `scores` `[n]` are the candidates'. `links`: by criterion, those of `criterion` and of the side
    criteria. `within_labels`: the same, each label by itself, where labels are pooled and there are
    several. The rest: see `CaseMatch`. Indices of voxels are kept in the smallest integers.
    """

    scores: NDArray[np.float64]
    lesions: Lesions
    candidates: Lesions
    overlaps: Overlaps
    comparable: NDArray[np.bool_]
    set_aside: SetAside
    criterion: Criterion
    links: Mapping[Criterion, Links]
    has_masks: bool
    within_labels: "CaseLinks | None" = None

    def accept(self, prediction: Prediction, operating_point: OperatingPoint | None) -> CaseMatch:
        """The match of the accepted candidates of `prediction`, which has those that were linked.

        Those of at least the operating point's score are accepted; without a point, or without
        scores, those that the prediction marks as accepted.
        """
        scores = self.scores
        accepted = np.array([c.accepted for c in prediction.candidates], dtype=np.bool_)
        if operating_point is not None and prediction.scored:
            accepted = scores >= operating_point.score
        point = operating_point or prediction.operating_point
        by_now = self._detected_at >= scores[accepted].min(initial=np.inf)
        nothing = np.zeros(len(self.lesions), dtype=np.bool_)
        return CaseMatch(
            prediction,
            _with_indices(self.lesions, np.int64),
            _with_indices(self.candidates, np.int64),
            self.overlaps,
            self.comparable,
            accepted,
            self._detected_at,
            at_point=self._match(self.criterion, accepted, by_now),
            at_any=self._at_any,
            sides={side.name: self._match(side, accepted, nothing) for side in SIDE_CRITERIA},
            set_aside=self.set_aside,
            accepted_from=point.score if point else float(scores[accepted].min(initial=1.0)),
            has_masks=self.has_masks,
            is_joint=self.criterion.assignment == "jointly",
        )

    @cached_property
    def _detected_at(self) -> NDArray[np.float64]:
        return detection_scores(self.links[self.criterion], self.scores)

    @cached_property
    def _at_any(self) -> CriterionMatch:
        everyone = np.ones(len(self.candidates), dtype=np.bool_)
        return self._match(self.criterion, everyone, self._detected_at > NEVER)

    def _match(
        self, rule: Criterion, present: NDArray[np.bool_], prefer: NDArray[np.bool_]
    ) -> CriterionMatch:
        """Match the `present` candidates under one criterion; lesions of `prefer` stay found."""
        links = self.links[rule]
        candidate_of = match(links, prefer, present=present)
        matched = np.zeros_like(present)
        matched[candidate_of[candidate_of >= 0]] = True
        linked = links.linked()
        if rule.assignment == "jointly":
            matched = linked  # the supported ones, whether or not they suffice
        spared = linked | self.set_aside.mostly
        return CriterionMatch(candidate_of, _outcomes(present, spared, matched))


def link_case(reference: Reference, prediction: Prediction, criterion: Criterion) -> CaseLinks:
    """Link a prediction's candidates with the lesions of its reference, on the same grid."""
    lesions = lesions_of(reference)
    candidates = candidates_of(prediction, reference.ignore)
    set_aside = find_set_aside(reference, prediction, candidates)
    overlaps = overlap_table(candidates, lesions).among(~set_aside.wholly)
    same = candidates.labels[overlaps.candidate] == lesions.labels[overlaps.lesion]
    sides = {
        rule: find_links(rule, candidates, lesions, overlaps).among(~set_aside.wholly)
        for rule in SIDE_CRITERIA
    }
    indices = np.min_scalar_type(max(reference.geometry.shape))

    def linked(comparable: NDArray[np.bool_], within_labels: CaseLinks | None) -> CaseLinks:
        own = find_links(criterion, candidates, lesions, overlaps.where(comparable))
        return CaseLinks(
            np.array([c.score for c in prediction.candidates], dtype=np.float64),
            _with_indices(lesions, indices),
            _with_indices(candidates, indices),
            overlaps,
            comparable,
            set_aside,
            criterion,
            {**sides, criterion: own.among(~set_aside.wholly)},
            prediction.instances is not None and bool(lesions.masked.all()),
            within_labels,
        )

    by_label = linked(same, None)
    if criterion.assignment != "jointly":
        return by_label
    several = len({*candidates.labels.tolist(), *lesions.labels.tolist()}) > 1
    return linked(np.ones_like(same), by_label) if several else by_label


def _with_indices(lesions: Lesions, dtype: DTypeLike) -> Lesions:
    return replace(lesions, voxels=lesions.voxels.astype(dtype, copy=False), instances=None)


def _outcomes(
    present: NDArray[np.bool_], spared: NDArray[np.bool_], matched: NDArray[np.bool_]
) -> tuple[Outcome, ...]:
    """Matched: true. Else spared by the rules, or out of what is judged: ignored. Else false."""
    names: list[Outcome] = ["false_positive", "ignored", "true_positive", "not_accepted"]
    index = np.select([~present, matched, spared], [3, 2, 1], 0)
    return tuple(names[i] for i in index)
