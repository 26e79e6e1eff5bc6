"""The comparison with nnU-Net on real sets: its rows, and the tables of README and docs/results.md.

    python benchmarks/learning/two_arms.py --data DIR/luna_nodules --group 'LUNA_(\\d+)' --seed 0 \\
        --minutes 20 --clock processor --choosing-fraction 0.2 --csv RUNS/real_sets.csv \\
        --output RUNS --arm lesionseg . --arm nnunet . tool=nnunet_cut
    python benchmarks/learning/real_sets.py --collect RUNS

Both tools train at the same time, each for 20 minutes of one core, without a fifth of the training
patients. The threshold is chosen on that fifth, for 1 false positive per case, or for 1 per 10
lesions if that is more. Sets with fewer than five training patients have thresholds of the scored
cases only.

`--collect` copies what the tables need of each cell into `results/real_sets/`, so that each seed
can be trained on another machine. Then, and without `--collect`, these files are written:
`results/real_sets.csv` (a row per training), `results/real_sets_differences.csv` (differences
between the tools, with 95 % intervals by group of cases *and* seed), and the tables of the pages.
"""

import argparse
import sys
from collections.abc import Mapping
from math import inf, prod
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.learning.cell_rows import chosen_numbers, found_at
from benchmarks.learning.vs_nnunet_table import Cell, Values, limit_at, paired_interval
from lesionseg.io.text import read_json, read_text, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = RESULTS / "real_sets.csv"
DIFFERENCES = RESULTS / "real_sets_differences.csv"
CELLS = RESULTS / "real_sets"
PARTS = (  # what is kept of a cell
    *("set", "seed", "device", "training_cpu_minutes", "steps", "batch", "tile", "cases"),
    *("false_positives", "dice_accepted", "dice_best", "average_precision", "chosen"),
)
OF_LESIONS = ("group", "diameter_mm", "found", "detected_at")
SMALL_MM = 5.0
SEEDS = 3  # of each tool; the pages show no set with fewer
TOOLS = ("lesionseg", "nnunet")  # names of the arms
# set: its name for readers, what is counted, and whether it had influence on defaults
SETS = {
    "luna_nodules": ("lung nodules in CT cubes", "cube", True),
    "fracatlas": ("fractures of limbs", "radiograph", False),
    "fracatlas30": ("fractures of limbs, 30 training radiographs", "radiograph", False),
    "nih_nodule_mass": ("nodules and masses on chest radiographs, boxes", "radiograph", True),
    "ms19": ("MS, training on patient 19, test on 26", "hemisphere", True),
    "ms26": ("MS, training on patient 26, test on 19", "hemisphere", True),
    "ms_change": ("MS changes", "scan", True),
}


def main() -> None:
    """Write the rows of all kept cells, and the tables of the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="--output of two_arms.py")
    options = parser.parse_args()
    if options.collect is not None:
        collect(options.collect)
    rows, differences = summarise()
    rows.to_csv(ROWS, index=False, lineterminator="\n")
    differences.to_csv(DIFFERENCES, index=False, lineterminator="\n")
    for page, text in pages(rows, differences).items():
        write_text(page, text)


def collect(runs: Path) -> None:
    """Copy the parts of cells that the tables need from a folder of two_arms.py."""
    for tool in TOOLS:
        for path in sorted((runs / tool / "cells").glob("*.json")):
            cell = read_json(path)
            kept = {name: cell.get(name) for name in PARTS}
            kept["lesions"] = [{key: x[key] for key in OF_LESIONS} for x in cell["lesions"]]
            write_json(CELLS / f"{cell['set']}__{tool}__s{cell['seed']}.json", kept)


def summarise() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per training, and the differences between the tools, of all kept cells."""
    rows, differences = [], []
    for name in SETS:
        cells = {
            tool: [read_json(path) for path in sorted(CELLS.glob(f"{name}__{tool}__s*.json"))]
            for tool in TOOLS
        }
        if not all(cells.values()):
            continue
        rows += [row(tool, cell) for tool, made in cells.items() for cell in made]
        for measure, values in MEASURES.items():
            interval = paired_interval(cells[TOOLS[0]], cells[TOOLS[1]], values)
            if interval is not None:  # otherwise the set has too few groups
                named = {"set": name, "measure": measure}
                numbers = zip(("difference", "low", "high"), interval, strict=True)
                differences.append(named | {key: round(value, 4) for key, value in numbers})
    columns = ["set", "measure", "difference", "low", "high"]  # also if no set has an interval
    return pd.DataFrame(rows), pd.DataFrame(differences, columns=columns)


