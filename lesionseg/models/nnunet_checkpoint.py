"""Checkpoints accepted by `model.init_from` (nnU-Net v2, nnssl): recognised, read, renamed.

The architecture is derived from the shapes of the weights. `training.initial_weights` copies them.
Checkpoints of nnU-Net v2 and of nnssl (its ResEnc, as of OpenMind, arXiv 2412.17041) are read
without running code. Their plain and residual encoder U-Nets are our U-Nets with `layout: nnunet`.
Only the biases of convolutions before an instance norm are left out, because the norm removes them.
All sizes are read from the shapes of the weights.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lesionseg.config import AUTO_MODEL
from lesionseg.errors import BundleError, ConfigError
from lesionseg.models.weights import FIRST, RESIDUAL_STEM, Weights
from lesionseg.plan.make import backbone_kind
from lesionseg.plan.plan import Architecture

# Prefixes that torch.compile and data-parallel wrappers add to names.
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_BLOCK = r"encoder\.stages\.(\d+)\.blocks\.(\d+)\."
# Patterns of nnU-Net's names, and our names. N is the stage of the decoder, which we count from the
# finest and nnU-Net from the coarsest.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)", r"encoder.stages.\1.\2.\3"),
    (r"encoder\.stem\.convs\.0\.(conv|norm)", r"encoder.stem.\1"),
    (_BLOCK + r"conv1\.(conv|norm)", r"encoder.stages.\1.\2.first.\3"),
    (_BLOCK + r"conv2\.conv", r"encoder.stages.\1.\2.second"),
    (_BLOCK + r"conv2\.norm", r"encoder.stages.\1.\2.norm"),
    (_BLOCK + r"skip\.(\d+)\.conv", r"encoder.stages.\1.\2.past.\3"),
    (_BLOCK + r"skip\.0\.norm", r"encoder.stages.\1.\2.past.1"),
    (_BLOCK + r"skip\.1\.norm", r"encoder.stages.\1.\2.past.2"),
    (r"decoder\.transpconvs\.(\d+)", r"decoder.ups.N"),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)", r"decoder.stages.N.\2.\3"),
    (r"decoder\.seg_layers\.(\d+)", r"heads.N.conv"),
)
# nnU-Net lists the layers of a block by name, and again by number in the order in which they run.
_TWICE = re.compile(r"\.all_modules\.(\d+)\.")
_LAYERS = {0: "conv", 1: "norm"}
_RESENC_L_STRIDE = (2, 2, 2)  # of each stage except the first
# Convolutions with a bias: no norm follows them.
_BIASED = ("decoder.ups.", "heads.")
_LAST = "heads.0.conv.weight"


@dataclass(frozen=True, eq=False)
class NnunetCheckpoint:
    """The content of a checkpoint of nnU-Net or nnssl. Values that it does not state are empty.

    Attributes:
        weights: The tensors by our names.
        unknown: Names of tensors that belong to neither of nnU-Net's two networks.
        trainer: The class of the trainer.
        configuration: The name of the configuration in the plans.
        mirror_axes: Axes along which the trainer allows mirrored views.
        channel_names: Names of the input channels in their order.
        is_resenc_l: True if nnssl states its preset ResEncL.
    """

    weights: dict[str, Tensor]
    unknown: tuple[str, ...]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    channel_names: tuple[str, ...]
    is_resenc_l: bool

    @property
    def n_inputs(self) -> int:
        """The number of input channels of the network, from the shape of its first convolution."""
        return int(next(self.weights[name] for name in FIRST if name in self.weights).shape[1])

    @property
    def n_outputs(self) -> int:
        """The number of channels of the logits; 0 if the weights contain no head."""
        return len(self.weights.get(_LAST, ()))


def is_checkpoint(name: str | None) -> bool:
    """Return True if the setting `model.init_from` names a checkpoint of torch (.pth, .pt).

    Otherwise the setting names a bundle or a run, or is None.
    """
    return name is not None and Path(name).suffix in (".pth", ".pt")


def read_nnunet_checkpoint(source: Path | BinaryIO, where: str | None = None) -> NnunetCheckpoint:
    """Read the weights and the details of training from a checkpoint of nnU-Net or nnssl.

    Args:
        source: The file.
        where: The name of the file in messages. None is `source` as text.

    Raises:
        BundleError: If the file is missing, if it contains more than tensors and numbers, if its
            network is not one of nnU-Net's two, or if the mirror axes are not a list of numbers.
    """
    where = where or str(source)
    content = load_plain(source, where)
    theirs = unwrap_weights(content)
    weights, unknown = rename_weights(theirs)
    if not any(name in weights for name in FIRST):
        names = ", ".join([*theirs][:3]) or "no tensor"
        raise BundleError(
            f"{where}: contains no U-Net of nnU-Net v2, but {names}. Give a checkpoint of "
            "nnU-Net, or one of nnssl whose network is a ResEnc (not a Primus). To score another "
            "network, predict with nnU-Net and give its probabilities to evaluate."
        )
    init_args = _dict_within(content, "init_args")
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, tuple | list) or not all(isinstance(axis, int) for axis in axes):
        raise BundleError(
            f"{where}: inference_allowed_mirroring_axes is {axes!r}, not a list of axes. Export "
            "the model from nnU-Net again."
        )
    pretraining = _dict_within(_dict_within(content, "nnssl_adaptation_plan"), "architecture_plans")
    return NnunetCheckpoint(
        weights=weights,
        unknown=tuple(unknown),
        trainer=str(content.get("trainer_name") or ""),
        configuration=str(init_args.get("configuration") or ""),
        mirror_axes=tuple(axes),
        channel_names=_find_channel_names(_dict_within(init_args, "dataset_json")),
        is_resenc_l=pretraining.get("arch_class_name") == "ResEncL",
    )


def _dict_within(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the dictionary with this key in a checkpoint.

    Return an empty dictionary if the key is missing or its value is not a dictionary.
    """
    section = content.get(key)
    return section if isinstance(section, Mapping) else {}


