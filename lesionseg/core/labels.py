"""Lesion labels of a dataset or network: mask values, names, regions, ignored value, merging."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

LabelValue = Annotated[int, Field(ge=1, le=255)]
# the single label of lesions if the labels are regions, whose voxels have several mask values
UNION: Mapping[int, str] = {1: "lesion"}


def numbers_first(name: str) -> tuple[bool, float, str, str]:
    """Return a sort key for names that may be numbers, for use with `sorted`.

    Names that are finite numbers come first, in ascending order. Then come all other names in the
    order of the alphabet, without regard to upper and lower case.

    >>> sorted(["10", "b", "9", "A", "2.5"], key=numbers_first)
    ['2.5', '9', '10', 'A', 'b']
    """
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):  # True is sorted after False
        return (True, 0.0, name.casefold(), name)
    return (False, number, name, name)


def free_name(name: str, taken: Collection[str], form: str) -> str:
    """Return a unique name: the name itself if it is unused, otherwise the name with a number.

    The number is the smallest one, from 2 on, that makes the name unique.

    Args:
        name: The desired name.
        taken: The names that are already used.
        form: Format string of a name with a number, with the fields `{name}` and `{number}`.

    >>> free_name("nodule", ["mass", "nodule"], "{name} ({number})")
    'nodule (2)'
    """
    candidate = name
    number = 1
    while candidate in taken:
        number += 1
        candidate = form.format(name=name, number=number)
    return candidate


@dataclass(frozen=True)
class Labels:
    """The lesion labels in the order of the network's channels, without the background.

    Channel k is called `names[k]`, and `values[k]` is its value in predicted masks. Without
    `regions` it is learned from the voxels of that value. With regions, channel k is learned from
    the voxels of all values in `regions[k]`, and regions may overlap. `values[k]` is then one of
    the values of the region. In a predicted mask, later channels overwrite earlier ones. Regions do
    not divide lesions: a lesion is a connected component of all regions together.

    Attributes:
        values: Value of each channel in predicted masks.
        names: Name of each channel.
        regions: Mask values of each channel. Empty without regions.
        ignore: Mask value of voxels that are neither learned nor scored. None if there is none.
        merged: Names of the mask values that all count as label 1, if the user merged them.

    >>> brats = Labels((1, 3), ("whole tumour", "core"), regions=((1, 2, 3), (2, 3)))
    >>> brats.mask_names
    {1: 'whole tumour', 2: 'core', 3: 'core'}
    >>> brats.channel_labels
    ((1, 2, 3), (2, 3))
    """

    values: tuple[LabelValue, ...]
    names: tuple[str, ...]
    regions: tuple[tuple[LabelValue, ...], ...] = ()
    ignore: int | None = None
    merged: Mapping[int, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, names: Mapping[int, str], ignore: int | None = None) -> "Labels":
        """Build labels without regions from the name of each mask value.

        The channels are in ascending order of the mask values.

        >>> Labels.of({2: "cyst", 1: "scar"}, ignore=9).names
        ('scar', 'cyst')
        """
        values = tuple(sorted(names))
        return cls(values, tuple(names[value] for value in values), ignore=ignore)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def value_names(self) -> Mapping[int, str]:
        """The name of each label value in predicted masks, in the order of the channels."""
        return dict(zip(self.values, self.names, strict=True))

    @property
    def channel_values(self) -> tuple[tuple[int, ...], ...]:
        """The mask values of the voxels from which each channel is learned: one, or a region."""
        return self.regions or tuple((value,) for value in self.values)

    @property
    def mask_names(self) -> Mapping[int, str]:
        """The name of each label value in reference masks.

        With regions, the values are in ascending order. A value that belongs to several regions has
        the name of the region with the fewest values. Among regions with equal numbers of values,
        the last region counts.
        """
        if not self.regions:
            return self.value_names
        pairs = zip(self.regions, self.names, strict=True)
        # largest region first, so that smaller regions overwrite its names
        by_size = sorted(pairs, key=lambda pair: -len(pair[0]))
        return dict(sorted({value: name for region, name in by_size for value in region}.items()))

    @property
    def mask_values(self) -> tuple[int, ...]:
        """The label values in reference masks, in the order of their prepared labels.

        Preparation for training replaces the k-th of these values by the label k, from 1.
        """
        return tuple(self.mask_names)

    @property
    def channel_labels(self) -> tuple[tuple[int, ...], ...]:
        """The prepared labels (see `mask_values`) from which each channel is learned.

        Empty without regions, because channel k is then learned from the prepared label k + 1.
        """
        prepared = {value: k for k, value in enumerate(self.mask_values, start=1)}
        return tuple(tuple(prepared[value] for value in region) for region in self.regions)

    @property
    def lesion_names(self) -> Mapping[int, str]:
        """The name of each label value that lesions and candidates can have.

        With regions, all lesions have the single label `UNION`, because regions overlap.
        """
        return UNION if self.regions else self.value_names

    def merge(self) -> "Labels":
        """Return labels in which all mask values count as one label, 1, called "lesion".

        Used for the setting `merge_labels=true`.
        """
        return Labels(
            values=tuple(UNION),
            names=tuple(UNION.values()),
            ignore=self.ignore,
            merged=self.mask_names,
        )

    def predicted(self) -> "Labels":
        """Return the labels that a network predicts, for its plan.

        `ignore` and `merged` are dropped, because they concern only reference masks.
        """
        return Labels(values=self.values, names=self.names, regions=self.regions)
