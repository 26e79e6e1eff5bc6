"""The search for α and γ together: Optuna proposes, a journal that processes share remembers.

The number of trials is counted over all processes and all starts. A process that was killed leaves
a trial under way; the next on the same machine finds that its process is gone and goes on with it.
"""

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.errors import ConfigError, OutputError, pip_install
from lesionseg.io.folder_locks import is_alive, locked_folder
from lesionseg.pipeline.tune.journal import Journal
from lesionseg.report.tuning import State, TuningTrial

log = logging.getLogger(__name__)

JOURNAL = "journal.log"
_TURN = ".turn"  # the lock of whoever takes a trial
NAME = "alpha and gamma"
# the first pairs are spread over the rectangle, then the sampler goes by what they gave
N_SPREAD = 8
# after these a trial goes on, in whatever process is next
INTERRUPTIONS = (OutputError, KeyboardInterrupt, SystemExit)
N_PATIENT = 2  # the first validation ends no trial: it is before the weights' average has settled


@dataclass(frozen=True)
class TuneSettings:
    """What is searched, and how long; see `conf/tune/joint.yaml`.

    `alpha` and `gamma`: lowest and highest value. `fp_per_case`: the false positives per case at
    which lesion recall is measured. `prune` stops a trial that, at one of its validations, is below
    the median of the earlier ones at theirs. `ray_workers` of a cluster run trials, each with a
    GPU where there are any; 0: this process alone.
    """

    alpha: Sequence[float] = (0.05, 0.95)
    gamma: Sequence[float] = (0.0, 5.0)
    n_trials: int = 24
    fp_per_case: float = 1.0
    prune: bool = True
    ray_workers: int = 0

    def __post_init__(self) -> None:
        _check_range("tune.alpha", self.alpha, 0.0, 1.0)
        _check_range("tune.gamma", self.gamma, 0.0, float("inf"))
        for name, value in (("n_trials", self.n_trials), ("fp_per_case", self.fp_per_case)):
            if not value > 0:
                raise ConfigError("It must be above 0.", where=f"tune.{name}", seen=value)


def _check_range(where: str, seen: Sequence[float], least: float, most: float) -> None:
    if len(seen) != 2 or not least <= seen[0] < seen[1] <= most or seen[1] == float("inf"):
        raise ConfigError(
            "This is no range to search.",
            where=where,
            seen=list(seen),
            expected=f"[lowest, highest] within [{least:g}, {most:g}]",
        )


class HopelessTrial(Exception):
    """Raised by `OpenTrial.report` when a trial is not worth its remaining time."""


