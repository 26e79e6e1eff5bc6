"""The names of the files of results: `<case>_mask.*`, `<case>_candidates.json` and others."""

import re
from pathlib import Path

from lesionseg.config import MaskNames
from lesionseg.errors import DatasetError
from lesionseg.io.nnunet_probabilities import ENDINGS as OF_NNUNET
from lesionseg.io.text import write_json
from lesionseg.io.volumes import WRITTEN, is_image_file, strip_suffix
from lesionseg.version import __version__

CANDIDATES = "_candidates.json"
FAILED = "_failed.json"
ALL_FAILED = f"[!.]*{FAILED}"  # pattern, without the temporary files of a killed program
PROBABILITIES = "_probabilities.npz"
PREVIEW = "_preview.png"
SEGMENTATION = "_seg.dcm"
REPORT = "_sr.dcm"
SENT = "_sent.json"  # where the DICOM results were stored
# the endings of a mask by the setting `names`; the longest ending first
MASK_ENDINGS: dict[MaskNames, str] = {
    "bids": "_label-lesion_mask",
    "lesionseg": "_mask",
    "nnunet": "",
}
KINDS = ("mask", "instances", "regions")  # of the masks of a case
OWN_ENDINGS = tuple(f"_{kind}" for kind in KINDS)
_STEMS = (*OWN_ENDINGS, MASK_ENDINGS["bids"])
# the endings of all files of a case, the candidate file first
FILES = (
    *(CANDIDATES, PREVIEW, PROBABILITIES, REPORT, SEGMENTATION, SENT),
    *(f"{stem}{suffix}" for stem in _STEMS for suffix in WRITTEN),
)
_IGNORED = (SEGMENTATION, REPORT, PROBABILITIES, PREVIEW)  # no masks, candidates or scores
FILES_OF_NNUNET = (*OF_NNUNET, *WRITTEN)  # further ones with `names=nnunet`
# for messages
OTHER_BOXES = (
    "Boxes of another program (COCO results, text files of YOLO) are read from one file "
    '<case>_candidates.json per image: {"candidates": [{"score": 0.9, "start_vox": [y, x], '
    '"stop_vox": [y, x]}]}, see "Case files" in docs/reference.md.'
)
# `label` and `desc` describe a derivative, not its scan
_LAST_ENTITIES = re.compile(
    r"(?:.*_)?(sub-[A-Za-z0-9]+(?:_(?!label-|desc-)[a-z]+-[A-Za-z0-9]+)*)(?:_.*)?"
)


def case_and_kind(file: Path) -> tuple[str, str]:
    """Return case id and kind of a result by its name.

    The kind is one of `KINDS`, "candidates", or "probabilities" for `<case>.npz` of nnU-Net. It is
    "" for files to ignore. These include `<case>_probabilities.npz` of lesionseg, because the
    candidate file has the scores, and the picture `<case>_preview.png`.
    """
    stem = strip_suffix(file)
    case, _, kind = stem.rpartition("_")
    if file.name.startswith(".") or file.name.endswith(_IGNORED):
        return stem, ""
    if file.name.endswith(".npz"):
        return stem, "probabilities"
    if file.name.endswith(CANDIDATES):
        return case, "candidates"
    if not is_image_file(file) or kind == "candidates":
        return stem, ""
    if stem.endswith(MASK_ENDINGS["bids"]):
        return stem.removesuffix(MASK_ENDINGS["bids"]), "mask"
    return (case, kind) if kind in KINDS else (stem, "mask")


def looks_like_result(case: str) -> bool:
    """Return True if a mask that is named after the case id alone would be another result."""
    return case.endswith((*_STEMS, "_candidates", "_preview"))


def bids_case_id(case: str) -> str:
    """Return the last subject in a case id and the entities after it, without the suffix.

    The entities `label` and `desc`, which describe a derivative and not its scan, end the id. Names
    are those of bids-specification.readthedocs.io.

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


def write_bids_description(folder: Path) -> list[Path]:
    """Write `dataset_description.json`, which BIDS requires of derivatives. Return the file."""
    path = folder / "dataset_description.json"
    content = {
        "Name": "Lesion masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lesionseg", "Version": __version__}],
    }
    write_json(path, content)
    return [path]
