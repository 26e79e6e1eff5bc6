"""Comparison of two models: paired differences, p-values (Holm), primary endpoint, margin.

The interval is a percentile bootstrap over groups, drawn for both models together, with wider tails
for few groups. The p-value belongs to a permutation test that swaps the two models within whole
groups (Good 2005): under the null hypothesis it does not matter which model saw a patient.

At their own operating points, two models may have different numbers of false positives. If both
have scores, the primary endpoint is therefore the sensitivity at one false positive per case. The
p-values of all other endpoints are corrected for their number (Holm 1979). The first model is not
inferior if the whole interval of the primary difference is above −margin (Piaggio et al. 2012).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import permutation_test

from lesionseg.core.arrays import Numbers
from lesionseg.errors import DatasetError, join_names
from lesionseg.evaluation import curves
from lesionseg.evaluation.criteria import Preset
from lesionseg.evaluation.intervals import (
    DIFFERENCE_OF_SHARES,
    MAX_ELEMENTS,
    MIN_GROUPS,
    SHARE,
    Draws,
    Statistic,
    bootstrap,
    draw_groups,
    ratio,
)
from lesionseg.evaluation.scores import Difference
from lesionseg.evaluation.summary import MIN_CASES_FOR_CPM, RATIOS
from lesionseg.evaluation.tables import Tables

EQUAL_RATES = (0.5, 1.0, 2.0)  # false positives per case at which sensitivities are compared
PRIMARY = "recall_at_1"
PRIMARY_UNSCORED = "lesion_f1"
UNDEFINED = "the number is undefined for one of the two"
_PERMUTATIONS = 4096  # enough for all permutations of 12 groups
# ratios that are compared, and numbers whose mean is compared over the cases in which both models
# have it
COMPARED = ("lesion_recall", "lesion_precision", "lesion_f1", "false_positives_per_case")
NO_SHARES = {"false_positives_per_case"}
COMPARED_MEANS = ("dice", "surface_dice")
AT_THRESHOLDS = {*COMPARED, *COMPARED_MEANS}  # numbers that depend on the thresholds


def compare(
    one: Tables,
    other: Tables,
    *,
    fp_per_case: Sequence[float] = Preset.fp_per_case,
    margin: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
    why_not_at_thresholds: str = "",
) -> dict[str, Difference]:
    """Compute the differences `one − other` of two models, with intervals and p-values.

    Compared are, for each model at the operating point of that model, the numbers `COMPARED` and
    `COMPARED_MEANS`. If both models have scores, these numbers are added:

    - the sensitivity at equal rates of false positives per case (`EQUAL_RATES`)
    - the average precision
    - from 8 cases on, the mean sensitivity at the rates `fp_per_case`

    A number to which fewer than 5 groups contribute has neither interval nor p-value.

    Args:
        one: Tables of the first model.
        other: Tables of the second model on the same cases in the same order.
        fp_per_case: Rates of false positives per case for the mean sensitivity.
        margin: Largest acceptable loss of the first model in the primary measure, between 0 and 1.
        replicates: Number of resampled data sets of the bootstrap.
        seed: Seed of the bootstrap and of the permutation test.
        why_not_at_thresholds: The reason why the numbers that depend on thresholds cannot be
            compared. They are then undefined. Empty if they can be compared.

    Returns:
        The differences by the name of the number. The primary difference is `recall_at_1`, or
        `lesion_f1` if one of the models has no scores. The p-values of all other differences are
        also corrected for their number (Holm 1979).

    Raises:
        DatasetError: If the two models have different cases or a different order of cases.
    """
    cases = one.cases["case"].tolist()
    if cases != other.cases["case"].tolist():
        # the cases of only one of the two models
        unpaired = sorted(set(cases) ^ set(other.cases["case"]))
        difference = f"different cases: {join_names(unpaired, maximum=5)}"
        raise DatasetError(
            f"The two models have {difference if unpaired else 'another order of the same cases'}. "
            "Evaluate both on the same cases, in the same order."
        )
    draws = draw_groups(len(one.groups), replicates, np.random.default_rng(seed))
    has_scores = one.has_scores and other.has_scores
    # about the length of the arrays in a statistic; at least 1, because it is a divisor
    items = 1 + sum(len(x.lesions) + len(x.candidates) for x in (one, other))
    rows = {}
    for name, (statistic, support) in _find_statistics(one, other, fp_per_case).items():
        if why_not_at_thresholds and name in AT_THRESHOLDS:
            rows[name] = Difference(reason=why_not_at_thresholds)
            continue
        is_share = name not in NO_SHARES
        rows[name] = _compare_number(statistic, support, draws, items, seed, is_share=is_share)
    primary = PRIMARY if has_scores else PRIMARY_UNSCORED
    return _correct_p_values(rows, primary) | {primary: _as_primary(rows[primary], margin)}


def _find_statistics(
    one: Tables, other: Tables, fp_per_case: Sequence[float]
) -> dict[str, tuple[Statistic, Numbers]]:
    """Return the numbers to compare by name, each as a statistic and its support.

    The statistic computes the number of a set of results. Its weights are `[n, 2·groups]` for n
    replicates or permutations: first the weight of the results of model `one` for each group, then
    of model `other`. Weights of 0 for the other model give the number of one model. A set that
    mixes both models is needed by the permutation test, which swaps their results in some groups.
    The support `[groups]` is the number of items (lesions, cases or candidates) of each group that
    the number is computed from. `compare` describes which numbers are left out.
    """
    numbers: dict[str, tuple[Statistic, Numbers]] = {}
    if one.has_scores and other.has_scores:
        both = _concatenate(one, other)
        support = one.lesions_by_group  # both models are compared on the same lesions
        for rate in EQUAL_RATES:
            numbers[f"recall_at_{rate:g}"] = (curves.froc(both, [rate]), support)
        if len(one.cases) >= MIN_CASES_FOR_CPM:
            numbers["cpm"] = (curves.cpm(both, fp_per_case), support)
        numbers["average_precision"] = (curves.average_precision(both), support)
    # numerator and denominator `[groups]` of each ratio, for the first and the second model
    terms = {name: [RATIOS[name].terms(model.sums) for model in (one, other)] for name in COMPARED}
    for name in COMPARED_MEANS:
        # Without masks, only failed cases have a Dice, which is 0. Their mean would say nothing
        # about a model that predicts boxes, so no case counts.
        values = [model.cases[name].to_numpy(float) for model in (one, other)]
        is_known = ~np.isnan(values).any(axis=0) & (not (one.lacks_masks or other.lacks_masks))
        counts = one.add_up("cases", is_known)
        terms[name] = [(one.add_up("cases", np.where(is_known, x, 0.0)), counts) for x in values]
    for name, ((above, below), (other_above, other_below)) in terms.items():
        statistic = ratio(
            np.concatenate([above, other_above]), np.concatenate([below, other_below])
        )
        # a group contributes if the number is defined for one of the models
        numbers[name] = (statistic, np.maximum(below, other_below))
    return numbers


def _concatenate(one: Tables, other: Tables) -> Tables:
    """Return tables with the rows of both models, so that one statistic can weight either model.

    The group ids get the prefix `1 ` or `2 `. In sorted order, all groups of `one` therefore come
    before all groups of `other`.
    """
    return Tables(
        *(
            pd.concat(
                [
                    first.assign(group="1 " + first["group"]),
                    second.assign(group="2 " + second["group"]),
                ],
                ignore_index=True,
            )
            for first, second in zip(one.frames, other.frames, strict=True)
        )
    )


def _as_primary(difference: Difference, margin: float | None) -> Difference:
    """Mark a difference as the primary one, and add the result of the non-inferiority test.

    The first model is not inferior if the lower end of the interval is above `−margin`. The result
    is None if `margin` is None or if the difference has no interval.
    """
    not_inferior = None
    if margin is not None and difference.ci95 is not None:
        not_inferior = difference.ci95[0] > -margin
    return replace(difference, primary=True, margin=margin, not_inferior=not_inferior)


def _compare_number(
    statistic: Statistic,
    support: Numbers,
    draws: Draws,
    items: int,
    seed: int,
    *,
    is_share: bool,
) -> Difference:
    """Compute a number of both models, their difference, its interval and its p-value.

    There is no p-value if the difference is undefined, or if fewer than 5 groups contribute.

    Args:
        statistic: A statistic of `_find_statistics`.
        support: The number of items that each group contributes `[groups]`.
        draws: How often each replicate of the bootstrap draws each group.
        items: Number of lesions and candidates of both models. A statistic creates arrays of about
            this length for each replicate, so it limits how many are computed at once.
        seed: Seed of the permutation test.
        is_share: True if the number is between 0 and 1, so its difference is between −1 and 1.
    """
    n_groups = draws.shape[1]

    def compute_columns(weights: NDArray[Any]) -> Numbers:
        """Return the number of each model and the difference `[replicates, 3]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        a, b = _compute_both(statistic, first=weights, second=np.zeros_like(weights))
        # Sums of equal numbers in another order differ in the last digits. `+ 0.0` turns −0 into 0.
        return np.stack([a, b, np.round(a - b, 12) + 0.0], axis=1)

    bounds = [SHARE, SHARE, DIFFERENCE_OF_SHARES] if is_share else [None] * 3
    names = ("one", "other", "difference")
    a, b, difference = bootstrap(
        compute_columns,
        draws,
        support,
        undefined=UNDEFINED,
        items=items,
        names=names,
        bounds=bounds,
    )
    compared = Difference(
        one=a.value,
        other=b.value,
        difference=difference.value,
        ci95=difference.ci95,
        reason=difference.reason,
    )
    if difference.value is None or (support > 0).sum() < MIN_GROUPS:
        return compared
    return replace(compared, p_value=_test_by_swapping(statistic, n_groups, items, seed))


def _compute_both(
    statistic: Statistic, first: NDArray[Any], second: NDArray[Any]
) -> tuple[Numbers, Numbers]:
    """Compute a number of two complementary sets of results, which may mix the two models.

    Args:
        statistic: A statistic of `_find_statistics`.
        first: Weights of the first model's results in set A `[replicates, groups]`. In set B, they
            are the weights of the second model's results.
        second: Weights of the second model's results in set A `[replicates, groups]`. In set B,
            they are the weights of the first model's results.

    Returns:
        The number of set A and of set B, each `[replicates]`. With zeros as `second`, set A has
        only results of the first model, and set B only results of the second model.
    """
    return statistic(np.hstack((first, second)))[:, 0], statistic(np.hstack((second, first)))[:, 0]


def _test_by_swapping(statistic: Statistic, n_groups: int, items: int, seed: int) -> float:
    """Return the two-sided p-value of a permutation test of the difference of two models.

    Each permutation swaps the results of both models in some groups. If the models are equally
    good, this does not matter. The p-value is the fraction of permutations whose difference is as
    extreme as the observed one.

    Args:
        statistic: A statistic of `_find_statistics`.
        n_groups: Number of groups (patients).
        items: Number of lesions and candidates of both models. The statistic creates arrays of
            about this length for each permutation, so it limits how many are computed at once.
        seed: Seed of the permutations.
    """

    def compute_difference(first: NDArray[Any], second: NDArray[Any], axis: int) -> Numbers:
        """Return the difference of the models after some groups have swapped their results.

        scipy calls this function, with many permutations at once. It swaps indices instead of
        results, because the statistic needs all groups at once. Index g means the result of the
        first model for group g, and g + n_groups the result of the second model.

        Args:
            first: Indices of the results that count for the first model, along `axis`.
            second: Indices of the results that count for the second model. Not used, because they
                are the remaining indices.
            axis: The axis of the groups.
        """
        first = np.moveaxis(first, axis, -1)
        # convert indices to weights: 1 for each result that counts for the first model
        counts_for_first = np.zeros((*first.shape[:-1], 2 * n_groups))
        np.put_along_axis(counts_for_first, first.astype(np.int64), 1.0, axis=-1)
        weights = counts_for_first.reshape(-1, 2 * n_groups)
        a, b = _compute_both(statistic, weights[:, :n_groups], weights[:, n_groups:])
        return (a - b).reshape(first.shape[:-1])

    test = permutation_test(
        (np.arange(n_groups), np.arange(n_groups) + n_groups),
        compute_difference,
        permutation_type="samples",  # swaps within a pair, here the two results of a group
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=max(1, MAX_ELEMENTS // items),
        random_state=seed,
    )
    return float(test.pvalue)


def _correct_p_values(differences: Mapping[str, Difference], primary: str) -> dict[str, Difference]:
    """Add corrected p-values to the secondary differences, because many are tested (Holm 1979).

    With m secondary p-values in ascending order, the k-th (from 0) is multiplied by m − k. A
    corrected p-value is at most 1 and never below the previous one. The difference named `primary`,
    and differences without a p-value, get no corrected p-value.
    """
    sorted_p_values = sorted(
        (row.p_value, name)
        for name, row in differences.items()
        if name != primary and row.p_value is not None
    )
    corrected = dict(differences)
    p_holm = 0.0
    for rank, (p, name) in enumerate(sorted_p_values):
        p_holm = max(
            p_holm, min(1.0, (len(sorted_p_values) - rank) * p)
        )  # never below the previous one
        corrected[name] = replace(corrected[name], p_holm=p_holm)
    return corrected
