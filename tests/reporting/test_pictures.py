"""Pictures of lesions: cut-outs of several scenes."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import CaseFiles, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import unscored_prediction
from lesionseg.reporting import Card, Scene, write_preview
from lesionseg.reporting.pictures import _choose_bar
from tests.grids import unit_grid

GRID = unit_grid(20, 20, 20)


def open_picture(card):
    content = base64.b64decode(card.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=float)


def test_scenes_are_drawn_next_to_each_other():
    """The upper half of one scan is bright, the lower half of the other."""
    bright = np.zeros(GRID.shape, dtype=np.float32)
    bright[:, :10] = 1
    scenes = {"": Scene(bright, GRID), "later": Scene(1 - bright, GRID)}
    words = ("a", "4 mm", "new")
    card = Card.draw(scenes, (8, 8, 8), (12, 12, 12), words=words, planes=1)
    assert (card.case, card.size, card.words) == words
    drawn = open_picture(card)
    side = len(drawn)
    assert drawn.shape[1] == pytest.approx(2 * side, abs=1)  # rounded pixels
    middle = slice(side // 3, 2 * side // 3)  # without letters and scale bar
    difference = drawn[:, :side][middle, middle] - drawn[:, side:][middle, middle]
    assert abs(difference[: side // 9].mean()) > 100
    assert difference[: side // 9].mean() * difference[-side // 9 :].mean() < 0


@pytest.mark.parametrize(("side", "bar"), [(10.0, 2), (25.0, 10), (100.0, 20), (130.0, 50)])
def test_scale_bar_is_at_most_four_tenths_of_its_panel(side, bar):
    assert _choose_bar(side) == bar


ORANGE = np.array([240, 165, 0])  # `ACCEPTED`


def write_and_open(folder, image, labels, *, n_accepted):
    """Write a scan and its preview, with the first candidates accepted. Return the pixels."""
    geometry = unit_grid(*labels.shape)
    found = unscored_prediction("a", geometry, labels, None)
    candidates = tuple(
        replace(candidate, accepted=k < n_accepted) for k, candidate in enumerate(found.candidates)
    )
    file = folder / ("a.nii" if labels.ndim == 3 else "a.png")
    if labels.ndim == 3:
        write_volume(file, Volume(image[np.newaxis], geometry))
    else:
        Image.fromarray(image).save(file)
    prediction = replace(found, candidates=candidates)
    write_preview(folder / "a_preview.png", CaseFiles("a", (file,), group="a"), prediction)
    return np.asarray(Image.open(folder / "a_preview.png").convert("RGB"), dtype=int)


def n_orange(pixels):
    """Return the number of pixels of the colour of accepted candidates."""
    return (np.abs(pixels - ORANGE).sum(axis=-1) < 30).sum()


@pytest.mark.parametrize(("n_accepted", "n_rows"), [(0, 1), (1, 1), (3, 3), (6, 4)])
def test_preview_has_a_row_of_planes_per_accepted_candidate(tmp_path, n_accepted, n_rows):
    labels = np.zeros((12, 30, 40), dtype=np.uint8)
    labels[4:8, 10:15, 2:38] = 1
    labels[:, :, 7::6] = 0  # six lesions
    image = np.random.default_rng(0).normal(100, 3, labels.shape).astype(np.float32)
    pixels = write_and_open(tmp_path, image, labels, n_accepted=n_accepted)
    side = 350  # 1.75 inches of 200 pixels
    assert pixels.shape == (n_rows * side, 3 * side, 3)
    assert (n_orange(pixels) > 100) == (n_accepted > 0)
    for row in range(n_rows if n_accepted else 0):  # the candidate is in the middle of its planes
        for plane in range(3):
            assert n_orange(pixels[row * side :, plane * side :][70:280, 70:280]) > 20, (row, plane)


def test_preview_of_a_picture_shows_its_colours_and_the_whole_image(tmp_path):
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[10:20, 30:40] = 1
    image = np.full((40, 60, 3), (20, 90, 160), dtype=np.uint8)
    pixels = write_and_open(tmp_path, image, labels, n_accepted=1)
    assert pixels.shape == (350, 700, 3)
    for panel in (pixels[:, :350], pixels[:, 350:]):
        assert n_orange(panel) > 20
        assert (panel == (20, 90, 160)).all(axis=-1).mean() > 0.3
