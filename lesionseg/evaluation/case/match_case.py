"""Match one case: every lesion found or not, every candidate true, false or ignored."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Lesions, OperatingPoint, Prediction, Reference
from lesionseg.evaluation.case.matching import NEVER, Links, detection_scores, find_links, match
from lesionseg.evaluation.case.overlap import Overlaps, overlap_table
from lesionseg.evaluation.case.set_aside import SetAside, find_set_aside
from lesionseg.evaluation.presets import SIDE_CRITERIA, Criterion
from lesionseg.evaluation.results import Outcome, OutcomeCounts
from lesionseg.ops.lesions import candidates_of, lesions_of


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
        """Lesions found, false positives and ignored candidates."""
        return OutcomeCounts(
            int(self.found.sum()),
            self.outcomes.count("false_positive"),
            self.outcomes.count("ignored"),
        )


@dataclass(frozen=True, eq=False)
class CaseMatch:
    """A matched case. Arrays are by row of `lesions` or `candidates`.

    `at_point`: with the accepted candidates alone; `at_any`: with all retained ones. `sides`: the
    accepted ones under the side criteria. `detected_at`: the score at which a lesion is found.
    `set_aside`: how far candidates lie in what is not judged. `accepted_from`: the score from which
    candidates are accepted, the lowest accepted one's where no point is stated.
    """

    prediction: Prediction
    lesions: Lesions
    candidates: Lesions
    overlaps: Overlaps
    accepted: NDArray[np.bool_]
    detected_at: NDArray[np.float64]
    at_point: CriterionMatch
    at_any: CriterionMatch
    sides: Mapping[str, CriterionMatch]
    set_aside: SetAside
    accepted_from: float

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """The accepted candidates of which something is left to judge."""
        return self.accepted & ~self.set_aside.wholly

    @property
    def has_masks(self) -> bool:
        """Whether lesions and prediction have voxels to compare; bare boxes add none."""
        return self.prediction.instances is not None and bool(self.lesions.masked.all())


def judge(
    reference: Reference,
    prediction: Prediction,
    criterion: Criterion,
    operating_point: OperatingPoint | None,
) -> CaseMatch:
    """Match a prediction with its reference on the same grid.

    Candidates of at least the operating point's score are accepted; without a point, or without
    scores, those that the prediction marks as accepted.
    """
    lesions = lesions_of(reference)
    candidates = candidates_of(prediction, reference.ignore)
    set_aside = find_set_aside(reference, prediction, candidates)
    overlaps = overlap_table(candidates, lesions).among(~set_aside.wholly)
    scores = np.array([c.score for c in prediction.candidates], dtype=np.float64)
    accepted = np.array([c.accepted for c in prediction.candidates], dtype=np.bool_)
    if operating_point is not None and prediction.scored:
        accepted = scores >= operating_point.score

    def verdict(
        rule: Criterion, links: Links, present: NDArray[np.bool_], prefer: NDArray[np.bool_]
    ) -> CriterionMatch:
        candidate_of = match(links, prefer, present=present, scores=scores, ids=candidates.ids)
        spared = links.linked() if rule.unmatched == "ignored" else np.zeros_like(present)
        return CriterionMatch(
            candidate_of, _outcomes(present, spared | set_aside.mostly, candidate_of)
        )

    def linked(rule: Criterion) -> Links:
        return find_links(rule, candidates, lesions, overlaps).among(~set_aside.wholly)

    point = operating_point or prediction.operating_point
    links = linked(criterion)
    detected_at = detection_scores(links, scores, candidates.ids)
    by_now = detected_at >= scores[accepted].min(initial=np.inf)
    nothing = np.zeros(len(lesions), dtype=np.bool_)
    everyone = np.ones_like(accepted)
    return CaseMatch(
        prediction,
        lesions,
        candidates,
        overlaps,
        accepted,
        detected_at,
        at_point=verdict(criterion, links, accepted, by_now),
        at_any=verdict(criterion, links, everyone, detected_at > NEVER),
        sides={side.name: verdict(side, linked(side), accepted, nothing) for side in SIDE_CRITERIA},
        set_aside=set_aside,
        accepted_from=point.score if point else float(scores[accepted].min(initial=1.0)),
    )


def _outcomes(
    present: NDArray[np.bool_], spared: NDArray[np.bool_], candidate_of: NDArray[np.int64]
) -> tuple[Outcome, ...]:
    """Matched: true. Else spared by the rules, or out of what is judged: ignored. Else false."""
    matched = np.zeros(len(present), dtype=np.bool_)
    matched[candidate_of[candidate_of >= 0]] = True
    names: list[Outcome] = ["false_positive", "ignored", "true_positive", "not_accepted"]
    index = np.select([~present, matched, spared], [3, 2, 1], 0)
    return tuple(names[i] for i in index)
