"""Select operating points and the calibration of scores on development cases."""

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
    """Select operating points and calibration on evaluated development cases.

    A point is chosen for `aim`, and for each of `AIMS` that the cases can reach.

    Args:
        tables: The evaluated cases.
        selection: The selection so far, such as the calibration of voxels.
        aim: The operating point that accepts candidates. If it is a sensitivity out of reach,
            `DEFAULT_AIM` takes its place, and the reason says so.
        rate_confidence: See `choose`.
        chosen_on: The role of the cases, for the record.
        fold_of: The fold of each case; None: patients are divided into five folds.

    Returns:
        The selection with operating points, calibration and a reason for each. Then a calibration
        for each case, fitted on the other folds, with which the final calibration can be tested.
        This is None for a case if the other folds, or all cases, have too few candidates.

    Raises:
        ContentError: If no operating point can be chosen on the cases.
    """
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
    for further in map(OperatingPointAim.parse, AIMS):
        with suppress(ContentError):  # this sensitivity is out of reach
            point = choose_for(further, quiet=True)
            points.setdefault(point.name, point)
    words = describe_point(first, points["best_f1"])
    reason = f"{remark}{words} {explain_uncertainty(first, rate_confidence)}".strip()
    calibration, why = _fit_calibration(tables, chosen_on)
    if fold_of is None:
        folds = (tables.group_of["cases"] % _N_FOLDS).tolist()
        fold_of = dict(zip(tables.cases["case"], folds, strict=True))
    of_folds: dict[int, Calibration] = {}
    for number in sorted(set() if calibration is None else set(fold_of.values())):
        with suppress(ContentError):  # the other folds have too few candidates
            others = {case for case, fold in fold_of.items() if fold != number}
            of_folds[number] = fit_calibration(tables.of_cases(others))
    complete = replace(
        selection,
        operating_points=tuple(points.values()),
        calibration=calibration,
        reasons={**selection.reasons, OPERATING_POINT: reason, CALIBRATION: why},
    )
    return complete, {case: of_folds.get(fold) for case, fold in fold_of.items()}


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
