"""`predictions.csv`: what became of every case, kept on disk while the cases go by."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Literal

from lesionseg.io.atomic import read_csv, write_csv

Status = Literal["done", "kept", "failed"]
TABLE = "predictions.csv"
_STATUSES: Mapping[str, Status] = {"done": "done", "kept": "kept", "failed": "failed"}
# of the time, at most this share goes into writing the table anew
_WRITING_SHARE = 0.02


@dataclass(frozen=True)
class PredictionRow:
    """One line of `predictions.csv`.

    `status`: "done" now, "kept" from an earlier run because scan, bundle and settings are the
    same, or "failed" for the reason in `message`. `seconds`: of work on this case, waiting left
    out, when it was done; `peak_memory_mb`: the most memory that the process had held until then.
    `bundle` tells models apart and `input` scans (keyed with the bundle: the same scan has another
    value elsewhere); `key` tells whether anything changed since, settings included.
    """

    case: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    n_candidates: int = 0
    n_accepted: int = 0
    peak_memory_mb: int = 0
    bundle: str = ""
    input: str = ""
    key: str = ""


class Predicted(tuple[PredictionRow, ...]):
    """The rows of one call, a case each, in order of case id."""

    __slots__ = ()

    @property
    def exit_status(self) -> int:
        """1 when a case failed, else 0."""
        return int(any(row.status == "failed" for row in self))

    def summary(self) -> list[str]:
        """How many cases were done, kept and failed, and why each failed one did."""
        counts = Counter(row.status for row in self)
        accepted = sum(row.n_accepted for row in self)
        first = (
            f"{len(self)} cases: {counts['done']} predicted, {counts['kept']} kept from an "
            f"earlier run, {counts['failed']} failed; {accepted} candidates accepted."
        )
        return [first, *(f"{r.case}: {r.message}" for r in self if r.status == "failed")]


class PredictionTable:
    """`predictions.csv` in an output folder: the rows of earlier runs, and this run's.

    The file is always whole. It is written anew with the first row that is `put` and then seldom
    enough to cost next to nothing, and by `close`; a run killed in between finds the results of a
    few cases without their rows, and predicts these again.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / TABLE
        known = read_csv(self._path) if self._path.is_file() else []
        self.rows = {row.case: row for row in map(parse_row, known) if row is not None}
        self._next_write, self._is_written = 0.0, True

    def put(self, row: PredictionRow) -> None:
        """Add or replace a row."""
        self.rows[row.case] = row
        self._is_written = False
        if perf_counter() >= self._next_write:
            self.close()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._is_written:
            return
        begin = perf_counter()
        columns = [field.name for field in fields(PredictionRow)]
        write_csv(self._path, [asdict(self.rows[case]) for case in sorted(self.rows)], columns)
        end = perf_counter()
        self._is_written, self._next_write = True, end + (end - begin) / _WRITING_SHARE


def parse_row(raw: Mapping[str, str]) -> PredictionRow | None:
    """A row of our own, of this or an earlier version; None for what another program wrote."""
    try:
        return PredictionRow(
            case=raw["case"],
            status=_STATUSES[raw["status"]],
            message=raw["message"],
            seconds=float(raw["seconds"]),
            n_candidates=int(raw["n_candidates"]),
            n_accepted=int(raw["n_accepted"]),
            peak_memory_mb=int(raw.get("peak_memory_mb") or 0),
            bundle=raw.get("bundle", ""),
            input=raw.get("input", ""),
            key=raw["key"],
        )
    except (KeyError, ValueError):
        return None
