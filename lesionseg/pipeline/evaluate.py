"""`evaluate`: pairs of prediction and reference, second model, missing cases, exit status.

Predicted files are compared with reference files, case by case.

The inputs are two folders of masks, boxes or candidates from any program. The outputs are
`scores.json` and the tables of cases, lesions, candidates and labels.
"""

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.config import EvaluateConfig
from lesionseg.core import (
    UNKNOWN_ROLE,
    CaseFiles,
    Dataset,
    Finding,
    Selection,
)
from lesionseg.core.dataset import assign_groups, find_likely_visits
from lesionseg.core.finding import LISTED, errors_among
from lesionseg.errors import SOME_FAILED, ConfigError, DatasetError, LesionsegError, join_names
from lesionseg.evaluation import Preset, Scores, SummarySettings, find_preset, summarise
from lesionseg.evaluation.adjudication import adjudicate, read_answers
from lesionseg.evaluation.compare import compare as compare_models
from lesionseg.evaluation.operating_points import DEFAULT_AIM, explain_unlike
from lesionseg.evaluation.scores import (
    SCORES_FILE,
    SECOND_MODEL,
    ComparedProgram,
    remove_scores,
    scores_table,
)
from lesionseg.evaluation.subgroups import read_columns
from lesionseg.io.layouts import ReadingRules
from lesionseg.io.references import References
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import list_predictions
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.pipeline.development import PointChooser, parse_aim
from lesionseg.pipeline.kept_predictions import KeptPredictions
from lesionseg.pipeline.log import Advance, align_columns, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.output_lock import hold_lock
from lesionseg.pipeline.provenance import scores_provenance
from lesionseg.pipeline.score_cases import (
    Evaluation,
    MatchOptions,
    ScoredCases,
    nothing_scored,
    score_cases,
)
from lesionseg.reporting.identity import read_run
from lesionseg.reporting.words import comparison_notes, comparison_table

_log = logging.getLogger(__name__)
UNSTATED = ("train", "validation")  # possible roles of a case without a stated role


@dataclass(frozen=True)
class EvaluateOutcome(Outcome):
    """The scores of an evaluation.

    Attributes:
        scores: The scores, as in `output/scores.json`.
        output: The folder of scores and tables.
        given: The settings of the next command, `report`, that name the folders of this evaluation.
        kept: The folder of masks and candidates that were found in nnU-Net's probabilities; None if
            there are none.
        failed: The errors of cases that could not be scored.
        not_compared: The errors of cases of the second model that could not be scored.
        of_predicted: The scores of the cases with a prediction; None if all cases have one.
    """

    scores: Scores
    output: Path
    given: Mapping[str, str]
    kept: Path | None = None
    failed: tuple[Finding, ...] = ()
    not_compared: tuple[Finding, ...] = ()
    of_predicted: Scores | None = None

    @property
    def exit_status(self) -> int:
        """The exit status: 3 if some cases could not be scored, otherwise 0."""
        return SOME_FAILED if self.failed or self.not_compared else 0

    def record(self) -> dict[str, Any]:
        """Return plain data for `--json`: output folder, scores.json, and cases without scores.

        The key `failed` lists the errors of both models' cases.
        """
        return {
            "output": self.output,
            "scores": self.output / SCORES_FILE,
            "failed": [asdict(finding) for finding in [*self.failed, *self.not_compared]],
        }

    def summary(self) -> list[str]:
        """Return lines for the terminal: a table of the main scores, files, failed cases and notes.

        A note says if the requested sensitivity is not promised, and one if the threshold was
        chosen on the evaluated cases, which makes the scores too optimistic.
        """
        columns = {f"role {self.scores.evaluated_on}": self.scores}
        if self.of_predicted is not None:
            columns["predicted only"] = self.of_predicted
        lines = [
            *align_columns(scores_table(columns)),
            *align_columns(comparison_table(self.scores)),
            *(f"Note:    {note}" for note in comparison_notes(self.scores)),
            f"Wrote:   {self.output / SCORES_FILE}",
        ]
        for findings, consequence, folder in (
            (self.failed, "; not in the scores", self.output),
            (self.not_compared, " of the second model; not compared", self.output / SECOND_MODEL),
        ):
            if findings:
                names = join_names(dict.fromkeys(finding.case for finding in findings))
                lines.append(f"Failed:  {names}{consequence}, see {folder / 'cases.csv'}")
        if self.kept is not None:
            lines.append(f"Wrote:   {self.kept}, masks and candidates of the probabilities")
        why_not_promised = self.scores.operating_point.why_not_promised
        if why_not_promised:
            lines.append(f"Note:    the sensitivity is not promised: {why_not_promised}")
        if self.scores.is_point_chosen_here:
            lines.append(
                "Note:    the threshold was chosen on these cases and looks better than it is"
            )
        return lines

    @property
    def next(self) -> str:
        """The command to run next: `report` on these scores."""
        return command_line("report", {"scores": self.output, **self.given, "output": "REPORT"})


