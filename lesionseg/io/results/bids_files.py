"""The files that BIDS expects of a folder of masks, besides the masks of `names=bids`."""

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
    """Write `dataset_description.json`, and `.bidsignore` with the files that BIDS does not know.

    A `.bidsignore` that exists is not changed. Return the two files.
    """
    description = folder / "dataset_description.json"
    content = {
        "Name": "Lesion masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lesionseg", "Version": __version__}],
    }
    write_json(description, content)
    ignored = folder / ".bidsignore"
    if not ignored.exists():
        write_text(ignored, _OTHER_FILES)
    return [description, ignored]


def write_sidecar(place: Path, case: str, images: Sequence[Path], folder: Path) -> None:
    """Write the sidecar of a case's mask, which states the scan.

    Paths begin at the folder of results, because scans need not be in a BIDS dataset, to which a
    BIDS URI would refer.

    Args:
        place: The folder to write into.
        case: The case id, see `bids_case_id`.
        images: The channels of the scan. The mask is on the grid of the first one.
        folder: The folder of results.
    """
    sources = [_relative_path(image, folder) for image in images]
    content = {"SpatialReference": sources[0], "Sources": sources, "Type": "Lesion"}
    write_json(place / f"{mask_stem(case, 'bids')}.json", content)


def _relative_path(file: Path, folder: Path) -> str:
    """Return the path from a folder to a file, or the whole path on another drive of Windows."""
    with suppress(ValueError):
        file = Path(os.path.relpath(file, folder))
    return file.as_posix()
