"""Words of the sections by patient, by scan and of the lesion load."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from lesionseg.evaluation.acceptance import UNITS, AcceptanceCriterion, AcceptancePlan
from lesionseg.evaluation.statistics.estimates import UNSTATED, Estimate
from lesionseg.report.text.amounts import bounds, count, percent, signed

AXIS_FALSE = "false positives\nper scan"
AXIS_PATIENTS = "patients, those with most lesions first"
AXIS_MEAN_ML = "mean of reference and detected volume (ml)"
AXIS_DIFFERENCE_ML = "detected minus reference (ml)"
LINE_NAMES: Mapping[str, str] = {
    "bias": "bias",
    "lower_limit": "lower limit",
    "upper_limit": "upper limit",
}
PATIENTS_CAPTION = (
    "Each dot is one patient: sensitivity for this patient's lesions (none without lesions), "
    "number of lesions, and false positives per scan."
)
SCANS_TEXT = (
    "A scan is positive when it has any detection, wherever it lies. PPV and NPV depend on how "
    "many scans have lesions: here they are given for shares that may be met elsewhere, by "
    "sensitivity and specificity of these scans. In brackets: 95 % interval."
)
SCANS_ONE_KIND = (
    "A scan is positive when it has any detection, wherever it lies. PPV and NPV are not given: "
    "they need scans with lesions and scans without."
)
CALLED, NOT_CALLED = "Any detection", "No detection"
HEADINGS_FOUR = ("", "Scans with lesions", "Scans without")
HEADINGS_VALUES = ("If so many scans have lesions", "PPV of a scan", "NPV of a scan")
LOAD_TEXT = (
    "Whether the lesion load of a scan, as it is followed in time, agrees with the reference. "
    "Bias is the mean of detected minus reference; 95 of 100 scans are expected between the limits "
    "of agreement. ICC: 1 is perfect agreement."
)
LOAD_CAPTION = (
    "Each dot is one scan (Bland and Altman). Line: bias; dashed: limits of agreement. Scans that "
    "lie higher have more volume detected than the reference has."
)
LOADS: Mapping[str, str] = {"volume_ml": "Volume (ml)", "n_lesions": "Number of lesions"}
HEADINGS_LOAD = ("Load", "Scans", "Bias", "Lower limit", "Upper limit", "ICC")
HEADINGS_VERDICTS = ("Measure", "Limit", "Here", "Result")
HEADINGS_SAMPLES = ("Measure", "Expected", "Needed to show it", "Here")


def limit(criterion: AcceptanceCriterion) -> str:
    """What the whole interval must be."""
    return f"{'at most' if criterion.upper else 'at least'} {criterion.limit:g}"


def verdict(passed: bool) -> str:
    """Pass or fail."""
    return "pass" if passed else "fail"


def acceptance_sentence(passed: bool) -> str:
    """The result of all criteria together."""
    return (
        f"Result: {verdict(passed)}. A criterion passes when its whole 95 % interval meets the "
        "limit; all must pass."
    )


def stated_sentence(plan: AcceptancePlan) -> str:
    """When the criteria were stated, by whom, in which file; what the samples rest on."""
    by = f" by {plan.stated_by}" if plan.stated_by else ""
    return (
        f"Criteria stated on {plan.stated_on:%Y-%m-%d}{by}, as their file says; its SHA-256 is "
        f"{plan.sha256}. Samples are planned for a chance of {percent(plan.power)} to pass if "
        "what is expected is true, with a design effect of "
        f"{plan.design_effect:g} of lesions and false positives of one patient."
    )


def sample(criterion: AcceptanceCriterion, n: int, scans: int | None) -> str:
    """How many lesions or scans are needed, and how many scans like these hold them.

    >>> sample(AcceptanceCriterion("lesion_recall", 0.8, 0.9), 216, 54)
    '216 lesions, in about 54 scans like these'
    """
    unit = UNITS[criterion.number][0]
    first, *rest = unit.split()
    said = count(n, unit, " ".join([f"{first}s", *rest]))
    return said if unit == "scan" or scans is None else f"{said}, in about {scans} scans like these"


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
    all_found = sum(one.n_detected == one.n_lesions for one in ill)
    none_found = sum(one.n_detected == 0 for one in ill)
    clean = sum(one.n_false_positive == 0 for one in patients)
    most = ill[0].n_lesions / sum(one.n_lesions for one in ill)
    said = (
        f"All lesions were found in {all_found} of {count(len(ill), 'patient')} with lesions, none "
        f"in {none_found}. No false positive in {clean} of {count(len(patients), 'patient')}."
    )
    return f"{said} The patient with most lesions has {percent(most)} of all." if ill[1:] else said


def alt_patients(patients: Sequence[Counts]) -> str:
    """The dots in words."""
    ill = [one.n_detected / one.n_lesions for one in patients if one.n_lesions]
    return (
        f"Sensitivity of {count(len(ill), 'patient')} from {percent(min(ill))} to "
        f"{percent(max(ill))}."
    )


def share(estimate: Estimate) -> str:
    """A predictive value with its interval, or why there is none."""
    if estimate.value is None:
        return f"not defined: {estimate.reason or UNSTATED}"
    if estimate.ci95 is None:
        return percent(estimate.value)  # page 1 says why
    return f"{percent(estimate.value)} ({bounds(estimate)})"


def alt_load(numbers: Mapping[str, float | None]) -> str:
    """The lines in words."""
    said = (f"{LINE_NAMES[k]} {signed(v)} ml" for k, v in numbers.items() if v is not None)
    return f"Difference of volume by scan: {', '.join(said)}."
