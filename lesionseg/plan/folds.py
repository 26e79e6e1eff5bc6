"""Deal groups into folds that resemble each other in number and size of lesions."""

from collections.abc import Mapping, Sequence

import numpy as np


def deal(
    units: Mapping[str, Sequence[str]],
    burden: Mapping[str, int],
    sizes: Mapping[str, float],
    n_folds: int,
    rng: np.random.Generator,
) -> list[list[str]]:
    """Units in `n_folds` hands: sorted by burden in blocks, by size within, dealt at random."""
    weight = {name: sum(burden[case] for case in cases) for name, cases in units.items()}
    size = {n: float(np.median([sizes.get(c, 0.0) for c in cases])) for n, cases in units.items()}
    names = sorted(weight)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    by_burden = sorted(shuffled, key=lambda name: weight[name])
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


def _filled(hands: list[list[str]]) -> list[list[str]]:
    """No hand is empty where there are units enough: the fullest gives its last."""
    for hand in hands:
        fullest = max(hands, key=len)
        if not hand and len(fullest) > 1:
            hand.append(fullest.pop())
    return sorted(hands, key=lambda hand: not hand)
