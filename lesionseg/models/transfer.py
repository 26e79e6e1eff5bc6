"""Start a network from another's weights: the backbone by place, heads where they mean the same."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lesionseg.plan.plan import Plan

# What a network's parts are called, and what they are called here: heads of voxels alike
_HEADS: Mapping[str, str] = {"heads": "voxels", "segmentation": "voxels", "head": "anchors"}


@dataclass(frozen=True)
class Transfer:
    """Names of the new network's tensors that were `taken` over, and that stayed `fresh`.

    `unused`: tensors of the old one that the new one does not have. `why_fresh`: the reason, or
    empty.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    why_fresh: str = ""


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
    if (plan.label_names, plan.regions) != (plan_before.label_names, plan_before.regions):
        were, are = ", ".join(plan_before.label_names), ", ".join(plan.label_names)
        reasons = new_heads(f"the labels were {were} and are {are}")
    elif plan.activation != plan_before.activation:
        reasons["voxels"] = f"the activation was {plan_before.activation} and is {plan.activation}"
    sizes = [p.anchors.sizes if p.anchors else None for p in (plan, plan_before)]
    if all(sizes) and sizes[0] != sizes[1]:
        reasons.setdefault("anchors", "the anchors are others")
    return take_tensors(network, before.state_dict(), reasons, first=getattr(before, "finest", 0))


def take_tensors(
    network: nn.Module, before: Mapping[str, Tensor], reasons: Mapping[str, str], first: int = 0
) -> Transfer:
    """Copy what fits of named tensors into `network`, in place, but for heads with `reasons`.

    `first`: the finest stage that their decoder has.
    """
    theirs = {place: (name, t) for place, name, t in _places(before, first)}
    taken, fresh, used = [], [], set()
    for place, name, tensor in _places(network.state_dict(), getattr(network, "finest", 0)):
        name_before, value = theirs.get(place, ("", None))
        means_the_same = place.partition(".")[0] not in reasons
        if value is not None and value.shape == tensor.shape and means_the_same:
            tensor.copy_(value)
            taken.append(name)
            used.add(name_before)
        else:
            fresh.append(name)
    unused = tuple(name for name, _ in theirs.values() if name not in used)
    parts = {_HEADS.get(name.partition(".")[0], "") for name in fresh}
    why = "; ".join(sorted({reasons[part] for part in parts if part in reasons}))
    return Transfer(tuple(taken), tuple(fresh), unused, why)


def new_heads(why: str) -> dict[str, str]:
    """The reasons by which `take_tensors` leaves all heads as they are."""
    return dict.fromkeys(_HEADS.values(), why)


def _places(tensors: Mapping[str, Tensor], first: int) -> Iterator[tuple[str, str, Tensor]]:
    """The place of every tensor, the same in all networks of a kind; its name; the tensor."""
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in _HEADS:
            yield f"{_HEADS[part]}.{rest}", name, tensor
        elif part == "decoder" and first:
            kind, number, inner = rest.split(".", 2)
            yield f"decoder.{kind}.{int(number) + first}.{inner}", name, tensor
        else:
            yield name, name, tensor
