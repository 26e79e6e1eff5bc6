"""Pictures of a few tiles while a network trains: the reference beside the prediction."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lesionseg.io.atomic import atomic_path
from lesionseg.models.retinanet import has_voxels
from lesionseg.training.callbacks import AfterStep
from lesionseg.training.module import LesionModule

log = logging.getLogger(__name__)

PREVIEWS = Path("previews")
REFERENCE = (86, 180, 233)  # sky blue and orange: told apart by everybody, on grey
PREDICTED = (230, 159, 0)
LEAST_SIDE = 192  # pixels; smaller tiles are enlarged
Show = Callable[[str, NDArray[np.uint8], int], None]


class Previews(AfterStep):
    """Draws the first tiles with a lesion, again and again, into `run_dir/previews`.

    One picture each `every_minutes` and at the end, `step_<number>.png`, by the averaged network: a
    row a tile, at its slice with most of the lesion. Left the reference's outline, right what is
    predicted at p ≥ 0.5 filled and the reference's outline. `show` is given each picture, too.
    """

    def __init__(
        self, run_dir: Path, every_minutes: float, n_tiles: int, show: Show | None = None
    ) -> None:
        self.folder, self.every_minutes, self.n_tiles = run_dir / PREVIEWS, every_minutes, n_tiles
        self.show = show
        self.tiles: list[tuple[Tensor, Tensor]] = []
        self._due = 0.0
        self._drawn = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the time of the first picture."""
        module = cast(LesionModule, pl_module)
        self._due = module.clock.minutes() + self.every_minutes
        if not has_voxels(module.plan):
            log.info("No previews: a %s has no voxels to draw.", module.plan.architecture.name)
            self.n_tiles = 0

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
        for image, labels in zip(batch["image"], batch["labels"], strict=True):
            if len(self.tiles) < self.n_tiles and bool((labels > 0).any()):
                self.tiles.append((image.cpu(), labels.cpu()))

    def _draw(self, module: LesionModule) -> None:
        step = module.counters.steps
        if not self.tiles or step == self._drawn:
            return
        rows = [_row(module.final_network, module, *tile) for tile in self.tiles]
        picture = np.concatenate(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"step_{step:06d}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        if self.show is not None:
            self.show("previews", picture, step)
        self._drawn = step


def _row(
    network: nn.Module, module: LesionModule, image: Tensor, labels: Tensor
) -> NDArray[np.uint8]:
    """The two pictures of a tile, side by side."""
    p = _probability(network, image.to(module.device), module.plan.activation)
    reference = labels.numpy() > 0
    cut = _slice(reference)
    grey, outline = _grey(image[0].numpy()[cut]), _outline(reference[cut])
    left, right = _painted(grey, outline, REFERENCE), _tinted(grey, p[cut] >= 0.5)
    pictures = np.concatenate([left, _painted(right, outline, REFERENCE)], axis=1)
    return _enlarged(pictures)


def _probability(network: nn.Module, image: Tensor, activation: str) -> NDArray[np.float32]:
    """The highest probability of any lesion in each voxel `[*tile]`."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output: Any = network(image[None])
    finally:
        network.train(training)
    logits = getattr(output, "segmentation", output)[0][0].float()
    sigmoid = activation == "sigmoid"
    p = logits.sigmoid().amax(0) if sigmoid else 1 - logits.softmax(0)[0]
    return np.asarray(p.cpu().numpy())


def _slice(reference: NDArray[np.bool_]) -> tuple[int, ...]:
    """The leading indices of the plane with most of the reference; empty in 2-D."""
    area = reference.sum(axis=(-2, -1))
    return tuple(int(i) for i in np.unravel_index(int(area.argmax()), area.shape))


def _grey(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(plane, (0.5, 99.5))
    scaled = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=-1)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels just outside the mask: the lesion itself stays to be seen."""
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.asarray(beside & ~mask)


def _painted(
    picture: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    painted = picture.copy()
    painted[where] = colour
    return painted


def _tinted(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    half = (picture // 2 + np.asarray(PREDICTED) // 2).astype(np.uint8)
    return np.where(where[..., None], half, picture)


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, -(-LEAST_SIDE // min(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
