"""What every number is when there is nothing to compute it from: one table for code and docs."""

from dataclasses import dataclass

MIN_GROUPS = 5  # fewer give no interval

MIN_CASES_FOR_CPM = 8


@dataclass(frozen=True)
class EdgeCase:
    """The value of `numbers` in a situation; None is written as null with `reason`."""

    numbers: str
    situation: str
    value: float | None
    reason: str


CASE_WITHOUT_LESION = EdgeCase(
    "`dice`, `surface_dice`, `hd95_mm` of a case",
    "no reference lesion, with or without candidates",
    None,
    "a lesion-free case is judged by its false positives, never by a flattering Dice of 1",
)
CASE_MISSED = EdgeCase(
    "`dice`, `surface_dice` of a case",
    "lesions, but nothing accepted (or no prediction at all)",
    0.0,
    "a missed case counts 0",
)
DISTANCE_WITHOUT_PREDICTION = EdgeCase(
    "`hd95_mm` of a case",
    "lesions, but nothing accepted (or no prediction at all)",
    None,
    "there is no surface to measure from; such cases are counted in `hd95_mm.n_undefined`",
)
CASE_WITHOUT_MASKS = EdgeCase(
    "`dice`, `surface_dice`, `hd95_mm` of a case",
    "a lesion is a box without a mask, or the prediction holds no mask",
    None,
    "boxes have no voxels to compare",
)
NO_MASKED_CASE = EdgeCase(
    "`dice`, `surface_dice`, `hd95_mm`",
    "no case has a defined value",
    None,
    "no case with a reference lesion has masks to compare",
)
NO_LESION = EdgeCase(
    "`lesion_recall`, `lesion_recall_mean_per_group`, `lesion_f1`, `recall_by_size`, `froc`, "
    "`cpm`, `average_precision`",
    "no reference lesion at all (of that size)",
    None,
    "there is no reference lesion to find",
)
NOTHING_ACCEPTED = EdgeCase(
    "`lesion_precision`",
    "no accepted candidate, or all of them ignored",
    None,
    "no accepted candidate was judged",
)
NOTHING_FOUND = EdgeCase(
    "`lesion_f1`, `froc`, `average_precision`",
    "lesions, but no candidate",
    0.0,
    "every lesion is missed",
)
NO_CASE = EdgeCase("`false_positives_per_case`", "no case", None, "there is no case")
NO_LESION_FREE_CASE = EdgeCase(
    "`false_positives_per_lesion_free_case`, `false_positive_ml_per_lesion_free_case`, "
    "`specificity`, `case_specificity`",
    "every case has a lesion",
    None,
    "there is no lesion-free case",
)
NO_CASE_WITH_LESION = EdgeCase(
    "`case_sensitivity`", "no case has a lesion", None, "there is no case with a lesion"
)
NO_VOLUME = EdgeCase(
    "`volume_ml`, `reference_ml`, `predicted_ml`, `false_positive_ml_per_lesion_free_case`, "
    "`lesion_load.volume_ml`",
    "images of two axes",
    None,
    "an image of two axes has no volume",
)
UNSCORED = EdgeCase(
    "`froc`, `cpm`, `average_precision`, `case_auroc`, `detected_at`, `score`, `case_score`",
    "candidates without scores (bare masks)",
    None,
    "the candidates have no scores, and a score is never invented",
)
TOO_FEW_CASES_FOR_CPM = EdgeCase(
    "`cpm`",
    f"under {MIN_CASES_FOR_CPM} cases",
    None,
    f"1/8 false positives per case cannot be seen in fewer than {MIN_CASES_FOR_CPM} cases",
)
ONE_KIND_OF_CASE = EdgeCase(
    "`case_auroc`, `case_table.predictive_values`",
    "all cases have lesions, or none has",
    None,
    "cases with lesions and cases without are needed",
)
TOO_FEW_GROUPS = EdgeCase(
    "every `ci95`",
    f"under {MIN_GROUPS} groups with something to count",
    None,
    f"fewer than {MIN_GROUPS} groups are too few for an interval",
)
UNSTABLE = EdgeCase(
    "every `ci95`",
    "undefined in more than 5 % of the bootstrap replicates",
    None,
    "the number is undefined in more than 5 % of the resampled data sets",
)
COLLAPSED = EdgeCase(
    "every bootstrapped `ci95`",
    "the same number in all replicates, such as nothing found, or everything",
    None,
    "all resampled data sets give the same number, which does not make it certain",
)
NOT_OFFICIAL = EdgeCase(
    "`official`", "the preset is our own", None, "the preset stands for no other scorer"
)
OFFICIAL_UNDEFINED = EdgeCase(
    "a value of `official`",
    "no case, or no lesion, that defines it by the scorer's own rules",
    None,
    "the scorer leaves the number undefined on these cases",
)
NOTHING_MATCHED = EdgeCase(
    "`segmentation_quality`, `matched_lesion_dice`",
    "no lesion is found by a mask",
    None,
    "no lesion is found by a mask",
)
BOXES_WITHOUT_IOU = EdgeCase(
    "`panoptic_quality`",
    "a lesion is found by, or is, a box without a mask",
    None,
    "boxes have no voxels to compare",
)
TOO_FEW_FOR_CURVE = EdgeCase(
    "`size_curve`, `calibration`",
    "fewer than 5 found or 5 missed lesions, true or false candidates",
    None,
    "fewer than 5 of either kind are too few for a curve",
)
OUTSIDE_SIZES = EdgeCase(
    "`size_curve.d50_mm`, `size_curve.d90_mm`",
    "the diameter lies outside the observed ones, or recall does not grow with size",
    None,
    "`d50_outside`, `d90_outside` say whether it lies `above` or `below` all of them",
)
NO_IMAGE = EdgeCase(
    "`recall_by_size_and_contrast`, `contrast`",
    "no image was given, or no ring could be measured",
    None,
    "contrast needs the images",
)
NO_AGREEMENT = EdgeCase(
    "`adjudication.readers.kappa`",
    "no false positive was judged by both readers, or all got one and the same verdict",
    None,
    "where there is one verdict alone, agreement cannot be told from chance",
)
NO_SUBGROUP = EdgeCase(
    "`subgroups`",
    "no table says anything that divides the cases",
    None,
    "no table says anything that divides the cases",
)
NO_OPERATING_POINT = EdgeCase(
    "`operating_point.score`",
    "no operating point was given and the prediction files state none",
    None,
    "the prediction's own accepted candidates were taken",
)

EDGE_CASES = tuple(one for one in list(vars().values()) if isinstance(one, EdgeCase))
