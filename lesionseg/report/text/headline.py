"""The sentences of the first screen."""

from collections.abc import Mapping

from lesionseg.evaluation.rows import without_failed
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.text.amounts import (
    MIN_FOR_PERCENT,
    MIN_GROUPS,
    NOT_STATED,
    bounds,
    count,
    percent,
    rate,
    share_found,
    size_range,
)
from lesionseg.report.text.frame import DEVELOPMENT_TEXT, UNTOUCHED, UNTOUCHED_ROLES


def headline(tables: Tables, answers: Mapping[str, str]) -> str:
    """The first sentence: sensitivity, false positives, which scans, by whose reference."""
    return (
        f"{_found(tables.scores)}, {_false_positives(tables.scores)}; {_whence(tables, answers)}."
    )


def _found(scores: Scores) -> str:
    unit = scores.size_unit
    sides = [side for side in scores.recall_by_half if side.n]
    if not scores.n_lesions or not sides:
        return "These scans have no reference lesion to find"
    if len(sides) == 1:
        found, n = scores.n_detected, scores.n_lesions
        share = _share(found, n, scores.estimate("lesion_recall"))
        size = size_range(sides[0], unit)
        return f"Found {found} of {count(n, 'reference lesion')}{share}, all {size}"
    small, large = sides
    return (
        f"Found {large.detected} of {large.n} reference lesions of {large.from_mm:g} {unit} or "
        f"more{_share(large.detected, large.n, large.recall)} and {small.detected} of {small.n} "
        f"smaller ones{_share(small.detected, small.n, small.recall)}"
    )


def _share(found: int, of: int, estimate: Estimate) -> str:
    """A share in brackets; none at all for few lesions without an interval."""
    if estimate.ci95 is None:
        return f" ({percent(found / of)})" if of >= MIN_FOR_PERCENT else ""
    return f" ({percent(found / of)}, 95 % interval {bounds(estimate)})"


def _false_positives(scores: Scores) -> str:
    per_case = scores.estimate("false_positives_per_case").value
    free = scores.estimate("false_positives_per_lesion_free_case").value
    if per_case is None:
        return "with no scan to count false positives on"
    on_free = "no scan is lesion-free" if free is None else f"{rate(free)} per lesion-free scan"
    shown = rate(per_case)
    return f"with {shown} {_kind(scores, shown)} per scan ({on_free})"


def _kind(scores: Scores, shown: str) -> str:
    """`false positives`; where the reference leaves lesions out, `unconfirmed detections`."""
    kind = "unconfirmed detection" if scores.incomplete_reference else "false positive"
    return kind if shown == "1" else f"{kind}s"


def _whence(tables: Tables, answers: Mapping[str, str]) -> str:
    scores = tables.scores
    scans = count(scores.n_cases, "scan")
    if tables.patients_stated:
        scans += f" of {count(scores.n_groups, 'patient')}"
    else:
        scans += f"; patients {NOT_STATED}"
    sites, readers = (answers.get(key, "").rstrip(".") for key in ("sites", "reference_readers"))
    if not sites and not readers:
        return f"{scans}; where they are from and who read the reference is {NOT_STATED}"
    whence = f"from {sites}" if sites else f"from where is {NOT_STATED}"
    return f"{scans}, {whence}, reference by {readers or 'whom is ' + NOT_STATED}"


def size_sentence(scores: Scores) -> str:
    """Where a size is not the lesion's own; empty when it is."""
    if "detector" in scores.size_said:
        which = "Some sizes are" if "partly" in scores.size_said else "Sizes are"
        return (
            f"{which} measured at the detector: a radiograph shows what lies away from it larger "
            "than it is, by an amount the files do not tell."
        )
    if scores.size_unit == "px":
        return "Sizes are in pixels: the files do not say how large one is."
    return ""


def overall_sentence(scores: Scores) -> str:
    """The share of all lesions with its interval, and the number missed."""
    if not scores.n_lesions:
        return ""
    found = scores.n_detected
    said = share_found(found, scores.n_lesions, scores.estimate("lesion_recall"))
    return f"Together {found} of {scores.n_lesions} ({said}); {scores.n_missed} missed."