@hold_lock("output", "evaluate")
def evaluate(cfg: EvaluateConfig, *, progress: Advance | None = None) -> EvaluateOutcome:
    """Compare a folder of predictions with references. Write scores.json and four tables.

    The cases are scored by these rules:

    - A case without a prediction is scored, and all its lesions count as missed.
    - A prediction without a reference is named in a warning.
    - A case whose files are damaged or do not fit together is not scored. It is named in a warning,
      in cases.csv and in `failed_cases` of scores.json. So is a case without a reference if
      nnU-Net's probabilities of the case cannot be read.
    - If a dataset defines roles, only the cases of the role `cfg.evaluated_on` are evaluated. If
      `cfg.evaluated_on` is None, the cases of all roles with a prediction are evaluated. The role
      of the scores is then the role that these cases have in common, or `unknown`. If no case has
      the role, the tables are empty and a warning says so.

    If `cfg.operating_point` is an aim and `cfg.chosen_on` is None, the operating point is chosen on
    the evaluated cases. A second model gets its own point for the same aim on the same cases. If
    only one of the two points is chosen on other cases, differences that depend on a threshold are
    undefined.

    The tables of a second model (`cfg.compare`) are written to `output/compare`. Without a second
    model, or without cases to evaluate, that folder's tables of an earlier run are removed. Masks
    and candidates that are found in nnU-Net's probabilities are written to `output/predictions`,
    for evaluated cases and for cases without a reference.

    Args:
        cfg: See conf/evaluate.yaml.
        progress: Called with case, number done and total, instead of a bar.

    Returns:
        The scores, the output folder, and the cases that could not be scored.

    Raises:
        ConfigError: If settings are wrong or contradict each other.
        DatasetError: If no case can be scored, or a table, the zones or the development cases
            cannot be used. Nothing is written then.
        OutputError: If the scores of a training or the results of `predict` would be replaced.
    """
    # check the settings
    preset = find_preset(cfg.preset)
    if cfg.compare is None and (cfg.margin, cfg.compare_chosen_on) != (None, None):
        raise ConfigError(
            "margin= and compare_chosen_on= belong to a comparison of two models. Add the second "
            "one as compare=, or leave them out."
        )
    aim = parse_aim(
        cfg.operating_point,
        rate_confidence=cfg.rate_confidence,
        chosen_on=cfg.chosen_on,
        compare_chosen_on=cfg.compare_chosen_on,
        chosen_on_reference=cfg.chosen_on_reference,
    )
    rules = ReadingRules(
        grid_of_image=cfg.geometry == "image",
        min_readers=cfg.min_readers,
        merge_labels=cfg.merge_labels,
        annotations=cfg.annotations,
    )
    # find the files of both models
    inputs = _find_inputs(
        Path(cfg.reference),
        Path(cfg.prediction),
        rules,
        evaluated_on=cfg.evaluated_on,
        group=cfg.group,
        may_score_nothing=cfg.chosen_on is not None,
    )
    second = None if cfg.compare is None else _find_second_model(Path(cfg.compare), inputs)
    zones = None
    if cfg.zones is not None:
        zones = ZoneFolder.find(Path(cfg.zones))
        zones.check([files.case for files in inputs.cases])
    options = MatchOptions(
        preset,
        dataset=inputs.dataset,
        role=inputs.role,
        zones=zones,
        resample=cfg.resample,
        by_image=cfg.geometry == "image",
    )
    # these tables are read before the cases, so that their errors come first
    answers = None
    if cfg.adjudication is not None:
        answers = read_answers(read_csv(Path(cfg.adjudication)), cfg.adjudication)
    columns = read_columns(inputs.cases, Path(cfg.columns) if cfg.columns else None)
    # choose the operating point on development cases, if the settings name any
    chooser = PointChooser(
        aim,
        cfg.rate_confidence,
        reference=Path(cfg.chosen_on_reference or cfg.reference),
        options=options,
        rules=rules,
        group=cfg.group,
    )
    selection = chooser.choose_on_development(cfg.chosen_on, inputs.cases)
    output = Path(cfg.output)
    # for a folder of masks; `scores_provenance` replaces it by the name of a dataset
    without_dataset = {"dataset": f"masks in {Path(cfg.reference).name}"}
    settings = SummarySettings(
        evaluated_on=inputs.role,
        labels=options.lesion_names,
        replicates=cfg.replicates,
        seed=cfg.seed,
        provenance=without_dataset | scores_provenance(cfg.to_plain(), inputs.dataset),
        columns=columns,
        subgroups=cfg.subgroups,
    )
    # match both models with the references, score, compare and write
    with KeptPredictions(output, inputs.predictions) as kept:
        scored = inputs.score(replace(options, keep=kept.keep), progress)
        evaluated = scored  # with a second model, only the cases that both models are scored on
        scored_second = None
        if second is not None and inputs.cases:
            scored_second = second.score(replace(options, zones=None), progress)
            evaluated = scored.shared_with(scored_second)
            scored_second = scored_second.shared_with(scored)
            if not evaluated.matches:
                raise nothing_scored([*scored.findings, *scored_second.findings])
        selection = chooser.choose_here(selection, evaluated)
        unreadable = kept.keep_others({files.case for files in inputs.labelled}, options.labels)
        scored = replace(scored, findings=[*scored.findings, *unreadable])
        kept.check_replaceable()  # before anything is written
        first = inputs.evaluate(scored, settings, selection)
        scores = first.scores
        if answers is not None:  # before the second model's files, because answers may be wrong
            scores = replace(scores, rows=(*scores.rows, *adjudicate(first.tables, answers)))
        if second is not None and scored_second is not None:
            second_evaluation = _score_second_model(
                cfg, chooser, second, scored_second, settings, first
            )
            scores = replace(
                scores,
                comparison=second_evaluation.scores.comparison,
                programs=second_evaluation.scores.programs,
            )
            second_evaluation.write(output / SECOND_MODEL)
        else:
            remove_scores(output / SECOND_MODEL)  # of an earlier run with a second model
        replace(first, scores=scores).write(output)
        written = kept.finish(selection)
    next_settings = {  # the folders that the advice on `report` names
        "images": "SCANS",
        "reference": cfg.reference,
        "prediction": str(written) if written is not None and kept.has_all else cfg.prediction,
    }
    return EvaluateOutcome(
        scores,
        output,
        next_settings,
        written,
        failed=tuple(scored.findings),
        not_compared=tuple(scored_second.findings) if scored_second is not None else (),
        of_predicted=_score_predicted_cases(first, preset),
    )


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files of one model to evaluate, and the cases on which it is evaluated.

    Attributes:
        dataset: The dataset of the references; None for a folder of masks with unknown labels.
        labelled: All cases with a reference.
        cases: The cases to evaluate.
        folder: The folder of predictions.
        predictions: The prediction files by case id.
        role: The role of the cases to evaluate.
        findings: The errors of cases that are left out.
    """

    dataset: Dataset | None
    labelled: Sequence[CaseFiles]
    cases: Sequence[CaseFiles]
    folder: Path
    predictions: Mapping[str, PredictionFiles]
    role: str
    findings: Sequence[Finding]

    def score(self, options: MatchOptions, progress: Advance | None) -> ScoredCases:
        """Match the cases with the predictions, see `score_cases`.

        Args:
            options: The match rule, and how predictions are read.
            progress: Called with case, number done and total; None shows a bar.
        """
        return score_cases(
            self.cases,
            self.predictions,
            options,
            findings=self.findings,
            progress=progress,
            what=f"Scoring {self.folder}",
        )

    def evaluate(
        self, scored: ScoredCases, settings: SummarySettings, selection: Selection
    ) -> Evaluation:
        """Score the matched cases at the operating point of a selection.

        Details of the model that made the predictions are added to the provenance, see `model_of`.

        Args:
            scored: The matched cases.
            settings: The settings of the scores, whose operating point is replaced.
            selection: The operating point and the calibration; the point may be missing.
        """
        provenance = {**settings.provenance, **model_of(self.folder)}
        settings = replace(settings, operating_point=selection.point, provenance=provenance)
        return scored.evaluate(settings, selection.calibration)


def _find_inputs(
    reference: Path,
    folder: Path,
    rules: ReadingRules,
    *,
    evaluated_on: str | None,
    group: str | None,
    may_score_nothing: bool,
) -> Inputs:
    """Find references and predictions, and choose the cases to evaluate.

    Warn of cases without a prediction, of predictions without a reference, of cases that may be
    visits of one patient, and of predictions that are the file of their reference. There are no
    cases to evaluate if no case has the role, or, with `may_score_nothing`, if no case has a
    prediction.

    Args:
        reference: The folder of references.
        folder: The folder of predictions.
        rules: The rules by which references are read.
        evaluated_on: The role of the cases to evaluate. None evaluates the cases of each role with
            a prediction (`cases_of_role`).
        group: The setting by which cases form patients; None for the default.
        may_score_nothing: True warns instead of raising if no prediction has the name of a
            reference. It is used if the operating point is chosen on other cases, because
            `evaluate` can then still make masks from nnU-Net's probabilities.

    Raises:
        DatasetError: If no case can be scored, or no prediction has the name of a reference.
    """
    references = References.find(reference, **rules)
    labelled = references.cases
    if not labelled:  # each mask of a folder has an error
        raise nothing_scored(references.findings)
    listed, prediction_errors = _list_predictions(folder, labelled)
    dataset = references.with_labels_of(listed, merge_labels=rules.get("merge_labels", False))
    role_cases = cases_of_role(labelled, listed, evaluated_on)
    # cases whose files could not be listed are left out of references and predictions
    known_cases = {*(files.case for files in role_cases), *listed}
    with_reference = known_cases | _cases_to_score(dataset, role_cases, references.findings)
    findings = _join_findings([*references.findings, *prediction_errors], with_reference)
    unusable = {finding.case for finding in findings}
    chosen = [files for files in role_cases if files.case not in unusable]
    predictions = {case: files for case, files in listed.items() if case not in unusable}
    if findings and not chosen:
        raise nothing_scored(findings)
    if chosen and may_score_nothing and not any(files.case in predictions for files in chosen):
        _log.warning(
            "No case to evaluate has a prediction, so nothing is scored. Masks of nnU-Net's "
            "probabilities are written for cases without a reference. To score, give the "
            "references of the predicted cases."
        )
        chosen = []
    elif not chosen:
        _log.warning(
            "No case of the reference has the role %s (it has %s). The scores are empty.",
            evaluated_on,
            # a case without a role counts as a case for training
            " and ".join(sorted({files.role or UNSTATED[0] for files in labelled})),
        )
    roles = {files.role or UNKNOWN_ROLE for files in chosen}
    cases = assign_groups(chosen, group, setting="group")
    if group is None:
        for finding in find_likely_visits(cases, setting="group"):
            _log.warning(finding.message)
    _check_names(cases, labelled, predictions, folder)
    _warn_of_same_files(cases, predictions)
    return Inputs(
        dataset=dataset,
        labelled=labelled,
        cases=cases,
        folder=folder,
        predictions=predictions,
        role=evaluated_on or (roles.pop() if len(roles) == 1 else UNKNOWN_ROLE),
        findings=findings,
    )


def _list_predictions(
    folder: Path, labelled: Sequence[CaseFiles]
) -> tuple[Mapping[str, PredictionFiles], list[Finding]]:
    """List the prediction files of a folder under the case ids of their references.

    Warn of files that are not read.

    Returns:
        The predictions by case id, and the errors of cases whose files cannot be listed.
    """
    predictions, findings = list_predictions(folder, labelled)
    for finding in findings:
        if finding.severity == "warning":
            _log.warning(finding.message)
    return predictions, errors_among(findings)


def _warn_of_same_files(
    cases: Iterable[CaseFiles], predictions: Mapping[str, PredictionFiles]
) -> None:
    """Warn of predictions that are the file of their reference, which would score perfectly."""
    same: list[str] = []
    for files in cases:
        prediction = predictions.get(files.case)
        paths = [] if prediction is None else [prediction.mask, prediction.instances]
        if files.reference and files.reference.resolve() in [p.resolve() for p in paths if p]:
            same.append(files.case)
    if same:
        _log.warning(
            "The prediction of these cases is the file of their reference, so it is compared with "
            "itself: %s. Name the folder of the predictions as prediction=.",
            join_names(same),
        )


def _find_second_model(folder: Path, inputs: Inputs) -> Inputs:
    """Return the inputs of a second model: its predictions for the cases of the first model.

    Cases whose files of the second model are unusable are left out and become findings. Warn of
    missing predictions, and of predictions without a reference.

    Args:
        folder: The folder of the second model's predictions.
        inputs: The inputs of the first model.

    Raises:
        DatasetError: If there are cases, but no prediction has the name of a case.
    """
    predictions, problems = _list_predictions(folder, inputs.labelled)
    findings = _join_findings(problems, [c.case for c in inputs.cases])
    unusable = {finding.case for finding in findings}
    cases = [c for c in inputs.cases if c.case not in unusable]
    _check_names(cases, inputs.labelled, predictions, folder)
    return replace(inputs, folder=folder, predictions=predictions, cases=cases, findings=findings)


def _score_second_model(
    cfg: EvaluateConfig,
    chooser: PointChooser,
    second: Inputs,
    scored: ScoredCases,
    settings: SummarySettings,
    first: Evaluation,
) -> Evaluation:
    """Score the second model, and compare it with the first model on the second model's cases.

    The operating point of the second model answers the same request as that of the first model.
    Numbers that depend on a threshold are not compared if the request does not apply to the second
    model, or if the two points were chosen in different ways.

    Args:
        cfg: The settings of `evaluate`.
        chooser: The requested operating point.
        second: The inputs of the second model.
        scored: The matched cases of the second model.
        settings: The settings of the scores.
        first: The evaluation of the first model.

    Returns:
        The evaluation of the second model. Its scores contain the comparison.
    """
    if chooser.aim is None and cfg.compare_chosen_on is not None:
        # the request with which the first model's predictions were made
        chooser = replace(chooser, aim=first.scores.operating_point.request or DEFAULT_AIM)
    selection = chooser.choose_on_development(cfg.compare_chosen_on, second.cases)
    reason = ""
    try:
        if cfg.chosen_on is None:  # the first model's point was chosen on the evaluated cases, too
            selection = chooser.choose_here(selection, scored)
    except ConfigError as error:
        reason = str(error)
    second_evaluation = second.evaluate(scored, settings, selection)
    points = [program.scores.operating_point for program in (first, second_evaluation)]
    comparison = compare_models(
        first.tables.of_cases(second_evaluation.tables.cases["case"]),
        second_evaluation.tables,
        fp_per_case=scored.preset.fp_per_case,
        margin=cfg.margin,
        replicates=settings.replicates,
        seed=settings.seed,
        why_not_at_thresholds=reason or explain_unlike(points),
    )
    programs = tuple(map(ComparedProgram, _name_folders(cfg.prediction, str(cfg.compare)), points))
    return replace(
        second_evaluation,
        scores=replace(second_evaluation.scores, comparison=comparison, programs=programs),
    )


def _score_predicted_cases(evaluation: Evaluation, preset: Preset) -> Scores | None:
    """Return the scores of only the cases with a prediction, for a column of the printed table.

    Return None if all cases have a prediction, because the scores would be the same. The scores
    have no confidence intervals, which need bootstrap replicates.

    Args:
        evaluation: The evaluation of all cases.
        preset: The rule by which candidates and lesions match.
    """
    if not evaluation.scores.missing_predictions:
        return None
    predicted = evaluation.tables.of_cases(
        evaluation.tables.cases["case"][evaluation.tables.is_predicted]
    )
    return summarise(predicted, preset, replace(evaluation.settings, replicates=0))


def _name_folders(*folders: str) -> list[str]:
    """Return a short name for each folder, used as the names of the compared models.

    The short name is the folder's name. If two folders have the same name, it is the path below the
    deepest parent that all folders have in common.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    shared = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(shared).as_posix() for path in paths]


