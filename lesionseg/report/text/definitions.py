"""What each number means, and which rows it is counted from."""

from collections.abc import Mapping

from lesionseg.evaluation.presets import FIRST_RULE, JOINT_RULE

DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "lesion": (
        "Reference lesion",
        "One connected region (26 neighbours in 3-D, 8 in 2-D) of the reference mask, or one "
        "instance where the reference has instances.",
    ),
    "found": (
        "Found",
        "Detections (candidates that count) cover at least 10 % of the lesion between them. Only "
        "those of which at least 10 % lies in reference lesions take part. Several may find one "
        "lesion, and one may find several.",
    ),
    "false-positive": (
        "False positive",
        "A detection of which under 10 % lies in reference lesions. Given per scan, over all "
        "scans, and over the lesion-free ones alone.",
    ),
    "scan": (
        "Scan with a detection",
        "A scan is called positive when any candidate counts, wherever it lies: also a detection "
        "beside the lesion makes a scan with a lesion positive.",
    ),
    "size-curve": (
        "Probability of detection by diameter",
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
    "warned": (
        "Unlike the training scans",
        "A scan whose voxel spacing, extent, intensities, empty parts, sharpness, orientation or "
        "image features lie beyond what the training scans leave room for. It is judged as any "
        "other; the table of scans says in what it differs.",
    ),
    "ignored": (
        "Not counted",
        "A detection that lies mostly in what the reference says not to judge: neither a true "
        "nor a false positive.",
    ),
    "operating-point": (
        "Operating point",
        "The score from which a candidate counts, chosen for a stated rate of false positives or a "
        "stated sensitivity, or given by hand. On which scans it was chosen stands at the top.",
    ),
    "size": (
        "Size",
        "Equivalent diameter: of a ball (in 2-D a disc) with the lesion's volume (area). The long "
        "axis, the longest line within one slice, is mostly larger.",
    ),
    "interval": (
        "95 % CI",
        "Range that, over repeated samples of patients, holds the true value 95 times in 100. It "
        "respects that lesions of one patient are alike. Under 5 patients none is given.",
    ),
    "froc": (
        "FROC curve",
        "Sensitivity against false positives per scan as the score is lowered. CPM is its "
        "mean height at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan.",
    ),
    "areas": (
        "AUROC, average precision",
        "Scan-level AUROC: chance that a scan with lesions scores above one without, a scan's "
        "score being that of its highest candidate. Average precision: mean precision over all "
        "sensitivities, as the score is lowered.",
    ),
    "dice": (
        "Dice",
        "Twice the overlap of two masks over the sum of their volumes. Surface Dice: the share of "
        "both surfaces that lie within a tolerance of each other. HD95: 95th percentile of the "
        "distances between the surfaces.",
    ),
    "precision": (
        "Precision, F1",
        "Precision: true positives over true and false positives. F1: twice the lesions found, "
        "over lesions found, reference lesions and false positives together.",
    ),
    "second-reader": (
        "Second reader",
        "Another reader's lesions of the same scans, judged against the reference as the model's "
        "detections are, by the same rule. What both readers do alike no program can be asked to "
        "do better.",
    ),
    "panoptic": (
        "Panoptic quality",
        "Summed IoU of the pairs of a detection and a lesion, one to one at IoU of at least 0.1, "
        "over pairs and half of what is left on either side: mean IoU of the pairs "
        "(segmentation) times their F1 (recognition).",
    ),
}
OF_SOME_SCANS = ("failed", "warned", "ignored", "second-reader")  # only where page 1 has them
_PER_SCAN = "Given per scan, over all scans, and over the lesion-free ones alone."
# what the same words mean under another match rule
_BY_RULE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    FIRST_RULE: {
        "found": (
            "Found",
            "A detection, a candidate that counts, is matched to the lesion: intersection over "
            "union (IoU) of at least 0.1, one to one, as many pairs as possible.",
        ),
        "false-positive": (
            "False positive",
            f"A detection that has IoU under 0.1 with every reference lesion. {_PER_SCAN}",
        ),
        "ignored": (
            "Second detection of a lesion",
            "A detection that overlaps a lesion (IoU at least 0.1) which another one has found: "
            "neither a true nor a false positive.",
        ),
    },
    JOINT_RULE: {},
}
_OF_PRESET: Mapping[str, tuple[str, str]] = {
    "found": (
        "Found",
        "A detection, a candidate that counts, finds the lesion by the rules of the preset, "
        "which is named at the end.",
    ),
    "false-positive": (
        "False positive",
        f"A detection that may find no lesion by the rules of the preset. {_PER_SCAN}",
    ),
    "ignored": (
        "Not counted",
        "A detection that the rules of the preset set aside, such as a second one of a lesion: "
        "neither a true nor a false positive.",
    ),
}
DEFINITIONS_MORE = "Formula, unit, rule for empty cases and source of each number: docs/metrics.md."
# key of scores.json: words, definition, table whose rows it is counted from
MEASURES: Mapping[str, tuple[str, str, str]] = {
    "lesion_recall": ("Sensitivity, all lesions", "found", "lesion-table"),
    "lesion_recall_mean_per_group": ("Sensitivity, mean over patients", "found", "case-table"),
    "lesion_precision": ("PPV per detection (precision)", "precision", "candidate-table"),
    "lesion_f1": ("F1", "precision", "candidate-table"),
    "panoptic_quality": ("Panoptic quality", "panoptic", "lesion-table"),
    "false_positives_per_case": ("False positives per scan", "false-positive", "candidate-table"),
    "false_positives_per_lesion_free_case": (
        "False positives per lesion-free scan",
        "false-positive",
        "case-table",
    ),
    "case_sensitivity": ("Scan-level sensitivity (any detection)", "scan", "case-table"),
    "specificity": ("Scan-level specificity", "scan", "case-table"),
    "cpm": ("CPM", "froc", "lesion-table"),
    **{
        f"recall_at_{rate:g}": (
            f"Sensitivity at {rate:g} false positives per scan",
            "froc",
            "lesion-table",
        )
        for rate in (0.5, 1, 2)
    },
    "average_precision": ("Average precision", "areas", "candidate-table"),
    "case_auroc": ("Scan-level AUROC", "areas", "case-table"),
    "dice": ("Dice, mean over scans with a lesion", "dice", "case-table"),
    "surface_dice": ("Surface Dice, mean over scans with a lesion", "dice", "case-table"),
    "hd95_mm": ("HD95 ({unit}), mean over scans where it is defined", "dice", "case-table"),
}
TABLE_NAMES: Mapping[str, str] = {
    "case-table": "scans",
    "lesion-table": "lesions",
    "candidate-table": "candidates",
}


def meanings(match_rule: str) -> Mapping[str, tuple[str, str]]:
    """What each number means under a match rule, by its key."""
    return {**DEFINITIONS, **_BY_RULE.get(match_rule, _OF_PRESET)}


def measure_name(key: str) -> str:
    """What a number of scores.json is called; its key in words when it has no name."""
    return MEASURES[key][0] if key in MEASURES else key.replace("_", " ")
