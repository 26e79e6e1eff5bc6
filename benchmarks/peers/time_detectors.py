"""One detector, ours or MONAI's: a training step and a volume, and the memory they took.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/time_detectors.py ours|monai SIDE ROUNDS

Run by `bench_detection.py`, one process each. Both have the backbone of our U-Net with the same
anchors per place, bf16 where the processor has it, the same tile, overlap and Gaussian weights.
Everything else is each one's own: MONAI's heads (four convolutions), ATSS and hard-negative mining
as in its LUNA16 recipe. Memory is the most that torch's allocator gave out at a time, beyond the
weights, images and the optimiser's moments (`memory.py`). Prints one JSON line.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.common.memory import peak_bytes
from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()

from lesionseg.config import TrainConfig  # noqa: E402
from lesionseg.core import Labels  # noqa: E402
from lesionseg.inference.window import SlidingWindow  # noqa: E402
from lesionseg.losses import FocalLoss  # noqa: E402
from lesionseg.models.build import (  # noqa: E402
    build_network,
    fast_dtype,
    fast_memory_format,
)
from lesionseg.plan.plan import (  # noqa: E402
    AnchorPlan,
    Architecture,
    CandidateRule,
    Normalisation,
    Plan,
)
from lesionseg.training.objective import make_objective  # noqa: E402

TILE, BATCH = 64, 2
SHAPES = ((3.0,) * 3, (4.0,) * 3, (6.0,) * 3)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = fast_dtype(DEVICE)
AMP = DTYPE is not torch.float32


def plan() -> Plan:
    """The plan of both: 16 to 128 features, three levels from a stride of 2."""
    sizes = tuple(tuple(tuple(s * 2**i for s in shape) for shape in SHAPES) for i in range(3))
    strides = ((1, 1, 1), *[(2, 2, 2)] * 3)
    return Plan(
        dims=3,
        modality="mri",
        channel_names=("a",),
        labels=Labels((1,), ("lesion",)),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(TILE,) * 3,
        batch_size=BATCH,
        architecture=Architecture("retinanet", (16, 32, 64, 128), strides, ((3, 3, 3),) * 4),
        lesion_fraction=1e-3,
        anchors=AnchorPlan(stages=(1, 2, 3), sizes=sizes),
        candidate_rule=CandidateRule(source="detection"),
    )


def ours(side: int) -> dict[str, Callable[[], object]]:
    """Our training step and volume."""
    layout = fast_memory_format(3, DEVICE)
    network = build_network(plan()).to(device=DEVICE, memory_format=layout)
    objective = make_objective(plan(), TrainConfig.of(), FocalLoss())
    optimiser = torch.optim.AdamW(network.parameters())
    batch = {name: value.to(DEVICE) for name, value in tiles().items()}

    def step() -> None:
        network.train()
        targets = objective.targets(batch)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=AMP):
            output = network(batch["image"])
        terms = objective.terms(output, targets, targets.counts())
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()

    image = torch.randn(1, side, side, side)

    def volume() -> int:
        window = SlidingWindow([network], plan(), device=DEVICE)
        return len(window(image)[1] or ())

    return {"step": step, "volume": volume}


def monai(side: int) -> dict[str, Callable[[], object]]:
    """MONAI's training step and volume."""
    from benchmarks.peers.monai_detector import build_detector

    detector = build_detector(plan(), DEVICE)
    optimiser = torch.optim.AdamW(detector.network.parameters())
    images = list(tiles()["image"].to(DEVICE))
    box = torch.tensor([[float(a) for a in LESION[:3]] + [float(b) for b in LESION[3:]]])
    targets = [
        {"box": box.to(DEVICE), "label": torch.zeros(1, dtype=torch.long, device=DEVICE)}
        for _ in images
    ]

    def amp() -> torch.autocast:
        return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=AMP)

    def step() -> None:
        detector.train()
        with amp():
            terms = detector(images, targets)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()

    image = torch.randn(1, side, side, side, device=DEVICE)

    def volume() -> int:
        detector.eval()
        with torch.no_grad(), amp():
            return len(detector([image], use_inferer=True)[0]["box"])

    return {"step": step, "volume": volume}


LESION = (20, 20, 20, 25, 25, 25)


def tiles() -> dict[str, Tensor]:
    """Two tiles of noise with one lesion each."""
    torch.manual_seed(0)
    shape = (BATCH, *(TILE,) * 3)
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[:, 20:25, 20:25, 20:25] = 1
    return {
        "image": torch.randn((BATCH, 1, *shape[1:])),
        "labels": labels,
        "instances": labels.int(),
        "valid": torch.ones(shape, dtype=torch.bool),
    }


def best_ms(run: Callable[[], object], rounds: int) -> float:
    """The best of some rounds after one to warm up."""
    marks = []
    for _ in range(rounds + 1):
        marks.append(time.perf_counter())
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    marks.append(time.perf_counter())
    return min(b - a for a, b in list(pairwise(marks))[1:]) * 1e3


def main() -> None:
    """Measure one and print."""
    warnings.filterwarnings("ignore")
    who, side, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    runs = {"ours": ours, "monai": monai}[who](side)
    found = {}
    for what, run in runs.items():
        found[what] = best_ms(run, rounds if what == "step" else 1)
        found[f"{what}_memory"] = peak_bytes(run, DEVICE.type) / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    main()
