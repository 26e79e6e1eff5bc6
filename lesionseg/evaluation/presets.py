"""Presets: which candidate finds which lesion, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError

Measure = Literal["iou", "overlap", "centre"]


@dataclass(frozen=True)
class Criterion:
    """When a candidate may find a lesion of its own label.

    `iou`: IoU ≥ `threshold`, mask–mask where both have masks, else box–box. `overlap`: at least
    one voxel shared. `centre`: distance between the centres under `threshold` times the lesion's
    radius (half its equivalent diameter). `one_to_one`: one candidate finds one lesion; otherwise
    it finds all lesions it may.
    """

    name: str
    measure: Measure
    threshold: float = 0.0
    one_to_one: bool = True


@dataclass(frozen=True)
class Preset:
    """A rule set for a whole evaluation: the match criterion and the settings beside it."""

    name: str
    criterion: Criterion
    surface_tolerance_mm: float = 1.0
    size_edges_mm: tuple[float, ...] = (0.0, 3.0, 5.0, 10.0, 20.0)
    fp_per_case: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


ANY_OVERLAP = Criterion("any_overlap", "overlap", one_to_one=False)
IOU50 = Criterion("iou50", "iou", 0.5)
CENTRE_DISTANCE = Criterion("centre_distance", "centre", 1.0, one_to_one=False)

# Always printed beside the preset's own numbers, because IoU is harsh to tiny lesions.
SIDE_CRITERIA = (ANY_OVERLAP, IOU50, CENTRE_DISTANCE)

PRESETS: Mapping[str, Preset] = {
    "lesionseg": Preset("lesionseg", Criterion("iou10", "iou", 0.1)),
    "any_overlap": Preset("any_overlap", ANY_OVERLAP),
    "iou50": Preset("iou50", IOU50),
    "centre_distance": Preset("centre_distance", CENTRE_DISTANCE),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; raises `ConfigError` naming those there are."""
    if name not in PRESETS:
        raise ConfigError("There is no such preset.", seen=name, expected=", ".join(PRESETS))
    return PRESETS[name]
