"""The cells of vs_nnunet.py as a Markdown table and as benchmark rows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from benchmarks.common import table
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.edge_cases import MIN_GROUPS
from lesionseg.evaluation.statistics.bootstrap import draw_groups

Cell = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Sequence[Cell]]]  # by set, then tool; one a seed

SMALL_MM = 10.0
OUTLINED_MM = 8.0  # Dice of what is accepted is shown for smaller lesions too
STRICT = 1 / 8  # false positives a case at which outlines are counted
OURS = "lesionseg"
LEAST_LESIONS = 20  # fewer small lesions are described, not compared
HEADER = (
    *("set", "tool", "steps", "Dice, p ≥ ½", "best", "accepted", "under 8 mm"),
    *("recall", "under 10 mm", "IoU ≥ ½ at ⅛ FP", "by size", "recall at ½ / 2 / 4 FP", "AP"),
    *("PQ", "lesion-wise Dice"),
)
Values = Callable[[Cell], Sequence[tuple[str, float]]]  # of a cell's lesions or cases: group, value


def markdown(cells: Cells) -> str:
    """One row a tool and set (means over seeds), then what the comparison says."""
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2))]
    lines += [_line(name, made) for name, tools in cells.items() for made in tools.values()]
    said = [sentence for name, tools in cells.items() for sentence in _sentences(name, tools)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*body, "", *said]) + "\n"


def _line(name: str, made: Sequence[Cell]) -> tuple[str, ...]:
    froc = {rate: _mean([_recall_at(cell, rate) for cell in made]) for rate in (0.5, 2.0, 4.0)}

    def mean(key: str) -> str:
        return number(_mean([cell[key] for cell in made]))

    return (
        name,
        made[0]["tool"],
        " ".join(str(cell["steps"]) for cell in made),
        *(mean(key) for key in ("dice_half", "dice_best", "dice_accepted")),
        number(_mean([value for cell in made for _, value in _small_dice(cell)])),
        found_of_size(made, 0, inf),
        found_of_size(made, 0, SMALL_MM),
        f"{_mean([sum(v for _, v in _outlined(cell)) for cell in made]):.3g}",
        _by_size(made),
        " / ".join(number(value) for value in froc.values()),
        *(mean(key) for key in ("average_precision", "panoptic_quality", "matched_lesion_dice")),
    )


def _by_size(made: Sequence[Cell]) -> str:
    edges = (*PRESETS["lesionseg"].size_edges_mm, inf)
    parts = [
        f"{low:g}–{'' if high == inf else f'{high:g}'}: {found_of_size(made, low, high)}"
        for low, high in pairwise(edges)
        if _of_size(made[0], low, high)
    ]
    return "; ".join(parts)


def found_of_size(made: Sequence[Cell], low: float, high: float) -> str:
    """`found of all`, of one seed, or the mean over seeds."""
    hits = [sum(lesion["found"] for lesion in _of_size(cell, low, high)) for cell in made]
    return f"{float(np.mean(hits)):.3g} of {len(_of_size(made[0], low, high))}"


def _of_size(cell: Cell, low: float, high: float) -> list[Mapping[str, Any]]:
    return [lesion for lesion in cell["lesions"] if low <= lesion["diameter_mm"] < high]


def _recall_at(cell: Cell, rate: float) -> float | None:
    froc = cell["froc"]
    return dict(zip(froc["fp_per_case"], froc["recall"], strict=True)).get(rate)


def _sentences(name: str, tools: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Ours against each of nnU-Net's plans: misses of small lesions, and the recall's interval."""
    peers = [tool for tool in tools if tool != OURS]
    return [_sentence(name, tools[OURS], tools[peer]) for peer in peers if OURS in tools]


