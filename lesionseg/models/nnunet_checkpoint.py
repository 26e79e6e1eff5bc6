"""Read a checkpoint of nnU-Net v2: its weights by our names, and facts about its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

from lesionseg.errors import BundleError
from lesionseg.models.weights import (
    find_unknown,
    load_plain,
    rename_weights,
    unwrap_weights,
)

_FIRST = ("encoder.stages.0.0.conv.weight", "encoder.stem.conv.weight")
_LAST = "heads.0.conv.weight"


@dataclass(frozen=True, eq=False)
class NnunetCheckpoint:
    """The content of an nnU-Net checkpoint.

    `unknown` contains the names of tensors that belong to neither of nnU-Net's two networks.
    `mirror_axes` are the axes along which its trainer allows mirrored views.
    """

    weights: Mapping[str, Tensor]
    unknown: tuple[str, ...]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]

    @property
    def n_inputs(self) -> int:
        """The number of channels of the input."""
        first = next(self.weights[name] for name in _FIRST if name in self.weights)
        return int(first.shape[1])

    @property
    def n_outputs(self) -> int:
        """The number of channels of the logits."""
        return len(self.weights[_LAST])


def read_nnunet_checkpoint(source: BinaryIO, where: str) -> NnunetCheckpoint:
    """Read a checkpoint of nnU-Net.

    `where` names the file in messages. Facts that the file does not state are empty. Raises
    `BundleError` if the file contains more than tensors and numbers, no U-Net, or mirror axes that
    are not a list of numbers.
    """
    content = load_plain(source, where)
    theirs = unwrap_weights(content)
    weights = rename_weights(theirs)
    if _LAST not in weights or not any(name in weights for name in _FIRST):
        seen = ", ".join([*theirs][:3]) or "no tensor"
        raise BundleError(
            f"{where}: contains no U-Net of nnU-Net v2 ({seen}). Predict with nnU-Net and give its "
            "probabilities to evaluate."
        )
    stated = content.get("init_args")
    options: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, tuple | list) or not all(isinstance(axis, int) for axis in axes):
        raise BundleError(
            f"{where}: inference_allowed_mirroring_axes is {axes!r}, not a list of axes. Export "
            "the model from nnU-Net again."
        )
    return NnunetCheckpoint(
        weights=weights,
        unknown=tuple(find_unknown(theirs)),
        trainer=str(content.get("trainer_name") or ""),
        configuration=str(options.get("configuration") or ""),
        mirror_axes=tuple(axes),
    )
