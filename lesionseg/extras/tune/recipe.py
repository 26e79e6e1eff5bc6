"""`tune`: search for α and γ with Optuna: minutes, number, score and pruning of trials.

`run_dir/journal.log` is Optuna's storage: processes that are started with the same run_dir share
the search, and the same command continues it. A trial that was killed does not count.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from lesionseg.config import AUTO_MODEL
from lesionseg.data import CachedCase
from lesionseg.errors import (
    ConfigError,
    DatasetError,
    LesionsegError,
    OutputError,
    TrainingError,
    pip_install,
)
from lesionseg.evaluation import find_preset, wilson_interval
from lesionseg.extras.tune.page import (
    TrialState,
    TuningSearch,
    TuningTrial,
    best_smoothed_trial,
    trial_table,
    write_tuning_page,
)
from lesionseg.extras.tune.settings import TuneConfig
from lesionseg.io import locked_folder, made_folder, write_json
from lesionseg.pipeline import (
    Experiment,
    Outcome,
    align_columns,
    begin,
    command_line,
    default_run_dir,
    loss_option,
    prepare_cases,
    recall_and_precision,
    train_network,
)
from lesionseg.plan import Plan, heads_of
from lesionseg.training import (
    SCORE,
    AfterValidation,
    budget_text,
    join_processes,
    require_device,
)

log = logging.getLogger(__name__)

TRIAL_MINUTES = 5.0  # if the settings state no budget
TRIAL_OVERLAP = 0.125  # of tiles when validation cases are predicted: twice as fast as 0.5
TRIAL_VALIDATIONS = 4  # of a trial, the last one included
N_STARTUP = 8  # random pairs before the sampler uses the scores of earlier pairs
# Recall changes in steps of one lesion. Average precision decides between pairs that find equally
# many lesions. Its weight is too small to outweigh one lesion out of a hundred.
TIE_WEIGHT = 0.01
FIRST_PAIR = "pair of the settings"  # marks the trial in Optuna's storage
BEGIN_LOCK = "tune.begin"  # in the run directory, held by a process that begins search or trial
TRIAL_LOCK = ".trial.lock"  # in the folder of a trial, held by the process that trains it
TRIAL_STATES: Mapping[str, TrialState] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


@dataclass(frozen=True)
class TuneOutcome(Outcome):
    """The trials of a search, including those of earlier processes.

    Attributes:
        search: The trials and the conclusions.
        run: The run directory.
        cfg: The settings of the trials.
    """

    search: TuningSearch
    run: Path
    cfg: TuneConfig

    def record(self) -> dict[str, Any]:
        """Return the run directory, the page, and the recommended α and γ (`best`), for `--json`.

        `best` is None if no finished trial has found a lesion.
        """
        best = best_smoothed_trial(self.search)
        pair = None if best is None else {"alpha": best.alpha, "gamma": best.gamma}
        return {"run": self.run, "page": self.run / "tune.html", "best": pair}

    def summary(self) -> list[str]:
        """Return the lines for the terminal: the table of trials, the conclusions, and the page."""
        rows = align_columns(trial_table(self.search))
        return [*rows, "", *self.search.notes, f"Open:    {self.run / 'tune.html'}"]

    @property
    def next(self) -> str | None:
        """The command that trains with the recommended α and γ; None if no trial is recommended.

        No trial is recommended if none of the finished ones has found a lesion.
        """
        best = best_smoothed_trial(self.search)
        if best is None:
            return None
        groups = tuned_groups(self.cfg)
        settings = {"data.root": self.cfg.data.root, **options_of_trials(self.cfg, groups)}
        settings |= {f"{group}.alpha": f"{best.alpha:.3f}" for group in groups}
        settings |= {f"{group}.gamma": f"{best.gamma:.2f}" for group in groups}
        return f"{command_line('train', settings)}  # with your other settings"


def tune(cfg: TuneConfig) -> TuneOutcome:
    """Search for the α and γ with the best recall of validation lesions.

    Each trial is a training in `run_dir/trials`. All trials start from the same weights and use the
    same tiles. tune.json and tune.html are written after each trial. Processes with the same run
    directory share the trials, and a process that starts later continues the search.

    Args:
        cfg: See conf/tune.yaml.

    Raises:
        LesionsegError: If a setting, file or case is wrong. The message names it.
    """
    _optuna()  # if Optuna is missing, this is the first error
    check_tuning(cfg)
    find_preset(cfg.preset)  # a wrong preset is an error before a file is read
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, cfg.model.architecture, "tune"))
    cfg = _with_trial_budget(cfg)
    Experiment.check_run(cfg, run)
    if not cfg.trainer.has_one_device:
        raise ConfigError(
            "trainer.devices: a trial uses one device. Start the command once per device."
        )
    if cfg.tune.prune and cfg.trainer.validate_every_minutes is None:
        log.info(
            "Poor trials are not stopped early (tune.prune), because a trial is validated only at "
            "its end. To validate in between, set trainer.max_minutes or "
            "trainer.validate_every_minutes."
        )
    require_device(cfg.trainer.accelerator)
    with join_processes(cfg.trainer):  # all steps use the device of trainer.devices
        experiment = Experiment.open(cfg, run)
        # `open` chooses the model and the learning rate if they are `auto`
        resolved = experiment.cfg
        cfg = cfg.model_copy(update={"model": resolved.model, "optim": resolved.optim})
        search = _run_trials(experiment, cfg)
    return TuneOutcome(search, run, cfg)


def _run_trials(experiment: Experiment, cfg: TuneConfig) -> TuningSearch:
    """Run the trials that the search still lacks, and write the results after each trial.

    Args:
        experiment: The data, and the model and learning rate of the run.
        cfg: The settings, with the model and the learning rate of `experiment`.

    Returns:
        The search, with the trials of all processes.

    Raises:
        ConfigError: If no loss can be tuned, see `tuned_groups`.
        DatasetError: If no validation case has a lesion.
    """
    run = experiment.run
    # check that the cases can rank the trials
    groups = tuned_groups(cfg)
    cases = experiment.cases("validation")
    n_lesions = sum(experiment.inspection.counts.get(files.case, 0) for files in cases)
    if n_lesions == 0:
        raise DatasetError(
            f"{cfg.data.root}: {len(cases)} validation cases without a lesion cannot rank "
            "pairs of α and γ. Raise data.validation_fraction, or give other splits."
        )
    # prepare what all trials share
    plan = _begin_search(experiment)
    context = {
        "preset": cfg.preset,
        "n_cases": len(cases),
        "n_lesions": n_lesions,
        "budget": budget_text(cfg.trainer),
        "seed": cfg.seed,
        "provenance": experiment.origin,
    }
    trials = _Trials(
        experiment, cfg, groups, plan, prepare_cases(experiment.inspection, plan, experiment.cache)
    )
    # open the search, and run trials until there are enough
    lock = FileLock(run / BEGIN_LOCK)
    with lock:
        study = open_study(cfg, run)
    shared = SharedStudy(
        study=study,
        run=run,
        lock=lock,
        n_trials=cfg.tune.n_trials,
        first_pair=configured_pair(cfg, groups[0]),
    )
    while shared.run_next(trials.run):
        write_results(cfg, study, context, run)
    return write_results(cfg, study, context, run)


def _begin_search(experiment: Experiment) -> Plan:
    """Make the plan and save the configuration, see `begin`, before the first trial.

    Several processes may begin a search together, so each holds a lock meanwhile. If the settings
    are wrong, a new run directory is removed again.
    """
    run = experiment.run
    with made_folder(run):
        try:
            with FileLock(run / BEGIN_LOCK):
                return begin(experiment)
        except LesionsegError:
            # only an empty folder is removed by `made_folder`
            if [*run.iterdir()] == [run / BEGIN_LOCK]:
                (run / BEGIN_LOCK).unlink()
            raise


@dataclass(frozen=True)
class SharedStudy:
    """Optuna's study in a run directory, whose trials several processes may share.

    A killed trial stays "running" in Optuna's journal. A process therefore holds the lock of the
    folder of its trial. The system releases this lock if the process ends for any reason.

    Attributes:
        study: The study.
        run: The run directory.
        lock: Held while a process begins a trial.
        n_trials: Number of trials over all processes.
        first_pair: The pair of the first trial, or None if Optuna proposes all pairs.
    """

    study: Any
    run: Path
    lock: FileLock
    n_trials: int
    first_pair: Mapping[str, float] | None

    def run_next(self, objective: Callable[[Any], float]) -> bool:
        """Run the next trial of the search, unless there are enough trials.

        Finished and running trials count, those of other processes as well. Optuna proposes the
        pair.

        - If `objective` raises `TrialPruned`, the trial is finished.
        - If it raises anything else, the trial is marked as failed and does not count, and the
          exception is raised again.

        Args:
            objective: Trains with the pair of an Optuna trial, and returns its score.

        Returns:
            True if a trial was run, False if there are enough trials.
        """
        optuna = _optuna()
        # the lock of the search is released before the training, that of the trial after it
        with ExitStack() as trial_lock:
            with self.lock:
                # Running trials count, otherwise each process would begin one more. They are read
                # first, so that a trial that ends meanwhile is not missed.
                n_running = len(self._running())
                if len(self._finished()) + n_running >= self.n_trials:
                    if n_running:
                        log.info("Other processes are still running %d trials.", n_running)
                    return False
                self._enqueue_first_pair()
                trial = self.study.ask()
                folder = trial_folder(self.run, trial.number)
                trial_lock.enter_context(locked_folder(folder, TRIAL_LOCK))
            try:
                value = objective(trial)
            except optuna.TrialPruned:
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            except BaseException:  # Ctrl-C as well
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            else:
                self.study.tell(trial, value)
        return True

    def _finished(self) -> Sequence[Any]:
        """Return the Optuna trials that are complete or pruned, which count for the search."""
        states = _optuna().trial.TrialState
        return self._in_states(states.COMPLETE, states.PRUNED)

    def _running(self) -> Sequence[Any]:
        """Return the Optuna trials that a process is training, which count for the search.

        Optuna also calls a killed trial running, but no process holds the lock of its folder.
        """
        unfinished = self._in_states(_optuna().trial.TrialState.RUNNING)
        return [t for t in unfinished if is_being_trained(trial_folder(self.run, t.number))]

    def _in_states(self, *states: Any) -> Sequence[Any]:
        """Return the Optuna trials that are in one of the given states."""
        result: Sequence[Any] = self.study.get_trials(deepcopy=False, states=states)
        return result

    def _enqueue_first_pair(self) -> None:
        """Put the pair of the settings into Optuna's queue, so that the search begins with it.

        The pair is put there only once: not if a trial of this pair is finished, running or waiting
        in the queue. A trial that was killed or failed does not count, so that the pair is tried
        again.
        """
        if self.first_pair is None:
            return
        waiting = self._in_states(_optuna().trial.TrialState.WAITING)
        # the running ones first, so that a trial that ends meanwhile is not missed
        for trial in (*self._running(), *self._finished(), *waiting):
            # a trial has its mark from the start, but its pair only when the training begins;
            # trials of earlier versions have no mark
            if FIRST_PAIR in trial.user_attrs or trial.params == self.first_pair:
                return
        self.study.enqueue_trial(dict(self.first_pair), user_attrs={FIRST_PAIR: True})


def trial_folder(run: Path, number: int) -> Path:
    """Return the folder of a trial in the run directory of its search, such as `trials/003`."""
    return run / f"trials/{number:03d}"


def is_being_trained(folder: Path) -> bool:
    """Return True if a process is training a trial now: it holds the lock in the trial's folder."""
    if not (folder / TRIAL_LOCK).is_file():
        return False
    # the lock can be acquired only if no process holds it
    try:
        with locked_folder(folder, TRIAL_LOCK):
            return False
    except OutputError:
        return True


