"""Endings of result files (`_mask`, `_candidates.json`, `_seg.dcm`); BIDS and nnU-Net names."""

import re
from pathlib import Path

from lesionseg.config import MaskNames
from lesionseg.errors import DatasetError
from lesionseg.io.nnunet_probabilities import ENDINGS as OF_NNUNET
from lesionseg.io.volumes import WRITTEN, is_image_file, strip_suffix

CANDIDATES = "_candidates.json"
FAILED = "_failed.json"
ALL_FAILED = f"[!.]*{FAILED}"  # pattern, without the temporary files of a killed program
PROBABILITIES = "_probabilities.npz"
PREVIEW = "_preview.png"
SEGMENTATION = "_seg.dcm"
REPORT = "_sr.dcm"
SENT = "_sent.json"  # where the DICOM results were stored
FIRST_SCANS = "first_scans.json"  # the cases that `PredictionFolder.keep_first` keeps
EARLIER_BIDS = "_label-lesion_mask"  # of masks that earlier versions wrote with `names=bids`
_MASK_ENDINGS: dict[MaskNames, str] = {
    "bids": EARLIER_BIDS,
    "lesionseg": "_mask",
    "nnunet": "",
}
KINDS = ("mask", "instances", "regions")  # of the masks of a case
OWN_ENDINGS = tuple(f"_{kind}" for kind in KINDS)
# the endings of all files of a case, except those of BIDS, the candidate file first
FILES = (
    *(CANDIDATES, PREVIEW, PROBABILITIES, REPORT, SEGMENTATION, SENT),
    *(f"{stem}{suffix}" for stem in (*OWN_ENDINGS, EARLIER_BIDS) for suffix in WRITTEN),
)
_IGNORED = (SEGMENTATION, REPORT, PROBABILITIES, PREVIEW)  # no masks, candidates or scores
FILES_OF_NNUNET = (*OF_NNUNET, *WRITTEN)  # further ones with `names=nnunet`
BIDS_SUFFIXES = (".nii.gz", ".json")  # of a mask with `names=bids`, and of its sidecar
BIDS_MASKS = "sub-*/**/*_label-lesion*_mask.*"  # pattern of these files
# for messages
OTHER_BOXES = (
    "Boxes of another program (COCO results, text files of YOLO) are read from one file "
    '<case>_candidates.json per image: {"candidates": [{"score": 0.9, "start_vox": [y, x], '
    '"stop_vox": [y, x]}]}, see "Case files" in docs/reference.md.'
)
# the entities that BIDS allows in the name of a mask, besides subject, label and description
_ENTITIES = re.compile("(?:_(?:ses|task|acq|ce|rec|run|echo|part|space)-[A-Za-z0-9]+(?![^_]))")
_NOT_OF_THE_SCAN = re.compile("_(?:label-[^_]*|desc-[^_]*|space-orig(?![^_]))")
_BIDS_CASE = re.compile(f"(sub-[A-Za-z0-9]+{_ENTITIES.pattern}*)(_[A-Za-z0-9]+)?")
_BIDS_MASK = re.compile(r"(.+?)(?:_space-orig)?_label-lesion(?:_desc-([A-Za-z0-9]+))?_mask")


def case_and_kind(file: Path) -> tuple[str, str]:
    """Return the case id and the kind of a result file from its name.

    The kind is one of:

    - `mask`, `instances` or `regions` for an image file
    - `candidates` for a candidate file
    - `probabilities` for `<case>.npz` of nnU-Net
    - "" for any other file, which is ignored. `<case>_probabilities.npz` of lesionseg and the
      picture `<case>_preview.png` are such files.

    For a mask with `names=bids`, the case id contains the subject, entities and description.
    """
    stem = strip_suffix(file)
    case, _, kind = stem.rpartition("_")
    if file.name.startswith(".") or file.name.endswith(_IGNORED):
        return stem, ""
    if file.name.endswith(".npz"):
        return stem, "probabilities"
    if file.name.endswith(CANDIDATES):
        return case, "candidates"
    # files that are no images, and images with the ending of a candidate file
    if not is_image_file(file) or kind == "candidates":
        return stem, ""
    if match := _BIDS_MASK.fullmatch(stem):
        return "_".join(filter(None, match.groups())), "mask"
    return (case, kind) if kind in KINDS else (stem, "mask")


