"""Compare the rate of false positives of new cases with the rate that was asked for.

    python benchmarks/learning/asked_rates.py NAME=FOLDER ...

Each folder contains the results of `evaluate operating_point=score:0` on cases that the model did
not train on. 1 000 times, n of its cases choose the operating point, and the remaining cases show
the rate at this point.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from lesionseg.evaluation.operating_points import OperatingPointAim, choose
from lesionseg.evaluation.tables import Tables, read_tables

REPEATS = 1000


def rates(tables: Tables, n: int, asked: float) -> "np.typing.NDArray[np.float64]":
    """Compute the false positives per new case `[REPEATS]` at scores chosen on `n` cases."""
    rng = np.random.default_rng(0)
    names = tables.cases["case"].to_numpy(object)
    kept = []
    for _ in range(REPEATS):
        order = rng.permutation(len(names))
        seen = tables.of_cases(names[order[:n]])
        score = choose(seen, OperatingPointAim("fp_per_case", asked), quiet=True).score
        _, n_false = tables.of_cases(names[order[n:]]).count_at(score)
        kept.append(n_false / (len(names) - n))
    return np.array(kept)


def main() -> None:
    """Print a row for each set, number of cases and rate that is asked for."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["set", "cases", "chosen on", "asked", "mean rate", "share over twice asked"])
    for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
        tables = read_tables(Path(folder))
        for n in (1, 2, 4, 10, 30):
            for asked in (0.5, 1.0, 2.0):
                if n <= len(tables.cases) / 2:
                    found = rates(tables, n, asked)
                    over = (found > 2 * asked).mean()
                    shown = f"{found.mean():.2f}", f"{over:.3f}"
                    out.writerow([name, len(tables.cases), n, asked, *shown])


if __name__ == "__main__":
    main()