def _cases_to_score(
    dataset: Dataset | None, usable: Sequence[CaseFiles], findings: Iterable[Finding]
) -> set[str]:
    """Return the ids of all cases with the roles of `usable`, including cases with unusable files.

    The ids decide which findings count as failed cases of this evaluation. If no usable case has a
    role, the cases of `findings` are added, because a folder without a dataset lists unusable cases
    only as findings. If `usable` is empty, the result is empty, too.

    Args:
        dataset: The dataset; None for a folder of masks.
        usable: The cases to evaluate whose references can be used.
        findings: The errors of the references.
    """
    roles = {files.role for files in usable}
    cases = {files.case for files in dataset.cases if files.role in roles} if dataset else set()
    if roles == {None}:  # no case has a role
        cases |= {finding.case for finding in findings}
    return cases


def _join_findings(findings: Iterable[Finding], cases: Collection[str]) -> list[Finding]:
    """Return one error for each of these cases that has findings, with their messages joined."""
    messages_of: dict[str, list[str]] = {}
    for finding in findings:
        if finding.case in cases:
            messages_of.setdefault(finding.case, []).append(finding.message)
    # `LISTED` is the kind of errors that are found before a case is read
    return [
        Finding(LISTED, " ".join(messages), case, "error") for case, messages in messages_of.items()
    ]