def mask_stem(case: str, names: MaskNames) -> str:
    """Return the path of a case's mask below the folder of results, without its suffix.

    With `bids`, a case id in the form of `bids_case_id` gives a path in the folder of the subject.
    Any other case id gives a file name without folder.

    >>> mask_stem("sub-01_ses-2_run-1_FLAIR", "bids")
    'sub-01/ses-2/anat/sub-01_ses-2_run-1_space-orig_label-lesion_desc-FLAIR_mask'
    """
    match = _BIDS_CASE.fullmatch(case)
    if names != "bids" or match is None:
        return f"{case}{_MASK_ENDINGS[names]}"
    entities, suffix = match.groups(default="")  # such as sub-01_ses-2_run-1, _FLAIR
    folder = "/".join(re.findall("(?:sub|ses)-[A-Za-z0-9]+", entities))
    space = "" if "_space-" in entities else "_space-orig"
    description = suffix.replace("_", "_desc-")  # _FLAIR becomes _desc-FLAIR
    return f"{folder}/anat/{entities}{space}_label-lesion{description}_mask"


def looks_like_result(case: str) -> bool:
    """Return True if a mask `<case>.*` would have the name of another result file.

    With `names=nnunet`, a mask is named after the case id only. The case `P1_instances` would then
    give a mask that looks like the instances of the case `P1`.
    """
    return case.endswith((*OWN_ENDINGS, "_candidates", "_preview"))


def bids_case_id(case: str, subject: str = "") -> str:
    """Return a case id in the form of a BIDS name: subject, entities, and a suffix such as FLAIR.

    The subject is the last one in the case id, and entities are read from the text after it. The
    remaining text becomes the suffix, in letters and digits only. The entities `label` and `desc`,
    which describe a mask and not its scan, and `space-orig` are left out. Names are those of
    bids-specification.readthedocs.io.

    Args:
        case: The case id.
        subject: The label of the subject. "" means the last subject in the case id.

    Raises:
        DatasetError: If there is no subject.

    >>> bids_case_id("sub-01_ses-2_anat_sub-01_ses-2_run-1_FLAIR")
    'sub-01_ses-2_run-1_FLAIR'
    >>> bids_case_id("2026-01-07_P017_FLAIR", subject="17")
    'sub-17_20260107P017FLAIR'
    """
    # the text after the last subject, or the case id after "_" if there is none: label is then ""
    _, _, end = f"_{case}".rpartition("_sub-")
    label, _, rest = end.partition("_")
    subject = subject or label
    if not subject or subject != bids_label(subject):
        raise DatasetError(
            f"names=bids: the case id {case!r} has no subject. Begin the name of the file or of "
            "its folder with sub-<label>, in letters and digits, or use names=lesionseg."
        )
    rest = _NOT_OF_THE_SCAN.sub("", f"_{rest}")
    suffix = bids_label(_ENTITIES.sub("", rest))
    entities = "".join(_ENTITIES.findall(rest))
    return f"sub-{subject}{entities}_{suffix}".removesuffix("_")  # no "_" without a suffix


def bids_label(text: str) -> str:
    """Return the letters and digits of a text. BIDS allows no other characters in a label."""
    return "".join(re.findall("[A-Za-z0-9]", text))


def without_bids_suffix(case: str) -> str:
    """Return an id of `bids_case_id` without its suffix such as FLAIR. Other ids do not change.

    >>> without_bids_suffix("sub-01_ses-2_FLAIR")
    'sub-01_ses-2'
    """
    match = _BIDS_CASE.fullmatch(case)
    return match[1] if match else case
