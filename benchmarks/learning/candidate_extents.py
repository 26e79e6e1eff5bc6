"""Where candidates end and which are one: cells of vs_nnunet.py judged by other rules.

    python benchmarks/learning/candidate_extents.py --data DIR [DIR …] --cells runs/vs_nnunet

A candidate ends where p falls below its peak divided by the rule's ratio and below the rule's
extent (1: by the peak alone); peaks below the rule's join times the pass between them are one
candidate (1: none are). Every cell's log-odds are judged anew with each of them, all else being the
same, at 1 false positive a case on the judged cases. These are the cases of the test: what is
chosen by this table flatters there.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import inf
from pathlib import Path

from benchmarks.learning.held_out import held_out, lesions_found
from benchmarks.learning.vs_nnunet import Kept, judge_kept
from benchmarks.learning.vs_nnunet_table import SMALL_MM, found_of_size, number
from lesionseg.io.atomic import write_text
from lesionseg.pipeline.dataset.survey import Survey, take_survey
from lesionseg.plan.candidate_rule import CandidateRule
from lesionseg.plan.plan import Plan

HEADER = ("cell", "ratio", "extent", "join", "recall", "under 10 mm", "Dice, accepted", "AP")


def main() -> None:
    """Judge every finished cell of the sets by every ratio; print and write the table."""
    options = arguments()
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    for root in options.data:
        lines += lines_of(root.resolve(), options)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if options.table:
        write_text(options.table, text)
    print(f"\n{text}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--cells", type=Path, default=Path("runs/vs_nnunet"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.6, 2.5])
    parser.add_argument("--extents", type=float, nargs="+", default=[0.35, 1.0])
    parser.add_argument("--joins", type=float, nargs="+", default=[1.0, 20.0])
    parser.add_argument("--table", type=Path, help="where a Markdown table goes")
    return parser.parse_args()


def lines_of(root: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The lines of one set, cell by cell."""
    cells: Path = options.cells
    plan = Plan.from_json((cells / "plans" / root.name / "plan.json").read_text())
    held = held_out(root, cells / "cache")
    found = held.as_development(take_survey(held.data, seed=0))
    for folder in sorted((cells / "runs").glob(f"{root.name}__*")):
        if (folder / "scores.json").is_file():
            for ratio, extent, join in product(options.ratios, options.extents, options.joins):
                rule = replace(plan.candidate_rule, ratio=ratio, extent=extent, join=join)
                yield judged(folder, found, plan, rule)


def judged(folder: Path, found: Survey, plan: Plan, rule: CandidateRule) -> tuple[str, ...]:
    """A cell's line under one rule; the cell's own files are left alone."""
    kept = Kept(folder, plan.with_(candidate_rule=rule))
    with tempfile.TemporaryDirectory() as scratch:
        scores = judge_kept(kept, found, Path(scratch))
        cells = [{"lesions": lesions_found(Path(scratch))}]
    return (
        folder.name,
        f"{rule.ratio:g}",
        f"{rule.extent:g}",
        f"{rule.join:g}",
        found_of_size(cells, 0, inf),
        found_of_size(cells, 0, SMALL_MM),
        number(scores["dice"]["mean"]),
        number(scores["average_precision"]),
    )


if __name__ == "__main__":
    main()
