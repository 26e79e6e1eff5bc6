"""nnU-Net raw folders (versions 1 and 2) and Medical Segmentation Decathlon folders.

Layouts: nnU-Net documentation/dataset_format.md, region_based_training.md and ignore_label.md;
medicaldecathlon.com.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from lesionseg.core import CaseFiles, Dataset, Labels, Problem, Remark, Role
from lesionseg.errors import DatasetError, count, listed
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import (
    CHANNEL,
    Count,
    Problems,
    missing_channels,
    unread_files,
    validated,
)
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.nifti import SUFFIXES as NIFTI
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.split_files import PICKLED, SPLITS_FINAL
from lesionseg.io.volumes import is_image_file, is_raster, strip_suffix

FilesByCase = dict[str, dict[int, Path]]


class _Listed(BaseModel):
    images: list[str] = Field(min_length=1)
    label: str


class _Facts(BaseModel):
    """`dataset.json`; version 1 and the Decathlon say `modality` and label names by value."""

    channel_names: dict[int, str] = Field(
        validation_alias=AliasChoices("channel_names", "modality"), min_length=1
    )
    labels: dict[str, Count | list[Count]] | dict[Count, str]
    regions_class_order: list[int] | None = None
    file_ending: str | None = None
    dataset: dict[str, _Listed] | None = None
    n_training: Any = Field(default=None, validation_alias="numTraining")
    training: Any = None


@dataclass(frozen=True)
class _Naming:
    """Which files end in a channel number `_0000`: the images, and by mistake the masks too.

    Without a number each image is the only channel of its own case, as in the Decathlon.
    """

    images: bool
    masks: bool = False


def read_nnunet_labels(path: Path) -> Labels:
    """Read the labels of nnU-Net's `dataset.json`; raises `ReadError` or `DatasetError`."""
    return nnunet_labels(read_json(path), path)


def nnunet_labels(content: object, path: Path) -> Labels:
    """Return the labels of a `dataset.json` that is read already.

    Raises:
        DatasetError: if they are not as nnU-Net has them.
    """
    return _labels(validated(_Facts, content, path), path)


def read_nnunet(root: Path) -> Dataset:
    """Read an nnU-Net raw folder, or a Decathlon folder if no image has a channel number.

    A list `dataset` in `dataset.json` names the training files in place of the folders. Other
    files beside those of the stated `file_ending` are left out with a remark.
    """
    path = root / "dataset.json"
    problems = Problems()
    remarks: list[Remark] = []
    content = read_json(path, allow_nan=True)
    facts = validated(_Facts, content, path)
    names = tuple(name for _, name in sorted(facts.channel_names.items()))
    if sorted(facts.channel_names) != list(range(len(names))):
        raise DatasetError(f"{path}: the channels {facts.channel_names} are not 0, 1, ….")
    labels = _labels(facts, path)
    files = {
        part: _image_files(root / part, facts.file_ending, remarks)
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
    }
    naming = _find_naming(files["imagesTr"], files["labelsTr"], len(names), remarks)
    cases: list[CaseFiles] = []
    if facts.dataset is None:
        images = _by_case(files["imagesTr"], naming.images, problems)
        masks = _by_case(files["labelsTr"], naming.masks, problems)
        cases += _matched(root, "Tr", images, masks, names, problems)
        remarks += _count_remarks(path, facts, [case.case for case in cases])
    else:
        cases += _listed_cases(root, facts.dataset, names)
    test_images = _by_case(files["imagesTs"], naming.images, problems)
    test_masks = _by_case(files["labelsTs"], naming.masks, problems)
    cases += _matched(root, "Ts", test_images, test_masks, names, problems)
    return Dataset(
        name=str(content.get("name") or root.name),
        root=root,
        convention="nnunet" if naming.images or facts.dataset is not None else "msd",
        dims=3,
        channel_names=names,
        labels=labels,
        cases=tuple(cases),
        problems=tuple(problems),
        remarks=tuple(remarks),
        split_file=next((root / n for n in (SPLITS_FINAL, PICKLED) if (root / n).is_file()), None),
    )


