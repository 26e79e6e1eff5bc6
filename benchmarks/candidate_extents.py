"""Where candidates end, and what that decides: cells of vs_nnunet.py judged by other ratios.

    python benchmarks/candidate_extents.py --data DIR [DIR …] --cells runs/vs_nnunet

A candidate's extent ends where p falls below its peak divided by the rule's ratio (2.5). Every
cell's log-odds are judged anew with each ratio, all else being the same, at 1 false positive a case
on the judged cases. No ratio may be chosen by this table: its cases are those of the test.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from held_out import held_out, lesions_found
from vs_nnunet import Kept
from vs_nnunet_table import SMALL_MM, found_of_size, number

from lesionseg.evaluation import PRESETS
from lesionseg.io.atomic import write_text
from lesionseg.pipeline.choice import Wishes
from lesionseg.pipeline.judge import Rules, judge_validation
from lesionseg.pipeline.survey import Survey, survey
from lesionseg.plan.plan import Plan

HEADER = ("cell", "ratio", "recall", "under 10 mm", "Dice, accepted", "AP")


def main() -> None:
    """Judge every finished cell of the sets by every ratio; print and write the table."""
    options = arguments()
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    for root in options.data:
        lines += lines_of(root.resolve(), options.cells, options.ratios)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if options.table:
        write_text(options.table, text)
    print(f"\n{text}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--cells", type=Path, default=Path("runs/vs_nnunet"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.5, 2.5, 4.0, 10.0])
    parser.add_argument("--table", type=Path, help="where a Markdown table goes")
    return parser.parse_args()


def lines_of(root: Path, cells: Path, ratios: Sequence[float]) -> Iterator[tuple[str, ...]]:
    """The lines of one set, cell by cell."""
    plan = Plan.from_json((cells / "plans" / root.name / "plan.json").read_text())
    held = held_out(root, cells / "cache")
    found = held.as_development(survey(held.data, seed=0))
    for folder in sorted((cells / "runs").glob(f"{root.name}__*")):
        if (folder / "scores.json").is_file():
            for ratio in ratios:
                yield judged(folder, found, plan, ratio)


def judged(folder: Path, found: Survey, plan: Plan, ratio: float) -> tuple[str, ...]:
    """A cell's line under one ratio; the cell's own files are left alone."""
    ruled = plan.with_(candidate_rule=replace(plan.candidate_rule, ratio=ratio))
    kept: Any = Kept(folder, ruled)
    rules = Rules(PRESETS["lesionseg"], Wishes(calibration="none"), {})
    with tempfile.TemporaryDirectory() as scratch:
        outcome = judge_validation(kept, found, Path(scratch), rules)
        if outcome is None:
            raise SystemExit(f"{folder}: no case to judge")
        cells = [{"lesions": lesions_found(Path(scratch))}]
    scores = outcome.scores
    return (
        folder.name,
        f"{ratio:g}",
        found_of_size(cells, 0, inf),
        found_of_size(cells, 0, SMALL_MM),
        number(scores["dice"]["mean"]),
        number(scores["average_precision"]),
    )


if __name__ == "__main__":
    main()
