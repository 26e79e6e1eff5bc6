"""Loss, training step, NMS and inference on this machine's GPU, in ten minutes.

    python benchmarks/gpu.py      # or: make gpu

Peers: the same formula in plain torch and its `torch.compile` (loss), the network as it is against
compiled (step), MONAI's `non_max_suppression`, MONAI's `sliding_window_inference` with our network.
Times are the best of some rounds, all taking turns. The last line is JSON.
"""

import sys
from collections.abc import Callable

import torch
from monai.data.box_utils import non_max_suppression
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import table
from benchmarks.common.memory import peak_bytes
from lesionseg.core import Labels
from lesionseg.inference.window import SlidingWindow
from lesionseg.losses import sigmoid_focal_loss
from lesionseg.models.build import build_network
from lesionseg.ops import nms
from lesionseg.plan.plan import Architecture, Normalisation, Plan

FEATURES = (32, 64, 128, 256, 320, 320)
DEVICE = "cuda"


def main() -> None:
    """Measure and print."""
    if not torch.cuda.is_available():
        sys.exit("This machine has no GPU that torch can use; nothing was measured.")
    torch.backends.cudnn.benchmark = True
    rows = [*loss_rows(2, 96), *loss_rows(8, 192), *step_rows(), *nms_rows(), *inference_rows()]
    table.print_report(
        "gpu", rows, device=table.device_name(DEVICE), versions=table.versions("monai")
    )


def against(what: str, unit: str, ours: float, **peers: float) -> list[table.Row]:
    """A row for each peer."""
    return [table.Row(what, ours, unit, peer, value) for peer, value in peers.items()]


def times(rounds: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each run."""
    return table.interleaved_ms(runs, rounds=rounds, device=DEVICE, warm_up=3)


def eager(logits: Tensor, target: Tensor) -> Tensor:
    """The focal loss as most repositories write it."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    return (alpha_t * (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()


def loss_rows(batch: int, side: int) -> list[table.Row]:
    """Focal loss, forward and backward: milliseconds and bytes a voxel."""
    shape = (batch, 1, side, side, side)
    logits = (3 * torch.randn(shape, device=DEVICE) - 4).requires_grad_()
    labels = (torch.rand(batch, side, side, side, device=DEVICE) < 0.01).to(torch.uint8)
    target = labels[:, None].float()
    compiled = torch.compile(eager, dynamic=False)
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: sigmoid_focal_loss(logits, labels, reduction="mean"),
        "eager": lambda: eager(logits, target),
        "torch_compile": lambda: compiled(logits, target),
        "cross_entropy": lambda: F.binary_cross_entropy_with_logits(logits, target),
    }

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    runs = {name: step(loss) for name, loss in losses.items()}
    memory = {name: peak_bytes(run, DEVICE) / logits.numel() for name, run in runs.items()}
    what = f"focal_{batch}x1x{side}"
    rows = against(f"{what}_memory", "bytes/voxel", **memory)
    return [*against(what, "ms", **times(50, **runs)), *rows]


def plan() -> Plan:
    """A U-Net of nnU-Net's size on 128³ tiles."""
    n = len(FEATURES)
    strides, kernels = ((1,) * 3, *((2,) * 3,) * (n - 1)), ((3,) * 3,) * n
    network = Architecture("unet", FEATURES, strides, kernels)
    data = {"dims": 3, "modality": "mri", "channel_names": ("T1",), "lesion_fraction": 0.01}
    data |= {"labels": Labels((1,), ("lesion",)), "spacing_mm": (1.0, 1.0, 1.0)}
    data |= {"normalisation": (Normalisation("zscore"),), "batch_size": 2}
    return Plan(**data, tile_shape=(128, 128, 128), architecture=network)


def step_rows() -> list[table.Row]:
    """A training step on two 128³ tiles: plain (as `trainer.compile=false`) against compiled."""
    image = torch.randn(2, 1, 128, 128, 128, device=DEVICE)
    labels = (torch.rand(2, 128, 128, 128, device=DEVICE) < 0.01).to(torch.uint8)

    def step(network: nn.Module) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)

        def run() -> None:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = network(image)[0]
            sigmoid_focal_loss(logits, labels, reduction="mean").backward()
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimiser.step()

        return run

    compiled = build_network(plan()).to(DEVICE)
    compiled.compile()
    runs = {"eager": step(build_network(plan()).to(DEVICE)), "ours": step(compiled)}
    megabytes = {who: peak_bytes(run, DEVICE) / 2**20 for who, run in runs.items()}
    rows = against("train_step", "ms", **times(20, **runs))
    return rows + against("train_step_memory", "MB", **megabytes)


def nms_rows() -> list[table.Row]:
    """Crowds of boxes around lesions in a volume of 512³."""
    rows = []
    for thousands in (1, 10, 30):
        n = 1000 * thousands
        centres = (torch.rand(n // 20, 3, device=DEVICE) * 500).repeat_interleave(20, 0)
        start = centres + torch.randn(n, 3, device=DEVICE) * 2
        boxes = torch.cat([start, start + 3 + torch.rand(n, 3, device=DEVICE) * 12], dim=1)
        scores = torch.rand(n, device=DEVICE)
        ours = times(9, ours=lambda b=boxes, s=scores: nms(b, s, 0.3))["ours"]
        peer = times(1, monai=lambda b=boxes, s=scores: non_max_suppression(b, s, 0.3))
        rows += against(f"nms_{thousands}k", "ms", ours, **peer)
    return rows


def inference_rows() -> list[table.Row]:
    """A volume of 256³ in tiles of 128³ that overlap by half: the network and its stitching."""
    network, volume = build_network(plan()).to(DEVICE).eval(), torch.randn(1, 256, 256, 256)
    window = SlidingWindow((network,), plan(), batch_size=2, device=torch.device(DEVICE))

    def monai() -> None:
        def logits(tiles: Tensor) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return network(tiles)[0]

        with torch.inference_mode():
            image = volume[None].to(DEVICE)
            sliding_window_inference(image, (128,) * 3, 2, logits, 0.5, mode="gaussian")

    return against("inference", "ms", **times(3, ours=lambda: window(volume.numpy()), monai=monai))


if __name__ == "__main__":
    main()
