"""The first sentence of the page: sensitivity by size, at how many false positives per scan."""

from collections.abc import Sequence

from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import as_float
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.text.amounts import (
    percent,
    rate,
    share_found,
)

WORTH_SAYING = 0.05  # a difference in sensitivity between match rules


def headline(tables: Tables) -> str:
    """The first sentence: sensitivity by size, and at how many false positives per scan."""
    scores = tables.scores
    return f"{_sensitivity(scores)} {_false_positives(scores)}{_one_to_one(scores)}."


def _sensitivity(scores: Scores) -> str:
    sides = [side for side in scores.recall_by_half if side.n]
    if not scores.n_lesions or not sides:
        return "No reference lesion in these scans;"
    return f"Lesion sensitivity {by_halves(sides, scores)}, at"


def by_halves(sides: Sequence[SizeGroup], scores: Scores) -> str:
    """Lesions found of 5 mm or more, and of those below; where all are alike, of all."""
    shares = [share_found(side.detected, side.n, side.recall) for side in sides]
    if len(shares) == 1:
        return f"{shares[0]}, all lesions {_size(sides[0], scores)}"
    return f"{shares[1]} at {_size(sides[1], scores)}, {shares[0]} below"


def _size(side: SizeGroup, scores: Scores) -> str:
    """The lesions under or from 5 mm in short, and what of them is measured."""
    return f"{edge_words(side)} {scores.size_said.split(',')[0]} equivalent diameter"


def edge_words(side: SizeGroup) -> str:
    """The lesions under or from 5 mm as a sign and a number."""
    return f"< {side.to_mm:g}" if side.to_mm is not None else f"≥ {side.from_mm:g}"


def _false_positives(scores: Scores) -> str:
    per_case = scores.estimate("false_positives_per_case").value
    if per_case is None:
        return "with no scan to count false positives on"
    shown, wanted = rate(per_case), target(scores)
    return f"{shown} {false_word(scores, shown)} per scan{f' (target {wanted})' if wanted else ''}"


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
    said = {"fp_per_case": f"{value:g}", "sensitivity": f"sensitivity {percent(value)}"}
    return said.get(kind, "")


def _one_to_one(scores: Scores) -> str:
    """The same by pairs at IoU ≥ 0.1, where sensitivity differs by more than 5 points."""
    own, other = scores.estimate("lesion_recall").value, scores.recall_under("iou10")
    if own is None or other is None or abs(own - other) <= WORTH_SAYING:
        return ""
    found, false = round(other * scores.n_lesions), scores.false_positives_under("iou10")
    shown = "" if false is None else rate(false)
    per_scan = f", {shown} {false_word(scores, shown)} per scan" if shown else ""
    return f"; one to one at IoU ≥ 0.1: {found} of {scores.n_lesions}{per_scan}"


def false_word(scores: Scores, shown: str) -> str:
    """`false positives`; where the reference leaves lesions out, `unconfirmed detections`."""
    kind = "unconfirmed detection" if scores.incomplete_reference else "false positive"
    return kind if shown == "1" else f"{kind}s"
