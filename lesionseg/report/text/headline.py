"""The first sentence of the page: which numbers go into it; its words are in en.yaml."""

from collections.abc import Sequence

from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import as_float
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report.result_tables import Tables
from lesionseg.report.text.amounts import measured, percent, rate, share_found
from lesionseg.report.text.catalog import noun, say

WORTH_SAYING = 0.05  # a difference in sensitivity between match rules


def headline(tables: Tables) -> str:
    """The first sentence: sensitivity by size, and at how many false positives per scan."""
    scores = tables.scores
    return say(
        "HEADLINE",
        sensitivity=_sensitivity(scores),
        false=_false_positives(scores),
        pairs=_one_to_one(scores),
    )


def _sensitivity(scores: Scores) -> str:
    sides = [side for side in scores.recall_by_half if side.n]
    if not scores.n_lesions or not sides:
        return say("NO_LESIONS")
    return say("SENSITIVITY", found=by_halves(sides, scores))


def by_halves(sides: Sequence[SizeGroup], scores: Scores) -> str:
    """Lesions found of 5 mm or more, and of those below; where all are alike, of all."""
    shares = [share_found(side.detected, side.n, side.recall) for side in sides]
    if len(shares) == 1:
        return say("ONE_SIZE", share=shares[0], size=_size(sides[0], scores))
    small, large = shares
    return say("TWO_SIZES", large=large, size=_size(sides[1], scores), small=small)


def _size(side: SizeGroup, scores: Scores) -> str:
    """The lesions under or from 5 mm in short, and what of them is measured."""
    return say("EDGE", edge=edge_words(side), unit=measured(scores.size_said).split(",")[0])


def edge_words(side: SizeGroup) -> str:
    """The lesions under or from 5 mm as a sign and a number."""
    return f"< {side.to_mm:g}" if side.to_mm is not None else f"≥ {side.from_mm:g}"


def _false_positives(scores: Scores) -> str:
    per_case = scores.estimate("false_positives_per_case").value
    if per_case is None:
        return say("NO_SCAN")
    shown, wanted = rate(per_case), target(scores)
    aimed = say("TARGET", wanted=wanted) if wanted else ""
    return say("PER_SCAN", shown=shown, kind=false_word(scores, shown), target=aimed)


def aim(scores: Scores) -> tuple[str, float | None]:
    """What kind of number the operating point was chosen for, and which; None for none.

    `fp_per_case` and `sensitivity` are kinds that are aimed at.
    """
    kind, _, wanted = (scores.operating_point.name or "").partition(":")
    try:
        return kind, float(wanted)
    except ValueError:
        return kind, None


def expected(scores: Scores) -> tuple[float | None, float | None]:
    """False positives per scan and sensitivity that choosing the score let expect."""
    point = scores.raw.get("operating_point") or {}
    keys = ("expected_false_positives_per_case", "expected_recall")
    false, recall = (as_float(point.get(key)) for key in keys)
    return false, recall


def target(scores: Scores) -> str:
    """What the operating point was chosen for; empty when it was not chosen for anything."""
    kind, value = aim(scores)
    if value is None:
        return ""
    if kind == "sensitivity":
        return say("TARGET_SENSITIVITY", value=percent(value))
    return f"{value:g}" if kind == "fp_per_case" else ""


def _one_to_one(scores: Scores) -> str:
    """The same by pairs at IoU ≥ 0.1, where sensitivity differs by more than 5 points."""
    own, other = scores.estimate("lesion_recall").value, scores.recall_under("iou10")
    if own is None or other is None or abs(own - other) <= WORTH_SAYING:
        return ""
    found, false = round(other * scores.n_lesions), scores.false_positives_under("iou10")
    shown = "" if false is None else rate(false)
    kind = false_word(scores, shown)
    per_scan = say("PAIRS_FALSE", rate=shown, kind=kind) if shown else ""
    return say("PAIRS", found=found, n=scores.n_lesions, false=per_scan)


def false_word(scores: Scores, shown: str) -> str:
    """`false positives`; where the reference leaves lesions out, `unconfirmed detections`."""
    kind = "unconfirmed detection" if scores.incomplete_reference else "false positive"
    return noun(kind, shown == "1")
