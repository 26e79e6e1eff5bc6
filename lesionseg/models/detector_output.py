"""What a detector gives for a batch of tiles."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Scores and boxes of every anchor, in the order of `ops.anchors.grid_anchors`, in fp32.

    `class_logits` `[B, n, K]`: one independent logit a label. `box_deltas` `[B, n, 2·dims]`:
    offsets from the anchors (`ops.boxes`). `segmentation`: logits of the voxels as a U-Net
    gives them, finest first; empty for a network that only detects.
    """

    class_logits: Float[Tensor, "b n k"]
    box_deltas: Float[Tensor, "b n two_d"]
    segmentation: tuple[Tensor, ...] = ()

    def tile(self, number: int) -> "DetectorOutput":
        """The output of one tile, as a batch of one and without its voxels."""
        rows = slice(number, number + 1)
        return DetectorOutput(self.class_logits[rows], self.box_deltas[rows])
