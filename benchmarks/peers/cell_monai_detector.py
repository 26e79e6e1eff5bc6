"""MONAI's RetinaNet on the tiles that teach ours, for as many steps; by vs_monai_detector.py.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/cell_monai_detector.py JOB.json

Cases, tiles, augmentation, backbone, anchors' sizes, optimiser, rate, clipping and averaged weights
are those of our `model=retinanet` with JOB's overrides; heads, matching, loss (BCE with mined
negatives, L1 of boxes) and inference are MONAI's (`monai_detector.py`). Writes candidates of the
test cases in voxels of their own grid, which has to be the plan's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()  # MONAI's detector imports torchvision

from benchmarks.common.recipe import Recipe, recipe  # noqa: E402
from benchmarks.peers.monai_detector import build_detector  # noqa: E402
from lesionseg.data.prepare import prepare_image  # noqa: E402
from lesionseg.io.cases import read_image  # noqa: E402
from lesionseg.models.precision import fast_dtype  # noqa: E402
from lesionseg.pipeline.dataset import (  # noqa: E402
    DataSettings,
    Survey,
    take_survey,
)
from lesionseg.pipeline.train.learning import decide, prepare_cases  # noqa: E402
from lesionseg.plan.plan import Plan  # noqa: E402
from lesionseg.training.fit import tiles_of  # noqa: E402
from lesionseg.training.step.optimiser import (  # noqa: E402
    WarmAverage,
    make_optimiser,
    set_learning_rate,
)
from lesionseg.training.step.schedule import learning_rate  # noqa: E402


def main() -> None:
    """Plan, prepare, train and predict."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    output, device = Path(job["output"]), torch.device(job["device"])
    chosen = recipe(job["overrides"], Path(job["data"]))
    data = DataSettings(job["data"], cache_dir=str(output / "cache"))
    found = take_survey(data, seed=0)
    plan = decide(found, chosen.model, chosen.learning.trainer, output)
    detector = build_detector(plan, device, job["seed"])
    averaged = train(detector, batches(found, plan, data, chosen, job), chosen, job["steps"])
    detector.network.load_state_dict(averaged)
    detector.eval()
    for files in found.of_role("test"):
        scan = read_image(files, found.dataset)
        image = prepare_image(scan, plan)
        if not np.allclose(image.geometry.affine, scan.geometry.affine):
            sys.exit(f"{files.case}: boxes would be on the plan's grid, not on the scan's")
        write(detector, image, output / f"{files.case}_candidates.json", device)


def batches(
    found: Survey, plan: Plan, data: DataSettings, chosen: Recipe, job: dict[str, Any]
) -> Any:
    """Images and targets of one step after another, without end."""
    output, device = Path(job["output"]), torch.device(job["device"])
    cases = prepare_cases(found, plan, data, output)
    tiles = tiles_of(cases, plan, chosen.learning)
    number = 0
    while True:
        batch = [tiles[number + i] for i in range(plan.batch_size)]
        number += plan.batch_size
        yield [b["image"].as_tensor().to(device) for b in batch], [target(b, device) for b in batch]


def target(tile: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Boxes (starts, stops) of the lesions in one tile."""
    places = ndimage.find_objects(tile["instances"][0].numpy())
    boxes = [[s.start for s in at] + [s.stop for s in at] for at in places if at is not None]
    dims = tile["instances"].ndim - 1
    return {
        "box": torch.tensor(boxes, dtype=torch.float32, device=device).reshape(-1, 2 * dims),
        "label": torch.zeros(len(boxes), dtype=torch.long, device=device),
    }


def train(detector: Any, stream: Any, chosen: Recipe, steps: int) -> dict[str, Tensor]:
    """So many steps by our optimiser and schedule; the averaged weights."""
    settings, trainer = chosen.learning.optimiser, chosen.learning.trainer
    network = detector.network
    optimiser = make_optimiser(network, settings)
    averaged = WarmAverage(network, trainer.ema_decay or 0.0)
    detector.train()
    for step, (images, targets) in zip(range(steps), stream, strict=False):
        set_learning_rate(optimiser, learning_rate(step / steps, settings))
        device = images[0].device
        dtype = fast_dtype(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
            terms = detector(images, targets)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), trainer.gradient_clip)
        optimiser.step()
        averaged.update_parameters(network)
        if step % 100 == 0:
            print(step, {name: round(term.item(), 3) for name, term in terms.items()}, flush=True)
    return dict(averaged.module.state_dict())


@torch.no_grad()
def write(detector: Any, image: Any, path: Path, device: torch.device) -> None:
    """The boxes of one scan as candidates."""
    array = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32)).to(device)
    found = detector([array], use_inferer=True)[0]
    dims = array.ndim - 1
    rows = zip(found["box"].tolist(), found["label_scores"].tolist(), strict=True)
    candidates = [
        {"score": min(score, 1.0), "start_vox": box[:dims], "stop_vox": box[dims:]}
        for box, score in rows
        if all(b > a for a, b in zip(box[:dims], box[dims:], strict=True))
    ]
    path.write_text(json.dumps({"schema_version": 1, "candidates": candidates}))


if __name__ == "__main__":
    main()
