"""nnU-Net raw folders (versions 1 and 2) and Medical Segmentation Decathlon folders.

Layouts: nnU-Net documentation/dataset_format.md, region_based_training.md and ignore_label.md;
medicaldecathlon.com.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset, LabelRegion, Problem, Role
from lesionseg.errors import DatasetError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import count_axes, is_count
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.volumes import is_image_file, strip_suffix

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_PARTS: tuple[tuple[str, Role | None], ...] = (("Tr", None), ("Ts", "test"))


def recognises_nnunet(root: Path) -> bool:
    """Whether the folder holds a `dataset.json`."""
    return (root / "dataset.json").is_file()


def recognises_msd(root: Path) -> bool:
    """Whether it also has `imagesTr` files without a channel number, such as `lung_001`."""
    files = _image_files(root / "imagesTr")
    numbered = (_CHANNEL.fullmatch(strip_suffix(file)) for file in files)
    return recognises_nnunet(root) and bool(files) and not any(numbered)


def read_nnunet(root: Path) -> Dataset:
    """Read an nnU-Net raw folder; groups are not yet assigned. Raises `DatasetError`."""
    return _read(root, "nnunet")


def read_msd(root: Path) -> Dataset:
    """Read a Decathlon folder of one channel, or of pictures in colour. Raises `DatasetError`."""
    return _read(root, "msd")


def _read(root: Path, convention: str) -> Dataset:
    path = root / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds no JSON object.")
    channels = _channels(content, path)
    labels, ignore, regions = _labels(content, path)
    folds, problems = _folds(root / "splits_final.json"), list[Problem]()
    cases: list[CaseFiles] = []
    for part, role in _PARTS:
        images = _by_case(root / f"images{part}", convention == "nnunet", problems)
        references = _by_case(root / f"labels{part}", False, problems)
        for case in sorted(set(references) - set(images)):
            text = f"the mask of {case!r} in {root / f'labels{part}'} has no image."
            problems.append(Problem(case, text))
        for case in sorted(set(images) - set(references)) if part == "Tr" else ():
            text = (
                f"the training image {case!r} has no mask in {root / 'labelsTr'}. Give lesion-free"
            )
            text += " cases a mask of zeros and move unlabelled ones to imagesTs."
            problems.append(Problem(case, text))
        for case in sorted(set(images) & set(references)):
            files = images[case]
            colour = list(files) == [0] and files[0].suffix.lower() in RASTERS
            missing = () if colour and len(channels) == 3 else range(len(channels))
            cases.append(
                CaseFiles(
                    case=case,
                    images=tuple(file for _, file in sorted(files.items())),
                    missing=tuple(c for c in missing if c not in files),
                    reference=references[case][0],
                    role=role,
                    fold=folds.get(case) if role is None else None,
                )
            )
    if (
        convention == "msd"
        and len(channels) > 1
        and any(c.images[0].suffix.lower() not in RASTERS for c in cases)
    ):
        raise DatasetError(
            f"{root}: the Decathlon keeps the channels {', '.join(channels)} in one 4-D file. "
            "Split each file into <case>_0000, <case>_0001, … in imagesTr."
        )
    if not cases and not problems:
        raise DatasetError(
            f"{root}: no labelled case; imagesTr/<case>_0000.nii.gz and labelsTr/<case>.nii.gz are "
            "expected."
        )
    return Dataset(
        name=str(content.get("name") or root.name),
        root=root,
        convention=convention,
        dims=count_axes(cases),
        channel_names=channels,
        labels=labels,
        cases=tuple(cases),
        ignore_label=ignore,
        regions=regions,
        incomplete_reference=bool(content.get("incomplete_reference", False)),
        problems=tuple(problems),
    )


def _channels(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Names in order: version 2 says `channel_names`, version 1 and the Decathlon `modality`."""
    names = content.get("channel_names", content.get("modality"))
    if isinstance(names, dict) and names:
        by_number = {str(key): str(name) for key, name in names.items()}
        if set(by_number) == {str(i) for i in range(len(names))}:
            return tuple(by_number[str(i)] for i in range(len(names)))
    raise DatasetError(
        f'{path}: the channels are not named ({names}). Write "channel_names": {{"0": "FLAIR"}}.'
    )


