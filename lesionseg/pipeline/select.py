"""What is selected on development predictions: operating points and calibration."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lesionseg.core import Calibration, OperatingPoint
from lesionseg.errors import ConfigError, ContentError, count, format_score
from lesionseg.evaluation import CaseResult, choose
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.plan.plan import Plan

# every bundle stores a score for these
POINTS = (
    *("fp_per_case:1", "fp_per_case:0.5", "fp_per_case:2", "fp_per_case:4"),
    *("sensitivity:0.8", "sensitivity:0.9"),
)
FEW_PATIENTS = 20  # below, a score gives quite other rates on other patients
VOXELS = "voxel calibration"
CHOSEN = ("operating point", "calibration", VOXELS)  # by their keys in the plan's reasons
_N_FOLDS = 5
_POINT = r"fp_per_case:\d*\.?\d+|(sensitivity|score):(0?\.\d+|[01](\.0+)?)"


def check_point(name: str) -> None:
    """Raise `ConfigError` for what names no operating point."""
    if not re.fullmatch(_POINT, name):
        words = "write fp_per_case:1, sensitivity:0.9 or score:0.5, or another number"
        raise ConfigError(f"operating_point={name}: {words}.")


def unselected(plan: Plan) -> Plan:
    """The plan as it was before anything was selected on predictions."""
    return plan.with_(
        operating_points=(),
        calibration=None,
        voxel_calibration=None,
        n_members=1,
        reasons={key: why for key, why in plan.reasons.items() if key not in CHOSEN},
    )


def select(
    results: Sequence[CaseResult],
    plan: Plan,
    operating_point: str,
    rate_confidence: float | None,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Plan, dict[str, Calibration | None]]:
    """Select operating points and calibration on evaluated development cases.

    Returns the plan with them, a sentence for each in its reasons, and, by case, the calibration in
    whose fit the case had no part, which tests the final one; None where that could not be fitted.
    `operating_point` accepts candidates, or `POINTS[0]` where it is out of reach.
    `rate_confidence`: see `choose`. `fold_of`: the fold of each case; None deals groups into five.
    """
    points, words = dict[str, OperatingPoint](), ""
    for name in (operating_point, *POINTS):
        kind, _, value = name.partition(":")
        wish = {kind.strip(): float(value), "confidence": rate_confidence}
        try:
            point = choose(results, **wish, quiet=bool(points))
        except ContentError as error:  # a run that has already trained goes on
            if not points and not words and kind == "sensitivity":
                words = f"{error} {POINTS[0]} is used instead. "
            elif kind != "sensitivity":
                raise
            continue
        role = chosen_on if point.chosen_on else None
        points.setdefault(point.name, replace(point, chosen_on=role))
    first = next(iter(points.values()))
    five = fold_of
    if five is None:
        groups = sorted({r.group for r in results})
        five = {r.case: groups.index(r.group) % _N_FOLDS for r in results}
    fit, fits = None, dict[int, Calibration]()
    try:
        fit = fit_calibration(results, fitted_on=chosen_on)
        for number in sorted(set(five.values())):
            with suppress(ContentError):  # too few candidates elsewhere
                rest = [r for r in results if five[r.case] != number]
                fits[number] = fit_calibration(rest)
        half, high = fit.probability([0.5, 0.9])
        why = (
            f"a candidate with score 0.5 is a lesion with probability {half:.2f}, one with score "
            f"0.9 with {high:.2f} ({fit.n_true} true and {fit.n_false} false candidates)."
        )
    except ContentError as error:
        why = f"skipped. {error}"
    words += f"{_sentence(first)} {_doubt(first, results, rate_confidence)}"
    reasons = {**plan.reasons, "operating point": words.strip(), "calibration": why}
    complete = plan.with_(operating_points=tuple(points.values()), calibration=fit, reasons=reasons)
    return complete, {case: fits.get(fold) for case, fold in five.items()}


def _doubt(point: OperatingPoint, results: Sequence[CaseResult], sure: float | None) -> str:
    """Why new patients may well have another rate; empty where nothing speaks for it."""
    kind, _, asked = point.name.partition(":")
    n_patients, held = len({r.group for r in results}), True
    if kind == "fp_per_case":
        expected = point.expected_false_positives_per_case or 0.0
        held = point.confidence is not None if sure else expected <= float(asked) + 1e-9
    if point.chosen_on is None or (n_patients >= FEW_PATIENTS and held):
        return ""
    words = f"The threshold was chosen on only {count(n_patients, 'patient')}"
    if not held:
        words += (
            f", too few to {'guarantee' if sure else 'expect'} {asked} false positives per scan"
        )
    remedy = " Use data.fold=all to choose it on all cases."
    return f"{words}.{'' if point.chosen_on == 'out-of-fold' else remedy}"


def _sentence(point: OperatingPoint) -> str:
    kind, _, asked = point.name.partition(":")
    n = "false positive" if float(asked) == 1 else "false positives"
    aims = {"fp_per_case": f"aim: {asked} {n} per scan", "score": "given by hand"}
    aim = aims.get(kind, f"aim: sensitivity {asked}")
    words = f"Threshold {format_score(point.score)} ({aim})."
    if point.lesion_recall is None or point.expected_false_positives_per_case is None:
        return words
    ends = point.false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (
        f"{words} On {point.chosen_on or 'these'} cases: recall {point.lesion_recall:.2f}, "
        f"{point.false_positives_per_case:.2f} false positives per scan. Expect "
        f"{point.expected_false_positives_per_case:.2f} per scan on new patients{interval}."
    )
