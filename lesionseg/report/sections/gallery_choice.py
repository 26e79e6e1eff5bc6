"""Which lesions and false positives are shown: by fixed rules and a seed, none hand-picked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.evaluation.score_sections import SizeGroup
from lesionseg.report.inputs.result_tables import Tables
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
