"""Slices of validation cases while a network trains: the reference beside the prediction."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from lesionseg.core import Prediction, Reference, Volume
from lesionseg.ops.lesions import lesions_of
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


class ValidationSlices(AfterStep):
    """Draws the first few validation cases with a lesion, into `run_dir/previews`.

    One picture a validation, `validation_step_<number>.png`: a row a case, at the slice with most
    of the lesion on the file's own grid. Left the reference's outline, right what is accepted
    filled and the reference's outline; without masks the frames of boxes, of candidates from
    `LEAST_P` on. `show` is given each picture, too. Who predicts the cases shows them by `see`.
    """

    def __init__(self, run_dir: Path, n_cases: int, show: Show | None = None) -> None:
        self.folder, self.n_cases, self.show = run_dir / PREVIEWS, n_cases, show
        self.rows: list[Picture] = []

    @property
    def is_full(self) -> bool:
        """Whether no more cases are needed for the next picture."""
        return len(self.rows) >= self.n_cases

    def see(self, image: Volume, reference: Reference, prediction: Prediction) -> None:
        """Take a case for the next picture, if it has a lesion and there is room."""
        row = None if self.is_full else _row(image, reference, prediction)
        if row is not None:
            self.rows.append(row)

    def draw(self, step: int) -> None:
        """Write and show what has been seen since the last picture; nothing where nothing was."""
        if not self.rows:
            return
        picture, self.rows = stacked(self.rows), []
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


def _row(image: Volume, reference: Reference, prediction: Prediction) -> Picture | None:
    """The two pictures of a case; None without a lesion."""
    lesion = reference.mask()
    if lesion is None or prediction.instances is None:
        return _row_of_boxes(image, reference, prediction)
    if not lesion.any():
        return None
    cut = fullest(lesion)
    return masks_side_by_side(image.array[0][cut], lesion[cut], prediction.mask()[cut] > 0)


def _row_of_boxes(image: Volume, reference: Reference, prediction: Prediction) -> Picture | None:
    """The same where one side has boxes alone; the plane through the middle of the largest."""
    boxes = lesions_of(reference).boxes
    if len(boxes) == 0:
        return None
    start, stop = np.split(boxes, 2, axis=1)
    largest = int((stop - start).prod(axis=1).argmax())
    middle = ((start[largest] + stop[largest]) / 2).astype(int)
    cut = tuple(int(i) for i in middle[:-2])
    found = [c.start_vox + c.stop_vox for c in prediction.candidates if c.score >= LEAST_P]
    plane = image.array[0][cut]
    return boxes_side_by_side(plane, crossing(boxes, cut), crossing(found, cut))