class OpenTrial:
    """A trial under way: the pair to try, and the place to say how it goes.

    `n_reported`: its validations so far; where it goes on from an earlier one, that one's number.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.number: int = trial.number
        self.alpha: float = trial.params["alpha"]
        self.gamma: float = trial.params["gamma"]
        self.n_reported = 0
        before = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self._n_known = len(before)  # of validations, all of which may come again

    def report(self, value: float, scores: Mapping[str, float]) -> None:
        """Note what a validation gave; raises `HopelessTrial` when that was too little."""
        self.keep(scores)
        self.n_reported += 1
        if self.n_reported > self._n_known:
            self._trial.report(value, self.n_reported)
        if self._trial.should_prune():
            raise HopelessTrial

    def keep(self, scores: Mapping[str, float], note: str = "") -> None:
        """Note the latest scores, and what was odd."""
        self._trial.set_user_attr("scores", dict(scores))
        if note:
            self._trial.set_user_attr("note", note)


Objective = Callable[[OpenTrial], float]


class Search:
    """A search in `folder`, new or resumed.

    `first` is the pair that is tried before all others, what one would take without a search.
    Raises `ConfigError` when Optuna is not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: TuneSettings,
        *,
        seed: int,
        first: tuple[float, float] | None = None,
    ) -> None:
        self.folder, self.settings, self.seed = folder, settings, seed
        self._optuna = require_optuna()
        folder.mkdir(parents=True, exist_ok=True)
        self._pairs = list(self._spread(first))
        with _quiet(self._optuna):
            self._study = self._open(folder / JOURNAL)

    def run(self, objective: Objective, done: Callable[[TuningTrial], None] | None = None) -> None:
        """Run trials until `n_trials` are finished or under way, here and elsewhere.

        `objective` gives a trial's value. What it raises other than `HopelessTrial` frees the trial
        and is passed on; after an interruption or on a full disk, the trial waits to be gone on
        with. `done` is called with each trial that this process finished.
        """
        while (trial := self._next()) is not None:
            self._run(trial, objective)
            if done is not None:
                done(self._result(self._study.get_trials(deepcopy=False)[trial.number]))

    def trials(self) -> tuple[TuningTrial, ...]:
        """Every trial so far, of all processes, by number; those that were freed left out."""
        with _quiet(self._optuna):
            return tuple(self._result(t) for t in self._taken() if "gamma" in t.params)

    def _open(self, path: Path) -> Any:
        pruner = self._optuna.pruners.MedianPruner(
            n_startup_trials=N_SPREAD // 2, n_warmup_steps=N_PATIENT
        )
        return self._optuna.create_study(
            study_name=NAME,
            storage=self._optuna.storages.JournalStorage(Journal(path)),
            direction="maximize",
            pruner=pruner if self.settings.prune else self._optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def _spread(self, first: tuple[float, float] | None) -> Iterator[tuple[float, float]]:
        """The pair to begin with, if it lies in the rectangle, and a Latin hypercube of others."""
        (a_low, a_high), (g_low, g_high) = self.settings.alpha, self.settings.gamma
        if first and a_low <= first[0] <= a_high and g_low <= first[1] <= g_high:
            yield first
        rng = np.random.default_rng(self.seed)
        cells = rng.permuted(np.tile(np.arange(N_SPREAD), (2, 1)), axis=1)
        for a, g in ((cells + rng.random(cells.shape)) / N_SPREAD).T.tolist():
            yield a_low + a * (a_high - a_low), g_low + g * (g_high - g_low)

    def _next(self) -> Any:
        """A trial that its process has left, or a new one; None when there are enough."""
        with _turn(self.folder), _quiet(self._optuna):
            abandoned = next(filter(_is_left, self._taken()), None)
            if abandoned is not None:
                log.info("Trial %d goes on where it was interrupted.", abandoned.number)
                return self._proposed(abandoned)
            enough = len(self._taken()) >= self.settings.n_trials
            return None if enough else self._proposed(self._study.ask())

    def _proposed(self, begun: Any) -> Any:
        """The trial with its pair, an earlier one if it has one, and with who is at it now."""
        self._study.sampler = self._sampler(begun.number)
        trial = self._optuna.trial.Trial(self._study, begun._trial_id)
        trial.suggest_float("alpha", *self.settings.alpha)
        trial.suggest_float("gamma", *self.settings.gamma)
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("process", os.getpid())
        return trial

    def _sampler(self, number: int) -> Any:
        """Of one trial, by its number: so that a resumed search proposes what it would have."""
        if number < len(self._pairs):
            pair = dict(zip(("alpha", "gamma"), self._pairs[number], strict=True))
            return self._optuna.samplers.PartialFixedSampler(
                pair, self._optuna.samplers.RandomSampler()
            )
        state = np.random.SeedSequence([self.seed, number])
        return self._optuna.samplers.TPESampler(
            n_startup_trials=N_SPREAD,
            multivariate=True,  # α and γ as a pair: the better γ depends on α
            constant_liar=True,  # keeps away from what other processes are at
            seed=int(state.generate_state(1)[0]),
        )

    def _run(self, trial: Any, objective: Objective) -> None:
        try:
            value = objective(OpenTrial(trial))
        except HopelessTrial:
            self._tell(trial, state="PRUNED")
        except INTERRUPTIONS:
            with suppress(OutputError):
                trial.set_user_attr("process", None)
            raise
        except BaseException:
            self._tell(trial, state="FAIL")
            raise
        else:
            self._tell(trial, value)

    def _tell(self, trial: Any, value: float | None = None, *, state: str | None = None) -> None:
        with _quiet(self._optuna):
            named = None if state is None else self._optuna.trial.TrialState[state]
            self._study.tell(trial, value, state=named)

    def _taken(self) -> list[Any]:
        """Trials that are finished or under way anywhere."""
        trials = self._study.get_trials(deepcopy=False)
        return [t for t in trials if t.state.name in ("COMPLETE", "PRUNED", "RUNNING")]

    def _result(self, trial: Any) -> TuningTrial:
        states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return TuningTrial(
            number=trial.number,
            alpha=trial.params["alpha"],
            gamma=trial.params["gamma"],
            state=states.get(trial.state.name, "running"),
            value=trial.value,
            scores=trial.user_attrs.get("scores", {}),
            seconds=None if trial.duration is None else trial.duration.total_seconds(),
            note=trial.user_attrs.get("note", ""),
        )


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process at a time, so that of a trial under way it is known whose it is."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_folder(folder, _TURN))
                break
            except OutputError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                time.sleep(0.02)
        yield


def _is_left(trial: Any) -> bool:
    """Whether a trial under way was interrupted, or its process on this machine is gone."""
    about = trial.user_attrs
    process, here = about.get("process"), about.get("host") == socket.gethostname()
    return trial.state.name == "RUNNING" and (process is None or (here and not is_alive(process)))


def require_optuna() -> Any:
    """Optuna's module; raises `ConfigError` naming the way to install it when it is missing."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend  # noqa: F401 - since version 4
    except ImportError as error:
        raise ConfigError(
            "Tuning needs Optuna, version 4 or later.",
            seen=error,
            remedy=pip_install("tune"),
        ) from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's own log lines and its warnings about features it calls experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
