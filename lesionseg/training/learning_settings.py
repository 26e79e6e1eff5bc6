"""Everything that is chosen about how a network learns, as one object from conf to use."""

from dataclasses import dataclass, field

from torch import nn

from lesionseg.data.augmentation.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss
from lesionseg.training.device.accelerator import AHEAD, loader_workers, training_device
from lesionseg.training.settings import OptimiserSettings, TrainerSettings


@dataclass(frozen=True)
class Learning:
    """What a training needs besides its network, plan and cases.

    `loss` teaches voxels (`losses.VoxelLoss`), `detection` a detector's anchors. `seed` decides the
    first weights and the tiles. `init_from`: a bundle whose weights come first. `channel_dropout`:
    see `TileDataset`. Raises `ConfigError` where hard background could not be collected.
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

    def __post_init__(self) -> None:
        if self.sampling.hard_share > 0:
            _refuse_unseen_background(self.trainer)


def _refuse_unseen_background(trainer: TrainerSettings) -> None:
    """An epoch's hard background is that of the last but one, which must be over by then."""
    if not trainer.has_one_device:
        raise ConfigError(
            "Hard background is collected on one device.",
            where="sampling.hard_share",
            seen=f"trainer.devices={trainer.devices}",
            remedy="set trainer.devices=1 or sampling.hard_share=0.",
        )
    workers = loader_workers(trainer.workers, training_device(trainer.accelerator))
    ahead = AHEAD * workers
    if ahead >= trainer.steps_per_epoch:
        raise ConfigError(
            "With so many workers tiles are read before their hard background is known.",
            where="sampling.hard_share",
            seen=f"trainer.workers={workers}, {trainer.steps_per_epoch} steps per epoch",
            expected=f"trainer.steps_per_epoch above {ahead}",
        )
