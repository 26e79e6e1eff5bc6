"""Compare the recall of new patients with the sensitivity that an operating point promises.

    python benchmarks/robustness/promised_recall.py
    python benchmarks/robustness/promised_recall.py FOLDER

Without FOLDER, 1 000 studies are simulated for each row. The n patients of a study choose the
operating point `sensitivity:0.9`. They have at least 1 lesion, on average 5, and the scores of
lesions differ as much between patients as within one. Some lesions have no candidate. The recall
of new patients follows from the normal distribution of the scores, so that none are drawn.

FOLDER contains the results of `evaluate operating_point=score:0` on patients that the model did
not train on. 20 times, 10 of those with lesions choose the operating point, and 10 others show the
mean of their shares of found lesions.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.special import ndtr

from lesionseg.errors import ContentError
from lesionseg.evaluation.operating_points import OperatingPointAim, choose
from lesionseg.evaluation.tables import NEVER_FOUND, CaseRows, Tables, read_tables

PATIENTS = (10, 20, 50)
SHARES_WITHOUT = (0.0, 0.02, 0.05)  # of the lesions: those without a candidate
STUDIES = 1000
MEAN_LESIONS = 5.0
SPREAD = np.sqrt(2.0)  # of the scores: 1 between patients and 1 within a patient
DRAWS = 20
DRAWN = 10  # patients that choose in a draw, and other patients that are new
SENSITIVITY = 0.9
SENSITIVITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = (
    *("patients", "lesions without a candidate %", "sensitivity", "studies", "promised %"),
    *("mean recall if promised", "promised studies below the sensitivity %"),
)
# the patients that choose, and the recall of new patients at a threshold
Study = tuple[Tables, Callable[[float], float]]


def simulate_studies(n: int, share_without: float, studies: int) -> Iterator[Study]:
    """Yield studies of `n` simulated patients."""
    rng = np.random.default_rng([n, round(1000 * share_without)])
    for _ in range(studies):
        tables = simulate_patients(n, share_without, rng)
        yield tables, lambda threshold: (1 - share_without) * ndtr(-threshold / SPREAD)


def simulate_patients(n: int, share_without: float, rng: Generator) -> Tables:
    """Return the tables of `n` simulated patients, who have lesions and no false positives."""
    rows = CaseRows()
    for number in range(n):
        name = {"case": f"p{number:02d}", "group": f"p{number:02d}", "part": ""}
        case = {"role": "simulated", "status": "ok", "case_score": 1.0, "annotated_share": 1.0}
        rows.cases.append(name | case)
        n_lesions = max(1, rng.poisson(MEAN_LESIONS))
        scores = rng.normal() + rng.normal(size=n_lesions)
        scores[rng.random(n_lesions) < share_without] = NEVER_FOUND
        rows.lesions.extend(name | {"detected_at": score} for score in scores)
    return Tables.of([rows])


def draw_studies(tables: Tables) -> Iterator[Study]:
    """Yield draws of `DRAWN` patients with lesions that choose, and of `DRAWN` new ones."""
    rng = np.random.default_rng(0)
    names = tables.cases["case"][tables.has_lesion].to_numpy(object)
    for _ in range(DRAWS):
        order = rng.permutation(names)
        new = tables.of_cases(order[DRAWN : 2 * DRAWN]).lesions

        def recall(threshold: float, new: pd.DataFrame = new) -> float:
            """Return the mean share of the lesions that the new patients have above a threshold."""
            return float((new["detected_at"] >= threshold).groupby(new["group"]).mean().mean())

        yield tables.of_cases(order[:DRAWN]), recall


def measure(studies: Iterator[Study], sensitivities: tuple[float, ...]) -> Iterator[list[str]]:
    """Yield a row of numbers for each sensitivity: the last columns of `COLUMNS`."""
    recalls: dict[float, list[float]] = {sensitivity: [] for sensitivity in sensitivities}
    n_studies = 0
    for tables, recall in studies:
        n_studies += 1
        for sensitivity, own in recalls.items():
            try:
                point = choose(tables, OperatingPointAim("sensitivity", sensitivity))
            except ContentError:  # too few lesions have a candidate
                continue
            if point.promised is not None:
                own.append(recall(point.score))
    for sensitivity, own in recalls.items():
        promised = f"{100 * len(own) / n_studies:.1f}"
        mean = f"{np.mean(own):.3f}" if own else ""
        below = f"{100 * np.mean(np.array(own) < sensitivity):.1f}" if own else ""
        yield [f"{sensitivity:g}", str(n_studies), promised, mean, below]


def main() -> None:
    """Print a row for each simulated set of patients, or for each sensitivity of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="100 studies for each row")
    given = parser.parse_args()
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(COLUMNS)
    if given.folder:
        tables = read_tables(given.folder)
        without = f"{100 * np.mean(tables.detected_at == NEVER_FOUND):.1f}"
        rows = measure(draw_studies(tables), SENSITIVITIES)
        out.writerows([DRAWN, without, *row] for row in rows)
        return
    for n in PATIENTS:
        for share in SHARES_WITHOUT:
            studies = simulate_studies(n, share, 100 if given.quick else STUDIES)
            for row in measure(studies, (SENSITIVITY,)):
                out.writerow([n, f"{100 * share:g}", *row])
                sys.stdout.flush()


if __name__ == "__main__":
    main()
