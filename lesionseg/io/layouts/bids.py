"""BIDS layout: names of lesion masks, sessions, scans and channels that belong to a mask.

Lesion masks are derivatives: `…/sub-*/[ses-*/]…_label-lesion_mask.nii.gz`.

Names: bids-specification.readthedocs.io, "Imaging derivatives". A case is a subject's session,
or each of its scans if several have a mask.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lesionseg.core import CaseFiles, Labels
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.errors import DatasetError, LesionsegError, join_names
from lesionseg.io.layouts.checks import findings_about
from lesionseg.io.layouts.table import Row, Table
from lesionseg.io.volumes import is_image_file, read_geometry, strip_suffix

_MASK = re.compile(
    r".*_label-(?:lesions?[0-9]*|L)(?:_[a-z]+-[A-Za-z0-9]+)*_(?:mask|dseg)", re.IGNORECASE
)
_SESSION = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_.*")  # subject, session or None
_ENTITY = re.compile(r"_(?!space-orig_)([a-z]+)-([A-Za-z0-9]+)")  # a scan is in its own space
_NOT_OF_THE_SCAN = ("label", "desc")  # entities that describe a derivative, not its scan
# these, further ones that do not distinguish scans, and the suffix
_AFTER_SCAN = re.compile(r"_(?:(?:label|desc|space|res|den|mod|hemi|seg)-[A-Za-z0-9]+|[A-Za-z]+$)")
_NOT_CHANNELS = ("mask", "dseg", "probseg", "boldref", "events", "instances", "regions")


def is_bids(root: Path) -> bool:
    """Return True if a folder looks like a BIDS dataset with masks.

    Such a folder contains a file `sub-*_label-*` at any depth. If this file is no lesion mask,
    `read_bids` finds no case.
    """
    return next(root.glob("**/sub-*_label-*"), None) is not None


def read_bids(root: Path) -> Table:
    """Read a BIDS folder as a table with one case per session. Label 1 is the lesion.

    - The images of a session are located next to its mask, otherwise in its raw folder, such as
      `sub-01/ses-02`.
    - A channel is a suffix, such as FLAIR, of which every session has an image. In the first
      session, this image must be on the grid of the mask.
    - If a session has several images of one suffix, the entities in the name of the mask decide
      which image is used.
    - If a session has several masks, for example of several runs, each mask is a case. These cases
      have the subject as their group.
    - Sessions without a mask, and masks that cannot be used, become findings.
    """
    masks: dict[str, Path] = {}
    images: dict[str, dict[str, Path]] = {}
    findings: list[Finding] = []
    mask_files = _find_masks(root)
    n_masks_of_session = Counter(map(_session_of, mask_files))
    # the mask and the images of each case
    for mask in mask_files:
        session = _session_of(mask)
        has_several = n_masks_of_session[session] > 1
        # without the entities and the suffix that describe the mask: sub-01_run-1
        case = _AFTER_SCAN.sub("", strip_suffix(mask)) if has_several else session
        with collect_errors(findings, case, mask):
            if not session:
                raise DatasetError("the name has no subject. Begin it with sub-<label>_.")
            session_images = _find_images(root, session, mask)
            if not session_images:
                raise DatasetError(
                    f"the session {session} has no image. Add one, or remove the mask."
                )
            # the names of two masks give one case, or they choose the same images
            if has_several and (case in masks or session_images in images.values()):
                raise DatasetError(
                    f"this is a second lesion mask of the images of {case}. Name the one that "
                    "counts in a manifest.csv (case, image, reference), or merge them."
                )
            masks[case] = mask
            images[case] = session_images
    # the suffixes that are channels, and a row for each case
    channels: list[str] = []
    if images:
        with collect_errors(findings, case="", where=root):
            channels = _find_channels(root, images, masks, findings)
    rows: list[Row] = []
    if channels:  # there are no cases if no image is on the grid of its mask
        for case, image_of_suffix in images.items():
            case_images = tuple(image_of_suffix[channel] for channel in channels)
            subject = case.partition("_")[0]
            rows.append(Row(CaseFiles(case, case_images, reference=masks[case], group=subject)))
    findings += _find_without_mask(root, n_masks_of_session)
    return Table(root, rows, Labels.of({1: "lesion"}), tuple(channels), findings)


def _find_masks(root: Path) -> list[Path]:
    """Return the lesion masks of a folder and its subfolders, sorted.

    A lesion mask is an image file such as `sub-01_label-lesion_mask` or `sub-01_label-L_dseg`.
    """
    files = sorted(filter(is_image_file, root.rglob("sub-*_label-*")))
    return [file for file in files if _MASK.fullmatch(strip_suffix(file))]


def _find_without_mask(root: Path, sessions_with_mask: Collection[str]) -> list[Finding]:
    """Return a finding that lists the sessions with images but without a mask.

    The list is empty if each session has a mask. Only images in raw folders `sub-*` directly below
    `root` count. `sessions_with_mask` are ids such as `sub-01_ses-02`.
    """
    sessions = {_session_of(file) for file in root.glob("sub-*/**/sub-*") if is_image_file(file)}
    names = sorted(session for session in sessions if session and session not in sessions_with_mask)
    words = "without a lesion mask, left out"
    advice = " A lesion-free session needs a mask of zeros."
    return findings_about(root, names, "session", words, advice=advice, severity="warning")


def _session_of(file: Path) -> str:
    """Return subject and session of a file name, such as "sub-01_ses-02", as the case id.

    Return "sub-01" if the name has no session, and "" if it has no subject.
    """
    match = _SESSION.fullmatch(strip_suffix(file))
    if match is None:
        return ""
    subject, session = match.groups()
    return f"{subject}_{session}" if session else str(subject)


def _find_channels(
    root: Path,
    images: Mapping[str, Mapping[str, Path]],
    masks: Mapping[str, Path],
    findings: list[Finding],
) -> list[str]:
    """Return the suffixes of images, such as FLAIR, that can be channels of the dataset, sorted.

    Every session has an image of this suffix, and in the first session the image is readable and on
    the grid of the mask. The grids of further sessions are not read here, because this would take
    too long.

    Args:
        root: The folder, for messages.
        images: The images of each session by suffix.
        masks: The mask of each session.
        findings: Receives a finding about the suffixes that are left out.

    Raises:
        DatasetError: If no suffix is a channel.
        ReadError: If the mask of the first session is damaged.
    """
    first_session, first_images = next(iter(images.items()))
    in_every_session = set(first_images)
    in_any_session: set[str] = set()
    for files in images.values():
        in_every_session &= set(files)
        in_any_session |= set(files)
    grid = read_geometry(masks[first_session])
    channels: list[str] = []
    for suffix in sorted(in_every_session):
        with suppress(LesionsegError):  # an image that cannot be read is no channel
            # the tolerance is half of the shortest side of a voxel
            if read_geometry(first_images[suffix]).matches(grid, 0.5 * min(grid.spacing_mm)):
                channels.append(suffix)
    if not channels:
        raise DatasetError(
            f"none of the kinds of image ({', '.join(sorted(in_any_session))}) exists in every "
            f"session, and is readable and on the grid of the mask in the session {first_session}. "
            "Add or replace images, or resample them onto the grid of the masks."
        )
    left_out = sorted(in_any_session - set(channels))
    words = (
        "not in every session, or not readable or not on the grid of the mask in the session "
        f"{first_session}, and so left out"
    )
    findings += findings_about(root, left_out, "image type", words, severity="warning")
    return channels


def _find_images(root: Path, session: str, mask: Path) -> dict[str, Path]:
    """Return the image of each suffix that belongs to a mask, such as {"FLAIR": …}.

    Return {} if there is none. Images are searched in the folder of the mask and its subfolders. If
    these contain none, they are searched in the raw folder of the session, such as `sub-01/ses-02`.

    Args:
        root: The BIDS folder.
        session: Subject and session, such as `sub-01_ses-02`.
        mask: The lesion mask.

    Raises:
        DatasetError: If several images of a suffix may belong to the mask.
    """
    raw_folder = root.joinpath(*session.split("_"))  # sub-01/ses-02
    for folder in (mask.parent, raw_folder):
        images: dict[str, list[Path]] = {}
        for file in sorted(folder.rglob(f"{session}_*")):
            suffix = strip_suffix(file).rpartition("_")[2]
            # `label-` is an entity of masks
            if is_image_file(file) and "label-" not in file.name and suffix not in _NOT_CHANNELS:
                images.setdefault(suffix, []).append(file)
        image_of_suffix = {
            suffix: image
            for suffix, files in images.items()
            if (image := _choose_image(files, mask)) is not None
        }
        if image_of_suffix:
            return image_of_suffix
    return {}


def _choose_image(files: Sequence[Path], mask: Path) -> Path | None:
    """Choose the image that belongs to a mask, from the images of one suffix in its session.

    BIDS names contain entities, such as `run-1`. An image whose entity has another value in the
    name of the mask is excluded. If several images remain, the one with the same entities as the
    mask is chosen. Return None if no image remains.

    Raises:
        DatasetError: If several images remain, and none or several of them have the same entities
            as the mask.
    """
    mask_entities = _entities_of(mask)
    possible = [
        file
        for file in files
        # In `{**mask, **image}`, values of the image replace those of the mask. All items of the
        # mask are still in it only if no entity that both names have differs.
        if mask_entities.items() <= {**mask_entities, **_entities_of(file)}.items()
    ]
    with_equal_entities = [file for file in possible if _entities_of(file) == mask_entities]
    if len(possible) > 1 and len(with_equal_entities) != 1:
        names = join_names([file.name for file in possible])
        raise DatasetError(
            f"several images may belong to {mask.name}: {names}. Name the mask like its image "
            "(run-, acq-, space-), or write a manifest.csv (case, image, reference)."
        )
    return next(iter(with_equal_entities or possible), None)


def _entities_of(file: Path) -> dict[str, str]:
    """Return the entities in a file name that distinguish the scans of a session, as {"run": "1"}.

    `label`, `desc` and `space-orig` describe a mask and not its scan, so they are left out.
    """
    pairs = dict(_ENTITY.findall(strip_suffix(file)))
    return {key: value for key, value in pairs.items() if key not in _NOT_OF_THE_SCAN}
