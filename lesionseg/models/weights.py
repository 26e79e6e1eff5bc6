"""Weights that a network starts from: those of another of our networks, or of nnU-Net's.

Ours move by place: the backbone's tensors by name and shape, heads where they mean the same.
Checkpoints of nnU-Net v2 and of nnssl (its ResEnc) are read without running code: their plain and
residual encoder U-Nets are ours with `layout: nnunet`, but for biases of convolutions before an
instance norm, which removes them. All sizes are read off the weights.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from lesionseg.errors import BundleError, ConfigError
from lesionseg.plan.channels import channel_sources
from lesionseg.plan.make import backbone_kind
from lesionseg.plan.plan import Architecture, Plan

Weights = Mapping[str, Tensor]
# What a network's parts are called, and what they are called here: heads of voxels alike
_HEADS: Mapping[str, str] = {"heads": "voxels", "segmentation": "voxels", "head": "anchors"}
# what torch or a compiled or shared network puts before the names
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_BLOCK = r"encoder\.stages\.(\d+)\.blocks\.(\d+)\."
# nnU-Net's names and ours; N: decoder stages count from the finest here, from the coarsest there
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
# a block's layers are listed once by name and once in the order in which they run
_TWICE = re.compile(r"\.all_modules\.(\d+)\.")
_LAYERS = {0: "conv", 1: "norm"}
_FIRST = ("encoder.stages.0.0.conv.weight", "encoder.stem.conv.weight")  # sees the image
_BIASED = ("decoder.ups.", "heads.")  # convolutions that no norm follows


@dataclass(frozen=True)
class Transfer:
    """Names of the new network's tensors that were `taken` over, and that stayed `fresh`.

    `unused`: tensors of the old one that the new one does not have. `why_fresh`: the reason, or
    empty. `adapted`: how the first convolution was changed to another number of channels, or empty.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    why_fresh: str = ""
    adapted: str = ""


def is_head(name: str) -> bool:
    """Whether a tensor of that name belongs to a head, not to the backbone."""
    return name.partition(".")[0] in _HEADS


def take_weights(network: nn.Module, plan: Plan, before: nn.Module, plan_before: Plan) -> Transfer:
    """Copy what fits of `before` into `network`, in place.

    The backbone's tensors go by place and shape: a RetinaNet's decoder, which begins at a coarser
    stage, finds its stages in that of a U-Net. A head is taken when it means the same: heads of
    voxels by the labels (and regions) and the activation, a detector's by the labels and the
    anchors.
    """
    reasons: dict[str, str] = {}
    here = plan.labels
    there = plan_before.labels
    if (here.names, here.regions) != (there.names, there.regions):
        were = ", ".join(there.names)
        are = ", ".join(here.names)
        reasons = new_heads(f"the labels were {were} and are {are}")
    elif plan.activation != plan_before.activation:
        reasons["voxels"] = f"the activation was {plan_before.activation} and is {plan.activation}"
    sizes = [p.anchors.sizes if p.anchors else None for p in (plan, plan_before)]
    if all(sizes) and sizes[0] != sizes[1]:
        reasons.setdefault("anchors", "the anchors are others")
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
    """Copy what fits of named tensors into `network`, in place, but for heads with `reasons`.

    A first convolution of another number of channels, or of the same channels in another order, is
    adapted: see `adapt_channels`.

    Args:
        network: takes the tensors.
        before: the tensors by name.
        reasons: why heads are not taken, by the kind of head.
        first: the finest stage that their decoder has.
        channels: names of the network's channels; none if they are not known.
        channels_before: names of the channels of `before`.
    """
    theirs = {_place(name, first): name for name in before}
    taken, fresh, why = [], [], set()
    adapted = ""
    for name, tensor in network.state_dict().items():
        place = _place(name, getattr(network, "finest", 0))
        head, value = place.partition(".")[0], before.get(theirs.get(place, ""))
        if place in _FIRST and value is not None and value.shape[2:] == tensor.shape[2:]:
            value, adapted = adapt_channels(value, tensor.shape[1], channels, channels_before)
        if head not in reasons and value is not None and value.shape == tensor.shape:
            tensor.copy_(value)
            taken.append(name)
            del theirs[place]
        else:
            fresh.append(name)
            why |= {reasons[head]} if head in reasons else set()
    return Transfer(
        tuple(taken), tuple(fresh), tuple(theirs.values()), "; ".join(sorted(why)), adapted
    )


