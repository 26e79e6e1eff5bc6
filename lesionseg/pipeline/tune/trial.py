"""One trial of a search for α and γ: a short training, judged on whole validation volumes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

from lesionseg.core import CaseFiles
from lesionseg.data.cache.case_cache import CachedCase
from lesionseg.errors import TrainingError
from lesionseg.evaluation import Preset, choose, evaluate_case
from lesionseg.evaluation.statistics.bootstrap import value_of
from lesionseg.evaluation.statistics.detection import average_precision, pool_results
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.pipeline.dataset.survey import Survey
from lesionseg.pipeline.train.learning import learn, linked
from lesionseg.pipeline.tune.pair_losses import PairLosses
from lesionseg.pipeline.tune.search import OpenTrial
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.fit import CHECKPOINT
from lesionseg.training.learning_settings import Learning
from lesionseg.training.step.module import LesionModule

# Recall moves in steps of one lesion. Between pairs that find the same lesions the average
# precision decides, with a weight too small to outweigh a lesion in a set of under a hundred.
TIE_WEIGHT = 0.01


@dataclass(frozen=True)
class Quality:
    """How well a network finds the validation lesions.

    `recall` at the stated false positives a case, `average_precision` over all scores, and
    `objective`, what a search maximises: recall, and precision where recall is the same.
    """

    recall: float
    average_precision: float

    @property
    def objective(self) -> float:
        """Recall plus a hundredth of the average precision."""
        return self.recall + TIE_WEIGHT * self.average_precision

    def by_name(self) -> dict[str, float]:
        """Both scores, as tables name them."""
        return {"recall": self.recall, "average_precision": self.average_precision}


NOTHING = Quality(0.0, 0.0)


class Examiner:
    """Judges networks on whole validation volumes, in the files' own grids, as `train` does.

    One case is in memory at a time. `latest` is what the last one scored, `n_examined` how many
    there have been.
    """

    def __init__(
        self,
        found: Survey,
        cases: Sequence[CaseFiles],
        plan: Plan,
        inference: InferenceSettings,
        preset: Preset,
        fp_per_case: float,
    ) -> None:
        self.found, self.cases, self.plan = found, tuple(cases), plan
        self.inference, self.preset, self.fp_per_case = inference, preset, fp_per_case
        self.latest: Quality | None = None
        self.n_examined = 0

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """Examine a network; the scores by name."""
        predictor = Predictor.from_network(network, self.plan, settings=self.inference)
        results = []
        for files in self.cases:
            case = read_case(files, self.found.dataset)
            if case.reference is None:
                continue
            prediction = predictor.predict_volume(case.image, case.case)
            results.append(
                evaluate_case(
                    case.reference,
                    prediction,
                    self.preset,
                    case=case.case,
                    group=case.group,
                    role="validation",
                )
            )
        point = choose(results, fp_per_case=self.fp_per_case)
        pool = pool_results(results)
        precision = value_of(average_precision(pool), len(pool.groups))[0]
        self.latest = Quality(point.lesion_recall or 0.0, precision or 0.0)
        self.n_examined += 1
        return self.latest.by_name()


class TellTrial(AfterStep):
    """Tells a trial of each validation while training goes on; a hopeless trial ends there."""

    def __init__(self, trial: OpenTrial, examiner: Examiner) -> None:
        self.trial, self.examiner, self._n_told = trial, examiner, 0

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Lets `HopelessTrial` through, which ends the training."""
        quality = self.examiner.latest
        if quality is not None and self.examiner.n_examined > self._n_told:
            self._n_told = self.examiner.n_examined
            self.trial.report(quality.objective, quality.by_name())


@dataclass(frozen=True, eq=False)
class TrialRecipe:
    """What all trials of a search share; called with a trial, it trains and returns its value.

    `learning` is called with `loss` and `detection`, `examine` with the trial's plan for an
    examiner of its own. Every trial has the same first weights and tiles, so that trials differ by
    their pair alone.
    """

    losses: PairLosses
    plan: Plan
    cases: list[CachedCase]
    learning: Callable[..., Learning]
    examine: Callable[[Plan], Examiner]
    run: Path

    def __call__(self, trial: OpenTrial) -> float:
        """Train in `run/trials/<number>`. A training that diverges is worth 0.

        Checkpoints are removed: a search leaves numbers.
        """
        folder = self.run / "trials" / f"{trial.number:03d}"
        loss, detection = self.losses(trial.alpha, trial.gamma)
        examiner = self.examine(linked(self.plan, loss, detection))
        try:
            learn(
                self.plan,
                self.cases,
                self.learning(loss=loss, detection=detection),
                folder,
                validate=examiner,
                callbacks=[TellTrial(trial, examiner)],
            )
        except TrainingError as error:
            trial.keep(NOTHING.by_name(), note=error.what)
            return NOTHING.objective
        finally:
            shutil.rmtree(folder / CHECKPOINT.parent, ignore_errors=True)
        quality = examiner.latest or NOTHING
        trial.keep(quality.by_name())
        return quality.objective
