"""BIDS folders with lesion masks as derivatives: `…/sub-*/[ses-*/]…_label-lesion_mask.nii.gz`.

Names: bids-specification.readthedocs.io, "Imaging derivatives". A case is a subject's session.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Labels, Remark
from lesionseg.errors import DatasetError, LesionsegError, count, listed
from lesionseg.io.layouts.checks import Problems
from lesionseg.io.volumes import is_image_file, read_geometry, strip_suffix

_MASK = re.compile(
    r".*_label-(?:lesions?[0-9]*|L)(?:_[a-z]+-[A-Za-z0-9]+)*_(?:mask|dseg)", re.IGNORECASE
)
_SESSION = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_.*")
_NO_CHANNEL = ("mask", "dseg", "probseg", "boldref", "events")


def recognises_bids(root: Path) -> bool:
    """Whether a folder of subjects somewhere below holds lesion masks."""
    places = [p for p in (root, root / "derivatives") if p.is_dir()]
    return any(next(place.glob("**/sub-*_label-*"), None) is not None for place in places)


def read_bids(root: Path) -> Dataset:
    """Read a BIDS folder: label 1 is the lesion, channels are the suffixes all sessions share.

    Images are those beside the mask, else those of the raw session; of these the ones on the mask's
    grid, which is looked up in the first session. Sessions without a mask are named in a remark.
    """
    masks: dict[str, Path] = {}
    images: dict[str, dict[str, Path]] = {}
    problems = Problems()
    for file in sorted(root.rglob("sub-*_label-*")):
        if not is_image_file(file) or not _MASK.fullmatch(strip_suffix(file)):
            continue
        case = _session_of(file)
        with problems.of(case, file):
            if not case:
                raise DatasetError("it is not named after a subject.")
            if case in masks:
                raise DatasetError(f"{masks[case].name} is a second lesion mask of {case}.")
            masks[case] = file
            if not (found := _images(root, case, file)):
                raise DatasetError(f"the session {case} has no image.")
            images[case] = found
    channels: list[str] = []
    remarks: list[Remark] = []
    with problems.of("", root):
        channels = _channels(root, images, masks, remarks) if images else []
    cases = tuple(
        CaseFiles(case, tuple(files[c] for c in channels), masks[case], case.partition("_")[0])
        for case, files in images.items()
        if channels
    )
    without = sorted({_session_of(f) for f in root.glob("sub-*/**/sub-*") if is_image_file(f)})
    if without := [case for case in without if case and case not in masks]:
        text = f"{root}: {count(len(without), 'session')} without a lesion mask, left out: "
        advice = "A lesion-free session needs a mask of zeros."
        remarks.append(Remark("left_out", f"{text}{listed(without)}. {advice}"))
    return Dataset(
        name=root.name,
        root=root,
        convention="bids",
        dims=3,
        channel_names=tuple(channels),
        labels=Labels.of({1: "lesion"}),
        cases=cases,
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _session_of(file: Path) -> str:
    """Return subject and session of a file's name, as a case id; "" if it names no subject."""
    match = _SESSION.fullmatch(strip_suffix(file))
    return "_".join(part for part in match.groups() if part) if match else ""


def _channels(
    root: Path,
    images: Mapping[str, Mapping[str, Path]],
    masks: Mapping[str, Path],
    remarks: list[Remark],
) -> list[str]:
    """Return the kinds of image that every session has and that lie on the mask's grid.

    Raises `DatasetError` if there is none, `ReadError` if the first session's mask is damaged.
    """
    first, own = next(iter(images.items()))
    shared = set.intersection(*(set(files) for files in images.values()))
    everything = {name for files in images.values() for name in files}
    grid = read_geometry(masks[first])
    channels: list[str] = []
    for name in sorted(shared):
        with suppress(LesionsegError):
            channels += [name] if read_geometry(own[name]).matches(grid) else []
    if not channels:
        raise DatasetError(
            f"no kind of image ({', '.join(sorted(everything))}) is there in every session and on "
            "the grid of its mask. Resample the images onto the masks' grid."
        )
    if left_out := sorted(everything - set(channels)):
        text = f"{root}: not in every session, or not on the mask's grid, and so left out: "
        remarks.append(Remark("left_out", f"{text}{', '.join(left_out)}."))
    return channels


def _images(root: Path, case: str, mask: Path) -> dict[str, Path]:
    """Images of a session by suffix, such as FLAIR; those beside the mask go first."""
    for folder in (mask.parent, root.joinpath(*case.split("_"))):
        images: dict[str, Path] = {}
        for file in sorted(folder.rglob(f"{case}_*")) if folder.is_dir() else ():
            channel = strip_suffix(file).rpartition("_")[2]
            if is_image_file(file) and "label-" not in file.name and channel not in _NO_CHANNEL:
                images.setdefault(channel, file)
        if images:
            return images
    return {}
