"""The cells of vs_nnunet.py as a Markdown table and as benchmark rows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import table

from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.edge_cases import MIN_GROUPS
from lesionseg.evaluation.statistics.bootstrap import draw_groups

Cell = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Sequence[Cell]]]  # by set, then tool; one a seed

SMALL_MM = 10.0
OURS = "lesionseg"
LEAST_LESIONS = 20  # fewer small lesions are described, not compared
HEADER = (
    *("set", "tool", "steps", "Dice, p ≥ ½", "Dice, accepted"),
    *("recall", "under 10 mm", "by size", "recall at ½ / 2 / 4 FP", "AP"),
)


def markdown(cells: Cells) -> str:
    """One row a tool and set (means over seeds), then what the comparison says."""
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2))]
    lines += [_line(name, made) for name, tools in cells.items() for made in tools.values()]
    said = [sentence for name, tools in cells.items() for sentence in _sentences(name, tools)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*body, "", *said]) + "\n"


def _line(name: str, made: Sequence[Cell]) -> tuple[str, ...]:
    froc = {rate: _mean([_recall_at(cell, rate) for cell in made]) for rate in (0.5, 2.0, 4.0)}
    return (
        name,
        made[0]["tool"],
        " ".join(str(cell["steps"]) for cell in made),
        number(_mean([cell["dice_half"] for cell in made])),
        number(_mean([cell["dice_accepted"] for cell in made])),
        found_of_size(made, 0, inf),
        found_of_size(made, 0, SMALL_MM),
        _by_size(made),
        " / ".join(number(value) for value in froc.values()),
        number(_mean([cell["average_precision"] for cell in made])),
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
    interval = paired_interval(ours, peer)
    said = "no interval (fewer than 5 groups)" if interval is None else _signed(*interval)
    weight = "" if n >= LEAST_LESIONS else f" {n} such lesions: descriptive."
    return (
        f"- `{name}`, {peer[0]['tool']}: of {n} lesions under 10 mm ours misses {a:.3g}, "
        f"it {b:.3g} ({ratio}); difference of recall {said}.{weight}"
    )


def _small_misses(made: Sequence[Cell]) -> float:
    missed = [sum(not lesion["found"] for lesion in _of_size(cell, 0, SMALL_MM)) for cell in made]
    return float(np.mean(missed))


def paired_interval(
    ours: Sequence[Cell], peer: Sequence[Cell], *, replicates: int = 2000
) -> tuple[float, float, float] | None:
    """Recall of lesions under 10 mm, ours minus the peer's, and its 95 % bootstrap interval.

    Whole groups are drawn, the same for both tools and for all seeds. None under 5 groups.
    """
    groups = sorted({lesion["group"] for lesion in _of_size(ours[0], 0, SMALL_MM)})
    if len(groups) < MIN_GROUPS:
        return None
    weights = draw_groups(len(groups), replicates, np.random.default_rng(0))
    hits, totals = (np.zeros((2, len(groups))) for _ in range(2))
    for which, made in enumerate((ours, peer)):
        for cell in made:
            for lesion in _of_size(cell, 0, SMALL_MM):
                place = groups.index(lesion["group"])
                hits[which, place] += lesion["found"]
                totals[which, place] += 1
    recall = (weights @ hits.T) / (weights @ totals.T)
    drawn = recall[:, 0] - recall[:, 1]
    whole = hits.sum(1) / totals.sum(1)
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


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