def _find_channel_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the input channels that the `dataset.json` in a checkpoint states.

    `dataset.json` maps the channel numbers "0", "1", … to names; old versions call the entry
    "modality". Return an empty tuple if there are no names, or if the numbers do not begin at 0 or
    are not consecutive.
    """
    entries = _dict_within(dataset, "channel_names") or _dict_within(dataset, "modality")
    name_of_number = {str(number): str(name) for number, name in entries.items()}
    numbers = [str(number) for number in range(len(name_of_number))]
    if set(numbers) != set(name_of_number):
        return ()
    return tuple(name_of_number[number] for number in numbers)


def load_plain(source: Path | BinaryIO, where: str) -> Mapping[str, Any]:
    """Read a file of `torch.save` without running code: only tensors, numbers and text are allowed.

    Args:
        source: The file.
        where: The name of the file in messages.

    Returns:
        The dictionary that was saved. It is empty if the file contains something else than a
        dictionary.

    Raises:
        BundleError: If the file is missing or damaged, or contains objects that may run code.
    """
    # Besides what torch allows, numpy's scalars and their types: nnU-Net's log contains scalars,
    # which numpy pickles as a call of this function.
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype]
    allowed += {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}
    # the name of this function in a file, before and since numpy 2
    allowed.append((scalar, "numpy.core.multiarray.scalar"))
    allowed.append((scalar, "numpy._core.multiarray.scalar"))
    try:
        with torch.serialization.safe_globals(allowed):
            saved: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))  # the class that torch refused to load
        raise BundleError(
            f"{where} was not read, because it may run code: it "
            f"{'contains' if refused else 'is damaged, or contains'} more than tensors and numbers"
            f"{f' ({refused[1]})' if refused else ''}. If you trust its author, save only its "
            "weights: torch.save({'network_weights': torch.load(FILE, "
            "weights_only=False)['network_weights']}, NEW)."
        ) from error
    except Exception as error:  # a damaged pickle may raise any type, such as KeyError
        reason = f"{type(error).__name__} {error}".rstrip(" .")
        raise BundleError(
            f"The checkpoint {where} cannot be read ({reason}). Check the path, or copy the file "
            "again."
        ) from error
    return saved if isinstance(saved, Mapping) else {}


def unwrap_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in a checkpoint by their names in nnU-Net's network.

    The weights are in the entry `network_weights` (nnU-Net) or `state_dict` (other programs), or
    the checkpoint itself is the dictionary of weights. The prefixes `module.` and `_orig_mod.`,
    which wrappers of torch add to the names, are removed. The result is empty if the checkpoint
    contains no tensors.
    """
    inner = content.get("network_weights", content.get("state_dict", content))
    inner = inner if isinstance(inner, Mapping) else {}
    return {_WRAPPED.sub("", str(k)): v for k, v in inner.items() if isinstance(v, Tensor)}


