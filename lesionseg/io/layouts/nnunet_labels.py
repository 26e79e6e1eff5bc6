"""The labels of nnU-Net's `dataset.json`: single values, regions of several, and one to ignore.

Format: nnU-Net documentation/dataset_format.md, region_based_training.md and ignore_label.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lesionseg.core import LabelRegion
from lesionseg.errors import DatasetError
from lesionseg.io.layouts.case_problems import is_count

IGNORE = "ignore"


@dataclass(frozen=True)
class FileLabels:
    """Names of the lesions' mask values, the value to ignore, and the regions, if there are any.

    With regions a value has the name of the smallest one that holds it.
    """

    names: dict[int, str]
    ignore: int | None = None
    regions: tuple[LabelRegion, ...] = field(default=())


def parse_labels(labels: Any, order: Any, path: Path) -> FileLabels:
    """What either version's `labels` say; `order` is `regions_class_order`, None if not there.

    Version 2 writes name to value, or to a list of values that are learnt as one region; version 1
    value to name. 0 is background whatever its name. A list makes all labels regions, a single
    value one of itself. Raises `DatasetError` for values that are not whole, distinct and from 0
    on, no lesion label, and regions without an order or with one that does not fit.
    """
    pairs = _pairs(labels, path)
    lesions = [(name, values) for name, values in pairs if name != IGNORE and values != (0,)]
    ignore = next((values for name, values in pairs if name == IGNORE), None)
    _check(pairs, lesions, ignore, labels, path)
    left_out = None if ignore is None else ignore[0]
    if all(len(values) == 1 for _, values in lesions):
        return FileLabels({v: name for name, (v,) in sorted(lesions, key=lambda p: p[1])}, left_out)
    regions = _regions(lesions, order, path)
    return FileLabels(_smallest(regions), left_out, regions)


def _pairs(labels: Any, path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Name and values of each label, in the file's order."""
    pairs = list(labels.items()) if isinstance(labels, Mapping) else []
    if all(is_count(name) and isinstance(value, str) for name, value in pairs):
        return [(str(name), (int(value),)) for value, name in pairs]
    lists = [(str(name), value if isinstance(value, list) else [value]) for name, value in pairs]
    if not all(is_count(v) for _, values in lists for v in values):
        raise DatasetError("A label's value is not an integer.", where=path, seen=labels)
    return [(name, tuple(sorted({int(v) for v in values}))) for name, values in lists]


def _check(
    pairs: Sequence[tuple[str, tuple[int, ...]]],
    lesions: Sequence[tuple[str, tuple[int, ...]]],
    ignore: tuple[int, ...] | None,
    labels: Any,
    path: Path,
) -> None:
    sets = [values for _, values in pairs]
    ignored = () if ignore is None else ignore
    mixed = any({0, *ignored} & set(values) for _, values in lesions)
    if len(set(sets)) < len(sets) or () in sets or len(ignored) > 1 or mixed or not lesions:
        raise DatasetError(
            "The labels are not distinct values from 0 on with at least one lesion label.",
            where=path,
            seen=labels,
            expected='"labels": {"background": 0, "lesion": 1}',
        )


def _regions(
    lesions: Sequence[tuple[str, tuple[int, ...]]], order: Any, path: Path
) -> tuple[LabelRegion, ...]:
    given = list(order) if isinstance(order, list) else []
    if len(given) != len(lesions) or len(set(given)) < len(given):
        raise DatasetError(
            "Labels that are lists of values (regions) need an order in which masks are painted.",
            where=path,
            seen=f"regions_class_order: {order}",
            expected=f"{len(lesions)} different values, one per region",
            remedy="see nnU-Net's region_based_training.md; or data.merge_labels=true.",
        )
    regions = [
        LabelRegion(name, values, painted)
        for (name, values), painted in zip(lesions, given, strict=True)
    ]
    for region in regions:
        if region.painted not in region.values:
            raise DatasetError(
                f"The region {region.name!r} would be painted with a value that is not its own.",
                where=path,
                seen=f"regions_class_order: {order}",
                expected=f"one of {list(region.values)} in its place",
            )
    return tuple(regions)


def _smallest(regions: Sequence[LabelRegion]) -> dict[int, str]:
    """Each value's name: the region of the fewest values that has it, the last of equals."""
    by_size = sorted(regions, key=lambda r: -len(r.values))
    names = {value: region.name for region in by_size for value in region.values}
    return dict(sorted(names.items()))
