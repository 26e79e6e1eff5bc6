"""Recall, average precision and Dice against steps, of cells that vs_nnunet.py has made.

    python benchmarks/learning/learning_curves.py --cells runs/vs_nnunet/cells --figure FIGURE.svg

One row of axes a set: recall at 1 false positive a case, average precision, Dice of what is
accepted; a line a tool through the means of its seeds, a point a seed. Only cells of equal steps
are drawn. The numbers are printed as a table.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionseg.io.atomic import atomic_path, read_json
from lesionseg.report.figures.chart_drawing import ACCENT, INK, draw_svg, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

MEASURES = {
    "recall": "recall at 1 FP",
    "average_precision": "average precision",
    "dice_accepted": "Dice, accepted",
}
TOOLS = {"lesionseg": ACCENT, "nnunet_cut": INK}
ROW_INCHES = 2.1
Cell = Mapping[str, Any]
Curves = Mapping[str, Mapping[str, Mapping[int, Sequence[Cell]]]]  # by set, tool and steps


def main() -> None:
    """Draw the figure and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", help="those drawn; without, all")
    parser.add_argument("--figure", type=Path, help="an SVG file")
    options = parser.parse_args()
    curves = read_curves(options.cells)
    print(markdown(curves))
    if options.figure:
        drawn_sets = {name: curves[name] for name in options.sets or curves}
        drawn = draw_svg(partial(draw, curves=drawn_sets), ROW_INCHES * len(drawn_sets))
        with atomic_path(options.figure) as path:
            path.write_bytes(drawn.svg)


def read_curves(folder: Path) -> Curves:
    """The cells of equal steps, sets and steps in order."""
    curves: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    cells = [read_json(path) for path in sorted(folder.glob("*steps__*.json"))]
    for cell in sorted(cells, key=lambda cell: (cell["set"], cell["steps"])):
        tool = cell["tool"].partition("_model")[0]
        if tool in TOOLS:
            curves[cell["set"]][tool][cell["steps"]].append(cell)
    return curves


def draw(figure: "FigureBase", curves: Curves) -> None:
    """One row of axes a set, one column a measure."""
    grid = figure.subplots(len(curves), len(MEASURES), squeeze=False, sharex="row")
    for row, (name, tools) in zip(grid, curves.items(), strict=True):
        for axes, (key, label) in zip(row, MEASURES.items(), strict=True):
            for tool, made in tools.items():
                draw_line(axes, tool, made, key)
            axes.set_xscale("log")
            steps = sorted({n for made in tools.values() for n in made})
            axes.set_xticks(steps, [f"{n / 1000:g}k" for n in steps], minor=False)
            axes.set_xticks([], minor=True)
            axes.set_xlabel("steps")
            tidy(axes, label)
        row[0].set_title(name.replace("_", " "), loc="left")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)


def draw_line(axes: "Axes", tool: str, made: Mapping[int, Sequence[Cell]], key: str) -> None:
    """A line through the means, a point a seed."""
    colour, steps = TOOLS[tool], list(made)
    axes.plot(steps, [mean(made[n], key) for n in steps], color=colour, label=tool)
    for n in steps:
        axes.plot([n] * len(made[n]), [cell[key] for cell in made[n]], "o", color=colour, ms=3)


def mean(cells: Sequence[Cell], key: str) -> float:
    """Over seeds."""
    return float(np.mean([cell[key] for cell in cells]))


def markdown(curves: Curves) -> str:
    """One row a set, tool and number of steps."""
    lines = [
        f"| set | tool | steps | seeds | {' | '.join(MEASURES.values())} |",
        f"|---|---|---:|---:|{'---:|' * len(MEASURES)}",
    ]
    for name, tools in curves.items():
        for tool, made in tools.items():
            for steps, cells in made.items():
                numbers = " | ".join(f"{mean(cells, key):.3f}" for key in MEASURES)
                lines.append(f"| {name} | {tool} | {steps} | {len(cells)} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
