"""Copy of weights to a new network: equal shapes, heads, other input channels, what is fresh.

They come from another network or from a checkpoint.

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
    """Return True if the tensor of this name belongs to a head, False if to the backbone.

    Used to give heads and backbone different learning rates (`backbone_lr_scale`).
    """
    return name.partition(".")[0] in _HEADS


def transfer_weights(
    network: nn.Module, plan: Plan, before: nn.Module, plan_before: Plan
) -> Transfer:
    """Copy the weights of an earlier network that fit into a new network, in place.

    - A tensor of the backbone fits if stage, name and shape agree. Stages of a decoder are counted
      from the finest stage of the encoder, because the decoder of a RetinaNet ends at a coarser
      stage than the decoder of a U-Net.
    - A segmentation head fits if labels, regions and activation agree.
    - A detection head fits if labels, regions and sizes of anchors agree.
    - Two plans with one label each have equal labels whatever their names, because both mean
      "lesion".
    - The first convolution is adapted to other input channels (`adapt_channels`).

    Args:
        network: Receives the weights.
        plan: Plan of `network`.
        before: The earlier network.
        plan_before: Plan of the earlier network.

    Returns:
        The names of the copied tensors and of the others, with reasons.
    """
    reasons: dict[str, str] = {}
    labels = plan.labels
    labels_before = plan_before.labels
    have_one_label = len(labels.names) == len(labels_before.names) == 1
    have_equal_names = have_one_label or labels.names == labels_before.names
    if not have_equal_names or labels.regions != labels_before.regions:
        were = ", ".join(labels_before.names)
        are = ", ".join(labels.names)
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
        first=getattr(before, "finest", 0),  # only detectors have `finest`
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
    """Copy tensors into a network in place, by name, if their shapes are equal.

    The first convolution is adapted before if the channels or their order differ
    (`adapt_channels`).

    Args:
        network: Receives the tensors.
        before: The tensors of the earlier network by name.
        reasons: For each kind of head ("voxels", "anchors") that must not be copied, the reason.
            Such a head keeps its initial values. Other heads are copied if their shapes are equal.
        first: The stage of the encoder at which the earlier network's decoder ends.
        channels: Names of the network's channels; empty if they are not known.
        channels_before: Names of the earlier network's channels; empty if they are not known.

    Returns:
        The names of the copied tensors, of the tensors that keep their initial values, and of the
        tensors of `before` that were not copied.
    """
    # Names in `before` that are not copied yet, by the name that both networks share. Decoders may
    # end at different stages, so their stages are counted from the encoder's finest one.
    unused = {_shared_name(name, first): name for name in before}
    copied: list[str] = []
    fresh: list[str] = []
    head_reasons: set[str] = set()
    adapted = ""
    for name, tensor in network.state_dict().items():
        shared_name = _shared_name(name, getattr(network, "finest", 0))
        module = shared_name.partition(".")[0]  # of a head, this is its kind
        value = before[unused[shared_name]] if shared_name in unused else None
        change = ""
        if shared_name in FIRST and value is not None and value.shape[2:] == tensor.shape[2:]:
            value, change = adapt_channels(value, tensor.shape[1], channels, channels_before)
        if module in reasons:
            fresh.append(name)
            head_reasons.add(reasons[module])
        elif value is None or value.shape != tensor.shape:
            fresh.append(name)
        else:
            tensor.copy_(value)  # `state_dict` shares its memory with the network
            adapted = adapted or change
            copied.append(name)
            del unused[shared_name]
    return Transfer(
        copied=tuple(copied),
        fresh=tuple(fresh),
        unused=tuple(unused.values()),
        why_fresh="; ".join(sorted(head_reasons)),
        adapted=adapted,
    )


def adapt_channels(
    weight: Tensor, n_channels: int, names: Sequence[str] = (), before: Sequence[str] = ()
) -> tuple[Tensor, str]:
    """Adapt the weight of a network's first convolution to other input channels.

    - A new channel that corresponds to an old channel (`match_channels`) gets its weights.
    - Any other new channel gets the mean over all old channels, times n_old / n_new, so that the
      output of the convolution keeps its scale.
    - If names are unknown, equal numbers of channels mean the same channels. With different
      numbers, no channels correspond.

    Args:
        weight: The weight of the old first convolution, `[features, n_old, *kernel]`.
        n_channels: Number of new channels.
        names: Names of the new channels; empty if they are not known.
        before: Names of the old channels; empty if they are not known.

    Returns:
        The weight `[features, n_channels, *kernel]`, and a description of the change for the user,
        "" if nothing changed.
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
    scaled_mean = weight.mean(dim=1) * (n_before / n_channels)
    columns = [
        scaled_mean if old_channel is None else weight[:, old_channel] for old_channel in matches
    ]
    return torch.stack(columns, dim=1), _describe_channels(matches, n_before, names)


def _describe_channels(matches: Sequence[int | None], n_before: int, names: Sequence[str]) -> str:
    """Describe to the user how the channels of the first convolution changed.

    Args:
        matches: For each new channel, the index of the old channel whose weights it gets, or None
            for the mean.
        n_before: Number of old channels.
        names: Names of the new channels; empty if they are not known.
    """
    if set(matches) == set(range(n_before)):  # the same channels, in another order
        return f"the first convolution has its channels in the new order {', '.join(names)}"
    copied_names = [names[i] for i, source in enumerate(matches) if source is not None]
    text = f"the first convolution had {count(n_before, 'channel')} and has {len(matches)}: "
    text += f"{', '.join(copied_names)} kept, the rest " if copied_names else "all "
    text += "set to the mean of the old ones" if None in matches else "left out"
    return text


def give_all_heads(reason: str) -> dict[str, str]:
    """Return `reasons` for `transfer_tensors` with which no head is copied, all with one reason."""
    return dict.fromkeys(_HEADS.values(), reason)


def _shared_name(name: str, first: int) -> str:
    """Convert the name of a tensor to a name that equivalent tensors of all our networks share.

    - A head gets the name of its kind, "voxels" or "anchors".
    - The number of a decoder's stage is counted from the encoder's finest stage.
    - Other names do not change.

    Args:
        name: Name of the tensor in its network.
        first: The stage of the encoder at which the network's decoder ends.
    """
    module, _, rest = name.partition(".")
    if module in _HEADS:
        return f"{_HEADS[module]}.{rest}"
    if module == "decoder" and first:
        kind, number, inner = rest.split(".", 2)
        return f"decoder.{kind}.{int(number) + first}.{inner}"
    return name
