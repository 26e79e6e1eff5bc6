"""The sentences of the first screen."""

from collections.abc import Iterable, Mapping

from lesionseg.report.scores import Scores, SizeGroup
from lesionseg.report.tables import Tables
from lesionseg.report.text.amounts import MIN_GROUPS, NOT_STATED, count, rate, share_found
from lesionseg.report.text.frame import DEVELOPMENT_TEXT, UNTOUCHED


def found_sentence(scores: Scores) -> str:
    """How many lesions were found, the large and the small ones apart."""
    cut = 5.0
    large = [g for g in scores.recall_by_size if g.from_mm >= cut]
    small = [g for g in scores.recall_by_size if g.from_mm < cut]
    found = scores.n_lesions - scores.n_missed
    if not scores.n_lesions:
        return "These scans have no reference lesion, so nothing can be said about finding them."
    if not all(any(g.n for g in side) for side in (large, small)):
        return f"Found {found} of {count(scores.n_lesions, 'reference lesion')}."
    return (
        f"Found {_found_of(large)} reference lesions of {cut:g} {scores.size_unit} or more "
        f"and {_found_of(small)} smaller ones."
    )


def overall_sentence(scores: Scores) -> str:
    """The share of all lesions with its interval, and the number missed."""
    if not scores.n_lesions:
        return ""
    found = scores.n_lesions - scores.n_missed
    said = share_found(found, scores.n_lesions, scores.estimate("lesion_recall"))
    return f"Together {found} of {scores.n_lesions} ({said}); {scores.n_missed} missed."


def false_mark_sentence(scores: Scores) -> str:
    """The price: marks that match no reference lesion."""
    per_case = scores.estimate("false_positives_per_case")
    free = scores.estimate("false_positives_per_lesion_free_case")
    kind = "unconfirmed mark" if scores.incomplete_reference else "mark"
    marks = count(scores.n_false_positive, kind)
    price = f"(not defined: {per_case.reason})" if per_case.value is None else rate(per_case.value)
    scans = count(scores.n_cases, "scan")
    touching = f", {scores.n_touching} of them touching a lesion" if scores.n_touching else ""
    said = f"{price} marks a scan match no reference lesion ({marks} on {scans}{touching})"
    if not scores.n_lesion_free_cases:
        return f"{said}; no scan is lesion-free."
    if free.value is None:
        return f"{said}; on lesion-free scans not defined: {free.reason}."
    where = count(scores.n_lesion_free_cases, "lesion-free scan")
    return f"{said}; on the {where} {rate(free.value)} a scan."


def scans_sentence(scores: Scores) -> str:
    """How many scans of how many patients, and in which role."""
    patients = f"of {count(scores.n_groups, 'patient')}"
    if scores.n_groups == scores.n_cases and scores.n_cases > 1:
        patients = "each counted as a patient of its own"
    free = f"{scores.n_lesion_free_cases or 'none'} of them without a reference lesion"
    role = role_words(scores.evaluated_on)
    return f"{count(scores.n_cases, 'scan')}, {patients}, {free}; {role}."


def origin_sentence(answers: Mapping[str, str]) -> str:
    """Where the scans come from and who read the reference, as far as it was supplied.

    >>> origin_sentence({"sites": "Bern"})
    'Scans from: Bern. Reference by: not stated.'
    """
    sites, readers = (
        answers.get(key, NOT_STATED).rstrip(".") for key in ("sites", "reference_readers")
    )
    return f"Scans from: {sites}. Reference by: {readers}."


def role_words(role: str) -> str:
    """What a role means for trust."""
    if role in DEVELOPMENT_TEXT:
        return f"{role} data, used in development"
    return f"{role} data, {UNTOUCHED}" if role in ("test", "external") else f"role: {role}"


def ignored_sentence(scores: Scores) -> str:
    """Marks that count neither way; empty when there are none."""
    if not scores.n_ignored:
        return ""
    marks = count(scores.n_ignored, "further mark")
    verb = "overlaps" if scores.n_ignored == 1 else "overlap"
    return f"{marks} {verb} a lesion that another mark had found; not counted either way."


def failed_sentence(tables: Tables) -> str:
    """Scans without a result, counted as misses and left out; empty when there are none."""
    failed = {case.case for case in tables.cases if case.failed}
    if not failed:
        return ""
    lost = sum(lesion.case in failed for lesion in tables.lesions)
    judged = [lesion for lesion in tables.lesions if lesion.case not in failed]
    found = sum(lesion.detected for lesion in judged)
    scans = len(tables.cases) - len(failed)
    said = f"{count(len(failed), 'scan')} without a prediction: lesions there count as missed"
    if not lost:
        return f"{said}; there are none."
    if not scans:
        return f"{said} ({lost}). No scan has a prediction."
    price = rate(tables.scores.n_false_positive / scans)
    return (
        f"{said} ({lost}). With such scans left out, {found} of {count(len(judged), 'lesion')} "
        f"found, {price} marks a scan that match none."
    )


def halving_sentence(scores: Scores) -> str:
    """How many more patients would halve the interval, or give one at all.

    An interval narrows with the square root of the number of independent patients, so half the
    width takes four times as many in all.
    """
    if scores.n_groups < MIN_GROUPS and scores.n_lesions:
        missing = count(MIN_GROUPS - scores.n_groups, "more patient")
        return f"At least {missing} with lesions would be needed for any interval."
    if scores.estimate("lesion_recall").ci95 is None:
        return ""
    more = f"{3 * scores.n_groups:,}".replace(",", " ")
    return (
        f"To halve the width of that interval, about {more} more patients like these would be "
        "needed: four times as many in all."
    )


def operating_point_sentence(scores: Scores) -> str:
    """From which score a mark counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return "No score is stated; the marks the predictions themselves accept were counted."
    chosen = f", chosen on {point.chosen_on} data" if point.chosen_on else ", given by hand"
    return f"A mark counts from a score of {point.score:.3g}{chosen}."


def _found_of(groups: Iterable[SizeGroup]) -> str:
    groups = list(groups)
    return f"{sum(g.detected for g in groups)} of {sum(g.n for g in groups)}"
