"""Balance of labels in a split: training and validation get each label if possible; folds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lesionseg.core.arrays import Flags, Integers

UnitLabels = Mapping[str, frozenset[int]]


def stratify_validation(
    drawn: Sequence[str], units: Sequence[str], labels: UnitLabels, rng: np.random.Generator
) -> list[str]:
    """Change drawn validation units so that validation has each label of at least two units.

    A unit is a group of cases that are drawn together, such as a patient.

    - Units are added, then others are moved to training, so that the number of units grows only if
      it has to.
    - Training also keeps a unit of each label, if that does not remove another label from
      validation.
    - Nothing changes if all lesions have the same label.

    Args:
        drawn: The drawn units.
        units: All units, in the order of their numbers of lesions.
        labels: The labels of each unit's lesions.
        rng: Chooses between units that are equally good.

    Returns:
        The validation units. At least one unit with lesions remains in training, if the draw left
        one there.
    """
    label_values = sorted({value for name in units for value in labels[name]})
    if len(label_values) < 2:
        return list(drawn)
    division = _Division(
        # `[units, labels]`
        has_label=np.array([[v in labels[name] for v in label_values] for name in units]),
        is_validation=np.isin(np.array(units, object), list(drawn)),
        rng=rng,
    )
    division.add_missing_labels()
    division.reduce_validation(maximum=len(drawn))
    division.return_to_training()
    return [
        name
        for name, is_validation in zip(units, division.is_validation, strict=True)
        if is_validation
    ]


@dataclass(frozen=True, eq=False)
class _Division:
    """A division of units into validation and training, with the labels of each unit.

    Attributes:
        has_label: `[units, labels]`, True if the unit has a lesion of the label.
        is_validation: `[units]`, True for validation units. The methods change it in place.
        rng: Chooses between units that are equally good.
    """

    has_label: Flags
    is_validation: Flags
    rng: np.random.Generator

    @cached_property
    def is_shared(self) -> Flags:
        """`[labels]`, True for the labels of several units, which validation has to have.

        A label of a single unit is left to training.
        """
        result: Flags = self.has_label.sum(axis=0) >= 2
        return result

    @property
    def _n_validation(self) -> Integers:
        """`[labels]`, the number of validation units with each label."""
        result: Integers = self.has_label[self.is_validation].sum(axis=0)
        return result

    @property
    def _n_training(self) -> Integers:
        """`[labels]`, the number of training units with each label."""
        result: Integers = self.has_label[~self.is_validation].sum(axis=0)
        return result

    def add_missing_labels(self) -> None:
        """Add units to validation until it has each shared label.

        The next unit is the one with the most missing labels, minus the labels that training would
        lose with this unit.
        """
        while (missing := self.is_shared & (self._n_validation == 0)).any():
            gains = (self.has_label & missing).sum(axis=1)
            # a label of one training unit is lost with this unit
            losses = (self.has_label & (self._n_training == 1)).sum(axis=1)
            self.is_validation[self._draw_best(gains > 0, gains - losses)] = True

    def reduce_validation(self, maximum: int) -> None:
        """Move units to training until validation has `maximum` units.

        Stop earlier if validation needs each of its units. Units with labels that training lacks
        are moved first.
        """
        while self.is_validation.sum() > maximum:
            is_replaceable = self._find_replaceable()
            if not is_replaceable.any():
                return
            gains = (self.has_label & (self._n_training == 0)).sum(axis=1)
            self.is_validation[self._draw_best(is_replaceable, gains)] = False

    def return_to_training(self) -> None:
        """Move a unit of each label that training lacks to training, as far as possible.

        A training unit without which training keeps all its labels replaces it in validation, if
        there is such a unit. If validation needs each unit of the label, units are exchanged
        (`_exchange_nearest`).
        """
        for label in np.flatnonzero(self._n_training == 0):
            if self._n_training[label]:  # an earlier turn has added the label
                continue
            can_leave = self._find_replaceable() & self.has_label[:, label]
            # units in training without which training keeps each of its labels
            is_last_in_training = (self.has_label & (self._n_training == 1)).any(axis=1)
            is_spare = ~self.is_validation & ~is_last_in_training
            # validation must not become empty
            keeps_validation = is_spare.any() or self.is_validation.sum() > 1
            if not can_leave.any():
                self._exchange_nearest(self.is_validation & self.has_label[:, label], is_spare)
                continue
            if not keeps_validation:
                continue
            # any of them at random, because all scores are 0
            leaving = self._draw_best(can_leave, np.zeros(len(self.is_validation), np.int64))
            self.is_validation[leaving] = False
            if is_spare.any():
                # the nearest unit in the order of numbers of lesions replaces it
                nearness = -np.abs(np.arange(len(self.is_validation)) - leaving)
                self.is_validation[self._draw_best(is_spare, nearness)] = True

    def _exchange_nearest(self, can_leave: Flags, is_spare: Flags) -> None:
        """Exchange a validation unit for a training unit, if validation can do with the new unit.

        After the exchange, validation must have each shared label and a lesion. Of several possible
        pairs, the two units nearest in the order of their numbers of lesions are exchanged. If
        there is no such pair, nothing changes.

        Args:
            can_leave: `[units]`, True for validation units that training needs.
            is_spare: `[units]`, True for training units that training does not need.
        """
        pairs: list[tuple[int, int, int]] = []
        for leaving in np.flatnonzero(can_leave).tolist():
            # `[units, labels]`: the numbers in validation after the exchange for each unit
            n_validation = self._n_validation - self.has_label[leaving] + self.has_label
            keeps_labels = (n_validation[:, self.is_shared] > 0).all(axis=1)
            keeps_lesions = (n_validation > 0).any(axis=1)
            for coming in np.flatnonzero(is_spare & keeps_labels & keeps_lesions).tolist():
                pairs.append((abs(leaving - coming), leaving, coming))
        if pairs:
            _, leaving, coming = min(pairs)  # the smallest distance, then the first units
            self.is_validation[leaving] = False
            self.is_validation[coming] = True

    def _find_replaceable(self) -> Flags:
        """Return `[units]`, True for validation units without which validation keeps its labels.

        A unit is not replaceable if it is the only one in validation with a shared label, or the
        only one with lesions.
        """
        # the only unit in validation with one of its shared labels
        is_needed = (self.has_label & self.is_shared & (self._n_validation == 1)).any(axis=1)
        has_lesions = self.has_label.any(axis=1)
        if (self.is_validation & has_lesions).sum() == 1:
            is_needed |= has_lesions  # in validation, this is one unit
        result: Flags = self.is_validation & ~is_needed
        return result

    def _draw_best(self, allowed: Flags, scores: Integers) -> int:
        """Draw one of the allowed units with the highest score at random, and return its index.

        Args:
            allowed: `[units]`, True for the units to choose from, at least one.
            scores: `[units]`, the higher the better.
        """
        return int(self.rng.choice(np.flatnonzero(allowed & (scores == scores[allowed].max()))))


def stratify_by_label(units: Sequence[str], labels: UnitLabels) -> list[list[str]]:
    """Divide units into strata by the rarest label of each unit, the rarest label first.

    The strata are distributed to the folds one after the other, so that each fold gets units of a
    rare label.

    Args:
        units: The units, such as patients. The cases of a unit stay together.
        labels: The labels of each unit's lesions.

    Returns:
        The units of each label, in the order of the label's number of units, then of the label
        value. The last stratum has the units without lesions.
    """
    frequency = Counter(value for name in units for value in labels[name])
    rarest_first = sorted(frequency, key=lambda value: (frequency[value], value))
    # one stratum more than labels, for units without lesions
    strata: list[list[str]] = [[] for _ in range(len(rarest_first) + 1)]
    for name in units:
        ranks = [rarest_first.index(value) for value in labels[name]]
        strata[min(ranks, default=len(rarest_first))].append(name)
    return strata


def deal_to_folds(
    strata: Iterable[Sequence[str]], n_folds: int, rng: np.random.Generator
) -> list[set[str]]:
    """Distribute units to folds so that the units of a stratum are in as many folds as possible.

    The strata are processed in turn. Each block of `n_folds` units of a stratum goes to different
    folds. The folds with the fewest units come first, ties at random.

    Args:
        strata: The units of each stratum.
        n_folds: Number of folds.
        rng: Chooses between folds with equal numbers of units.

    Returns:
        The units of each fold. Their numbers differ by at most one.
    """
    folds: list[set[str]] = [set() for _ in range(n_folds)]
    for members in strata:
        for start in range(0, len(members), n_folds):
            # sorting is stable, so folds of equal size stay in random order
            order = sorted(rng.permutation(n_folds).tolist(), key=lambda fold: len(folds[fold]))
            # the last block of a stratum may have fewer units than there are folds
            for name, fold in zip(members[start : start + n_folds], order, strict=False):
                folds[fold].add(name)
    return folds
