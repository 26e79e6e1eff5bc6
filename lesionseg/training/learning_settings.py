"""Everything that is chosen about how a network learns, as one object from conf to use."""

from dataclasses import dataclass, field

from torch import nn

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.losses import DetectionLoss
from lesionseg.training.settings import OptimiserSettings, TrainerSettings


@dataclass(frozen=True)
class Learning:
    """What a training needs besides its network, plan and cases.

    `loss` teaches voxels (`losses.VoxelLoss`), `detection` a detector's anchors. `seed` decides the
    first weights and the tiles. `init_from`: a bundle whose weights come first. `channel_dropout`:
    see `TileDataset`.
    """

    loss: nn.Module
    trainer: TrainerSettings
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    detection: DetectionLoss = field(default_factory=DetectionLoss)
    seed: int = 0
    init_from: str | None = None
    channel_dropout: float = 0.0
