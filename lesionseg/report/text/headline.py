"""The sentences of the first screen."""

from collections.abc import Mapping

from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.inputs.scores_file import Estimate, Scores
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
    """The first sentence: what was found, at what price, on which scans, by whose reference."""
    return f"{_found(tables.scores)}, {_price(tables.scores)}; {_whence(tables, answers)}."


def _found(scores: Scores) -> str:
    unit = scores.size_unit
    sides = [side for side in scores.recall_by_half if side.n]
    if not scores.n_lesions or not sides:
        return "These scans have no reference lesion to find"
    if len(sides) == 1:
        found, n = scores.n_lesions - scores.n_missed, scores.n_lesions
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


def _price(scores: Scores) -> str:
    per_case = scores.estimate("false_positives_per_case").value
    free = scores.estimate("false_positives_per_lesion_free_case").value
    if per_case is None:
        return "with no scan to count false marks on"
    on_free = "no scan is lesion-free" if free is None else f"{rate(free)} on lesion-free scans"
    return f"with {_false_marks(scores, rate(per_case))} no reference lesion ({on_free})"


def _false_marks(scores: Scores, shown: str) -> str:
    """`0.8 marks a scan that match`, or `1 mark a scan that matches`."""
    kind = "unconfirmed mark" if scores.incomplete_reference else "mark"
    one = shown == "1"
    return f"{shown} {kind}{'' if one else 's'} a scan that match{'es' if one else ''}"


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
    found = scores.n_lesions - scores.n_missed
    said = share_found(found, scores.n_lesions, scores.estimate("lesion_recall"))
    return f"Together {found} of {scores.n_lesions} ({said}); {scores.n_missed} missed."


def false_mark_sentence(scores: Scores) -> str:
    """The price: marks that match no reference lesion."""
    per_case = scores.estimate("false_positives_per_case")
    free = scores.estimate("false_positives_per_lesion_free_case")
    kind = "unconfirmed mark" if scores.incomplete_reference else "mark"
    marks = count(scores.n_false_positive, kind)
    price = f"not defined ({per_case.reason})" if per_case.value is None else rate(per_case.value)
    scans = count(scores.n_cases, "scan")
    match = "matches" if scores.n_false_positive == 1 else "match"
    touching = f", {scores.n_touching} of them touching a lesion" if scores.n_touching else ""
    said = f"{marks} on {scans} {match} no reference lesion{touching}: {price} a scan"
    if not scores.n_lesion_free_cases:
        return f"{said}; no scan is lesion-free."
    if free.value is None:
        return f"{said}; on lesion-free scans not defined: {free.reason}."
    where = count(scores.n_lesion_free_cases, "lesion-free scan")
    return f"{said}; on the {where} {rate(free.value)} a scan."


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
    """From which score a mark counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return "No score is stated; the marks the predictions themselves accept were counted."
    chosen = f", chosen on {point.chosen_on} data" if point.chosen_on else ", given by hand"
    return f"A mark counts from a score of {point.score:.3g}{chosen}."
