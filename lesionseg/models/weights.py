"""Initial weights of a network, taken from another network or from a checkpoint.

Tensors of the backbone are copied if name and shape agree, and those of a head if its outputs also
have the same meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lesionseg.errors import count
from lesionseg.plan.channel_matching import match_channels
from lesionseg.plan.plan import Plan

Weights = Mapping[str, Tensor]
# The name of a head within a network, and the kind of its outputs.
_HEADS: Mapping[str, str] = {"heads": "voxels", "segmentation": "voxels", "head": "anchors"}
RESIDUAL_STEM = "encoder.stem.conv.weight"  # the name of a tensor that only a residual U-Net has
# The first convolution, whose input is the image.
FIRST = ("encoder.stages.0.0.conv.weight", RESIDUAL_STEM)


@dataclass(frozen=True)
class Transfer:
    """The result of copying weights from an old network to a new one.

    `copied` contains the names of the new network's tensors that were copied, and `fresh` those
    that keep their initial values. `unused` contains the names of the old network's tensors that
    were not copied. `why_fresh` is the reason for fresh heads, or empty. `adapted` describes how
    the first convolution was changed to other channels, or is empty.
    """

    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    why_fresh: str = ""
    adapted: str = ""


def is_head(name: str) -> bool:
    """Return True if the tensor belongs to a head, False if it belongs to the backbone."""
    return name.partition(".")[0] in _HEADS


def transfer_weights(
    network: nn.Module, plan: Plan, before: nn.Module, plan_before: Plan
) -> Transfer:
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
    return transfer_tensors(
        network,
        before.state_dict(),
        reasons,
        first=getattr(before, "finest", 0),
        channels=plan.channel_names,
        channels_before=plan_before.channel_names,
    )


def transfer_tensors(
    network: nn.Module,
    before: Weights,
    reasons: Mapping[str, str],
    first: int = 0,
    channels: Sequence[str] = (),
    channels_before: Sequence[str] = (),
) -> Transfer:
    """Copy tensors into `network` in place, by name, if their shapes are equal.

    A head with an entry in `reasons` keeps its random values. `adapt_channels` adapts the first
    convolution if the channels or their order differ.

    The result lists the names of the copied tensors, of those that keep their random values, and of
    the tensors of `before` without a use.

    Args:
        network: Receives the tensors.
        before: The tensors by name.
        reasons: Why a head is not copied, by the kind of head. Other heads are copied if they fit.
        first: The finest stage of the decoder in `before`.
        channels: Names of the network's channels; empty if they are not known.
        channels_before: Names of the channels of `before`.
    """
    # names in `before`, by the name that both networks share: decoders may end at different stages,
    # so their stages are counted from the finest one
    unused = {_shared_name(name, first): name for name in before}
    copied: list[str] = []
    fresh: list[str] = []
    why: set[str] = set()
    adapted = ""
    for name, tensor in network.state_dict().items():
        shared = _shared_name(name, getattr(network, "finest", 0))
        part = shared.partition(".")[0]  # of a head, this is its kind
        value = before[unused[shared]] if shared in unused else None
        words = ""
        if shared in FIRST and value is not None and value.shape[2:] == tensor.shape[2:]:
            value, words = adapt_channels(value, tensor.shape[1], channels, channels_before)
        if part in reasons:
            fresh.append(name)
            why.add(reasons[part])
        elif value is None or value.shape != tensor.shape:
            fresh.append(name)
        else:
            tensor.copy_(value)
            adapted = adapted or words
            copied.append(name)
            del unused[shared]
    return Transfer(
        copied=tuple(copied),
        fresh=tuple(fresh),
        unused=tuple(unused.values()),
        why_fresh="; ".join(sorted(why)),
        adapted=adapted,
    )


def adapt_channels(
    weight: Tensor, n_channels: int, names: Sequence[str] = (), before: Sequence[str] = ()
) -> tuple[Tensor, str]:
    """Return a first convolution `[features, c, *kernel]` for `n_channels`, and a description.

    A channel that corresponds to an old one (`match_channels`) keeps its weights. New channels get
    the mean over all old channels, times the ratio of old to new channels. Without names, channels
    are assumed to be the same if their number is the same, otherwise all of them are new. The
    description is empty if nothing changed.

    Args:
        weight: The weight of the old first convolution.
        n_channels: Number of new channels.
        names: Names of the new channels; empty if they are not known.
        before: Names of the old channels; empty if they are not known.
    """
    n_before = weight.shape[1]
    are_named = len(before) == n_before and len(names) == n_channels
    matches: tuple[int | None, ...]  # the old channel of each new one
    if are_named:
        matches = match_channels(names, before)
    elif n_before == n_channels:
        matches = tuple(range(n_channels))
    else:
        matches = (None,) * n_channels
    if matches == tuple(range(n_before)):
        return weight, ""
    mean = weight.mean(dim=1) * (n_before / n_channels)
    columns = [mean if source is None else weight[:, source] for source in matches]
    return torch.stack(columns, dim=1), _describe_channels(matches, n_before, names)


def _describe_channels(matches: Sequence[int | None], n_before: int, names: Sequence[str]) -> str:
    """Describe how the channels of the first convolution changed.

    Args:
        matches: The old channel of each new one, or None for a new channel without one.
        n_before: Number of old channels.
        names: Names of the new channels; empty if they are not known.
    """
    if set(matches) == set(range(n_before)):
        return f"the first convolution has its channels in the new order {', '.join(names)}"
    kept = [names[i] for i, source in enumerate(matches) if source is not None]
    words = f"the first convolution had {count(n_before, 'channel')} and has {len(matches)}: "
    words += f"{', '.join(kept)} kept, the rest " if kept else "all "
    words += "set to the mean of the old ones" if None in matches else "left out"
    return words


def give_all_heads(reason: str) -> dict[str, str]:
    """Return the same reason for each head, so that `transfer_tensors` copies none of them."""
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