@dataclass(frozen=True)
class _Trials:
    """The trainings of a search, and the settings and data that they share.

    Attributes:
        experiment: The data, model and run directory of the search.
        cfg: The settings of the search.
        groups: The settings that a trial changes, see `tuned_groups`.
        plan: The plan of all trials.
        prepared: The prepared training cases of all trials.
    """

    experiment: Experiment
    cfg: TuneConfig
    groups: Sequence[str]
    plan: Plan
    prepared: Sequence[CachedCase]

    def run(self, trial: Any) -> float:
        """Train with the pair that Optuna proposes. Return the score of the trial.

        The score is the recall plus a small share of the average precision (`TIE_WEIGHT`), both of
        the last validation. Both numbers are also stored in the Optuna trial, for the page. If the
        training diverges, the score is 0. Checkpoints are removed.

        Args:
            trial: The Optuna trial.

        Raises:
            TrialPruned: If Optuna stops the trial early. This is an exception of Optuna.
        """
        # the settings of this trial: its pair, a faster validation, and its folder
        tune = self.cfg.tune
        alpha = trial.suggest_float("alpha", *tune.alpha)
        gamma = trial.suggest_float("gamma", *tune.gamma)
        pair = {"alpha": alpha, "gamma": gamma}
        changed: dict[str, Any] = {
            group: getattr(self.cfg, group).model_copy(update=pair) for group in self.groups
        }
        # a smaller overlap of tiles than in the settings saves time
        changed["inference"] = self.cfg.inference.model_copy(update={"overlap": TRIAL_OVERLAP})
        experiment = replace(
            self.experiment,
            cfg=self.cfg.model_copy(update=changed),
            run=trial_folder(self.experiment.run, trial.number),
        )
        values: list[float] = []

        def validate(network: nn.Module, device: str | None = None) -> dict[str, float]:
            """Score the network on the validation cases, and report the score to Optuna.

            The score is appended to `values`. The device is that of the network if it is None.
            Return the scores for the training history.
            """
            recall, precision = recall_and_precision(
                network, experiment, self.plan, tune.fp_per_case, device
            )
            scores = {"recall": recall, "average_precision": precision}
            trial.set_user_attr("scores", scores)
            values.append(recall + TIE_WEIGHT * precision)
            trial.report(values[-1], step=len(values))  # the number of the validation
            return {**scores, SCORE: values[-1]}

        def stop_if_poor() -> None:
            """Raise `TrialPruned` if Optuna's pruner finds the reported scores too poor."""
            if trial.should_prune():
                raise _optuna().TrialPruned

        try:
            trained = train_network(
                experiment,
                self.plan,
                self.prepared,
                validate=validate,
                # a trial that has used its whole budget is complete, however poor it is
                callbacks=[AfterValidation(stop_if_poor)],
            )
            if not values:  # no validation was due during the training
                # the training has moved the network to the CPU, so the device is stated
                validate(trained.network, device=trained.device)
        except TrainingError as error:  # the training diverged
            trial.set_user_attr("scores", {"recall": 0.0, "average_precision": 0.0})
            trial.set_user_attr("note", str(error))
            return 0.0
        finally:
            shutil.rmtree(experiment.run / "checkpoints", ignore_errors=True)
        log.info("Trial %d: α %.3f, γ %.2f: score %.3f.", trial.number, alpha, gamma, values[-1])
        return values[-1]


