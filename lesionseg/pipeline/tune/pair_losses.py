"""The losses that a pair of α and γ makes: of voxels, of a detector's anchors, or of both."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

import lesionseg.losses
from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss, VoxelLoss, complete_loss
from lesionseg.plan.plan import sources_of

LossOfPair = Callable[..., nn.Module]  # a loss whose α and γ are still open
AnchorLossOfPair = Callable[..., DetectionLoss]

PAIR = {"alpha", "gamma"}


@dataclass(frozen=True, eq=False)
class PairLosses:
    """Called with a pair of α and γ, the losses of an architecture's voxels and anchors.

    Anchors have the pair where their classification has one, else what is configured; `groups`
    names the settings that take it. Raises `ConfigError` where nothing that teaches the
    architecture has an α and a γ.
    """

    architecture: str
    voxels: LossOfPair
    anchors: AnchorLossOfPair
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        pair_of(self.voxels)
        if not self._has_voxels and self.anchors().hard_negatives:
            raise ConfigError("detection.hard_negatives=true has no α and γ to tune; set it false.")

    def __call__(self, alpha: float, gamma: float) -> tuple[nn.Module, DetectionLoss]:
        """The loss of the voxels and the loss of the anchors."""
        pair = {"alpha": alpha, "gamma": gamma}
        anchors = self.anchors(**pair) if "detection" in self.groups else self.anchors()
        return complete_loss(partial(self.voxels, **pair), self.activation), anchors

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of settings whose `alpha` and `gamma` are the pair's."""
        voxels = ("loss",) if self._has_voxels else ()
        detects = "detection" in sources_of(self.architecture)
        return (*voxels, "detection") if detects and self._anchors_have_pair else voxels

    @property
    def first(self) -> tuple[float, float] | None:
        """The pair when nobody tunes; None where α is not one number."""
        if self._has_voxels:
            return pair_of(self.voxels)
        anchors = self.anchors()
        return _as_pair(anchors.alpha, anchors.gamma)

    @property
    def _has_voxels(self) -> bool:
        return "segmentation" in sources_of(self.architecture)

    @property
    def _anchors_have_pair(self) -> bool:
        return not self.anchors().hard_negatives


def pair_of(loss: LossOfPair) -> tuple[float, float] | None:
    """The α and γ that the loss has when nobody tunes; None where α is not one number.

    Raises `ConfigError` naming the losses that can be tuned when this one has no α or no γ.
    """
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError) as error:
        raise _not_tunable(loss) from error
    if not signature.parameters.keys() >= PAIR:
        raise _not_tunable(loss)
    return _as_pair(*(signature.parameters[name].default for name in ("alpha", "gamma")))


def _as_pair(alpha: object, gamma: object) -> tuple[float, float] | None:
    if isinstance(alpha, int | float) and isinstance(gamma, int | float):
        return float(alpha), float(gamma)
    return None


def _not_tunable(loss: LossOfPair) -> ConfigError:
    kind = getattr(loss, "func", loss)
    return ConfigError(
        "This loss has no α and γ to tune.",
        where="loss",
        seen=getattr(kind, "__name__", repr(kind)),
        expected=", ".join(tunable_losses()),
        remedy="take loss=lesion_wise, loss=focal or loss=dice_focal.",
    )


def tunable_losses() -> list[str]:
    """The losses that have both α and γ."""
    kinds = [getattr(lesionseg.losses, name) for name in lesionseg.losses.__all__]
    losses = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, VoxelLoss)]
    return [kind.__name__ for kind in losses if inspect.signature(kind).parameters.keys() >= PAIR]
