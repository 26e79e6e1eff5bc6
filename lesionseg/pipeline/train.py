"""`train`: order of steps, warning of few patients, last lines, advice if nothing was found.

It makes a bundle, scores and a report from a folder of scans.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.config import DataConfig, TrainConfig
from lesionseg.core.selection import SELECTED
from lesionseg.data.transforms import needs_trust
from lesionseg.errors import DatasetError, count, duration
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.operating_points import FEW_PATIENTS, OperatingPointAim, explain_too_few
from lesionseg.evaluation.scores import Scores, scores_table
from lesionseg.inference.bundle import bundle_digest
from lesionseg.io.files import locked_folder
from lesionseg.pipeline.cross_validate import cross_validate
from lesionseg.pipeline.dataset_inspection import ALL_FOLDS, DatasetInspection, folds_of
from lesionseg.pipeline.experiment import BUNDLE, Experiment
from lesionseg.pipeline.finished_run import reuse_finished, write_finished
from lesionseg.pipeline.log import align_columns, predict_command, run_log
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.planning import begin
from lesionseg.pipeline.report import check_report, remove_report, report_run
from lesionseg.pipeline.run_dir import config_of, default_run_dir
from lesionseg.pipeline.score_roles import score_role
from lesionseg.pipeline.train_fold import TrainedModel, train_fold, write_card
from lesionseg.plan.make import network_spec
from lesionseg.reporting.words import explain_excess
from lesionseg.training.module import budget_text, resolve_budget
from lesionseg.training.processes import broadcast_from_rank_zero, is_rank_zero, join_processes

log = logging.getLogger(__name__)

ALL_FOLDS_NOTE = (
    "data.fold=all trains every fold in turn, and an ensemble of them predicts. The equivalent of "
    "nnU-Net's fold `all`, one network for all cases without validation, is "
    "data.validation_fraction=0."
)


@dataclass(frozen=True)
class TrainOutcome(Outcome):
    """The results of a training.

    Attributes:
        run: The run directory.
        next: The command that predicts with the trained model. None for all processes of a training
            on several devices except the first, which report nothing.
        lines: The scores, the selection and the duration; if the training was finished before, its
            end and the command that trains further.
        page: The report; None if neither a validation nor a test case has a reference.
    """

    run: Path
    next: str | None = None
    lines: tuple[str, ...] = ()
    page: Path | None = None

    def record(self) -> dict[str, Any]:
        """Return the paths of run directory, bundle and page, for `--json`.

        The record is empty on all processes of a distributed training except rank 0.
        """
        if self.next is None:
            return {}
        return {"run": self.run, "bundle": self.run / BUNDLE, "page": self.page}

    def summary(self) -> list[str]:
        """Return lines for the terminal: scores, selection, bundle and page.

        The list is empty on all processes of a distributed training except rank 0.
        """
        if self.next is None:
            return []
        page_line = (
            "The report needs at least one validation or test case with a reference, so none was "
            "written."
        )
        if self.page is not None:
            page_line = f"Open:    {self.page}"
        return [*self.lines, f"Bundle:  {self.run / BUNDLE}", page_line]


def train(cfg: TrainConfig) -> TrainOutcome:
    """Train a model, choose its operating point on validation cases, test it, and write a report.

    The run directory then contains the bundle, the scores and the report. If `cfg.run_dir` is None,
    it is that of `default_run_dir`, whose name contains the time. All cases are read and checked
    before the first file of the run is written.

    The same command resumes an interrupted training. If the training is finished, at most its
    report is drawn again. A second process with the same run directory is an error. `data.fold=all`
    trains every fold (`cross_validate`). torchrun and srun start several processes for one
    training, in which only rank 0 scores and reports.

    Raises:
        LesionsegError: If a setting, file or case is wrong. The message names it.
    """
    started = time.monotonic()
    find_preset(cfg.preset)  # a wrong preset is an error before a file is read
    OperatingPointAim.parse(cfg.operating_point)
    check_report(cfg.report)
    own_run = Path(cfg.run_dir or default_run_dir(cfg.data.root, cfg.model.architecture))
    # agree on the run directory, lock it, and inspect the dataset
    with ExitStack() as stack:
        stack.enter_context(join_processes(cfg.trainer))
        run = broadcast_from_rank_zero(lambda: own_run)  # the default name contains the time
        if is_rank_zero():
            Experiment.check_run(cfg, run)
            stack.enter_context(locked_folder(run))
            note = stack.enter_context(run_log(run, private=cfg.private))
        opened = broadcast_from_rank_zero(partial(Experiment.open, cfg, run))
        experiment = opened.on_this_process(cfg)
        inspection = experiment.inspection
        next_command = predict_command(
            run,
            is_mirrored=cfg.inference.flips,
            needs_trust=needs_trust(network_spec(cfg.model), cfg.prepare.extra),
        )
        # end here if the training is finished already
        finished = broadcast_from_rank_zero(partial(reuse_finished, run, inspection, cfg.report))
        if finished is not None and is_rank_zero():
            page = None if finished.page is None else run / finished.page
            lines = finished.lines(run, config_of(experiment.cfg))
            return TrainOutcome(run, next_command, lines, page)
        if finished is not None:
            return TrainOutcome(run)

        # train
        if is_rank_zero():
            explain_promise(
                experiment.inspection, OperatingPointAim.parse(cfg.operating_point), cfg.data.fold
            )
        if cfg.data.fold == ALL_FOLDS:
            # users of nnU-Net know `all` with another meaning
            if experiment.dataset.layout == "nnunet":
                log.info(ALL_FOLDS_NOTE)
            trained = cross_validate(experiment)
        else:
            plan = begin(experiment)
            if is_rank_zero():
                budget = resolve_budget(cfg.trainer, plan, experiment.device)
                warn_of_few_patients(inspection, cfg.data, budget_text(budget))
            trained = train_fold(experiment, plan)
        if trained is None:  # the first process scores and reports
            return TrainOutcome(run)

        # test, report, and record the end
        scores = dict(trained.scores)
        digest = bundle_digest(experiment.bundle)
        tested = score_role(
            trained.predictor, trained.experiment.with_origin(bundle=digest), "test"
        )
        if tested is not None:
            scores["test"] = tested
            write_card(trained.experiment, [*scores.values()])
        else:  # the run may have had test cases before
            remove_report(run / "test")
        page = report_run(run, experiment.dataset, cfg.report)
        minutes = (time.monotonic() - started) / 60
        lines = (*closing_lines(trained, scores), f"Finished in {minutes:.1f} minutes.")
        write_finished(run, inspection, cfg.report, page, minutes)
        note("\n".join(lines))
    return TrainOutcome(run, next_command, (*align_columns(scores_table(scores)), "", *lines), page)


def warn_of_few_patients(inspection: DatasetInspection, data: DataConfig, budget: str) -> None:
    """Warn before a training if few patients choose the threshold, and offer cross-validation.

    Nothing is logged if the settings name a fold, no case is for validation, or the patients cannot
    be divided into folds.

    Args:
        inspection: The cases and their roles.
        data: The settings of the split.
        budget: The limits of a training as text, for the message.
    """
    validated = {files.patient for files in inspection.of_role("validation")}
    n_patients = len(validated | {files.patient for files in inspection.of_role("train")})
    if data.fold is not None or not 0 < len(validated) < FEW_PATIENTS:
        return
    with suppress(DatasetError):  # a split file without folds, or too few patients for folds
        log.warning(
            "%d patients: the threshold will be chosen on %d of them. data.fold=all chooses "
            "it on all of them, but trains %d networks, each for %s. To use it, stop this training "
            "and add data.fold=all.",
            n_patients,
            len(validated),
            len(folds_of(inspection, data)),
            budget,
        )


def explain_promise(
    inspection: DatasetInspection, aim: OperatingPointAim, fold: int | str | None
) -> None:
    """Log before a training whether its patients are enough to promise the requested sensitivity.

    Nothing is logged if the requested operating point is not a sensitivity. A sensitivity is
    promised for new patients, which needs a minimum number of patients with lesions. The line is a
    warning if there are too few patients.

    Args:
        inspection: The cases and their roles.
        aim: The requested operating point.
        fold: The setting `data.fold`.
    """
    if aim.kind != "sensitivity":
        return
    cases = list(inspection.of_role("validation"))
    where, about = "Validation", ""
    if fold == ALL_FOLDS:
        # each case is validated once, but by the network of its fold and not by the ensemble
        cases += inspection.of_role("train")
        where, about = "All folds", "approximately "
    patients = {files.patient for files in cases if inspection.counts.get(files.case)}
    why_not = explain_too_few(aim.value, len(patients))
    if not why_not:
        n_patients = count(len(patients), "patient")
        log.info("%s: %s with lesions can %spromise %g.", where, n_patients, about, aim.value)
        return
    advice = ""
    if fold is None:
        advice = " data.fold=all chooses on all patients, and its promise is approximate."
    log.warning("%s: %s.%s", where, why_not, advice)


def closing_lines(trained: TrainedModel, scores: Mapping[str, Scores]) -> list[str]:
    """Return the last lines of a training: reasons of the selection, and warnings on scores.

    Args:
        trained: The model and its scores before the test.
        scores: All scores by role, including those of the test cases.
    """
    reasons = trained.predictor.selection.reasons
    lines = [f"{key.capitalize()}: {reasons[key]}" for key in SELECTED if key in reasons]
    chosen_on = [scores_of_role for role, scores_of_role in scores.items() if role != "test"]
    if any(one.split_is_group_safe is False for one in chosen_on):  # None: not known
        lines.append(
            "Warning: the validation scores are not independent, because training and validation "
            "share a patient. Test on other patients before you rely on them."
        )
    for role, scores_of_role in scores.items():
        # the threshold was chosen on the roles in `trained.scores`, so only the test can exceed
        if role not in trained.scores and (sentence := explain_excess(scores_of_role, "threshold")):
            lines.append(f"Warning, {role} cases: {sentence}")
    return lines + explain_nothing_found(scores)


def explain_nothing_found(scores: Mapping[str, Scores]) -> list[str]:
    """Return a line for each role none of whose lesions was detected, then a line of advice.

    Return an empty list if there is no such role.
    """
    lines = []
    for role, scores_of_role in scores.items():
        n_lesions = scores_of_role.count("n_lesions")
        if n_lesions and not scores_of_role.count("n_true_positive"):
            lesions = count(n_lesions, "lesion")
            duration_text = duration(scores_of_role.provenance.training_minutes)
            lines.append(
                f"It found none of {lesions} of the {role} cases after {duration_text} of training."
            )
    if lines:
        lines.append(
            "Train longer (trainer.max_minutes=60), look at the masks with prepare check=true, and "
            "read docs/troubleshooting.md."
        )
    return lines
