"""Why a number is undefined, or what it is when there is nothing to compute it from."""

from dataclasses import dataclass

MIN_GROUPS = 5  # fewer give no interval
MIN_CASES_FOR_CPM = 8  # 1/8 false positive per case cannot be seen in fewer


@dataclass(frozen=True)
class EdgeCase:
    """The value in a situation, and why; None is written as null with `reason`."""

    reason: str
    value: float | None = None


CASE_WITHOUT_LESION = EdgeCase(
    "a lesion-free case is judged by its false positives, never by a flattering Dice of 1"
)
CASE_MISSED = EdgeCase("a missed case counts 0", 0.0)
DISTANCE_WITHOUT_PREDICTION = EdgeCase(
    "there is no surface to measure from; such cases are counted in `hd95_mm.n_undefined`"
)
CASE_WITHOUT_MASKS = EdgeCase("boxes have no voxels to compare")
NO_MASKED_CASE = EdgeCase("no case with a reference lesion has masks to compare")
NO_LESION = EdgeCase("there is no reference lesion to find")
NOTHING_ACCEPTED = EdgeCase("no accepted candidate was judged")
NOTHING_FOUND = EdgeCase("every lesion is missed", 0.0)
NO_CASE = EdgeCase("there is no case")
NO_LESION_FREE_CASE = EdgeCase("there is no lesion-free case")
NO_CASE_WITH_LESION = EdgeCase("there is no case with a lesion")
NO_VOLUME = EdgeCase("an image of two axes has no volume")
UNSCORED = EdgeCase("the candidates have no scores, and a score is never invented")
TOO_FEW_CASES_FOR_CPM = EdgeCase(
    "1/8 false positives per case cannot be seen in fewer than 8 cases"
)
ONE_KIND_OF_CASE = EdgeCase("cases with lesions and cases without are needed")
TOO_FEW_GROUPS = EdgeCase("fewer than 5 groups are too few for an interval")
UNSTABLE = EdgeCase("the number is undefined in more than 5 % of the resampled data sets")
COLLAPSED = EdgeCase("all resampled data sets give the same number, which does not make it certain")
NOTHING_MATCHED = EdgeCase("no lesion is found by a mask")
BOXES_WITHOUT_IOU = EdgeCase("boxes have no voxels to compare")
TOO_FEW_FOR_CURVE = EdgeCase("fewer than 5 of either kind are too few for a curve")
NO_IMAGE = EdgeCase("contrast needs the images")
NO_SUBGROUP = EdgeCase("no table says anything that divides the cases")
NO_OPERATING_POINT = EdgeCase("the prediction's own accepted candidates were taken")
