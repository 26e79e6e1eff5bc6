"""Which items of two reporting guidelines a report answers: by itself, by study.yaml, or not."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lesionseg.report.inputs.study_file import Study
from lesionseg.report.text import study_words as guidelines

State = Literal["automatic", "supplied", "not stated"]


@dataclass(frozen=True)
class Item:
    """One item: its number, what it asks for, and what may answer it.

    Each of `answers` is enough if all its parts are there: `#section` of the report, `=fact` of the
    scores, or a key of study.yaml. An item without any belongs into the paper around the report.
    """

    number: str
    asks: str
    answers: tuple[tuple[str, ...], ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything that may answer it."""
        return tuple(part for answer in self.answers for part in answer)

    def answer(self, study: Study, there: Collection[str]) -> tuple[str, ...]:
        """The parts of the first answer that holds; none without one."""
        known = {*there, *study.answers}
        return next((answer for answer in self.answers if known.issuperset(answer)), ())

    def section(self, study: Study, there: Collection[str]) -> str:
        """The section that answers it; empty without any."""
        parts = self.answer(study, there)
        return next((part[1:] for part in parts if part.startswith("#")), "study" if parts else "")

    def state(self, study: Study, there: Collection[str]) -> State:
        """How far a report answers the item; `there` are its sections and facts."""
        parts = self.answer(study, there)
        if not parts:
            return "not stated"
        return "automatic" if all(part[0] in "#=" for part in parts) else "supplied"


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
    return Item(number, asks, tuple(tuple(answer.split("&")) for answer in answers))


STARD_AI = Checklist(
    guidelines.STARD_AI_NAME, guidelines.STARD_AI_SOURCE, _items(guidelines.STARD_AI)
)
CLAIM = Checklist(guidelines.CLAIM_NAME, guidelines.CLAIM_SOURCE, _items(guidelines.CLAIM))
CHECKLISTS = (STARD_AI, CLAIM)
