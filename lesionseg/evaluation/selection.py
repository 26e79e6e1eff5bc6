"""Operating points stored in a bundle: list of aims; calibration on development cases."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from lesionseg.core import Calibration, Selection
from lesionseg.core.selection import CALIBRATION, OPERATING_POINT
from lesionseg.errors import ContentError
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.evaluation.operating_points import (
    DEFAULT_AIM,
    OperatingPointAim,
    choose,
    describe_point,
    explain_uncertainty,
)
from lesionseg.evaluation.tables import Tables

# a bundle with validation cases stores a score for each of these that the cases can reach
AIMS = (
    *("fp_per_case:1", "fp_per_case:0.5", "fp_per_case:2", "fp_per_case:4", "fp_per_case:8"),
    *("sensitivity:0.8", "sensitivity:0.9", "best_f1"),
)
_N_FOLDS = 5


def select(
    tables: Tables,
    selection: Selection,
    aim: OperatingPointAim,
    rate_confidence: float | None,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Selection, dict[str, Calibration | None]]:
    """Choose the operating points and the calibration of a trained model on development cases.

    An operating point is chosen for `aim`, and for each of `AIMS` that the cases can reach. The
    operating points are stored in the bundle, so that a user can choose among them later.

    Args:
        tables: The evaluated development cases.
        selection: The earlier choices, such as the calibration of voxels. They are kept.
        aim: The aim of the operating point that accepts candidates by default. If it is a
            sensitivity that no score reaches, `DEFAULT_AIM` is used instead, and the reason of the
            operating point says so.
        rate_confidence: The argument `confidence` of `choose`.
        chosen_on: The role of the cases, which is recorded in operating points and calibration.
        fold_of: The fold of each case. None divides the patients into five folds.

    Returns:
        The selection with operating points, calibration and a reason for both. Then, by case, a
        calibration that was fitted on the other folds, with which the final calibration can be
        tested. It is None for a case if the other folds, or all cases, have too few candidates.

    Raises:
        ContentError: If no operating point can be chosen on the cases.
    """
    # the default operating point, and one for each of `AIMS`
    choose_for = partial(choose, tables, confidence=rate_confidence, chosen_on=chosen_on)
    remark = ""
    try:
        first = choose_for(aim)
    except ContentError as error:
        if aim.kind != "sensitivity":
            raise
        # the run continues, because the network is already trained
        remark = f"{error} The default is used instead. "
        first = choose_for(DEFAULT_AIM)
    points = {first.name: first}
    for further_aim in map(OperatingPointAim.parse, AIMS):
        with suppress(ContentError):  # no score reaches this sensitivity
            point = choose_for(further_aim, quiet=True)
            points.setdefault(point.name, point)
    # `best_f1` is one of `AIMS`, and every set of cases can reach it
    description = describe_point(first, points["best_f1"])
    reason = f"{remark}{description} {explain_uncertainty(first, rate_confidence)}".strip()
    # the calibration on all cases, and one for each fold on the other folds
    calibration, why = _fit_calibration(tables, chosen_on)
    if fold_of is None:
        # the patients are assigned to the folds in turn
        folds = (tables.group_of["cases"] % _N_FOLDS).tolist()
        fold_of = dict(zip(tables.cases["case"], folds, strict=True))
    calibration_of_fold: dict[int, Calibration] = {}
    for held_out in sorted(set() if calibration is None else set(fold_of.values())):
        with suppress(ContentError):  # the other folds have too few candidates
            others = {case for case, fold in fold_of.items() if fold != held_out}
            calibration_of_fold[held_out] = fit_calibration(tables.of_cases(others))
    complete = replace(
        selection,
        operating_points=tuple(points.values()),
        calibration=calibration,
        reasons={**selection.reasons, OPERATING_POINT: reason, CALIBRATION: why},
    )
    return complete, {case: calibration_of_fold.get(fold) for case, fold in fold_of.items()}


def _fit_calibration(tables: Tables, chosen_on: str) -> tuple[Calibration | None, str]:
    """Fit the calibration of candidates on all cases, and describe it in a sentence.

    If the cases have too few candidates, return None and a sentence with the reason.
    """
    try:
        final = fit_calibration(tables, fitted_on=chosen_on)
    except ContentError as error:
        return None, f"skipped. {error}"
    p_half, p_high = final.probability([0.5, 0.9])
    return final, (
        f"a candidate with score 0.5 is a lesion with probability {p_half:.2f}, one with score "
        f"0.9 with {p_high:.2f} ({final.n_true} true and {final.n_false} false candidates)."
    )
