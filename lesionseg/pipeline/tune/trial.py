"""One trial of a search for α and γ: a short training, judged on whole validation volumes."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from lesionseg.data.cache import CachedCase
from lesionseg.errors import TrainingError
from lesionseg.evaluation import choose
from lesionseg.evaluation.statistics.bootstrap import value_of
from lesionseg.evaluation.statistics.detection import average_precision, pool_results
from lesionseg.pipeline.judging.volume_scores import VolumeJudge
from lesionseg.pipeline.train.learning import learn, linked
from lesionseg.pipeline.tune.pair_losses import PairLosses
from lesionseg.pipeline.tune.search import INTERRUPTIONS, OpenTrial
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.fit import CHECKPOINT
from lesionseg.training.learning_settings import Learning
from lesionseg.training.lightning_module import LesionModule

# Recall moves in steps of one lesion. Between pairs that find the same lesions the average
# precision decides, with a weight too small to outweigh a lesion in a set of under a hundred.
TIE_WEIGHT = 0.01


@dataclass(frozen=True)
class Quality:
    """How well a network finds the validation lesions.

    `recall` at the stated false positives per case, `average_precision` over all scores, and
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


class TrialScores:
    """Scores networks on whole validation volumes; `latest`, and how many there have been."""

    def __init__(self, judge: VolumeJudge, fp_per_case: float) -> None:
        self.judge, self.fp_per_case = judge, fp_per_case
        self.latest: Quality | None = None
        self.n_scored = 0

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """Score a network; the scores by name."""
        results = [volume.result for volume in self.judge(network)]
        point = choose(results, fp_per_case=self.fp_per_case)
        pool = pool_results(results)
        precision = value_of(average_precision(pool), len(pool.groups))[0]
        self.latest = Quality(point.lesion_recall or 0.0, precision or 0.0)
        self.n_scored += 1
        return self.latest.by_name()


class ReportToTrial(AfterStep):
    """Reports each validation to a trial while training goes on; a hopeless trial ends there."""

    def __init__(self, trial: OpenTrial, scores: TrialScores) -> None:
        self.trial, self.scores, self._n_reported = trial, scores, 0

    def state_dict(self) -> dict[str, Any]:
        """Which of the trial's validations the next one is."""
        return {"n_reported": self.trial.n_reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that."""
        self.trial.n_reported = state_dict["n_reported"]

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Lets `HopelessTrial` through, which ends the training."""
        quality = self.scores.latest
        if quality is not None and self.scores.n_scored > self._n_reported:
            self._n_reported = self.scores.n_scored
            self.trial.report(quality.objective, quality.by_name())


@dataclass(frozen=True, eq=False)
class TrialRecipe:
    """What all trials of a search share; called with a trial, it trains and returns its value.

    `learning` is called with `loss` and `detection`, `judge` with the trial's plan. Every trial has
    the same first weights and tiles, so that trials differ by their pair alone.
    """

    losses: PairLosses
    plan: Plan
    cases: list[CachedCase]
    learning: Callable[..., Learning]
    judge: Callable[[Plan], VolumeJudge]
    fp_per_case: float
    run: Path

    def __call__(self, trial: OpenTrial) -> float:
        """Train in `run/trials/<number>`. A training that diverges is worth 0.

        Checkpoints are removed unless it is to go on: a search leaves numbers.
        """
        folder = self.run / "trials" / f"{trial.number:03d}"
        loss, detection = self.losses(trial.alpha, trial.gamma)
        scores = TrialScores(self.judge(linked(self.plan, loss, detection)), self.fp_per_case)
        try:
            trained = learn(
                self.plan,
                self.cases,
                self.learning(loss=loss, detection=detection),
                folder,
                validate=scores,
                callbacks=[ReportToTrial(trial, scores)],
            )
            if scores.latest is None:  # it was over, but for its value
                scores(trained.network)
        except TrainingError as error:
            trial.keep(NOTHING.by_name(), note=error.what)
            return NOTHING.objective
        finally:
            if not isinstance(sys.exception(), INTERRUPTIONS):
                shutil.rmtree(folder / CHECKPOINT.parent, ignore_errors=True)
        quality = scores.latest or NOTHING
        trial.keep(quality.by_name())
        return quality.objective
