"""What candidates come from, and how a network's probabilities become them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from lesionseg.core.schema import Range

SHARE = Range(0, 1)
CandidateSource = Literal["segmentation", "detection", "both"]
ComponentScore = Literal["max", "top", "mean"]

# what candidates of our own networks may come from, the default first
SOURCES: Mapping[str, tuple[CandidateSource, ...]] = {
    "unet": ("segmentation",),
    "residual_unet": ("segmentation",),
    "retinanet": ("detection",),
    "retina_unet": ("both", "detection", "segmentation"),
}


def sources_of(architecture: str) -> tuple[CandidateSource, ...]:
    """What candidates of a network to be planned may come from; of an unknown one: its voxels."""
    return SOURCES.get(architecture, ("segmentation",))


@dataclass(frozen=True)
class CandidateRule:
    """How probabilities become candidates: local peaks, and the voxels around that are as likely.

    A voxel belongs to a candidate where p ≥ peak / `ratio`, and where p ≥ `extent`: a sure
    candidate ends where its voxels are no longer likely, a faint one keeps to its peak. Peaks under
    `floor` are dropped; so are candidates of fewer than `min_voxels`, all but the `max_candidates`
    highest, and peaks that are only the shoulder of a higher candidate: whose region touches it and
    whose peak is below `prominence` times the highest probability there. Peaks below `join` times
    the pass to a higher one are one candidate with it, if either is large: `join_mm` in equivalent
    diameter (`candidates.postprocess`; a `join` of 1 joins none).
    Candidates under `min_diameter_mm` (equivalent diameter) are dropped too: 0 unless
    cross-validation showed that they are false positives. `source`: whether candidates come from
    the voxels, from a detector's boxes or from both (`candidates.fusion`). `score`: of a candidate
    from voxels, their highest probability, the mean of their highest eight, or of all. An unknown
    one is a `ValueError`.
    """

    ratio: Annotated[float, Range(1, 1e6)] = 1.6
    extent: Annotated[float, Range(0, 1)] = 0.35
    floor: Annotated[float, SHARE] = 0.05
    min_voxels: Annotated[int, Range(0, 2**31)] = 2
    max_candidates: Annotated[int, Range(1, 2**31)] = 300
    prominence: Annotated[float, Range(0, 1e6)] = 1.5
    join: Annotated[float, Range(0, 1e9)] = 20.0
    join_mm: Annotated[float, Range(0, 1e4)] = 10.0
    min_diameter_mm: Annotated[float, Range(0, 1e4)] = 0.0
    source: CandidateSource = "segmentation"
    score: ComponentScore = "max"

    def __post_init__(self) -> None:
        if self.score not in get_args(ComponentScore):
            raise ValueError(f"no such score of a candidate: {self.score}")
