"""BIDS files besides masks: dataset_description.json, .bidsignore, JSON sidecar."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lesionseg.io.results.names import mask_stem
from lesionseg.io.text import write_json, write_text
from lesionseg.version import __version__

_OTHER_FILES = """\
*_candidates.json
*_failed.json
*_instances.*
*_preview.png
*_probabilities.npz
*_regions.*
*_seg.dcm
*_sent.json
*_sr.dcm
first_scans.json
predictions*
"""


def write_bids_description(folder: Path) -> list[Path]:
    """Write `dataset_description.json` and `.bidsignore`, so that a folder of masks is valid BIDS.

    `.bidsignore` lists the files of lesionseg that BIDS does not know. If it exists, it is not
    changed.

    Returns:
        The paths of `dataset_description.json` and `.bidsignore`.
    """
    description = folder / "dataset_description.json"
    content = {
        "Name": "Lesion masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lesionseg", "Version": __version__}],
    }
    write_json(description, content)
    ignore_file = folder / ".bidsignore"
    if not ignore_file.exists():
        write_text(ignore_file, _OTHER_FILES)
    return [description, ignore_file]


def write_sidecar(place: Path, case: str, images: Sequence[Path], folder: Path) -> None:
    """Write the BIDS sidecar of a mask, a JSON file that names the images of the scan.

    The paths of the images in it are relative to the folder of results. BIDS would also allow BIDS
    URIs, but these need a BIDS dataset, and the scans may be anywhere.

    Args:
        place: The folder to write into.
        case: The case id, see `bids_case_id`.
        images: The channels of the scan. The mask is on the grid of the first image.
        folder: The folder of results.
    """
    image_paths = [_relative_path(image, folder) for image in images]
    content = {"SpatialReference": image_paths[0], "Sources": image_paths, "Type": "Lesion"}
    write_json(place / f"{mask_stem(case, 'bids')}.json", content)


def _relative_path(file: Path, folder: Path) -> str:
    """Return the path of a file relative to a folder, with slashes as separators.

    If the file is on another drive of Windows, its path is returned unchanged.
    """
    with suppress(ValueError):  # another drive
        file = Path(os.path.relpath(file, folder))
    return file.as_posix()
