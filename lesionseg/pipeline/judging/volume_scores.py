"""How well a network does on whole validation volumes while it is being trained."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lesionseg.core import CaseFiles, Prediction, Reference, Volume
from lesionseg.evaluation import CaseResult, Preset, choose, evaluate_case
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0
Seen = Callable[[Volume, Reference, Prediction], None]


@dataclass(frozen=True, eq=False)
class CaseOverlap:
    """What a case's Dice follows from at any score.

    Of each candidate its score, its voxels and those of them in the reference (`hits`), `[n]`; and
    the voxels of the reference.
    """

    score: NDArray[np.float64]
    voxels: NDArray[np.int64]
    hits: NDArray[np.int64]
    reference: int

    def dice(self, score: float) -> float:
        """Dice of the candidates from `score` on, their masks being disjoint."""
        kept = self.score >= score
        return float(2 * self.hits[kept].sum() / (self.voxels[kept].sum() + self.reference))


class VolumeScores:
    """Scores a network on validation cases, in the files' own grids, one case in memory at a time.

    `recall_1fp`: of all lesions together, at one false positive a case; `dice`: mean over the cases
    with a lesion, of the candidates accepted at that point; left out where there are no masks. At
    most `n_cases` (None: all) spread evenly over `cases` are looked at, and shown to `seen`.
    """

    def __init__(
        self,
        found: Survey,
        cases: Sequence[CaseFiles],
        plan: Plan,
        inference: InferenceSettings,
        preset: Preset,
        n_cases: int | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.found, self.plan, self.inference, self.preset = found, plan, inference, preset
        self.seen = seen
        self.cases = spread(cases, n_cases)

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """The scores by name; none where no case can be judged."""
        predictor = Predictor.from_network(network, self.plan, settings=self.inference)
        judged = [self._judge(predictor, files) for files in self.cases]
        results = [result for each in judged for result in each[0]]
        if not results:
            return {}
        if not any(result.candidates for result in results):
            log.warning("Nothing at all is predicted on %d validation cases.", len(results))
        point = choose(results, fp_per_case=FP_PER_CASE, quiet=True)
        scores = {"recall_1fp": point.lesion_recall or 0.0}
        dice = [each[1].dice(point.score) for each in judged if each[1] and each[1].reference]
        return scores | ({"dice": float(np.mean(dice))} if dice else {})

    def _judge(
        self, predictor: Predictor, files: CaseFiles
    ) -> tuple[list[CaseResult], CaseOverlap | None]:
        case = read_case(files, self.found.dataset)
        if case.reference is None:
            return [], None
        prediction = predictor.predict_volume(case.image, case.case)
        if self.seen is not None:
            self.seen(case.image, case.reference, prediction)
        result = evaluate_case(
            case.reference,
            prediction,
            self.preset,
            case=case.case,
            group=case.group,
            role="validation",
        )
        return [result], overlaps(case.reference, prediction)


def overlaps(reference: Reference, prediction: Prediction) -> CaseOverlap | None:
    """The table of a case; None where one side has no mask. Voxels to be ignored do not count."""
    lesion, found = reference.mask(), prediction.instances
    if lesion is None or found is None:
        return None
    if reference.ignore is not None:
        lesion, found = lesion & ~reference.ignore, np.where(reference.ignore, 0, found)
    ids = [candidate.id for candidate in prediction.candidates]
    n = max(ids, default=0) + 1
    return CaseOverlap(
        score=np.array([candidate.score for candidate in prediction.candidates], dtype=np.float64),
        voxels=np.bincount(found.ravel(), minlength=n)[ids],
        hits=np.bincount(found[lesion], minlength=n)[ids],
        reference=int(lesion.sum()),
    )


def spread(cases: Sequence[CaseFiles], n_cases: int | None) -> tuple[CaseFiles, ...]:
    """At most `n_cases` of them, evenly spaced: files in order of name are often in order of site.

    >>> spread("abcdefg", 3)
    ('a', 'd', 'g')
    """
    if n_cases is None or len(cases) <= n_cases:
        return tuple(cases)
    places = np.linspace(0, len(cases) - 1, n_cases).round().astype(int)
    return tuple(cases[int(place)] for place in places)
