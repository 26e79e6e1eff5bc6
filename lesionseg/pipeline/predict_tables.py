"""`predictions.csv`: what became of every case, and how much was found in it, one row each."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from lesionseg.core import Candidate
from lesionseg.io.files import read_csv, write_csv
from lesionseg.io.remote import upload

logger = logging.getLogger(__name__)

TABLE = "predictions.csv"
_ANY_TABLE = re.compile(r"predictions(_\d+_of_\d+)?\.csv")
# of the time, at most this share goes into writing the table again
_WRITING_SHARE = 0.02


@dataclass(frozen=True)
class PredictionRow:
    """One line of `predictions.csv`.

    `group` and `visit`: what the input's table says of the case. `status`: "done" now, "kept" from
    an earlier run because scan, bundle and settings are the same, or "failed" for the reason in
    `message`. `seconds`: of work on this case when it was done. `n_accepted` and `volume_ml`: of
    the accepted candidates; no volume in 2-D and of bare boxes. `peak_memory_mb`: the most that the
    process had held until then. `key` tells whether bundle, settings or files changed since.
    `warning`: in what the scan is unlike the training scans; `input_score`: how much, 1 being the
    limit. `missing`: the channels it lacks; `operating_point`: what accepted its candidates.
    `amounts`: columns `count_<label>`, `ml_<label>`, `zone_count_<zone>` and `zone_ml_<zone>`.
    """

    case: str
    group: str = ""
    visit: str = ""
    status: Literal["done", "kept", "failed"] = "done"
    message: str = ""
    seconds: float = 0.0
    n_candidates: int = 0
    n_accepted: int = 0
    volume_ml: float | None = None
    peak_memory_mb: int = 0
    bundle: str = ""
    key: str = ""
    warning: str = ""
    input_score: float | None = None
    missing: str = ""
    operating_point: str = ""
    amounts: Mapping[str, float] = field(default_factory=dict)

    def to_csv(self) -> dict[str, Any]:
        """The row's cells by column."""
        cells = asdict(self)
        amounts = cells.pop("amounts")
        return {**cells, **amounts}

    @classmethod
    def from_csv(cls, cells: Mapping[str, str]) -> "PredictionRow | None":
        """A row of our own; None for what another program wrote."""
        known = {f.name: f for f in fields(cls) if f.name != "amounts"}
        try:
            values: dict[str, Any] = {name: cells[name] for name in known}
            for name in ("seconds", "volume_ml", "input_score"):
                values[name] = float(values[name]) if values[name] else None
            for name in ("n_candidates", "n_accepted", "peak_memory_mb"):
                values[name] = int(values[name])
            amounts = {n: float(v) for n, v in cells.items() if n not in known and v}
            return cls(**values, amounts=amounts)
        except (KeyError, ValueError):
            return None


def counts_of(
    candidates: Sequence[Candidate], labels: Mapping[int, str], zones: Iterable[str] = ()
) -> dict[str, Any]:
    """`volume_ml` and `amounts` of the accepted candidates; what is named and empty has 0.

    Volumes are left out altogether where one of them is not known.
    """
    accepted = [c for c in candidates if c.accepted]
    with_volume = all(c.volume_ml is not None for c in accepted)
    kinds = {
        "": (labels.values(), [labels.get(c.label, str(c.label)) for c in accepted]),
        "zone_": (zones, [c.zone for c in accepted]),
    }
    amounts: dict[str, float] = {}
    for prefix, (names, places) in kinds.items():
        for name in dict.fromkeys([*names, *filter(None, places)]):
            here = [c for c, place in zip(accepted, places, strict=True) if place == name]
            column = re.sub(r"[^\w.-]+", "_", name)
            amounts[f"{prefix}count_{column}"] = len(here)
            if with_volume:
                volume = sum(c.volume_ml or 0.0 for c in here)
                amounts[f"{prefix}ml_{column}"] = round(volume, 6)
    total = round(sum(c.volume_ml or 0.0 for c in accepted), 6)
    return {"volume_ml": total if with_volume else None, "amounts": amounts}


