"""Presets: which candidate finds which lesion, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError

Measure = Literal["coverage", "iou", "box_iou", "overlap", "centre"]
Assignment = Literal["jointly", "every_threshold", "once", "by_score", "by_overlap", "all"]
Unmatched = Literal["ignored", "false_positive"]
Scorer = Literal[
    "picai",
    "luna16",
    "nndetection",
    "coco",
    "panoptica",
    "brats2023",
    "brats2023_men",
    "brats2023_met",
    "isles22",
    "msseg",
    "autopet",
]

FIRST_RULE, JOINT_RULE = "lesionseg 1", "lesionseg 2"  # the versions of the default match rule


@dataclass(frozen=True)
class Criterion:
    """When a candidate may find a lesion of its own label, and which one it then finds.

    `measure`: `coverage`: a share ≥ `threshold` of the candidate lies in lesions. `iou`: IoU ≥
    `threshold`, mask–mask where both have masks, else box–box. `box_iou`: box–box always.
    `overlap`: at least one voxel shared. `centre`: distance between the centres under `threshold`
    times the lesion's radius (half its equivalent diameter).

    `assignment`: `jointly`: a lesion is found when its candidates cover a share ≥ `threshold` of it
    between them; pooled scores take all labels as one. `every_threshold`: one to one, as many pairs
    as possible at every score, then the largest summed IoU. `once`: one to one among all
    candidates, largest sum of 1 + IoU, whatever the score. `by_score`: from the highest score down
    each takes the free lesion of largest IoU, of equals the last. `by_overlap`: from the largest
    IoU down each takes its lesion if both are free. `all`: each finds all lesions it may.

    `unmatched`: what a candidate is that may find a lesion and is left without. `epsilon` is added
    above and below the fraction bar of the IoU.
    """

    name: str
    measure: Measure
    threshold: float = 0.0
    assignment: Assignment = "every_threshold"
    unmatched: Unmatched = "ignored"
    epsilon: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A rule set for a whole evaluation: the match criterion and the settings beside it.

    `official`: whose scorer's own numbers are given beside ours. `peer`: the program that they were
    held against; empty: they follow published rules alone.
    """

    name: str
    criterion: Criterion
    official: Scorer | None = None
    peer: str = ""
    surface_tolerance_mm: float = 1.0
    size_edges_mm: tuple[float, ...] = (0.0, 3.0, 5.0, 10.0, 20.0)
    contrast_edges: tuple[float, ...] = (0.0, 1.0, 3.0)
    fp_per_case: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    @property
    def authority(self) -> str:
        """What stands behind the official numbers."""
        return f"equal to {self.peer}" if self.peer else f"after the rules of {self.official}"

    @property
    def match_rule(self) -> str:
        """The match rule with its version, as scores.json names it."""
        return _RULES.get(self.criterion.name, self.name) if self.official is None else self.name


COVERAGE = Criterion("coverage10", "coverage", 0.1, assignment="jointly")
INSTANCES = Criterion("iou10", "iou", 0.1)
ANY_OVERLAP = Criterion("any_overlap", "overlap", assignment="all")
IOU50 = Criterion("iou50", "iou", 0.5)
CENTRE_DISTANCE = Criterion("centre_distance", "centre", 1.0, assignment="all")

_RULES = {COVERAGE.name: JOINT_RULE, INSTANCES.name: FIRST_RULE}

# Always printed beside the preset's own numbers: no rule suits every size of lesion.
SIDE_CRITERIA = (INSTANCES, ANY_OVERLAP, IOU50, CENTRE_DISTANCE)

_BRATS = "BraTS 2023's metrics.py (2023-10)"

PRESETS: Mapping[str, Preset] = {
    "lesionseg": Preset("lesionseg", COVERAGE),
    "instances": Preset("instances", INSTANCES),
    "any_overlap": Preset("any_overlap", ANY_OVERLAP),
    "iou50": Preset("iou50", IOU50),
    "centre_distance": Preset("centre_distance", CENTRE_DISTANCE),
    "picai": Preset(
        "picai",
        Criterion("iou10", "iou", 0.1, assignment="once", epsilon=1e-8),
        "picai",
        "picai_eval 1.4.13",
    ),
    "luna16": Preset("luna16", CENTRE_DISTANCE, "luna16", "noduleCADEvaluationLUNA16.py"),
    "nndetection": Preset(
        "nndetection",
        Criterion("box_iou10", "box_iou", 0.1, "by_score", "false_positive"),
        "nndetection",
        "nnDetection's BoxEvaluator (2025-10)",
    ),
    "coco": Preset(
        "coco",
        Criterion("box_iou50", "box_iou", 0.5, "by_score", "false_positive"),
        "coco",
        "pycocotools",
    ),
    "panoptica": Preset(
        "panoptica",
        Criterion("iou50", "iou", 0.5, "by_overlap", "false_positive"),
        "panoptica",
        "panoptica 2.1.7",
    ),
    "brats2023": Preset("brats2023", ANY_OVERLAP, "brats2023", _BRATS),
    "brats2023_men": Preset("brats2023_men", ANY_OVERLAP, "brats2023_men", _BRATS),
    "brats2023_met": Preset("brats2023_met", ANY_OVERLAP, "brats2023_met", _BRATS),
    "isles22": Preset("isles22", ANY_OVERLAP, "isles22", "ISLES'22's eval_utils.py"),
    "msseg": Preset("msseg", ANY_OVERLAP, "msseg"),
    "autopet": Preset("autopet", ANY_OVERLAP, "autopet", "autoPET's val_script.py"),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; raises `ConfigError` naming those there are."""
    if name not in PRESETS:
        raise ConfigError("There is no such preset.", seen=name, expected=", ".join(PRESETS))
    return PRESETS[name]
