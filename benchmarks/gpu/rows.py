"""A row of the GPU day, under what it is measured, and the files it is written to at once."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["measured", "failed", "absent", "not reached"]
HEAD = "| row | value | goal | | note |\n|---|---|---|---|---|\n"
NOTE = 300  # characters of a note


@dataclass(frozen=True)
class Row:
    """A number, or why there is none.

    `goal`: what the number is to reach, at most that (`at_least`: or more); None where nothing is
    claimed. `note` says what else must be known, or what failed.
    """

    what: str
    value: float | None = None
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    note: str = ""
    status: Status = "measured"

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a number.

        >>> Row("nms", 9.0, "ms", 10.0).met, Row("busy", 0.9, "", 0.95, at_least=True).met
        (True, False)
        """
        if self.goal is None or self.value is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"met": self.met}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """Back from one line."""
        raw = json.loads(line)
        del raw["met"]
        return cls(**raw)

    def to_markdown(self) -> str:
        """One line of the table."""
        value = self.status if self.value is None else f"{self.value:.4g} {self.unit}".strip()
        sign = "≥" if self.at_least else "≤"
        goal = "" if self.goal is None else f"{sign} {self.goal:g} {self.unit}".strip()
        met = {None: "", True: "met", False: "missed"}[self.met]
        note = self.note.replace("|", "/").replace("\n", " ")
        return f"| `{self.what}` | {value} | {goal} | {met} | {note} |"


def failed(what: str, why: str) -> Row:
    """A row that could not be measured although it should have been."""
    return Row(what, note=why[:NOTE], status="failed")


def absent(what: str, why: str) -> Row:
    """A row whose peer or device is not here."""
    return Row(what, note=why[:NOTE], status="absent")


def guarded(what: str, measure: Callable[[], Row]) -> Row:
    """What `measure` gives, or a failed row: the next one is measured all the same."""
    try:
        return measure()
    except Exception as error:  # too little memory, a kernel that is refused, …
        traceback.print_exc()
        return failed(what, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Setting:
    """Under what a row is measured.

    `rehearse`: small shapes on a CPU. `seconds`: what is left for it. `scratch`: a folder that is
    removed afterwards. `data`: a folder of sets of real scans, None where none was carried.
    """

    device: str
    rehearse: bool
    seconds: float
    scratch: Path
    data: Path | None = None

    def pick(self, full: Any, small: Any) -> Any:
        """The first on a GPU, the second in a rehearsal."""
        return small if self.rehearse else full


class Book:
    """`part<N>.jsonl` and `part<N>.md` in a folder, each row in both as soon as it is there.

    Rows of another run follow those of the runs before it.
    """

    def __init__(self, folder: Path, part: int, about: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lines, self.table = folder / f"part{part}.jsonl", folder / f"part{part}.md"
        self.log = folder / f"part{part}.log"
        said = ", ".join(f"{name} {value}" for name, value in about.items())
        with self.lines.open("a") as lines, self.table.open("a") as table:
            lines.write(json.dumps({"part": part, **about}, ensure_ascii=False) + "\n")
            table.write(f"\nPart {part}: {said}\n\n{HEAD}")
        self._began = time.monotonic()

    def add(self, row: Row) -> None:
        """Write a row, and show it with the seconds since the start."""
        for path, line in ((self.lines, row.to_json()), (self.table, row.to_markdown())):
            with path.open("a") as file:
                file.write(line + "\n")
        print(f"{time.monotonic() - self._began:5.0f} s  {row.to_markdown()}", flush=True)
