"""From a plan to its network, by a closed table: no name found in a file is ever imported."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.models.residual_unet import residual_unet
from lesionseg.models.retinanet import retina_unet, retinanet
from lesionseg.models.unet import unet
from lesionseg.plan.plan import Plan

NetworkFactory = Callable[[Plan], nn.Module]

ARCHITECTURES: Mapping[str, NetworkFactory] = {
    "unet": unet,
    "residual_unet": residual_unet,
    "retinanet": retinanet,
    "retina_unet": retina_unet,
}


def build_network(
    plan: Plan, *, architectures: Mapping[str, NetworkFactory] | None = None, seed: int = 0
) -> nn.Module:
    """The network named by `plan.architecture.name`, freshly initialised.

    `architectures` adds a user's own factories to the table (and may replace entries). The same
    plan and `seed` give the same weights; the global random state is left as it was. Raises
    `ConfigError` for a name in neither table.
    """
    table = {**ARCHITECTURES, **(architectures or {})}
    name = plan.architecture.name
    if name not in table:
        raise ConfigError(
            f"There is no network named {name!r}.",
            where="plan.architecture.name",
            expected=", ".join(sorted(table)),
            remedy=_remedy(name, table),
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return table[name](plan)


def _remedy(name: str, table: Mapping[str, NetworkFactory]) -> str:
    near = get_close_matches(name, table, n=1)
    hint = f"write {near[0]!r}. " if near else ""
    return (
        hint + "A bundle that holds a network of your own is read from Python, with "
        "Predictor(bundle, architectures={name: factory}); `train` takes the networks listed here."
    )
