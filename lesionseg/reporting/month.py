"""The page of a model in use: does this month differ from the first scans?"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionseg.evaluation.drift import IN_A_ROW, N_FIRST, WATCHED, WatchedValue
from lesionseg.io.results.row import CaseRow
from lesionseg.reporting.charts import ACCENT, FOUND, Chart, new_figure
from lesionseg.reporting.rendering import write_page

_DAYS = 30  # of a month
_HIGHEST = 6  # largest value that a chart shows, in units of the largest one of the first scans


def write_month_page(path: Path, rows: Sequence[CaseRow], watched: Sequence[WatchedValue]) -> None:
    """Write the page of a model in use atomically.

    Args:
        path: The file to write.
        rows: The scans, also failed ones, in the order of their days.
        watched: The watched values of the scans with results, see `watch`. At least one.

    Raises:
        OutputError: If the file cannot be written.
    """
    weeks = defaultdict[str, list[CaseRow]](list)
    for row in rows:
        weeks[f"{date.fromisoformat(row.day):%G-W%V}"].append(row)
    before = str(date.fromisoformat(rows[-1].day) - timedelta(_DAYS))
    write_page(
        path,
        "month.html.j2",
        rows=rows,
        before=before,
        watched=watched,
        drifts=[drift for value in watched for drift in value.find_drifts()],
        month=_summarise("last 30 days", [row for row in rows if row.day > before]),
        first=_summarise(f"first {N_FIRST} scans", watched[-1].first),
        weeks=[_summarise(week, weeks[week]) for week in sorted(weeks, reverse=True)],
        charts=[_draw(name, watched, (rows[0].day, rows[-1].day)) for name in WATCHED],
        n_first=N_FIRST,
        in_a_row=IN_A_ROW,
    )


def _summarise(name: str, rows: Sequence[CaseRow]) -> dict[str, Any]:
    """Return a line of the table: numbers of scans, mean of markings, median of input scores."""
    n = Counter(row.status for row in rows)
    values = pd.DataFrame([row.cells() for row in rows], columns=[*WATCHED], dtype=float)
    return {
        "": name,
        "scans": len(rows),
        **{status: n[status] for status in ("failed", "warned", "blank")},
        "withheld": sum(row.is_done and row.message != "" for row in rows),
        "markings per scan": values["n_accepted"].mean(),
        "difference": values["input_score"].median(),
    }


def _draw(name: str, watched: Sequence[WatchedValue], span: tuple[str, str]) -> Chart:
    """Draw a value of all scans by day, and the range of the first scans of each model.

    `span`: the first and the last day.
    """
    figure, axes = new_figure()
    for value in watched:
        if value.name == name and value.rows:
            days = np.array([row.day for row in value.rows], "datetime64")
            values = np.minimum(value.of(value.rows), _HIGHEST * max(value.high, 1))
            is_outside = np.array(value.sides) != 0
            axes.plot(days, values, "o", color=FOUND, markersize=3)
            axes.plot(days[is_outside], values[is_outside], "o", color=ACCENT, markersize=3)
            if value.first:
                axes.fill_between(days[[0, -1]], value.low, value.high, color=FOUND, alpha=0.15)
    ticks = pd.date_range(*span, periods=4)
    axes.set_xticks(ticks, ticks.strftime("%Y-%m-%d"))
    axes.set_ylim(bottom=0)
    title = WATCHED[name].removeprefix("the ").capitalize()
    return Chart(title, f"{name} of each scan in predictions.csv.", figure)
