"""How often 95 % intervals hold the truth, in simulated studies of few and of many patients.

    python benchmarks/interval_coverage.py

Patients have 1 lesion or more, on average 5 and sometimes 40, as in multiple sclerosis; lesions of
one patient are alike, and false positives crowd in some (negative binomials with k = 0.7). Half of
the patients of the AUROC have no lesion. The truth of a curve is that of 40 000 patients. Prints
the table of docs/metrics.md: the share of studies whose interval holds the truth, in percent, and
in brackets that of studies with an interval where not all have one.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.statistics import detection
from lesionseg.evaluation.statistics.bootstrap import value_of
from lesionseg.evaluation.statistics.detection import Pool
from lesionseg.evaluation.statistics.estimates import CI, Estimator, proportion, rate
from lesionseg.evaluation.statistics.pooled import mean_share

PATIENTS = (5, 10, 20, 50)
REPLICATES = 1000
POPULATION = 40_000
Ends = Mapping[str, tuple[CI | None, float]]  # interval and truth, by what it is of
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Study:
    """Patients with one scan each: their lesions and false positives, and an estimator."""

    pool: Pool
    estimator: Estimator

    @property
    def n(self) -> int:
        """Number of patients."""
        return self.pool.n_cases

    def by_patient(self, groups: NDArray[np.int64]) -> Array:
        """How many of the items each patient has."""
        return np.bincount(groups, minlength=self.n).astype(np.float64)

    def boot(self, statistic: detection.Statistic, support: Array | None = None) -> CI | None:
        """The bootstrap interval of a statistic of one value."""
        counted = self.by_patient(self.pool.lesion_group) if support is None else support
        items = len(self.pool.detected_at) + len(self.pool.false_score) + 1
        found = self.estimator.bootstrapped(statistic, counted, edge_cases.NO_LESION, items)
        return found[0].ci95


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
    return Pool(names, at, detected_at, wrong, false_score, groups, highest, positive)


def draw_study(n: int, rng: np.random.Generator, **kind: float) -> Study:
    """A study and its bootstrap."""
    return Study(draw_pool(n, rng, **kind), Estimator.seeded(n, REPLICATES, int(rng.integers(1e9))))


def truth(statistic: Callable[[Pool], detection.Statistic], **kind: float) -> float:
    """The statistic of a population."""
    pool = draw_pool(POPULATION, np.random.default_rng(1), **kind)
    # one group is enough for the value, and quick
    one = {f: np.zeros_like(getattr(pool, f)) for f in ("lesion_group", "false_group")}
    whole = replace(pool, groups=("all",), case_group=np.zeros_like(pool.case_group), **one)
    return float(value_of(statistic(whole), 1)[0] or 0.0)


def plain_numbers(n: int, rng: np.random.Generator) -> Ends:
    """Sensitivity, its mean over patients, false positives per scan and Dice."""
    lesions = 1.0 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n))
    hits = rng.binomial(lesions.astype(int), rng.beta(3, 1, n)).astype(np.float64)
    false = rng.poisson(rng.gamma(0.7, 1 / 0.7, n)).astype(np.float64)
    dice, ones, none = rng.beta(4, 2, n), np.ones(n), edge_cases.NO_CASE
    return {
        "sensitivity (Wilson, deff)": (proportion(hits, lesions, none).ci95, 0.75),
        "false positives per scan (Garwood, deff)": (rate(false, ones, none).ci95, 1.0),
        "sensitivity, mean over patients (Wilson, deff)": (
            mean_share(hits / lesions, ones, none).ci95,
            0.75,
        ),
        "Dice, mean over scans (Wilson, deff)": (mean_share(dice, ones, none).ci95, 2 / 3),
    }


@dataclass(frozen=True)
class Curves:
    """Numbers of curves and of chosen scores, and their truth."""

    recall: float
    auroc: float

    @classmethod
    def of_population(cls) -> "Curves":
        """The truth."""
        return cls(truth(at_one), truth(detection.case_auroc, ill=0.5))

    def __call__(self, n: int, rng: np.random.Generator) -> Ends:
        """The intervals of one study."""
        study, half = draw_study(n, rng), draw_study(n, rng, ill=0.5)
        ill = half.pool.case_positive
        few = (ill if ill.sum() < n / 2 else ~ill) & ill.any() & (~ill).any()
        strata = replace(half, estimator=half.estimator.by_stratum([ill, ~ill]))
        auroc = strata.boot(detection.case_auroc(half.pool), few.astype(np.float64))
        return {
            "sensitivity at 1 false positive per scan (bootstrap)": (
                study.boot(at_one(study.pool)),
                self.recall,
            ),
            "AUROC, half of the patients without lesions (bootstrap)": (auroc, self.auroc),
        }


def at_one(pool: Pool) -> detection.Statistic:
    """Sensitivity at 1 false positive per scan."""
    return detection.froc(pool, [1.0])


def chosen_score(n: int, rng: np.random.Generator) -> Ends:
    """What a score chosen on these patients for 0.5 false positives per scan gives on new ones."""
    from scipy.special import ndtr

    study = draw_study(n, rng)
    pool, score = study.pool, allowing(study.pool, 0.5)
    lesions, cases = study.by_patient(pool.lesion_group), np.ones(n)
    hits = study.by_patient(pool.lesion_group[pool.detected_at >= score])
    false = study.by_patient(pool.false_group[pool.false_score >= score])
    none = edge_cases.NO_LESION
    return {
        "chosen score, sensitivity on new scans (Wilson, deff)": (
            proportion(hits, lesions, none).ci95,
            float(ndtr((1 - score) / np.sqrt(1.25))),
        ),
        "chosen score, false positives on new scans (Garwood, deff)": (
            rate(false, cases, none).ci95,
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
    # without a bootstrap a study costs little
    for measure, times in ((plain_numbers, 5), (Curves.of_population(), 1), (chosen_score, 2)):
        for name, cells in coverage(measure, times * studies).items():
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
