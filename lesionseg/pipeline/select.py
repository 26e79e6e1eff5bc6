"""Select operating points and the calibration of scores on development predictions."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lesionseg.core import Aim, Calibration, OperatingPoint, Selection
from lesionseg.core.selection import CALIBRATION, OPERATING_POINT
from lesionseg.errors import ContentError, count, format_score
from lesionseg.evaluation import CaseResult, choose
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.evaluation.operating_point_choice import DEFAULT_AIM

# every bundle stores a score for these
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
FEW_PATIENTS = 20  # with fewer, the rate of a score varies much between sets of patients
OUT_OF_FOLD = "out-of-fold"  # chosen on cases that the network did not see
_N_FOLDS = 5


def select(
    results: Sequence[CaseResult],
    selection: Selection,
    aim: Aim,
    rate_confidence: float | None,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Selection, dict[str, Calibration | None]]:
    """Select operating points and calibration on evaluated development cases.

    Args:
        results: the evaluated cases.
        selection: the selection so far, such as the calibration of voxels.
        aim: the operating point that accepts candidates. If it is out of reach, `DEFAULT_AIM`.
        rate_confidence: see `choose`.
        chosen_on: the role of the cases, for the record.
        fold_of: the fold of each case; None: patients are divided into five folds.

    Returns:
        The selection with operating points and calibration, and a reason for each; and a
        calibration for each case. The latter is fitted without the fold of the case, and is used
        to test the final calibration. It is None if it could not be fitted.
    """
    points: dict[str, OperatingPoint] = {}
    words = ""
    try:
        first = choose(results, aim, confidence=rate_confidence)
    except ContentError as error:
        if aim.kind != "sensitivity":
            raise
        # the run continues, because the network is already trained
        words = f"{error} The default is used instead. "
        first = choose(results, DEFAULT_AIM, confidence=rate_confidence)
    points[first.name] = first
    for further in AIMS:
        try:
            point = choose(results, further, confidence=rate_confidence, quiet=True)
        except ContentError:
            continue  # this sensitivity is out of reach
        points.setdefault(point.name, point)
    for name, point in points.items():
        points[name] = replace(point, chosen_on=chosen_on if point.chosen_on else None)
    first = points[first.name]
    fold_by_case = fold_of
    if fold_by_case is None:
        groups = sorted({r.group for r in results})
        fold_by_case = {r.case: groups.index(r.group) % _N_FOLDS for r in results}
    fit: Calibration | None = None
    fits: dict[int, Calibration] = {}
    try:
        fit = fit_calibration(results, fitted_on=chosen_on)
        for number in sorted(set(fold_by_case.values())):
            with suppress(ContentError):  # the other folds have too few candidates
                rest = [r for r in results if fold_by_case[r.case] != number]
                fits[number] = fit_calibration(rest)
        p_half, p_high = fit.probability([0.5, 0.9])
        why = (
            f"a candidate with score 0.5 is a lesion with probability {p_half:.2f}, one with score "
            f"0.9 with {p_high:.2f} ({fit.n_true} true and {fit.n_false} false candidates)."
        )
    except ContentError as error:
        why = f"skipped. {error}"
    words += f"{_sentence(first, points['best_f1'])} {_doubt(first, results, rate_confidence)}"
    complete = replace(
        selection,
        operating_points=tuple(points.values()),
        calibration=fit,
        reasons={**selection.reasons, OPERATING_POINT: words.strip(), CALIBRATION: why},
    )
    return complete, {case: fits.get(fold) for case, fold in fold_by_case.items()}


def _doubt(
    point: OperatingPoint, results: Sequence[CaseResult], rate_confidence: float | None
) -> str:
    """Explain why the rate may differ for new patients. Return "" if there is no reason."""
    n_patients = len({r.group for r in results})
    aim = point.aim
    is_kept = True
    if aim.kind == "fp_per_case":
        expected = point.expected_false_positives_per_case or 0.0
        is_kept = expected <= aim.value + 1e-9
        if rate_confidence:
            is_kept = point.confidence is not None
    if point.chosen_on is None or (n_patients >= FEW_PATIENTS and is_kept):
        return ""
    words = f"The threshold was chosen on only {count(n_patients, 'patient')}"
    if not is_kept:
        verb = "guarantee" if rate_confidence else "expect"
        words += f", too few to {verb} {aim.value:g} false positives per scan"
    remedy = " Use data.fold=all to choose it on all cases."
    return f"{words}.{'' if point.chosen_on == 'out-of-fold' else remedy}"


def describe_aim(aim: Aim) -> str:
    """Return the aim in words."""
    if aim.kind == "score":
        return "given by hand"
    if aim.kind == "sensitivity":
        return f"aim: sensitivity {aim.value:g}"
    if aim.kind == "best_f1":
        return "aim: the best F1 of lesions"
    noun = "false positive" if aim.value == 1 else "false positives"
    return f"aim: {aim.value:g} {noun} per scan"


def _sentence(point: OperatingPoint, best_f1: OperatingPoint) -> str:
    """Describe the chosen operating point, and for comparison the one with the best F1."""
    aim = describe_aim(point.aim)
    if point.is_default:
        aim += ", the default" if point.aim.value == 1 else ", one per ten lesions: the default"
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
