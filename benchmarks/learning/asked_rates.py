"""Compare the rate of false positives of new cases with the rate that was asked for.

    python benchmarks/learning/asked_rates.py NAME=FOLDER ...

Each folder contains the results of `evaluate operating_point=score:0` on cases that the model did
not train on. 1 000 times, n of its cases choose the operating point, and the remaining cases show
the rate at this point.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lesionseg.core import Aim
from lesionseg.evaluation.operating_point_choice import choose
from lesionseg.io.files import read_csv

REPEATS = 1000


def read_cases(folder: Path) -> list[Any]:
    """Read the values of evaluated cases that the choice of an operating point uses."""
    lesions = defaultdict(list)
    candidates = defaultdict(list)
    for row in read_csv(folder / "lesions.csv"):
        at = float(row["detected_at"]) if row["detected_at"] else None
        lesions[row["case"]].append(SimpleNamespace(detected_at=at))
    for row in read_csv(folder / "candidates.csv"):
        found = SimpleNamespace(score=float(row["score"]), outcome_any=row["outcome_any"])
        candidates[row["case"]].append(found)
    return [
        SimpleNamespace(
            group=row["group"],
            role="",
            has_scores=True,
            lesions=lesions[row["case"]],
            candidates=candidates[row["case"]],
            is_lesion_free=not lesions[row["case"]],
            case_score=float(row["case_score"]) if row["case_score"] else None,
            annotated_share=1.0,
        )
        for row in read_csv(folder / "cases.csv")
    ]


def rates(cases: list[Any], n: int, asked: float) -> "np.typing.NDArray[np.float64]":
    """Compute the false positives per new case `[REPEATS]` at scores chosen on `n` cases."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(REPEATS):
        order = rng.permutation(len(cases))
        score = choose([cases[i] for i in order[:n]], Aim("fp_per_case", asked), quiet=True).score
        false = [
            sum(c.outcome_any == "false_positive" and c.score >= score for c in cases[i].candidates)
            for i in order[n:]
        ]
        kept.append(float(np.mean(false)))
    return np.array(kept)


def main() -> None:
    """Print a row for each set, number of cases and rate that is asked for."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["set", "cases", "chosen on", "asked", "mean rate", "share over twice asked"])
    for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
        cases = read_cases(Path(folder))
        for n in (1, 2, 4, 10, 30):
            for asked in (0.5, 1.0, 2.0):
                if n <= len(cases) / 2:
                    found = rates(cases, n, asked)
                    over = (found > 2 * asked).mean()
                    out.writerow([name, len(cases), n, asked, f"{found.mean():.2f}", f"{over:.3f}"])


if __name__ == "__main__":
    main()
