"""BIDS folders with lesion masks as derivatives: `…/sub-*/[ses-*/]…_label-lesion_mask.nii.gz`.

Names: bids-specification.readthedocs.io, "Imaging derivatives". A case is a subject's session.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Geometry
from lesionseg.errors import DatasetError, LesionsegError
from lesionseg.io.layouts.case_problems import Problems, count_axes
from lesionseg.io.volumes import is_image_file, read_geometry, strip_suffix

logger = logging.getLogger(__name__)

_MASK = re.compile(r".*_label-(?:lesion|L)[A-Za-z0-9]*_(?:mask|dseg)", re.IGNORECASE)
_SESSION = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_.*")
_NO_CHANNEL = ("mask", "dseg", "probseg", "boldref", "events")


def recognises_bids(root: Path) -> bool:
    """Whether a folder of subjects somewhere below holds lesion masks."""
    places = [p for p in (root, root / "derivatives") if p.is_dir()]
    return any(next(place.glob("**/sub-*_label-*"), None) is not None for place in places)


def read_bids(root: Path) -> Dataset:
    """Read a BIDS folder: label 1 is the lesion, channels are the suffixes all sessions share.

    Images are those of the mask's own folder where there are any (derivatives with their own
    images), else those of the raw session; of these the ones on the mask's grid, which is looked
    up in the first session. Raises `DatasetError` for two masks of a session or none at all.
    """
    problems = Problems()
    masks = _masks(root, problems)
    if not masks:
        raise DatasetError(
            "No lesion mask found.",
            where=root,
            expected="derivatives/<name>/sub-1/ses-1/anat/sub-1_ses-1_label-lesion_mask.nii.gz",
        )
    images = {}
    for case, mask in masks.items():
        with problems.of(case):
            images[case] = _images(root, case, mask)
    masks = {case: mask for case, mask in masks.items() if case in images}
    channels = _channels(root, masks, images)
    cases = tuple(
        CaseFiles(
            case=case,
            images=tuple(images[case][channel] for channel in channels),
            reference=mask,
            group=case.partition("_")[0],
        )
        for case, mask in masks.items()
    )
    return Dataset(
        name=root.name,
        root=root,
        convention="bids",
        dims=count_axes(cases),
        channel_names=channels,
        labels={1: "lesion"},
        cases=cases,
        problems=problems.listed,
    )


def _masks(root: Path, problems: Problems) -> dict[str, Path]:
    """Mask of each session, called `sub-…[_ses-…]`."""
    masks: dict[str, Path] = {}
    for file in sorted(root.rglob("sub-*_label-*")):
        if not is_image_file(file) or not _MASK.fullmatch(strip_suffix(file)):
            continue
        match = _SESSION.fullmatch(strip_suffix(file))
        if match is None:
            problems.add("", DatasetError("The file is not named after a subject.", where=file))
            continue
        case = "_".join(part for part in match.groups() if part)
        if case in masks:
            error = DatasetError(
                f"The session {case!r} has two lesion masks.",
                where=file,
                seen=f"also {masks[case].name}",
                remedy="Keep one, or write a manifest.csv that says which.",
            )
            problems.add(case, error)
            continue
        masks[case] = file
    return masks


def _images(root: Path, case: str, mask: Path) -> dict[str, Path]:
    """Images of a session by suffix, such as FLAIR; those beside the mask go first."""
    subject, _, session = case.partition("_")
    raw = root / subject / session if session else root / subject
    for folder in (mask.parent, raw):
        images: dict[str, Path] = {}
        files = sorted(folder.rglob(f"{case}_*")) if folder.is_dir() else []
        for file in (f for f in files if is_image_file(f) and "label-" not in f.name):
            channel = strip_suffix(file).rpartition("_")[2]
            if channel not in _NO_CHANNEL:
                images.setdefault(channel, file)
        if images:
            return images
    raise DatasetError(f"The session {case!r} has a mask and no image.", where=mask)


def _channels(
    root: Path, masks: Mapping[str, Path], images: Mapping[str, Mapping[str, Path]]
) -> tuple[str, ...]:
    """Suffixes that all sessions have and that lie on the mask's grid in the first."""
    if not images:
        return ()
    shared = set.intersection(*(set(channels) for channels in images.values()))
    first = next(iter(masks))
    grid = read_geometry(masks[first])
    fitting = [name for name in sorted(shared) if _fits(images[first][name], grid)]
    everything = {name for channels in images.values() for name in channels}
    if not fitting:
        raise DatasetError(
            "No kind of image is there in every session and on the grid of its mask.",
            where=root,
            seen=sorted(everything),
            remedy="Resample the images onto the masks' grid.",
        )
    if left_out := sorted(everything - set(fitting)):
        logger.warning(
            "Left out, as not in every session or not on the mask's grid: %s.", ", ".join(left_out)
        )
    return tuple(fitting)


def _fits(image: Path, grid: Geometry) -> bool:
    try:
        return read_geometry(image).matches(grid)
    except LesionsegError:
        return False
