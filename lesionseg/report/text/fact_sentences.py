"""The sentences of the first screen below the headline."""

from collections.abc import Mapping

from lesionseg.evaluation.presets import JOINT_RULE
from lesionseg.evaluation.rows import without_failed
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.text.amounts import (
    MIN_FOR_PERCENT,
    NOT_STATED,
    bounds,
    count,
    percent,
    rate,
    share_found,
)
from lesionseg.report.text.chart_captions import (
    FROC_BAND,
    FROC_BEYOND,
    FROC_EXPECTED,
    FROC_READER,
    FROC_TARGET,
    FROC_TEXT,
)
from lesionseg.report.text.definitions import meanings
from lesionseg.report.text.frame import (
    DEVELOPMENT_TEXT,
    FACTS,
    MUST_STATE,
    UNTOUCHED,
    UNTOUCHED_ROLES,
)
from lesionseg.report.text.headline import (
    aim,
    by_halves,
    edge_words,
    expected,
    false_word,
    target,
)


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


def trained(network: str, version: str, commit: str) -> str:
    """A network of our own and the program that trained it.

    >>> trained("unet", "0.1.0", "4d1ea46653dd")
    'unet, trained by lesionseg 0.1.0 (commit 4d1ea46653dd)'
    """
    return f"{network}, trained by lesionseg {version}{f' (commit {commit})' if commit else ''}"


def stated(answers: Mapping[str, str], *keys: str) -> str:
    """What a study file says under the keys, or `not stated`."""
    return "; ".join(answers[key].rstrip(".") for key in keys if key in answers) or NOT_STATED


def unstated_words(answers: Mapping[str, str]) -> str:
    """Which of what the first page must say nobody stated; empty when all of it is."""
    missing = [FACTS[key] for study, key in MUST_STATE.items() if study not in answers]
    return ", ".join(missing).capitalize()


def side_label(side: SizeGroup, scores: Scores) -> str:
    """What the sensitivity under or from 5 mm is called on the first page."""
    return f"Sensitivity {edge_words(side)} {scores.size_unit}"


def rule_words(scores: Scores) -> str:
    """What counts as found, and whose rule it is."""
    return f"{meanings(scores.match_rule)['found'][1]} Preset {scores.preset}."


def side_sentence(scores: Scores, at: int) -> str:
    """Sensitivity under (0) or from (1) 5 mm; empty without such a side."""
    if at >= len(scores.recall_by_half):
        return ""
    side = scores.recall_by_half[at]
    return share_found(side.detected, side.n, side.recall)


def overall_sentence(scores: Scores) -> str:
    """Sensitivity for all lesions and its mean over patients, and the number missed."""
    if not scores.n_lesions:
        return ""
    all_lesions = scores.estimate("lesion_recall")
    said = share_found(scores.n_detected, scores.n_lesions, all_lesions)
    mean = scores.estimate("lesion_recall_mean_per_group")
    if mean.value is not None and scores.n_lesions >= MIN_FOR_PERCENT:
        ends = f" (95 % CI {bounds(mean)})" if mean.ci95 else ""
        said += f"; mean over patients {percent(mean.value)}{ends}"
    return f"{said}; {scores.n_missed} missed."


def false_positive_sentence(scores: Scores) -> str:
    """Observed rate with its count and CI, target, expected rate, and lesion-free scans."""
    per_case = scores.estimate("false_positives_per_case")
    n = str(scores.n_false_positive)
    if per_case.value is None:
        return f"Not defined: {per_case.reason}."
    touching = f", {scores.n_touching} of them touching a lesion" if scores.n_touching else ""
    counted = f"{n} {false_word(scores, n)} on {count(scores.n_cases, 'scan')}{touching}"
    return f"Observed {_rate(per_case)}: {counted}{_aims(scores)}; {_lesion_free(scores)}."