def model_of(predictions: Path) -> dict[str, Any]:
    """Return details of the model that made the predictions, for the provenance; empty if unknown.

    The details come from the first of these that exists:

    - the column `bundle` in the tables of `predict`: digests of the bundles,
    - the files that nnU-Net writes into its output folder: the name of its plans,
    - the scores of a run, if the folder is `validation` or `predictions` of a run directory.
    """
    digests: set[str] = set()
    for table in predictions.glob("predictions*.csv"):
        digests.update(row.get("bundle", "") for row in read_csv(table))
    digests.discard("")  # rows without a model, such as those of skipped files
    if digests:
        return {"bundle": " and ".join(sorted(digests))}
    if details_of_nnunet := _read_nnunet_model(predictions):
        return details_of_nnunet
    if predictions.name not in ("validation", "predictions"):
        return {}
    keys = {"model", "bundle", "training_patients", "training_scans"}
    details = read_run(predictions).model_dump(include=keys, exclude_unset=True)
    return {key: value for key, value in details.items() if value is not None}


def _read_nnunet_model(folder: Path) -> dict[str, Any]:
    """Return the name of nnU-Net's plans and its number of training cases, for the provenance.

    nnU-Net copies `plans.json` and `dataset.json` into the folder of its predictions, and writes
    `predict_from_raw_data_args.json`, the arguments of the prediction. Without readable plans, the
    latter file shows at least that the model is an nnU-Net. The result has the keys `model` and
    `training_scans`, as far as they are known.
    """
    details: dict[str, Any] = {}
    if (folder / "predict_from_raw_data_args.json").is_file():
        details["model"] = "nnU-Net"
    with suppress(LesionsegError, KeyError, TypeError):
        plans = read_json(folder / "plans.json")
        if plans["configurations"]:  # lesionseg writes plans.json without configurations
            details["model"] = f"nnU-Net {plans['plans_name']} for {plans['dataset_name']}"
            n_training = read_json(folder / "dataset.json")["numTraining"]
            if isinstance(n_training, int):
                details["training_scans"] = n_training
    return details


