"""The names of the files of results: `<case>_mask.*`, `<case>_candidates.json` and others."""

from pathlib import Path

from lesionseg.config import MaskNames
from lesionseg.io.nnunet_probabilities import SUFFIX as NPZ
from lesionseg.io.volumes import is_image_file, strip_suffix

CANDIDATES = "_candidates.json"
FAILED = "_failed.json"
PROBABILITIES = "_probabilities.npz"
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
# for messages
OTHER_BOXES = (
    "Boxes of another program (COCO results, text files of YOLO) are read from one file "
    '<case>_candidates.json per image: {"candidates": [{"score": 0.9, "start_vox": [y, x], '
    '"stop_vox": [y, x]}]}, see "Case files" in docs/reference.md.'
)


def case_and_kind(file: Path) -> tuple[str, str]:
    """Return case id and kind of a result by its name.

    The kind is one of `KINDS`, "candidates", or "probabilities" for `<case>.npz` of nnU-Net. It is
    "" for files to ignore. These include `<case>_probabilities.npz` of lesionseg, because the
    candidate file has the scores.
    """
    stem = strip_suffix(file)
    case, _, kind = stem.rpartition("_")
    if file.name.startswith(".") or file.name.endswith((SEGMENTATION, REPORT, PROBABILITIES)):
        return stem, ""
    if file.name.endswith(NPZ):
        return stem, "probabilities"
    if file.name.endswith(CANDIDATES):
        return case, "candidates"
    if not is_image_file(file) or kind == "candidates":
        return stem, ""
    if stem.endswith(MASK_ENDINGS["bids"]):
        return stem.removesuffix(MASK_ENDINGS["bids"]), "mask"
    return (case, kind) if kind in KINDS else (stem, "mask")
