"""Follow-up on one self-contained page: each pair's counts, each change with its pictures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.change import STATES, LesionChange
from lesionseg.io.atomic import write_text
from lesionseg.report import text
from lesionseg.report.figures.pictures import cut_views
from lesionseg.report.figures.slice_views import View
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.rendering import render
from lesionseg.report.sections.gallery import GalleryCard, GallerySection
from lesionseg.report.sections.table_cells import Line, Listing, TableCell, listing, number_cell

TITLE = "Follow-up of lesions"
MAX_PICTURES = 60  # pairs of pictures of a page; tables hold every change
SENTENCES: Mapping[str, str] = {
    "new": "On no place of the earlier visit.",
    "enlarged": "Larger by more than the smallest detectable change.",
    "shrunk": "Smaller by more than the smallest detectable change.",
    "gone": "On no place of the later visit.",
    "merged": "Several lesions that became one.",
    "split": "One lesion that became several.",
}
_HEADINGS_PAIRS = ("Case", *(state.capitalize() for state in STATES), "Volume before, ml", "after")
_HEADINGS_CHANGES = (
    *("Case", "State", "Lesion before", "Lesion after", "Diameter before, mm", "after"),
    *("Volume before, ml", "after", "Change, %", "Smallest detectable, %"),
)


@dataclass(frozen=True)
class FollowPage:
    """What the page shows; names are those of the cases, or numbers in the order of pairs.csv."""

    title: str
    headline: str
    rule: str
    pairs: Listing
    changes: Listing
    sections: tuple[GallerySection, ...]


def draw_change(
    change: LesionChange, name: str, before: Scene, after: Scene, box: NDArray[np.float64]
) -> GalleryCard:
    """One change: a slice of each visit at the same place, with the outlines of both visits.

    Both scenes lie on the later grid; `reference` of each is the earlier visit's mask, `accepted`
    the later one's. `box` `[2, dims]` (start, stop) is around the lesions of both visits.
    """
    views = tuple(
        replace(_one(cut_views(scene, box[0].tolist(), box[1].tolist())), plane=visit)
        for scene, visit in ((before, "before"), (after, "after"))
    )
    ids = [" ".join(map(str, ids)) for ids in (change.lesion_before, change.lesion_after)]
    lesions = " → ".join(each or text.NONE for each in ids)
    return GalleryCard(name, lesions, _caption(change), views)


def write_follow_page(
    path: Path,
    changes: Sequence[LesionChange],
    names: Mapping[str, str],
    cards: Iterable[tuple[LesionChange, GalleryCard]],
    rule: str,
) -> Path:
    """Write the page to `path` and return it; `names` are the shown ones of all cases, in order.

    Pictures of the largest changes come first; beyond `MAX_PICTURES` they are left out.
    """
    accepted = [c for c in changes if c.accepted]
    counts = Counter(c.state for c in accepted)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    page = FollowPage(
        TITLE,
        f"{text.counted(len(names), 'pair')}: {summary or 'no change'}.",
        rule,
        listing(_HEADINGS_PAIRS, (_pair_line(case, names[case], changes) for case in names)),
        listing(_HEADINGS_CHANGES, (_change_line(names[c.case], c) for c in accepted)),
        tuple(_sections(cards)),
    )
    write_text(path, render("follow.html.j2", page))
    return path


def _sections(cards: Iterable[tuple[LesionChange, GalleryCard]]) -> Iterable[GallerySection]:
    ordered = sorted(cards, key=lambda pair: -_extent(pair[0]))[:MAX_PICTURES]
    for state, sentence in SENTENCES.items():
        chosen = tuple(card for change, card in ordered if change.state == state)
        if chosen:
            yield GallerySection(state.capitalize(), sentence, chosen)


def _extent(change: LesionChange) -> float:
    return max(change.diameter_before_mm or 0.0, change.diameter_after_mm or 0.0)


def _one(views: Sequence[View]) -> View:
    """The axial slices, or of a 2-D image the cut-out."""
    return views[0] if len(views) == 3 else views[-1]


def _caption(change: LesionChange) -> str:
    sizes = [
        "" if size is None else f"{size:.1f} mm"
        for size in (change.diameter_before_mm, change.diameter_after_mm)
    ]
    sizes_text = " → ".join(size for size in sizes if size)
    if change.change_percent is None:
        return sizes_text
    least = f"detectable from {change.smallest_change_percent:.0f} %"
    return f"{sizes_text}, {change.change_percent:+.0f} % ({least})"


def _pair_line(case: str, name: str, changes: Sequence[LesionChange]) -> Line:
    own = [c for c in changes if c.case == case]
    counts = Counter(c.state for c in own if c.accepted or c.state == "stable")
    volumes = (
        sum(c.volume_before_ml or 0.0 for c in own),
        sum(c.volume_after_ml or 0.0 for c in own),
    )
    return (
        TableCell(name),
        *(number_cell(counts[state], 0) for state in STATES),
        *(number_cell(volume, 2) for volume in volumes),
    )


def _change_line(name: str, change: LesionChange) -> Line:
    return (
        TableCell(name),
        TableCell(change.state),
        *(TableCell(" ".join(map(str, i))) for i in (change.lesion_before, change.lesion_after)),
        *(number_cell(d, 1) for d in (change.diameter_before_mm, change.diameter_after_mm)),
        *(number_cell(v, 3) for v in (change.volume_before_ml, change.volume_after_ml)),
        number_cell(change.change_percent, 0),
        number_cell(change.smallest_change_percent, 0),
    )
