"""`chosen_on=` of `evaluate` and `export`: development cases, their folds, choice of the point.

Scores are too optimistic if the point is chosen on the evaluated cases themselves. `chosen_on=`
names a folder of development predictions instead, such as the cross-validation of an nnU-Net model
folder.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import NO_SELECTION, CaseFiles, OperatingPoint, Selection
from lesionseg.core.dataset import assign_groups
from lesionseg.core.finding import require_no_errors
from lesionseg.errors import ConfigError, ContentError, DatasetError, join_names
from lesionseg.evaluation import OperatingPointAim, Tables, choose
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.evaluation.operating_points import DEFAULT_AIM, OUT_OF_FOLD, describe_point
from lesionseg.io.layouts.table import ReadingRules
from lesionseg.io.references import References
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import find_predictions
from lesionseg.pipeline.score_cases import MatchOptions, ScoredCases, score_cases

log = logging.getLogger(__name__)

_MAX_NAMED = 5  # patients that a message lists
_VALIDATION = "validation"
_FOLD = re.compile(r"fold_(\d+)")


def parse_aim(
    operating_point: str | float | None,
    *,
    rate_confidence: float | None,
    chosen_on: str | None,
    compare_chosen_on: str | None,
    chosen_on_reference: str | None,
) -> OperatingPointAim | None:
    """Parse the operating point that `evaluate` is asked for, and check the related settings.

    A bare number is a score threshold. With `chosen_on` but no operating point, the default aim is
    returned. With neither, None is returned: the evaluation then uses the operating point at which
    the predictions were made.

    Args:
        operating_point: The setting, such as `fp_per_case:1`, a score, or None.
        rate_confidence: The setting; allowed only if the aim is a rate of false positives.
        chosen_on: The folder of development predictions of the first model, or None.
        compare_chosen_on: The folder of development predictions of the second model, or None.
        chosen_on_reference: The folder of their references, or None.

    Raises:
        ConfigError: If the aim is unknown, or if settings contradict each other.
    """
    aim = None
    if operating_point is not None:
        aim = OperatingPointAim.parse(operating_point, number_is_score=True)
    elif chosen_on is not None:
        aim = DEFAULT_AIM
    are_cases_given = chosen_on is not None or compare_chosen_on is not None
    if are_cases_given and aim is not None and aim.given is not None:
        raise ConfigError(
            f"chosen_on= or compare_chosen_on= and operating_point={operating_point}: a given "
            "score cannot be chosen on cases. Write operating_point=fp_per_case:1, or leave the "
            "folders out."
        )
    if chosen_on_reference is not None and not are_cases_given:
        raise ConfigError(
            "chosen_on_reference= needs chosen_on=, a folder of predictions. Add it, or leave "
            "chosen_on_reference= out."
        )
    # `auto`, the default aim, is a rate as well
    if rate_confidence is not None and (aim is None or aim.kind not in ("auto", "fp_per_case")):
        raise ConfigError(
            "rate_confidence= applies to a rate. Add operating_point=fp_per_case:1 or another "
            "rate, or leave rate_confidence= out."
        )
    return aim


@dataclass(frozen=True)
class PointChooser:
    """The operating point that `evaluate` is asked for, and how its development cases are read.

    Attributes:
        aim: The aim; None: each prediction keeps its own operating point.
        confidence: The probability with which new cases keep to the rate of `aim`, or None.
        reference: The folder of references of development cases.
        options: The match rule, and how predictions are read.
        rules: The rules by which references are read.
        group: The setting by which cases form patients; None for the default.
    """

    aim: OperatingPointAim | None
    confidence: float | None
    reference: Path
    options: MatchOptions
    rules: ReadingRules
    group: str | None

    def choose_on_development(
        self, folder: str | None, evaluated: Sequence[CaseFiles]
    ) -> Selection:
        """Choose operating point and calibration on the development predictions in a folder.

        There is no calibration if the cases have too few candidates. If a patient of an evaluated
        case is also a development patient, a warning says so. The point is then recorded as chosen
        on the role of the evaluated cases, so that the scores say that they are too optimistic.

        Args:
            folder: The folder of predictions of development cases. None returns an empty selection.
            evaluated: The evaluated cases with their groups.

        Raises:
            ConfigError: If the aim cannot be reached on the cases.
            DatasetError: If the folder has no usable predictions, see `development_predictions`, or
                if no prediction has a reference or can be matched.
        """
        if folder is None or self.aim is None:
            return NO_SELECTION
        predictions = development_predictions(Path(folder))
        log.info("Choosing the operating point on the development cases in %s.", folder)
        tables = development_tables(
            predictions, self.reference, self.options, self.rules, self.group
        )
        chosen_on = OUT_OF_FOLD if predictions.fold_of else _VALIDATION
        cases = set(tables.cases["case"])
        patients = set(tables.groups)
        shared_patients = [c.group for c in evaluated if c.case in cases or c.group in patients]
        if shared_patients:
            log.warning(
                "The operating point is chosen on patients who are evaluated (%s), so the scores "
                "are too optimistic. Give predictions of other patients as chosen_on=.",
                join_names(dict.fromkeys(shared_patients), _MAX_NAMED),
            )
            chosen_on = self.options.role
        point = self._choose(tables, self.aim, chosen_on)
        calibration = None
        with suppress(ContentError):  # too few candidates
            calibration = fit_calibration(tables, fitted_on=chosen_on)
        log.info(describe_point(point))
        return Selection((point,), calibration)

    def choose_here(self, selection: Selection, scored: ScoredCases) -> Selection:
        """Return a selection for the evaluated cases, without development cases.

        - If the aim is a score, the selection has this score.
        - If `selection` already has a point, or there is no aim or no case, it is returned
          unchanged.
        - Otherwise the point is chosen on the evaluated cases themselves, which is optimistic.

        Args:
            selection: The selection so far, from `choose_on_development`.
            scored: The evaluated cases, matched with their predictions.

        Raises:
            ConfigError: If the aim cannot be reached on the cases.
        """
        if self.aim is None:
            return selection
        if self.aim.given is not None:
            return Selection((self.aim.given,))
        if not scored.matches or selection.point is not None:
            return selection
        # distances between surfaces have no effect on the choice
        return Selection((self._choose(scored.tables(surface=False), self.aim),))

    def _choose(
        self, tables: Tables, aim: OperatingPointAim, chosen_on: str | None = None
    ) -> OperatingPoint:
        """Choose the operating point. Raise `ConfigError` if the cases cannot reach the aim.

        `chosen_on` is the role of the cases, for the record; None is the role in the tables.
        """
        try:
            return choose(tables, aim, confidence=self.confidence, chosen_on=chosen_on)
        except ContentError as error:
            raise ConfigError(f"operating_point={aim}: {error}") from error


@dataclass(frozen=True)
class DevelopmentPredictions:
    """Predictions of development cases by case id, and the fold that validated each.

    `fold_of` is empty if the cases were not cross-validated.
    """

    files: Mapping[str, PredictionFiles]
    fold_of: Mapping[str, int]


def development_predictions(folder: Path) -> DevelopmentPredictions:
    """Find the prediction files of development cases in a folder, and the fold of each case.

    The folder may have one of these forms:

    - An nnU-Net model folder, or a cross-validation of lesionseg: predictions in
      `fold_<number>/validation`. nnU-Net's fold `all` is ignored, because it validates on its
      training cases.
    - The folder of a single fold: predictions in `validation`.
    - A run of lesionseg without folds: predictions in `validation`, and no fold is recorded.
    - Any other folder: predictions directly in the folder, and no fold is recorded.

    Raises:
        DatasetError: If there is only the fold `all`, if two folds validated the same case, or if a
            folder contains no prediction.
    """
    folds = {
        int(match[1]): fold / _VALIDATION
        for fold in [folder, *sorted(folder.glob("fold_*"))]  # or the folder of a single fold
        # the full name must match, so that a copy such as fold_0_old is ignored
        if (match := _FOLD.fullmatch(fold.name)) and (fold / _VALIDATION).is_dir()
    }
    if not folds:
        if folder.name == "fold_all" or (folder / "fold_all").is_dir():
            raise DatasetError(
                f"{folder}: fold_all was trained on the cases that it validates on. Train folds 0 "
                "to 4, or give a folder of predictions of other cases."
            )
        validation_folder = folder / _VALIDATION
        return DevelopmentPredictions(
            find_predictions(validation_folder if validation_folder.is_dir() else folder), {}
        )
    predictions: dict[str, PredictionFiles] = {}
    fold_of: dict[str, int] = {}
    for number, validation in folds.items():
        for case, files in find_predictions(validation).items():
            if case in predictions:
                raise DatasetError(
                    f"{validation}: the case {case!r} was validated in another fold, too. Remove "
                    "the predictions that do not belong to this cross-validation."
                )
            predictions[case] = files
            fold_of[case] = number
    return DevelopmentPredictions(predictions, fold_of)


def development_tables(
    predictions: DevelopmentPredictions,
    reference: Path,
    options: MatchOptions,
    rules: ReadingRules,
    group: str | None,
) -> Tables:
    """Match development predictions with their references, and return the tables of the cases.

    Operating points are chosen on these tables, so distances between surfaces are not computed. A
    case whose files are damaged or do not fit together is left out with a warning. References
    without a prediction, and predictions without a reference, are left out silently.

    Args:
        predictions: The predictions of development cases.
        reference: The folder of their references.
        options: The match rule, and how predictions are read. The dataset is that of `reference`.
        rules: The rules by which references are read.
        group: The setting by which cases form patients; None for the default.

    Raises:
        DatasetError: If no case remains, or no prediction has a reference.
    """
    references = References.find_all(reference, **rules)
    merge_labels = rules.get("merge_labels", False)
    dataset = references.with_labels_of(predictions.files, merge_labels=merge_labels)
    # faults of cases that are not predicted do not matter
    findings = [finding for finding in references.findings if finding.case in predictions.files]
    # all cases get the same role, not those of the dataset
    cases = [
        replace(files, role="validation")
        for files in references.cases
        if files.case in predictions.files
    ]
    if not cases:
        require_no_errors(findings, reference)
        raise DatasetError(
            f"{reference}: no mask has the name of a development prediction, such as "
            f"{next(iter(predictions.files))}. Give the masks or the dataset of these cases as "
            "chosen_on_reference= (evaluate) or reference= (export)."
        )
    grouped = assign_groups(cases, group, setting="group")
    # the choice of a point does not depend on zones
    options = replace(options, dataset=dataset, zones=None)
    return score_cases(grouped, predictions.files, options, findings=findings).tables(surface=False)