class PredictOutcome(tuple[PredictionRow, ...]):
    """The rows of one call, one per case, in order of case id, and the folder they went to."""

    folder: Path

    def __new__(cls, rows: Iterable[PredictionRow], folder: Path) -> "PredictOutcome":
        """Keep the folder beside the rows."""
        outcome = super().__new__(cls, rows)
        outcome.folder = folder
        return outcome

    @property
    def exit_status(self) -> int:
        """1 when a case failed, else 0."""
        return int(any(row.status == "failed" for row in self))

    def summary(self) -> list[str]:
        """How many cases were done, kept and failed and why, where results lie, what is next."""
        counts = Counter(row.status for row in self)
        accepted = sum(row.n_accepted for row in self)
        cases = f"{len(self)} case{'s' * (len(self) != 1)}"
        return [
            f"{cases}: {counts['done']} predicted, {counts['kept']} kept from an earlier run, "
            f"{counts['failed']} failed; {accepted} candidates accepted.",
            *(f"{r.case}: {r.message}" for r in self if r.status == "failed"),
            *(f"{r.case}: {r.warning}" for r in self if r.warning),
            f"Masks, candidates and {TABLE}: {self.folder}",
            f"Next: lesionseg evaluate reference=DIR prediction={self.folder} output=scores",
        ]


class PredictionTable:
    """`predictions.csv` in an output folder: the rows of earlier runs, and this run's.

    Each shard has a table of its own, so that no two processes write the same file; what is read
    is the rows of all tables, and what is written without shards is their union. The file is
    always whole. It is written with the first row that is `put` and then rarely enough to cost
    next to nothing, and by `close`; a run killed in between finds the results of a few cases
    without their rows, and predicts these again.
    """

    def __init__(
        self, output: Path, shard_index: int = 0, num_shards: int = 1, *, url: str = ""
    ) -> None:
        self._url = url
        name = TABLE if num_shards == 1 else f"predictions_{shard_index}_of_{num_shards}.csv"
        self.path, self._alone = output / name, num_shards == 1
        self.rows: dict[str, PredictionRow] = {}
        self._own: set[str] = set()
        self._next_write, self._is_written = 0.0, True

    def read(self) -> None:
        """Read the rows of all tables; of the same case the youngest table's, our own winning."""
        entries = list(self.path.parent.iterdir()) if self.path.parent.is_dir() else []
        tables = [path for path in entries if _ANY_TABLE.fullmatch(path.name)]
        for path in sorted(tables, key=lambda p: (p == self.path, p.stat().st_mtime_ns)):
            rows = (PredictionRow.from_csv(cells) for cells in read_csv(path))
            self.rows |= {row.case: row for row in rows if row is not None}
        self._own = set(self.rows) if self._alone else set()

    def put(self, row: PredictionRow) -> None:
        """Add or replace a row; a disk that is full now may have room at the end."""
        self.rows[row.case] = row
        self._own.add(row.case)
        self._is_written = False
        if perf_counter() >= self._next_write:
            try:
                self.close()
            except Exception as error:
                logger.warning("%s cannot be written yet: %r", self.path.name, error)

    def close(self) -> None:
        """Write what is not written yet. Raises `OutputError`."""
        if self._is_written:
            return
        begin = perf_counter()
        try:
            cells = [self.rows[case].to_csv() for case in sorted(self._own)]
            plain = [f.name for f in fields(PredictionRow) if f.name != "amounts"]
            further = sorted({name for row in cells for name in row} - set(plain))
            write_csv(self.path, cells, [*plain, *further])
            upload([self.path], self.path.parent, self._url)
        finally:
            end = perf_counter()
            self._next_write = end + (end - begin) / _WRITING_SHARE
        self._is_written = True