def _sentence(name: str, ours: Sequence[Cell], peer: Sequence[Cell]) -> str:
    a, b = (_small_misses(made) for made in (ours, peer))
    n = len(_of_size(ours[0], 0, SMALL_MM))
    ratio = f"{a / b:.2f}×" if b else "–"
    compared = {
        "recall of them": _small_found,
        "accepted Dice": _dice,
        "share with IoU ≥ ½ at ⅛ false positive": _outlined,
    }
    differences = "; ".join(
        f"difference of {what} {_signed(paired_interval(ours, peer, of))}"
        for what, of in compared.items()
    )
    weight = "" if n >= LEAST_LESIONS else f" {n} such lesions: descriptive."
    return (
        f"- `{name}`, {peer[0]['tool']}: of {n} lesions under 10 mm ours misses {a:.3g}, "
        f"it {b:.3g} ({ratio}); {differences}.{weight}"
    )


def _small_found(cell: Cell) -> list[tuple[str, float]]:
    return [(lesion["group"], float(lesion["found"])) for lesion in _of_size(cell, 0, SMALL_MM)]


def _dice(cell: Cell) -> list[tuple[str, float]]:
    return [(case["group"], case["dice"]) for case in cell["cases"] if case["dice"] is not None]


def _small_dice(cell: Cell) -> list[tuple[str, float]]:
    """Of the cases whose lesions are all small."""
    largest: dict[str, float] = {}
    for lesion in cell["lesions"]:
        largest[lesion["case"]] = max(largest.get(lesion["case"], 0), lesion["diameter_mm"])
    small = [case for case in cell["cases"] if largest.get(case["case"], inf) < OUTLINED_MM]
    return _dice({"cases": small})


def _outlined(cell: Cell) -> list[tuple[str, float]]:
    """Whether each lesion is found by a mask of IoU ≥ ½ at a score that few false positives have.

    A lesion that is found at the very score of the first false positive too many does not count.
    """
    allowed = int(STRICT * len(cell["cases"]))
    below = [*cell["false_positives"], *[-inf] * (allowed + 1)][allowed]
    return [
        (
            x["group"],
            float(x["iou50"] and x["detected_at"] is not None and x["detected_at"] > below),
        )
        for x in cell["lesions"]
    ]


def _small_misses(made: Sequence[Cell]) -> float:
    missed = [sum(not lesion["found"] for lesion in _of_size(cell, 0, SMALL_MM)) for cell in made]
    return float(np.mean(missed))


def paired_interval(
    ours: Sequence[Cell], peer: Sequence[Cell], of: Values, *, replicates: int = 2000
) -> tuple[float, float, float] | None:
    """Mean value, ours minus the peer's, and its 95 % bootstrap interval.

    Whole groups are drawn, the same for both tools and for all seeds. None under 5 groups.
    """
    groups = sorted({group for group, _ in of(ours[0])})
    if len(groups) < MIN_GROUPS:
        return None
    weights = draw_groups(len(groups), replicates, np.random.default_rng(0))
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
    skipped: dict[str, str] = {}
    for name, tools in cells.items():
        for peer in (tool for tool in tools if tool != OURS and OURS in tools):
            for what, of in _numbers(name).items():
                ours, its = (_mean([of(c) for c in tools[tool]]) for tool in (OURS, peer))
                if its and ours is not None:
                    rows.append(table.RecallRow(what, ours, "", peer, its))
                else:
                    skipped[f"{what} against {peer}"] = (
                        f"{peer} {its or 0:.3f}, ours {ours or 0:.3f}"
                    )
    table.print_report(
        "vs_nnunet",
        rows,
        device=table.device_name("cuda" if accelerator == "gpu" else "cpu"),
        versions=table.versions("monai", "pytorch-lightning"),
        skipped=skipped,
    )


def _numbers(name: str) -> dict[str, Any]:
    def small(cell: Cell) -> float | None:
        lesions = _of_size(cell, 0, SMALL_MM)
        return sum(lesion["found"] for lesion in lesions) / len(lesions) if lesions else None

    return {
        f"dice_{name}": lambda cell: cell["dice_half"],
        f"recall_1fp_{name}": lambda cell: cell["recall"],
        f"recall_1fp_under_10mm_{name}": small,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def number(value: float | None) -> str:
    """With two digits; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def _signed(interval: tuple[float, float, float] | None) -> str:
    if interval is None:
        return "no interval (fewer than 5 groups)"
    value, low, high = interval
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