def check_tuning(cfg: TuneConfig) -> None:
    """Raise `ConfigError` if the settings do not allow a search, before any file is read.

    - The bounds of a range of α or γ must not be swapped.
    - A search uses one fold, not all.
    - A loss of the model must have α and γ (`tuned_groups`). This is checked only if the settings
      name the model, not with `auto`.
    """
    for name, (low, high) in (("alpha", cfg.tune.alpha), ("gamma", cfg.tune.gamma)):
        if low > high:
            raise ConfigError(
                f"tune.{name}=[{low:g},{high:g}]: the bounds are swapped. Give the lower bound "
                "first."
            )
    if cfg.data.fold == "all":
        raise ConfigError("data.fold=all: a search uses one fold. Name its number.")
    if cfg.model.architecture != AUTO_MODEL:
        tuned_groups(cfg)


def tuned_groups(cfg: TuneConfig) -> tuple[str, ...]:
    """Return the groups of settings whose `alpha` and `gamma` a trial changes.

    The groups are "loss" for a model that segments, and "detection" for a model that detects. A
    model with both heads has both groups. A trial gives both the same pair, because a search has
    two dimensions. The first trial uses the pair of the first group. Detection with
    `hard_negatives` has no α and γ, and is left out.

    Raises:
        ConfigError: If a segmentation loss has no α and γ, no group remains, or a loss has an α per
            label.
    """
    heads = heads_of(cfg.model.architecture)
    groups: list[str] = []
    if "segmentation" in heads:
        if not cfg.loss.parameters().keys() >= {"alpha", "gamma"}:
            raise ConfigError(
                f"loss: {cfg.loss.target} has no α and γ to tune. Take loss=focal, loss=dice_focal "
                "or loss=lesion_balanced."
            )
        groups.append("loss")
    if "detection" in heads and not cfg.detection.hard_negatives:
        groups.append("detection")
    if not groups:
        raise ConfigError("detection.hard_negatives=true has no α and γ to tune. Set it to false.")
    for group in groups:
        alpha = getattr(cfg, group).alpha
        if isinstance(alpha, tuple):
            raise ConfigError(
                f"{group}.alpha=[{','.join(f'{weight:g}' for weight in alpha)}]: a search tunes "
                "one α for all labels. Give a single number."
            )
    return tuple(groups)


