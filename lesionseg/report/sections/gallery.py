"""The gallery: which lesions and false positives are shown, by fixed rules, and their pictures."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lesionseg.errors import LesionsegError
from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report import text
from lesionseg.report.figures.pictures import Load, cut_views
from lesionseg.report.figures.slice_views import View
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.result_tables import Tables
from lesionseg.report.sections.table_cells import size_index

Kind = Literal["missed", "false_positive", "found"]
SEED = 0


@dataclass(frozen=True)
class GalleryItem:
    """One lesion or one false positive to be shown."""

    kind: Kind
    subject: LesionRow | CandidateRow

    @property
    def case(self) -> str:
        """The case it is in."""
        return self.subject.case


@dataclass(frozen=True)
class GallerySelection:
    """What is shown of one kind, and how many of that kind there are."""

    kind: Kind
    items: tuple[GalleryItem, ...]
    total: int


@dataclass(frozen=True)
class Limits:
    """Most items of each kind; None: all of them."""

    missed: int | None = 120
    false_positive: int | None = 60
    found: int | None = 12


ALL = Limits(None, None, None)


def choose_items(tables: Tables, limits: Limits | None = None) -> tuple[GallerySelection, ...]:
    """Missed lesions and found ones from all sizes by turns, false positives by descending score.

    Missed: the largest of each size group first. Found: shuffled with a fixed seed.
    """
    limits = limits or Limits()
    groups = tables.scores.recall_by_size
    missed = [lesion for lesion in tables.lesions if not lesion.detected]
    found = [lesion for lesion in tables.lesions if lesion.detected]
    false = [row for row in tables.candidates if row.outcome == "false_positive"]
    false.sort(key=lambda row: (-(row.score or 0.0), row.case, row.candidate))
    missed.sort(key=lambda row: (-row.diameter_mm, row.case, row.lesion))
    found = [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]
    return (
        _select("missed", _by_turns(missed, groups), limits.missed),
        _select("false_positive", false, limits.false_positive),
        _select("found", _by_turns(found, groups), limits.found),
    )


def _select(
    kind: Kind, rows: Sequence[LesionRow | CandidateRow], limit: int | None
) -> GallerySelection:
    return GallerySelection(kind, tuple(GalleryItem(kind, row) for row in rows[:limit]), len(rows))


def _by_turns(rows: Sequence[LesionRow], groups: Sequence[SizeGroup]) -> list[LesionRow]:
    """One of each size group in turn, the largest group first; order within a group is kept."""
    place: dict[int, int] = {}
    keys = []
    for at, row in enumerate(rows):
        group = size_index(row.diameter_mm, groups)
        place[group] = place.get(group, -1) + 1
        keys.append((place[group], -group, at))
    return [rows[at] for _, _, at in sorted(keys)]


_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GalleryCard:
    """One item: where, what, and its views; without views `note` says why.

    Cards of a higher `rank` are shown first, those of the same in their order. `link`: a page on
    the whole scan.
    """

    case: str
    name: str
    caption: str
    views: tuple[View, ...] = ()
    note: str = ""
    rank: float = 0.0
    link: str = ""

    @property
    def reach(self) -> int:
        """How many slices there are to either side of the middle one, at most."""
        return max(max(v.at, len(v.slices) - 1 - v.at) for v in self.views) if self.views else 0

    @property
    def alt(self) -> str:
        """What the picture shows, for those who cannot see it."""
        return f"{self.case}, {self.name}: {self.caption}"


@dataclass(frozen=True)
class GallerySection:
    """One kind of items with their cards, and how many there are in all."""

    title: str
    sentence: str
    cards: tuple[GalleryCard, ...]
    kind: str = ""
    total: int = 0


def draw_gallery(
    selections: Sequence[GallerySelection],
    tables: Tables,
    load: Load,
    progress: Progress | None = None,
) -> tuple[GallerySection, ...]:
    """Draw all items, reading each case once; a case that cannot be read leaves a note."""
    cards: dict[GalleryItem, GalleryCard] = {}
    items = [item for selection in selections for item in selection.items]
    cases = sorted({item.case for item in items})
    accepted = _accepted(tables)
    for done, case in enumerate(cases, start=1):
        here = [item for item in items if item.case == case]
        cards.update(_draw_case(case, here, accepted.get(case, frozenset()), tables, load))
        if progress is not None:
            progress(case, done, len(cases))
    return tuple(_section(selection, cards) for selection in selections)


def draw_items(
    rows: Sequence[CandidateRow], tables: Tables, load: Load, progress: Progress | None = None
) -> GallerySection:
    """The pictures of false positives as numbered items, in their order and without scores."""
    items = tuple(GalleryItem("false_positive", row) for row in rows)
    selection = GallerySelection("false_positive", items, len(items))
    (section,) = draw_gallery([selection], tables, load, progress)
    unit = tables.scores.size_unit
    cards = tuple(
        replace(
            card,
            case=text.say("ITEM", n=n),
            name=card.case,
            caption=f"{item.subject.diameter_mm:.1f} {unit}",
        )
        for n, (card, item) in enumerate(zip(section.cards, items, strict=True), start=1)
    )
    return replace(section, title=text.ITEMS, sentence=text.ITEMS_TEXT, cards=cards)


def link(gallery: Sequence[GallerySection], pages: Mapping[str, str]) -> tuple[GallerySection, ...]:
    """Have the cards of each case lead to its page; those of other cases stay."""
    return tuple(
        replace(
            section,
            cards=tuple(replace(card, link=pages.get(card.case, "")) for card in section.cards),
        )
        for section in gallery
    )


def trim(gallery: Sequence[GallerySection], n: int) -> tuple[GallerySection, ...]:
    """Keep at most `n` cards of each kind, and say how many are not shown."""
    return tuple(
        replace(
            section,
            cards=section.cards[:n],
            sentence=_sentence(section.kind, min(n, len(section.cards)), section.total),
        )
        for section in gallery
    )


def _accepted(tables: Tables) -> Mapping[str, frozenset[int]]:
    accepted: dict[str, frozenset[int]] = {}
    for row in tables.candidates:
        if row.accepted:
            accepted[row.case] = accepted.get(row.case, frozenset()) | {row.candidate}
    return accepted


def _draw_case(
    case: str,
    items: Sequence[GalleryItem],
    accepted: frozenset[int],
    tables: Tables,
    load: Load,
) -> dict[GalleryItem, GalleryCard]:
    unit = tables.scores.size_unit
    try:
        scene = load(case, accepted)
    except LesionsegError as error:
        _log.warning("No picture of %s: %s", case, error)
        return {each: _card(each, unit, note=error.what) for each in items}
    scores = {row.candidate: row.score for row in tables.candidates if row.case == case}
    return {each: _card(each, unit, scene, scores=scores) for each in items}


def _card(
    item: GalleryItem,
    unit: str,
    scene: Scene | None = None,
    note: str = "",
    scores: Mapping[int, float | None] | None = None,
) -> GalleryCard:
    subject = item.subject
    if isinstance(subject, LesionRow):
        name, caption = text.say("LESION", n=subject.lesion), text.caption_lesion(subject, unit)
    else:
        name = text.say("CANDIDATE", n=subject.candidate)
        caption = text.caption_candidate(subject, unit)
    rank = subject.diameter_mm if item.kind == "missed" else 0.0
    card = GalleryCard(item.case, name, caption, note=note, rank=rank)
    if scene is None:
        return card
    if len(subject.start_vox) != scene.geometry.dims:
        return replace(card, note=text.NO_BOX)
    place, on_accepted = (subject.start_vox, subject.stop_vox), item.kind == "false_positive"
    below = scene.ids_below(*place) if item.kind == "missed" else frozenset()
    views = cut_views(scene, *place, on_accepted=on_accepted, below=below)
    caption += text.scores_below(sorted((scores or {}).get(id) or 0.0 for id in below))
    return replace(card, views=views, caption=caption)


def _section(
    selection: GallerySelection, cards: Mapping[GalleryItem, GalleryCard]
) -> GallerySection:
    kind, total = selection.kind, selection.total
    shown = tuple(cards[item] for item in selection.items)
    sentence = _sentence(kind, len(shown), total)
    return GallerySection(text.GALLERY_TITLES[kind], sentence, shown, kind, total)


def _sentence(kind: str, shown: int, total: int) -> str:
    return text.shown_sentence(shown, total, text.GALLERY_ORDERS[kind])
