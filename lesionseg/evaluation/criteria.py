"""Presets: which candidate finds which lesion, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError


@dataclass(frozen=True)
class Criterion:
    """When a candidate may find a lesion of its own label, and which one it then finds.

    `measure`: `coverage`: a share ≥ `threshold` of the candidate lies in lesions. `iou`: IoU ≥
    `threshold`, mask–mask where both have masks, else box–box. `overlap`: at least one voxel
    shared. `centre`: distance between the centres under `threshold` times the lesion's radius
    (half its equivalent diameter).

    `assignment`: `jointly`: a lesion is found when its candidates cover a share ≥ `threshold` of it
    between them; pooled scores take all labels as one. `every_threshold`: one to one, as many pairs
    as possible at every score, then the largest summed IoU. `all`: each finds all lesions it may.

    A candidate that may find a lesion and is left without is ignored.
    """

    name: str
    measure: Literal["coverage", "iou", "overlap", "centre"]
    threshold: float = 0.0
    assignment: Literal["jointly", "every_threshold", "all"] = "every_threshold"


@dataclass(frozen=True)
class Preset:
    """A rule set for a whole evaluation: the match criterion and the settings beside it."""

    name: str
    criterion: Criterion
    surface_tolerance_mm: float = 1.0
    size_edges_mm: tuple[float, ...] = (0.0, 3.0, 5.0, 10.0, 20.0)
    fp_per_case: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


COVERAGE = Criterion("coverage10", "coverage", 0.1, assignment="jointly")
INSTANCES = Criterion("iou10", "iou", 0.1)
ANY_OVERLAP = Criterion("any_overlap", "overlap", assignment="all")
IOU50 = Criterion("iou50", "iou", 0.5)
CENTRE_DISTANCE = Criterion("centre_distance", "centre", 1.0, assignment="all")

# Always printed beside the preset's own numbers: no rule suits every size of lesion.
SIDE_CRITERIA = (INSTANCES, ANY_OVERLAP, IOU50, CENTRE_DISTANCE)

PRESETS: Mapping[str, Preset] = {
    "lesionseg": Preset("lesionseg", COVERAGE),
    "instances": Preset("instances", INSTANCES),
    "picai": Preset("picai", INSTANCES),
    "iou50": Preset("iou50", IOU50),
    "luna16": Preset("luna16", CENTRE_DISTANCE),
}


def find_preset(name: str) -> Preset:
    """Return the preset called `name`. Raise `ConfigError` with the known names otherwise."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. There are {', '.join(PRESETS)}.")
    return PRESETS[name]
