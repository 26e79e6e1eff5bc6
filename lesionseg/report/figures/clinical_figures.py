"""Charts of each patient and of the lesion load."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.evaluation.rows import CaseRow
from lesionseg.report import text
from lesionseg.report.figures.chart_drawing import ACCENT, FOUND, INK, TOP, log_axis, shorten, tidy
from lesionseg.report.text import clinical_words as words

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

LINES = ("bias", "lower_limit", "upper_limit")
NAME_POINTS = 72.0
NAMED = 40  # patients whose names still fit below the dots


@dataclass(frozen=True)
class Patient:
    """One patient's scans together."""

    name: str
    n_scans: int
    n_lesions: int
    n_detected: int
    n_false_positive: int


def sum_patients(cases: Iterable[CaseRow]) -> tuple[Patient, ...]:
    """Each patient, those with most lesions first."""
    rows: dict[str, list[CaseRow]] = {}
    for case in cases:
        rows.setdefault(case.group or case.case, []).append(case)
    patients = (
        Patient(
            name,
            len(own),
            sum(case.n_lesions for case in own),
            sum(case.n_detected for case in own),
            sum(case.n_false_positive for case in own),
        )
        for name, own in rows.items()
    )
    return tuple(sorted(patients, key=lambda one: (-one.n_lesions, one.name)))


def draw_patients(onto: "FigureBase", patients: Sequence[Patient]) -> None:
    """Sensitivity, lesions and false positives per scan of each patient, one below the other."""
    shares, counts, false = onto.subplots(3, 1, sharex=True, height_ratios=(3, 1.5, 1.5))
    at = np.arange(len(patients))
    ill = [x for x, one in enumerate(patients) if one.n_lesions]
    tidy(shares, text.AXIS_SENSITIVITY)
    own = [patients[x].n_detected / patients[x].n_lesions for x in ill]
    shares.plot(ill, own, "o", color=FOUND, clip_on=False)
    shares.set_ylim(0, TOP)
    tidy(counts, text.AXIS_LESIONS)
    counts.plot(at, [one.n_lesions for one in patients], "o", color=INK, clip_on=False)
    tidy(false, words.AXIS_FALSE)
    rates = [one.n_false_positive / one.n_scans for one in patients]
    false.plot(at, rates, "o", color=ACCENT, clip_on=False)
    for axes in (counts, false):
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=3)
    false.set_xticks(at if len(patients) <= NAMED else [])
    if len(patients) <= NAMED:
        names = [shorten(one.name, NAME_POINTS, 8) for one in patients]
        false.set_xticklabels(names, rotation=90, fontsize=8)
    false.set_xlabel(words.AXIS_PATIENTS)


def volumes(cases: Iterable[CaseRow]) -> list[tuple[float, float]]:
    """Reference and detected volume of the cases that have both."""
    return [
        (case.reference_ml, case.predicted_ml)
        for case in cases
        if case.reference_ml is not None and case.predicted_ml is not None
    ]


def draw_load(
    onto: "FigureBase", cases: Sequence[CaseRow], numbers: Mapping[str, float | None]
) -> None:
    """Predicted minus reference volume against their mean (Bland & Altman 1986)."""
    axes = onto.subplots()
    tidy(axes, words.AXIS_DIFFERENCE_ML)
    known = volumes(cases)
    mean = [(x + y) / 2 for x, y in known]
    axes.plot(mean, [y - x for x, y in known], "o", color=FOUND, alpha=0.75, clip_on=False)
    for name in LINES:
        value = numbers[name]
        if value is not None:
            style = "-" if name == "bias" else "--"
            axes.axhline(value, color=ACCENT, linestyle=style, linewidth=1.2)
            axes.annotate(
                f"{words.LINE_NAMES[name]} {text.signed(value)} ml",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8.5,
                color=INK,
            )
    if min(mean) > 0 and max(mean) > 10 * min(mean):
        log_axis(axes)
    axes.set_xlabel(words.AXIS_MEAN_ML)
