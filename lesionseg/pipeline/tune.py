"""`tune`: α and γ of a focal loss, searched together by short trainings; Optuna proposes them.

`run_dir/journal.log` is Optuna's storage: processes that are started with the same run_dir share
the search, and the same command goes on with it. A trial that was killed does not count.
"""

import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.config import TrainerConfig, TuneConfig, named
from lesionseg.errors import ConfigError, DatasetError, TrainingError, pip_install
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.curves import Pool, average_precision, froc
from lesionseg.evaluation.intervals import value_of, wilson_interval
from lesionseg.io.files import write_json
from lesionseg.pipeline.dataset import facts_folder, take_survey
from lesionseg.pipeline.log import aligned, say, typed
from lesionseg.pipeline.prepare import config_of, prepare_cases
from lesionseg.pipeline.run_dir import check_config, default_run_dir, provenance
from lesionseg.pipeline.score import labelled, match_volumes
from lesionseg.pipeline.train import begin, train_network, with_focal_correction
from lesionseg.plan.plan import sources_of
from lesionseg.reporting.tuning import (
    State,
    TuningSearch,
    TuningTrial,
    steadiest,
    table,
    write_tuning_page,
)
from lesionseg.training.module import budget_text
from lesionseg.training.processes import joined, require_device, training_device

log = logging.getLogger(__name__)

TRIAL_MINUTES = 5.0  # where the settings name no budget
TRIAL_OVERLAP = 0.125  # of tiles when validation cases are predicted: twice as fast as 0.5
N_VALIDATIONS = 4  # of a trial, the last one included
N_STARTUP = 8  # pairs that are spread over the rectangle before the sampler goes by their values
# Recall moves in steps of one lesion. Between pairs that find the same lesions the average
# precision decides, with a weight too small to outweigh a lesion in a set of under a hundred.
TIE_WEIGHT = 0.01
STATES: Mapping[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def tune(cfg: TuneConfig) -> TuningSearch:
    """Search for the α and γ with which the validation lesions are found best.

    Each trial is a training as `train` does it, in `run_dir/trials`, with the same first weights
    and tiles. tune.json and tune.html are written after each. Raises the `LesionsegError` of
    whatever is wrong.
    """
    _optuna()  # if it is missing, that is the first error
    groups = tuned_groups(cfg)
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, f"{cfg.model.architecture}_tune"))
    cfg = cfg.model_copy(update={"trainer": _trial_trainer(cfg.trainer)})
    check_config(run, config_of(cfg))
    if not cfg.trainer.has_one_device:
        raise ConfigError("trainer.devices: a trial has one; start the command once for each.")
    require_device(cfg.trainer.accelerator)
    with joined(cfg.trainer):  # plan, trial steps and trainings use the card of trainer.devices
        return _search(cfg, groups, run)


