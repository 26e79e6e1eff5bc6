"""Two models on the same cases: differences, paired by group.

The interval is a percentile bootstrap over groups drawn for both at once, its tails widened for
few groups. The p-value is that of a permutation test that swaps the two models within whole groups
(Good 2005): under the null hypothesis it does not matter which model saw a patient.

Operating points of two models ask different prices, so where both have scores the primary endpoint
is the sensitivity at one false positive per case of both. The p-values of all others are corrected
for their number (Holm 1979). Of a margin the whole interval of the primary endpoint's difference
must lie above −margin: the one is then not inferior (Piaggio et al. 2012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

from lesionseg.errors import DatasetError
from lesionseg.evaluation import curves
from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.curves import Pool, sums_by_group
from lesionseg.evaluation.intervals import (
    MIN_GROUPS,
    Draws,
    Statistic,
    bootstrap,
    draw_groups,
    ratio,
)
from lesionseg.evaluation.scores import Difference, PrimaryDifference
from lesionseg.evaluation.summary import RATIOS

EQUAL_RATES = (0.5, 1.0, 2.0)  # false positives per case at which sensitivities are compared
PRIMARY, PRIMARY_UNSCORED = "recall_at_1", "lesion_f1"
UNDEFINED = "the number is undefined for one of the two"
_PERMUTATIONS = 4096  # up to 12 groups all of them
_MAX_ELEMENTS = 1_000_000  # of a temporary `[replicates, items]`

# numerator and denominator of a case
COMPARED: Mapping[str, Callable[[CaseResult], tuple[float, float]]] = {
    **{name: RATIOS[name][0] for name in tuple(RATIOS)[:4]},
    "dice": lambda r: (r.dice or 0.0, r.dice is not None),
    "surface_dice": lambda r: (r.surface_dice or 0.0, r.surface_dice is not None),
}


def compare(
    one: Sequence[CaseResult],
    other: Sequence[CaseResult],
    *,
    fp_per_case: Sequence[float] = (0.125, 0.25, 0.5, 1, 2, 4, 8),
    margin: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compute the differences `one − other` of the main numbers, with intervals and p-values.

    Both models are compared at their own operating points. If both have scores, they are also
    compared at equal false positives per case, by the mean sensitivity at `fp_per_case` and by
    average precision. Fewer than 5 groups with something to count give neither interval nor
    p-value.

    Args:
        one: the results of a model.
        other: the results of another model on the same cases.
        fp_per_case: the rates of the mean sensitivity.
        margin: how much worse the one may be in the primary measure, between 0 and 1.
        replicates: of the bootstrap.
        seed: of the bootstrap and of the permutation test.

    Returns:
        The differences by name. The primary one is a `PrimaryDifference`.

    Raises:
        DatasetError: if the two models have different cases.
    """
    if [r.case for r in one] != [r.case for r in other]:
        apart = sorted({r.case for r in one} ^ {r.case for r in other})
        raise DatasetError(f"The two models have different cases: {', '.join(apart[:5])}.")
    groups = sorted({r.group for r in one})
    draws = draw_groups(len(groups), replicates, np.random.default_rng(seed))
    # weights are [n, 2·groups]: the groups as the one saw them, then as the other did
    numbers: dict[str, tuple[Statistic, NDArray[np.float64]]] = {}
    scored = all(r.scored for r in (*one, *other))
    if scored:
        first = Pool.of(one)
        both, support = first.beside(Pool.of(other)), first.lesions_by_group
        for rate in EQUAL_RATES:
            numbers[f"recall_at_{rate:g}"] = curves.froc(both, [rate]), support
        numbers["cpm"] = curves.cpm(both, fp_per_case), support
        numbers["average_precision"] = curves.average_precision(both), support
    for name, of_case in COMPARED.items():
        above, below = (
            [sums_by_group(groups, rs, [of_case(r)[k] for r in rs]) for rs in (one, other)]
            for k in (0, 1)
        )
        statistic = ratio(np.concatenate(above), np.concatenate(below))
        numbers[name] = statistic, np.maximum(*below)
    items = 1 + sum(len(r.lesions) + len(r.candidates) for r in (*one, *other))
    found = {
        name: _difference(statistic, support, draws, items, seed)
        for name, (statistic, support) in numbers.items()
    }
    primary = PRIMARY if scored else PRIMARY_UNSCORED
    corrected = _corrected(found, primary)
    return corrected | {primary: _as_primary(found[primary], margin)}


def _as_primary(found: Difference, margin: float | None) -> PrimaryDifference:
    not_inferior = None
    if margin is not None and found.ci95 is not None:
        not_inferior = found.ci95[0] > -margin
    return PrimaryDifference(
        one=found.one,
        other=found.other,
        difference=found.difference,
        ci95=found.ci95,
        reason=found.reason,
        p_value=found.p_value,
        primary=True,
        margin=margin,
        not_inferior=not_inferior,
    )


def _difference(
    statistic: Statistic, support: NDArray[np.float64], draws: Draws, items: int, seed: int
) -> Difference:
    n = draws.shape[1]

    def both(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        a, b = (statistic(np.hstack(pair))[:, 0] for pair in ((first, second), (second, first)))
        return np.stack([a, b, a - b], axis=1)

    a, b, difference = bootstrap(
        lambda weights: both(weights, np.zeros_like(weights)), draws, support, UNDEFINED, items
    )
    found = Difference(
        one=a.value,
        other=b.value,
        difference=difference.value,
        ci95=difference.ci95,
        reason=difference.reason,
    )
    if difference.value is None or (support > 0).sum() < MIN_GROUPS:
        return found

    def swapped(first: NDArray[Any], second: NDArray[Any], axis: int) -> NDArray[np.float64]:
        first = np.moveaxis(first, axis, -1)
        weights = np.zeros((*first.shape[:-1], 2 * n))
        np.put_along_axis(weights, first.astype(np.int64), 1.0, axis=-1)
        weights = weights.reshape(-1, 2 * n)
        return both(weights[:, :n], weights[:, n:])[:, 2].reshape(first.shape[:-1])

    test = permutation_test(
        (np.arange(n), np.arange(n) + n),
        swapped,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=max(1, _MAX_ELEMENTS // items),
        random_state=seed,
    )
    return replace(found, p_value=float(test.pvalue))


def _corrected(found: Mapping[str, Difference], primary: str) -> dict[str, Difference]:
    """Return the differences with the corrected p-values of the secondary ones (Holm 1979)."""
    known = sorted(
        (row.p_value, name)
        for name, row in found.items()
        if name != primary and row.p_value is not None
    )
    corrected = dict(found)
    least = 0.0
    for rank, (p, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[name] = replace(corrected[name], p_holm=least)
    return corrected
