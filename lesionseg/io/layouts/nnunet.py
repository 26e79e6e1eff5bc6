"""nnU-Net raw folders (versions 1 and 2) and Medical Segmentation Decathlon folders.

Layouts: nnU-Net documentation/dataset_format.md; medicaldecathlon.com.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError
from lesionseg.io.atomic import read_json
from lesionseg.io.layouts.case_problems import LACKING, Problems, count_axes
from lesionseg.io.layouts.nnunet_labels import parse_labels
from lesionseg.io.volumes import is_image_file, strip_suffix

Collect = Callable[[Sequence[Path], Problems], dict[str, dict[int, Path]]]
_CHANNEL = re.compile(r"(.+)_(\d{4})")
PARTS: tuple[tuple[str, Role | None], ...] = (("Tr", None), ("Ts", "test"))


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
    return _read(root, "nnunet", channel_files)


def read_msd(root: Path) -> Dataset:
    """Read a Medical Segmentation Decathlon folder of one channel. Raises `DatasetError`."""
    return _read(root, "msd", _single_files)


def _read(root: Path, convention: str, collect: Collect) -> Dataset:
    facts_path = root / "dataset.json"
    facts = _facts(facts_path)
    channels = name_channels(facts, facts_path)
    if convention == "msd" and len(channels) > 1:
        raise DatasetError(
            "The Decathlon keeps several channels in one 4-D file, which is not read.",
            where=root,
            seen=channels,
            remedy="Split each file into <case>_0000, <case>_0001, … in imagesTr.",
        )
    labels = parse_labels(facts.get("labels"), facts.get("regions_class_order"), facts_path)
    folds, problems = _folds(root / "splits_final.json"), Problems()
    cases = [
        c
        for part, role in PARTS
        for c in collect_cases(root, part, role, channels, folds, collect, problems)
    ]
    if not cases and not problems.listed:
        raise DatasetError(
            "No labelled case found.",
            where=root,
            expected="imagesTr/<case>_0000.nii.gz with labelsTr/<case>.nii.gz",
        )
    return Dataset(
        name=str(facts.get("name") or root.name),
        root=root,
        convention=convention,
        dims=count_axes(cases),
        channel_names=channels,
        labels=labels.names,
        cases=tuple(cases),
        ignore_label=labels.ignore,
        regions=labels.regions,
        incomplete_reference=bool(facts.get("incomplete_reference", False)),
        problems=problems.listed,
    )


def _facts(path: Path) -> Mapping[str, Any]:
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise DatasetError("The file holds no JSON object.", where=path, seen=type(facts).__name__)
    return facts


def name_channels(facts: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Names in order: version 2 says `channel_names`, version 1 and the Decathlon `modality`."""
    names = facts.get("channel_names", facts.get("modality"))
    if isinstance(names, Mapping) and {str(k) for k in names} == {
        str(i) for i in range(len(names))
    }:
        by_number = {int(k): str(v) for k, v in names.items()}
        if by_number:
            return tuple(by_number[i] for i in range(len(by_number)))
    raise DatasetError(
        "The channels are not named.",
        where=path,
        seen=names,
        expected='"channel_names": {"0": "FLAIR", "1": "T1"}',
    )


def _folds(path: Path) -> dict[str, int]:
    """Fold of each case: the split whose `val` list it stands in; none when a case is in two."""
    splits = read_json(path) if path.is_file() else []
    if not isinstance(splits, list) or not all(isinstance(s, dict) for s in splits):
        raise DatasetError("The splits are not a list of objects.", where=path)
    pairs = [
        (str(case), fold) for fold, split in enumerate(splits) for case in split.get("val", ())
    ]
    return dict(pairs) if len(dict(pairs)) == len(pairs) else {}


