"""Focal loss, forward and backward: time and peak extra memory, compared with other libraries.

    python benchmarks/bench_focal.py [--quick] [--large] [--device cuda]

All losses get the same fp32 logits of one class, 1 % lesion voxels, α = 0.25, γ = 2, reduction
`mean`. Ours reads uint8 labels. The others read a one-hot float copy, whose creation is not
counted. All losses take turns, and the best times count. `floor` copies the minimum number of bytes
(logits and labels read twice, the gradient written once: 14 per voxel) at the speed of a large
copy. Memory is the peak of torch's allocations per voxel beyond the inputs, including the gradient.
On a CPU, the profiler's record of all allocations gives the peak.
"""

import argparse
import importlib.util
import shutil
from collections.abc import Callable

import torch
from monai.losses import FocalLoss as MonaiFocalLoss
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import table
from benchmarks.common.memory import peak_bytes
from lesionseg.losses import sigmoid_focal_loss

Loss = Callable[[Tensor], Tensor]
BYTES_NEEDED = 14


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--large", action="store_true", help="8x1x192 on a CPU too: 3 GB, minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    sizes = [(2, 96)] + [(8, 192)] * (options.large or options.device != "cpu")
    rows: list[table.Row] = []
    skipped: dict[str, str] = {}
    for batch, side in sizes:
        rows += measure(batch, side, options.device, 15 if options.quick else 100, skipped)
    table.print_report(
        "focal",
        rows,
        device=table.device_name(options.device),
        versions=table.versions("monai", "torchvision"),
        skipped=skipped,
    )


def measure(
    batch: int, side: int, device: str, rounds: int, skipped: dict[str, str]
) -> list[table.Row]:
    """Return the rows of time and memory for one shape."""
    what = f"focal_{batch}x1x{side}"
    draw = torch.Generator().manual_seed(0)
    shape = (batch, 1, side, side, side)
    logits = (3 * torch.randn(shape, generator=draw) - 4).to(device).requires_grad_()
    labels = (torch.rand(batch, side, side, side, generator=draw) < 0.01).to(torch.uint8).to(device)
    losses = {"ours": make_our_loss(labels)} | make_peer_losses(
        labels.unsqueeze(1).float(), logits, skipped
    )
    check_agreement(losses, logits)
    runs = {name: make_step(loss, logits) for name, loss in losses.items()}
    n_bytes = BYTES_NEEDED * logits.numel() // 2  # a copy reads and writes each byte
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = table.interleaved_ms(
        {**runs, "floor": lambda: target.copy_(source)}, rounds=rounds, device=device
    )
    memory = {name: peak_bytes(run, device) / logits.numel() for name, run in runs.items()}
    rows = []
    for peer, value in times.items():
        if peer != "ours":
            rows.append(table.Row(what, times["ours"], "ms", peer, value))
    for peer, value in memory.items():
        if peer != "ours":
            rows.append(table.Row(f"{what}_memory", memory["ours"], "bytes/voxel", peer, value))
    return rows


def make_our_loss(labels: Tensor) -> Loss:
    """Return lesionseg's focal loss of integer labels."""
    return lambda logits: sigmoid_focal_loss(logits, labels, reduction="mean")


def make_peer_losses(target: Tensor, logits: Tensor, skipped: dict[str, str]) -> dict[str, Loss]:
    """Return the same loss of other libraries if they are installed, and plain cross-entropy."""
    monai = MonaiFocalLoss(gamma=2.0, alpha=0.25)

    def bind(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        return lambda logits: loss(logits, target)

    losses: dict[str, Loss] = {
        "monai": bind(monai),
        "eager": bind(eager_focal_loss),
        "cross_entropy": bind(F.binary_cross_entropy_with_logits),
    }
    if importlib.util.find_spec("torchvision") is None:
        skipped["torchvision"] = "not installed"
    else:
        from torchvision.ops import sigmoid_focal_loss as theirs

        losses["torchvision"] = lambda logits: theirs(logits, target, reduction="mean")
    compiled = torch.compile(eager_focal_loss, dynamic=False)
    try:
        compiled(logits, target).backward()
        losses["torch_compile"] = bind(compiled)
    except Exception as error:  # a missing or broken compiler raises errors of many types
        reason = "no C++ compiler" if shutil.which("g++") is None else type(error).__name__
        skipped["torch_compile"] = reason
    logits.grad = None
    return losses


def eager_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the focal loss as most repositories write it."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = torch.exp(-cross_entropy)
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    return (alpha_t * (1 - p_t) ** 2 * cross_entropy).mean()


def make_step(loss: Loss, logits: Tensor) -> Callable[[], None]:
    """Return a function that runs forward and backward with a new gradient."""

    def run() -> None:
        logits.grad = None
        loss(logits).backward()

    return run


def check_agreement(losses: dict[str, Loss], logits: Tensor) -> None:
    """Check that all losses have the same value."""
    values = {name: loss(logits).item() for name, loss in losses.items()}
    for name, value in values.items():
        if name != "cross_entropy":
            assert abs(value / values["ours"] - 1) < 1e-4, values


if __name__ == "__main__":
    main()
