"""What each number means, and which rows it is counted from."""

from collections.abc import Mapping

from lesionseg.report.text.catalog import entry

OF_SOME_SCANS = ("failed", "warned", "ignored", "second-reader")  # only where page 1 has them
# key of scores.json: definition, table whose rows it is counted from
MEASURES: Mapping[str, tuple[str, str]] = {
    "lesion_recall": ("found", "lesion-table"),
    "lesion_recall_mean_per_group": ("found", "case-table"),
    "lesion_precision": ("precision", "candidate-table"),
    "lesion_f1": ("precision", "candidate-table"),
    "panoptic_quality": ("panoptic", "lesion-table"),
    "false_positives_per_case": ("false-positive", "candidate-table"),
    "false_positives_per_lesion_free_case": ("false-positive", "case-table"),
    "case_sensitivity": ("scan", "case-table"),
    "specificity": ("scan", "case-table"),
    "cpm": ("froc", "lesion-table"),
    "recall_at_0.5": ("froc", "lesion-table"),
    "recall_at_1": ("froc", "lesion-table"),
    "recall_at_2": ("froc", "lesion-table"),
    "average_precision": ("areas", "candidate-table"),
    "case_auroc": ("areas", "case-table"),
    "dice": ("dice", "case-table"),
    "surface_dice": ("dice", "case-table"),
    "hd95_mm": ("dice", "case-table"),
}


def meanings(match_rule: str) -> Mapping[str, tuple[str, str]]:
    """What each number means under a match rule, by its key."""
    rules = entry("DEFINITIONS_BY_RULE")
    return {**entry("DEFINITIONS"), **rules.get(match_rule, rules["other"])}


def measure_name(key: str) -> str:
    """What a number of scores.json is called; its key in words when it has no name."""
    return str(entry("MEASURE_NAMES").get(key, key.replace("_", " ")))
