"""The page around the figures: section names, pseudonyms, tables; its first sheet is in en.yaml."""

from collections.abc import Mapping

from lesionseg.report.text.amounts import count

# Words that claim more than a standalone comparison can show; the page is tested for them.
FORBIDDEN = ("safe", "clinically validated", "rules out", "outperforms")
UNTOUCHED_ROLES = ("test", "external")
SECTIONS: Mapping[str, str] = {
    "summary": "In short",
    "size": "Sensitivity by lesion size",
    "froc": "Sensitivity versus false positives (FROC)",
    "why": "Why lesions were missed",
    "gallery": "Pictures",
    "cases": "Patient by patient",
    "rest": "Pictures of false positives and found lesions",
    "further": "Further figures by size",
    "measures": "All measures",
    "labels": "Sensitivity by kind of lesion",
    "regions": "Region by region",
    "comparison": "Compared with another reader or model",
    "subgroups": "Sensitivity by subgroup",
    "calibration": "Calibration",
    "official": "By another scorer's rules",
    "adjudication": "False positives, judged by a person",
    "overlap": "Segmentation overlap (Dice) per scan",
    "flow": "Flow of patients and scans",
    "study": "Study design and population",
    "acceptance": "Local acceptance test",
    "elsewhere": "Here and on other scans",
    "patients": "Each patient's sensitivity and false positives",
    "scans": "Scan by scan: what a positive or a negative one means",
    "load": "Lesion load",
    "lesions": "All reference lesions",
    "candidates": "All candidates",
    "definitions": "Definitions",
    "training": "Training",
    "balance": "Which voxels the network learnt from",
    "anchors": "Anchors and lesions",
    "audit": "References worth a second look",
    "absent": "Not on this page",
    "provenance": "Where the figures come from",
    "checklists": "Reporting guidelines",
}
ANNEX = "Annex"
ROWS_ON_PAPER, CASES_ON_PAPER = 40, 25  # of a table; of the one below each patient's dots
PSEUDONYM_CASE, PSEUDONYM_PATIENT = "case", "patient"
PSEUDONYMS_TEXT = (
    "Scans and patients have pseudonyms here. Which ones they stand for is in pseudonyms.csv "
    "beside the page: keep that file, do not pass it on."
)
WITHHELD = "withheld; in the files of the evaluation"
UNREADABLE = "The scan or its masks could not be read; the log says why."
CASES_TEXT = (
    "One line per scan. A dash means not defined: Dice and surface distance need a reference "
    "lesion, the distance also a detection."
)
LESIONS_TEXT = "One line per reference lesion."
SORT_TEXT = "Press a heading to sort."
CANDIDATES_TEXT = "One line per candidate, also those whose score is too low to count."
SEARCH = "Search (several words: separate them by ;)"
ALL_SHOWN = "All of this kind, in parts."
CONTENTS = "Contents"
SCROLL = "Table, scrolls sideways"


def omitted(n: int) -> str:
    """Lines of a table that are only in the file."""
    return f"{count(n, 'further line')} not shown; the CSV file has all."
