"""Differences between two models on the same cases, paired by group.

The interval is a percentile bootstrap over groups, drawn for both models together, with wider tails
for few groups. The p-value belongs to a permutation test that swaps the two models within whole
groups (Good 2005): under the null hypothesis it does not matter which model saw a patient.

At their own operating points, two models may have different numbers of false positives. If both
have scores, the primary endpoint is therefore the sensitivity at one false positive per case. The
p-values of all other endpoints are corrected for their number (Holm 1979). The first model is not
inferior if the whole interval of the primary difference is above −margin (Piaggio et al. 2012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

from lesionseg.errors import DatasetError
from lesionseg.evaluation import curves
from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.curves import Pool, sums_by_group
from lesionseg.evaluation.intervals import (
    DIFFERENCE_OF_SHARES,
    MIN_GROUPS,
    SHARE,
    Draws,
    Statistic,
    bootstrap,
    draw_groups,
    ratio,
)
from lesionseg.evaluation.scores import Difference, PrimaryDifference
from lesionseg.evaluation.summary import MIN_CASES_FOR_CPM, RATIOS, has_boxes_only

EQUAL_RATES = (0.5, 1.0, 2.0)  # false positives per case at which sensitivities are compared
PRIMARY = "recall_at_1"
PRIMARY_UNSCORED = "lesion_f1"
UNDEFINED = "the number is undefined for one of the two"
_PERMUTATIONS = 4096  # enough for all permutations of 12 groups
_MAX_ELEMENTS = 1_000_000  # of a temporary array `[replicates, items]`


Term = tuple[float, float]  # the numerator and denominator of a case

# the terms of a number that is defined for every case, by its name
COMPARED: Mapping[str, Callable[[CaseResult], Term]] = {
    "lesion_recall": RATIOS["lesion_recall"][0],
    "lesion_precision": RATIOS["lesion_precision"][0],
    "lesion_f1": RATIOS["lesion_f1"][0],
    "false_positives_per_case": RATIOS["false_positives_per_case"][0],
}
NO_SHARES = {"false_positives_per_case"}
# a number whose mean is compared over the cases in which both models have it, by its name
COMPARED_MEANS: Mapping[str, Callable[[CaseResult], float | None]] = {
    "dice": attrgetter("dice"),
    "surface_dice": attrgetter("surface_dice"),
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
    average precision. A number that fewer than 5 groups contribute to has neither interval nor
    p-value.

    Args:
        one: Results of the first model, one per case.
        other: Results of the second model on the same cases in the same order.
        fp_per_case: Rates of false positives per case for the mean sensitivity.
        margin: Largest acceptable loss of the first model in the primary measure, between 0 and 1.
        replicates: Number of resampled data sets of the bootstrap.
        seed: Seed of the bootstrap and of the permutation test.

    Returns:
        The differences by name. The primary one is a `PrimaryDifference`.

    Raises:
        DatasetError: if the two models have different cases.
    """
    if [r.case for r in one] != [r.case for r in other]:
        unpaired = sorted({r.case for r in one} ^ {r.case for r in other})
        raise DatasetError(
            f"The two models have different cases: {', '.join(unpaired[:5])}. "
            "Evaluate both on the same cases."
        )
    groups = sorted({r.group for r in one})
    draws = draw_groups(len(groups), replicates, np.random.default_rng(seed))
    # Each statistic and the number of items per group that it rests on. The weights of a statistic
    # are [n, 2·groups]: the groups of the first model, then those of the second.
    numbers: dict[str, tuple[Statistic, NDArray[np.float64]]] = {}
    has_scores = all(r.has_scores for r in (*one, *other))
    if has_scores:
        first = Pool.of(one)
        both = first.concatenate(Pool.of(other))
        support = first.lesions_by_group  # both models have the same lesions
        for rate in EQUAL_RATES:
            numbers[f"recall_at_{rate:g}"] = (curves.froc(both, [rate]), support)
        if len(one) >= MIN_CASES_FOR_CPM:
            numbers["cpm"] = (curves.cpm(both, fp_per_case), support)
        numbers["average_precision"] = (curves.average_precision(both), support)
    terms_of_models: dict[str, tuple[list[Term], list[Term]]] = {}
    for name, of_case in COMPARED.items():
        terms_of_models[name] = ([of_case(r) for r in one], [of_case(r) for r in other])
    for name, value_of in COMPARED_MEANS.items():
        terms_of_models[name] = _terms_of_means(one, other, value_of)
    for name, terms_of_model in terms_of_models.items():
        above = []
        below = []
        for results, terms in zip((one, other), terms_of_model, strict=True):
            above.append(sums_by_group(groups, results, [term[0] for term in terms]))
            below.append(sums_by_group(groups, results, [term[1] for term in terms]))
        statistic = ratio(np.concatenate(above), np.concatenate(below))
        # a group contributes if the number is defined for one of the models
        numbers[name] = (statistic, np.maximum(below[0], below[1]))
    # an upper bound of the length of the arrays in a statistic; at least 1, because it is a divisor
    items = 1 + sum(len(r.lesions) + len(r.candidates) for r in (*one, *other))
    found = {
        name: _compare_number(
            statistic, support, draws, items, seed, is_share=name not in NO_SHARES
        )
        for name, (statistic, support) in numbers.items()
    }
    primary = PRIMARY if has_scores else PRIMARY_UNSCORED
    corrected = _correct_p_values(found, primary)
    return corrected | {primary: _as_primary(found[primary], margin)}


