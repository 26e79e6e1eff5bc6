"""The recipe of `tune`: α and γ of a focal loss, searched together by short trainings."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import ConfigError, DatasetError, LesionsegError
from lesionseg.evaluation import Preset
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.io.folder_locks import locks
from lesionseg.pipeline.dataset import DataSettings, Survey, require_masks, take_survey
from lesionseg.pipeline.judging.volume_scores import VolumeJudge
from lesionseg.pipeline.run.cluster import run_tasks
from lesionseg.pipeline.run.outcome import CommandOutcome, aligned
from lesionseg.pipeline.run.run_dir import (
    check_claim,
    claim,
    default_run_dir,
    is_claimed,
    provenance,
    refuse_other_cases,
)
from lesionseg.pipeline.train.learning import affordable, decide, prepare_cases
from lesionseg.pipeline.tune.pair_losses import AnchorLossOfPair, LossOfPair, PairLosses
from lesionseg.pipeline.tune.search import Search, TuneSettings, require_optuna
from lesionseg.pipeline.tune.trial import TrialRecipe
from lesionseg.pipeline.tune.tune_results import (
    Circumstances,
    refuse_other_rule,
    write_results,
)
from lesionseg.plan.make import PlanOverrides
from lesionseg.report.tuning import TuningSearch, TuningTrial, steadiest, table
from lesionseg.training.device.accelerator import require_device, training_device
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.schedule import batch_factor, settled

log = logging.getLogger(__name__)

N_CHECKS = 4  # validations a trial, the last one included, where the settings do not say


@dataclass(frozen=True)
class TuneOutcome(CommandOutcome):
    """What a search has found so far, where it lies, and which settings have the trials' pair."""

    run_dir: Path
    search: TuningSearch
    groups: tuple[str, ...] = ("loss",)

    def summary(self) -> list[str]:
        """The table of trials, the verdict, and how to train with it."""
        lines = [*aligned(table(self.search)), "", *self.search.notes]
        best = steadiest(self.search)
        if best is not None and best.value:
            advice = self.overrides(best.alpha, best.gamma)
            lines += ["", f"To train with this pair, add to your `train`: {advice}"]
        return [*lines, f"Heat map: {self.run_dir / 'tune.html'}"]

    def overrides(self, alpha: float, gamma: float) -> str:
        """The settings with which `train` has the losses of a trial with this pair."""
        return " ".join(
            f"{group}.alpha={alpha:.3f} {group}.gamma={gamma:.2f}" for group in self.groups
        )


@locks("run_dir", shared=True)
def tune(
    data: DataSettings,
    model: PlanOverrides,
    loss: LossOfPair,
    detection: AnchorLossOfPair,
    prepare: PrepareSettings,
    sampling: SamplingSettings,
    augment: AugmentationSettings,
    optim: OptimiserSettings,
    trainer: TrainerSettings,
    inference: InferenceSettings,
    preset: Preset,
    tune: TuneSettings,
    run_dir: str | None,
    seed: int,
    config: Mapping[str, Any],
) -> TuneOutcome:
    """Search for the α and γ with which the validation lesions are found best.

    Each trial is a training as `train` does it, in `run_dir/trials`; `run_dir/journal.log` keeps
    the search. The same command goes on with it or, while other processes run, takes part in it;
    only `tune.n_trials` may change. tune.json and tune.html are written after each trial. Raises
    the `LesionsegError` of whatever is wrong.

    Args:
        data: where the data lie and how they are divided.
        model: what the user decides of the plan.
        loss: gives the loss of voxels when called with `alpha` and `gamma`; see `PairLosses`.
        detection: gives the loss of anchors, likewise.
        prepare: what else is done to each image.
        sampling: which tiles are drawn.
        augment: how they are changed.
        optim: optimiser and learning rate.
        trainer: budget and device of each trial.
        inference: how the validation cases are predicted.
        preset: the match rule of the validation.
        tune: what is searched, and how long.
        run_dir: where all of it lies; None: a new folder under `runs`.
        seed: of the split, the first weights and tiles, and the search.
        config: the resolved configuration, kept in `run_dir`.
    """
    losses = PairLosses(model.architecture, loss, detection, model.activation)
    require_optuna()
    _check_devices(trainer)
    require_device(trainer.accelerator)
    run = Path(run_dir) if run_dir else default_run_dir(data.root, f"{model.architecture}_tune")
    check_claim(run, _without_n_trials(config))
    survey = take_survey(data, seed, data.facts(run))
    require_masks(survey, model.architecture)
    refuse_other_cases(run, survey.splits)  # its trials would not compare
    refuse_other_rule(run, preset.match_rule)
    cases = [c for c in survey.of_role("validation") if c.is_labelled]
    lesions = _count_lesions(survey, cases, data)
    learning = partial(
        Learning,
        sampling=sampling,
        augmentation=augment,
        optimiser=optim,
        trainer=trainer,
        seed=seed,
        init_from=model.init_from,
        channel_dropout=data.channel_dropout,
    )
    plan = decide(survey, model, trainer, run, extra=prepare.extra)
    plan = plan.with_(channel_sets=data.channel_sets(plan.channel_names))
    if not is_claimed(run):  # once for all trials: whatever the pair, it takes the same memory
        any_loss, any_detection = losses(alpha=0.5, gamma=1.0)
        any_pair = learning(loss=any_loss, detection=any_detection)
        plan = affordable(plan, any_pair, run, survey, model)
    trainer = _with_checks(settled(trainer, plan, training_device(trainer.accelerator)))
    rate = optim.lr * batch_factor(optim, plan)
    claim(run, _without_n_trials(config))  # last, as in `train`
    recipe = TrialRecipe(
        losses=losses,
        plan=plan,
        cases=prepare_cases(survey, plan, data, run),
        learning=partial(learning, trainer=trainer, optimiser=replace(optim, lr=rate)),
        judge=lambda linked: VolumeJudge(survey, cases, linked, inference, preset),
        fp_per_case=tune.fp_per_case,
        run=run,
    )
    device = training_device(trainer.accelerator)
    origin = provenance(survey.dataset, config, seed, device)
    budget, rule = _budget(trainer), preset.match_rule
    about = Circumstances(tune, seed, budget, len(cases), lesions, losses.first, origin, rule)
    search = Search(run, tune, seed=seed, first=losses.first)
    if tune.ray_workers:
        _search_on_ray(recipe, about, gpus=int(device != "cpu"))
    else:
        search.run(recipe, partial(_write, search, about))
    # once more: a start after the last trial may be there for the files alone
    return TuneOutcome(run, write_results(run, search.trials(), about), losses.groups)