def false_positive_sentence(scores: Scores) -> str:
    """False positives in all scans and in lesion-free ones."""
    per_case = scores.estimate("false_positives_per_case")
    free = scores.estimate("false_positives_per_lesion_free_case")
    n = str(scores.n_false_positive)
    shown = f"not defined ({per_case.reason})" if per_case.value is None else rate(per_case.value)
    touching = f" ({scores.n_touching} touching a lesion)" if scores.n_touching else ""
    scans = f"{_kind(scores, n)}{touching} on {count(scores.n_cases, 'scan')}"
    total = f"{n} {scans}: {shown} per scan"
    if not scores.n_lesion_free_cases:
        return f"{total}; no scan is lesion-free."
    if free.value is None:
        return f"{total}; on lesion-free scans not defined: {free.reason}."
    where = count(scores.n_lesion_free_cases, "lesion-free scan")
    return f"{total}; on the {where} {rate(free.value)} per scan."


def scans_sentence(tables: Tables) -> str:
    """How many scans of how many patients, and in which role."""
    scores = tables.scores
    patients = f"of {count(scores.n_groups, 'patient')}"
    if not tables.patients_stated:
        patients = f"patients {NOT_STATED} (each scan counted as one)"
    free = f"{scores.n_lesion_free_cases or 'none'} of them without a reference lesion"
    role = role_words(scores.evaluated_on)
    return f"{count(scores.n_cases, 'scan')}, {patients}, {free}; {role}."


def role_words(role: str) -> str:
    """What a role means for trust."""
    if role in DEVELOPMENT_TEXT:
        return f"{role} data, used in development"
    return f"{role} data, {UNTOUCHED}" if role in UNTOUCHED_ROLES else f"role {NOT_STATED}"


def role_is_stated(role: str) -> bool:
    """Whether somebody said what these scans were to the model; only then the page repeats it."""
    return role in DEVELOPMENT_TEXT or role in UNTOUCHED_ROLES


def ignored_sentence(scores: Scores) -> str:
    """Detections that count neither way; empty when there are none."""
    if not scores.n_ignored:
        return ""
    more = count(scores.n_ignored, "further detection")
    overlap = "overlaps" if scores.n_ignored == 1 else "overlap"
    return f"{more} {overlap} a lesion that another one had found; not counted either way."


def failed_sentence(tables: Tables) -> str:
    """Scans without a result, counted as misses and left out; empty when there are none."""
    n_failed = sum(case.failed for case in tables.cases)
    if not n_failed:
        return ""
    judged = without_failed(tables.cases, tables.lesions)
    lost = len(tables.lesions) - judged.n_lesions
    scans = f"{count(n_failed, 'scan')} without a prediction: lesions there count as missed"
    if not lost:
        return f"{scans}; there are none."
    if judged.false_positives_per_case is None:
        return f"{scans} ({lost}). No scan has a prediction."
    per_scan = rate(judged.false_positives_per_case)
    return (
        f"{scans} ({lost}). With such scans left out, {judged.n_detected} of "
        f"{count(judged.n_lesions, 'lesion')} "
        f"found, {per_scan} false positives per scan."
    )


def halving_sentence(tables: Tables) -> str:
    """How many more patients would halve the interval, or give one at all.

    An interval narrows with the square root of the number of independent patients, so half the
    width takes four times as many in all. Patients without lesions do not count towards any.
    """
    scores = tables.scores
    if scores.estimate("lesion_recall").ci95 is None:
        missing = MIN_GROUPS - len({lesion.group or lesion.case for lesion in tables.lesions})
        if not tables.lesions or missing <= 0:
            return ""
        more = count(missing, "more patient")
        return f"At least {more} with lesions would be needed for any interval."
    more = f"{3 * scores.n_groups:,}".replace(",", " ")
    return (
        f"To halve the width of that interval, about {more} more patients like these would be "
        "needed: four times as many in all."
    )


def operating_point_sentence(scores: Scores) -> str:
    """From which score a candidate counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return "No score is stated; the candidates that the predictions accept were counted."
    chosen = f", chosen on {point.chosen_on} data" if point.chosen_on else ", given by hand"
    counts = f"A candidate counts from a score of {point.score:.3g}{chosen}."
    expected = (scores.raw.get("operating_point") or {}).get("expected_false_positives_per_case")
    if expected is None:
        return counts
    ends = scores.raw["operating_point"].get("expected_false_positives_per_case_ci95")
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return f"{counts} Unseen scans are expected to have {expected:.2f} false positives{interval}."
