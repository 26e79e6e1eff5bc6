"""Groups drawn for validation or dealt into folds, alike in number and size of lesions."""

from collections.abc import Mapping, Sequence

import numpy as np

from lesionseg.core import CaseFiles


def deal(
    units: Mapping[str, Sequence[str]],
    burden: Mapping[str, int],
    sizes: Mapping[str, float],
    n_folds: int,
    rng: np.random.Generator,
) -> list[list[str]]:
    """Units in `n_folds` hands: sorted by burden in blocks, by size within, dealt at random."""
    weight, by_burden = _sorted_by_burden(units, burden, rng)
    size = {n: float(np.median([sizes.get(c, 0.0) for c in cases])) for n, cases in units.items()}
    free = [name for name in by_burden if weight[name] == 0]
    rest = by_burden[len(free) :]
    wide = n_folds * max(1, round(len(rest) / (3 * n_folds)))  # about three classes of burden
    classes = [free, *(rest[i : i + wide] for i in range(0, len(rest), wide))]
    ordered = [name for members in classes for name in sorted(members, key=lambda n: size[n])]
    hands: list[list[str]] = [[] for _ in range(n_folds)]
    for start in range(0, len(ordered), n_folds):
        block = ordered[start : start + n_folds]
        for name, hand in zip(block, rng.permutation(n_folds), strict=False):
            hands[int(hand)].append(name)
    return _filled(hands)


def _sorted_by_burden(
    units: Mapping[str, Sequence[str]], burden: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, int], list[str]]:
    """The lesions of each unit, and the units by their number; equal ones in random order."""
    weight = {name: sum(burden[case] for case in cases) for name, cases in units.items()}
    names = sorted(weight)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    return weight, sorted(shuffled, key=lambda name: weight[name])


def _filled(hands: list[list[str]]) -> list[list[str]]:
    """No hand is empty where there are units enough: the fullest gives its last."""
    for hand in hands:
        fullest = max(hands, key=len)
        if not hand and len(fullest) > 1:
            hand.append(fullest.pop())
    return sorted(hands, key=lambda hand: not hand)


def units_of(pool: Sequence[CaseFiles]) -> dict[str, list[str]]:
    """What is drawn as a whole: groups, or cases when there is but one group."""
    if len({c.group or c.case for c in pool}) < 2:
        return {c.case: [c.case] for c in pool}
    units: dict[str, list[str]] = {}
    for case in pool:
        units.setdefault(case.group or case.case, []).append(case.case)
    return units


def pick_for_validation(
    units: Mapping[str, Sequence[str]],
    burden: Mapping[str, int],
    fraction: float,
    rng: np.random.Generator,
) -> list[str]:
    """Units for validation: one at random from each of n equal blocks of the units by burden.

    Both sides get a lesion where two units have one: without, training or choosing an operating
    point is impossible.
    """
    weight, ordered = _sorted_by_burden(units, burden, rng)
    n = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
    blocks = np.array_split(np.arange(len(ordered)), n)
    held = [ordered[int(rng.choice(block))] for block in blocks]
    with_lesions = [name for name in ordered if weight[name] > 0]
    if len(with_lesions) > 1 and not set(held) & set(with_lesions):
        held[-1] = with_lesions[int(rng.integers(len(with_lesions)))]
    if with_lesions and set(with_lesions) <= set(held):
        return _without_a_lesion_unit(held, ordered, weight)
    return held


def _without_a_lesion_unit(
    held: list[str], ordered: Sequence[str], weight: Mapping[str, int]
) -> list[str]:
    """Training keeps the unit with the most lesions; a lesion-free one validates in its place."""
    most = max(held, key=lambda name: weight[name])
    free = [name for name in ordered if name not in held]
    return [name for name in held if name != most] + free[:1]
