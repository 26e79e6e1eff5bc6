"""Initial weights of a network, taken from another of our networks or from an nnU-Net checkpoint.

Between our own networks, tensors of the backbone are copied if name and shape agree, and those of a
head if its outputs also have the same meaning. Checkpoints of nnU-Net v2 and of nnssl (its ResEnc,
as of OpenMind, arXiv 2412.17041) are read without running code. Their plain and residual encoder
U-Nets are our U-Nets with `layout: nnunet`. Only the biases of convolutions before an instance norm
are left out, because the norm removes them. All sizes are read from the shapes of the weights.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from lesionseg.config import AUTO_MODEL
from lesionseg.errors import BundleError, ConfigError, count
from lesionseg.plan.channel_matching import channel_sources
from lesionseg.plan.make import backbone_kind
from lesionseg.plan.plan import Architecture, Plan

Weights = Mapping[str, Tensor]
# The name of a head within a network, and the kind of its outputs.
_HEADS: Mapping[str, str] = {"heads": "voxels", "segmentation": "voxels", "head": "anchors"}
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
RESIDUAL_STEM = "encoder.stem.conv.weight"  # the name of a tensor that only a residual U-Net has
# The first convolution, whose input is the image.
_FIRST = ("encoder.stages.0.0.conv.weight", RESIDUAL_STEM)
# Convolutions with a bias: no norm follows them.
_BIASED = ("decoder.ups.", "heads.")


@dataclass(frozen=True)
class Transfer:
    """The result of copying weights from an old network to a new one.

    `taken` contains the names of the new network's tensors that were copied, and `fresh` those that
    keep their initial values. `unused` contains the names of the old network's tensors that were
    not copied. `why_fresh` is the reason for fresh heads, or empty. `adapted` describes how the
    first convolution was changed to other channels, or is empty.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    why_fresh: str = ""
    adapted: str = ""


@dataclass(frozen=True, eq=False)
class CheckpointWeights:
    """The weights of a checkpoint of nnU-Net or nnssl, by our names.

    `channel_names` contains the names of the input channels in their order. It is empty if the
    checkpoint does not state them. `is_resenc_l` is True if nnssl states its preset ResEncL.
    """

    weights: dict[str, Tensor]
    channel_names: tuple[str, ...] = ()
    is_resenc_l: bool = False


def is_head(name: str) -> bool:
    """Return True if the tensor belongs to a head, False if it belongs to the backbone."""
    return name.partition(".")[0] in _HEADS


def take_weights(network: nn.Module, plan: Plan, before: nn.Module, plan_before: Plan) -> Transfer:
    """Copy the weights of `before` that fit into `network`, in place.

    A tensor of the backbone fits if stage, name and shape agree. The stages of a decoder are
    counted from the finest stage of the encoder, because the decoder of a RetinaNet ends at a
    coarser stage than that of a U-Net. The head of voxels fits if labels, regions and activation
    agree, and that of a detector if labels, regions and sizes of anchors agree. Two single labels
    agree whatever their names, because both mean "lesion". The first convolution is adapted to
    other channels (`adapt_channels`).
    """
    reasons: dict[str, str] = {}
    here = plan.labels
    there = plan_before.labels
    have_one_label = len(here.names) == len(there.names) == 1
    have_equal_names = have_one_label or here.names == there.names
    if not have_equal_names or here.regions != there.regions:
        were = ", ".join(there.names)
        are = ", ".join(here.names)
        reasons = give_all_heads(f"the labels were {were} and are {are}")
    elif plan.activation != plan_before.activation:
        reasons["voxels"] = f"the activation was {plan_before.activation} and is {plan.activation}"
    anchors = plan.anchors
    anchors_before = plan_before.anchors
    if anchors and anchors_before and anchors.sizes != anchors_before.sizes:
        reasons.setdefault("anchors", "the anchors differ")
    return take_tensors(
        network,
        before.state_dict(),
        reasons,
        first=getattr(before, "finest", 0),
        channels=plan.channel_names,
        channels_before=plan_before.channel_names,
    )


