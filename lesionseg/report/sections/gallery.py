"""The gallery: chosen lesions and marks, with their pictures drawn."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lesionseg.errors import LesionsegError
from lesionseg.report import text
from lesionseg.report.figures.pictures import View, cut_views
from lesionseg.report.inputs.result_tables import LesionRow, Tables
from lesionseg.report.inputs.scene import Load, Scene
from lesionseg.report.sections.gallery_choice import Exhibit, Wall

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Card:
    """One exhibit: where, what, and its views; without views `note` says why."""

    case: str
    name: str
    caption: str
    views: tuple[View, ...] = ()
    note: str = ""

    @property
    def reach(self) -> int:
        """How many slices there are to either side of the middle one, at most."""
        return max(max(v.at, len(v.slices) - 1 - v.at) for v in self.views) if self.views else 0

    @property
    def alt(self) -> str:
        """What the picture shows, for those who cannot see it."""
        return f"{self.case}, {self.name}: {self.caption}"


@dataclass(frozen=True)
class Hanging:
    """One kind of exhibits with their cards, and how many there are in all."""

    title: str
    sentence: str
    cards: tuple[Card, ...]
    kind: str = ""


def draw_walls(
    walls: Sequence[Wall], tables: Tables, load: Load, progress: Progress | None = None
) -> tuple[Hanging, ...]:
    """Draw all exhibits, reading each case once; a case that cannot be read leaves a note."""
    cards: dict[Exhibit, Card] = {}
    exhibits = [exhibit for wall in walls for exhibit in wall.exhibits]
    cases = sorted({exhibit.case for exhibit in exhibits})
    accepted = _accepted(tables)
    for done, case in enumerate(cases, start=1):
        here = [exhibit for exhibit in exhibits if exhibit.case == case]
        cards.update(_draw_case(case, here, accepted.get(case, frozenset()), tables, load))
        if progress is not None:
            progress(case, done, len(cases))
    return tuple(_hang(wall, cards) for wall in walls)


def trim(hangings: Sequence[Hanging], walls: Sequence[Wall], n: int) -> tuple[Hanging, ...]:
    """Keep at most `n` cards of each kind, and say how many are not shown."""
    return tuple(
        replace(
            hanging, cards=hanging.cards[:n], sentence=_sentence(wall, min(n, len(hanging.cards)))
        )
        for hanging, wall in zip(hangings, walls, strict=True)
    )


def _accepted(tables: Tables) -> Mapping[str, frozenset[int]]:
    accepted: dict[str, frozenset[int]] = {}
    for row in tables.candidates:
        if row.accepted:
            accepted[row.case] = accepted.get(row.case, frozenset()) | {row.candidate}
    return accepted


def _draw_case(
    case: str,
    exhibits: Sequence[Exhibit],
    accepted: frozenset[int],
    tables: Tables,
    load: Load,
) -> dict[Exhibit, Card]:
    unit = tables.scores.size_unit
    try:
        scene = load(case, accepted)
    except LesionsegError as error:
        _log.warning("No picture of %s: %s", case, error)
        return {each: _card(each, unit, note=error.what) for each in exhibits}
    return {each: _card(each, unit, scene) for each in exhibits}


def _card(exhibit: Exhibit, unit: str, scene: Scene | None = None, note: str = "") -> Card:
    subject = exhibit.subject
    if isinstance(subject, LesionRow):
        name, caption = f"lesion {subject.lesion}", text.caption_lesion(subject, unit)
    else:
        name, caption = f"mark {subject.candidate}", text.caption_candidate(subject, unit)
    card = Card(exhibit.case, name, caption, note=note)
    if scene is None:
        return card
    if len(subject.start_vox) != scene.geometry.dims:
        return replace(card, note=text.NO_BOX)
    on_mark = exhibit.kind == "false_alarm"
    views = cut_views(scene, subject.start_vox, subject.stop_vox, on_mark=on_mark)
    return replace(card, views=views)


def _hang(wall: Wall, cards: Mapping[Exhibit, Card]) -> Hanging:
    shown = tuple(cards[exhibit] for exhibit in wall.exhibits)
    return Hanging(text.GALLERY_TITLES[wall.kind], _sentence(wall, len(shown)), shown, wall.kind)


def _sentence(wall: Wall, shown: int) -> str:
    return text.shown_sentence(shown, wall.total, text.GALLERY_ORDERS[wall.kind])
