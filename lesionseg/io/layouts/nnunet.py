"""nnU-Net raw and Decathlon layouts: dataset.json, regions, file names, split file by name.

Layouts: nnU-Net documentation/dataset_format.md, region_based_training.md and ignore_label.md;
medicaldecathlon.com.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from lesionseg.core import CaseFiles, Labels, Role
from lesionseg.core.finding import LISTED, Finding, Severity, collect_errors
from lesionseg.core.records import parse_as
from lesionseg.errors import DatasetError, RegionError
from lesionseg.io.case_ids import split_channel
from lesionseg.io.channels import missing_channels
from lesionseg.io.layouts.checks import (
    Count,
    find_unread_files,
    findings_about,
)
from lesionseg.io.layouts.manifest import IGNORE
from lesionseg.io.layouts.table import Row, Table
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.split_files import PICKLED, SPLITS_FINAL
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import is_image_file, strip_suffix

DATASET_JSON = "dataset.json"
FilesByCase = dict[str, dict[int, Path]]  # by case id and channel number


class _ListedCase(BaseModel):
    """An entry of the list `dataset` in `dataset.json`."""

    images: list[str] = Field(min_length=1)
    label: str


class _DatasetJson(BaseModel):
    """The content of `dataset.json`.

    Version 1 and the Decathlon write `modality` instead of `channel_names`. Their labels are a name
    for each label value, in version 2 a value for each name.
    """

    channel_names: dict[int, str] = Field(
        validation_alias=AliasChoices("channel_names", "modality"), min_length=1
    )
    labels: dict[str, Count | list[Count]] | dict[Count, str]
    regions_class_order: list[int] | None = None
    file_ending: str | None = None
    dataset: dict[str, _ListedCase] | None = None
    training: Any = None


def read_nnunet_labels(path: Path) -> Labels:
    """Read the labels of nnU-Net's `dataset.json`, to know the label names of nnU-Net's masks.

    Raises:
        ReadError: If the file is missing or not JSON.
        DatasetError: If a key such as `channel_names` is missing or wrong, or labels are not valid.
    """
    return nnunet_channels_and_labels(read_json(path), path)[1]  # the labels


def nnunet_channels_and_labels(content: object, path: Path) -> tuple[tuple[str, ...], Labels]:
    """Return the channel names and the labels from the content of a `dataset.json`.

    The function is used for the files of trained nnU-Net models, too.

    Args:
        content: The parsed JSON.
        path: The file, for messages.

    Raises:
        DatasetError: If a key is missing or wrong, or the channels or labels are not valid.
    """
    description = parse_as(_DatasetJson, content, path)
    return _channel_names(description, path), _parse_labels(description, path)


def write_dataset_json(
    folder: Path, channel_names: Sequence[str], labels: Labels, ending: str, **further: Any
) -> None:
    """Write nnU-Net's `dataset.json`, so that programs for nnU-Net know the labels of a folder.

    The label value to ignore is not written.

    Args:
        folder: The folder of the file.
        channel_names: The names of the channels.
        labels: The labels. A region is written as a list of its label values.
        ending: The suffix of the images and masks.
        further: Further keys, such as `numTraining`.
    """
    # a region is a list of values, another label one value
    values: Sequence[Any] = [list(region) for region in labels.regions] or labels.values
    content = {
        **further,
        "file_ending": ending,
        "channel_names": {str(number): name for number, name in enumerate(channel_names)},
        "labels": {"background": 0, **dict(zip(labels.names, values, strict=True))},
    }
    if labels.regions:
        # the mask value of each region, see `_mask_values_of_regions`
        content["regions_class_order"] = list(labels.values)
    write_json(folder / DATASET_JSON, content)


def read_nnunet(root: Path) -> Table:
    """Read an nnU-Net raw folder, or a Decathlon folder if no image has a channel number.

    - The training cases are the images in `imagesTr` with a mask in `labelsTr`. If `dataset.json`
      has a list `dataset`, the cases of this list replace them.
    - The cases in `imagesTs` with a mask in `labelsTs` are test cases.
    - If `dataset.json` has a `file_ending`, files with another ending are left out with a warning.
    - Files that do not fit become findings.

    Raises:
        DatasetError: If the channels or labels in `dataset.json` are not valid.
        ReadError: If `dataset.json` cannot be read.
    """
    path = root / DATASET_JSON
    findings: list[Finding] = []
    content = read_json(path, allow_nan=True)
    description = parse_as(_DatasetJson, content, path)
    names = _channel_names(description, path)
    labels = _parse_labels(description, path)
    files_in = {
        folder: _find_images(root / folder, description.file_ending, findings)
        for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
    }
    # the test cases are named in the same way as the training cases
    are_numbered = _are_images_numbered(files_in["imagesTr"], files_in["labelsTr"], findings)
    rows: list[Row] = []
    for part in ("Tr", "Ts"):
        if part == "Tr" and description.dataset is not None:
            rows += _listed_rows(root, description.dataset, len(names))
            continue
        images = _group_by_case(files_in[f"images{part}"], are_numbered, findings)
        masks = files_in[f"labels{part}"]
        rows += _match_rows(part, images, masks, len(names), findings)
        if part == "Tr":
            cases = sorted(images.keys() & set(map(strip_suffix, masks)))
            findings += _find_unlisted(path, description, cases)
    split_files = [root / name for name in (SPLITS_FINAL, PICKLED)]
    return Table(
        path,
        rows,
        labels,
        names,
        findings,
        name=str(content.get("name") or ""),
        split_file=next((file for file in split_files if file.is_file()), None),
        # msd: Medical Segmentation Decathlon
        layout="nnunet" if are_numbered or description.dataset is not None else "msd",
    )


def _channel_names(description: _DatasetJson, path: Path) -> tuple[str, ...]:
    """Return the names of the channels in the order of their numbers.

    Raises:
        DatasetError: If the numbers are not 0, 1, 2 and so on.
    """
    numbers = sorted(description.channel_names)
    if numbers != list(range(len(numbers))):
        raise DatasetError(
            f"{path}: the channels {description.channel_names} are not numbered 0, 1, …. Correct "
            "channel_names."
        )
    return tuple(description.channel_names[number] for number in numbers)


def _match_rows(
    part: str,
    images: FilesByCase,
    masks: Sequence[Path],
    n_channels: int,
    findings: list[Finding],
) -> list[Row]:
    """Return a row for each image and a row for each mask of the training or test cases.

    The row of an image has all channels of its case. `build_dataset` joins it with the row of the
    mask.

    An image without a mask gets no row. In `Tr`, this is an error. In `Ts`, such an image is only
    for prediction.

    Args:
        part: "Tr" for training cases, "Ts" for test cases.
        images: The images by case id and channel number.
        masks: The masks.
        n_channels: The number of channels of the dataset.
        findings: Receives the errors.
    """
    rows = [Row(CaseFiles(strip_suffix(mask), (), reference=mask), where=mask) for mask in masks]
    cases_with_mask = {row.files.case for row in rows}
    for case, files in sorted(images.items()):
        first = files[min(files)]  # of the lowest channel number
        if case in cases_with_mask:
            channels = tuple(file for _, file in sorted(files.items()))
            missing = missing_channels(files, n_channels)
            role: Role | None = "test" if part == "Ts" else None
            rows.append(Row(CaseFiles(case, channels, role=role, missing=missing), first))
        elif part == "Tr":
            text = f"{first}: the training image {case!r} has no mask in labelsTr."
            text += " A lesion-free image needs a mask of zeros."
            findings.append(Finding(LISTED, text, case, severity="error"))
    return rows


def _listed_rows(root: Path, entries: Mapping[str, _ListedCase], n_channels: int) -> list[Row]:
    """Return a row for each training case of the list `dataset` in `dataset.json`.

    Paths in the list are relative to `root`. Environment variables in them are replaced by their
    values, as nnU-Net does.
    """
    rows: list[Row] = []
    for case, entry in sorted(entries.items()):
        images = [root / os.path.expandvars(name) for name in entry.images]
        mask = root / os.path.expandvars(entry.label)
        missing = missing_channels(dict(enumerate(images)), n_channels)
        rows.append(Row(CaseFiles(case, tuple(images), reference=mask, missing=missing)))
    return rows


def _find_images(folder: Path, ending: str | None, findings: list[Finding]) -> list[Path]:
    """Return the image or mask files of a folder, sorted, or [] if the folder does not exist.

    `ending` is `file_ending` of `dataset.json`, or None. Files with another ending are left out, as
    in nnU-Net, with a finding. It is an error if no file is left.
    """
    if not folder.is_dir():
        return []
    findings += find_unread_files(folder)
    files = sorted(filter(is_image_file, folder.iterdir()))
    if not ending:
        return files
    with_ending = [file for file in files if file.name.lower().endswith(ending.lower())]
    names = sorted(file.name for file in {*files} - {*with_ending})
    words = f"not ending in {ending} (file_ending in dataset.json), left out"
    severity: Severity = "warning" if with_ending else "error"
    advice = " Convert these files, or correct file_ending."
    findings += findings_about(folder, names, "file", words, advice=advice, severity=severity)
    return with_ending


def _are_images_numbered(
    images: Sequence[Path], masks: Sequence[Path], findings: list[Finding]
) -> bool:
    """Return True if the names of the images end in a channel number such as `_0000`.

    Otherwise each image is the only channel of its case, as in the Decathlon.

    The names of the masks decide:

    - An image `lesion_0001` with a mask `lesion_0001` has no channel number. An image `lesion_0001`
      with a mask `lesion` has a channel number. If a dataset has pairs of both kinds, the more
      frequent kind decides, and of equally frequent kinds the first.
    - If there are no such pairs, images have channel numbers if any name ends in `_0000`.
    - If there are no images, images have channel numbers.

    A decision that may surprise the user becomes a finding.
    """
    mask_names = {strip_suffix(file) for file in masks}
    # how many images `lesion_0001` have a mask `lesion_0001`, and how many a mask `lesion`
    parts = {name: split_channel(name) for name in map(strip_suffix, images)}
    numbered_images = {name: (case, n) for name, (case, n) in parts.items() if n is not None}
    n_masks_of_whole_name = sum(name in mask_names for name in numbered_images)
    n_masks_without_number = sum(case in mask_names for case, _ in numbered_images.values())
    if not images or n_masks_without_number > n_masks_of_whole_name:
        return True
    if n_masks_of_whole_name == 0:
        return any(number == 0 for _, number in numbered_images.values())
    example = next(iter(numbered_images))
    text = (
        f"{images[0].parent}: four digits at the end of a name, such as {example}, belong to "
        "the case id and are not a channel number, because the mask has the same name."
    )
    findings.append(Finding("names", text, severity="note"))
    return False


def _find_unlisted(path: Path, description: _DatasetJson, cases: Sequence[str]) -> list[Finding]:
    """Return a finding about the training cases that the list in `dataset.json` lacks, or [].

    Args:
        path: The file `dataset.json`, for the message.
        description: The content of the file.
        cases: The ids of the cases with image and mask in the folders.
    """
    listed = description.training if isinstance(description.training, list) else []
    entries = [entry.get("image") for entry in listed if isinstance(entry, dict)]
    listed_names = {strip_suffix(Path(entry)) for entry in entries if isinstance(entry, str)}
    # some lists name the file of the first channel, others the case
    listed_names |= {split_channel(name)[0] for name in listed_names}
    return findings_about(
        path,
        # an empty list is no list of the cases
        [case for case in cases if listed_names and case not in listed_names],
        "case",
        "of imagesTr not in the list training",
        kind="listed_otherwise",
        advice=" They are used for training. Remove their files if they should not be.",
        severity="warning",
    )


def _group_by_case(files: Sequence[Path], numbered: bool, findings: list[Finding]) -> FilesByCase:
    """Group files by case id and channel number.

    - If the names are not `numbered`, each file is channel 0 of a separate case.
    - If they are numbered, a picture without a number is channel 0, and may be in colour. A volume
      without a number is left out with an error among the `findings`.
    - A second file of the same channel is left out with an error, too.
    """
    cases: FilesByCase = {}
    for file in files:
        stem = strip_suffix(file)
        case, channel = split_channel(stem) if numbered else (stem, None)
        number = channel or 0  # without a number: the first channel
        with collect_errors(findings, case, file):
            if numbered and channel is None and file.suffix.lower() not in RASTERS:
                raise DatasetError(
                    f"the name has no channel number. Rename it, for example to {stem}_0000."
                )
            if number in cases.setdefault(case, {}):
                raise DatasetError(
                    f"{cases[case][number].name} is the same channel of the same case. Keep one."
                )
            cases[case][number] = file
    return cases


def _parse_labels(description: _DatasetJson, path: Path) -> Labels:
    """Parse the labels of `dataset.json`.

    - Value 0 is background, whatever its name. `ignore` is the name of the value to ignore.
    - If a label has several values, it is a region, which is the union of these values. All labels
      are then regions; a label with a single value is a region of one value.

    Raises:
        DatasetError: If the names or values are not different, or there is no lesion.
        RegionError: If the mask values of regions are not valid, see `_mask_values_of_regions`.
    """
    values_of = _values_by_name(description)
    ignored = values_of.get(IGNORE, ())
    lesions = {
        name: values for name, values in values_of.items() if name != IGNORE and values != (0,)
    }
    # two names have equal values, or version 1 gives two values the same name
    are_repeated = len(set(values_of.values())) < len(description.labels)
    # each lesion has values, and none of them is the background or ignored
    are_valid = all(values and {0, *ignored}.isdisjoint(values) for values in lesions.values())
    if are_repeated or len(ignored) > 1 or not (lesions and are_valid):
        raise DatasetError(
            f"{path}: the labels {description.labels} are not valid. They need different names and "
            "values, 0 for the background, and at least one lesion. Write "
            '"labels": {"background": 0, "lesion": 1}.'
        )
    ignore = ignored[0] if ignored else None
    if all(len(values) == 1 for values in lesions.values()):
        return Labels.of({values[0]: name for name, values in lesions.items()}, ignore=ignore)
    return Labels(
        values=_mask_values_of_regions(description, lesions, path),
        names=tuple(lesions),
        regions=tuple(lesions.values()),
        ignore=ignore,
    )


def _values_by_name(description: _DatasetJson) -> dict[str, tuple[int, ...]]:
    """Return the mask values of each label by its name, for both versions of `dataset.json`.

    Version 1 writes a name for each value. Version 2 writes a value, or the list of values of a
    region, for each name.
    """
    values_of: dict[str, tuple[int, ...]] = {}
    for key, value in description.labels.items():
        if isinstance(value, str):  # version 1 writes the name by its value
            values_of[value] = (int(key),)
        elif isinstance(value, list):
            values_of[str(key)] = tuple(sorted(set(value)))
        else:
            values_of[str(key)] = (value,)
    return values_of


def _mask_values_of_regions(
    description: _DatasetJson, lesions: Mapping[str, tuple[int, ...]], path: Path
) -> tuple[int, ...]:
    """Return one mask value per region, in the order of the regions (`regions_class_order`).

    Regions overlap, but a voxel of a mask has one value. nnU-Net writes the regions one after the
    other, each with its mask value.

    Args:
        description: The content of `dataset.json`.
        lesions: The values of each region by name.
        path: The file, for the message.

    Raises:
        RegionError: If there is not one value for each region, if two values are equal, or if a
            value does not belong to its region.
    """
    mask_values = description.regions_class_order or []
    has_one_per_region = len(mask_values) == len(lesions)
    are_different = len(set(mask_values)) == len(mask_values)
    pairs = zip(lesions.values(), mask_values, strict=False)  # different lengths: error below
    has_other_value = any(value not in region for region, value in pairs)
    if has_other_value or not has_one_per_region or not are_different:
        raise RegionError(
            f"{path}: regions_class_order is {mask_values}. It needs {len(lesions)} different "
            "values: for each region, in the order of the labels, one of its values."
        )
    return tuple(mask_values)
