"""The cells of vs_nnunet.py as a Markdown table and as benchmark rows."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from benchmarks.common import table

Cell = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Sequence[Cell]]]  # by set, then tool; one a seed
Values = Callable[[Cell], Sequence[tuple[str, float]]]  # of a cell's lesions or cases: group, value

SMALL_MM = 10.0
STRICT = 1 / 8  # false positives a case at which outlines are counted
MIN_GROUPS = 5  # fewer give no interval
OURS = "lesionseg"
HEADER = (
    *("set", "tool", "steps", "Dice, p ≥ ½", "best", "accepted", "recall", "under 10 mm"),
    *("IoU ≥ ½ at ⅛ FP", "recall at ½ / 2 / 4 FP", "AP", "PQ"),
)


def markdown(cells: Cells) -> str:
    """One row a tool and set (means over seeds), then the differences with their intervals."""
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2))]
    lines += [_line(name, made) for name, tools in cells.items() for made in tools.values()]
    said = [
        _sentence(name, tools[OURS], made)
        for name, tools in cells.items()
        for tool, made in tools.items()
        if tool != OURS and OURS in tools
    ]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*body, "", *said]) + "\n"


def _line(name: str, made: Sequence[Cell]) -> tuple[str, ...]:
    def means(*keys: str) -> list[str]:
        return [number(_mean([cell[key] for cell in made])) for key in keys]

    froc = [
        dict(zip(cell["froc"]["fp_per_case"], cell["froc"]["recall"], strict=True)) for cell in made
    ]
    return (
        name,
        made[0]["tool"],
        " ".join(str(cell["steps"]) for cell in made),
        *means("dice_half", "dice_best", "dice_accepted"),
        *(_found(made, most_mm) for most_mm in (inf, SMALL_MM)),
        f"{_mean([sum(v for _, v in outlined(cell)) for cell in made]):.3g}",
        " / ".join(number(_mean([curve.get(r) for curve in froc])) for r in (0.5, 2.0, 4.0)),
        *means("average_precision", "panoptic_quality"),
    )


def _found(made: Sequence[Cell], most_mm: float) -> str:
    hits = [[x["found"] for x in cell["lesions"] if x["diameter_mm"] < most_mm] for cell in made]
    return f"{float(np.mean([sum(h) for h in hits])):.3g} of {len(hits[0])}"


def _sentence(name: str, ours: Sequence[Cell], peer: Sequence[Cell]) -> str:
    compared = {
        "recall under 10 mm": small_found,
        "accepted Dice": _dice,
        "share with IoU ≥ ½ at ⅛ false positive": outlined,
    }
    differences = []
    for what, of in compared.items():
        interval = paired_interval(ours, peer, of)
        said = "no interval (fewer than 5 groups)"
        if interval:
            said = "{:+.3f} ({:+.3f} to {:+.3f})".format(*interval)
        differences.append(f"{what} {said}")
    return f"- `{name}`, ours minus {peer[0]['tool']}: {'; '.join(differences)}."


def small_found(cell: Cell) -> list[tuple[str, float]]:
    """Whether each lesion under 10 mm is found."""
    small = [x for x in cell["lesions"] if x["diameter_mm"] < SMALL_MM]
    return [(x["group"], float(x["found"])) for x in small]


def _dice(cell: Cell) -> list[tuple[str, float]]:
    return [(case["group"], case["dice"]) for case in cell["cases"] if case["dice"] is not None]


def outlined(cell: Cell) -> list[tuple[str, float]]:
    """Whether each lesion is found by a mask of IoU ≥ ½ at a score that few false positives have.

    A lesion that is found at the very score of the first false positive too many does not count.
    """
    allowed = int(STRICT * len(cell["cases"]))
    below = [*cell["false_positives"], *[-inf] * (allowed + 1)][allowed]
    return [
        (x["group"], float(x["iou50"] and (x["detected_at"] or -inf) > below))
        for x in cell["lesions"]
    ]


def paired_interval(
    ours: Sequence[Cell], peer: Sequence[Cell], of: Values, *, replicates: int = 2000
) -> tuple[float, float, float] | None:
    """Mean value, ours minus the peer's, and its 95 % bootstrap interval.

    Whole groups are drawn, the same for both tools and for all seeds. None under 5 groups.
    """
    groups = sorted({group for group, _ in of(ours[0])})
    if len(groups) < MIN_GROUPS:
        return None
    rng, shares = np.random.default_rng(0), np.full(len(groups), 1 / len(groups))
    weights = rng.multinomial(len(groups), shares, size=replicates)
    sums, totals = (np.zeros((2, len(groups))) for _ in range(2))
    for which, made in enumerate((ours, peer)):
        for group, value in (pair for cell in made for pair in of(cell)):
            sums[which, groups.index(group)] += value
            totals[which, groups.index(group)] += 1
    mean = (weights @ sums.T) / (weights @ totals.T)
    drawn = mean[:, 0] - mean[:, 1]
    whole = sums.sum(1) / totals.sum(1)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return float(whole[0] - whole[1]), float(low), float(high)


def report(cells: Cells, accelerator: str) -> None:
    """The rows and the JSON line that every benchmark ends with."""
    rows: list[table.Row] = []
    for name, tools in cells.items():
        for peer in (tool for tool in tools if tool != OURS and OURS in tools):
            for what in ("dice_half", "recall"):
                ours, its = (_mean([c[what] for c in tools[tool]]) for tool in (OURS, peer))
                if ours and its:
                    rows.append(table.RecallRow(f"{what}_{name}", ours, "", peer, its))
    table.print_report(
        "vs_nnunet",
        rows,
        device=table.device_name("cuda" if accelerator == "gpu" else "cpu"),
        versions=table.versions("monai", "pytorch-lightning"),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def number(value: float | None) -> str:
    """With two digits; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"
