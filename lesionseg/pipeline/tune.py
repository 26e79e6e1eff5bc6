"""`tune`: search for the α and γ of a focal loss by short trainings, proposed by Optuna.

`run_dir/journal.log` is Optuna's storage: processes that are started with the same run_dir share
the search, and the same command continues it. A trial that was killed does not count.
"""

import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.config import TrainerConfig, TuneConfig, import_target
from lesionseg.data.cache import CachedCase
from lesionseg.errors import ConfigError, DatasetError, TrainingError, pip_install
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.curves import Pool, average_precision, froc
from lesionseg.evaluation.intervals import value_of, wilson_interval
from lesionseg.io.files import write_json
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import align_columns, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.planning import begin, with_focal_correction
from lesionseg.pipeline.prepare import prepare_cases
from lesionseg.pipeline.run_dir import check_config, config_of, default_run_dir
from lesionseg.pipeline.score_roles import match_volumes
from lesionseg.pipeline.train_fold import train_network
from lesionseg.plan.plan import Plan, sources_of
from lesionseg.reporting.tuning import (
    State,
    TuningSearch,
    TuningTrial,
    find_steadiest,
    table,
    write_tuning_page,
)
from lesionseg.training.module import budget_text
from lesionseg.training.processes import joined, require_device

log = logging.getLogger(__name__)

TRIAL_MINUTES = 5.0  # where the settings name no budget
TRIAL_OVERLAP = 0.125  # of tiles when validation cases are predicted: twice as fast as 0.5
N_VALIDATIONS = 4  # of a trial, the last one included
N_STARTUP = 8  # pairs that are spread over the rectangle before the sampler goes by their values
# Recall moves in steps of one lesion. Between pairs that find the same lesions the average
# precision decides, with a weight too small to outweigh a lesion in a set of under a hundred.
TIE_WEIGHT = 0.01
STATES: Mapping[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class TuneOutcome(Outcome):
    """The trials of a search, with those of earlier processes.

    Attributes:
        search: the trials and what they show.
        run: the run directory.
        root: the dataset's folder.
        groups: the settings with an α and a γ; see `tuned_groups`.
    """

    search: TuningSearch
    run: Path
    root: str
    groups: tuple[str, ...]

    def summary(self) -> list[str]:
        """Return the table of trials, what they show, and the page."""
        rows = align_columns(table(self.search))
        return [*rows, "", *self.search.notes, f"Open:    {self.run / 'tune.html'}"]

    @property
    def next(self) -> str | None:
        """The training with the best pair; None if no trial found a lesion."""
        best = find_steadiest(self.search)
        if best is None or not best.value:
            return None
        settings = {"data.root": self.root}
        settings |= {f"{group}.alpha": f"{best.alpha:.3f}" for group in self.groups}
        settings |= {f"{group}.gamma": f"{best.gamma:.2f}" for group in self.groups}
        return command_line("train", **settings)


def tune(cfg: TuneConfig) -> TuneOutcome:
    """Search for the α and γ with which the validation lesions are found best.

    Each trial is a training as `train` does it, in `run_dir/trials`, with the same first weights
    and tiles. tune.json and tune.html are written after each trial.

    Raises:
        LesionsegError: naming the setting, file or case that is wrong.
    """
    _optuna()  # if it is missing, that is the first error
    groups = tuned_groups(cfg)
    find_preset(cfg.preset)  # a wrong one is an error before anything is read
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, f"{cfg.model.architecture}_tune"))
    cfg = cfg.model_copy(update={"trainer": _trial_trainer(cfg.trainer)})
    check_config(run, config_of(cfg))
    if not cfg.trainer.has_one_device:
        raise ConfigError("trainer.devices: a trial has one; start the command once for each.")
    require_device(cfg.trainer.accelerator)
    with joined(cfg.trainer):  # plan, trial steps and trainings use the card of trainer.devices
        run.mkdir(parents=True, exist_ok=True)
        experiment = Experiment.open(cfg, run)
        search = _search(experiment, cfg, groups)
    return TuneOutcome(search, run, cfg.data.root, groups)


