"""MONAI's RetinaNet on radiographs, on the films and tiles of `films.py`.

    PYTHONPATH=. .peers/bin/python benchmarks/learning/films_monai.py --data DIR … --steps 600 \\
        --variants monai= --output runs/films

It runs in the environment of the peers (`make peers`) and has the options of `films.py`. Films,
tiles, augmentation, backbone, sizes of anchors, optimiser and learning rate are those of our plan
for `model=retinanet`. Heads, matching of anchors, loss (cross-entropy with hard negatives, L1 of
boxes) and inference are MONAI's, with the settings of its LUNA16 recipe (`monai_detector.py`). It
trains in bf16 on the processors on which ours does; its recipe uses automatic mixed precision too.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()  # MONAI's detector and torchmetrics import torchvision

from benchmarks.learning import films  # noqa: E402
from benchmarks.peers.monai_detector import build_detector  # noqa: E402
from lesionseg.data.cache import CachedCase  # noqa: E402
from lesionseg.data.tiles import TileDataset  # noqa: E402
from lesionseg.inference.box_candidates import Boxes  # noqa: E402
from lesionseg.inference.bundle import Bundle  # noqa: E402
from lesionseg.inference.decision import Inferred  # noqa: E402
from lesionseg.inference.predictor import Predictor  # noqa: E402
from lesionseg.models.build import build_network, fast_dtype  # noqa: E402
from lesionseg.pipeline.experiment import Experiment  # noqa: E402
from lesionseg.pipeline.planning import with_focal_correction  # noqa: E402
from lesionseg.plan.plan import Plan  # noqa: E402
from lesionseg.training.fit import GRADIENT_CLIP, STEPS_PER_EPOCH  # noqa: E402
from lesionseg.training.module import (  # noqa: E402
    lr_factor,
    make_optimiser,
    peak_lr,
)

CPU = torch.device("cpu")
KEEP_EVERY = 100  # steps between checkpoints


class MonaiPredictor(Predictor):
    """A predictor whose boxes come from MONAI's detector."""

    detector: Any

    @classmethod
    def of(cls, detector: nn.Module, plan: Plan, experiment: Experiment) -> "MonaiPredictor":
        """Return a predictor by the plan. Our network is built, but not used."""
        ours = build_network(plan)
        made = cls(Bundle((ours,), plan), device=CPU, settings=experiment.cfg.inference)
        made.detector = detector.eval()
        return made

    @torch.no_grad()
    def infer(self, scan: Any, **_: Any) -> Inferred:
        """Run MONAI's sliding window on a prepared film."""
        inferred = super().infer(scan)
        image = torch.from_numpy(np.ascontiguousarray(scan.image, dtype=np.float32))
        found = self.detector([image], use_inferer=True)[0]
        boxes = found["box"].float()
        dims = scan.grid.dims
        has_size = (boxes[:, dims:] > boxes[:, :dims]).all(dim=1)
        order = found["label_scores"][has_size].argsort(descending=True)
        scores = found["label_scores"][has_size][order].float()
        kept = Boxes(boxes[has_size][order], scores, found["label"][has_size][order] + 1)
        return Inferred(
            store=inferred.store,
            plan_geometry=inferred.plan_geometry,
            file_geometry=inferred.file_geometry,
            input=inferred.input,
            boxes=kept,
            valid=inferred.valid,
        )


def train_monai(
    experiment: Experiment, plan: Plan, cases: Sequence[CachedCase]
) -> tuple[Predictor, int]:
    """Train MONAI's detector for `trainer.max_steps`. Return its predictor and the steps."""
    cfg = experiment.cfg
    torch.manual_seed(cfg.seed)
    steps = cfg.trainer.max_steps
    assert steps is not None
    detector = build_detector(plan, CPU, cfg.seed)
    network = detector.network
    rate = peak_lr(cfg.optim, plan, plan.batch_size)
    optimiser = make_optimiser(network, cfg.optim, rate)
    kept = experiment.run / "checkpoints" / "last.ckpt"
    first = restore(kept, network, optimiser)
    tiles = TileDataset(
        cases,
        plan,
        cfg.sampling,
        cfg.augment,
        n_tiles=STEPS_PER_EPOCH * plan.batch_size,
        seed=cfg.seed,
    )
    batches = batches_from(tiles, plan, first)
    detector.train()
    for step in range(first, steps):
        images, targets = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = rate * lr_factor(step / steps, cfg.optim)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype(CPU) == torch.bfloat16):
            terms = detector(images, targets)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimiser.step()
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            losses = {name: round(term.item(), 3) for name, term in terms.items()}
            films.log.info("step %d: %s", step + 1, losses)
            keep(kept, network, optimiser, step + 1)
    plan = with_focal_correction(plan, cfg.loss, cfg.detection)
    return MonaiPredictor.of(detector, plan, experiment), steps


def restore(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one. Return the number of its steps."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["steps"])


def keep(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Write a checkpoint. An interruption leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "steps": steps,
    }
    written = path.with_suffix(".part")
    torch.save(state, written)
    written.replace(path)


def batches_from(
    tiles: TileDataset, plan: Plan, step: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Yield images and targets of one step after another, without end."""
    while True:
        first = step * plan.batch_size
        batch = [tiles[number] for number in range(first, first + plan.batch_size)]
        yield [torch.as_tensor(tile["image"]) for tile in batch], [boxes_of(tile) for tile in batch]
        step += 1


def boxes_of(tile: Any) -> dict[str, Tensor]:
    """Return the boxes of the lesions in a tile, starts then stops, and their labels, all 0."""
    instances = np.asarray(tile["instances"])[0]
    places = [place for place in ndimage.find_objects(instances) if place is not None]
    boxes = [[axis.start for axis in place] + [axis.stop for axis in place] for place in places]
    return {
        "box": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2 * instances.ndim),
        "label": torch.zeros(len(boxes), dtype=torch.long),
    }


if __name__ == "__main__":
    films.main(train_monai)