def cases_of_role(
    cases: Sequence[CaseFiles], predicted: Collection[str], evaluated_on: str | None
) -> list[CaseFiles]:
    """Return the cases whose role is evaluated, in their order; empty if no case has the role.

    The following rules apply:

    - If no case has a role, all cases are returned.
    - A role: its cases. A case without a role counts as a case for training and for validation.
    - None: the cases of each role in which at least one case is predicted. If no case is predicted,
      all cases.
    - `external`: its cases. If no case has this role, the same as None, because `external` then
      describes only the origin of the scans.

    The number of cases that are left out is logged, unless no case remains.

    Args:
        cases: The cases with references.
        predicted: The ids of the cases with a prediction.
        evaluated_on: The role, or None.
    """
    roles_of_cases = {c.role for c in cases}
    if roles_of_cases == {None}:
        return list(cases)
    is_only_origin = evaluated_on == "external" and "external" not in roles_of_cases
    roles: set[str | None]
    if evaluated_on is None or is_only_origin:
        roles = {c.role for c in cases if c.case in predicted}
        if not roles:  # nothing is predicted, so all lesions count as missed
            roles = set(roles_of_cases)
        hint = "without any prediction; evaluated_on= evaluates them"
    else:
        roles = {evaluated_on}
        if evaluated_on in UNSTATED:
            roles.add(None)
        hint = "of other roles"
    chosen = [c for c in cases if c.role in roles]
    if 0 < len(chosen) < len(cases):
        _log.info("Left out: %d cases %s.", len(cases) - len(chosen), hint)
    return chosen


def _check_names(
    cases: Sequence[CaseFiles],
    labelled: Sequence[CaseFiles],
    predictions: Collection[str],
    folder: Path,
) -> None:
    """Warn of evaluated cases without a prediction, and of predictions without a reference.

    Args:
        cases: The cases to evaluate.
        labelled: All cases with a reference. A prediction of such a case gives no warning, even if
            the case is not evaluated.
        predictions: The case ids of the predictions.
        folder: The folder of predictions, for the message.

    Raises:
        DatasetError: If there are cases, but no prediction has the name of a case.
    """
    without_prediction = sorted({c.case for c in cases} - {*predictions})
    extra = sorted({*predictions} - {c.case for c in labelled})
    if cases and len(without_prediction) == len(cases):
        raise DatasetError(
            f"{folder}: no prediction has the name of a reference, such as {without_prediction[0]} "
            f"(there are {', '.join(sorted(predictions)[:3]) or 'none'}). Name them "
            "<case>_mask.* or <case>.*."
        )
    if without_prediction:
        _log.warning(
            "These cases have no prediction, so all their lesions count as missed: %s",
            join_names(without_prediction),
        )
    if extra:
        _log.warning("Predictions without a reference are left out: %s", join_names(extra))
