"""The cells of vs_nnunet.py as a Markdown table and as benchmark rows."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from benchmarks.common import table

Cell = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Sequence[Cell]]]  # by set, then by tool; one cell per seed
# returns group and value of each lesion or case of a cell
Values = Callable[[Cell], Sequence[tuple[str, float]]]

SMALL_MM = 10.0
STRICT = 1 / 8  # false positives per case at which outlines are counted
MIN_GROUPS = 5  # fewer groups have no interval
OURS = "lesionseg"
HEADER = (
    *("set", "tool", "steps", "Dice, p ≥ ½", "best", "accepted", "recall", "under 10 mm"),
    *("IoU ≥ ½ at ⅛ FP", "recall at ½ / 2 / 4 FP", "AP", "PQ"),
)


def markdown(cells: Cells) -> str:
    """Return a row per tool and set (means over seeds), then the differences with intervals."""
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2))]
    lines += [_line(name, made) for name, tools in cells.items() for made in tools.values()]
    differences = [
        _sentence(name, tools[OURS], made)
        for name, tools in cells.items()
        for tool, made in tools.items()
        if tool != OURS and OURS in tools
    ]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*body, "", *differences]) + "\n"


def _line(name: str, made: Sequence[Cell]) -> tuple[str, ...]:
    """Return the row of one tool on one set."""

    def means(*keys: str) -> list[str]:
        return [number(_mean([cell[key] for cell in made])) for key in keys]

    return (
        name,
        made[0]["tool"],
        " ".join(str(cell["steps"]) for cell in made),
        *means("dice_half", "dice_best", "dice_accepted"),
        *(_found(made, max_mm) for max_mm in (inf, SMALL_MM)),
        f"{_mean([sum(v for _, v in outlined(cell)) for cell in made]):.3g}",
        " / ".join(number(_mean([recall_at(cell, r) for cell in made])) for r in (0.5, 2.0, 4.0)),
        *means("average_precision", "panoptic_quality"),
    )


def _found(made: Sequence[Cell], max_mm: float) -> str:
    """Return the mean number of lesions found under `max_mm`, for example "35 of 45"."""
    hits = [[x["found"] for x in cell["lesions"] if x["diameter_mm"] < max_mm] for cell in made]
    return f"{float(np.mean([sum(h) for h in hits])):.3g} of {len(hits[0])}"


def _sentence(name: str, ours: Sequence[Cell], peer: Sequence[Cell]) -> str:
    """Return the differences between lesionseg and another tool, with their intervals."""
    compared = {
        "recall under 10 mm": small_found,
        "accepted Dice": _dice,
        "share with IoU ≥ ½ at ⅛ false positive": outlined,
    }
    differences = []
    for what, of in compared.items():
        interval = paired_interval(ours, peer, of)
        if interval is None:
            differences.append(f"{what} no interval (fewer than 5 groups)")
            continue
        difference, low, high = interval
        differences.append(f"{what} {difference:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"- `{name}`, ours minus {peer[0]['tool']}: {'; '.join(differences)}."


def small_found(cell: Cell) -> list[tuple[str, float]]:
    """Return group and 1.0 or 0.0 (found or not) of each lesion under 10 mm."""
    small = [x for x in cell["lesions"] if x["diameter_mm"] < SMALL_MM]
    return [(x["group"], float(x["found"])) for x in small]


def _dice(cell: Cell) -> list[tuple[str, float]]:
    """Return group and Dice of each case that has a lesion."""
    return [(case["group"], case["dice"]) for case in cell["cases"] if case["dice"] is not None]


def outlined(cell: Cell) -> list[tuple[str, float]]:
    """Return group and 1.0 or 0.0 of each lesion: found with IoU ≥ ½ at ⅛ false positive per case.

    The score of a counted lesion must be higher than that of the first false positive that is one
    too many.
    """
    below = limit_at(cell, STRICT)
    return [
        (x["group"], float(x["iou50"] and (x["detected_at"] or -inf) > below))
        for x in cell["lesions"]
    ]


def limit_at(cell: Cell, rate: float) -> float:
    """Return the score of the first false positive that is one too many for a rate per case.

    It is −∞ if the cell has no such false positive. Candidates must score higher.
    """
    allowed = int(rate * len(cell["cases"]))
    scores = cell["false_positives"]  # the highest first
    return float(scores[allowed]) if allowed < len(scores) else -inf


def recall_at(cell: Cell, rate: float) -> float | None:
    """Return the recall at a rate of false positives per case, None if the FROC curve lacks it."""
    froc = cell["froc"]
    return dict(zip(froc["fp_per_case"], froc["recall"], strict=True)).get(rate)


def paired_interval(
    ours: Sequence[Cell], peer: Sequence[Cell], of: Values, *, replicates: int = 2000
) -> tuple[float, float, float] | None:
    """Compute the mean difference between two tools, and its 95 % bootstrap interval.

    Whole groups are drawn, the same ones for both tools and all seeds. The seeds of each tool are
    drawn, too. Returns None if there are fewer than 5 groups.
    """
    groups = sorted({group for group, _ in of(ours[0])})
    if len(groups) < MIN_GROUPS:
        return None
    rng = np.random.default_rng(0)
    drawn_groups = _draw(rng, len(groups), replicates)
    means, drawn = [], []
    for cells in (ours, peer):
        sums = np.zeros((len(cells), len(groups)))
        totals = np.zeros_like(sums)
        for seed, cell in enumerate(cells):
            for group, value in of(cell):
                sums[seed, groups.index(group)] += value
                totals[seed, groups.index(group)] += 1
        drawn_seeds = _draw(rng, len(cells), replicates)
        numerator, denominator = (
            np.einsum("rs,sg,rg->r", drawn_seeds, values, drawn_groups) for values in (sums, totals)
        )
        drawn.append(numerator / denominator)
        means.append(sums.sum() / totals.sum())
    differences = drawn[0] - drawn[1]
    low, high = np.quantile(differences[np.isfinite(differences)], [0.025, 0.975])
    return float(means[0] - means[1]), float(low), float(high)


def _draw(rng: np.random.Generator, n: int, replicates: int) -> "np.ndarray[Any, Any]":
    """Return how often each of `n` is drawn, `[replicates, n]`."""
    return rng.multinomial(n, np.full(n, 1 / n), size=replicates)


def report(cells: Cells, accelerator: str) -> None:
    """Print the rows and the line of JSON with which each benchmark ends."""
    rows: list[table.Row] = []
    for name, tools in cells.items():
        for peer in (tool for tool in tools if tool != OURS and OURS in tools):
            for what in ("dice_half", "recall"):
                ours = _mean([cell[what] for cell in tools[OURS]])
                peers = _mean([cell[what] for cell in tools[peer]])
                if ours and peers:
                    rows.append(table.RecallRow(f"{what}_{name}", ours, "", peer, peers))
    table.print_report(
        "vs_nnunet",
        rows,
        device=table.device_name("cuda" if accelerator == "gpu" else "cpu"),
        versions=table.versions("monai", "pytorch-lightning"),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def number(value: float | None) -> str:
    """Format a number with two digits; None becomes a dash."""
    return "–" if value is None else f"{value:.2f}"