def rename_weights(theirs: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Convert nnU-Net's names of weights to the names in our U-Net.

    Two kinds of tensors are left out. nnU-Net lists each layer twice, and the encoder again within
    the decoder; such a tensor is returned once. Biases of convolutions before an instance norm have
    no effect, and our U-Net has none.

    Args:
        theirs: The tensors by nnU-Net's names (`unwrap_weights`).

    Returns:
        The tensors by our names, and the names of the tensors that our U-Net does not have.
    """
    finest_stage = _finest_decoder_stage(theirs)
    weights: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in theirs.items():
        # Numbered layers are those that run, and replace the layers listed by name before them. In
        # nnssl's SparK encoders, the latter are other layers, which were never trained.
        listed_once = re.sub(r"^decoder\.encoder\.", "encoder.", name)
        layer, _, parameter = _TWICE.sub(_layer_name, listed_once).rpartition(".")
        ours = _our_name(layer, finest_stage)
        if not ours or parameter not in ("weight", "bias"):
            unknown.append(name)
        # our convolutions before a norm have no bias, because the norm would remove it
        elif parameter == "weight" or "norm" in layer or ours.startswith(_BIASED):
            weights[f"{ours}.{parameter}"] = tensor
    return weights, unknown


def _layer_name(match: re.Match[str]) -> str:
    """Return the text that replaces a match of `_TWICE`: the name of a layer of a block.

    The first group of the match is the number of the layer: 0 gives `.conv.`, 1 gives `.norm.`, and
    any other number gives `.unknown.`.
    """
    return f".{_LAYERS.get(int(match[1]), 'unknown')}."


def _finest_decoder_stage(theirs: Weights) -> int:
    """Return nnU-Net's number of the finest stage of the decoder, to convert the stage numbers.

    nnU-Net counts the decoder's stages from the coarsest stage. Return 0 if there is no decoder.
    """
    stages = [m[1] for name in theirs if (m := re.match(r"decoder\.transpconvs\.(\d+)\.", name))]
    return max(map(int, stages), default=0)


def _our_name(layer: str, finest_stage: int) -> str:
    """Convert nnU-Net's name of a layer to our name; "" if our U-Net does not have the layer.

    Args:
        layer: nnU-Net's name of the layer, such as "decoder.stages.0.convs.0.conv".
        finest_stage: The result of `_finest_decoder_stage`.
    """
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, layer)
        if match is None:
            continue
        name = match.expand(ours)
        # N is the stage of the decoder: we count from the finest, nnU-Net from the coarsest
        if "N" in name:
            name = name.replace("N", str(finest_stage - int(match[1])))
        return name
    return ""


def architecture_of(
    weights: Weights, name: str, where: str, *, is_resenc_l: bool = False
) -> Architecture:
    """Derive the architecture (features, strides, kernels, depths) from the shapes of the weights.

    Args:
        weights: The tensors by our names.
        name: A name of `ARCHITECTURES`, or "auto" for the U-Net with the encoder of the weights.
        where: The name of the weights' file, for messages.
        is_resenc_l: True if the network is nnssl's preset ResEncL. The weights may then contain
            only its encoder, because its strides, which weights of an encoder do not show, are
            known.

    Raises:
        ConfigError: If only one of the weights and the network `name` has a residual backbone.
        BundleError: If the stages have other numbers of blocks than a U-Net that nnU-Net plans.
    """
    residual = RESIDUAL_STEM in weights
    if name == AUTO_MODEL:
        name = "residual_unet" if residual else "unet"
    _require_backbone(residual, name, where)
    conv = "first.conv.weight" if residual else "conv.weight"
    # the first convolution of each stage, and the transposed convolutions between the stages
    first = _numbered_weights(weights, f"encoder.stages.{{}}.0.{conv}")
    ups = _numbered_weights(weights, "decoder.ups.{}.weight")
    n_stages = len(first)
    encoder_depths = [
        len(_numbered_weights(weights, f"encoder.stages.{i}.{{}}.{conv}")) for i in range(n_stages)
    ]
    decoder_depths = {
        len(_numbered_weights(weights, f"decoder.stages.{i}.{{}}.conv.weight"))
        for i in range(n_stages - 1)
    }
    # the kernel of a transposed convolution is its stride
    strides = [tuple(weight.shape[2:]) for weight in ups]
    if is_resenc_l and not ups:  # contrastive pretraining has no decoder
        strides = [_RESENC_L_STRIDE] * (n_stages - 1)
        decoder_depths = {1}  # the preset has one block per stage of the decoder
    # our U-Net has the same number of blocks in all stages, except in a residual encoder
    depths = decoder_depths if residual else {*decoder_depths, *encoder_depths}
    if len(strides) != n_stages - 1 or len(depths) != 1:
        raise BundleError(
            f"{where}: our U-Net cannot have {encoder_depths} blocks in the encoder, "
            f"{sorted(decoder_depths)} in the decoder's stages, and {len(ups)} transposed "
            "convolutions. Use weights of a U-Net that nnU-Net has planned."
        )
    # a convolution's weight is [out, in, *kernel]
    dims = first[0].ndim - 2
    return Architecture(
        name=name,
        features=tuple(map(len, first)),
        strides=((1,) * dims, *strides),
        kernels=tuple(tuple(weight.shape[2:]) for weight in first),
        blocks=depths.pop(),
        n_supervised=max(n_stages - 2, 1),  # as in nnU-Net, all resolutions except the two coarsest
        encoder_blocks=tuple(encoder_depths) if residual else (),
        layout="nnunet",
    )


def _require_backbone(residual: bool, name: str, where: str) -> None:
    """Check that the network that is to be trained has the same kind of backbone as the weights.

    Args:
        residual: True if the weights belong to a residual U-Net, False for a plain one.
        name: Name of the network that is to be trained.
        where: File of the weights, for the message.

    Raises:
        ConfigError: If one backbone is residual and the other one is plain.
    """
    kind = "residual_unet" if residual else "plain"
    network_kind = backbone_kind(name)
    if kind != network_kind:
        raise ConfigError(
            f"model.init_from: {where} has a {kind} backbone, the network has a {network_kind} "
            f"one. Set model={'residual_unet' if residual else 'unet'}."
        )


def _numbered_weights(weights: Weights, pattern: str) -> list[Tensor]:
    """Return the weights of numbered layers, in the order of their numbers.

    The names are `pattern` with 0, 1, 2, … in the braces. For example, `decoder.ups.{}.weight`
    gives the weights `decoder.ups.0.weight`, `decoder.ups.1.weight` and so on, until a name does
    not exist.
    """
    numbered: list[Tensor] = []
    while (name := pattern.format(len(numbered))) in weights:
        numbered.append(weights[name])
    return numbered
