"""nnU-Net raw folders (versions 1 and 2) and Medical Segmentation Decathlon folders.

Layouts: nnU-Net documentation/dataset_format.md, region_based_training.md and ignore_label.md;
medicaldecathlon.com.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field

from lesionseg.core import CaseFiles, Dataset, LabelRegion, Problem
from lesionseg.errors import DatasetError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import CHANNEL, Count, Problems, missing_channels, validated
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.split_files import PICKLED, SPLITS_FINAL
from lesionseg.io.volumes import is_image_file, strip_suffix


class _Facts(BaseModel):
    """`dataset.json`; version 1 and the Decathlon say `modality` and label names by value."""

    channel_names: dict[int, str] = Field(
        validation_alias=AliasChoices("channel_names", "modality"), min_length=1
    )
    labels: dict[str, Count | list[Count]] | dict[Count, str]
    regions_class_order: list[int] | None = None


@dataclass(frozen=True)
class LabelTable:
    """Names of the lesions' mask values (ascending), the value to ignore, and regions."""

    names: Mapping[int, str]
    ignore: int | None
    regions: tuple[LabelRegion, ...]


def read_label_table(path: Path) -> LabelTable:
    """Read the labels of nnU-Net's `dataset.json`; raises `ReadError` or `DatasetError`."""
    names, ignore, regions = _labels(validated(_Facts, read_json(path), path), path)
    return LabelTable(names, ignore, regions)


def read_nnunet(root: Path) -> Dataset:
    """Read an nnU-Net raw folder, or where no image has a channel number a Decathlon one."""
    path, problems = root / "dataset.json", Problems()
    content = read_json(path)
    facts = validated(_Facts, content, path)
    names = tuple(name for _, name in sorted(facts.channel_names.items()))
    if sorted(facts.channel_names) != list(range(len(names))):
        raise DatasetError(f"{path}: the channels {facts.channel_names} are not 0, 1, ….")
    labels, ignore, regions = _labels(facts, path)
    training = list(map(strip_suffix, _image_files(root / "imagesTr")))
    numbered = not training or any(map(CHANNEL.fullmatch, training))
    cases: list[CaseFiles] = []
    for part in ("Tr", "Ts"):
        images = _by_case(root / f"images{part}", numbered, problems)
        references = _by_case(root / f"labels{part}", False, problems)
        for case in sorted(set(references) - set(images)):
            text = f"the mask of {case!r} in {root / f'labels{part}'} has no image."
            problems.append(Problem(case, text))
        for case in sorted(set(images) - set(references)) if part == "Tr" else ():
            text = "has no mask in labelsTr; a lesion-free one needs a mask of zeros."
            problems.append(Problem(case, f"{root}: the training image {case!r} {text}"))
        cases += [
            CaseFiles(
                case,
                tuple(file for _, file in sorted(images[case].items())),
                reference=references[case][0],
                role="test" if part == "Ts" else None,
                missing=missing_channels(images[case], len(names)),
            )
            for case in sorted(set(images) & set(references))
        ]
    name, convention = str(content.get("name") or root.name), "nnunet" if numbered else "msd"
    every = (name, root, convention, 3, names, labels, tuple(cases), ignore)
    given = next((root / n for n in (SPLITS_FINAL, PICKLED) if (root / n).is_file()), None)
    return Dataset(*every, regions=regions, problems=tuple(problems), split_file=given)


def _image_files(folder: Path) -> list[Path]:
    return sorted(filter(is_image_file, folder.iterdir())) if folder.is_dir() else []


def _by_case(folder: Path, numbered: bool, problems: Problems) -> dict[str, dict[int, Path]]:
    """Files by case and channel number; without numbers each is channel 0 of its own case.

    A raster without a number is the only file of its case, in colour.
    """
    cases: dict[str, dict[int, Path]] = {}
    for file in _image_files(folder):
        stem = strip_suffix(file)
        match = CHANNEL.fullmatch(stem) if numbered else None
        case, number = (match[1], int(match[2])) if match else (stem, 0)
        with problems.of(case, file):
            if numbered and match is None and file.suffix.lower() not in RASTERS:
                raise DatasetError(f"no channel number, such as {stem}_0000.")
            if number in cases.setdefault(case, {}):
                raise DatasetError(f"{cases[case][number].name} is the same case. Keep one.")
            cases[case][number] = file
    return cases


def _labels(
    facts: _Facts, path: Path
) -> tuple[dict[int, str], int | None, tuple[LabelRegion, ...]]:
    """Names of the lesions' mask values, the value to ignore, and regions where there are any.

    Version 2 writes name to value, or to a list of values that are learnt as one region; version 1
    value to name. 0 is background whatever its name. A list makes all labels regions, a single
    value one of itself; a value then has the name of the smallest region that holds it.
    """
    sets: dict[str, tuple[int, ...]] = {}
    for key, value in facts.labels.items():
        name, values = (value, key) if isinstance(value, str) else (str(key), value)
        sets[name] = tuple(sorted(set(values))) if isinstance(values, list) else (int(values),)
    lesions = {n: values for n, values in sets.items() if n != IGNORE and values != (0,)}
    ignored = sets.get(IGNORE, ())
    mixed = any({0, *ignored} & set(values) or not values for values in lesions.values())
    if not lesions or mixed or len(ignored) > 1 or len(set(sets.values())) < len(facts.labels):
        raise DatasetError(
            f"{path}: the labels {facts.labels} are not distinct values from 0 on with a lesion "
            'among them. Write "labels": {"background": 0, "lesion": 1}.'
        )
    ignore = ignored[0] if ignored else None
    if all(len(values) == 1 for values in lesions.values()):
        return dict(sorted((v, name) for name, (v,) in lesions.items())), ignore, ()
    painted = facts.regions_class_order or []
    pairs = list(zip(lesions.items(), painted, strict=False))
    misfit = any(value not in values for (_, values), value in pairs)
    if not len(painted) == len(set(painted)) == len(lesions) or misfit:
        raise DatasetError(
            f"{path}: regions need a regions_class_order of {len(lesions)} different values, one "
            f"of each region's own, not {painted}."
        )
    regions = tuple(LabelRegion(*lesion, value) for lesion, value in pairs)
    by_size = sorted(regions, key=lambda r: -len(r.values))  # the last of equals gives the name
    names = {value: region.name for region in by_size for value in region.values}
    return dict(sorted(names.items())), ignore, regions