def options_of_trials(cfg: TuneConfig, groups: Sequence[str]) -> dict[str, str]:
    """Return the command line options of `train` that repeat the model and the loss of the trials.

    The option `loss` is needed only if "loss" is among the tuned `groups`. A network or loss that
    the user wrote has no option, and is left out.

    Returns:
        The value of each option by name, `model` and `loss`.
    """
    options: dict[str, str] = {}
    if cfg.model.architecture != "custom":
        options["model"] = cfg.model.architecture
    if "loss" in groups:
        option = loss_option(cfg.loss.target)
        if option is not None:
            options["loss"] = option
    return options


def _with_trial_budget(cfg: TuneConfig) -> TuneConfig:
    """Return the settings with the budget of one trial: its minutes, and how often it is validated.

    Without a budget in the settings, a trial has `TRIAL_MINUTES`. If validation is `auto`, a trial
    with a budget in minutes has `TRIAL_VALIDATIONS` validations, and a trial with a budget in steps
    only is validated once, at its end.
    """
    minutes = cfg.trainer.max_minutes
    every = cfg.trainer.validate_every_minutes
    if minutes is None and cfg.trainer.max_steps is None:
        minutes = TRIAL_MINUTES
    if every == "auto":
        every = minutes / TRIAL_VALIDATIONS if minutes else None
    budget = {"max_minutes": minutes, "validate_every_minutes": every}
    return cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update=budget)})