def _search(experiment: Experiment, cfg: TuneConfig, groups: Sequence[str]) -> TuningSearch:
    """Run the trials that are missing, and write the results after each."""
    optuna = _optuna()
    run = experiment.run
    cases = experiment.cases("validation")
    n_lesions = sum(experiment.survey.counts.get(files.case, 0) for files in cases)
    if n_lesions == 0:
        raise DatasetError(
            f"{cfg.data.root}: {len(cases)} validation cases without a lesion cannot tell pairs "
            "apart. Raise data.validation_fraction, or give other splits."
        )
    plan = begin(experiment)
    facts = {
        "preset": cfg.preset,
        "n_cases": len(cases),
        "n_lesions": n_lesions,
        "budget": budget_text(cfg.trainer),
        "seed": cfg.seed,
        "provenance": experiment.origin,
    }
    trials = _Trials(experiment, cfg, groups, plan, prepare_cases(experiment, plan))
    study = _study(cfg, run, groups[0])
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=done)) < cfg.tune.n_trials:
        enough = optuna.study.MaxTrialsCallback(cfg.tune.n_trials, states=done)

        def write(*_: Any) -> None:
            write_results(cfg, study, facts, run)

        study.optimize(trials.run, callbacks=[enough, write])
    return write_results(cfg, study, facts, run)


@dataclass(frozen=True)
class _Trials:
    """The trainings of a search: one plan and one set of prepared cases for all of them."""

    experiment: Experiment
    cfg: TuneConfig
    groups: Sequence[str]
    plan: Plan
    prepared: Sequence[CachedCase]

    def run(self, trial: Any) -> float:
        """Train with the pair that Optuna proposes. Return the score of the trial."""
        tune = self.cfg.tune
        alpha = trial.suggest_float("alpha", *tune.alpha)
        gamma = trial.suggest_float("gamma", *tune.gamma)
        pair = {"alpha": alpha, "gamma": gamma}
        changed: dict[str, Any] = {
            group: getattr(self.cfg, group).model_copy(update=pair) for group in self.groups
        }
        changed["inference"] = self.cfg.inference.model_copy(update={"overlap": TRIAL_OVERLAP})
        experiment = replace(
            self.experiment,
            cfg=self.cfg.model_copy(update=changed),
            run=self.experiment.run / f"trials/{trial.number:03d}",
        )
        taught = with_focal_correction(self.plan, experiment.cfg)
        values: list[float] = []

        def validate(network: nn.Module, device: str | None = None) -> dict[str, float]:
            scores = self._scores(network, experiment, taught, device)
            trial.set_user_attr("scores", scores)
            values.append(scores["recall"] + TIE_WEIGHT * scores["average_precision"])
            trial.report(values[-1], len(values))
            if trial.should_prune():
                raise _optuna().TrialPruned
            return {**scores, "recall_1fp": values[-1]}  # by which the trial's weights are kept

        try:
            trained = train_network(experiment, self.plan, self.prepared, validate=validate)
            if not values:  # the training has moved the network to the CPU
                validate(trained.network, trained.device)
        except TrainingError as error:  # it diverged
            trial.set_user_attr("scores", {"recall": 0.0, "average_precision": 0.0})
            trial.set_user_attr("note", str(error))
            return 0.0
        finally:
            shutil.rmtree(experiment.run / "checkpoints", ignore_errors=True)  # only numbers stay
        log.info("Trial %d: α %.3f, γ %.2f: score %.3f.", trial.number, alpha, gamma, values[-1])
        return values[-1]

    def _scores(
        self, network: nn.Module, experiment: Experiment, plan: Plan, device: str | None
    ) -> dict[str, float]:
        """Return recall at the stated rate and average precision on the validation cases."""
        cases = experiment.cases("validation")
        matches = match_volumes(network, experiment, cases, plan, device)
        pool = Pool.of([match.result(surface=False) for match in matches])
        recall = value_of(froc(pool, [self.cfg.tune.fp_per_case]), len(pool.groups))[0]
        precision = value_of(average_precision(pool), len(pool.groups))[0]
        return {"recall": recall or 0.0, "average_precision": precision or 0.0}


def tuned_groups(cfg: TuneConfig) -> tuple[str, ...]:
    """Return the settings whose `alpha` and `gamma` a trial changes: of voxels, anchors or both.

    Raises:
        ConfigError: if no loss of the architecture has an α and a γ, or if the ends of a range are
            swapped.
    """
    sources, groups = sources_of(cfg.model.architecture), list[str]()
    for name, (low, high) in (("alpha", cfg.tune.alpha), ("gamma", cfg.tune.gamma)):
        if low > high:
            raise ConfigError(f"tune.{name}=[{low:g},{high:g}]: give the lower bound first.")
    if "segmentation" in sources:
        takes = signature(import_target(cfg.loss.target, "loss")).parameters
        if not takes.keys() >= {"alpha", "gamma"}:
            raise ConfigError(
                f"loss: {cfg.loss.target} has no α and γ to tune. Take loss=focal, loss=dice_focal "
                "or loss=lesion_balanced."
            )
        groups.append("loss")
    if "detection" in sources and not cfg.detection.hard_negatives:
        groups.append("detection")
    if not groups:
        raise ConfigError("detection.hard_negatives=true has no α and γ to tune; set it false.")
    return tuple(groups)


