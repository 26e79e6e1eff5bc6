"""Which items of two reporting guidelines a report answers: by itself, by study.yaml, or not."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lesionseg.report.inputs.study_file import Study
from lesionseg.report.text import guidelines

State = Literal["automatic", "supplied", "not stated"]


@dataclass(frozen=True)
class Item:
    """One item: its number, what it asks for, and what may answer it.

    One of the `sections` of the report answers it without help; `keys` of study.yaml do when
    filled in. An item with neither belongs into the paper around the report.
    """

    number: str
    asks: str
    sections: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def section(self, there: Collection[str]) -> str:
        """The first of its sections that the report has; empty without any."""
        return next((section for section in self.sections if section in there), "")

    def state(self, study: Study, there: Collection[str]) -> State:
        """How far a report with the sections `there` answers the item."""
        if self.section(there):
            return "automatic"
        stated = any(key in study.answers for key in self.keys)
        return "supplied" if stated else "not stated"


@dataclass(frozen=True)
class Checklist:
    """A guideline's items in its own order."""

    name: str
    source: str
    items: tuple[Item, ...]

    def n(self, state: State, study: Study, there: Collection[str]) -> int:
        """How many items are in a state."""
        return sum(item.state(study, there) == state for item in self.items)


def _items(rows: guidelines.Rows) -> tuple[Item, ...]:
    return tuple(_item(number, asks, answers.split()) for number, asks, answers in rows)


def _item(number: str, asks: str, answers: list[str]) -> Item:
    sections = tuple(answer[1:] for answer in answers if answer.startswith("#"))
    return Item(number, asks, sections, tuple(a for a in answers if not a.startswith("#")))


STARD_AI = Checklist(
    guidelines.STARD_AI_NAME, guidelines.STARD_AI_SOURCE, _items(guidelines.STARD_AI)
)
CLAIM = Checklist(guidelines.CLAIM_NAME, guidelines.CLAIM_SOURCE, _items(guidelines.CLAIM))
CHECKLISTS = (STARD_AI, CLAIM)
