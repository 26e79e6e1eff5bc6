"""Table of architectures, network of a plan, bf16 or fp32, memory format, weights not finite.

The number format is chosen for a device.

Classes that a plan names are imported only if the caller passes `TRUSTED`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lesionseg.config import TARGET
from lesionseg.errors import BundleError, ConfigError, suggest
from lesionseg.models.custom_network import custom_network
from lesionseg.models.retinanet import detector
from lesionseg.models.unet import unet
from lesionseg.plan.plan import HEADS, Plan

NetworkFactory = Callable[[Plan], nn.Module]

ARCHITECTURES: Mapping[str, NetworkFactory] = {
    "unet": unet,
    "residual_unet": unet,
    "retinanet": detector,
    "retina_unet": detector,
    "custom": custom_network,
}
# Given as `architectures`, these factories may import the class that the plan names.
TRUSTED: Mapping[str, NetworkFactory] = {
    name: ARCHITECTURES[name] for name in ("custom", "retinanet", "retina_unet")
}
# the numbers of axes of the tensors that a memory format concerns
_AXES_OF_FORMAT: Mapping[torch.memory_format, tuple[int, ...]] = {
    torch.contiguous_format: (4, 5),
    torch.channels_last: (4,),
    torch.channels_last_3d: (5,),
}
CHANNELS_LAST = {3: torch.channels_last_3d, 2: torch.channels_last}  # by the axes of an image
WIDE = 16  # features from which 2-D weight gradients are slow channels-last (without fast bf16)


def build_network(
    plan: Plan, *, architectures: Mapping[str, NetworkFactory] | None = None, seed: int = 0
) -> nn.Module:
    """Build the network that `plan.architecture.name` names, with initial weights.

    The same plan and `seed` give the same weights. The global random state does not change.

    Args:
        plan: The architecture, channels and labels.
        architectures: Further factories by name, which may replace factories of `ARCHITECTURES`.
            With `TRUSTED`, a class that the plan names is imported.
        seed: Determines the initial weights.

    Returns:
        The network in train mode on the CPU.

    Raises:
        ConfigError: If neither `ARCHITECTURES` nor `architectures` contains the name.
        BundleError: If the plan names a class to import, and `architectures` does not allow it.
    """
    makers = {**ARCHITECTURES, **(architectures or {})}
    name = plan.architecture.name
    if name not in makers:
        raise ConfigError(
            f"plan.architecture.name: the network {name!r} is unknown. Known are "
            f"{', '.join(sorted(makers))}.{suggest(name, makers)} To read a bundle with your own "
            "network, use Predictor(bundle, architectures={name: factory}) in Python."
        )
    target = plan.architecture.network.get(TARGET)  # a class outside of lesionseg, or None
    if target is not None and name not in (architectures or {}):
        raise BundleError(
            f"The bundle's network is defined outside of lesionseg: {target} would be imported. "
            "Add trust=true if you trust the author of the bundle."
        )
    # restore the CPU's random state afterwards; no GPU draws random numbers here
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return makers[name](plan)


def require_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Check that no weight is NaN or infinite, because such a network predicts nothing useful.

    Args:
        weights: The weights by name.
        where: File of the weights, for the message.

    Raises:
        BundleError: If a weight is NaN or infinite.
    """
    not_finite = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise BundleError(
            f"{where}: some weights are not finite: {', '.join(not_finite[:5])}. Use another "
            "checkpoint."
        )