def _matched(
    root: Path,
    part: str,
    images: FilesByCase,
    masks: FilesByCase,
    names: Sequence[str],
    problems: Problems,
) -> list[CaseFiles]:
    """Return the cases of a part, `Tr` or `Ts`, that have both image and mask.

    Other files are problems, but for images without a mask in `Ts`, which are only predicted.
    """
    misnamed = _misnamed(images, masks)
    for case, file in misnamed.items():
        number = case[-4:]
        suffix = file.name.removeprefix(case)
        problems.append(
            Problem(
                case,
                f"{file}: the last four digits, {number}, were taken for a channel, as other "
                f"images end in one. If {case!r} is the case, call the image {case}_0000{suffix}.",
            )
        )
    for case in sorted(set(masks) - set(images) - set(misnamed)):
        text = f"the mask of {case!r} in {root / f'labels{part}'} has no image."
        problems.append(Problem(case, text))
    explained = {case[:-5] for case in misnamed}
    for case in sorted(set(images) - set(masks) - explained) if part == "Tr" else ():
        text = "has no mask in labelsTr; a lesion-free one needs a mask of zeros."
        problems.append(Problem(case, f"{root}: the training image {case!r} {text}"))
    role: Role | None = "test" if part == "Ts" else None
    return [
        CaseFiles(
            case,
            tuple(file for _, file in sorted(images[case].items())),
            reference=masks[case][min(masks[case])],
            role=role,
            missing=missing_channels(images[case], len(names)),
        )
        for case in sorted(set(images) & set(masks))
    ]


def _misnamed(images: FilesByCase, masks: FilesByCase) -> dict[str, Path]:
    """Return images, by the case of their mask, whose id ends in four digits without `_0000`."""
    return {
        strip_suffix(file): file
        for case, files in images.items()
        if case not in masks
        for file in files.values()
        if strip_suffix(file) in masks and strip_suffix(file) != case
    }


def _listed_cases(
    root: Path, entries: Mapping[str, _Listed], names: Sequence[str]
) -> list[CaseFiles]:
    """Return the training cases of the list `dataset`; paths are relative to the folder."""

    def resolved(name: str) -> Path:
        return root / os.path.expandvars(name)

    return [
        CaseFiles(
            case,
            tuple(map(resolved, entry.images)),
            reference=resolved(entry.label),
            missing=missing_channels(dict(enumerate(map(resolved, entry.images))), len(names)),
        )
        for case, entry in sorted(entries.items())
    ]


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith(NIFTI)


def _image_files(folder: Path, ending: str | None, remarks: list[Remark]) -> list[Path]:
    """Return the images of a folder, sorted, and remark on the files that are left out.

    Pictures beside volumes are previews, and volumes beside pictures are no cases either, if
    `ending` says of which kind the cases are. Of `a.nii` and `a.nii.gz` the one with `ending` is
    read.
    """
    if not folder.is_dir():
        return []
    remarks += unread_files(folder)
    files = sorted(filter(is_image_file, folder.iterdir()))
    if not ending or not files:
        return files
    own = [file for file in files if file.name.lower().endswith(ending.lower())]
    if not own:
        text = f"{folder}: no file ends in {ending}, as file_ending in dataset.json states."
        remarks.append(Remark("file_ending", f"{text} All images are read.", is_note=True))
        return files
    stems = {strip_suffix(file) for file in own}
    beside = [
        file
        for file in files
        if is_raster(file) != is_raster(own[0])
        or (file not in own and _is_nifti(file) and strip_suffix(file) in stems)
    ]
    if beside:
        text = f"{folder}: {count(len(beside), 'file')} beside those that end in {ending}"
        what = f"{text} (file_ending in dataset.json) are left out: "
        remarks.append(Remark("left_out", what + listed(f.name for f in beside), is_note=True))
    return [file for file in files if file not in beside]


