"""Headings and cells of the tables, and what stands beside them."""

import re
from collections.abc import Iterable, Mapping, Sequence

from lesionseg.report.text.amounts import count

FOUND, MISSED = "found", "missed"
OUTCOMES: Mapping[str, str] = {
    "true_positive": "true positive",
    "false_positive": "false positive",
    "ignored": "not counted",
    "not_accepted": "score too low to count",
}
WHY_MISSED: Mapping[str, str] = {
    "no_response": "no response: no candidate there",
    "below_operating_point": "a candidate, but with a score under the operating point",
    "merged": "merged: its detection counts for a neighbouring lesion",
    "overlap_too_small": "detected, but detection and lesion overlap too little",
    "wrong_label": "detected, but as another kind of lesion",
    "removed_by_size": "a candidate, but removed for its size",
    "case_failed": "the scan could not be processed",
    "": "not stated",
}
OTHER_RULES = (
    "No rule suits every lesion. The same detections, under other rules of what “found” means:"
)
OWN_RULE = "the rule of this page"
RULES: Mapping[str, str] = {
    "iou10": "one to one, IoU at least 0.1",
    "any_overlap": "detection and lesion share at least one voxel",
    "iou50": "IoU at least 0.5",
    "centre_distance": "centre of a detection within the lesion's radius",
}
HEADINGS_CASES = (
    "Scan",
    "Patient",
    "Result",
    "Lesions",
    "Found",
    "Missed",
    "False positives",
    "Dice",
    "Surface Dice",
    "HD95 ({unit})",
    "Reference (ml)",
    "Predicted (ml)",
)
HEADINGS_LESIONS = (
    "Scan",
    "Lesion",
    "Label",
    "Equivalent diameter",
    "Long axis",
    "Size group",
    "Result",
    "Near resolution",
    "Found at",
    "IoU",
    "If missed: why",
)
HEADINGS_CANDIDATES = (
    "Scan",
    "Candidate",
    "Label",
    "Score",
    "Probability",
    "Equivalent diameter",
    "Result",
    "Touches a lesion",
)
HEADINGS_DEFINITIONS = ("Word", "Meaning")
HEADINGS_SIZE = ("Equivalent diameter", "Found", "Sensitivity", "95 % CI")
HEADINGS_READER = ("Second reader found", "95 % CI")
HEADINGS_MEASURES = ("Measure", "Value", "Rows")
HEADINGS_WHY = ("Reason", "Lesions")
HEADINGS_RULES = ("Rule", "Found", "False positives per scan")
HEADINGS_LABELS = (
    "Kind of lesion",
    "Scans",
    "Found",
    "Sensitivity",
    "95 % CI",
    "False positives per scan",
)
HEADINGS_REGIONS = ("Region", "Scans", "Dice, mean", "Found", "Sensitivity", "95 % CI")
REGIONS_TEXT = (
    "Regions may lie within each other. Each is judged by itself: what of it hangs together counts "
    "as one lesion of its own, so these counts are not those of the page."
)
HEADINGS_PROVENANCE = ("What", "Value")
HEADINGS_CURVE = ("Probability of detection", "Equivalent diameter")
HEADINGS_CELLS = ("Equivalent diameter", "Contrast to noise", "Found", "Sensitivity", "95 % CI")
HEADINGS_QUALITY = (
    "Equivalent diameter",
    "Panoptic quality",
    "Recognition (F1)",
    "Segmentation (mean IoU)",
    "Split",
    "Merged",
)
QUALITY = "Panoptic quality by size"
QUALITY_TEXT = (
    "One detection to a lesion, at IoU of at least 0.1. A false positive counts at its own "
    "diameter. Split: several detections overlap the lesion. Merged: it shares a detection with "
    "another lesion."
)
HEADINGS_SUBGROUPS = (
    "By",
    "Group",
    "Scans",
    "Patients",
    "Found",
    "Sensitivity",
    "95 % CI",
    "False positives per scan",
    "Sensitivity minus that of all others",
)
HEADINGS_DIFFERENCE = ("Difference", "p", "p, corrected")
PRIMARY = "primary endpoint"
CALIBRATION_NUMBERS: Mapping[str, str] = {
    "brier": "Brier score (0: perfect)",
    "slope": "Slope (1: perfect; under 1: chances too extreme)",
    "intercept": "Intercept with the slope fixed at 1 (0: perfect; under 0: chances too high)",
    "observed_expected": "Observed over expected (1: perfect; under 1: chances too high)",
    "ece": "Expected calibration error, in ten bins",
    "ece_if_perfect": "The same by chance alone, were every stated chance true",
}
LISTED = "listed in report.html"
LONG_AXIS = "Long axis"
LONG_AXES = "Sensitivity by long axis"
WITH_INTERVALS = "With intervals"
QUANTILES = "In groups of about as many lesions each"
P_VALUE_TEXT = (
    "p: how often a difference at least as large arises when the two are swapped within whole "
    "patients, as if it did not matter which one read them. The primary endpoint stands by itself; "
    "the others are corrected for their number (Holm)."
)
NO_DIFFERENCES = (
    "No paired differences: evaluate compare=… gives them, judging both patient by patient."
)
NAMES = ("this one", "the other")
HEADINGS_ABSENT = ("What", "Why not")
NO_COMPARISON = "not performed: no second model or reader on these scans (evaluate compare=…)"
ABSENT: Mapping[str, str] = {
    "size_curve": "Probability of detection by diameter",
    "recall_by_size_and_contrast": "Sensitivity by size and contrast to noise",
    "subgroups": "Sensitivity by subgroup",
    "calibration": "Calibration",
    "comparison": "Compared with another reader or model",
    "adjudication": "False positives, judged by a person",
}
ALIKE = "over 80 % of the lesions have about the same contrast"
NOT_ADJUDICATED = (
    "no person has judged them yet (fill adjudicate.csv, then evaluate adjudication=…)"
)
OK, YES, NO, FAILED = "ok", "yes", "no", "missing"
EXTRAS: Mapping[str, str] = {
    "official": "These follow the scorer named, as far as its authority says, and differ from the "
    "figures above in their rules.",
    "comparison": "The same scans and the same reference, judged by the same rules. Pairs are "
    "compared patient by patient.",
    "adjudication": "False positives that a person has judged since. "
    "Lesions that the reference and the model both lack stay unknown, so the judged figures "
    "flatter the model.",
    "subgroups": "Small groups differ by chance alone: look at the intervals, not at the order. "
    "No significance is tested.",
    "calibration": "How often a candidate of a given score is a lesion, in these scans. Where "
    "lesions are rarer, the same score means a lower chance.",
}
# words of scores.json that its keys do not say well
EXTRA_WORDS: Mapping[str, str] = {
    "n": "number",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "by_reference": "by the reference alone",
    "adjudicated": "with the confirmed lesions",
    "n_lesion": "confirmed as lesions",
    "n_no_lesion": "confirmed as no lesions",
    "n_unsure": "unsure, or readers disagree",
    "n_open": "not judged",
    "n_stale": "verdicts on what is no longer a false positive",
    "n_both": "judged by both readers",
    "n_one": "judged by one reader alone",
    "n_agreed": "of the same verdict",
    "kappa": "Cohen's kappa",
    "reader_A": "reader A",
    "reader_B": "reader B",
    "lesion_recall": "sensitivity",
    "lesion_precision": "PPV per detection",
    "false_positives_per_case": "false positives per scan",
    "n_lesions": "lesions",
    "n_false_positive": "false positives",
}


def subgroups_sentence(by: Sequence[str], stated: str = "") -> str:
    """How many subgroups were looked at, which columns were `stated` beforehand, how to read them.

    >>> subgroups_sentence(["sex", "sex", "age"], "sex; site")[:78]
    'Looked at: 3 groups, by 2 columns. Prespecified: sex; exploratory: age. Small '
    """
    columns = list(dict.fromkeys(by))
    before = [name for name in columns if name in re.split(r"[;,]\s*", stated)]
    after = [name for name in columns if name not in before]
    kinds = (("prespecified", before), ("exploratory", after))
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)
    said = f"{said[:1].upper()}{said[1:]}."
    looked = f"Looked at: {count(len(by), 'group')}, by {count(len(columns), 'column')}."
    return f"{looked} {said} {EXTRAS['subgroups']}"


def rules_agree(rules: Iterable[str]) -> str:
    """That other rules of what found means give the same numbers."""
    return f"As many are found, with as many false positives, by other rules: {'; '.join(rules)}."


def why_missed(reason: str) -> str:
    """The reason for a miss in words; unknown reasons as they stand."""
    return WHY_MISSED.get(reason.replace(" ", "_"), reason)
