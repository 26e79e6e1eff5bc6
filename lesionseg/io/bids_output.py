"""Results with names of BIDS derivatives. Names: bids-specification.readthedocs.io."""

import re
from pathlib import Path

from lesionseg.errors import DatasetError
from lesionseg.io.text import write_json
from lesionseg.version import __version__

DESCRIPTION = "dataset_description.json"
_BIDS_VERSION = "1.10.0"
# `label` and `desc` describe a derivative, not its scan
_LAST_ENTITIES = re.compile(
    r"(?:.*_)?(sub-[A-Za-z0-9]+(?:_(?!label-|desc-)[a-z]+-[A-Za-z0-9]+)*)(?:_.*)?"
)


def bids_case_id(case: str) -> str:
    """Return the last subject in a case id and the entities after it, without the suffix.

    The entities `label` and `desc`, which describe a derivative and not its scan, end the id.

    Raises:
        DatasetError: The case id has no subject.

    >>> bids_case_id("sub-01_ses-2_anat_sub-01_ses-2_run-1_FLAIR")
    'sub-01_ses-2_run-1'
    """
    match = _LAST_ENTITIES.fullmatch(case)
    if match is None:
        raise DatasetError(
            f"names=bids: the case id {case!r} has no subject. Begin the name of the file or of "
            "its folder with sub-<label>, or use names=lesionseg."
        )
    return match[1]


def write_bids_description(folder: Path) -> None:
    """Write `dataset_description.json`, which BIDS requires in a folder of derivatives."""
    content = {
        "Name": "Lesion masks",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lesionseg", "Version": __version__}],
    }
    write_json(folder / DESCRIPTION, content)