def build_with_weights(
    plan: Plan,
    weights: Mapping[str, Tensor],
    *,
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> nn.Module:
    """Build the network of a plan with given weights, in eval mode.

    For networks of lesionseg, the shapes of the weights are compared before memory is allocated,
    because a damaged plan may state a network that is too large. Other networks are not compared
    beforehand: their class may need real tensors, and a user who trusts a class trusts its size.

    Args:
        plan: The plan.
        weights: The weights by name.
        architectures: Further factories by name, which may replace those of `ARCHITECTURES`.

    Raises:
        RuntimeError: If the weights have other names or shapes than the network's weights.
        ConfigError: If the plan's architecture is unknown.
        BundleError: If the plan names a class outside of lesionseg without trust.
    """
    name = plan.architecture.name
    # the name is ours, and the caller does not replace our factory
    is_ours = name in HEADS and (architectures or {}).get(name) in (None, ARCHITECTURES[name])
    if is_ours and TARGET not in plan.architecture.network:
        with torch.device("meta"):
            without_memory = build_network(plan)
        without_memory.load_state_dict(weights, assign=True)  # compares the shapes, copies nothing
    network = build_network(plan, architectures=architectures)
    network.load_state_dict(weights)
    return network.eval()


def allowed_architectures(
    trust: bool, architectures: Mapping[str, NetworkFactory] | None = None
) -> Mapping[str, NetworkFactory]:
    """Return the factories for networks that a bundle may use, for `build_network`.

    The factories are the caller's `architectures` (None is none). If `trust` is True, the factories
    that import a class which the bundle names (`TRUSTED`) are added. If both have the same name,
    the caller's factory is used.
    """
    return {**(TRUSTED if trust else {}), **(architectures or {})}


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 if the device computes in bf16 faster than in fp32, otherwise fp32.

    On a GPU, this is the case if its hardware supports bf16. On a CPU, bf16 is faster with AMX, and
    on processors of AMD with avx512_bf16 (0.74 s instead of 1.33 s per training step of the 3-D
    U-Net). On an Intel Xeon with avx512_bf16 but without AMX, bf16 is slower (2.6 s instead of
    1.9 s).
    """
    if device.type == "cpu":
        return torch.bfloat16 if _is_bf16_faster_here() else torch.float32
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast else torch.float32


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the number type for torch's autocast in which a device computes convolutions fastest.

    The type is `fast_dtype`, but fp16 on GPUs without hardware for bf16.
    """
    fast = fast_dtype(device)
    return torch.float16 if device.type == "cuda" and fast == torch.float32 else fast


def fast_memory_format(dims: int, device: torch.device) -> torch.memory_format:
    """Return the memory format of weights in which a device computes convolutions fastest.

    The format is channels-last on a CPU, otherwise contiguous. A step of the 3-D U-Net (features 16
    to 128, batch 2 × 64³) on one core with amx_bf16 takes 0.91 s channels-last and 1.18 s
    contiguous in bf16, and 2.2 s and 3.1 s in fp32.
    """
    if device.type == "cpu":
        return CHANNELS_LAST[dims]
    return torch.contiguous_format


def training_memory_format(plan: Plan, device: torch.device) -> torch.memory_format:
    """Return the memory format in which a training step of a plan's network is fastest.

    The format is `fast_memory_format`, with one exception: on a CPU without fast bf16, a 2-D
    network whose first stage has at least `WIDE` features is faster contiguous. There, the weight
    gradients of wide convolutions need two to four times as long channels-last. One core of an AMD
    EPYC with AVX2 needs 2.5 s for a step contiguous and 3.4 s channels-last (U-Net with 16
    features, batch 4 × 320²). With 8 features, channels-last is faster by a tenth.
    """
    features = plan.architecture.features
    is_wide = bool(features) and features[0] >= WIDE  # a network of the user's may have none
    is_slow_cpu = device.type == "cpu" and fast_dtype(device) == torch.float32
    if plan.dims == 2 and is_wide and is_slow_cpu:
        return torch.contiguous_format
    return fast_memory_format(plan.dims, device)


def set_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Convert the weights and buffers of a network to a memory format, in place.

    The parameters stay the same objects, so an optimiser can keep them. A channels-last format
    exists only for tensors with a certain number of axes. Tensors with another number of axes, such
    as a scale `[C, 1, 1, 1]` next to 3-D convolutions, are not converted; torch's
    `network.to(memory_format=…)` would raise an error for them.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() in _AXES_OF_FORMAT[memory_format]:
            tensor.data = tensor.data.to(memory_format=memory_format)


@cache
def _is_bf16_faster_here() -> bool:
    """Return True if bf16 is faster than fp32 on the processor of this computer.

    Return False if the processor is unknown, as on systems other than Linux. The result is cached,
    so that `/proc/cpuinfo` is read once.
    """
    info = Path("/proc/cpuinfo")  # Linux; elsewhere fp32 is the safe answer
    return info.is_file() and is_bf16_faster(info.read_text())


def is_bf16_faster(cpu_info: str) -> bool:
    """Return True if bf16 is faster than fp32 on a processor, given the text of `/proc/cpuinfo`.

    bf16 is faster on processors with AMX, and on processors of AMD with avx512_bf16.
    """
    words = set(cpu_info.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words  # contains both
