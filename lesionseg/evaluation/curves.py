"""Curves from scores and hits: FROC, CPM, average precision of candidates, AUROC of cases.

They are statistics of the weights of groups.

A candidate that is a false positive if all candidates are accepted counts as one at every threshold
up to its score. A lesion is found at every threshold up to its `detected_at`. The curves therefore
need only `detected_at` of the lesions and the scores of the false positives. Ignored candidates
belong to neither.
"""

from collections.abc import Sequence

import numpy as np

from lesionseg.core.arrays import Integers, Numbers
from lesionseg.evaluation.intervals import GroupWeights, Statistic, divide
from lesionseg.evaluation.tables import NEVER_FOUND, Tables


def froc(tables: Tables, fp_per_case: Sequence[float]) -> Statistic:
    """Return a statistic that computes points of the FROC: the recall at some false positive rates.

    The statistic is a function of weights `[replicates, groups]`. It returns the recall
    `[replicates, rates]` at each rate in `fp_per_case` (false positives per case). The recall at a
    rate x is the recall at the lowest threshold with at most x false positives per case. It is
    constant above the largest rate that occurs, and NaN without lesions.
    """
    # false positives by descending score, then a sentinel for the threshold that accepts all
    by_score = np.argsort(-tables.false_score, kind="stable")
    scores = np.append(tables.false_score[by_score], NEVER_FOUND)
    false_group = tables.false_group[by_score]
    by_detection = np.argsort(-tables.detected_at, kind="stable")
    lesion_group = tables.group_of["lesions"][by_detection]
    cases = tables.sums["cases"]
    # Number of lesions that are found above the score of each false positive. The scores must be
    # higher, not equal, so that missed lesions (at −inf) do not count at the sentinel. Example:
    # lesions found at 0.9, 0.4 and −inf, false positives at 0.7 and 0.3, so [1, 2, 2].
    n_found_above = np.searchsorted(-tables.detected_at[by_detection], -scores, side="left")

    def statistic(weights: GroupWeights) -> Numbers:
        """Return the recall at each rate `[replicates, rates]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        # `accumulate` begins with 0. It is dropped in `n_false`, so that column i counts the false
        # positives down to row i, inclusive. Column k of `n_found` counts the first k lesions.
        n_false = accumulate(weights, false_group)[:, 1:]
        n_found = accumulate(weights, lesion_group)
        # 1e-9: rounding must not exclude a false positive that a rate just allows
        max_false = np.outer(weights @ cases, fp_per_case) + 1e-9
        # number of false positives that each rate allows. Candidates are accepted down to the next
        # one, which is excluded
        n_allowed = np.empty(max_false.shape, np.intp)
        for i, (n_false_of_row, max_of_row) in enumerate(zip(n_false, max_false, strict=True)):
            n_allowed[i] = np.searchsorted(n_false_of_row, max_of_row, side="right")
        # the last column of `n_found` is the number of all lesions
        return divide(np.take_along_axis(n_found, n_found_above[n_allowed], 1), n_found[:, -1:])

    return statistic


def cpm(tables: Tables, fp_per_case: Sequence[float]) -> Statistic:
    """Return a statistic that computes the CPM: the mean recall at some false positive rates.

    The statistic is a function of weights `[replicates, groups]` with the result `[replicates, 1]`.
    The rates are `fp_per_case`, in false positives per case (van Ginneken et al. 2010).
    """
    curve = froc(tables, fp_per_case)

    def statistic(weights: GroupWeights) -> Numbers:
        """Return the mean recall over the rates `[replicates, 1]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        result: Numbers = curve(weights).mean(axis=1, keepdims=True)
        return result

    return statistic


def average_precision(tables: Tables) -> Statistic:
    """Return a statistic that computes the average precision of candidates.

    The statistic is a function of weights `[replicates, groups]` with the result `[replicates, 1]`.
    Average precision is Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the distinct scores i in descending order. Rᵢ is the
    recall and Pᵢ the precision if all candidates with at least this score are accepted. Found
    lesions are the true positives, and ignored candidates do not count. Without candidates the
    result is 0, and without lesions NaN.
    """
    # rank found lesions and false positives together
    found = tables.detected_at > NEVER_FOUND
    score = np.concatenate([tables.detected_at[found], tables.false_score])
    group = np.concatenate([tables.group_of["lesions"][found], tables.false_group])
    order = np.argsort(-score, kind="stable")
    is_true = order < found.sum()  # the found lesions come first in `score`
    # items with equal scores are accepted together: number of items down to each distinct score
    n_accepted = 1 + np.flatnonzero(np.diff(score[order], append=np.inf))
    n_true = is_true.cumsum()[n_accepted - 1]
    lesions = tables.lesions_by_group
    group = group[order]
    found_group = group[is_true]

    def statistic(weights: GroupWeights) -> Numbers:
        """Return the average precision of each replicate `[replicates, 1]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        hits = accumulate(weights, found_group)[:, n_true]
        # `divide` gives NaN for 0 / 0, if no item down to a score was drawn
        precision = np.nan_to_num(divide(hits, accumulate(weights, group)[:, n_accepted]))
        steps = np.diff(hits, axis=1, prepend=0)
        return divide((steps * precision).sum(1), weights @ lesions)[:, None]

    return statistic


