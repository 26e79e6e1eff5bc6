"""Channels of a case: a file each or colours of a picture; missing channels, wrong number."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset
from lesionseg.errors import DatasetError
from lesionseg.io.case_ids import split_channel
from lesionseg.io.files import content_place
from lesionseg.io.volumes import is_raster, strip_suffix

COLOURS = ("red", "green", "blue")  # the channels of a picture with data.colour=true


def is_colour(files: CaseFiles, n_channels: int) -> bool:
    """Return True if the colours of a case's only picture are the channels of the dataset.

    The colours are the channels if the dataset has three channels (`n_channels`), and the case has
    one picture and no missing channels. The picture is not read, so it may turn out to be grey.
    """
    return not files.missing and _may_be_colour(files.images, n_channels)


def with_colours(dataset: Dataset) -> Dataset:
    """Return the dataset with the channels red, green and blue, for the setting `data.colour=true`.

    A dataset whose channels are colours already is returned unchanged. No picture is read.

    Raises:
        DatasetError: If the images are volumes, an image is not a PNG, JPEG, BMP or TIFF, or the
            dataset has several channels.
    """
    if dataset.dims != 2:
        raise DatasetError(
            f"{dataset.root}: data.colour=true is for pictures with two axes, but the images have "
            f"{dataset.dims}. Remove the setting."
        )
    for files in dataset.cases:
        for file in files.images:
            if not is_raster(file):
                raise DatasetError(
                    f"{dataset.root}: data.colour=true is for PNG, JPEG, BMP and TIFF, but the "
                    f"image of {files.case!r} is {file.name}. Convert it, or remove the setting."
                )
    if dataset.is_colour:
        return dataset
    names = dataset.channel_names
    if len(names) != 1:
        raise DatasetError(
            f"{dataset.root}: data.colour=true needs one picture per case, but the dataset has "
            f"{len(names)} channels ({', '.join(names)}). Remove the setting, or all channels but "
            "one."
        )
    return replace(dataset, channel_names=COLOURS)


def missing_channels(files: Mapping[int, Path], n_channels: int) -> tuple[int, ...]:
    """Return the numbers of a case's channels that have no file, in ascending order.

    If the only file is a picture with the number 0, and the dataset has three channels, no channel
    is missing, because the picture may be in colour.

    Args:
        files: The files of the case by channel number.
        n_channels: The number of channels of the dataset. Their numbers begin at 0.
    """
    if 0 in files and _may_be_colour([*files.values()], n_channels):
        return ()
    return tuple(sorted(set(range(n_channels)) - set(files)))


def with_missing_channels(dataset: Dataset) -> Dataset:
    """Return the dataset with the missing channels of cases that consist of a single picture.

    In a dataset of three channels, a single picture may contain all channels as its colours, or be
    one of the channels:

    - If each case has a single image with two axes, the channels are the colours of the picture.
      The dataset is returned unchanged, as with any other number of channels.
    - Otherwise a single picture is one channel, and the other two channels are missing. The number
      in the file name is the channel (`P1_0002.png` is channel 2). Without a number, it is 0.
    """
    n_channels = len(dataset.channel_names)
    has_colours = dataset.dims == 2 and all(len(case.images) == 1 for case in dataset.cases)
    if n_channels != 3 or has_colours:
        return dataset
    cases = []
    for case in dataset.cases:
        if is_colour(case, n_channels):
            _, channel = split_channel(strip_suffix(case.images[0]))
            case = replace(case, missing=tuple(c for c in range(3) if c != (channel or 0)))
        cases.append(case)
    return replace(dataset, cases=tuple(cases))


def _may_be_colour(images: Sequence[Path], n_channels: int) -> bool:
    """Return True if `images` is a single picture, whose colours may be the three channels."""
    return n_channels == 3 and len(images) == 1 and is_raster(images[0])


def check_channels(files: CaseFiles, dataset: Dataset) -> None:
    """Raise `DatasetError` if a case does not have exactly one image file for each channel.

    There are two exceptions. A single picture in a dataset of three channels gives all channels by
    its colours. In a dataset with `may_lack`, channels may be missing. It is also an error if the
    mask of the case is one of its image files, or a link to one of them.
    """
    mask = files.reference
    if mask is not None and content_place(mask) in map(content_place, files.images):
        raise DatasetError(
            f"{mask}: this file is the image as well as the mask of case {files.case!r}. Correct "
            "one of the two names."
        )
    names = dataset.channel_names
    if dataset.dims == 2 and is_colour(files, len(names)):
        return
    lacks_channel = bool(files.missing) and not dataset.may_lack
    if lacks_channel or len(files.images) + len(files.missing) != len(names):
        present = ", ".join(file.name for file in files.images)
        if len(files.images) > len(names):
            raise DatasetError(
                f"case {files.case!r} has more files than the dataset has channels "
                f"({', '.join(names)}): {present}. Name all channels in the dataset, or remove the "
                "other files."
            )
        raise DatasetError(
            f"case {files.case!r} does not have one file per channel ({', '.join(names)}), only "
            f"{present}. Add the missing files (split a 4-D file into <case>_0000, …), or set "
            "data.channel_dropout=0.3."
        )
