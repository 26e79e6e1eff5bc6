"""Recall of ablation cells, pooled over seeds, as a Markdown table and as benchmark rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from benchmarks.common import table
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.edge_cases import NO_LESION
from lesionseg.evaluation.statistics.estimates import Estimate, proportion

PRESET = PRESETS["lesionseg"]
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Recall:
    """Share of lesions found with 1 false positive a case, of all or of some sizes."""

    number: Estimate
    n: int

    def __str__(self) -> str:
        if self.number.value is None:
            return "–"
        if self.number.ci95 is None:
            return f"{self.number.value:.2f}"
        return f"{self.number.value:.2f} ({self.number.ci95[0]:.2f}–{self.number.ci95[1]:.2f})"


def pooled(cells: Sequence[Cell], from_mm: float = 0.0, to_mm: float | None = None) -> Recall:
    """Recall over the lesions `[from_mm, to_mm)` of all seeds, clustered by patient."""
    lesions = [
        lesion
        for cell in cells
        for lesion in cell["lesions"]
        if from_mm <= lesion["diameter_mm"] < (inf if to_mm is None else to_mm)
    ]
    groups = sorted({lesion["group"] for lesion in lesions})
    row = {group: i for i, group in enumerate(groups)}
    hits, totals = np.zeros(len(groups)), np.zeros(len(groups))
    for lesion in lesions:
        hits[row[lesion["group"]]] += lesion["found"]
        totals[row[lesion["group"]]] += 1
    # every seed judges the same lesions again, which adds no lesion: divide their weight by it
    share = max(len(cells), 1)
    return Recall(proportion(hits / share, totals / share, NO_LESION), len(lesions) // share)


def sizes(cells: Mapping[str, Sequence[Cell]]) -> list[tuple[float, float | None]]:
    """The size groups that hold a lesion."""
    edges = PRESET.size_edges_mm
    bins = list(zip(edges, (*edges[1:], None), strict=True))
    first = next(iter(cells.values()))
    return [(low, high) for low, high in bins if pooled(first, low, high).n]


def markdown(cells: Mapping[str, Sequence[Cell]], caption: str) -> str:
    """The table, one row a loss, under its caption."""
    bins = sizes(cells)
    first = next(iter(cells.values()))
    names = [
        f"{low:g} mm and more" if high is None else f"{low:g} to {high:g} mm" for low, high in bins
    ]
    counts = [pooled(first, low, high).n for low, high in bins]
    titles = [f"{name} (n = {n})" for name, n in zip(names, counts, strict=True)]
    header = ["loss", f"all (n = {pooled(first).n})", *titles, "by seed", "Dice", "AP", "steps"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for loss, made in cells.items():
        recalls = [pooled(made), *(pooled(made, low, high) for low, high in bins)]
        by_seed = ", ".join(_cell(cell["recall"]) for cell in made)
        means = [_mean([cell[key] for cell in made]) for key in ("dice", "average_precision")]
        steps = " ".join(str(cell["steps"]) for cell in made)
        lines.append([loss, *map(str, recalls), by_seed, *map(_cell, means), steps])
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def report(cells: Mapping[str, Sequence[Cell]], reference: str, bench: str) -> None:
    """The rows and the JSON line that every benchmark ends with."""
    rows: list[table.Row] = []
    skipped: dict[str, str] = {}
    parts = {"recall_at_1fp": (0.0, None)} | {
        f"recall_at_1fp_{low:g}mm": (low, high) for low, high in sizes(cells)
    }
    for what, (low, high) in parts.items():
        found = {loss: pooled(made, low, high).number.value or 0.0 for loss, made in cells.items()}
        for peer, value in found.items():
            if reference not in found or peer == reference:
                continue
            if value == 0:
                skipped[f"{what} against {peer}"] = (
                    f"it found nothing, {reference} {found[reference]:.3f}"
                )
            else:
                rows.append(table.RecallRow(what, found[reference], "recall", peer, value))
    table.print_report(
        bench,
        rows,
        device=next(iter(cells.values()))[0]["device"],
        versions=table.versions("monai", "pytorch-lightning", "numba"),
        skipped=skipped,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