def _folds(path: Path) -> dict[str, int]:
    """Fold of each case: the split whose `val` list it stands in; none when a case is in two."""
    splits = read_json(path) if path.is_file() else []
    if not isinstance(splits, list) or not all(isinstance(s, dict) for s in splits):
        raise DatasetError(f"{path}: the splits are not a list of objects.")
    pairs = [(str(case), k) for k, split in enumerate(splits) for case in split.get("val", ())]
    return dict(pairs) if len(dict(pairs)) == len(pairs) else {}


def _image_files(folder: Path) -> list[Path]:
    return sorted(filter(is_image_file, folder.iterdir())) if folder.is_dir() else []


def _by_case(folder: Path, numbered: bool, problems: list[Problem]) -> dict[str, dict[int, Path]]:
    """Files by case and channel number; without numbers each is channel 0 of its own case.

    A raster without a number is the only file of its case, in colour.
    """
    cases: dict[str, dict[int, Path]] = {}
    for file in _image_files(folder):
        stem = strip_suffix(file)
        match = _CHANNEL.fullmatch(stem) if numbered else None
        if numbered and match is None and file.suffix.lower() not in RASTERS:
            problems.append(Problem(stem, f"{file}: no channel number, such as {stem}_0000."))
            continue
        case, number = (match[1], int(match[2])) if match else (stem, 0)
        if number in cases.setdefault(case, {}):
            other = cases[case][number].name
            problems.append(Problem(case, f"{file} and {other} are the same case. Keep one."))
            continue
        cases[case][number] = file
    return cases


def _labels(
    content: Mapping[str, Any], path: Path
) -> tuple[dict[int, str], int | None, tuple[LabelRegion, ...]]:
    """Names of the lesions' mask values, the value to ignore, and regions where there are any.

    Version 2 writes name to value, or to a list of values that are learnt as one region; version 1
    value to name. 0 is background whatever its name. A list makes all labels regions, a single
    value one of itself; a value then has the name of the smallest region that holds it. Raises
    `DatasetError`.
    """
    stated = content.get("labels")
    pairs = list(stated.items()) if isinstance(stated, dict) else []
    if all(is_count(key) and isinstance(name, str) for key, name in pairs):
        pairs = [(name, key) for key, name in pairs]
    sets: dict[str, tuple[int, ...]] = {}
    for name, value in pairs:
        values = value if isinstance(value, list) else [value]
        if not all(map(is_count, values)):
            raise DatasetError(f"{path}: the label {name!r} is no integer: {value}.")
        sets[str(name)] = tuple(sorted({int(v) for v in values}))
    lesions = {n: values for n, values in sets.items() if n != IGNORE and values != (0,)}
    ignored = sets.get(IGNORE, ())
    mixed = any({0, *ignored} & set(values) for values in lesions.values())
    unlike = len(set(sets.values())) == len(pairs) and () not in lesions.values()
    if not unlike or len(ignored) > 1 or mixed or not lesions:
        raise DatasetError(
            f"{path}: the labels {stated} are not distinct values from 0 on with a lesion among "
            'them. Write "labels": {"background": 0, "lesion": 1}.'
        )
    ignore = ignored[0] if ignored else None
    if all(len(values) == 1 for values in lesions.values()):
        return dict(sorted((v, name) for name, (v,) in lesions.items())), ignore, ()
    regions = _regions(lesions, content.get("regions_class_order"), path)
    by_size = sorted(regions, key=lambda r: -len(r.values))  # the last of equals gives the name
    names = {value: region.name for region in by_size for value in region.values}
    return dict(sorted(names.items())), ignore, regions


def _regions(
    lesions: Mapping[str, Sequence[int]], order: Any, path: Path
) -> tuple[LabelRegion, ...]:
    given = order if isinstance(order, list) else []
    if len(given) != len(lesions) or len(set(given)) < len(given):
        raise DatasetError(
            f"{path}: regions need a regions_class_order of {len(lesions)} different values, not "
            f"{order}; see nnU-Net's region_based_training.md. Or take data.merge_labels=true."
        )
    regions = [
        LabelRegion(name, tuple(values), painted)
        for (name, values), painted in zip(lesions.items(), given, strict=True)
    ]
    for region in regions:
        if region.painted not in region.values:
            raise DatasetError(
                f"{path}: regions_class_order paints the region {region.name!r} with "
                f"{region.painted}, which is none of its values {list(region.values)}."
            )
    return tuple(regions)
