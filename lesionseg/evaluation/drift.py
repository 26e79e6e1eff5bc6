"""Drift alarm over many scans: number of first scans, usual range, scans in a row beyond it.

Do new scans and their results still resemble the first ones?

A watched value drifts if it is above the usual range of the first scans for several scans in a row,
or below it. The usual range leaves out the highest and the lowest values, because one odd scan
among the first ones would otherwise hide every change. The chance of a false alarm depends on the
numbers of scans, but not on the distribution of the value: the rule only compares ranks.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf

from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow

N_FIRST = 30  # scans of a model with which its later ones are compared
N_EXTREMES = 4  # highest and lowest values of the first scans that the usual range leaves out
IN_A_ROW = 9  # scans outside the usual range (benchmarks/notes/reliability.md)
# columns of `predictions.csv`, and their meaning
WATCHED: Mapping[str, str] = {
    "input_score": "the difference from the training scans",
    "n_accepted": "the number of accepted candidates",
}


@dataclass(frozen=True)
class Drift:
    """Scans in a row whose value is above the usual range, or below it.

    Attributes:
        rows: The scans.
        sentence: Their number and days, the value and the range.
    """

    rows: Sequence[CaseRow]
    sentence: str


class WatchedValue:
    """A watched value of the scans of one model.

    Args:
        name: One of `WATCHED`.
        rows: The scans of the model, in the order of their days.
        first: The ids of the first scans of the model. Empty if there were too few until now.
        n_extremes: The number of highest, and of lowest, values that the usual range leaves out.

    Attributes:
        rows: The scans that have the value.
        first: The rows of the first scans that have the value. The argument has their ids.
        later: The other rows that have the value.
        low: The smallest value of the usual range; -inf if too few first scans are present.
        high: The largest value of the usual range, or inf.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[CaseRow],
        first: Collection[str],
        n_extremes: int = N_EXTREMES,
    ) -> None:
        self.name = name
        self.rows = [row for row in rows if getattr(row, name) is not None]
        # the argument `first` has ids, the attribute has the rows of these ids that have the value
        self.first = [row for row in self.rows if row.case in first]
        self.later = [row for row in self.rows if row.case not in first]
        # the usual range: the values of the first scans without the extreme ones
        # empty if there are too few first scans; the limits are then infinite
        usual = sorted(self.of(self.first))[n_extremes : len(self.first) - n_extremes]
        self.low = min(usual, default=-inf)
        self.high = max(usual, default=inf)

    def of(self, rows: Sequence[CaseRow]) -> list[float]:
        """Return the watched value (`name`) of each of `rows`, such as their `n_accepted`."""
        return [getattr(row, self.name) for row in rows]

    def find_drifts(self, in_a_row: int = IN_A_ROW) -> list[Drift]:
        """Find sequences of later scans whose values are all above, or all below, the usual range.

        A sequence has at least `in_a_row` successive scans. The ends of the usual range belong to
        the range.
        """
        # 1 above the usual range, −1 below, 0 inside
        sides = [(value > self.high) - (value < self.low) for value in self.of(self.later)]
        drifts = []
        # successive scans on the same side
        for side, indices in groupby(range(len(sides)), sides.__getitem__):
            rows = [self.later[i] for i in indices]
            if side and len(rows) >= in_a_row:
                sentence = (
                    f"{len(rows)} scans in a row, {rows[0].day} to {rows[-1].day}: "
                    f"{WATCHED[self.name]} ({self.name}) is {'above' if side > 0 else 'below'} "
                    f"the usual range of the first scans, {self.low:.3g} to {self.high:.3g}."
                )
                drifts.append(Drift(rows, sentence))
        return drifts


def watch(results: PredictionFolder) -> list[WatchedValue]:
    """Collect the watched values of each model in a folder of results, to detect drift.

    The scans of a model are sorted by day, and scans without a day are left out. The folder keeps
    the ids of the first scans of each model, so that later calls compare with the same scans.

    Returns:
        One `WatchedValue` for each model and each of `WATCHED`. The model with the latest first
        scan comes last.
    """
    models = defaultdict[str, list[CaseRow]](list)
    for row in sorted(results.rows(), key=lambda row: (row.day, row.finished, row.case)):
        if row.day:
            models[row.bundle].append(row)
    first = results.keep_first(N_FIRST, models)
    return [
        WatchedValue(name, rows, first.get(model, ()))
        for model, rows in models.items()
        for name in WATCHED
    ]
