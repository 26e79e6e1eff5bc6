"""Helpers of several layouts: list of images, unread files, distinct ids, list of names."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat

from lesionseg.config import CONFIG
from lesionseg.core import CaseFiles
from lesionseg.core.finding import Finding, Severity
from lesionseg.errors import count, join_names
from lesionseg.io.case_ids import path_id
from lesionseg.io.contents import voxel_files
from lesionseg.io.files import TEXT_SUFFIXES, is_file_or_broken_link
from lesionseg.io.volumes import SUFFIXES, is_image_file

Count = Annotated[int, Field(ge=0, lt=10**9)]
Number = Annotated[FiniteFloat, Field(gt=-1e9, lt=1e9)]
_NOT_IMAGES = {"masks", "labels", "annotations"}  # folders without images
# files in the folders of runs, predictions and scores
_FILES_OF_RESULTS = {CONFIG, "predictions.csv", "scores.json"}


def findings_about(
    where: object,
    names: Sequence[object],
    noun: str,
    words: str,
    *,
    kind: str = "left_out",
    maximum: int = 20,
    advice: str = "",
    severity: Severity = "note",
) -> list[Finding]:
    """Return a list with one finding that counts and lists `names`, or [] if `names` is empty.

    Args:
        where: The folder or table with which the message begins.
        names: The names of the entries.
        noun: A noun for one of the entries, such as `image`.
        words: The words after the count that say why the entries are listed, such as `without a
            row, left out`.
        kind: The kind of the finding, see `Finding`.
        maximum: The number of names that are listed. The count includes the others.
        advice: A sentence after the names, which begins with a space.
        severity: The severity of the finding.
    """
    if not names:
        return []
    text = f"{where}: {count(len(names), noun)} {words}: {join_names(names, maximum)}.{advice}"
    return [Finding(kind, text, severity=severity)]


def with_distinct_ids(cases: Sequence[CaseFiles], root: Path) -> list[CaseFiles]:
    """Return the cases, in which each id that several cases share is replaced by the image's path.

    The path begins below `root`, so `p1/t1.nii` and `p2/t1.nii` become `p1_t1` and `p2_t1`. The
    whole path is used for an image outside `root`.
    """
    n_cases = Counter(files.case for files in cases)
    distinct: list[CaseFiles] = []
    for files in cases:
        if n_cases[files.case] > 1:
            image = files.images[0]
            image_path = image.relative_to(root) if image.is_relative_to(root) else image
            files = replace(files, case=path_id(image_path))
        distinct.append(files)
    return distinct


def listed_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a table names, relative to the folder of the table.

    Separators of Windows become slashes.
    """
    return folder / name.replace("\\", "/")


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder and its subfolders, sorted by path.

    - Hidden folders and files, folders of masks (`_NOT_IMAGES`), and subfolders with results of
      lesionseg are left out.
    - Links to folders are followed. Each folder is searched only once, because links may form a
      circle. If an image can be reached with and without a link, its path without a link is
      returned. Case ids therefore do not depend on the order in which the disk lists the folders.
    - A broken link to an image is listed, so that reading it reports the error.
    """
    images: list[Path] = []
    searched: set[str] = set()  # real paths of folders
    starts = [folder]
    while starts:
        links: list[Path] = []  # searched after all folders without a link
        for top, folders, names in chain.from_iterable(map(os.walk, starts)):
            real_path = os.path.realpath(top)
            # the first folder, whose contents the user asks for, is searched in any case
            has_results = bool(searched) and not _FILES_OF_RESULTS.isdisjoint(names)
            if real_path in searched or has_results:
                folders.clear()  # `os.walk` enters the folders that remain in this list
                continue
            searched.add(real_path)
            folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_IMAGES]
            links += [link for name in folders if (link := Path(top, name)).is_symlink()]
            with_suffix = filter(is_image_file, (Path(top, name) for name in names))
            images += filter(is_file_or_broken_link, with_suffix)
        starts = sorted(links)
    return sorted(images)


def find_unread_files(
    folder: Path, *, folders: bool = True, usual: tuple[str, ...] = ()
) -> list[Finding]:
    """Return a finding that lists the files of a folder in unknown formats, or [] without any.

    The finding tells the user which images would have to be converted. Hidden files, texts and
    files without a suffix are not listed. Neither are files with the voxels of a header file, such
    as `.raw` of `.mhd`.

    Args:
        folder: The folder with images. Its subfolders are not searched.
        folders: True also lists the subfolders, as items that are not read.
        usual: Further suffixes that are not listed.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in entries if not path.is_dir()]
    known_endings = (*SUFFIXES, *usual, *TEXT_SUFFIXES)
    unread = [
        path for path in files if path.suffix and not path.name.lower().endswith(known_endings)
    ]
    if unread:  # `voxel_files` opens header files, so it is called only if necessary
        unread = sorted({*unread} - voxel_files(files))
    kinds = {path.suffix for path in unread}
    if folders and len(files) < len(entries):  # there are subfolders
        unread += [path for path in entries if path.is_dir()]
        kinds.add("folders")
    return findings_about(
        folder,
        [path.name for path in unread],
        "item",
        f"of formats that are not read here ({', '.join(sorted(kinds))})",
        kind="unread",
        advice=f" Convert images to one of {', '.join(SUFFIXES)}.",
        severity="warning",
    )