def _rate(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"not defined ({estimate.reason})"
    if estimate.ci95 is None:
        return rate(estimate.value)
    low, high = map(rate, estimate.ci95)
    return f"{rate(estimate.value)} (95 % CI {low} to {high})"


def second_reader_sentence(scores: Scores) -> str:
    """What a second reader finds of the same lesions, by the same rule; empty without one."""
    reader = scores.second_reader
    if reader is None:
        return ""
    sides = [side for side in reader.recall_by_half if side.n]
    found = by_halves(sides, scores) if sides else "no lesion, as there is none,"
    scans = count(scores.n_cases, "scan")
    some = f"{reader.n_cases} of {scans}" if reader.n_cases < scores.n_cases else scans
    extra = reader.false_positives_per_case
    shown = NOT_STATED if extra.value is None else rate(extra.value)
    ends = f" (95 % CI {rate(extra.ci95[0])} to {rate(extra.ci95[1])})" if extra.ci95 else ""
    return (
        f"A second reader finds {found}, at {shown} {false_word(scores, shown)} per scan{ends}, "
        f"on {some}."
    )


def _aims(scores: Scores) -> str:
    """What the operating point was chosen for, and what its choosing let expect."""
    wanted, (false, _) = target(scores), expected(scores)
    said = f"; target {wanted}" if wanted else ""
    return said if false is None else f"{said}; expected {rate(false)}"


def froc_text(scores: Scores) -> str:
    """What the FROC curve shows, and each of its marks that is there."""
    upright = aim(scores)[0] == "fp_per_case" and aim(scores)[1] is not None
    marks = {
        FROC_BEYOND: any(not point.reached for point in scores.froc),
        FROC_BAND: any(point.ci95 for point in scores.froc),
        FROC_TARGET: upright,
        FROC_EXPECTED: None not in expected(scores),
        FROC_READER: scores.second_reader is not None,
    }
    return " ".join([FROC_TEXT, *(words for words, there in marks.items() if there)])


def _lesion_free(scores: Scores) -> str:
    if not scores.n_lesion_free_cases:
        return "no scan is lesion-free"
    free = scores.estimate("false_positives_per_lesion_free_case")
    where = count(scores.n_lesion_free_cases, "lesion-free scan")
    return f"on {where} {_rate(free)}"


def scans_sentence(tables: Tables) -> str:
    """Patients with and without lesions, and their scans; scans alone where no patient is named."""
    scores = tables.scores
    lesions = count(scores.n_lesions, "reference lesion")
    if not tables.patients_stated:
        free = scores.n_lesion_free_cases
        with_lesions = count(sum(case.n_lesions > 0 for case in tables.cases), "scan")
        scans = f"{with_lesions} with lesions, {free} without"
        return f"{scans}; {lesions}; patients {NOT_STATED}, each scan counted as one."
    everyone = {case.group or case.case for case in tables.cases}
    ill = {case.group or case.case for case in tables.cases if case.n_lesions}
    patients = f"{count(len(ill), 'patient')} with lesions, {len(everyone - ill)} without"
    return f"{patients}; {count(scores.n_cases, 'scan')}; {lesions}."


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
    one = scores.n_ignored == 1
    if scores.match_rule == JOINT_RULE:
        where = f"{'lies' if one else 'lie'} mostly in what the reference says not to judge"
    else:
        where = f"{'overlaps' if one else 'overlap'} a lesion that another one had found"
    return f"{more} {where}; not counted either way."


def sharing_sentence(scores: Scores) -> str:
    """Lesions and detections that are not one to one; empty when all are, or nothing is known."""
    splits, merges = (int(scores.raw.get(key) or 0) for key in ("splits", "merges"))
    if not splits and not merges:
        return ""
    lesions, detections = count(splits, "lesion"), count(merges, "detection")
    return f"Overlapped by several detections: {lesions}; over several lesions: {detections}."


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
        f"found, {per_scan} {false_word(tables.scores, per_scan)} per scan."
    )


def warned_sentence(tables: Tables) -> str:
    """Scans unlike those of the training, and what was found there; empty when there are none."""
    warned = [case for case in tables.cases if case.warning]
    if not warned:
        return ""
    found, lesions = (sum(getattr(c, n) for c in warned) for n in ("n_detected", "n_lesions"))
    return (
        f"{len(warned)} of {count(len(tables.cases), 'scan')}, with {found} of "
        f"{count(lesions, 'lesion')} found there; the table of scans says in what."
    )


def operating_point_sentence(scores: Scores) -> str:
    """From which score a candidate counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return "No score is stated; the candidates that the predictions accept were counted."
    chosen = f", chosen on {point.chosen_on} data" if point.chosen_on else ", given by hand"
    counts = f"A candidate counts from a score of {point.score:.3g}{chosen}."
    known = scores.raw.get("operating_point") or {}
    if known.get("match_rule") not in (None, scores.match_rule):
        counts += f" It was chosen by match rule {known['match_rule']}, not by the one used here."
    expected = known.get("expected_false_positives_per_case")
    if expected is None:
        return counts
    ends = known.get("expected_false_positives_per_case_ci95")
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return f"{counts} Unseen scans are expected to have {expected:.2f} false positives{interval}."