def _search(cfg: TuneConfig, groups: Sequence[str], run: Path) -> TuningSearch:
    """Read the cases, run the trials that are missing, and write and say what they show."""
    optuna = _optuna()
    run.mkdir(parents=True, exist_ok=True)
    survey = take_survey(cfg.data, cfg.seed, facts_folder(cfg.data, run))
    cases = labelled(survey, "validation")
    n_lesions = sum(survey.counts.get(files.case, 0) for files in cases)
    if n_lesions == 0:
        raise DatasetError(
            f"{cfg.data.root}: {len(cases)} validation cases without a lesion cannot tell pairs "
            "apart. Raise data.validation_fraction, or give other splits."
        )
    plan, device = begin(cfg, survey, run), training_device(cfg.trainer.accelerator)
    origin = provenance(survey.dataset, config_of(cfg), cfg.seed, device)
    prepared = prepare_cases(survey, plan, cfg.data, run)
    inference = cfg.inference.model_copy(update={"overlap": TRIAL_OVERLAP})
    preset = find_preset(cfg.preset)

    def objective(trial: Any) -> float:
        alpha = trial.suggest_float("alpha", *cfg.tune.alpha)
        gamma = trial.suggest_float("gamma", *cfg.tune.gamma)
        pair, folder = {"alpha": alpha, "gamma": gamma}, run / f"trials/{trial.number:03d}"
        own = cfg.model_copy(
            update={group: getattr(cfg, group).model_copy(update=pair) for group in groups}
        )
        taught, values = with_focal_correction(plan, own), list[float]()

        def validate(network: nn.Module, on: str | None = None) -> dict[str, float]:
            matches = match_volumes(network, survey, cases, taught, inference, preset, on)
            results = [match.result(surface=False) for match in matches]
            pool = Pool.of(results)
            recall = value_of(froc(pool, [cfg.tune.fp_per_case]), len(pool.groups))[0] or 0.0
            precision = value_of(average_precision(pool), len(pool.groups))[0] or 0.0
            scores = {"recall": recall, "average_precision": precision}
            trial.set_user_attr("scores", scores)
            values.append(recall + TIE_WEIGHT * precision)
            trial.report(values[-1], len(values))
            if trial.should_prune():
                raise optuna.TrialPruned
            return {**scores, "recall_1fp": values[-1]}  # by which the trial's weights are kept

        try:
            trained = train_network(plan, prepared, own, folder, validate=validate)
            if not values:  # the training has moved the network to the CPU
                validate(trained.network, trained.device)
        except TrainingError as error:  # it diverged
            trial.set_user_attr("scores", {"recall": 0.0, "average_precision": 0.0})
            trial.set_user_attr("note", str(error))
            return 0.0
        finally:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a search leaves numbers
        log.info("Trial %d: α %.3f, γ %.2f: score %.3f.", trial.number, alpha, gamma, values[-1])
        return values[-1]

    facts = {
        "preset": cfg.preset,
        "n_cases": len(cases),
        "n_lesions": n_lesions,
        "budget": budget_text(cfg.trainer),
        "seed": cfg.seed,
        "provenance": origin,
    }
    study = _study(cfg, run, groups[0])
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=done)) < cfg.tune.n_trials:
        enough = optuna.study.MaxTrialsCallback(cfg.tune.n_trials, states=done)
        study.optimize(
            objective, callbacks=[enough, lambda *_: write_results(cfg, study, facts, run)]
        )
    search = write_results(cfg, study, facts, run)
    say("\n".join([*aligned(table(search)), "", *search.notes]))
    say(f"Open:    {run / 'tune.html'}")
    if (best := steadiest(search)) is not None and best.value:
        pair = [(f"{g}.alpha", f"{best.alpha:.3f}") for g in groups]
        pair += [(f"{g}.gamma", f"{best.gamma:.2f}") for g in groups]
        say(f"Next:    {typed('train', **{'data.root': cfg.data.root}, **dict(pair))}")
    return search


def tuned_groups(cfg: TuneConfig) -> tuple[str, ...]:
    """The settings whose `alpha` and `gamma` a trial changes: those of voxels, anchors or both.

    Raises `ConfigError` where nothing that teaches the architecture has an α and a γ, and for a
    range whose ends are swapped.
    """
    sources, groups = sources_of(cfg.model.architecture), list[str]()
    for name, (low, high) in (("alpha", cfg.tune.alpha), ("gamma", cfg.tune.gamma)):
        if low > high:
            raise ConfigError(f"tune.{name}=[{low:g},{high:g}]: give the lower bound first.")
    if "segmentation" in sources:
        takes = signature(named(cfg.loss.target, "loss")).parameters
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
    """The search in `run`, new or gone on with; the pair that one takes without it comes first."""
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
    best, steady = search.best, steadiest(search)
    document = {
        "schema_version": 1,
        "objective": f"{objective} + {TIE_WEIGHT} · average precision",
        "evaluated_on": "validation",
        **facts,
        "search": cfg.tune.plain(),
        "best": None if best is None else asdict(best),
        "steadiest": None if steady is None else asdict(steady),
        "trials": [asdict(trial) for trial in trials],
    }
    write_json(run / "tune.json", document)
    write_tuning_page(search, run / "tune.html")
    return search


def _notes(search: TuningSearch, facts: Mapping[str, Any]) -> Sequence[str]:
    best, steady = search.best, steadiest(search)
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
    """Optuna's module, quiet; raises `ConfigError` naming the way to install it."""
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise ConfigError(f"tune needs Optuna: {pip_install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