def take_tensors(
    network: nn.Module,
    before: Weights,
    reasons: Mapping[str, str],
    first: int = 0,
    channels: Sequence[str] = (),
    channels_before: Sequence[str] = (),
) -> Transfer:
    """Copy the named tensors that fit into `network`, in place, except heads with a reason.

    `adapt_channels` adapts the first convolution if the channels or their order differ.

    The result lists the names of the copied tensors, of those that keep their random values, and of
    the tensors of `before` without a use.

    Args:
        network: receives the tensors.
        before: the tensors by name.
        reasons: why a head is not copied, by the kind of head. Other heads are copied if they fit.
        first: the finest stage of the decoder in `before`.
        channels: names of the network's channels; empty if they are not known.
        channels_before: names of the channels of `before`.
    """
    # names in `before`, by the name that both networks share
    unused = {_shared_name(name, first): name for name in before}
    taken: list[str] = []
    fresh: list[str] = []
    why: set[str] = set()
    adapted = ""
    for name, tensor in network.state_dict().items():
        shared = _shared_name(name, getattr(network, "finest", 0))
        part = shared.partition(".")[0]  # of a head, this is its kind
        value = before[unused[shared]] if shared in unused else None
        words = ""
        if shared in _FIRST and value is not None and value.shape[2:] == tensor.shape[2:]:
            value, words = adapt_channels(value, tensor.shape[1], channels, channels_before)
        if part in reasons:
            fresh.append(name)
            why.add(reasons[part])
        elif value is None or value.shape != tensor.shape:
            fresh.append(name)
        else:
            tensor.copy_(value)
            adapted = adapted or words
            taken.append(name)
            del unused[shared]
    return Transfer(
        taken=tuple(taken),
        fresh=tuple(fresh),
        unused=tuple(unused.values()),
        why_fresh="; ".join(sorted(why)),
        adapted=adapted,
    )


def adapt_channels(
    weight: Tensor, n_channels: int, names: Sequence[str] = (), before: Sequence[str] = ()
) -> tuple[Tensor, str]:
    """Return a first convolution `[features, c, *kernel]` for `n_channels`, and a description.

    A channel that corresponds to an old one (`channel_sources`) keeps its weights. New channels get
    the mean over all old channels, times the ratio of old to new channels. Without names, channels
    are assumed to be the same if their number is the same, otherwise all of them are new. The
    description is empty if nothing changed.

    Args:
        weight: the weight of the old first convolution.
        n_channels: number of new channels.
        names: names of the new channels; empty if they are not known.
        before: names of the old channels; empty if they are not known.
    """
    n_before = weight.shape[1]
    are_named = len(before) == n_before and len(names) == n_channels
    sources: tuple[int | None, ...]  # the old channel of each new one
    if are_named:
        sources = channel_sources(names, before)
    elif n_before == n_channels:
        sources = tuple(range(n_channels))
    else:
        sources = (None,) * n_channels
    if sources == tuple(range(n_before)):
        return weight, ""
    mean = weight.mean(dim=1) * (n_before / n_channels)
    columns = [mean if source is None else weight[:, source] for source in sources]
    return torch.stack(columns, dim=1), _describe_channels(sources, n_before, names)


def _describe_channels(sources: Sequence[int | None], n_before: int, names: Sequence[str]) -> str:
    """Describe how the channels of the first convolution changed.

    Args:
        sources: the old channel of each new one, or None for a new channel without one.
        n_before: number of old channels.
        names: names of the new channels; empty if they are not known.
    """
    if set(sources) == set(range(n_before)):
        return f"the first convolution has its channels in the new order {', '.join(names)}"
    kept = [names[i] for i, source in enumerate(sources) if source is not None]
    words = f"the first convolution had {count(n_before, 'channel')} and has {len(sources)}: "
    words += f"{', '.join(kept)} kept, the rest " if kept else "all "
    words += "set to the mean of the old ones" if None in sources else "left out"
    return words


def give_all_heads(reason: str) -> dict[str, str]:
    """Return the same reason for each kind of head, so that `take_tensors` copies none of them."""
    return dict.fromkeys(_HEADS.values(), reason)


def _shared_name(name: str, first: int) -> str:
    """Return a name that equivalent tensors of different networks share.

    `first` is the stage of the encoder at which the decoder ends. Stages of the decoder are counted
    from the encoder's finest stage. A head has the name of its kind. Other names stay as they are.
    """
    part, _, rest = name.partition(".")
    if part in _HEADS:
        return f"{_HEADS[part]}.{rest}"
    if part == "decoder" and first:
        kind, number, inner = rest.split(".", 2)
        return f"decoder.{kind}.{int(number) + first}.{inner}"
    return name


def is_checkpoint(name: str | None) -> bool:
    """Return True if `model.init_from` names a torch file (.pth, .pt), otherwise False.

    Other values are a bundle, a run or None.
    """
    return name is not None and Path(name).suffix in (".pth", ".pt")


def read_checkpoint(path: Path) -> CheckpointWeights:
    """Read the weights of a checkpoint of nnU-Net or nnssl, and what it states about its network.

    Raises `BundleError` if the file is missing, if it contains more than tensors and numbers, or if
    its network is not one of nnU-Net's two.
    """
    content = load_plain(path, str(path))
    theirs = unwrap_weights(content)
    weights = rename_weights(theirs)
    if not any(name.startswith("encoder.stages.0.0.") for name in weights):
        seen = ", ".join([*theirs][:3]) or "no tensor"
        raise BundleError(
            f"{path}: contains no U-Net of nnU-Net v2, but {seen}. Give a checkpoint of nnU-Net, "
            "one of nnssl whose network is a ResEnc (not a Primus), or a bundle."
        )
    return CheckpointWeights(weights, _find_channel_names(content), _is_resenc_l(content))


