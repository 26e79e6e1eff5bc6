"""Captions of the charts, and the words that stand for them."""

from collections.abc import Iterable, Sequence

from lesionseg.report.scores import FrocPoint, Scores
from lesionseg.report.tables import CaseRow
from lesionseg.report.text.amounts import count, percent, rate, size_range

SIZE_TEXT = (
    "Bars: share of the reference lesions that were found, with 95 % interval; hollow where they "
    "are too few for a percentage. Counts below the sizes. Hatched: lesions near the resolution "
    "of the scan (under 8 voxels or on one slice), where size and outline are uncertain themselves."
)
FROC_TEXT = (
    "Lowering the score from which a mark counts finds more lesions and brings more false marks. "
    "The curve shows what each choice would give; the large dot is the one used in this report. "
    "Each division to the right doubles the false marks. Dotted: no further marks to accept."
)
FROC_NONE = "No curve: the marks have no scores, or the curve is not defined."
OVERLAP_TEXT = (
    "Dice coefficient of all lesion voxels of a scan (0: no overlap, 1: identical), for scans with "
    "a reference lesion. A scan whose every lesion was missed counts as 0."
)
OVERLAP_NONE = "No figure: no scan has a Dice coefficient."
TRAINING_TEXT = "The loss during training. A lower loss is no measure of the lesions found."


def alt_sizes(scores: Scores) -> str:
    """The chart of recall by size in words."""
    groups = scores.recall_by_size
    return "Share of lesions found by size: " + "; ".join(
        f"{size_range(group, scores.size_unit)}: {group.detected} of {group.n}" for group in groups
    )


def alt_froc(points: Sequence[FrocPoint]) -> str:
    """The ends of the FROC curve in words."""
    first, last = points[0], points[-1]
    return (
        f"FROC curve from {percent(first.recall)} of lesions found at {rate(first.fp_per_case)} "
        f"false marks per scan to {percent(last.recall)} at {rate(last.fp_per_case)}."
    )


def alt_dice(cases: Iterable[CaseRow], median: float | None) -> str:
    """The chart of Dice per case in words."""
    values = [case.dice for case in cases if case.dice is not None]
    middle = "" if median is None else f", median {median:.2f}"
    ends = f"from {min(values):.2f} to {max(values):.2f}{middle}" if values else "none"
    return f"Dice of {count(len(values), 'scan')}: {ends}."


def alt_training(names: Iterable[str]) -> str:
    """The chart of the training in words."""
    return f"Course of {', '.join(names)} during training."
