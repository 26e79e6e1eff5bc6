"""Sentences of the sections by patient, by scan, of the lesion load, and of an acceptance test."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from lesionseg.evaluation.local_acceptance import UNITS, AcceptanceCriterion, AcceptancePlan
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.report.text.amounts import bounds, percent, signed, undefined
from lesionseg.report.text.catalog import counted, entry, say


def limit(criterion: AcceptanceCriterion) -> str:
    """What the whole interval must be."""
    return say("AT_MOST" if criterion.upper else "AT_LEAST", limit=criterion.limit)


def stated_sentence(plan: AcceptancePlan) -> str:
    """When the criteria were stated, by whom, in which file; what the samples rest on."""
    return say(
        "CRITERIA",
        date=f"{plan.stated_on:%Y-%m-%d}",
        by=say("CRITERIA_BY", who=plan.stated_by) if plan.stated_by else "",
        sha256=plan.sha256,
        power=percent(plan.power),
        effect=plan.design_effect,
    )


def sample(criterion: AcceptanceCriterion, n: int, scans: int | None) -> str:
    """How many lesions or scans are needed, and how many scans like these hold them.

    >>> sample(AcceptanceCriterion("lesion_recall", 0.8, 0.9), 216, 54)
    '216 lesions, in about 54 scans like these'
    """
    unit = UNITS[criterion.number][0]
    needed = counted(n, unit)
    return needed if unit == "scan" or scans is None else say("SAMPLE", n=needed, scans=scans)


class Counts(Protocol):
    """A patient's counts."""

    @property
    def n_lesions(self) -> int:
        """Reference lesions."""

    @property
    def n_detected(self) -> int:
        """Those found."""

    @property
    def n_false_positive(self) -> int:
        """False positives of all scans."""


def patients_sentence(patients: Sequence[Counts]) -> str:
    """How unlike the patients are."""
    ill = [one for one in patients if one.n_lesions]
    unlike = say(
        "UNLIKE",
        all=sum(one.n_detected == one.n_lesions for one in ill),
        ill=counted(len(ill), "patient"),
        none=sum(one.n_detected == 0 for one in ill),
        clean=sum(one.n_false_positive == 0 for one in patients),
        patients=counted(len(patients), "patient"),
    )
    most = ill[0].n_lesions / sum(one.n_lesions for one in ill)
    return f"{unlike} {say('HEAVIEST', share=percent(most))}" if ill[1:] else unlike


def alt_patients(patients: Sequence[Counts]) -> str:
    """The dots in words."""
    ill = [one.n_detected / one.n_lesions for one in patients if one.n_lesions]
    ends = {"low": percent(min(ill)), "high": percent(max(ill))}
    return say("ALT_PATIENTS", patients=counted(len(ill), "patient"), **ends)


def predictive_value(estimate: Estimate) -> str:
    """A predictive value with its interval, or why there is none."""
    if estimate.value is None:
        return undefined(estimate.reason)
    if estimate.ci95 is None:
        return percent(estimate.value)  # page 1 says why
    return f"{percent(estimate.value)} ({bounds(estimate)})"


def alt_load(numbers: Mapping[str, float | None]) -> str:
    """The lines in words."""
    lines = [
        f"{entry('LINE_NAMES')[k]} {signed(v)} ml" for k, v in numbers.items() if v is not None
    ]
    return say("ALT_LOAD", lines=", ".join(lines) or say("DOT_EACH"))