def configured_pair(cfg: TuneConfig, group: str) -> dict[str, float] | None:
    """Return α and γ of the settings, which the first trial uses.

    Return None if the settings state no pair. If a value is outside the range of the search, return
    None and log a line, because the pair could otherwise be recommended.

    Args:
        cfg: The settings.
        group: The group that has the pair, `loss` or `detection`.
    """
    settings = getattr(cfg, group)
    if not isinstance(settings.alpha, float) or settings.gamma is None:
        return None
    pair = {"alpha": settings.alpha, "gamma": settings.gamma}
    for name, value in pair.items():
        low, high = getattr(cfg.tune, name)
        if not low <= value <= high:
            log.info(
                "The pair of the settings is not tried, because %s.%s=%g is outside "
                "tune.%s=[%g,%g].",
                *(group, name, value, name, low, high),
            )
            return None
    return pair


def open_study(cfg: TuneConfig, run: Path) -> Any:
    """Return Optuna's study in `run/journal.log`. Create the file if it is missing.

    The sampler of a new study has the seed of the settings, so that the search can be repeated. The
    sampler proposes pairs, and the pruner stops poor trials early.
    """
    optuna = _optuna()
    path = run / "journal.log"
    # a lock by opening a file works on Windows and on network folders alike
    lock = optuna.storages.journal.JournalFileOpenLock(str(path))
    seed = None if path.is_file() else cfg.seed  # a second process proposes other pairs
    pruner = optuna.pruners.NopPruner()  # stops no trial
    if cfg.tune.prune:
        # The first validation never ends a trial, because it hardly predicts the last one. Half of
        # the random pairs are trained to the end, so that the median is that of several trials.
        pruner = optuna.pruners.MedianPruner(n_startup_trials=N_STARTUP // 2, n_warmup_steps=2)
    return optuna.create_study(
        study_name="alpha and gamma",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        ),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,  # the better γ depends on α
            constant_liar=True,  # avoids pairs that other processes are training
            n_startup_trials=N_STARTUP,
        ),
        pruner=pruner,
    )