def _is_resenc_l(content: Mapping[str, Any]) -> bool:
    """Return True if the checkpoint states that its network has the strides of nnssl's ResEncL."""
    plan = content.get("nnssl_adaptation_plan")
    stated = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    return isinstance(stated, Mapping) and stated.get("arch_class_name") == "ResEncL"


def _find_channel_names(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the channel names in an nnU-Net checkpoint in their order.

    The trainer stores the content of `dataset.json` among its arguments. Return an empty tuple if
    it does not state them, or does not number them from 0.
    """
    arguments = content.get("init_args")
    dataset = arguments.get("dataset_json") if isinstance(arguments, Mapping) else None
    if not isinstance(dataset, Mapping):
        return ()
    stated = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(stated, Mapping):
        return ()
    name_of_number = {str(number): str(name) for number, name in stated.items()}
    numbers = [str(number) for number in range(len(name_of_number))]
    if set(numbers) != set(name_of_number):
        return ()
    return tuple(name_of_number[number] for number in numbers)


def load_plain(source: Path | BinaryIO, where: str) -> Mapping[str, Any]:
    """Read a file of `torch.save` that contains only tensors and numbers. No code in it is run.

    `where` names the file in messages. The result is empty if the content is not a dictionary.
    Raises `BundleError` if the file is missing or damaged, or contains anything else.
    """
    # nnU-Net's log contains numpy scalars, which numpy pickles as a call of this function
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype]
    allowed += {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}
    # its name in a file, before and since numpy 2
    allowed.append((scalar, "numpy.core.multiarray.scalar"))
    allowed.append((scalar, "numpy._core.multiarray.scalar"))
    try:
        with torch.serialization.safe_globals(allowed):
            read: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise BundleError(
            f"{where} {'contains' if named else 'is damaged, or contains'} more than tensors and "
            f"numbers, and was not read{f': {named[1]}' if named else ''}. If you trust its "
            "author, save only its weights: torch.save({'network_weights': torch.load(FILE, "
            "weights_only=False)['network_weights']}, NEW)."
        ) from error
    except Exception as error:  # a damaged pickle may raise any type, such as KeyError
        reason = f"{type(error).__name__} {error}".rstrip(" .")
        raise BundleError(
            f"The checkpoint {where} cannot be read ({reason}). Check the path, or copy the file "
            "again."
        ) from error
    return read if isinstance(read, Mapping) else {}


def unwrap_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by nnU-Net's names, without prefixes of wrappers.

    They are in its entry `network_weights` or `state_dict`, or are the content itself. The result
    is empty if there are none.
    """
    inner = content.get("network_weights", content.get("state_dict", content))
    inner = inner if isinstance(inner, Mapping) else {}
    return {_WRAPPED.sub("", str(k)): v for k, v in inner.items() if isinstance(v, Tensor)}


def rename_weights(theirs: Weights) -> dict[str, Tensor]:
    """Return nnU-Net's tensors by our names. Tensors that our U-Net does not have are left out."""
    last = _last_stage(theirs)
    weights: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        # Numbered layers are those that run, and replace the named ones before them. In nnssl's
        # SparK encoders, the named ones are other layers, which were never trained.
        part, _, kind = _TWICE.sub(_layer_name, name).rpartition(".")
        ours = _our_name(part, last)
        # our convolutions before a norm have no bias, because the norm would remove it
        is_needed = kind == "weight" or "norm" in part or ours.startswith(_BIASED)
        if ours and is_needed:
            weights[f"{ours}.{kind}"] = tensor
    return weights


def find_unknown(theirs: Weights) -> list[str]:
    """Return the names of nnU-Net's tensors for which our U-Net has no counterpart.

    Repeated tensors are not unknown: nnU-Net lists each layer twice, and the encoder again in the
    decoder. Nor are biases before an instance norm, which have no effect.
    """
    last = _last_stage(theirs)
    unknown = []
    for name in theirs:
        once = re.sub(r"^decoder\.encoder\.", "encoder.", name)
        once = _TWICE.sub(_layer_name, once)
        part, _, kind = once.rpartition(".")
        if not _our_name(part, last) or kind not in ("weight", "bias"):
            unknown.append(name)
    return unknown


def _layer_name(match: re.Match[str]) -> str:
    """Return `.conv.` or `.norm.` for the number of a layer in its block, the match's first group.

    Any other number gives `.unknown.`.
    """
    return f".{_LAYERS.get(int(match[1]), 'unknown')}."


def _last_stage(theirs: Weights) -> int:
    """Return the number of the decoder's finest stage, as nnU-Net counts; 0 without a decoder."""
    stages = [m[1] for name in theirs if (m := re.match(r"decoder\.transpconvs\.(\d+)\.", name))]
    return max(map(int, stages), default=0)


def _our_name(part: str, last: int) -> str:
    """Return our name of one of nnU-Net's layers; "" if our U-Net does not have the layer.

    `last` is the result of `_last_stage`.
    """
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, part)
        if match is None:
            continue
        name = match.expand(ours)
        if "N" in name:
            stage_from_finest = last - int(match[1])
            name = name.replace("N", str(stage_from_finest))
        return name
    return ""