def _terms_of_means(
    one: Sequence[CaseResult],
    other: Sequence[CaseResult],
    value_of: Callable[[CaseResult], float | None],
) -> tuple[list[Term], list[Term]]:
    """Return the terms of both models for the mean of a value over the cases.

    A case counts if both models have the value. If a model predicts only boxes, no case counts:
    otherwise, the Dice of 0 of a failed case would be the mean of this model.
    """
    terms_one: list[Term] = []
    terms_other: list[Term] = []
    has_masks = not (has_boxes_only(one) or has_boxes_only(other))
    for first, second in zip(one, other, strict=True):
        a = value_of(first)
        b = value_of(second)
        if has_masks and a is not None and b is not None:
            terms_one.append((a, 1.0))
            terms_other.append((b, 1.0))
        else:
            terms_one.append((0.0, 0.0))
            terms_other.append((0.0, 0.0))
    return terms_one, terms_other


def _as_primary(found: Difference, margin: float | None) -> PrimaryDifference:
    """Return the difference as the primary one, with the result of the test by `margin`."""
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


def _compare_number(
    statistic: Statistic,
    support: NDArray[np.float64],
    draws: Draws,
    items: int,
    seed: int,
    *,
    is_share: bool,
) -> Difference:
    """Compute a number of both models, their difference, its interval and its p-value."""
    n_groups = draws.shape[1]

    def compute_columns(weights: NDArray[Any]) -> NDArray[np.float64]:
        """Return both numbers and their difference `[replicates, 3]`, for weights of the groups."""
        none = np.zeros_like(weights)
        a, b = _compute_both(statistic, first=weights, second=none)
        return np.stack([a, b, a - b], axis=1)

    bounds = [SHARE, SHARE, DIFFERENCE_OF_SHARES] if is_share else [None] * 3
    a, b, difference = bootstrap(compute_columns, draws, support, UNDEFINED, items, bounds=bounds)
    found = Difference(
        one=a.value,
        other=b.value,
        difference=difference.value,
        ci95=difference.ci95,
        reason=difference.reason,
    )
    n_supporting = (support > 0).sum()
    if difference.value is None or n_supporting < MIN_GROUPS:
        return found
    return replace(found, p_value=_test_by_swapping(statistic, n_groups, items, seed))


def _compute_both(
    statistic: Statistic, first: NDArray[Any], second: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute a number of two sets of results `[replicates]`, each with one result per group.

    One set takes the first model's results with the weights `first`, and the second model's with
    the weights `second`, both `[replicates, groups]`. The other set takes the remaining results, so
    its weights are exchanged.
    """
    one = statistic(np.hstack((first, second)))[:, 0]
    other = statistic(np.hstack((second, first)))[:, 0]
    return one, other


def _test_by_swapping(statistic: Statistic, n_groups: int, items: int, seed: int) -> float:
    """Return the two-sided p-value of a test in which groups swap the results of both models.

    If the models are equally good, it does not matter which of the two results of a group counts
    for which model.
    """

    def compute_difference(
        first: NDArray[Any], second: NDArray[Any], axis: int
    ) -> NDArray[np.float64]:
        """Return the difference after some groups have swapped their results.

        `first` has, along `axis`, the index of the results that count for the first model: g for a
        group g that keeps its results, and g + n_groups for a group that swaps them. `second` has
        the other index and is not needed.
        """
        first = np.moveaxis(first, axis, -1)
        is_taken = np.zeros((*first.shape[:-1], 2 * n_groups))
        np.put_along_axis(is_taken, first.astype(np.int64), 1.0, axis=-1)
        weights = is_taken.reshape(-1, 2 * n_groups)
        a, b = _compute_both(statistic, weights[:, :n_groups], weights[:, n_groups:])
        return (a - b).reshape(first.shape[:-1])

    test = permutation_test(
        (np.arange(n_groups), np.arange(n_groups) + n_groups),
        compute_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=max(1, _MAX_ELEMENTS // items),
        random_state=seed,
    )
    return float(test.pvalue)


def _correct_p_values(found: Mapping[str, Difference], primary: str) -> dict[str, Difference]:
    """Add the corrected p-values (Holm 1979) to all differences except the primary one."""
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