def adapt_channels(
    weight: Tensor, n_channels: int, names: Sequence[str] = (), before: Sequence[str] = ()
) -> tuple[Tensor, str]:
    """Return a first convolution `[features, c, *kernel]` for `n_channels`, and a description.

    A channel that continues an old one (`channel_sources`) keeps its weights. New channels get the
    mean over all old channels, times the ratio of old to new channels. Without names, equal numbers
    of channels are taken to be the same channels. The description is empty if nothing changed.
    """
    is_named = len(before) == weight.shape[1] and len(names) == n_channels
    places: tuple[int | None, ...]
    if is_named:
        places = channel_sources(names, before)
    elif weight.shape[1] == n_channels:
        places = tuple(range(n_channels))
    else:
        places = (None,) * n_channels
    if places == tuple(range(weight.shape[1])):
        return weight, ""
    mean = weight.mean(dim=1) * (weight.shape[1] / n_channels)
    columns = [mean if place is None else weight[:, place] for place in places]
    kept = [names[i] for i, place in enumerate(places) if place is not None]
    words = f"the first convolution had {weight.shape[1]} channels and has {n_channels}: "
    words += f"{', '.join(kept)} kept, " if kept else ""
    words += "others are the mean of the old ones" if None in places else "others left out"
    return torch.stack(columns, dim=1), words


def new_heads(why: str) -> dict[str, str]:
    """The reasons by which `take_tensors` leaves all heads as they are."""
    return dict.fromkeys(_HEADS.values(), why)


def _place(name: str, first: int) -> str:
    """Where a tensor stands, the same in all networks of a kind."""
    part, _, rest = name.partition(".")
    if part in _HEADS:
        return f"{_HEADS[part]}.{rest}"
    if part == "decoder" and first:
        kind, number, inner = rest.split(".", 2)
        return f"decoder.{kind}.{int(number) + first}.{inner}"
    return name


