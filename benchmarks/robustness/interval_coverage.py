"""Coverage of 95 % intervals in simulated studies of few and of many patients.

    python benchmarks/robustness/interval_coverage.py

Patients have at least 1 lesion, on average 5 and sometimes 40, like in multiple sclerosis. Lesions
of one patient are similar, and a few patients have many false positives (negative binomials with k
= 0.7). For the AUROC, half of the patients have no lesion. The truth of a curve is computed from 40
000 patients. The script prints the table of notes/reliability.md: the percentage of studies whose
interval contains the truth. If not all studies have an interval, their percentage is in brackets.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lesionseg.evaluation import curves
from lesionseg.evaluation.intervals import (
    CI,
    Statistic,
    bootstrap,
    draw_groups,
    estimate_rate,
    proportion,
    statistic_value,
)
from lesionseg.evaluation.tables import Tables

PATIENTS = (5, 10, 20, 50)
REPLICATES = 1000
POPULATION = 40_000
Ends = Mapping[str, tuple[CI | None, float]]  # interval and truth of each measure
Array = NDArray[np.float64]


def bootstrap_ends(
    statistic: Statistic, support: Array, items: int, rng: np.random.Generator
) -> Any:
    """Return the bootstrap interval of a statistic of one value."""
    draws = draw_groups(len(support), REPLICATES, rng)
    return bootstrap(statistic, draws, support, "nothing", items, ["number"])[0].ci95


def draw_pool(n: int, rng: np.random.Generator, *, ill: float = 1.0, shift: float = 1.0) -> Tables:
    """Draw patients. The share `ill` has lesions. Lesions score `shift` above the middle."""
    positive = rng.random(n) < ill
    lesions = positive * (1 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n)))
    false = rng.poisson(rng.gamma(0.7, 3 / 0.7, n))
    own = rng.normal(0, 0.5, n)
    groups = np.arange(n)
    at = np.repeat(groups, lesions)
    wrong = np.repeat(groups, false)
    detected_at = rng.normal(shift, 1, len(at)) + own[at]
    false_score = rng.normal(-0.5, 0.8, len(wrong))
    highest = np.full(n, -9.0)
    np.maximum.at(highest, at, detected_at)
    np.maximum.at(highest, wrong, false_score)
    names = np.array([f"p{group:05d}" for group in groups], dtype=object)
    cases = {"case": names, "group": names, "case_score": highest, "annotated_share": np.ones(n)}
    found = {"case": names[at], "group": names[at], "detected_at": detected_at}
    wrong_rows = {"case": names[wrong], "group": names[wrong], "score": false_score}
    return Tables(
        pd.DataFrame(cases),
        pd.DataFrame(found),
        pd.DataFrame(wrong_rows).assign(outcome_any="false_positive"),
    )


def simple_measures(n: int, rng: np.random.Generator) -> Ends:
    """Return sensitivity (also if few patients have most lesions), false positives and Dice."""
    lesions = (1 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n))).astype(np.float64)
    hits = rng.binomial(lesions.astype(int), rng.beta(3, 1, n)).astype(np.float64)
    false = rng.poisson(rng.gamma(0.7, 1 / 0.7, n)).astype(np.float64)
    dice = rng.beta(4, 2, n)
    ones = np.ones(n)
    none = "nothing"
    uneven = (1 + rng.poisson(rng.gamma(0.2, 10 / 0.2, n))).astype(np.float64)
    some = rng.binomial(uneven.astype(int), rng.beta(3, 1, n)).astype(np.float64)
    return {
        "sensitivity (Wilson, deff)": (proportion(hits, lesions, none).ci95, 0.75),
        "sensitivity, few patients have most lesions (Wilson, deff)": (
            proportion(some, uneven, none).ci95,
            0.75,
        ),
        "false positives per scan (Garwood, deff)": (estimate_rate(false, ones, none).ci95, 1.0),
        "Dice, mean over scans (Wilson, deff)": (
            proportion(dice, ones, none, min_deff=0.0).ci95,
            2 / 3,
        ),
    }


def truth_at_one() -> float:
    """Return the sensitivity of a population at 1 false positive per scan."""
    pool = draw_population()
    # a single group is fast and does not change the value
    return float(statistic_value(at_one(join_groups(pool)), 1)[0] or 0.0)


def join_groups(pool: Tables) -> Tables:
    """Return the tables with a single group."""
    return Tables(*(frame.assign(group="all") for frame in pool.frames))


def draw_population(**kind: float) -> Tables:
    """Draw enough patients to compute the truth."""
    return draw_pool(POPULATION, np.random.default_rng(1), **kind)


def sensitivity_at_one(true: float, n: int, rng: np.random.Generator) -> Ends:
    """Return the interval of a point of the curve."""
    pool = draw_pool(n, rng)
    lesions = pool.lesions_by_group
    items = len(pool.detected_at) + len(pool.false_score)
    ends = bootstrap_ends(at_one(pool), lesions, items + 1, rng)
    return {"sensitivity at 1 false positive per scan (bootstrap)": (ends, true)}


def auroc(true: float, n: int, rng: np.random.Generator) -> Ends:
    """Return the interval of the AUROC. Half of the patients have no lesion."""
    pool = draw_pool(n, rng, ill=0.5)
    ill = pool.has_lesion
    support = (ill if ill.sum() < n / 2 else ~ill).astype(np.float64)  # the rarer class
    ends = bootstrap_ends(curves.case_auroc(pool), support, n, rng)
    return {"AUROC, half of the patients without lesions (bootstrap)": (ends, true)}


def truth_of_auroc() -> float:
    """Return the AUROC of a population."""
    pool = join_groups(draw_population(ill=0.5))
    return float(statistic_value(curves.case_auroc(pool), 1)[0] or 0.0)


def at_one(pool: Tables) -> Statistic:
    """Return the statistic of the sensitivity at 1 false positive per scan."""
    return curves.froc(pool, [1.0])


def chosen_score(n: int, rng: np.random.Generator) -> Ends:
    """Return intervals and truth on new patients for a score chosen on these patients.

    The score is chosen for 0.5 false positives per scan.
    """
    from scipy.special import ndtr

    pool = draw_pool(n, rng)
    score = lowest_score(pool, 0.5)
    lesions = pool.lesions_by_group
    cases = np.ones(n)
    hits = pool.add_up("lesions", pool.detected_at >= score)
    false = pool.add_up("candidates", pool.candidates["score"] >= score)
    return {
        "chosen score, sensitivity on new scans (Wilson, deff)": (
            proportion(hits, lesions, "nothing").ci95,
            float(ndtr((1 - score) / np.sqrt(1.25))),
        ),
        "chosen score, false positives on new scans (Garwood, deff)": (
            estimate_rate(false, cases, "nothing").ci95,
            float(3 * ndtr((-0.5 - score) / 0.8)),
        ),
    }


def lowest_score(pool: Tables, per_case: float) -> float:
    """Return the lowest score with at most so many false positives per scan."""
    false = np.sort(pool.false_score)[::-1]
    most = int(per_case * pool.exposure)
    if len(false) <= most:
        return float(min(pool.detected_at.min(), false.min(initial=np.inf)))
    seen = np.concatenate([pool.detected_at, false])
    return float((false[most] + seen[seen > false[most]].min(initial=false[most] + 1)) / 2)


def measure_coverage(
    measure: Callable[[int, np.random.Generator], Ends], studies: int
) -> dict[str, list[str]]:
    """Return the cells of each measure's line, one cell per number of patients."""
    lines: dict[str, list[str]] = {}
    for n in PATIENTS:
        held: dict[str, list[bool | None]] = {}
        for study in range(studies):
            found = measure(n, np.random.default_rng([n, study]))
            for name, (ends, true) in found.items():
                inside = None if ends is None else ends[0] <= true <= ends[1]
                held.setdefault(name, []).append(inside)
        for name, row in held.items():
            lines.setdefault(name, []).append(cell(row))
    return lines


def cell(held: Iterable[bool | None]) -> str:
    """Return the coverage in percent, and the share of studies with an interval if some have none.

    >>> cell([True, True, False, True]), cell([True, None]), cell([None])
    ('75.0', '100.0 (50)', '–')
    """
    row = list(held)
    known = [one for one in row if one is not None]
    if len(known) < len(row) / 10:
        return "–"
    share = "" if len(known) == len(row) else f" ({100 * len(known) / len(row):.0f})"
    return f"{100 * np.mean(known):.1f}{share}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="of the bootstraps")
    studies = parser.parse_args().studies
    print(f"| patients | {' | '.join(map(str, PATIENTS))} |\n|---|{'---:|' * len(PATIENTS)}")
    curve = partial(sensitivity_at_one, truth_at_one())
    area = partial(auroc, truth_of_auroc())
    for measure in (simple_measures, curve, area, chosen_score):
        for name, cells in measure_coverage(measure, studies).items():
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