def architecture_of(
    weights: Weights, name: str, where: str, *, is_resenc_l: bool = False
) -> Architecture:
    """Return the architecture of our network `name` that fits the weights.

    Args:
        weights: the tensors by our names.
        name: a name of `ARCHITECTURES`, or "auto" for the U-Net with the encoder of the weights.
        where: the name of the weights' file, for messages.
        is_resenc_l: True if the network is nnssl's preset ResEncL. Its encoder alone is enough,
            because its strides, which the weights of an encoder do not show, are known.

    Raises:
        ConfigError: if the backbone of the weights is of another kind than that of `name`.
        BundleError: if the depths of the stages are not those of a U-Net that nnU-Net plans.
    """
    residual = RESIDUAL_STEM in weights
    if name == AUTO_MODEL:
        name = "residual_unet" if residual else "unet"
    _require_backbone(residual, name, where)
    conv = "first.conv.weight" if residual else "conv.weight"
    # the first convolution of each stage, and the transposed convolutions between the stages
    first = _numbered_weights(weights, f"encoder.stages.{{}}.0.{conv}")
    ups = _numbered_weights(weights, "decoder.ups.{}.weight")
    n = len(first)
    encoder_depths = []
    for i in range(n):
        blocks = _numbered_weights(weights, f"encoder.stages.{i}.{{}}.{conv}")
        encoder_depths.append(len(blocks))
    decoder_depths = set()
    for i in range(n - 1):
        blocks = _numbered_weights(weights, f"decoder.stages.{i}.{{}}.conv.weight")
        decoder_depths.add(len(blocks))
    # the kernel of a transposed convolution is its stride
    strides = [tuple(weight.shape[2:]) for weight in ups]
    if is_resenc_l and not ups:  # contrastive pretraining has no decoder
        strides = [_RESENC_L_STRIDE] * (n - 1)
        decoder_depths = {1}
    # our U-Net has the same number of blocks in all stages, except in a residual encoder
    depths = decoder_depths if residual else {*decoder_depths, *encoder_depths}
    if len(strides) != n - 1 or len(depths) != 1:
        raise BundleError(
            f"{where}: our U-Net cannot have {encoder_depths} blocks in the encoder, "
            f"{sorted(decoder_depths)} in the decoder's stages, and {len(ups)} transposed "
            "convolutions. Use weights of a U-Net that nnU-Net has planned."
        )
    # a convolution's weight is [out, in, *kernel]
    dims = first[0].ndim - 2
    full_resolution = (1,) * dims
    return Architecture(
        name=name,
        features=tuple(len(weight) for weight in first),
        strides=(full_resolution, *strides),
        kernels=tuple(tuple(weight.shape[2:]) for weight in first),
        blocks=depths.pop(),
        n_supervised=max(n - 2, 1),  # as in nnU-Net, all resolutions except the two coarsest
        encoder_blocks=tuple(encoder_depths) if residual else (),
        layout="nnunet",
    )


def _require_backbone(residual: bool, name: str, where: str) -> None:
    """Raise `ConfigError` if the network `name` has another kind of backbone than the weights.

    `residual` is True if the weights are those of a residual U-Net. `where` names their file.
    """
    kind = "residual_unet" if residual else "plain"
    wanted = backbone_kind(name)
    if kind != wanted:
        raise ConfigError(
            f"model.init_from: {where} has a {kind} backbone, the network has a {wanted} one. Set "
            f"model={'residual_unet' if residual else 'unet'}."
        )


def _numbered_weights(weights: Weights, pattern: str) -> list[Tensor]:
    """Return the weights whose names are `pattern` with 0, 1, … in the braces.

    For example, `decoder.ups.{}.weight` returns those of `decoder.ups.0.weight`,
    `decoder.ups.1.weight` and so on, until a name does not exist.
    """
    found: list[Tensor] = []
    while (name := pattern.format(len(found))) in weights:
        found.append(weights[name])
    return found