def is_checkpoint(name: str | None) -> bool:
    """Whether `model.init_from` names a file of torch's rather than a bundle or a run."""
    return name is not None and Path(name).suffix in (".pth", ".pt")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of an nnU-Net checkpoint, by our names.

    Raises `BundleError` for a file that is missing, that contains more than tensors and numbers, or
    whose network is none of nnU-Net's two.
    """
    theirs = their_weights(load_plain(path, str(path)))
    weights = by_our_names(theirs)
    if not any(name.startswith("encoder.stages.0.0.") for name in weights):
        seen = ", ".join([*theirs][:3]) or "no tensor"
        raise BundleError(f"{path} holds no U-Net of nnU-Net v2's: {seen}.")
    return weights


def load_plain(source: Path | BinaryIO, where: str) -> Mapping[str, Any]:
    """Read a file of `torch.save` by `weights_only=True`, which makes tensors and numbers only.

    `where`: how messages call it. Raises `BundleError` for a file that is missing, damaged or
    contains anything else; nothing in it is run.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # how numpy keeps single numbers: nnU-Net's log
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    plain: list[Any] = [np.dtype, *kinds, *((scalar, name) for name in names)]
    try:
        with torch.serialization.safe_globals(plain):
            read: Any = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise BundleError(
            f"{where} holds more than tensors and numbers and was not read: "
            f"{named[1] if named else str(error).splitlines()[0]}. Where you trust whoever made "
            "it, keep its weights alone: torch.save({'network_weights': torch.load(FILE, "
            "weights_only=False)['network_weights']}, NEW)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BundleError(f"The checkpoint {where} cannot be read: {error}.") from error
    return read if isinstance(read, Mapping) else {}


def their_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by nnU-Net's names, without what wraps them."""
    inner = content.get("network_weights", content.get("state_dict", content))
    inner = inner if isinstance(inner, Mapping) else {}
    return {_WRAPPED.sub("", str(k)): v for k, v in inner.items() if isinstance(v, Tensor)}


def by_our_names(theirs: Weights) -> dict[str, Tensor]:
    """Return nnU-Net's tensors by our names; those that ours does not have are left out."""
    last = _last_stage(theirs)
    weights: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        part, _, kind = name.rpartition(".")
        ours = _our_name(part, last)
        if ours and (kind == "weight" or "norm" in part or ours.startswith(_BIASED)):
            weights[f"{ours}.{kind}"] = tensor
    return weights


def without_name(theirs: Weights) -> list[str]:
    """Return nnU-Net's tensors that neither have a name of ours nor repeat one that has.

    nnU-Net lists layers twice, and the encoder again in the decoder. Biases before an instance norm
    mean nothing.
    """
    last = _last_stage(theirs)
    unknown = []
    for name in theirs:
        once = re.sub(r"^decoder\.encoder\.", "encoder.", name)
        once = _TWICE.sub(lambda m: f".{_LAYERS.get(int(m[1]), 'unknown')}.", once)
        part, _, kind = once.rpartition(".")
        if not _our_name(part, last) or kind not in ("weight", "bias"):
            unknown.append(name)
    return unknown


def _last_stage(theirs: Weights) -> int:
    """Return the number of the decoder's finest stage, as nnU-Net counts."""
    stages = [m[1] for name in theirs if (m := re.match(r"decoder\.transpconvs\.(\d+)\.", name))]
    return max(map(int, stages), default=0)


def _our_name(part: str, last: int) -> str:
    """What a layer is called here; empty for one that is not there."""
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, part):
            name = match.expand(ours)
            return name.replace("N", str(last - int(match[1]))) if "N" in name else name
    return ""


def architecture_of(weights: Weights, name: str, where: str) -> Architecture:
    """The tables of the network that the weights are of, for our network `name`.

    Raises `ConfigError` where that is of another kind, `BundleError` where ours has no such form.
    """
    residual = "encoder.stem.conv.weight" in weights
    kind, wanted = "residual_unet" if residual else "plain", backbone_kind(name)
    if kind != wanted:
        raise ConfigError(
            f"model.init_from: {where} is of a {kind} backbone, the network of a {wanted} one. Set "
            f"model={'residual_unet' if residual else 'unet'}."
        )
    conv = "first.conv.weight" if residual else "conv.weight"
    first = list(_in_turn(weights, f"encoder.stages.{{}}.0.{conv}"))
    ups = list(_in_turn(weights, "decoder.ups.{}.weight"))
    dims, n = first[0].ndim - 2, len(first)
    depths = [len(list(_in_turn(weights, f"encoder.stages.{i}.{{}}.{conv}"))) for i in range(n)]
    joined = range(n - 1)
    decoder = {len(list(_in_turn(weights, f"decoder.stages.{i}.{{}}.conv.weight"))) for i in joined}
    alike = decoder if residual else {*decoder, *depths}
    if len(ups) != n - 1 or len(alike) != 1:
        raise BundleError(
            f"Our U-Net has no such form as {where}: {depths} blocks in the encoder, "
            f"{sorted(decoder)} in the decoder's stages, {len(ups)} transposed convolutions."
        )
    return Architecture(
        name=name,
        features=tuple(len(w) for w in first),
        strides=((1,) * dims, *(tuple(w.shape[2:]) for w in ups)),
        kernels=tuple(tuple(w.shape[2:]) for w in first),
        blocks=alike.pop(),
        n_supervised=max(n - 2, 1),
        encoder_blocks=tuple(depths) if residual else (),
        layout="nnunet",
    )


def _in_turn(weights: Weights, pattern: str) -> Iterator[Tensor]:
    """The weights that are called so with 0, 1, … in the braces."""
    i = 0
    while (name := pattern.format(i)) in weights:
        yield weights[name]
        i += 1
