"""What each number means, and which rows it is counted from."""

from collections.abc import Mapping

DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "lesion": (
        "Reference lesion",
        "One connected region (26 neighbours in 3-D, 8 in 2-D) of the reference mask, or one "
        "instance where the reference has instances.",
    ),
    "found": (
        "Found",
        "A detection, a candidate that counts, is matched to the lesion: intersection over union "
        "(IoU) of at least 0.1, one to one, as many pairs as possible. Other presets have other "
        "rules; the preset used is named at the end.",
    ),
    "false-positive": (
        "False positive",
        "A detection that has IoU under 0.1 with every reference lesion. Given per scan, "
        "over all scans, and over the lesion-free ones alone.",
    ),
    "scan": (
        "Scan with a detection",
        "A scan is called positive when any candidate counts, wherever it lies: also a detection "
        "beside the lesion makes a scan with a lesion positive.",
    ),
    "size-curve": (
        "Chance along the size",
        "Logistic regression of found or missed on the logarithm of the equivalent diameter. Given "
        "only between the smallest and the largest lesion; sizes beyond are said as < and >.",
    ),
    "reliability": (
        "Calibration",
        "Whether of the candidates with a stated chance of 70 % seven in ten are lesions. "
        "Brier score: mean squared distance between chance and outcome. Slope: of the outcome on "
        "the chance's logit. Intercept: the same with the slope fixed at 1.",
    ),
    "failed": (
        "Without a result",
        "A scan for which there is no prediction. Its lesions count as missed and it counts as a "
        "scan without detections; the figures with such scans left out stand beside.",
    ),
    "ignored": (
        "Second detection of a lesion",
        "A detection that overlaps a lesion (IoU at least 0.1) which another one has found: "
        "neither a true nor a false positive.",
    ),
    "operating-point": (
        "Operating point",
        "The score from which a candidate counts, chosen for a stated rate of false positives or a "
        "stated sensitivity, or given by hand. On which scans it was chosen stands at the top.",
    ),
    "size": (
        "Size",
        "Equivalent diameter: of a ball (in 2-D a disc) with the lesion's volume (area).",
    ),
    "interval": (
        "95 % interval",
        "Range that, over repeated samples of patients, holds the true value 95 times in 100. It "
        "respects that lesions of one patient are alike. Under 5 patients none is given.",
    ),
    "froc": (
        "FROC curve",
        "Sensitivity against false positives per scan as the score is lowered. CPM is its "
        "mean height at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan.",
    ),
    "dice": (
        "Dice",
        "Twice the overlap of two masks over the sum of their volumes. Surface Dice: the share of "
        "both surfaces that lie within a tolerance of each other. HD95: 95th percentile of the "
        "distances between the surfaces.",
    ),
    "precision": (
        "Precision, F1",
        "Precision: share of the detections that found a lesion. F1: harmonic mean of "
        "precision and sensitivity.",
    ),
}
DEFINITIONS_MORE = "Formula, unit, rule for empty cases and source of each number: docs/metrics.md."
# key of scores.json: words, definition, table whose rows it is counted from
MEASURES: Mapping[str, tuple[str, str, str]] = {
    "lesion_recall": ("Sensitivity, all lesions", "found", "lesion-table"),
    "lesion_recall_mean_per_group": ("Sensitivity, mean over patients", "found", "case-table"),
    "lesion_precision": ("Precision", "precision", "candidate-table"),
    "lesion_f1": ("F1", "precision", "candidate-table"),
    "false_positives_per_case": ("False positives per scan", "false-positive", "candidate-table"),
    "false_positives_per_lesion_free_case": (
        "False positives per lesion-free scan",
        "false-positive",
        "case-table",
    ),
    "case_sensitivity": ("Scans with a lesion that have any detection", "scan", "case-table"),
    "specificity": ("Lesion-free scans without any detection", "scan", "case-table"),
    "cpm": ("CPM", "froc", "lesion-table"),
    **{
        f"recall_at_{rate:g}": (
            f"Sensitivity at {rate:g} false positives per scan",
            "froc",
            "lesion-table",
        )
        for rate in (0.5, 1, 2)
    },
    "average_precision": ("Average precision", "froc", "candidate-table"),
    "case_auroc": (
        "Telling scans with a lesion from those without: AUROC",
        "froc",
        "case-table",
    ),
    "dice": ("Dice, mean over scans with a lesion", "dice", "case-table"),
    "surface_dice": ("Surface Dice, mean over scans with a lesion", "dice", "case-table"),
    "hd95_mm": ("HD95 ({unit}), mean over scans where it is defined", "dice", "case-table"),
}
TABLE_NAMES: Mapping[str, str] = {
    "case-table": "scans",
    "lesion-table": "lesions",
    "candidate-table": "candidates",
}


def measure_name(key: str) -> str:
    """What a number of scores.json is called; its key in words when it has no name."""
    return MEASURES[key][0] if key in MEASURES else key.replace("_", " ")
