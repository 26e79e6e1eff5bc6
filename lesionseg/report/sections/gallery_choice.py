"""Which lesions and marks are shown: fixed rules and a fixed seed, so that none is hand-picked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lesionseg.report.inputs.result_tables import CandidateRow, LesionRow, Tables
from lesionseg.report.inputs.scores_file import SizeGroup

Kind = Literal["missed", "false_alarm", "found"]
SEED = 0


@dataclass(frozen=True)
class Exhibit:
    """One lesion or one false mark to be shown."""

    kind: Kind
    subject: LesionRow | CandidateRow

    @property
    def case(self) -> str:
        """The case it is in."""
        return self.subject.case


@dataclass(frozen=True)
class Wall:
    """What is shown of one kind, and how many of that kind there are."""

    kind: Kind
    exhibits: tuple[Exhibit, ...]
    total: int


@dataclass(frozen=True)
class Limits:
    """Most exhibits of each kind; None: all of them."""

    missed: int | None = 120
    false_alarm: int | None = 60
    found: int | None = 12


ALL = Limits(None, None, None)


def choose_exhibits(tables: Tables, limits: Limits | None = None) -> tuple[Wall, ...]:
    """Missed lesions and found ones from all sizes by turns, false marks by descending score.

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
        _wall("missed", _by_turns(missed, groups), limits.missed),
        _wall("false_alarm", false, limits.false_alarm),
        _wall("found", _by_turns(found, groups), limits.found),
    )


def _wall(kind: Kind, rows: Sequence[LesionRow | CandidateRow], limit: int | None) -> Wall:
    return Wall(kind, tuple(Exhibit(kind, row) for row in rows[:limit]), len(rows))


def _by_turns(rows: Sequence[LesionRow], groups: Sequence[SizeGroup]) -> list[LesionRow]:
    """One of each size group in turn, the largest group first; order within a group is kept."""
    edges = [group.from_mm for group in groups][1:]
    place: dict[int, int] = {}
    keys = []
    for at, row in enumerate(rows):
        group = int(np.searchsorted(edges, row.diameter_mm, side="right"))
        place[group] = place.get(group, -1) + 1
        keys.append((place[group], -group, at))
    return [rows[at] for _, _, at in sorted(keys)]
