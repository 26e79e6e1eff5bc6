"""The sentences below the headline: which numbers go into which; the words are in en.yaml."""

from collections.abc import Mapping

from lesionseg.evaluation.presets import JOINT_RULE
from lesionseg.evaluation.rows import without_failed
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report.result_tables import Tables
from lesionseg.report.text.amounts import (
    MIN_FOR_PERCENT,
    in_brackets,
    percent,
    rate,
    reason_words,
    score,
    share_found,
)
from lesionseg.report.text.catalog import counted, entry, say
from lesionseg.report.text.definitions import meanings
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
        return say("PARTLY_DETECTOR" if "partly" in scores.size_said else "DETECTOR")
    return say("PIXELS") if scores.size_unit == "px" else ""


def trained(network: str, version: str, commit: str) -> str:
    """A network of our own and the program that trained it.

    >>> trained("unet", "0.1.0", "4d1ea46653dd")
    'unet, trained by lesionseg 0.1.0 (commit 4d1ea46653dd)'
    """
    state = say("COMMIT", commit=commit) if commit else ""
    return say("TRAINED", network=network, version=version, commit=state)


def stated(answers: Mapping[str, str], *keys: str) -> str:
    """What a study file says under the keys, or `not stated`."""
    given = (answers[key].rstrip(".") for key in keys if key in answers)
    return "; ".join(given) or say("NOT_STATED")


def unstated_words(answers: Mapping[str, str]) -> str:
    """Which of what the first page must say nobody stated; empty when all of it is."""
    missing = ", ".join(words for key, words in entry("UNSTATED").items() if key not in answers)
    return missing[:1].upper() + missing[1:]


def side_label(side: SizeGroup, scores: Scores) -> str:
    """What the sensitivity under or from 5 mm is called on the first page."""
    return str(entry("FACTS")["side"]).format(edge=edge_words(side), unit=scores.size_unit)


def rule_words(scores: Scores) -> str:
    """What counts as found, and whose rule it is."""
    words = entry("FOUND_BY")
    found = words.get(scores.match_rule, words.get("other"))
    found = found or meanings(scores.match_rule)["found"][1]
    return say("PRESET", found=found, preset=scores.preset)


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
    share = share_found(scores.n_detected, scores.n_lesions, all_lesions)
    mean, shown = scores.estimate("lesion_recall_mean_per_group"), ""
    if mean.value is not None and scores.n_lesions >= MIN_FOR_PERCENT:
        shown = say("MEAN", mean=percent(mean.value), interval=in_brackets(mean))
    return say("OVERALL", share=share, mean=shown, n=scores.n_missed)


def false_positive_sentence(scores: Scores) -> str:
    """Observed rate with its count and CI, target, expected rate, and lesion-free scans."""
    per_case = scores.estimate("false_positives_per_case")
    n = str(scores.n_false_positive)
    if per_case.value is None:
        return say("NOT_DEFINED", reason=reason_words(per_case.reason))
    return say(
        "OBSERVED",
        rate=_rate(per_case),
        false=f"{n} {false_word(scores, n)}",
        scans=counted(scores.n_cases, "scan"),
        touching=say("TOUCHING", n=scores.n_touching) if scores.n_touching else "",
        aims=_aims(scores),
        free=_lesion_free(scores),
    )


def _rate(estimate: Estimate) -> str:
    if estimate.value is None:
        return say("RATE_UNDEFINED", reason=reason_words(estimate.reason))
    return rate(estimate.value) + in_brackets(estimate, rate)


def second_reader_sentence(scores: Scores) -> str:
    """What a second reader finds of the same lesions, by the same rule; empty without one."""
    reader = scores.second_reader
    if reader is None:
        return ""
    sides = [side for side in reader.recall_by_half if side.n]
    scans = counted(scores.n_cases, "scan")
    extra = reader.false_positives_per_case
    shown = say("NOT_STATED") if extra.value is None else rate(extra.value)
    some = reader.n_cases < scores.n_cases
    return say(
        "READER",
        found=by_halves(sides, scores) if sides else say("READER_NONE"),
        rate=shown,
        kind=false_word(scores, shown),
        interval=in_brackets(extra, rate),
        scans=say("SOME", n=reader.n_cases, scans=scans) if some else scans,
    )


def _aims(scores: Scores) -> str:
    """What the operating point was chosen for, and what its choosing let expect."""
    wanted, (false, _) = target(scores), expected(scores)
    aimed = say("AIMED", wanted=wanted) if wanted else ""
    return aimed if false is None else aimed + say("EXPECTED", rate=rate(false))