def collect_cases(
    root: Path,
    part: str,
    role: Role | None,
    channels: Sequence[str],
    folds: Mapping[str, int],
    collect: Collect,
    problems: Problems,
) -> list[CaseFiles]:
    """Labelled cases of `imagesTr` or `imagesTs`; unlabelled test scans are left out.

    Args:
        root: the dataset's folder.
        part: "Tr" or "Ts".
        role: what all these cases are for; None leaves it to the splits.
        channels: the channels' names; a case has one file for each.
        folds: the fold by case id, for cases without a role.
        collect: how image files become cases: by case id, the file of each channel number.
        problems: where what is wrong with single cases is noted.
    """
    images = collect(_image_files(root / f"images{part}"), problems)
    references = _single_files(_image_files(root / f"labels{part}"), problems)
    _check_labelled(root, part, set(images), set(references), problems)
    return [
        CaseFiles(
            case=case,
            images=_ordered(root, case, images[case], len(channels), problems),
            missing=tuple(c for c in range(len(channels)) if c not in images[case]),
            reference=references[case][0],
            role=role,
            fold=folds.get(case) if role is None else None,
        )
        for case in sorted(images)
        if case in references
    ]


def _image_files(folder: Path) -> list[Path]:
    files = filter(is_image_file, folder.iterdir()) if folder.is_dir() else ()
    return sorted(files, key=attrgetter("name"))


def channel_files(files: Sequence[Path], problems: Problems) -> dict[str, dict[int, Path]]:
    """Files by case and channel number, from names such as `<case>_0001.nii.gz`."""
    cases: dict[str, dict[int, Path]] = {}
    for file in files:
        match = _CHANNEL.fullmatch(strip_suffix(file))
        if match is None:
            error = DatasetError(
                "The image's name has no channel number.",
                where=file,
                expected="<case>_0000, <case>_0001, …",
            )
            problems.add(strip_suffix(file), error)
            continue
        with problems.of(match.group(1)):
            _add(cases.setdefault(match.group(1), {}), int(match.group(2)), file)
    return cases


def _single_files(files: Sequence[Path], problems: Problems) -> dict[str, dict[int, Path]]:
    """Files by case, one per case, as channel 0."""
    cases: dict[str, dict[int, Path]] = {}
    for file in files:
        with problems.of(strip_suffix(file)):
            _add(cases.setdefault(strip_suffix(file), {}), 0, file)
    return cases


def _add(channels: dict[int, Path], number: int, file: Path) -> None:
    if number in channels:
        raise DatasetError(
            "The same case is there twice.",
            where=file,
            seen=f"also {channels[number].name}",
            remedy="Keep one of the two files.",
        )
    channels[number] = file


def _check_labelled(
    root: Path, part: str, images: set[str], references: set[str], problems: Problems
) -> None:
    for case in sorted(references - images):
        error = DatasetError(
            f"The mask {case!r} in labels{part} has no image.",
            where=root / f"labels{part}",
            expected=f"images{part}/{case}_0000.nii.gz or the like",
        )
        problems.add(case, error)
    for case in sorted(images - references) if part == "Tr" else ():
        error = DatasetError(
            f"The training image {case!r} has no mask.",
            where=root / "labelsTr",
            remedy="Give lesion-free cases a mask of zeros and move unlabelled ones to imagesTs.",
        )
        problems.add(case, error)


def _ordered(
    root: Path, case: str, files: Mapping[int, Path], n_channels: int, problems: Problems
) -> tuple[Path, ...]:
    """The channel files by number; those that are there, and a problem, when one is missing."""
    if sorted(files) != list(range(n_channels)):
        lacking = set(files) < set(range(n_channels))
        error = DatasetError(
            f"The case {case!r} does not have the channel files that dataset.json lists.",
            where=root,
            seen=[f.name for _, f in sorted(files.items())],
            expected=", ".join(f"{case}_{i:04d}" for i in range(n_channels)),
            remedy=LACKING if lacking else None,
        )
        problems.add(case, error, repeated=len(files) != n_channels, lacking=lacking)
    return tuple(file for _, file in sorted(files.items()))
