"""The words of the gallery: what is shown, in which order, and each picture's caption."""

from collections.abc import Mapping, Sequence

from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.report.text.amounts import rate, size
from lesionseg.report.text.table_words import why_missed

BURNED_IN = (
    "These are whole images. Names, dates or numbers may be burned into them: look at each one "
    "before the page is passed on."
)
GREY_LEVEL, GREY_WIDTH, GREY_BACK = "Level", "Window", "Reset"
SCROLL_SLICES = "Slice"
GALLERY_TITLES: Mapping[str, str] = {
    "missed": "Missed lesions",
    "false_positive": "False positives",
    "found": "Found lesions, for comparison",
}
GALLERY_ORDERS: Mapping[str, str] = {
    "missed": "drawn evenly from all sizes, the largest first",
    "false_positive": "by descending score where there are scores",
    "found": "drawn at random from all sizes with a fixed seed",
}
ITEMS = "Places to judge"
ITEMS_TEXT = (
    "In random order. State for each item whether it is a lesion (lesion, no_lesion, unsure) and, "
    "if it is none, its cause in one word, such as vessel or artefact."
)
NO_PICTURES = (
    "No pictures: the folder of scans was not given. Give the images to the report to see here "
    "missed lesions and false positives."
)
GALLERY_TEXT = (
    "Slices through the middle of each lesion or detection, cut out around it, along the scan's "
    "own axes. Ticks at the edges point to it. The patient's right is on the left of a picture, "
    "in sagittal slices the front is. Grey values are stretched to the cut-out."
)
OPEN_SCAN = "open the scan"
SCROLL_TEXT = (
    "The slider below scrolls to its neighbours; so do the arrow keys and the wheel after a press "
    "on the picture."
)
GALLERY_TEXT_2D = (
    "The whole image with the place framed, and a cut-out around it. Ticks point to it."
)
NO_BOX = "Its place in the scan is not stated in the tables."
OUTLINES = "Outlines"
KEY_REFERENCE = "reference (blue, solid)"
KEY_PREDICTION = "program's detections (orange, dashed)"
KEY_BELOW = "candidate at a missed lesion, score too low to count (white, dotted)"


def shows(slice_mm: float) -> str:
    """How far a slice lies from the middle one.

    >>> shows(0.0), shows(-3.0)
    ('middle', '-3 mm')
    """
    return "middle" if slice_mm == 0 else f"{slice_mm:+.3g} mm"


def caption_lesion(lesion: LesionRow, unit: str) -> str:
    """What a picture of a lesion shows."""
    shown = f"equivalent diameter {size(lesion.diameter_mm)} {unit}"
    shown += f", long axis {size(lesion.long_axis_mm)} {unit}" if lesion.long_axis_mm else ""
    shown += f" ({rate(lesion.volume_ml)} ml)" if lesion.volume_ml is not None else ""
    near = ", near the scan's resolution" if lesion.near_resolution else ""
    if not lesion.detected:
        return f"{shown}{near} · missed: {why_missed(lesion.why_missed)}"
    score = "" if lesion.detected_at is None else f" with score {lesion.detected_at:.2f}"
    overlap = "" if lesion.iou is None else f", overlap (IoU) {lesion.iou:.2f}"
    return f"{shown}{near} · found{score}{overlap}"


def scores_below(scores: Sequence[float]) -> str:
    """Of the candidates at a missed lesion: the highest score that did not count.

    >>> scores_below([0.1, 0.42]), scores_below([])
    (' (score 0.42)', '')
    """
    return f" (score {max(scores):.2g})" if scores else ""


def caption_candidate(candidate: CandidateRow, unit: str) -> str:
    """What a picture of a false positive shows."""
    score = "" if candidate.score is None else f"score {candidate.score:.2f}, "
    touch = ", touches a reference lesion" if candidate.touches_lesion else ""
    return f"{score}equivalent diameter {size(candidate.diameter_mm)} {unit}{touch}"


def shown_sentence(shown: int, total: int, what: str) -> str:
    """How many of how many are shown, so that nobody takes the choice for the whole."""
    if not total:
        return "There are none."
    if shown == total:
        return f"Shown: {'the only one' if total == 1 else f'all {total}'}."
    return f"Shown: {shown} of {total}, {what}; {total - shown} not shown."


def gallery_page(title: str, first: int, last: int) -> str:
    """The title of one page of a whole gallery."""
    return f"{title}, {first} to {last}"


def no_picture(why: str) -> str:
    """Why a card has no picture."""
    return f"No picture. {why}"