def froc_text(scores: Scores) -> str:
    """What the FROC curve shows, and each of its marks that is there."""
    upright = aim(scores)[0] == "fp_per_case" and aim(scores)[1] is not None
    marks = {
        "FROC_BEYOND": any(not point.reached for point in scores.froc),
        "FROC_BAND": any(point.ci95 for point in scores.froc),
        "FROC_TARGET": upright,
        "FROC_EXPECTED": None not in expected(scores),
        "FROC_READER": scores.second_reader is not None,
    }
    return " ".join(map(say, ["FROC_TEXT", *(name for name, there in marks.items() if there)]))


def _lesion_free(scores: Scores) -> str:
    if not scores.n_lesion_free_cases:
        return say("NONE_FREE")
    free = scores.estimate("false_positives_per_lesion_free_case")
    where = counted(scores.n_lesion_free_cases, "lesion-free scan")
    return say("FREE", scans=where, rate=_rate(free))


def scans_sentence(tables: Tables) -> str:
    """Patients with and without lesions, and their scans; scans alone where no patient is named."""
    scores = tables.scores
    lesions = counted(scores.n_lesions, "reference lesion")
    if not tables.patients_stated:
        free = scores.n_lesion_free_cases
        scans = counted(sum(case.n_lesions > 0 for case in tables.cases), "scan")
        return say("SCANS", scans=scans, free=free, lesions=lesions)
    everyone = {case.group or case.case for case in tables.cases}
    ill = {case.group or case.case for case in tables.cases if case.n_lesions}
    return say(
        "PATIENTS",
        patients=counted(len(ill), "patient"),
        free=len(everyone - ill),
        scans=counted(scores.n_cases, "scan"),
        lesions=lesions,
    )


def role_words(role: str) -> str:
    """What a role means for trust."""
    return str(entry("ROLES").get(role, entry("NO_ROLE")))


def role_is_stated(role: str) -> bool:
    """Whether somebody said what these scans were to the model; only then the page repeats it."""
    return role in entry("ROLES")


def ignored_sentence(scores: Scores) -> str:
    """Detections that count neither way; empty when there are none."""
    if not scores.n_ignored:
        return ""
    one, many = entry("IGNORED_JOINT" if scores.match_rule == JOINT_RULE else "IGNORED")
    more = counted(scores.n_ignored, "further detection")
    return str(one if scores.n_ignored == 1 else many).format(n=more)


def sharing_sentence(scores: Scores) -> str:
    """Lesions and detections that are not one to one; empty when all are, or nothing is known."""
    splits, merges = (int(scores.raw.get(key) or 0) for key in ("splits", "merges"))
    if not splits and not merges:
        return ""
    lesions, detections = counted(splits, "lesion"), counted(merges, "detection")
    return say("SHARING", lesions=lesions, detections=detections)


def failed_sentence(tables: Tables) -> str:
    """Scans without a result, counted as misses and left out; empty when there are none."""
    n_failed = sum(case.failed for case in tables.cases)
    if not n_failed:
        return ""
    judged = without_failed(tables.cases, tables.lesions)
    lost = len(tables.lesions) - judged.n_lesions
    scans = counted(n_failed, "scan")
    if not lost:
        return say("NOTHING_LOST", scans=scans)
    if judged.false_positives_per_case is None:
        return say("ALL_LOST", scans=scans, lost=lost)
    per_scan = rate(judged.false_positives_per_case)
    return say(
        "LOST",
        scans=scans,
        lost=lost,
        found=judged.n_detected,
        lesions=counted(judged.n_lesions, "lesion"),
        rate=per_scan,
        kind=false_word(tables.scores, per_scan),
    )


def warned_sentence(tables: Tables) -> str:
    """Scans unlike those of the training, and what was found there; empty when there are none."""
    warned = [case for case in tables.cases if case.warning]
    if not warned:
        return ""
    found, lesions = (sum(getattr(c, n) for c in warned) for n in ("n_detected", "n_lesions"))
    return say(
        "WARNED",
        n=len(warned),
        scans=counted(len(tables.cases), "scan"),
        found=found,
        lesions=counted(lesions, "lesion"),
    )


def operating_point_sentence(scores: Scores) -> str:
    """From which score a candidate counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return say("NO_SCORE")
    on, data = point.chosen_on, entry("DATA")
    where = str(data.get(on, data["other"])).format(role=on)
    chosen = say("CHOSEN_ON", data=where) if on else say("BY_HAND")
    counts = say("POINT", score=score(point.score), chosen=chosen)
    known = scores.raw.get("operating_point") or {}
    if known.get("match_rule") not in (None, scores.match_rule):
        counts += say("OTHER_RULE", rule=known["match_rule"])
    expected = known.get("expected_false_positives_per_case")
    if expected is None:
        return counts
    ends = known.get("expected_false_positives_per_case_ci95")
    between = say("POINT_INTERVAL", low=f"{ends[0]:.2f}", high=f"{ends[1]:.2f}") if ends else ""
    return counts + say("POINT_EXPECTED", rate=f"{expected:.2f}", interval=between)
