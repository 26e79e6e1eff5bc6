"""Pictures of a few tiles while a network trains: the reference beside the prediction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lesionseg.data.tiling import TileGrid
from lesionseg.inference.candidates.box_candidates import BoxCollector
from lesionseg.io.atomic import atomic_path
from lesionseg.models.detector_output import DetectorOutput
from lesionseg.ops.components import mask_boxes
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.drawing import (
    Picture,
    boxes_side_by_side,
    crossing,
    fullest,
    masks_side_by_side,
    stacked,
)
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.step.module import LesionModule

PREVIEWS = Path("previews")
LEAST_P = 0.2  # of boxes; a detector's first ones are timid
Show = Callable[[str, Picture, int], None]


@dataclass(frozen=True, eq=False)
class PreviewTile:
    """A tile that is drawn again and again: image `[C, *tile]` and lesion ids `[*tile]`."""

    image: Tensor
    instances: Tensor


class Previews(AfterStep):
    """Draws the first tiles with a lesion, again and again, into `run_dir/previews`.

    One picture each `every_minutes` and at the end, `step_<number>.png`, by the averaged network: a
    row a tile, at its slice with most of the lesion. Left the reference's outline, right what is
    predicted at p ≥ 0.5 filled and the reference's outline; of a network without voxels the frames
    of boxes at p ≥ `LEAST_P`. `show` is given each picture, too.
    """

    def __init__(
        self, run_dir: Path, every_minutes: float, n_tiles: int, show: Show | None = None
    ) -> None:
        self.folder, self.every_minutes, self.n_tiles = run_dir / PREVIEWS, every_minutes, n_tiles
        self.show = show
        self.tiles: list[PreviewTile] = []
        self._due = 0.0
        self._drawn = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the time of the first picture."""
        self._due = cast(LesionModule, pl_module).clock.minutes() + self.every_minutes

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep tiles with a lesion until there are enough."""
        if trainer.is_global_zero and len(self.tiles) < self.n_tiles:
            self._keep(batch)

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Draw when it is due."""
        if module.counters.minutes >= self._due:
            self._draw(module)
            self._due = module.counters.minutes + self.every_minutes

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what training hands over."""
        self._draw(cast(LesionModule, pl_module))

    def _keep(self, batch: Mapping[str, Tensor]) -> None:
        for image, instances in zip(batch["image"], batch["instances"], strict=True):
            if len(self.tiles) < self.n_tiles and bool((instances > 0).any()):
                self.tiles.append(PreviewTile(image.cpu(), instances.cpu()))

    def _draw(self, module: LesionModule) -> None:
        step = module.counters.steps
        if not self.tiles or step == self._drawn:
            return
        picture = stacked([_row(module.final_network, module, tile) for tile in self.tiles])
        keep_picture(picture, self.folder / f"step_{step:06d}.png")
        if self.show is not None:
            self.show("previews", picture, step)
        self._drawn = step


def _row(network: nn.Module, module: LesionModule, tile: PreviewTile) -> Picture:
    """The two pictures of a tile, side by side."""
    output = _output(network, tile.image.to(module.device))
    instances, image = tile.instances.numpy(), tile.image[0].numpy()
    cut = fullest(instances > 0)
    if module.plan.has_voxels:
        p = _probability(output, module.plan.activation)
        return masks_side_by_side(image[cut], instances[cut] > 0, p[cut] >= 0.5)
    reference, found = mask_boxes(instances, int(instances.max())), _boxes(output, module.plan)
    return boxes_side_by_side(image[cut], crossing(reference, cut), crossing(found, cut))


def _output(network: nn.Module, image: Tensor) -> Any:
    """What the network says of a tile in eval mode."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return network(image[None])
    finally:
        network.train(training)


def _probability(output: Any, activation: str) -> NDArray[np.float32]:
    """The highest probability of any lesion in each voxel `[*tile]`."""
    logits = getattr(output, "segmentation", output)[0][0].float()
    sigmoid = activation == "sigmoid"
    p = logits.sigmoid().amax(0) if sigmoid else 1 - logits.softmax(0)[0]
    return np.asarray(p.cpu().numpy())


def _boxes(output: DetectorOutput, plan: Plan) -> NDArray[np.float32]:
    """The boxes `[n, 2·dims]` that inference would find in a tile by itself, at p ≥ `LEAST_P`."""
    collector = BoxCollector(TileGrid(plan.tile_shape, plan.tile_shape), plan)
    collector.add(output, [0], ())
    found = collector.finish()
    return np.asarray(found.boxes[found.scores >= LEAST_P].numpy())


def keep_picture(picture: Picture, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
