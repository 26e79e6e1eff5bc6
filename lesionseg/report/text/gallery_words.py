"""Captions of the gallery's pictures, and how many of how many are shown."""

from collections.abc import Sequence

from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.report.text.amounts import rate, size
from lesionseg.report.text.catalog import entry, say
from lesionseg.report.text.table_words import why_missed


def shows(slice_mm: float) -> str:
    """How far a slice lies from the middle one.

    >>> shows(0.0), shows(-3.0)
    ('middle', '-3 mm')
    """
    return say("MIDDLE") if slice_mm == 0 else f"{slice_mm:+.3g} mm"


def caption_lesion(lesion: LesionRow, unit: str) -> str:
    """What a picture of a lesion shows."""
    part = entry("CAPTION")
    shown = str(part["size"]).format(size=size(lesion.diameter_mm), unit=unit)
    if lesion.long_axis_mm:
        shown += part["long_axis"].format(size=size(lesion.long_axis_mm), unit=unit)
    shown += f" ({rate(lesion.volume_ml)} ml)" if lesion.volume_ml is not None else ""
    shown += part["near"] if lesion.near_resolution else ""
    if not lesion.detected:
        return shown + str(part["missed"]).format(why=why_missed(lesion.why_missed))
    score, iou = lesion.detected_at, lesion.iou
    with_score = "" if score is None else part["with_score"].format(score=score)
    overlap = "" if iou is None else part["overlap"].format(iou=iou)
    return f"{shown}{part['found']}{with_score}{overlap}"


def scores_below(scores: Sequence[float]) -> str:
    """Of the candidates at a missed lesion: the highest score that did not count.

    >>> scores_below([0.1, 0.42]), scores_below([])
    (' (score 0.42)', '')
    """
    return say("SCORE_BELOW", score=max(scores)) if scores else ""


def caption_candidate(candidate: CandidateRow, unit: str) -> str:
    """What a picture of a false positive shows."""
    part = entry("CAPTION")
    score = "" if candidate.score is None else part["score"].format(score=candidate.score)
    touch = part["touches"] if candidate.touches_lesion else ""
    return f"{score}{part['size'].format(size=size(candidate.diameter_mm), unit=unit)}{touch}"


def caption_suspect(kind: str, size: str, probabilities: Sequence[float]) -> str:
    """Beside a picture of the audit: what it is, and its probability at each look."""
    p = " → ".join(f"{value:.2f}" for value in probabilities)
    return say("SUSPECT", kind=entry("AUDIT_KINDS").get(kind, kind), size=size, p=p)


def shown_sentence(shown: int, total: int, what: str) -> str:
    """How many of how many are shown, so that nobody takes the choice for the whole."""
    if shown == total:
        return say(("SHOWN_NONE", "SHOWN_ONE")[total] if total < 2 else "SHOWN_ALL", n=total)
    return say("SHOWN", shown=shown, total=total, what=what, left=total - shown)
