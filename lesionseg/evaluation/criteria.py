"""Match rules (`preset`): share of a lesion to be covered, IoU, centre distance; size classes.

`evaluation.matching` applies the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError


@dataclass(frozen=True)
class Criterion:
    """A rule that decides which candidates find which lesions of their label.

    `measure` decides whether a candidate may find a lesion:

    - `coverage`: at least the share `threshold` of the candidate is located in lesions.
    - `iou`: the IoU is at least `threshold`. It is computed from masks if both have one, otherwise
      from boxes.
    - `overlap`: they share at least one voxel, or their boxes overlap if one of them has no mask.
    - `centre`: the distance of their centres is less than `threshold` times the radius of the
      lesion, which is half its equivalent diameter.

    `assignment` decides which lesions are then found:

    - `jointly`: a lesion is found if its candidates together cover at least the share `threshold`
      of it. Scores of all labels together ignore the labels.
    - `every_threshold`: pairs are one to one, and at every threshold of the score there are as many
      as possible. If several choices have this number, the largest sum of IoU decides.
    - `largest_sum`: pairs are one to one, and only the largest sum of Dice decides, even if another
      choice has more pairs.
    - `all`: every lesion that a candidate may find is found. If several may find it, the one with
      the largest weight (`matching.find_links`) finds it. A candidate may find several lesions.

    With `jointly`, every candidate that may find a lesion is a true positive. Otherwise, a
    candidate that may find a lesion but finds none is ignored, except with `largest_sum`, where it
    is a false positive. Curves such as the FROC count this false positive at each threshold that
    accepts it, if it has no pair when all candidates are accepted.
    """

    name: str
    measure: Literal["coverage", "iou", "overlap", "centre"]
    threshold: float = 0.0
    assignment: Literal["jointly", "every_threshold", "largest_sum", "all"] = "every_threshold"

    @property
    def is_one_to_one(self) -> bool:
        """True if a candidate finds at most one lesion."""
        return self.assignment in ("every_threshold", "largest_sum")


@dataclass(frozen=True)
class Preset:
    """The match criterion of an evaluation, and the settings of its other measures.

    Attributes:
        name: The name of the match rule.
        criterion: The match criterion.
        surface_tolerance_mm: Distance up to which two surfaces agree, for surface Dice.
        size_edges_mm: Lower bounds of the size classes of lesions.
        size_edges_percent: The same in per cent of the image width, for images without a pixel
            size.
        fp_per_case: False positives per case at which the FROC states the recall.
    """

    name: str
    criterion: Criterion
    surface_tolerance_mm: float = 1.0
    size_edges_mm: tuple[float, ...] = (0.0, 3.0, 5.0, 10.0, 20.0)
    size_edges_percent: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0, 16.0)
    fp_per_case: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


COVERAGE = Criterion("coverage10", "coverage", 0.1, assignment="jointly")
INSTANCES = Criterion("iou10", "iou", 0.1)
ANY_OVERLAP = Criterion("any_overlap", "overlap", assignment="all")
IOU50 = Criterion("iou50", "iou", 0.5)
CENTRE_DISTANCE = Criterion("centre_distance", "centre", 1.0, assignment="all")
# the rule of the package BraTS-evaluation 0.0.10 for all segmentation tasks of BraTS 2026
BRATS = Criterion("brats", "overlap", assignment="largest_sum")

# always reported next to the preset's own criterion, because no criterion suits lesions of any size
SECONDARY_CRITERIA = (INSTANCES, ANY_OVERLAP, IOU50, CENTRE_DISTANCE)

_CRITERIA = {
    "lesionseg": COVERAGE,
    "instances": INSTANCES,
    "picai": INSTANCES,
    "iou50": IOU50,
    "luna16": CENTRE_DISTANCE,
    "brats": BRATS,
}
PRESETS: Mapping[str, Preset] = {name: Preset(name, rule) for name, rule in _CRITERIA.items()}


def find_preset(name: str) -> Preset:
    """Return the preset that the setting `preset=` names.

    Args:
        name: A key of `PRESETS`, or `iou:` and the minimum IoU, such as `iou:0.4`. The match rule
            of `iou:0.4` is `iou50` with the minimum IoU 0.4 instead of 0.5.

    Returns:
        The preset. The number in its name is normalised, so `iou:0.40` is called `iou:0.4`.

    Raises:
        ConfigError: If the name is unknown, or if the IoU is not above 0 and at most 1.

    >>> find_preset("iou:0.40").name, find_preset("iou:0.40").criterion.threshold
    ('iou:0.4', 0.4)
    """
    if name in PRESETS:
        return PRESETS[name]
    kind, colon, number = name.partition(":")
    if kind.strip() == "iou" and colon:
        return _preset_of_iou(name, number)
    raise ConfigError(
        f"preset={name}: this match rule is unknown. Choose one of {', '.join(PRESETS)}, or write "
        "iou:0.4 with your own IoU."
    )


def _preset_of_iou(name: str, number: str) -> Preset:
    """Return the preset whose match rule requires a minimum IoU.

    Args:
        name: The setting as the user wrote it, such as `iou:0.4`, for the error message.
        number: The text of the minimum IoU, such as `0.4`.

    Raises:
        ConfigError: If `number` is not above 0 and at most 1.
    """
    try:
        threshold = float(number)
    except ValueError:
        threshold = 0.0  # not a number: refused by the next test
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"preset={name}: the IoU must be a number above 0 and at most 1, such as iou:0.4."
        )
    title = f"iou:{threshold:.10g}"
    return Preset(title, Criterion(title, "iou", threshold))
