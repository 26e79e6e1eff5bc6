"""Which items of two reporting guidelines a report answers: by itself, by study.yaml, or not."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lesionseg.report import text
from lesionseg.report.inputs.study_file import Study

# number and answers of each item; what it asks for is in the catalog, by number
_STARD_AI = """
1* #summary; 2 #summary; 3* intended_use; 4 objectives; 5 design; 6* ethics; 7* eligibility; 8
population; 9 sites dates; 10 sampling; 11* data_source; 12* reference_readers; 13* scanners;
14* acquisition; 15a model; 15b* training_data; 15c threshold; 15d* users; 16a
reference_readers; 16b reference_rationale; 16c #definitions; 17a test_blinding; 17b
reference_blinding; 18 #definitions; 19 indeterminate; 20 #flow; 21 #subgroups #size; 22
sample_size; 23* #why&fairness; 24 #flow&=found; 25* population; 26a #size; 26b alternatives; 27
interval; 28* representativeness; 29* representativeness; 30 #cases; 31 #size&=intervals; 32
harm; 33 limitations; 34 implications; 35* fairness; 36 registration; 37 registration; 38
funding; 39* interests; 40a* availability; 40b* #candidates
"""
_CLAIM = """
1 #provenance; 2 #summary; 3 intended_use; 4 objectives; 5 design; 6 objectives; 7 data_source
sites; 8 eligibility; 9 #provenance; 10 exclusions; 11 deidentification; 12 #flow; 13
acquisition scanners; 14 reference_readers; 15 reference_rationale; 16 reference_readers; 17
reference_tools; 18 reference_consensus; 19 training_data; 20 #provenance&=split; 21
sample_size; 22 model; 23 #provenance; 24 model; 25 #training model; 26 model; 27 model; 28
#definitions; 29 #definitions&=intervals; 30 robustness; 31 explainability; 32 #summary&=test;
33 #summary&=external; 34 registration; 35 #flow&=found; 36 population; 37; 38 #size&=intervals;
39 #why #cases; 40 limitations; 41 implications; 42 registration; 43 availability; 44 funding
"""

State = Literal["automatic", "supplied", "missing"]
STATES: tuple[State, ...] = ("automatic", "supplied", "missing")


@dataclass(frozen=True)
class Item:
    """One item: its number, and what may answer it.

    Each of `answers` is enough if all its parts are there: `#section` of the report, `=fact` of the
    scores, or a key of study.yaml. An item without any belongs into the paper around the report.
    """

    number: str
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
            return "missing"
        return "automatic" if all(part[0] in "#=" for part in parts) else "supplied"


@dataclass(frozen=True)
class Checklist:
    """A guideline's items in its own order; its words stand under `key` in the catalog."""

    key: str
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return text.say(f"{self.key}_NAME")

    @property
    def source(self) -> str:
        """Where it is published."""
        return text.say(f"{self.key}_SOURCE")

    def asks(self, item: Item) -> str:
        """What an item asks for."""
        return str(getattr(text, self.key)[item.number])

    def counts(self, study: Study, there: Collection[str]) -> dict[str, int]:
        """How many items are in each state."""
        states = [item.state(study, there) for item in self.items]
        return {state: states.count(state) for state in STATES}


def _items(rows: str) -> tuple[Item, ...]:
    words = (row.split() for row in rows.split(";"))
    return tuple(Item(n, tuple(tuple(one.split("&")) for one in answers)) for n, *answers in words)


STARD_AI = Checklist("STARD_AI", _items(_STARD_AI))
CLAIM = Checklist("CLAIM", _items(_CLAIM))
CHECKLISTS = (STARD_AI, CLAIM)
