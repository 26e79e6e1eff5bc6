"""From a plan to its network, by a closed table: no name found in a file is imported unasked."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import torch
from torch import nn

from lesionseg.errors import BundleError, ConfigError
from lesionseg.models.foreign import TARGET, custom_network
from lesionseg.models.retinanet import retina_unet, retinanet
from lesionseg.models.unet import residual_unet, unet
from lesionseg.plan.plan import Plan

NetworkFactory = Callable[[Plan], nn.Module]

ARCHITECTURES: Mapping[str, NetworkFactory] = {
    "unet": unet,
    "residual_unet": residual_unet,
    "retinanet": retinanet,
    "retina_unet": retina_unet,
    "custom": custom_network,
}
# as `architectures`: what the plan names may be imported
TRUSTED: Mapping[str, NetworkFactory] = {
    name: ARCHITECTURES[name] for name in ("custom", "retinanet", "retina_unet")
}


def build_network(
    plan: Plan, *, architectures: Mapping[str, NetworkFactory] | None = None, seed: int = 0
) -> nn.Module:
    """The network named by `plan.architecture.name`, freshly initialised.

    `architectures` adds a user's own factories to the table (and may replace entries); with
    `TRUSTED` a class that the plan names is imported. The same plan and `seed` give the same
    weights; the global random state is left as it was. Raises `ConfigError` for a name in neither
    table, `BundleError` for a class that nobody trusts.
    """
    table = {**ARCHITECTURES, **(architectures or {})}
    name = plan.architecture.name
    if name not in table:
        near = "".join(f"; did you mean {n!r}?" for n in get_close_matches(name, table, n=1))
        raise ConfigError(
            f"plan.architecture.name: there is no network {name!r}, but {', '.join(sorted(table))}"
            f"{near or '.'} A bundle with a network of your own is read from Python, by "
            "Predictor(bundle, architectures={name: factory})."
        )
    target = plan.architecture.network.get(TARGET)
    if target is not None and name not in (architectures or {}):
        raise BundleError(
            f"The bundle's network is code from elsewhere: {target} would be imported. Add "
            "trust=true, if you trust whoever made the bundle."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return table[name](plan)


def trusting(
    trust: bool, architectures: Mapping[str, NetworkFactory] | None = None
) -> Mapping[str, NetworkFactory]:
    """The caller's own `architectures`, and what a bundle names where the user trusts it."""
    return {**(TRUSTED if trust else {}), **(architectures or {})}
