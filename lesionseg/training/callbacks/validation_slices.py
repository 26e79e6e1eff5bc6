"""Slices of validation cases while a network trains: the reference beside the prediction."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from lesionseg.core import Prediction, Reference, Volume
from lesionseg.ops.components import lesion_instances, mask_boxes
from lesionseg.training.callbacks.drawing import (
    Picture,
    boxes_side_by_side,
    crossing,
    fullest,
    masks_side_by_side,
    stacked,
)
from lesionseg.training.callbacks.previews import LEAST_P, PREVIEWS, Show, keep_picture
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.step.module import LesionModule

Decide = Callable[[Prediction], Prediction]
_Row = Callable[[Decide], Picture]


class ValidationSlices(AfterStep):
    """Draws the first few validation cases with a lesion, into `run_dir/previews`.

    One picture a validation, `validation_step_<number>.png`: a row a case, at the slice with most
    of the lesion on the file's own grid. Left the reference's outline, right what is accepted
    filled and the reference's outline; without masks the frames of boxes, of candidates from
    `LEAST_P` on. `show` is given each picture, too. Who predicts the cases shows them by `see`.
    """

    def __init__(self, run_dir: Path, n_cases: int, show: Show | None = None) -> None:
        self.folder, self.n_cases, self.show = run_dir / PREVIEWS, n_cases, show
        self.rows: list[_Row] = []

    @property
    def is_full(self) -> bool:
        """Whether no more cases are needed for the next picture."""
        return len(self.rows) >= self.n_cases

    def see(self, image: Volume, reference: Reference, prediction: Prediction) -> None:
        """Take a case for the next picture, if it has a lesion and there is room."""
        row = None if self.is_full else _row(image, reference, prediction)
        if row is not None:
            self.rows.append(row)

    def draw(self, step: int, decide: Decide = lambda prediction: prediction) -> None:
        """Write and show what has been seen since the last picture; nothing where nothing was.

        `decide` gives the predictions as they were decided on after they had been seen.
        """
        if not self.rows:
            return
        picture, self.rows = stacked([row(decide) for row in self.rows]), []
        keep_picture(picture, self.folder / f"validation_step_{step:06d}.png")
        if self.show is not None:
            self.show("validation", picture, step)

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Draw when this step was validated."""
        self.draw(module.counters.steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last validation."""
        if isinstance(pl_module, LesionModule):
            self.draw(pl_module.counters.steps)


def _row(image: Volume, reference: Reference, prediction: Prediction) -> _Row | None:
    """The two pictures of a case, to be drawn when it is decided on; None without a lesion.

    No more than a slice of it is kept.
    """
    marked = reference.labels if reference.labels is not None else reference.instances
    if marked is None or prediction.instances is None:
        return _row_of_boxes(image, reference, prediction)
    lesion = marked > 0
    if not lesion.any():
        return None
    cut = fullest(lesion)
    plane, drawn = image.array[0][cut].copy(), lesion[cut].copy()
    values = None if prediction.values is None else prediction.values[cut].copy()
    sliced = replace(prediction, instances=prediction.instances[cut].copy(), values=values)
    return lambda decide: masks_side_by_side(plane, drawn, decide(sliced).mask() > 0)


def _row_of_boxes(image: Volume, reference: Reference, prediction: Prediction) -> _Row | None:
    """The same where one side has boxes alone; the plane through the middle of the largest."""
    boxes = _boxes_of(reference)
    if len(boxes) == 0:
        return None
    start, stop = np.split(boxes, 2, axis=1)
    largest = int((stop - start).prod(axis=1).argmax())
    middle = ((start[largest] + stop[largest]) / 2).astype(int)
    cut = tuple(int(i) for i in middle[:-2])
    plane, bare = image.array[0][cut].copy(), replace(prediction, instances=None, values=None)

    def draw(decide: Decide) -> Picture:
        candidates = [c for c in decide(bare).candidates if c.score >= LEAST_P]
        drawn = crossing([c.start_vox + c.stop_vox for c in candidates], cut)
        return boxes_side_by_side(plane, crossing(boxes, cut), drawn)

    return draw


def _boxes_of(reference: Reference) -> NDArray[np.float32]:
    """The boxes that the dataset gives, or those around its lesions."""
    if reference.boxes is not None:
        return reference.boxes
    instances = reference.instances
    if instances is None and reference.labels is not None:
        instances = lesion_instances(reference.labels).instances
    if instances is None:
        return np.zeros((0, 2 * len(reference.geometry.shape)), dtype=np.float32)
    return mask_boxes(instances, int(instances.max()))
