"""From a plan to its network, by a closed table, and the number format that suits a device.

No name found in a file is imported unasked.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import torch
from torch import nn

from lesionseg.config import TARGET
from lesionseg.errors import BundleError, ConfigError
from lesionseg.models.foreign import custom_network
from lesionseg.models.retinanet import detector
from lesionseg.models.unet import unet
from lesionseg.plan.plan import Plan

NetworkFactory = Callable[[Plan], nn.Module]

ARCHITECTURES: Mapping[str, NetworkFactory] = {
    "unet": unet,
    "residual_unet": unet,
    "retinanet": detector,
    "retina_unet": detector,
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


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it faster than fp32, else fp32.

    Processors: with AMX, or of AMD with avx512_bf16 (0.74 s a step in place of 1.33 s). On an Intel
    Xeon with avx512_bf16 whose AMX the host hides bf16 is slower: 2.6 s in place of 1.9 s.
    """
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gpu else torch.float32


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which a device convolves fastest: `fast_dtype`, or fp16 on older GPUs."""
    fast = fast_dtype(device)
    return torch.float16 if device.type == "cuda" and fast == torch.float32 else fast


def fast_memory_format(dims: int, device: torch.device) -> torch.memory_format:
    """Channels-last on CPUs, whose convolutions want it; contiguous for all else.

    A step of the 3-D U-Net (features 16 to 128, batch 2 × 64³) on a core with amx_bf16: bf16 0.91 s
    channels-last and 1.18 s contiguous, fp32 2.2 and 3.1 s.
    """
    if device.type == "cpu":
        return torch.channels_last_3d if dims == 3 else torch.channels_last
    return torch.contiguous_format


@cache
def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere fp32 is the safe answer
    return info.is_file() and bf16_is_faster(info.read_text())


def bf16_is_faster(cpu_info: str) -> bool:
    """Whether a processor that says this of itself (`/proc/cpuinfo`) gains from bf16."""
    words = set(cpu_info.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
