"""The page around the figures: titles, banners, limits, section names, links."""

from collections.abc import Mapping

from lesionseg.report.text.amounts import count

# Words that claim more than a standalone comparison can show; the page is tested for them.
FORBIDDEN = ("safe", "clinically validated", "rules out", "outperforms")
TITLE = "Standalone performance of lesion detection"
SUBTITLE = "Sensitivity report"
SIMULATED = "Simulated scans"
SIMULATED_TEXT = (
    "The scans were made by a program, not recorded from people. "
    "Nothing here says how the model does on patients."
)
DEVELOPMENT = "Development data: optimistic"
DEVELOPMENT_TEXT = {
    "train": "The model was trained on these very scans.",
    "validation": "These scans were not trained on, but choices were made by looking at them "
    "(which training step to keep, from which score a candidate counts).",
}
UNTOUCHED_ROLES = ("test", "external")
UNTOUCHED = "not used in training"
ROLE_UNKNOWN = "The role of these scans was not stated"
ROLE_UNKNOWN_TEXT = (
    "They may have been used in training, and then the figures flatter. "
    "How to fix: evaluate again with evaluated_on=test or evaluated_on=external, "
    "but only if the model never saw these scans."
)
NOT_GROUP_SAFE = "Same patients on both sides"
NOT_GROUP_SAFE_TEXT = (
    "Scans of one patient were used both for training and here, so the figures flatter."
)
POINT_OPTIMISTIC = (
    "The score from which a candidate counts was chosen on these same scans; that flatters the "
    "figures."
)
NOT_SAID = "Not stated"
NOT_SAID_TEXT = (
    "{what}. Whether these figures hold for your patients cannot be told without them. "
    "How to fix: report.study=study.yaml."
)
# keys of a study file, and the rows of the first page that must say them
MUST_STATE: Mapping[str, str] = {"intended_use": "use", "population": "population"}
NOT_FOR = (
    "Excluding a lesion, deciding without a reader, or scans unlike these. "
    "Research use only; not a medical device."
)
# what the rows of the first page are called
FACTS: Mapping[str, str] = {
    "model": "Model and version",
    "use": "Intended use",
    "population": "Population",
    "reference": "Reference read by",
    "scans": "Patients and scans",
    "role": "Role of these scans",
    "all": "Sensitivity, all lesions",
    "false": "False positives per scan",
    "reader": "Second reader",
    "ignored": "Not counted",
    "failed": "Without a prediction",
    "warned": "Unlike the training scans",
    "rule": "Found means",
    "point": "Operating point",
    "size": "Sizes",
    "interval": "95 % CI",
    "not_for": "Not for",
}
LIMITS_TITLE = "What these figures do not say"
LIMITS = (
    "Standalone performance: the program's detections were compared with a reference. "
    "No reader was studied, with or without the program.",
    "An empty result does not exclude a lesion.",
    "The reference standard is expert reading and may be incomplete: a detection that matches none "
    "of its lesions may be real, and it may lack lesions that the program missed too.",
    "Positive and negative predictive values depend on prevalence.",
    "Research use only. Not a medical device.",
)
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
ROWS_ON_PAPER = 40  # of a table
PSEUDONYM_CASE, PSEUDONYM_PATIENT = "case", "patient"
PSEUDONYMS_TEXT = (
    "Scans and patients have pseudonyms here. Which ones they stand for is in pseudonyms.csv "
    "beside the page: keep that file, do not pass it on."
)
WITHHELD = "withheld; in the files of the evaluation"
UNREADABLE = "The scan or its masks could not be read; the log says why."
DEFINITION_LINK, ROWS_LINK = "what this means", "its rows"
CASES_TEXT = (
    "One line per scan. Press a heading to sort. A dash means not defined: Dice and surface "
    "distance need a reference lesion, the distance also a detection."
)
LESIONS_TEXT = "One line per reference lesion. Press a heading to sort."
CANDIDATES_TEXT = "One line per candidate, also those whose score is too low to count."
SEARCH = "Search (several words: separate them by ;)"
ALL_SHOWN = "All of this kind, in parts."
CONTENTS = "Contents"
SCROLL = "Table, scrolls sideways"


def omitted(n: int) -> str:
    """Lines of a table that are only in the file."""
    return f"{count(n, 'further line')} not shown; the CSV file has all."
