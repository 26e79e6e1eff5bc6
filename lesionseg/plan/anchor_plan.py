"""The anchors of a detector, as part of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal, get_args

from lesionseg.core.schema import Range
from lesionseg.ops.anchors import AnchorLevel

Merge = Literal["wbc", "nms"]


@dataclass(frozen=True)
class AnchorPlan:
    """Which stages of the backbone look for lesions, and the boxes they start from.

    `stages`: their numbers, finest first. `sizes[level]`: side lengths in voxels of the anchors at
    each cell, the same number at every level. `width` and `depth`: channels and convolutions of the
    two heads that all levels share. `prior`: the share of anchors that are expected to be positive
    at the start. `alpha` and `gamma`: of the focal loss that taught the scores, which inference
    undoes (`losses.focal`); None where there is none to undo. `merge_iou`: boxes that overlap
    by more are taken for one lesion, and `merge` says what becomes of them: the highest alone is
    kept (`nms`, which is planned) or they are averaged (`wbc`, `ops.clustering`). `mean_iou` and
    `small_recall` say how well the sizes fit the training lesions: mean IoU with the best one, and
    the share of the smallest tenth with IoU ≥ 0.5, both sharing their centre; None without a
    lesion. An unknown `merge` is a `ValueError`.
    """

    stages: Annotated[tuple[int, ...], Range(0, 31)]
    sizes: Annotated[tuple[tuple[tuple[float, ...], ...], ...], Range(1e-3, 1e6)]
    width: Annotated[int, Range(1, 2**16)] = 32
    depth: Annotated[int, Range(0, 64)] = 1
    prior: Annotated[float, Range(0, 1)] = 0.01
    alpha: Annotated[float | tuple[float, ...] | None, Range(0, 1)] = None
    gamma: Annotated[float | None, Range(0, 100)] = None
    merge_iou: Annotated[float, Range(0, 1)] = 0.2
    mean_iou: float | None = None
    small_recall: float | None = None
    merge: Merge = "wbc"

    def __post_init__(self) -> None:
        if self.merge not in get_args(Merge):
            raise ValueError(f"no such way to merge boxes: {self.merge}")

    @property
    def n_shapes(self) -> int:
        """Anchors at each cell."""
        return len(self.sizes[0])

    def levels(
        self, strides: Sequence[tuple[int, ...]], tile_shape: Sequence[int]
    ) -> tuple[AnchorLevel, ...]:
        """The grids on a tile of this shape, for a backbone of these strides per stage."""
        totals = total_strides(strides)
        return tuple(
            AnchorLevel(
                tuple(n // s for n, s in zip(tile_shape, totals[stage], strict=True)),
                totals[stage],
                sizes,
            )
            for stage, sizes in zip(self.stages, self.sizes, strict=True)
        )


def total_strides(strides: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Stride from the input to each stage.

    >>> total_strides(((1, 1), (1, 2), (2, 2)))
    ((1, 1), (1, 2), (2, 4))
    """
    return tuple(accumulate(strides, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True))))