def row(tool: str, cell: Cell) -> dict[str, Any]:
    """Return the row of a training.

    Thresholds of `at_1_FP` (false positives per case) and `at_1_FP_per_10_lesions` are chosen on
    the scored cases, those of `chosen` on a fifth of the training patients. The latter are empty
    for sets with fewer than five training patients.
    """
    numbers: dict[str, Any] = {
        "set": cell["set"],
        "chose_defaults": SETS[cell["set"]][2],
        "tool": tool,
        "seed": cell["seed"],
        "device": cell["device"],
        "cpu_minutes": round(cell["training_cpu_minutes"], 1),
        "steps": cell["steps"],
        "voxels_seen": cell["steps"] * cell["batch"] * prod(cell["tile"]),
        "cases": len(cell["cases"]),
        "lesions": len(cell["lesions"]),
        "lesions_under_5": sum(x["diameter_mm"] < SMALL_MM for x in cell["lesions"]),
        "dice": cell["dice_accepted"],
        "best_voxel_dice": cell["dice_best"],
        "AP": cell["average_precision"],
    }
    for name, rate in (("at_1_FP", 1.0), ("at_1_FP_per_10_lesions", per_10_lesions(cell))):
        numbers[f"found_{name}"] = found_at(cell, rate)
        numbers[f"found_under_5_{name}"] = found_at(cell, rate, SMALL_MM)
        limit = limit_at(cell, rate)
        n_false = sum(score > limit for score in cell["false_positives"])
        numbers[f"FP_per_case_{name}"] = n_false / len(cell["cases"])
    numbers |= chosen_numbers(cell)
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def per_10_lesions(cell: Cell) -> float:
    """Return the false positives per case that are 1 per 10 lesions."""
    return len(cell["lesions"]) / 10 / len(cell["cases"])


def found_below(max_mm: float) -> Values:
    """Return a function that tells for each lesion under a diameter whether it is found.

    The threshold is that of the training patients who were left out. Sets that are too small for
    this have a threshold of the scored cases, for 1 false positive per case or per 10 lesions.
    """

    def values(cell: Cell) -> list[tuple[str, float]]:
        limit = limit_at(cell, max(1.0, per_10_lesions(cell)))
        lesions = cell["lesions"]
        found = [x["found"] and x["detected_at"] > limit for x in lesions]
        if cell["chosen"]:
            lesions = cell["chosen"]["lesions"]
            found = [x["found"] for x in lesions]
        pairs = zip(lesions, found, strict=True)
        return [(x["group"], float(hit)) for x, hit in pairs if x["diameter_mm"] < max_mm]

    return values


MEASURES: Mapping[str, Values] = {
    "dice": lambda cell: [(c["group"], c["dice"]) for c in cell["cases"] if c["dice"] is not None],
    "share_found": found_below(inf),
    "share_found_under_5": found_below(SMALL_MM),
}


