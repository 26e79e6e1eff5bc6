"""`predictions.csv`: what became of every case, kept on disk while the cases go by."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

from lesionseg.errors import require
from lesionseg.evaluation.table_row import Named, TableRow, write_table
from lesionseg.io.atomic import read_csv
from lesionseg.io.remote.mirror import send
from lesionseg.pipeline.run.outcome import CommandOutcome

logger = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["done", "kept", "failed"]
TABLE = "predictions.csv"
_ANY_TABLE = re.compile(r"predictions(_\d+_of_\d+)?\.csv")
# of the time, at most this share goes into writing the table again
_WRITING_SHARE = 0.02


@dataclass(frozen=True)
class PredictionRow(TableRow):
    """One line of `predictions.csv`.

    `status`: "done" now, "kept" from an earlier run because scan, bundle and settings are the
    same, or "failed" for the reason in `message`. `seconds`: of work on this case, waiting left
    out, when it was done; `peak_memory_mb`: the most memory that the process had held until then.
    `bundle` tells models apart and `input` scans (keyed with the bundle: the same scan has another
    value elsewhere); `key` tells whether anything changed since, settings included. `warning`: in
    what the scan is unlike the training scans; `input_score`: how much, 1 being the limit.
    `missing`: the channels it lacks; `operating_point`: what accepted its candidates. `count`
    and `ml`: number and volume of the accepted candidates by label, `zone_count` and `zone_ml` by
    zone; no volume in 2-D and of bare boxes. `n_lesions_low` … `volume_ml_high`: as in `StudyRow`.
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
    warning: str = ""
    input_score: float | None = None
    n_lesions_low: int | None = None
    n_lesions_high: int | None = None
    volume_ml_low: float | None = None
    volume_ml_high: float | None = None
    missing: str = ""
    operating_point: str = ""
    count: Named = field(default_factory=dict)
    ml: Named = field(default_factory=dict)
    zone_count: Named = field(default_factory=dict)
    zone_ml: Named = field(default_factory=dict)


class PredictOutcome(tuple[PredictionRow, ...], CommandOutcome):
    """The rows of one call, one per case, in order of case id."""

    @property
    def exit_status(self) -> int:
        """1 when a case failed, else 0."""
        return int(any(row.status == "failed" for row in self))

    def summary(self) -> list[str]:
        """How many cases were done, kept and failed, and why each failed one did."""
        counts = Counter(row.status for row in self)
        accepted = sum(row.n_accepted for row in self)
        cases = f"{len(self)} case{'s' * (len(self) != 1)}"
        first = (
            f"{cases}: {counts['done']} predicted, {counts['kept']} kept from an earlier run, "
            f"{counts['failed']} failed; {accepted} candidates accepted."
        )
        failed = [f"{r.case}: {r.message}" for r in self if r.status == "failed"]
        return [first, *failed, *(f"{r.case}: {r.warning}" for r in self if r.warning)]


@dataclass(frozen=True)
class Shard:
    """The part of the cases that one task of a job array predicts: every `number`-th from `index`.

    Raises `ConfigError` unless 0 ≤ index < number.

    >>> Shard(1, 3).of("abcdefg")
    ['b', 'e']
    """

    index: int = 0
    number: int = 1

    def __post_init__(self) -> None:
        require(
            0 <= self.index < self.number,
            "There is no such shard.",
            where="shard_index",
            seen=f"shard_index={self.index} num_shards={self.number}",
            expected="shard_index from 0 to num_shards - 1",
        )

    def of(self, cases: Sequence[T]) -> list[T]:
        """This shard's cases."""
        return list(cases[self.index :: self.number])

    @property
    def table(self) -> str:
        """The name of its table."""
        return TABLE if self.number == 1 else f"predictions_{self.index}_of_{self.number}.csv"


class PredictionTable:
    """`predictions.csv` in an output folder: the rows of earlier runs, and this run's.

    Each shard has a table of its own, so that no two processes write the same file; what is read
    is the rows of all tables, and what is written without shards is their union. The file is
    always whole. It is written with the first row that is `put` and then rarely enough to cost
    next to nothing, and by `close`; a run killed in between finds the results of a few cases
    without their rows, and predicts these again.
    """

    def __init__(self, output: Path, shard: Shard | None = None) -> None:
        self._shard = shard or Shard()
        self._path = output / self._shard.table
        self.rows = {row.case: row for row in _known_rows(output, self._path)}
        self._own = set(self.rows) if self._shard.number == 1 else set()
        self._next_write, self._is_written = 0.0, True

    def put(self, row: PredictionRow) -> None:
        """Add or replace a row."""
        self.rows[row.case] = row
        self._own.add(row.case)
        self._is_written = False
        if perf_counter() >= self._next_write:
            self._write_or_warn()

    def close(self) -> None:
        """Write what is not written yet. Raises `OutputError`."""
        if self._is_written:
            return
        begin = perf_counter()
        try:
            write_table(self._path, [self.rows[case] for case in sorted(self._own)], PredictionRow)
            send([self._path])
        finally:
            end = perf_counter()
            self._next_write = end + (end - begin) / _WRITING_SHARE
        self._is_written = True

    def _write_or_warn(self) -> None:
        """Write; where that fails now the cases go on, and `close` tries again."""
        try:
            self.close()
        except Exception as error:  # a full disk, or no memory: the rows are still here
            logger.warning("%s cannot be written yet: %r", self._path.name, error)


def _known_rows(output: Path, last: Path) -> Iterator[PredictionRow]:
    """The rows of all tables in a folder; of the same case the youngest table's, `last` winning."""
    entries = output.iterdir() if output.is_dir() else iter(())
    tables = [path for path in entries if _ANY_TABLE.fullmatch(path.name)]
    for path in sorted(tables, key=lambda p: (p == last, p.stat().st_mtime_ns)):
        yield from (row for row in map(parse_row, read_csv(path)) if row is not None)


def parse_row(raw: Mapping[str, str]) -> PredictionRow | None:
    """A row of our own, of this or an earlier version; None for what another program wrote."""
    try:
        return PredictionRow.from_csv(raw) if "key" in raw else None
    except ValueError:
        return None