def case_auroc(tables: Tables) -> Statistic:
    """Return a statistic that computes the AUROC of telling cases with and without lesions apart.

    The statistic is a function of weights `[replicates, groups]` with the result `[replicates, 1]`.
    The AUROC is the probability that a case with a lesion has a higher `case_score` than a
    lesion-free case; equal scores count half. Cases that are neither are left out, see
    `Tables.is_lesion_free`. The result is NaN in a replicate without cases with lesions or without
    lesion-free cases.
    """
    is_counted = tables.has_lesion | tables.is_lesion_free
    case_score = tables.cases["case_score"].to_numpy(float)[is_counted]
    order = np.argsort(case_score, kind="stable")
    score = case_score[order]
    group = tables.group_of["cases"][is_counted][order]
    positive = tables.has_lesion[is_counted][order]
    positive_group = group[positive]
    # For each positive case: how many of the negative cases, sorted by score, are lower, and how
    # many are lower or equal. `statistic` uses them as positions in sums over the sorted cases.
    n_negative = np.concatenate([[0], np.cumsum(~positive)])
    end_of_lower = n_negative[np.searchsorted(score, score[positive], side="left")]
    end_of_not_higher = n_negative[np.searchsorted(score, score[positive], side="right")]

    def statistic(weights: GroupWeights) -> Numbers:
        """Return the AUROC of each replicate `[replicates, 1]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        negative = accumulate(weights, group[~positive])  # sums of weights, lowest score first
        # ties count half
        n_below = (negative[:, end_of_lower] + negative[:, end_of_not_higher]) / 2
        of_positive = np.take(weights, positive_group, axis=1).astype(float)
        # number of pairs in which the positive case has the higher score, by number of pairs
        n_won = (of_positive * n_below).sum(1)
        return divide(n_won, of_positive.sum(1) * negative[:, -1])[:, None]

    return statistic


def accumulate(weights: GroupWeights, groups: Integers) -> Numbers:
    """Count how many of the first k items occur in each replicate, for k from 0 to all items.

    Items are candidates, lesions or cases in a sorted order. An item occurs as often as its group
    was drawn.

    Args:
        weights: How often each group was drawn `[replicates, groups]`.
        groups: The group of each item `[items]`.

    Returns:
        Cumulative sums of the weights of the items `[replicates, items + 1]`, which begin with 0.
    """
    sums = np.zeros((len(weights), len(groups) + 1))
    # weights are not cast to float64: as bytes, those of 25 000 groups fit into the L1 cache
    np.cumsum(np.take(weights, groups, axis=1), axis=1, out=sums[:, 1:])
    return sums
