"""How often 95 % intervals hold the truth, in simulated studies of few and of many patients.

    python benchmarks/robustness/interval_coverage.py

Patients have 1 lesion or more, on average 5 and sometimes 40, as in multiple sclerosis; lesions of
one patient are alike, and false positives crowd in some (negative binomials with k = 0.7). Half of
the patients of the AUROC have no lesion. The truth of a curve is that of 40 000 patients. Prints
the table of evaluation.md: the share of studies whose interval holds the truth, in percent, and
in brackets that of studies with an interval where not all have one.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import curves
from lesionseg.evaluation.curves import Pool
from lesionseg.evaluation.intervals import (
    CI,
    Statistic,
    bootstrap,
    draw_groups,
    proportion,
    rate,
    value_of,
)

PATIENTS = (5, 10, 20, 50)
REPLICATES = 1000
POPULATION = 40_000
Ends = Mapping[str, tuple[CI | None, float]]  # interval and truth, by what it is of
Array = NDArray[np.float64]


def by_patient(pool: Pool, groups: NDArray[np.int64]) -> Array:
    """How many of the items each patient has."""
    return np.bincount(groups, minlength=len(pool.groups)).astype(np.float64)


def resampled(statistic: Statistic, support: Array, items: int, rng: np.random.Generator) -> Any:
    """The bootstrap's interval of a statistic of one value."""
    draws = draw_groups(len(support), REPLICATES, rng)
    return bootstrap(statistic, draws, support, "nothing", items)[0].ci95


def draw_pool(n: int, rng: np.random.Generator, *, ill: float = 1.0, shift: float = 1.0) -> Pool:
    """Patients of whom a share is ill; `shift`: by how much lesions score above the middle."""
    positive = rng.random(n) < ill
    lesions = positive * (1 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n)))
    false = rng.poisson(rng.gamma(0.7, 3 / 0.7, n))
    own, groups = rng.normal(0, 0.5, n), np.arange(n)
    at, wrong = np.repeat(groups, lesions), np.repeat(groups, false)
    detected_at = rng.normal(shift, 1, len(at)) + own[at]
    false_score = rng.normal(-0.5, 0.8, len(wrong))
    highest = np.full(n, -9.0)
    np.maximum.at(highest, at, detected_at)
    np.maximum.at(highest, wrong, false_score)
    names = tuple(map(str, groups))
    whole = np.ones(n)
    return Pool(names, at, detected_at, wrong, false_score, groups, highest, positive, whole)


def plain_numbers(n: int, rng: np.random.Generator) -> Ends:
    """Sensitivity, also where few patients have most lesions, false positives and Dice."""
    lesions = 1.0 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n))
    hits = rng.binomial(lesions.astype(int), rng.beta(3, 1, n)).astype(np.float64)
    false = rng.poisson(rng.gamma(0.7, 1 / 0.7, n)).astype(np.float64)
    dice, ones, none = rng.beta(4, 2, n), np.ones(n), "nothing"
    uneven = 1.0 + rng.poisson(rng.gamma(0.2, 10 / 0.2, n))
    some = rng.binomial(uneven.astype(int), rng.beta(3, 1, n)).astype(np.float64)
    return {
        "sensitivity (Wilson, deff)": (proportion(hits, lesions, none).ci95, 0.75),
        "sensitivity, few patients have most lesions (Wilson, deff)": (
            proportion(some, uneven, none).ci95,
            0.75,
        ),
        "false positives per scan (Garwood, deff)": (rate(false, ones, none).ci95, 1.0),
        "Dice, mean over scans (Wilson, deff)": (
            proportion(dice, ones, none, least_deff=0.0).ci95,
            2 / 3,
        ),
    }


def truth_at_one() -> float:
    """Sensitivity at 1 false positive per scan of a population."""
    pool = population()
    # one group is enough for the value, and quick
    one = {f: np.zeros_like(getattr(pool, f)) for f in ("lesion_group", "false_group")}
    whole = replace(pool, groups=("all",), case_group=np.zeros_like(pool.case_group), **one)
    return float(value_of(at_one(whole), 1)[0] or 0.0)


def population(**kind: float) -> Pool:
    """Patients enough for the truth."""
    return draw_pool(POPULATION, np.random.default_rng(1), **kind)


def sensitivity_at_one(true: float, n: int, rng: np.random.Generator) -> Ends:
    """The interval of a point of the curve."""
    pool = draw_pool(n, rng)
    lesions, items = (
        by_patient(pool, pool.lesion_group),
        len(pool.detected_at) + len(pool.false_score),
    )
    ends = resampled(at_one(pool), lesions, items + 1, rng)
    return {"sensitivity at 1 false positive per scan (bootstrap)": (ends, true)}


def auroc(true: float, n: int, rng: np.random.Generator) -> Ends:
    """Scans told apart, where half of the patients have no lesion."""
    pool = draw_pool(n, rng, ill=0.5)
    ill = pool.case_positive
    support = (ill if ill.sum() < n / 2 else ~ill).astype(np.float64)  # of the rarer kind
    ends = resampled(curves.case_auroc(pool), support, n, rng)
    return {"AUROC, half of the patients without lesions (bootstrap)": (ends, true)}


def whole_auroc() -> float:
    """AUROC of a population."""
    pool = replace(population(ill=0.5), groups=("all",), case_group=np.zeros(POPULATION, np.int64))
    return float(value_of(curves.case_auroc(pool), 1)[0] or 0.0)


def at_one(pool: Pool) -> Statistic:
    """Sensitivity at 1 false positive per scan."""
    return curves.froc(pool, [1.0])


def chosen_score(n: int, rng: np.random.Generator) -> Ends:
    """What a score chosen on these patients for 0.5 false positives per scan gives on new ones."""
    from scipy.special import ndtr

    pool = draw_pool(n, rng)
    score = allowing(pool, 0.5)
    lesions, cases = by_patient(pool, pool.lesion_group), np.ones(n)
    hits = by_patient(pool, pool.lesion_group[pool.detected_at >= score])
    false = by_patient(pool, pool.false_group[pool.false_score >= score])
    return {
        "chosen score, sensitivity on new scans (Wilson, deff)": (
            proportion(hits, lesions, "nothing").ci95,
            float(ndtr((1 - score) / np.sqrt(1.25))),
        ),
        "chosen score, false positives on new scans (Garwood, deff)": (
            rate(false, cases, "nothing").ci95,
            float(3 * ndtr((-0.5 - score) / 0.8)),
        ),
    }


def allowing(pool: Pool, per_case: float) -> float:
    """The lowest score with no more false positives per scan."""
    false, most = np.sort(pool.false_score)[::-1], int(per_case * pool.n_cases)
    if len(false) <= most:
        return float(min(pool.detected_at.min(), false.min(initial=np.inf)))
    seen = np.concatenate([pool.detected_at, false])
    return float((false[most] + seen[seen > false[most]].min(initial=false[most] + 1)) / 2)


def coverage(
    measure: Callable[[int, np.random.Generator], Ends], studies: int
) -> dict[str, list[str]]:
    """The cells of each number's line: one per number of patients."""
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
    """Share held in percent, and the share of studies that have an interval where not all do.

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
    area = partial(auroc, whole_auroc())
    for measure in (plain_numbers, curve, area, chosen_score):
        for name, cells in coverage(measure, studies).items():
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
