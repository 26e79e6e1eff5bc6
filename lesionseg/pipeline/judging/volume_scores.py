"""How well a network does on whole validation volumes while it is being trained."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lesionseg.core import Case, CaseFiles, Prediction, Reference, Volume
from lesionseg.evaluation import CaseResult, Preset, choose, match_case
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.judging.case_pairs import See
from lesionseg.pipeline.predict import predict_volumes
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

FP_PER_CASE = 1.0


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
        accepted = self.score >= score
        return float(2 * self.hits[accepted].sum() / (self.voxels[accepted].sum() + self.reference))


@dataclass(frozen=True, eq=False)
class JudgedVolume:
    """One case as a network has it; `overlap` is None where one side has no mask."""

    result: CaseResult
    overlap: CaseOverlap | None


@dataclass(frozen=True)
class VolumeJudge:
    """Judges networks on whole cases, in the files' own grids, by one plan.

    At most `n_cases` (None: all) spread evenly over `cases` are looked at, and shown to `see`.
    """

    survey: Survey
    cases: Sequence[CaseFiles]
    plan: Plan
    inference: InferenceSettings
    preset: Preset
    n_cases: int | None = None
    see: See | None = None

    def __call__(self, network: nn.Module) -> list[JudgedVolume]:
        """Every case that has a reference; reading, the network and judging overlap."""
        opened: dict[str, Case] = {}

        def read(files: CaseFiles) -> Volume:
            opened[files.case] = read_case(files, self.survey.dataset)
            return opened[files.case].image

        def judge(files: CaseFiles, prediction: Prediction) -> JudgedVolume | None:
            return self._judge(opened.pop(files.case), prediction)

        predictor = Predictor.from_network(network, self.plan, settings=self.inference)
        judged = predict_volumes(
            predictor,
            spread(self.cases, self.n_cases),
            read,
            judge,
            overwrite=self.see is None,
        )
        with closing(judged) as volumes:
            return [volume for volume in volumes if volume is not None]

    def _judge(self, case: Case, prediction: Prediction) -> JudgedVolume | None:
        if case.reference is None:
            return None
        if self.see is not None:
            self.see(case.image, case.reference, prediction)
        match = match_case(
            case.reference,
            prediction,
            self.preset,
            case=case.case,
            group=case.group,
            role="validation",
        )
        return JudgedVolume(match.result(surface=False), overlaps(case.reference, prediction))


class VolumeScores:
    """How well a network in training does on validation cases, by name.

    `recall_1fp`: of all lesions together, at one false positive per case; `dice`: mean over the
    cases with a lesion, of the candidates accepted at that point; left out where there are no
    masks.
    """

    def __init__(self, judge: VolumeJudge) -> None:
        self.judge = judge

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """The scores by name; none where no case can be judged."""
        volumes = self.judge(network)
        if not volumes:
            return {}
        results = [volume.result for volume in volumes]
        if not any(result.candidates for result in results):
            log.warning("Nothing at all is predicted on %d validation cases.", len(results))
        point = choose(results, fp_per_case=FP_PER_CASE, quiet=True)
        scores = {"recall_1fp": point.lesion_recall or 0.0}
        tables = [v.overlap for v in volumes if v.overlap is not None and v.overlap.reference]
        dice = [table.dice(point.score) for table in tables]
        return scores | ({"dice": float(np.mean(dice))} if dice else {})


def overlaps(reference: Reference, prediction: Prediction) -> CaseOverlap | None:
    """The table of a case; None where one side has no mask. Voxels to be ignored do not count."""
    prediction = prediction.without_labels(reference.unannotated)
    lesion, instances = reference.mask(), prediction.instances
    if lesion is None or instances is None:
        return None
    if reference.ignore is not None:
        lesion = lesion & ~reference.ignore
        instances = np.where(reference.ignore, 0, instances)
    ids = [candidate.id for candidate in prediction.candidates]
    n = max(ids, default=0) + 1
    return CaseOverlap(
        score=np.array([candidate.score for candidate in prediction.candidates], dtype=np.float64),
        voxels=np.bincount(instances.ravel(), minlength=n)[ids],
        hits=np.bincount(instances[lesion], minlength=n)[ids],
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
