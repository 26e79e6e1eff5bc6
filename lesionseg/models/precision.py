"""Which number format makes convolutions fastest on a device."""

import statistics
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it faster than fp32, else fp32.

    Processors: with AMX, or of AMD with avx512_bf16 (0.74 s a step of the network below in place of
    1.33 s, two cores). On an Intel Xeon with avx512_bf16 whose AMX the host hides it is slower than
    fp32: 2.6 s in place of 1.9 s, one core.
    """
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    return torch.bfloat16 if device.type == "cuda" and _gpu_has_bf16() else torch.float32


def fast_memory_format(dims: int, device: torch.device) -> torch.memory_format:
    """Channels-last on CPUs, whose convolutions want it; contiguous for all else (GPUs are timed).

    Forward, focal loss and backward of the 3-D U-Net (features 16 to 128, batch 2 × 64³) on a core
    with amx_bf16: bf16 0.91 s channels-last and 1.18 s contiguous, fp32 2.2 and 3.1 s; on one of
    Intel without it fp32 1.9 and 2.4 s. Forward alone, a 96³ tile on a core of AMD with
    avx512_bf16: 0.62 and 0.82 s, 1.5 and 1.9 s.
    """
    if device.type == "cpu":
        return torch.channels_last_3d if dims == 3 else torch.channels_last
    return torch.contiguous_format


def timed_memory_format(
    network: nn.Module, tiles: Tensor, dtype: torch.dtype
) -> torch.memory_format:
    """Which layout of the weights makes a forward pass of tiles `[B, C, *tile]` fastest, by trying.

    For a GPU, where it depends on the card, the network and the tile. The network keeps the layout;
    cuDNN is let measure its kernels, since all tiles have one shape. Median of 3 passes after 2.
    """
    torch.backends.cudnn.benchmark = True
    last = torch.channels_last_3d if tiles.ndim == 5 else torch.channels_last
    seconds = {
        form: _seconds(network, tiles, dtype, form) for form in (torch.contiguous_format, last)
    }
    fastest = min(seconds, key=lambda form: seconds[form])
    network.to(memory_format=fastest)  # type: ignore[call-overload]  # torch's stub lacks it
    return fastest


def _seconds(
    network: nn.Module, tiles: Tensor, dtype: torch.dtype, form: torch.memory_format
) -> float:
    network.to(memory_format=form)  # type: ignore[call-overload]
    seconds = []
    mixed = torch.autocast(tiles.device.type, dtype, enabled=dtype != torch.float32)
    with torch.inference_mode(), mixed:
        for _ in range(5):
            begin = time.perf_counter()
            network(tiles)
            if tiles.device.type == "cuda":
                torch.cuda.synchronize(tiles.device)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


@cache
def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere fp32 is the safe answer
    return info.is_file() and bf16_is_faster(info.read_text())


def bf16_is_faster(cpu_info: str) -> bool:
    """Whether a processor that says this of itself (`/proc/cpuinfo`) gains from bf16."""
    words = set(cpu_info.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words


def _gpu_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