def _search_on_ray(recipe: TrialRecipe, about: Circumstances, gpus: int) -> None:
    """Let workers of a cluster run the trials, each with so many GPUs; raises what one did."""
    workers = about.settings.ray_workers
    for end in run_tasks([partial(_take_part, recipe, about)] * workers, gpus=gpus):
        if isinstance(end, LesionsegError):
            raise end


def _take_part(recipe: TrialRecipe, about: Circumstances) -> None:
    """What each worker of a cluster does: run trials of the one search."""
    search = Search(recipe.run, about.settings, seed=about.seed, first=about.first)
    search.run(recipe, partial(_write, search, about))


def _write(search: Search, about: Circumstances, trial: TuningTrial) -> None:
    _log_trial(trial)
    write_results(search.folder, search.trials(), about)


def _check_devices(trainer: TrainerSettings) -> None:
    if not trainer.has_one_device:
        raise ConfigError(
            "A trial trains on one device.",
            where="trainer.devices",
            seen=trainer.devices,
            remedy="start the same command once per device: the processes share the search.",
        )


def _without_n_trials(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that has to stay the same while a search goes on."""
    free = ("n_trials", "ray_workers")
    searched = {k: v for k, v in config.get("tune", {}).items() if k not in free}
    return {**config, "tune": searched}


def _count_lesions(survey: Survey, cases: Sequence[CaseFiles], data: DataSettings) -> int:
    total = sum(survey.burden.get(files.case, 0) for files in cases)
    if total == 0:
        raise DatasetError(
            "No lesion is left to measure the trials by.",
            where=data.root,
            seen=f"{len(cases)} validation cases",
            remedy="raise data.validation_fraction, or give other splits.",
        )
    return total


def _with_checks(trainer: TrainerSettings) -> TrainerSettings:
    if trainer.validate_every_minutes is not None or trainer.max_minutes is None:
        return trainer
    return replace(trainer, validate_every_minutes=trainer.max_minutes / N_CHECKS)


def _budget(trainer: TrainerSettings) -> str:
    limits = [
        f"{value:g} {what}"
        for value, what in ((trainer.max_minutes, "minutes"), (trainer.max_steps, "steps"))
        if value is not None
    ]
    return f"a training of at most {' or '.join(limits)}"


def _log_trial(trial: TuningTrial) -> None:
    log.info(
        "Trial %d: α %.3f, γ %.2f, recall %.3f%s.",
        trial.number,
        trial.alpha,
        trial.gamma,
        trial.scores.get("recall", 0.0),
        " (stopped early)" if trial.state == "pruned" else "",
    )
