"""torchvision's RetinaNet, from scratch, on listed images for some minutes or steps.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/train_torchvision.py LIST.json JOB.json OUTPUT

Run by `vs_torchvision.py` in the peers' environment. LIST.json holds `train` and `test`: a list of
{case, image, boxes}, boxes as starts and stops in (y, x); JOB.json `minutes` or `steps`, `seed`,
`side` and `backbone` (`resnet50`: torchvision's own `retinanet_resnet50_fpn`; `resnet18`: the same
on a lighter one). Writes `<case>_candidates.json` of the test images to OUTPUT and prints one JSON
line. AdamW with a warm-up and a cosine over the training, mirrored images, batches of two: what
learnt fastest of the usual choices in so short a time. Convolutions run in bf16, as ours do.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()

from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelP6P7  # noqa: E402

BATCH, RATE = 2, 2e-4


def main() -> None:
    """Train, predict, write."""
    listed = json.loads(Path(sys.argv[1]).read_text())
    job, output = json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    torch.manual_seed(job["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(job["backbone"], job["side"]).to(device)
    for part in (network.backbone, network.head):
        part.forward = in_bf16(part.forward, device)
    steps = train(network, listed["train"], job, device)
    network.eval()
    output.mkdir(parents=True, exist_ok=True)
    for case in listed["test"]:
        write(network, case, output, device)
    print(json.dumps({"steps": steps}))


def build(backbone: str, side: int) -> torch.nn.Module:
    """A RetinaNet for one kind of lesion, without any weights from elsewhere."""
    size = {"min_size": side, "max_size": 2 * side}
    if backbone == "resnet50":
        return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, **size)
    pyramid = resnet_fpn_backbone(
        backbone_name=backbone,
        weights=None,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        norm_layer=torch.nn.BatchNorm2d,
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(pyramid, num_classes=2, **size)


def in_bf16(forward: Callable[..., Any], device: torch.device) -> Callable[..., dict[str, Tensor]]:
    """The same of half precision; what comes out, and so losses and boxes, is float32."""

    def computed(*args: Any) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            found = forward(*args)
        return {name: value.float() for name, value in found.items()}

    return computed


def train(
    network: torch.nn.Module, cases: list[Any], job: dict[str, Any], device: torch.device
) -> int:
    """So many steps, or until the minutes are over."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    draw = np.random.default_rng(job["seed"])
    network.train()
    begin, steps, most = time.monotonic(), 0, job["steps"]

    def progress() -> float:
        return steps / most if most else (time.monotonic() - begin) / (60 * job["minutes"])

    while (spent := progress()) < 1:
        warm = min(1.0, (steps + 1) / 20)
        for group in optimiser.param_groups:
            group["lr"] = RATE * warm * 0.5 * (1 + math.cos(math.pi * spent))
        chosen = draw.choice(len(cases), BATCH)
        pairs = [example(cases[i], draw, device) for i in chosen]
        losses = network([image for image, _ in pairs], [target for _, target in pairs])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        steps += 1
    return steps


def example(
    case: dict[str, Any], draw: np.random.Generator, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image `[3, H, W]` in [0, 1] and its boxes (x, y, x, y), mirrored half of the time."""
    image = read(case["image"])
    boxes = torch.tensor(case["boxes"], dtype=torch.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    if draw.random() < 0.5:
        image = image.flip(-1)
        boxes = torch.stack(
            [
                image.shape[-1] - boxes[:, 2],
                boxes[:, 1],
                image.shape[-1] - boxes[:, 0],
                boxes[:, 3],
            ],
            dim=1,
        )
    labels = torch.ones(len(boxes), dtype=torch.int64, device=device)
    return image.to(device), {"boxes": boxes.to(device), "labels": labels}


def read(path: str) -> Tensor:
    """The image's own 0.5 and 99.5 percentiles as 0 and 1, in three equal channels."""
    grey = np.asarray(Image.open(path), dtype=np.float32)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    low, high = np.percentile(grey, (0.5, 99.5))
    scaled = np.clip((grey - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return torch.from_numpy(scaled).expand(3, -1, -1).contiguous()


@torch.no_grad()
def write(
    network: torch.nn.Module, case: dict[str, Any], output: Path, device: torch.device
) -> None:
    """The boxes of one image as candidates."""
    found = network([read(case["image"]).to(device)])[0]
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True)
    candidates = [
        {"score": min(score, 1.0), "start_vox": [y0, x0], "stop_vox": [y1, x1]}
        for (x0, y0, x1, y1), score in rows
        if x1 > x0 and y1 > y0
    ]
    path = output / f"{case['case']}_candidates.json"
    path.write_text(json.dumps({"schema_version": 1, "candidates": candidates}))


if __name__ == "__main__":
    main()