def _trial_trainer(trainer: TrainerConfig) -> TrainerConfig:
    minutes, every = trainer.max_minutes, trainer.validate_every_minutes
    if minutes is None and trainer.max_steps is None:
        minutes = TRIAL_MINUTES
    if every == "auto":
        every = minutes / N_VALIDATIONS if minutes else None
    return trainer.model_copy(update={"max_minutes": minutes, "validate_every_minutes": every})


def _study(cfg: TuneConfig, run: Path, group: str) -> Any:
    """Create or continue the search in `run`. The default pair of the settings comes first."""
    optuna = _optuna()
    path = run / "journal.log"
    # a lock by opening a file works on Windows and on network folders alike
    lock = optuna.storages.journal.JournalFileOpenLock(str(path))
    seed = None if path.is_file() else cfg.seed  # a second process proposes other pairs
    study = optuna.create_study(
        study_name="alpha and gamma",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        ),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,  # the better γ depends on α
            constant_liar=True,  # keeps away from what other processes are at
            n_startup_trials=N_STARTUP,
        ),
        # the first validation ends no trial: it says little of the last
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
        if cfg.tune.prune
        else optuna.pruners.NopPruner(),
    )
    first = getattr(cfg, group)
    if isinstance(first.alpha, float) and first.gamma is not None:
        pair, failed = {"alpha": first.alpha, "gamma": first.gamma}, optuna.trial.TrialState.FAIL
        states = {t.state for t in study.get_trials(deepcopy=False) if t.params == pair}
        study.enqueue_trial(pair, skip_if_exists=states != {failed})  # as where Ctrl-C ended it
    return study


def write_results(cfg: TuneConfig, study: Any, facts: Mapping[str, Any], run: Path) -> TuningSearch:
    """Write tune.json and tune.html into `run`, each whole, and return what they show."""
    trials = [
        TuningTrial(
            number=trial.number,
            alpha=trial.params["alpha"],
            gamma=trial.params["gamma"],
            state=STATES.get(trial.state.name, "unfinished"),
            value=trial.value,
            scores=trial.user_attrs.get("scores", {}),
            seconds=None if trial.duration is None else trial.duration.total_seconds(),
            note=trial.user_attrs.get("note", ""),
        )
        for trial in study.get_trials(deepcopy=False)
        if {"alpha", "gamma"} <= trial.params.keys()  # it has begun
    ]
    noun = "false positive" if cfg.tune.fp_per_case == 1 else "false positives"
    objective = f"lesion recall at {cfg.tune.fp_per_case:g} {noun} per case"
    search = TuningSearch(
        cfg.tune.alpha, cfg.tune.gamma, tuple(trials), objective, "Search for α and γ"
    )
    search = replace(search, notes=tuple(_notes(search, facts)))
    best, steady = search.best, find_steadiest(search)
    document = {
        "schema_version": 1,
        "objective": f"{objective} + {TIE_WEIGHT} · average precision",
        "evaluated_on": "validation",
        **facts,
        "search": cfg.tune.to_plain(),
        "best": None if best is None else asdict(best),
        "steadiest": None if steady is None else asdict(steady),
        "trials": [asdict(trial) for trial in trials],
    }
    write_json(run / "tune.json", document)
    write_tuning_page(search, run / "tune.html")
    return search


def _notes(search: TuningSearch, facts: Mapping[str, Any]) -> Sequence[str]:
    best, steady = search.best, find_steadiest(search)
    if best is None or steady is None or not best.value:
        return ["No trial has found a lesion yet. Give each more time: trainer.max_minutes."]

    def words(trial: TuningTrial) -> str:
        recall, n = trial.scores.get("recall", 0.0), facts["n_lesions"]
        low, high = wilson_interval(recall * n, n)
        pair = f"α = {trial.alpha:.3f}, γ = {trial.gamma:.2f}"
        return f"{pair}, recall {recall:.3f} (95 % interval {low:.2f} to {high:.2f})"

    lead = f"Best: {words(best)}. Best together with its neighbours, and the one to take: "
    lead = f"{lead}{words(steady)}."
    if steady is best:
        lead = f"Best, also together with its neighbours: {words(best)}."
    return [
        lead,
        f"Scored on {facts['n_cases']} validation cases with {facts['n_lesions']} lesions, after "
        f"at most {facts['budget']} a trial. Pairs whose intervals overlap cannot be told apart, "
        "and the best of many noisy trials looks better than it is. These are development data: "
        "none of these numbers is a result.",
    ]


def _optuna() -> Any:
    """Return Optuna's module, quiet. Raise `ConfigError` if it is not installed."""
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise ConfigError(f"tune needs Optuna: {pip_install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
