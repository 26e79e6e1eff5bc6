"""How many lesions a case has, and how much of it they fill, given what was accepted in it.

Conformal prediction (Vovk et al. 2005): the interval holds whatever differed less on 95 of 100
development cases, so misses and false positives are in it and nothing is assumed of them. Whole
patients are resampled in effect (hierarchical conformal prediction, Lee, Barber & Willett 2023):
each counts once, however many cases it has.
"""

from collections.abc import Sequence

import numpy as np

from lesionseg.evaluation.results import CaseResult

LEVEL = 0.95
# of a ball of 5 mm: smaller volumes differ by millilitres rather than by a factor
_LEAST_ML = 0.065


def burden_errors(results: Sequence[CaseResult], score: float) -> tuple[float | None, float | None]:
    """By how much number and volume of the lesions differ from what is accepted from `score` on.

    The first on the scale √(n + ⅜), on which counts vary alike (Anscombe 1948), the second on
    log(ml + 0.065). At most so much in 95 % of new patients' cases, if they are like these. None
    under 19 patients, and for volumes that are not known (2-D, boxes). Cases that do not annotate
    all labels are left out.
    """
    counts, volumes = [], []
    for result in results:
        accepted = [c for c in result.candidates if (c.score or 0.0) >= score]
        known = [c.volume_ml for c in accepted if c.volume_ml is not None]
        if result.annotated_share < 1:
            continue
        counts.append((result.group, _root(len(result.lesions)) - _root(len(accepted))))
        if result.reference_ml is not None and len(known) == len(accepted):
            volumes.append((result.group, _log(result.reference_ml) - _log(sum(known))))
    return _most(counts), _most(volumes) if len(volumes) == len(counts) else None


def count_interval(n: int, error: float) -> tuple[int, int]:
    """The numbers of lesions that differ from `n` by at most `error`.

    >>> count_interval(4, 0.5)
    (3, 6)
    """
    low, high = max(_root(n) - error, 0.0) ** 2 - 0.375, (_root(n) + error) ** 2 - 0.375
    return max(int(np.ceil(low - 1e-9)), 0), int(np.floor(high + 1e-9))


def volume_interval(ml: float, error: float) -> tuple[float, float]:
    """The volumes in ml that differ from `ml` by at most `error`, to 1 mm³.

    >>> volume_interval(1.0, 0.7)
    (0.464, 2.08)
    """
    low, high = (float(np.exp(_log(ml) + sign * error)) - _LEAST_ML for sign in (-1, 1))
    return round(max(low, 0.0), 3), round(high, 3)


def _most(errors: Sequence[tuple[str, float]]) -> float | None:
    """The least error not exceeded by `LEVEL` of the patients and one more, the new one."""
    sizes = np.abs([error for _, error in errors])
    _, group, cases = np.unique([g for g, _ in errors], return_inverse=True, return_counts=True)
    order = np.argsort(sizes, kind="stable")
    shares = (1 / cases[group[order]] / (len(cases) + 1)).cumsum()
    reached = np.flatnonzero(shares >= LEVEL - 1e-9)
    return float(sizes[order[reached[0]]]) if len(reached) else None


def _root(n: int) -> float:
    return float(np.sqrt(n + 0.375))


def _log(ml: float) -> float:
    return float(np.log(ml + _LEAST_ML))
