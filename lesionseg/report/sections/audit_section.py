"""References worth a second look: the first rows of a label_audit.csv, with pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lesionseg.errors import LesionsegError
from lesionseg.evaluation.rows import SuspectRow
from lesionseg.evaluation.table_row import read_table
from lesionseg.report import text
from lesionseg.report.figures.pictures import Load, cut_views
from lesionseg.report.figures.slice_views import View
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.sections.gallery import GalleryCard, GallerySection
from lesionseg.report.sections.table_cells import Listing, TableCell

_log = logging.getLogger(__name__)

PICTURES, ROWS = 12, 50  # the most that are shown


@dataclass(frozen=True)
class AuditSection:
    """What the page shows of an audit; no pictures without the scans."""

    words: str
    listing: Listing
    pictures: GallerySection | None


def make_audit_section(
    rows: Sequence[SuspectRow], load: Load | None, unit: str, *, identifiers: bool = False
) -> AuditSection | None:
    """The section, or None without an audit; no pictures without `load`.

    `load` gives a case, by its real name, with its reference. Names of cases are printed with
    `identifiers` alone: otherwise scans are numbered, and label_audit.csv says by the rank which
    they are.
    """
    if not rows:
        return None
    names = shown_names(rows, identifiers=identifiers)
    pictures = None if load is None else draw_suspects(rows, load, unit, names)
    return AuditSection(text.AUDIT_TEXT, list_suspects(rows, unit, names), pictures)


def shown_names(rows: Sequence[SuspectRow], *, identifiers: bool) -> dict[str, str]:
    """What each case is called on the page."""
    cases = dict.fromkeys(row.case for row in rows)
    if identifiers:
        return {case: case for case in cases}
    return {case: text.say("TRAINING_SCAN", n=n) for n, case in enumerate(cases, start=1)}


def read_suspects(path: Path) -> tuple[SuspectRow, ...]:
    """Read a label_audit.csv, `()` when there is none; `ContentError` for a broken one."""
    return read_table(path, SuspectRow) if path.is_file() else ()


def list_suspects(rows: Sequence[SuspectRow], unit: str, names: Mapping[str, str]) -> Listing:
    """The first rows as a table; `names` are those that cases are shown by."""
    lines = tuple(
        (
            TableCell(str(row.rank), row.rank),
            TableCell(names[row.case]),
            TableCell(text.AUDIT_KINDS.get(row.kind, row.kind)),
            TableCell(f"{row.diameter_mm:.1f} {unit}", row.diameter_mm),
            TableCell(", ".join(f"{v:.0f}" for v in row.centre_mm)),
            TableCell(f"{row.suspicion:.2f}", row.suspicion),
        )
        for row in rows[:ROWS]
    )
    return Listing(text.HEADINGS_AUDIT, lines, max(len(rows) - ROWS, 0))


def draw_suspects(
    rows: Sequence[SuspectRow], load: Load, unit: str, names: Mapping[str, str]
) -> GallerySection:
    """The first rows with their pictures, each case read once; a note where there is none."""
    shown = rows[:PICTURES]
    cards: dict[int, GalleryCard] = {}
    for case in dict.fromkeys(row.case for row in shown):
        here = [row for row in shown if row.case == case]
        try:
            scene = load(case, frozenset())
            cards |= {row.rank: _card(row, unit, names[case], scene) for row in here}
        except LesionsegError as error:
            _log.warning("No picture of %s: %s", case, error)
            cards |= {row.rank: _card(row, unit, names[case], note=error.what) for row in here}
    sentence = text.shown_sentence(len(shown), len(rows), text.AUDIT_ORDER)
    return GallerySection(text.AUDIT_TITLE, sentence, tuple(cards[row.rank] for row in shown))


def _card(
    row: SuspectRow, unit: str, name: str, scene: Scene | None = None, note: str = ""
) -> GalleryCard:
    caption = text.caption_suspect(row.kind, f"{row.diameter_mm:.1f} {unit}", row.p)
    views = () if scene is None else _views(row, scene)
    return GalleryCard(name, text.say("RANK", n=row.rank), caption, views, note)


def _views(row: SuspectRow, scene: Scene) -> tuple[View, ...]:
    """Slices through the middle of a box as large as the place."""
    middle = scene.geometry.to_index([row.centre_mm])[0]
    half = np.maximum(row.diameter_mm / 2 / np.asarray(scene.geometry.spacing_mm), 0.5)
    return cut_views(scene, middle - half + 0.5, middle + half + 0.5)
