"""The month page: periods, chart and table of a model in use against the first scans."""

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionseg.errors import DatasetError
from lesionseg.evaluation.drift import IN_A_ROW, N_EXTREMES, N_FIRST, WATCHED, WatchedValue, watch
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow
from lesionseg.reporting.charts import ACCENT, FOUND, Chart, new_figure
from lesionseg.reporting.rendering import write_page

_DAYS = 30  # of a month
_MAX_RELATIVE = 5  # largest value that a chart shows, in units of the end of the usual range
_TITLES = {"input_score": "Difference from the training scans", "n_accepted": "Markings per scan"}


def write_month_page(path: Path, results: PredictionFolder) -> list[str]:
    """Write the page that monitors a model in use, atomically.

    The page compares the scans of the last 30 days with the first scans of the model, and reports
    drifts of the input or of the number of markings.

    Args:
        path: The file to write.
        results: An output folder of `predict`.

    Returns:
        A sentence for each drift since the first scans.

    Raises:
        DatasetError: If the folder has no results of `predict`.
        OutputError: If the file cannot be written.
    """
    # the watched values of each model; the model with the latest first scan comes last
    watched = watch(results)
    if not watched:
        raise DatasetError(
            f"{results.path}: the folder has no results of predict. Masks of other programs state "
            "neither model nor scan. Name an output folder of predict."
        )
    # all scans by day, with those that failed, for the table of weeks and months
    rows = [row for row in (*results.rows(), *results.failures()) if row.day]
    rows.sort(key=lambda row: row.day)
    # the scans by ISO week, such as 2026-W05
    weeks = groupby(rows, lambda row: f"{date.fromisoformat(row.day):%G-W%V}")
    # the last day before the 30 days that end with the latest scan; ISO days compare as text
    before = str(date.fromisoformat(rows[-1].day) - timedelta(days=_DAYS))
    drifts = [drift for value in watched for drift in value.find_drifts()]
    write_page(
        path,
        "month.html.j2",
        rows=rows,
        before=before,
        watched=watched,
        drifts=drifts,
        month=_summarise("last 30 days", [row for row in rows if row.day > before]),
        first=_summarise(f"first {N_FIRST} scans", watched[-1].first),  # of the latest model
        weeks=[_summarise(week, [*group]) for week, group in weeks][::-1],  # the latest first
        charts=[
            _draw(values_of_name)
            for name in WATCHED
            if (values_of_name := [value for value in watched if value.name == name and value.rows])
        ],
        n_first=N_FIRST,
        n_extremes=N_EXTREMES,
        in_a_row=IN_A_ROW,
    )
    return [drift.sentence for drift in drifts]


def _summarise(name: str, rows: Sequence[CaseRow]) -> dict[str, Any]:
    """Return one row of the page's table, which summarises the scans of a week or another period.

    The row has the name (column ""), the numbers of scans in total, failed, warned, blank and with
    withheld results, the mean number of markings per scan, and the median input score
    ("difference").

    Args:
        name: The name of the period.
        rows: The scans of the period.
    """
    n_of_status = Counter(row.status for row in rows)
    values = pd.DataFrame([row.cells() for row in rows], columns=[*WATCHED], dtype=float)
    return {
        "": name,
        "scans": len(rows),
        "markings per scan": values["n_accepted"].mean(),
        "difference": values["input_score"].median(),
        **{status: n_of_status[status] for status in ("failed", "warned", "blank")},
        # the message of a predicted scan states why its DICOM results are missing
        "withheld": sum(row.is_done and row.message != "" for row in rows),
    }


def _draw(values: Sequence[WatchedValue]) -> Chart:
    """Draw one watched value, such as the markings per scan, over the days of all scans.

    Each model has a shaded band, its usual range. Scans in a drift are orange. Values above
    `_MAX_RELATIVE` times the upper end of the usual range are drawn at that height, so that one
    odd scan does not flatten the chart.

    Args:
        values: The value for each model, all with the same name.
    """
    figure, axes = new_figure()
    for value in values:
        days = np.array([row.day for row in value.rows], "datetime64")
        # if the usual range ends at 0, heights are limited as if it ended at 1
        heights = np.minimum(value.of(value.rows), _MAX_RELATIVE * (value.high or 1))
        drifting = {row.case for drift in value.find_drifts() for row in drift.rows}
        colours = [ACCENT if row.case in drifting else FOUND for row in value.rows]
        axes.scatter(days, heights, s=8, c=colours)
        if value.first:  # without first scans, there is no usual range
            axes.fill_between(days[[0, -1]], value.low, value.high, color=FOUND, alpha=0.15)
    ticks = pd.date_range(values[0].rows[0].day, values[-1].rows[-1].day, periods=4)
    axes.set_xticks(ticks, ticks.strftime("%Y-%m-%d"))
    axes.set_ylim(bottom=0)
    name = values[0].name
    return Chart(_TITLES[name], f"The column {name} of predictions.csv.", figure)
