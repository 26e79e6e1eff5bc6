"""The pictures of a pair's changes: both scans on the later grid, around the lesions of both."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Lesions
from lesionseg.evaluation.change import LesionChange
from lesionseg.pipeline.follow.visit_pairs import PairFiles, VisitPair, scan_on
from lesionseg.report.figures.pictures import Scene
from lesionseg.report.sections.follow_page import MAX_PICTURES, draw_change
from lesionseg.report.sections.gallery import GalleryCard


def draw_changes(
    files: PairFiles, pair: VisitPair, changes: Sequence[LesionChange], name: str
) -> list[tuple[LesionChange, GalleryCard]]:
    """A card for each change that counts; none without both scans, and none to draw reads none."""
    shown = [c for c in changes if c.accepted][:MAX_PICTURES]
    if not shown or files.before_image is None or files.after_image is None:
        return []
    grid = pair.prediction.geometry
    masks = pair.moved.mask() > 0, pair.prediction.mask() > 0
    before = Scene(scan_on(files.before_image, pair.placed, grid), grid, *masks)
    after = Scene(scan_on(files.after_image, grid, grid), grid, *masks)
    return [(c, draw_change(c, name, before, after, _box(pair, c))) for c in shown]


def _box(pair: VisitPair, change: LesionChange) -> NDArray[np.float64]:
    """Start and stop `[2, dims]` of the box around a change's lesions of both visits."""
    boxes = np.concatenate(
        [
            _boxes(pair.before.placed, change.lesion_before),
            _boxes(pair.after.placed, change.lesion_after),
        ]
    ).reshape(-1, 2, pair.prediction.geometry.dims)
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def _boxes(lesions: Lesions, ids: Sequence[int]) -> NDArray[np.float64]:
    return lesions.boxes[np.isin(lesions.ids, ids)]