def write_results(
    cfg: TuneConfig, study: Any, context: Mapping[str, Any], run: Path
) -> TuningSearch:
    """Write tune.json and tune.html into the run directory, and return the search.

    Trials that have no pair yet are left out.

    Args:
        cfg: The settings of the search.
        study: Optuna's study with the trials of all processes.
        context: Further entries of tune.json, such as the preset and the number of cases.
        run: The run directory.
    """
    trials = [
        TuningTrial(
            number=trial.number,
            alpha=trial.params["alpha"],
            gamma=trial.params["gamma"],
            state=TRIAL_STATES.get(trial.state.name, "unfinished"),
            value=trial.value,
            scores=trial.user_attrs.get("scores", {}),
            seconds=None if trial.duration is None else trial.duration.total_seconds(),
            note=trial.user_attrs.get("note", ""),
        )
        for trial in study.get_trials(deepcopy=False)
        if {"alpha", "gamma"} <= trial.params.keys()  # otherwise it has not begun
    ]
    noun = "false positive" if cfg.tune.fp_per_case == 1 else "false positives"
    objective = f"lesion recall at {cfg.tune.fp_per_case:g} {noun} per case"
    search = TuningSearch(
        cfg.tune.alpha, cfg.tune.gamma, tuple(trials), objective, "Search for α and γ"
    )
    search = replace(search, notes=tuple(_conclude(search, context)))
    best = search.best
    recommended = best_smoothed_trial(search)
    document = {
        "schema_version": 1,
        "objective": f"{objective} + {TIE_WEIGHT} · average precision",
        "evaluated_on": "validation",
        **context,
        "search": cfg.tune.to_plain(),
        "best": None if best is None else asdict(best),
        "steadiest": None if recommended is None else asdict(recommended),
        "trials": [asdict(trial) for trial in trials],
    }
    write_json(run / "tune.json", document)
    write_tuning_page(search, run / "tune.html")
    return search


def _conclude(search: TuningSearch, context: Mapping[str, Any]) -> Sequence[str]:
    """Return the conclusions of the search as paragraphs, for the page and the terminal.

    The conclusions state the best and the recommended pair with intervals, and how far to trust
    them. If no trial has found a lesion, the only paragraph is advice.

    Args:
        search: The search.
        context: The numbers of cases (`n_cases`) and lesions (`n_lesions`), and the `budget`.
    """
    best = search.best
    recommended = best_smoothed_trial(search)
    if best is None or recommended is None:
        return ["No trial has found a lesion yet. Give each more time: trainer.max_minutes."]

    def describe(trial: TuningTrial) -> str:
        """Describe a trial: its pair, and its recall with a 95 % confidence interval."""
        recall = trial.scores.get("recall", 0.0)
        n = context["n_lesions"]
        low, high = wilson_interval(hits=recall * n, total=n)
        pair = f"α = {trial.alpha:.3f}, γ = {trial.gamma:.2f}"
        return f"{pair}, recall {recall:.3f} (95 % interval {low:.2f} to {high:.2f})"

    lead = (
        f"Best pair: {describe(best)}. Recommended: {describe(recommended)}, because the mean "
        "score of this pair and its neighbours is the highest."
    )
    if recommended is best:
        lead = (
            f"Best pair: {describe(best)}. The mean score of this pair and its neighbours is also "
            "the highest."
        )
    if search.pruned:
        lead += " A trial that was stopped early counts with the score of its last validation."
    return [
        lead,
        f"Scored on {context['n_cases']} validation cases with {context['n_lesions']} lesions, "
        f"after at most {context['budget']} a trial. Pairs whose intervals overlap may be equally "
        "good, and the best of many noisy trials looks better than it is. These are development "
        "data, so do not report these numbers as results.",
    ]


def _optuna() -> Any:
    """Import Optuna, which is optional, and return the module. Its messages are silenced.

    Raises:
        ConfigError: If the extra `tune` is not installed.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise ConfigError(
            f"tune needs the extra `tune` ({error}). Run {pip_install('tune')}."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # options of the sampler are experimental in Optuna
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