def _find_naming(
    images: Sequence[Path], masks: Sequence[Path], n_channels: int, remarks: list[Remark]
) -> _Naming:
    """Decide whether names end in a channel number: by the masks, whose names have none.

    An image `lesion_0001` whose mask is called `lesion_0001` has no channel number. If masks fit
    neither way, a name that ends in `_0000` decides.
    """
    stems = [strip_suffix(file) for file in images]
    ids = {strip_suffix(file) for file in masks}
    ends = [(stem, match) for stem in stems if (match := CHANNEL.fullmatch(stem))]
    n_alone = sum(stem in ids for stem, _ in ends)
    n_numbered = sum(match[1] in ids for _, match in ends)
    if not images or n_numbered > n_alone:
        return _Naming(images=True)
    with_number = [match for stem in ids if (match := CHANNEL.fullmatch(stem))]
    first_channels = {match[1] for match in with_number if match[2] == "0000"}
    if ids and len(first_channels) == len(ids):  # every mask is called as the first channel is
        fitting = [match for _, match in ends if match[1] in first_channels]
        if len(fitting) == len(stems) and all(int(match[2]) < n_channels for match in fitting):
            text = f"{masks[0].parent}: the masks end in _0000, as if that were their channel."
            text += " It is dropped from the case ids."
            remarks.append(Remark("names", text, is_note=True))
            return _Naming(images=True, masks=True)
    if not n_alone:
        return _Naming(images=any(match[2] == "0000" for _, match in ends))
    if ends:
        example = ends[0][0]
        text = f"{images[0].parent}: the four digits at the end of {example}, for example, belong"
        text += " to the case id and are no channel number, as the mask has the same name."
        remarks.append(Remark("names", text, is_note=True))
    return _Naming(images=False)


def _count_remarks(path: Path, facts: _Facts, cases: Sequence[str]) -> list[Remark]:
    """Compare the training cases of the folders with what `dataset.json` states of them."""
    remarks: list[Remark] = []
    if isinstance(facts.training, list):
        entries = [entry.get("image") for entry in facts.training if isinstance(entry, dict)]
        named = {strip_suffix(Path(entry)) for entry in entries if isinstance(entry, str)}
        named |= {CHANNEL.sub(r"\1", name) for name in named}
        if named and (beyond := [case for case in cases if case not in named]):
            cases_beyond = f"{count(len(beyond), 'case')} of imagesTr: {listed(beyond)}"
            text = f"{path}: the list training leaves out {cases_beyond}. They take part all the "
            text += "same. Remove their files if they should not."
            remarks.append(Remark("listed_otherwise", text))
    elif isinstance(facts.n_training, int) and facts.n_training != len(cases):
        text = f"{path} states numTraining {facts.n_training}, but {len(cases)} training cases have"
        remarks.append(Remark("listed_otherwise", f"{text} image and mask.", is_note=True))
    return remarks


def _by_case(files: Sequence[Path], numbered: bool, problems: Problems) -> FilesByCase:
    """Sort files by case and channel number; without numbers each is channel 0 of its own case.

    A raster without a number is the only file of its case, in colour.
    """
    cases: FilesByCase = {}
    for file in files:
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


def _labels(facts: _Facts, path: Path) -> Labels:
    """Return the labels of a `dataset.json`.

    Version 2 maps a name to a value, or to a list of values that are learned as one region; version
    1 maps a value to a name. 0 is background whatever its name. A list makes all labels regions; a
    single value is then a region of itself.
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
        return Labels.of({value: name for name, (value,) in lesions.items()}, ignore)
    painted = facts.regions_class_order or []
    pairs = zip(lesions.values(), painted, strict=False)
    misfit = any(value not in region for region, value in pairs)
    if not len(painted) == len(set(painted)) == len(lesions) or misfit:
        raise DatasetError(
            f"{path}: regions need a regions_class_order of {len(lesions)} different values, one "
            f"of each region's own, not {painted}."
        )
    return Labels(tuple(painted), tuple(lesions), tuple(lesions.values()), ignore)
