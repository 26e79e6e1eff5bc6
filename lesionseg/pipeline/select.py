"""Select operating points and the calibration of scores on development predictions."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from lesionseg.core import Aim, Calibration, OperatingPoint, Selection
from lesionseg.core.selection import CALIBRATION, OPERATING_POINT
from lesionseg.errors import ContentError, count, format_score
from lesionseg.evaluation import Tables, choose
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.evaluation.operating_point_choice import DEFAULT_AIM, FEW_PATIENTS

# a bundle with validation cases stores a score for each of these that the cases can reach
AIMS = (
    Aim("fp_per_case", 1),
    Aim("fp_per_case", 0.5),
    Aim("fp_per_case", 2),
    Aim("fp_per_case", 4),
    Aim("fp_per_case", 8),
    Aim("sensitivity", 0.8),
    Aim("sensitivity", 0.9),
    Aim("best_f1"),
)
_ROUNDING = 1e-9  # a rate that exceeds its limit by less is equal to it
OUT_OF_FOLD = "out-of-fold"  # chosen on cases that the network did not see
_N_FOLDS = 5


def select(
    tables: Tables,
    selection: Selection,
    aim: Aim,
    rate_confidence: float | None,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Selection, dict[str, Calibration | None]]:
    """Select operating points and calibration on evaluated development cases.

    Args:
        tables: the evaluated cases.
        selection: the selection so far, such as the calibration of voxels.
        aim: the operating point that accepts candidates. If it is a sensitivity out of reach,
            `DEFAULT_AIM` takes its place, and the reason says so.
        rate_confidence: see `choose`.
        chosen_on: the role of the cases, for the record.
        fold_of: the fold of each case; None: patients are divided into five folds.

    Returns:
        The selection with operating points, calibration and a reason for each. Then a calibration
        for each case, fitted on the other folds, with which the final calibration can be tested.
        This is None for a case if the other folds, or all cases, have too few candidates.

    Raises:
        ContentError: if no operating point can be chosen on the cases.
    """
    points, remark = _choose_points(tables, aim, rate_confidence, chosen_on)
    if fold_of is None:
        folds = (tables.group_of["cases"] % _N_FOLDS).tolist()
        fold_of = dict(zip(tables.cases["case"], folds, strict=True))
    calibration, why = _fit_calibration(tables, chosen_on)
    of_folds: dict[int, Calibration] = {}
    numbers = set() if calibration is None else set(fold_of.values())
    for number in sorted(numbers):
        with suppress(ContentError):  # the other folds have too few candidates
            others = {case for case, fold in fold_of.items() if fold != number}
            of_folds[number] = fit_calibration(tables.of_cases(others))
    best_f1 = next(point for point in points if point.name == "best_f1")
    doubt = _explain_doubt(points[0], len(tables.groups), rate_confidence)
    reason = f"{remark}{_describe_point(points[0], best_f1)} {doubt}".strip()
    complete = replace(
        selection,
        operating_points=points,
        calibration=calibration,
        reasons={**selection.reasons, OPERATING_POINT: reason, CALIBRATION: why},
    )
    return complete, {case: of_folds.get(fold) for case, fold in fold_of.items()}


def _choose_points(
    tables: Tables, aim: Aim, rate_confidence: float | None, chosen_on: str
) -> tuple[tuple[OperatingPoint, ...], str]:
    """Choose a point for `aim`, and for each of `AIMS` that the cases can reach.

    If a sensitivity that was asked for is out of reach, choose the point for `DEFAULT_AIM` instead.

    Returns:
        The points, that for `aim` first, and a remark if it was replaced.

    Raises:
        ContentError: if the cases do not allow another aim.
    """
    remark = ""
    try:
        first = choose(tables, aim, confidence=rate_confidence)
    except ContentError as error:
        if aim.kind != "sensitivity":
            raise
        # the run continues, because the network is already trained
        remark = f"{error} The default is used instead. "
        first = choose(tables, DEFAULT_AIM, confidence=rate_confidence)
    points = {first.name: first}
    for further in AIMS:
        with suppress(ContentError):  # this sensitivity is out of reach
            point = choose(tables, further, confidence=rate_confidence, quiet=True)
            points.setdefault(point.name, point)
    for name, point in points.items():
        # a point whose score does not depend on the cases states no role
        points[name] = replace(point, chosen_on=chosen_on if point.chosen_on else None)
    return tuple(points.values()), remark


def _fit_calibration(tables: Tables, chosen_on: str) -> tuple[Calibration | None, str]:
    """Fit a calibration on all cases, and describe it or the reason why there is none."""
    try:
        final = fit_calibration(tables, fitted_on=chosen_on)
    except ContentError as error:
        return None, f"skipped. {error}"
    p_half, p_high = final.probability([0.5, 0.9])
    return final, (
        f"a candidate with score 0.5 is a lesion with probability {p_half:.2f}, one with score "
        f"0.9 with {p_high:.2f} ({final.n_true} true and {final.n_false} false candidates)."
    )


def _explain_doubt(point: OperatingPoint, n_patients: int, rate_confidence: float | None) -> str:
    """Explain that the point was chosen on few patients, or on too few to reach its rate.

    Return "" if neither is the case, or if the point was not chosen on patients.
    """
    aim = point.aim
    is_aim_met = True
    if aim.kind == "fp_per_case" and rate_confidence:
        is_aim_met = point.confidence is not None  # otherwise no score has the confidence
    elif aim.kind == "fp_per_case":
        expected = point.expected_false_positives_per_case or 0.0
        is_aim_met = expected <= aim.value + _ROUNDING
    has_enough_patients = n_patients >= FEW_PATIENTS
    if point.chosen_on is None or (has_enough_patients and is_aim_met):
        return ""
    words = f"The threshold was chosen on only {count(n_patients, 'patient')}"
    if not is_aim_met:
        verb = "guarantee" if rate_confidence else "expect"
        words += f", too few to {verb} {aim.value:g} false positives per scan"
    words += "."
    if point.chosen_on != OUT_OF_FOLD:
        words += " Use data.fold=all to choose it on all cases."
    return words


def _describe_aim(aim: Aim) -> str:
    """Return the aim in words."""
    if aim.kind == "score":
        return "given by hand"
    if aim.kind == "sensitivity":
        return f"aim: sensitivity {aim.value:g}"
    if aim.kind == "best_f1":
        return "aim: the best F1 of lesions"
    noun = "false positive" if aim.value == 1 else "false positives"
    return f"aim: {aim.value:g} {noun} per scan"


def _describe_point(point: OperatingPoint, best_f1: OperatingPoint) -> str:
    """Describe the chosen operating point, and for comparison the one with the best F1."""
    aim = _describe_aim(point.aim)
    if point.is_default and point.aim.value == 1:
        aim += ", the default"
    elif point.is_default:  # a higher rate, because the cases have many lesions
        aim += ", one per ten lesions: the default"
    words = f"Threshold {format_score(point.score)} ({aim})."
    if point.lesion_recall is None or point.expected_false_positives_per_case is None:
        return words
    ends = point.false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    words += (
        f" On {point.chosen_on or 'these'} cases: recall {point.lesion_recall:.2f}, "
        f"{point.false_positives_per_case:.2f} false positives per scan, "
        f"F1 {point.lesion_f1 or 0:.2f}. Expect "
        f"{point.expected_false_positives_per_case:.2f} per scan on new patients{interval}."
    )
    if best_f1.score != point.score:
        words += (
            f" The best F1 is {best_f1.lesion_f1 or 0:.2f} at threshold "
            f"{format_score(best_f1.score)}: recall {best_f1.lesion_recall or 0:.2f}, "
            f"{best_f1.false_positives_per_case:.2f} false positives per scan "
            "(operating_point=best_f1)."
        )
    return words
