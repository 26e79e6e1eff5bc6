"""Choose the operating point of `evaluate`, unless it is given as a score.

Scores are too optimistic if the point is chosen on the evaluated cases themselves. `chosen_on=`
names a folder of development predictions instead, such as the cross-validation of an nnU-Net model
folder.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.config import EvaluateConfig
from lesionseg.core import NO_SELECTION, Aim, CaseFiles, OperatingPoint, Selection
from lesionseg.core.dataset import assign_groups
from lesionseg.errors import ConfigError, ContentError, DatasetError, format_score, join_names
from lesionseg.evaluation import MatchedCase, Preset, Tables, choose, find_preset
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.evaluation.operating_point_choice import DEFAULT_AIM
from lesionseg.evaluation.scores import PointInUse
from lesionseg.io.layouts.table import ReadingRules
from lesionseg.io.references import References
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import find_predictions
from lesionseg.pipeline.match_files import MatchOptions, match_cases
from lesionseg.pipeline.select import OUT_OF_FOLD

log = logging.getLogger(__name__)

_SHOWN = 5  # the most patients that a message lists
_VALIDATION = "validation"
_FOLD = re.compile(r"fold_(\d+)")


def stated_aim(cfg: EvaluateConfig) -> Aim | None:
    """Return the aim of the operating point, and check the settings that belong to it.

    A bare number is a score. With `chosen_on` and no aim, the aim is the default. Without both,
    return None: each prediction then keeps its own operating point.

    Raises:
        ConfigError: if the aim is unknown, or if settings contradict each other.
    """
    given = cfg.operating_point
    aim = None
    if given is not None:
        text = str(given)
        with suppress(ValueError):  # not a bare number, such as 0.3 or 1e-05
            float(text)
            text = f"score:{text}"
        aim = Aim.parse(text)
    elif cfg.chosen_on is not None:
        aim = DEFAULT_AIM
    are_cases_given = cfg.chosen_on is not None or cfg.compare_chosen_on is not None
    if are_cases_given and aim is not None and aim.kind == "score":
        raise ConfigError(
            f"chosen_on= or compare_chosen_on= and operating_point={given}: a given score cannot "
            "be chosen on cases. Write operating_point=fp_per_case:1, or leave the folders out."
        )
    if cfg.chosen_on_reference is not None and not are_cases_given:
        raise ConfigError(
            "chosen_on_reference= needs chosen_on=, a folder of predictions. Add it, or leave "
            "chosen_on_reference= out."
        )
    is_rate = aim is not None and aim.kind in ("auto", "fp_per_case")
    if cfg.rate_confidence is not None and not is_rate:
        raise ConfigError(
            "rate_confidence= applies to a rate. Add operating_point=fp_per_case:1 or another "
            "rate, or leave rate_confidence= out."
        )
    return aim


def choose_point(tables: Tables, aim: Aim, confidence: float | None) -> OperatingPoint:
    """Choose the operating point on the cases of these tables. `confidence`: see `choose`.

    Raises:
        ConfigError: if the cases do not allow it.
    """
    try:
        return choose(tables, aim, confidence=confidence)
    except ContentError as error:
        raise ConfigError(f"operating_point={aim}: {error}") from error


def choose_here(
    selection: Selection,
    matches: Sequence[MatchedCase],
    aim: Aim | None,
    confidence: float | None,
) -> Selection:
    """Return a selection with the given score, or choose it on the evaluated cases themselves.

    Return `selection` if it has a point, or if there is no aim or no case. `confidence`: see
    `choose`.

    Raises:
        ConfigError: if the cases do not allow the aim.
    """
    if aim is not None and aim.kind == "score":
        return Selection((OperatingPoint(str(aim), aim.value),))
    if not matches or aim is None or selection.point is not None:
        return selection
    return Selection((choose_point(_tables_without_surfaces(matches), aim, confidence),))


def explain_unlike(points: Iterable[PointInUse]) -> str:
    """Explain why the thresholds of two programs were not chosen alike; "" if they were.

    Thresholds that were chosen on cases need the same request, and both or neither may be chosen on
    the evaluated cases. A threshold that was not chosen on cases is the program's own decision,
    like those of masks without scores.
    """
    requests = {point.request and (point.request, point.optimistic) for point in points}
    if len(requests) == 1:
        return ""
    return (
        "the two thresholds were not chosen alike. Choose both on the evaluated cases "
        "(operating_point=), or both on others (chosen_on= and compare_chosen_on=)"
    )


def decide_on_development(
    cfg: EvaluateConfig,
    folder: str | None,
    aim: Aim | None,
    evaluated: Sequence[CaseFiles],
    role: str,
) -> Selection:
    """Choose operating point and calibration on the predictions in a folder, if it is given.

    With too few candidates, there is no calibration. If an evaluated case, or another case of its
    patient, is a development case, a warning says so, and the point counts as chosen on `role`, so
    that the scores state that they are too optimistic.

    Args:
        cfg: the settings.
        folder: the folder of predictions of development cases. Without it, nothing is selected.
        aim: the operating point to choose.
        evaluated: the evaluated cases with their groups.
        role: the role of the evaluated cases.

    Raises:
        ConfigError: if the cases do not allow the aim.
        DatasetError: if the folder has no usable predictions, see `development_predictions`, or
            if no prediction has a reference or can be matched.
    """
    if folder is None or aim is None:
        return NO_SELECTION
    predictions = development_predictions(Path(folder))
    log.info("Choosing the operating point on the development cases in %s.", folder)
    tables = development_tables(
        predictions,
        Path(cfg.chosen_on_reference or cfg.reference),
        find_preset(cfg.preset),
        group=cfg.group,
        resample=cfg.resample,
        rules=reference_rules(cfg),
    )
    chosen_on = OUT_OF_FOLD if predictions.fold_of else _VALIDATION
    cases = set(tables.cases["case"])
    patients = set(tables.groups)
    shared = [c.group for c in evaluated if c.case in cases or c.group in patients]
    if shared:
        log.warning(
            "The operating point is chosen on patients who are evaluated (%s), so the scores are "
            "too optimistic. Give predictions of other patients as chosen_on=.",
            join_names(dict.fromkeys(shared), _SHOWN),
        )
        chosen_on = role
    point = replace(choose_point(tables, aim, cfg.rate_confidence), chosen_on=chosen_on)
    calibration = None
    with suppress(ContentError):  # too few candidates
        calibration = fit_calibration(tables, fitted_on=chosen_on)
    log.info(
        "Threshold %s (%s): on these %d cases %.2f of the lesions and %.2f false positives per "
        "case; %.2f expected on new cases.",
        format_score(point.score),
        point.name,
        len(cases),
        point.lesion_recall or 0.0,
        point.false_positives_per_case or 0.0,
        point.expected_false_positives_per_case or 0.0,
    )
    return Selection((point,), calibration)


@dataclass(frozen=True)
class DevelopmentPredictions:
    """Predictions of development cases by case id, and the fold that validated each.

    `fold_of` is empty if the cases were not cross-validated.
    """

    files: Mapping[str, PredictionFiles]
    fold_of: Mapping[str, int]


def development_predictions(folder: Path) -> DevelopmentPredictions:
    """Find the development predictions in a folder.

    A model folder of nnU-Net, or a cross-validation of ours, contains them in `fold_0/validation`
    and so on. The folder of one fold can be given as well. The fold `all` is ignored, because it
    validates on its own training cases. A run of ours without folds contains them in `validation`.
    Any other folder contains the predictions directly.

    Raises:
        DatasetError: if there is only the fold `all`, if two folds validated the same case, or if
            a folder contains no prediction.
    """
    folds: dict[int, Path] = {}
    for fold in [folder, *sorted(folder.glob("fold_*"))]:  # or the folder of a single fold
        numbered = _FOLD.fullmatch(fold.name)  # not a copy such as fold_0_old
        if numbered is not None and (fold / _VALIDATION).is_dir():
            folds[int(numbered[1])] = fold / _VALIDATION
    if not folds:
        if folder.name == "fold_all" or (folder / "fold_all").is_dir():
            raise DatasetError(
                f"{folder}: fold_all was trained on the cases that it validates on. Train folds 0 "
                "to 4, or give a folder of predictions of other cases."
            )
        of_run = folder / _VALIDATION
        return DevelopmentPredictions(find_predictions(of_run if of_run.is_dir() else folder), {})
    found: dict[str, PredictionFiles] = {}
    fold_of: dict[str, int] = {}
    for number, validation in folds.items():
        for case, files in find_predictions(validation).items():
            if case in found:
                raise DatasetError(
                    f"{validation}: the case {case!r} was validated in another fold, too. Remove "
                    "the predictions that do not belong to this cross-validation."
                )
            found[case] = files
            fold_of[case] = number
    return DevelopmentPredictions(found, fold_of)


def reference_rules(cfg: EvaluateConfig) -> ReadingRules:
    """Return the rules by which `evaluate` reads references."""
    return ReadingRules(
        grid_of_image=cfg.geometry == "image",
        min_readers=cfg.min_readers,
        merge_labels=cfg.merge_labels,
        annotations=cfg.annotations,
    )


def development_tables(
    predictions: DevelopmentPredictions,
    reference: Path,
    preset: Preset,
    *,
    group: str | None,
    resample: bool = False,
    rules: ReadingRules,
) -> Tables:
    """Match and score development cases. Distances between surfaces are not computed.

    A case whose files are damaged or do not fit together is left out with a warning. References
    without a prediction, and predictions without a reference, are left out.

    Args:
        predictions: the predictions of development cases.
        reference: the folder of their references.
        preset: the match rule.
        group: the setting by which cases form patients; None for the default.
        resample: resample a prediction on another grid than its reference.
        rules: the rules by which references are read.

    Raises:
        DatasetError: if no case remains, or no prediction has a reference.
    """
    references = References.find_all(reference, **rules)
    merge_labels = rules.get("merge_labels", False)
    dataset = references.with_labels_of(predictions.files, merge_labels=merge_labels)
    # faults of cases that are not predicted do not matter
    faults = [fault for fault in references.findings if fault.case in predictions.files]
    # without the roles of the dataset, all cases get the role in `options`
    cases = [replace(c, role=None) for c in references.cases if c.case in predictions.files]
    if not cases and not faults:
        raise DatasetError(
            f"{reference}: no mask has the name of a development prediction, such as "
            f"{next(iter(predictions.files))}. Give the masks or the dataset of these cases as "
            "chosen_on_reference= (evaluate) or reference= (export)."
        )
    options = MatchOptions(
        preset,
        dataset=dataset,
        role=_VALIDATION,
        resample=resample,
        by_image=rules.get("grid_of_image", False),
    )
    grouped = assign_groups(cases, group, setting="group")
    matched, unmatched = match_cases(grouped, predictions.files, options)
    faults += unmatched
    if not matched:
        raise DatasetError(f"{reference}: {faults[0].message}")
    for fault in faults:
        log.warning("Not used to choose the operating point, %s: %s", fault.case, fault.message)
    return _tables_without_surfaces(matched)


def _tables_without_surfaces(matches: Iterable[MatchedCase]) -> Tables:
    """Return the tables that the choice of an operating point needs."""
    return Tables.of(match.rows(surface=False) for match in matches)
