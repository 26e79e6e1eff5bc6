"""Cells of vs_nnunet.py as rows of a CSV file.

    python benchmarks/learning/cell_rows.py runs/vs_nnunet/cells/heads__*.json --csv rows.csv

A row is one training. Sizes are diameters in mm, or in pixels of pictures without a pixel size.
"""

import argparse
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.learning.vs_nnunet_table import Cell, limit_at, outlined, recall_at
from lesionseg.io.text import read_json

SIZES = (5.0, 10.0)  # lesions below these diameters are counted
RATE = 1.0  # false positives per case at which they are counted
HIGH_RATE = 4.0  # false positives per case of a second recall


def main() -> None:
    """Read the cells, print their rows and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, nargs="+", help="files OUTPUT/cells/….json")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    options = parser.parse_args()
    rows = pd.DataFrame([row_of(read_json(path)) for path in options.cells])
    print(rows.to_string(index=False))
    if options.csv is not None:
        rows.to_csv(options.csv, index=False, lineterminator="\n")


def row_of(cell: Cell) -> dict[str, Any]:
    """Return the row of a cell."""
    row: dict[str, Any] = {
        "set": cell["set"],
        "tool": cell["tool"],
        "overrides": cell.get("overrides", ""),
        "minutes": round(cell["minutes"], 1),
        "steps": cell["steps"],
        "seed": cell["seed"],
        "tile": "x".join(map(str, cell["tile"])),
        "batch": cell["batch"],
        "features": cell["features"][0],
        "device": cell["device"],
        "accepted_dice": _rounded(cell["dice_accepted"]),
        "best_voxel_dice": _rounded(cell["dice_best"]),
        "AP": _rounded(cell["average_precision"]),
        "CPM": _rounded(cell["cpm"]),
        "FP_per_case": round(cell["false_positives_per_case"], 3),
        "lesions": len(cell["lesions"]),
        "found": sum(lesion["found"] for lesion in cell["lesions"]),
        "found_at_1_FP": found_at(cell, RATE),
        "recall_at_4_FP": _rounded(recall_at(cell, HIGH_RATE)),
        "iou50_at_an_eighth_FP": int(sum(value for _, value in outlined(cell))),
    }
    for size in SIZES:
        small = [lesion for lesion in cell["lesions"] if lesion["diameter_mm"] < size]
        row[f"lesions_under_{size:g}"] = len(small)
        row[f"found_under_{size:g}"] = sum(lesion["found"] for lesion in small)
        row[f"found_under_{size:g}_at_1_FP"] = found_at(cell, RATE, size)
    per_10_lesions = len(cell["lesions"]) / 10 / len(cell["cases"])  # false positives per case
    row["found_at_1_FP_per_10_lesions"] = found_at(cell, per_10_lesions)
    row["found_under_5_at_1_FP_per_10_lesions"] = found_at(cell, per_10_lesions, SIZES[0])
    row |= chosen_numbers(cell)
    if "by_extent" in cell:  # older cells lack it
        best = max(cell["by_extent"], key=lambda scores: scores["dice_accepted"] or 0.0)
        row["found_iou10"] = sum(lesion["iou10"] for lesion in cell["lesions"])
        row["best_extent"] = best["extent"]
        row["accepted_dice_at_best_extent"] = _rounded(best["dice_accepted"])
        row["AP_at_best_extent"] = _rounded(best["average_precision"])
    for name, value in (cell.get("boxes") or {}).items():  # of 2-D sets
        row[f"boxes_{name}"] = _rounded(value)
    return row


def chosen_numbers(cell: Cell) -> dict[str, Any]:
    """Return the numbers at the threshold of training patients who were left out; {} without."""
    chosen = dict(cell.get("chosen") or {})
    if not chosen:
        return {}
    diameters = [lesion["diameter_mm"] for lesion in chosen.pop("lesions") if lesion["found"]]
    chosen |= {"found": len(diameters), "found_under_5": sum(mm < SIZES[0] for mm in diameters)}
    return {f"chosen_{name}": value for name, value in chosen.items()}


def _rounded(value: float | None) -> float | None:
    """Return a score with four digits. None, such as a CPM of too few cases, stays None."""
    return None if value is None else round(value, 4)


def found_at(cell: Cell, rate: float, max_mm: float = inf) -> int:
    """Count the lesions found at a rate of false positives, with the lowest threshold it allows.

    A cell has no false positives below its operating point. If the rate allows all of them, the
    threshold is that of the operating point.

    Args:
        cell: Cell of vs_nnunet.py.
        rate: False positives per case.
        max_mm: Only lesions with a smaller diameter count.

    Returns:
        The number of lesions whose candidate scores higher than the first false positive that is
        one too many.
    """
    limit = limit_at(cell, rate)
    return sum(
        lesion["found"] and lesion["detected_at"] > limit
        for lesion in cell["lesions"]
        if lesion["diameter_mm"] < max_mm
    )


if __name__ == "__main__":
    main()