def pages(rows: pd.DataFrame, differences: pd.DataFrame) -> dict[Path, str]:
    """Return README and docs/results.md with the tables of these rows and differences."""
    differences = differences.set_index(["set", "measure"])
    short = [
        "| found, at false positives (FP) per image; Dice | lesionseg | nnU-Net |",
        "|---|---:|---:|",
    ]
    long = [
        "| | lesionseg | nnU-Net | mean difference (95 % interval) |",
        "|---|---:|---:|---|",
    ]
    for name, of_set in rows.groupby("set", sort=False):
        if of_set["tool"].value_counts().min() < SEEDS:
            continue
        lines = measured(str(name), *(of_set[of_set["tool"] == tool] for tool in TOOLS))
        short += short_rows(str(name), of_set.iloc[0], lines)
        for measure, (what, ours, peer) in lines.items():
            interval = ""
            if (name, measure) in differences.index:
                of = differences.loc[(name, measure)]
                interval = f"{of['difference']:+.3f} ({of['low']:.3f} to {of['high']:.3f})"
            long.append(f"| {what} | {ours} | {peer} | {interval.replace('-', '−')} |")
    tables = {ROOT / "README.md": short, ROOT / "docs" / "results.md": long}
    return {page: with_table(read_text(page), lines) for page, lines in tables.items()}


def measured(name: str, ours: pd.DataFrame, peer: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the lines of a set: name of the measure → what was measured, our value, nnU-Net's.

    Sets without lesions under 5 mm, or without outlines, lack the line.

    Args:
        name: The set.
        ours: A row per seed.
        peer: The rows of the other tool.
    """
    title, case, _ = SETS[name]
    first = ours.iloc[0]
    tools = (ours, peer)
    # the threshold of other patients if there are enough
    of_scored = (
        "{}_at_1_FP_per_10_lesions" if first["lesions"] > 10 * first["cases"] else "{}_at_1_FP"
    )
    at = "chosen_{}" if pd.notna(first["chosen_found"]) else of_scored
    found, small, rate = map(at.format, ("found", "found_under_5", "FP_per_case"))
    what = (
        f"{title}, {first['cases']} {case}s: found of {first['lesions']}, at false positives "
        f"per {case}"
    )
    at_rate = (f"{spread(one[found], 'g')} at {one[rate].median():.2g}" for one in tools)
    lines: dict[str, tuple[str, ...]] = {"share_found": (what, *at_rate)}
    if n_small := first["lesions_under_5"]:
        counts = (spread(one[small], "g") for one in tools)
        lines["share_found_under_5"] = (f"– under 5 mm, of {n_small}", *counts)
    if pd.notna(first["dice"]):
        lines["dice"] = ("– Dice of detections", *(spread(one["dice"], ".3f") for one in tools))
    lines["AP"] = ("– average precision", *(spread(one["AP"], ".3f") for one in tools))
    return lines


def short_rows(name: str, first: pd.Series, lines: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the rows of a set in README, from the lines of `measured` and a row of the set."""
    title, _, chose_defaults = SETS[name]
    cells = [f"{text} FP" for text in lines["share_found"][1:]]
    if "dice" in lines:
        medians = [text.split()[0] for text in lines["dice"][1:]]
        cells = [f"{found}; {dice}" for found, dice in zip(cells, medians, strict=True)]
    remark = " (influenced defaults)" if chose_defaults else ""
    rows = [(f"{title}{remark}, of {first['lesions']}", *cells)]
    if "share_found_under_5" in lines:
        rows.append(lines["share_found_under_5"])
    return [f"| {' | '.join(row)} |" for row in rows]


def spread(values: pd.Series, form: str) -> str:
    """Return the median of the seeds, with the lowest and the highest value if they differ."""
    low, middle, high = (f"{value:{form}}" for value in values.quantile([0, 0.5, 1]))
    return middle if low == high else f"{middle} ({low} to {high})"


def with_table(page: str, lines: list[str]) -> str:
    """Return a page with other lines between the two comments that enclose the table."""
    begin, end = "<!-- real_sets.py -->\n", "<!-- end -->\n"
    if begin not in page:
        sys.exit(f"A page lacks the comments that enclose the table: {begin}{end}")
    before, rest = page.split(begin)
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1]


if __name__ == "__main__":
    main()
