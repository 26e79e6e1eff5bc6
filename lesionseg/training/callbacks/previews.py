"""Pictures of a few tiles and validation cases in training: reference beside prediction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lesionseg.core import Prediction, Reference, Volume
from lesionseg.data.tiling import TileGrid
from lesionseg.inference.candidates.boxes import BoxCollector
from lesionseg.io.atomic import atomic_path
from lesionseg.models.heads import DetectorOutput
from lesionseg.ops.components import lesions_of, mask_boxes
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
from lesionseg.training.lightning_module import LesionModule

PREVIEWS = Path("previews")
LEAST_P = 0.2  # of boxes; a detector's first ones are timid
Show = Callable[[str, Picture, int], None]
Decide = Callable[[Prediction], Prediction]
_Row = Callable[[Decide], Picture]


@dataclass(frozen=True, eq=False)
class PreviewTile:
    """A tile that is drawn again and again: image `[C, *tile]` in fp16 and lesion ids `[*tile]`."""

    image: Tensor
    instances: Tensor


class Pictures(AfterStep):
    """Base of the callbacks here: keeps rows of pictures as one in `run_dir/previews`.

    `n` rows at most; `show` is given each picture, too.
    """

    def __init__(self, run_dir: Path, n: int, show: Show | None) -> None:
        self.folder, self.n, self.show = run_dir / PREVIEWS, n, show

    def keep(self, rows: Sequence[Picture], name: str, file: str, step: int) -> None:
        """Write a PNG, whole or not at all, and show it."""
        picture, path = stacked(rows), self.folder / f"{file}_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        if self.show is not None:
            self.show(name, picture, step)


class Previews(Pictures):
    """Draws the first tiles with a lesion, again and again, into `run_dir/previews`.

    One picture each `every_minutes` and at the end, `step_<number>.png`, by the averaged network: a
    row per tile, at its slice with most of the lesion. Left the reference's outline, right what is
    predicted at p ≥ 0.5 filled and the reference's outline; of a network without voxels the frames
    of boxes at p ≥ `LEAST_P`. A resumed training draws the same tiles.
    """

    def __init__(
        self, run_dir: Path, every_minutes: float, n_tiles: int, show: Show | None = None
    ) -> None:
        super().__init__(run_dir, n_tiles, show)
        self.every_minutes = every_minutes
        self.tiles: list[PreviewTile] = []
        self._due = 0.0
        self._drawn = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the time of the first picture."""
        self._due = cast(LesionModule, pl_module).clock.minutes() + self.every_minutes

    def state_dict(self) -> dict[str, Any]:
        """The tiles."""
        return {"tiles": [vars(tile) for tile in self.tiles]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.tiles = [
            PreviewTile(tile["image"].cpu(), tile["instances"].cpu())
            for tile in state_dict["tiles"]
        ]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep tiles with a lesion until there are enough."""
        if trainer.is_global_zero and len(self.tiles) < self.n:
            self._take(batch)

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Draw when it is due."""
        if module.counters.minutes >= self._due:
            self._draw(module)
            self._due = module.counters.minutes + self.every_minutes

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what training hands over."""
        self._draw(cast(LesionModule, pl_module))

    def _take(self, batch: Mapping[str, Tensor]) -> None:
        for image, instances in zip(batch["image"], batch["instances"], strict=True):
            if len(self.tiles) < self.n and bool((instances > 0).any()):
                self.tiles.append(PreviewTile(image.half().cpu(), instances.cpu()))

    def _draw(self, module: LesionModule) -> None:
        step = module.counters.steps
        if not self.tiles or step == self._drawn:
            return
        rows = [_tile_row(module.final_network, module, tile) for tile in self.tiles]
        self.keep(rows, "previews", "step", step)
        self._drawn = step


def _tile_row(network: nn.Module, module: LesionModule, tile: PreviewTile) -> Picture:
    """The two pictures of a tile, side by side."""
    output = _output(network, tile.image.float().to(module.device))
    instances, image = tile.instances.numpy(), tile.image[0].float().numpy()
    cut = fullest(instances > 0)
    if module.plan.has_voxels:
        p = _probability(output, module.plan.activation)
        return masks_side_by_side(image[cut], instances[cut] > 0, p[cut] >= 0.5)
    reference, boxes = mask_boxes(instances, int(instances.max())), _boxes(output, module.plan)
    return boxes_side_by_side(image[cut], crossing(reference, cut), crossing(boxes, cut))


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
    candidates = collector.finish()
    return np.asarray(candidates.boxes[candidates.scores >= LEAST_P].numpy())


class ValidationSlices(Pictures):
    """Draws the first few validation cases with a lesion, into `run_dir/previews`.

    One picture a validation, `validation_step_<number>.png`: a row per case, at the slice with most
    of the lesion on the file's own grid. Left the reference's outline, right what is accepted
    filled and the reference's outline; without masks the frames of boxes, of candidates from
    `LEAST_P` on. Whoever predicts the cases shows them by `see`.
    """

    def __init__(self, run_dir: Path, n_cases: int, show: Show | None = None) -> None:
        super().__init__(run_dir, n_cases, show)
        self.rows: list[_Row] = []

    @property
    def is_full(self) -> bool:
        """Whether no more cases are needed for the next picture."""
        return len(self.rows) >= self.n

    def see(self, image: Volume, reference: Reference, prediction: Prediction) -> None:
        """Take a case for the next picture, if it has a lesion and the picture is not full."""
        row = None if self.is_full else _case_row(image, reference, prediction)
        if row is not None:
            self.rows.append(row)

    def draw(self, step: int, decide: Decide = lambda prediction: prediction) -> None:
        """Write and show what has been seen since the last picture; nothing where nothing was.

        `decide` gives the predictions as they were decided on after they had been seen.
        """
        if self.rows:
            rows, self.rows = [row(decide) for row in self.rows], []
            self.keep(rows, "validation", "validation_step", step)

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Draw when this step was validated."""
        self.draw(module.counters.steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last validation."""
        if isinstance(pl_module, LesionModule):
            self.draw(pl_module.counters.steps)


def _case_row(image: Volume, reference: Reference, prediction: Prediction) -> _Row | None:
    """The two pictures of a case, to be drawn when it is decided on; None without a lesion.

    No more than a slice of it is kept.
    """
    lesion = reference.mask()
    if lesion is None or prediction.instances is None:
        return _case_row_of_boxes(image, reference, prediction)
    if not lesion.any():
        return None
    cut = fullest(lesion)
    plane, lesion_plane = image.array[0][cut].copy(), lesion[cut].copy()
    values = None if prediction.values is None else prediction.values[cut].copy()
    sliced = replace(prediction, instances=prediction.instances[cut].copy(), values=values)
    return lambda decide: masks_side_by_side(plane, lesion_plane, decide(sliced).mask() > 0)


def _case_row_of_boxes(image: Volume, reference: Reference, prediction: Prediction) -> _Row | None:
    """The same where one side has boxes alone; the plane through the middle of the largest."""
    boxes = lesions_of(reference).boxes
    if len(boxes) == 0:
        return None
    start, stop = np.split(boxes, 2, axis=1)
    largest = int((stop - start).prod(axis=1).argmax())
    middle = ((start[largest] + stop[largest]) / 2).astype(int)
    cut = tuple(int(i) for i in middle[:-2])
    plane, bare = image.array[0][cut].copy(), replace(prediction, instances=None, values=None)

    def draw(decide: Decide) -> Picture:
        candidates = [c for c in decide(bare).candidates if c.score >= LEAST_P]
        predicted = crossing([c.start_vox + c.stop_vox for c in candidates], cut)
        return boxes_side_by_side(plane, crossing(boxes, cut), predicted)

    return draw
