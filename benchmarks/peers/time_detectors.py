"""Time and memory of a training step and a volume, with our detector or MONAI's.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/time_detectors.py ours|monai SIDE ROUNDS

`bench_detection.py` runs this script in one process per detector. Both detectors have the backbone
of our U-Net, the same anchors per place, bf16 if the processor supports it, and the same tile,
overlap and Gaussian weights. All other parts differ: MONAI has the heads (four convolutions), ATSS
and hard-negative mining of its LUNA16 recipe. Memory is the peak of torch's allocations beyond
weights, images and the optimiser's moments (`memory.py`). The output is one line of JSON.
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

from lesionseg.config import DetectionConfig  # noqa: E402
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

TILE = 64
BATCH = 2
SHAPES = ((3.0,) * 3, (4.0,) * 3, (6.0,) * 3)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = fast_dtype(DEVICE)
AMP = DTYPE is not torch.float32


def make_plan() -> Plan:
    """Return the plan of both: 16 to 128 features, three levels from a stride of 2."""
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


def prepare_ours(side: int) -> dict[str, Callable[[], object]]:
    """Return our training step and our prediction of a volume."""
    layout = fast_memory_format(3, DEVICE)
    network = build_network(make_plan()).to(DEVICE)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    objective = make_objective(make_plan(), FocalLoss(), DetectionConfig.of())
    optimiser = torch.optim.AdamW(network.parameters())
    batch = {name: value.to(DEVICE) for name, value in make_tiles().items()}

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
        window = SlidingWindow([network], make_plan(), device=DEVICE)
        return len(window(image)[1] or ())

    return {"step": step, "volume": volume}


def prepare_monai(side: int) -> dict[str, Callable[[], object]]:
    """Return MONAI's training step and its prediction of a volume."""
    from benchmarks.peers.monai_detector import build_detector

    detector = build_detector(make_plan(), DEVICE)
    optimiser = torch.optim.AdamW(detector.network.parameters())
    images = list(make_tiles()["image"].to(DEVICE))
    box = torch.tensor([LESION], dtype=torch.float32, device=DEVICE)
    label = torch.zeros(1, dtype=torch.long, device=DEVICE)
    targets = [{"box": box, "label": label} for _ in images]

    def autocast() -> torch.autocast:
        return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=AMP)

    def step() -> None:
        detector.train()
        with autocast():
            terms = detector(images, targets)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()

    image = torch.randn(1, side, side, side, device=DEVICE)

    def volume() -> int:
        detector.eval()
        with torch.no_grad(), autocast():
            return len(detector([image], use_inferer=True)[0]["box"])

    return {"step": step, "volume": volume}


LESION = (20, 20, 20, 25, 25, 25)


def make_tiles() -> dict[str, Tensor]:
    """Return two tiles of noise with one lesion each."""
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
    """Return the milliseconds of the fastest round after one warm-up round."""
    marks = []
    for _ in range(rounds + 1):
        marks.append(time.perf_counter())
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    marks.append(time.perf_counter())
    return min(b - a for a, b in list(pairwise(marks))[1:]) * 1e3


def main() -> None:
    """Measure one detector and print the numbers."""
    warnings.filterwarnings("ignore")
    who = sys.argv[1]
    side = int(sys.argv[2])
    rounds = int(sys.argv[3])
    runs = prepare_ours(side) if who == "ours" else prepare_monai(side)
    found = {}
    for what, run in runs.items():
        found[what] = best_ms(run, rounds if what == "step" else 1)
        found[f"{what}_memory"] = peak_bytes(run, DEVICE.type) / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    main()
